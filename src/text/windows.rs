//! Overlapping windows over the tokens of a text longer than the model's input.

use std::ops::Range;

/// A stretch of tokens that goes through the model at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens in the window.
    pub tokens: Range<usize>,
    /// Those of [`Window::tokens`] whose results are used: of all windows that
    /// hold them they stand most centrally in this one.
    pub keep: Range<usize>,
}

/// Covers `num_tokens` tokens with windows of at most `max_tokens`, of which
/// neighbours share at least `overlap`.
///
/// The windows' `keep` ranges partition `0..num_tokens`. All windows are of
/// the same length, so the last two may share more. No tokens give no windows;
/// a text that fits gives one. `max_tokens` counts as at least 1, `overlap` as
/// at most `max_tokens - 1`.
///
/// # Examples
///
/// ```
/// use lyhord::text::windows;
///
/// let windows = windows(12, 8, 2);
/// assert_eq!(windows.len(), 2);
/// assert_eq!((windows[0].tokens.clone(), windows[0].keep.clone()), (0..8, 0..6));
/// assert_eq!((windows[1].tokens.clone(), windows[1].keep.clone()), (4..12, 6..12));
/// ```
pub fn windows(num_tokens: usize, max_tokens: usize, overlap: usize) -> Vec<Window> {
    let max_tokens = max_tokens.max(1);
    let stride = max_tokens - overlap.min(max_tokens - 1);
    let mut windows: Vec<Window> = Vec::new();
    let (mut start, mut kept) = (0_usize, 0_usize);
    while kept < num_tokens {
        let end = start.saturating_add(max_tokens).min(num_tokens);
        let next = (start + stride).min(num_tokens.saturating_sub(max_tokens));
        let keep_end = match end == num_tokens {
            true => num_tokens,
            // Half way between the centres of this window and the next.
            false => next.midpoint(end),
        };
        windows.push(Window {
            tokens: start..end,
            keep: kept..keep_end,
        });
        (start, kept) = (next, keep_end);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_that_fits_is_one_window() {
        let whole = |n| Window {
            tokens: 0..n,
            keep: 0..n,
        };
        assert_eq!(windows(510, 510, 128), [whole(510)]);
        assert_eq!(windows(1, 510, 128), [whole(1)]);
        assert_eq!(windows(0, 510, 128), []);
        assert_eq!(windows(3, usize::MAX, 1), [whole(3)]);
    }

    proptest! {
        #[test]
        fn every_token_is_kept_once_where_it_stands_most_centrally(
            num_tokens in 0_usize..3000,
            max_tokens in 1_usize..600,
            overlap in 0_usize..700,
        ) {
            let windows = windows(num_tokens, max_tokens, overlap);
            let mut kept = 0;
            for window in &windows {
                prop_assert_eq!(window.keep.start, kept);
                prop_assert!(window.keep.start < window.keep.end);
                prop_assert!(window.tokens.start <= window.keep.start);
                prop_assert!(window.keep.end <= window.tokens.end);
                prop_assert!(window.tokens.len() <= max_tokens);
                kept = window.keep.end;
            }
            prop_assert_eq!(kept, num_tokens);
            for pair in windows.windows(2) {
                let shared = pair[0].tokens.end - pair[1].tokens.start;
                prop_assert!(shared >= overlap.min(max_tokens - 1));
            }
            // How far a token is from the nearer end of a window.
            let depth = |window: &Window, token: usize| {
                (token - window.tokens.start).min(window.tokens.end - 1 - token)
            };
            for window in &windows {
                for token in [window.keep.start, window.keep.end - 1] {
                    let best = windows
                        .iter()
                        .filter(|other| other.tokens.contains(&token))
                        .map(|other| depth(other, token))
                        .max();
                    // The first and the last window reach to the text's ends.
                    let outer = token < max_tokens / 2 || token + max_tokens / 2 >= num_tokens;
                    prop_assert!(outer || Some(depth(window, token)) == best);
                }
            }
        }
    }
}
