//! One way of writing for every way of encoding the same text.

use std::ops::Range;
use unicode_normalization::{IsNormalized, UnicodeNormalization, char::canonical_combining_class};

/// A text in Unicode NFC with plain spaces and line breaks and without
/// invisible characters, that knows where each part stood in the original.
///
/// - every kind of space (no-break, thin, tab, ideographic ...) becomes a plain
///   space, each on its own: runs are not shortened;
/// - every kind of line break (`\r\n`, `\r`, form feed, U+2028 ...) becomes
///   `\n`;
/// - soft hyphens, zero-width characters, marks of writing direction,
///   variation selectors and control characters are removed;
/// - what remains is composed to NFC.
///
/// Normalising twice gives what normalising once gives.
///
/// # Examples
///
/// ```
/// use lyhord::text::NormalisedText;
///
/// // A soft hyphen, a no-break space and an å of two code points.
/// let text = NormalisedText::new("läke\u{ad}medel\u{a0}pa\u{30a}");
/// assert_eq!(text.as_str(), "läkemedel på");
/// let medel = text.as_str().find("medel").unwrap();
/// assert_eq!(text.original_char(medel), 5);
/// ```
#[derive(Clone)]
pub struct NormalisedText {
    text: String,
    /// In ascending order of both fields, from 0. Between two of them every
    /// character of `text` is one character of the original.
    anchors: Vec<Anchor>,
    original_chars: usize,
}

#[derive(Clone, Copy)]
struct Anchor {
    byte: usize,
    original_char: usize,
}

/// So many characters at most are counted to find an offset.
const ANCHOR_EVERY: usize = 64;

impl NormalisedText {
    /// Normalises a text.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::text::NormalisedText;
    ///
    /// assert_eq!(NormalisedText::new("ett\r\ntvå").as_str(), "ett\ntvå");
    /// ```
    pub fn new(original: &str) -> Self {
        let mut builder = Builder {
            text: String::with_capacity(original.len()),
            anchors: Vec::new(),
            expected: 0,
            since_anchor: 0,
        };
        let mut cluster: Vec<(usize, char)> = Vec::new();
        let mut original_chars = 0;
        let mut after_return = false;
        for (index, char) in original.chars().enumerate() {
            original_chars = index + 1;
            let mapped = match char {
                '\n' if after_return => None,
                _ => plain(char),
            };
            after_return = char == '\r';
            let Some(mapped) = mapped else { continue };
            if starts_cluster(mapped) {
                builder.push_cluster(&cluster);
                cluster.clear();
            }
            cluster.push((index, mapped));
        }
        builder.push_cluster(&cluster);
        Self {
            text: builder.text,
            anchors: builder.anchors,
            original_chars,
        }
    }

    /// The normalised text.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::text::NormalisedText;
    ///
    /// assert_eq!(NormalisedText::new("\u{feff}Hej").as_str(), "Hej");
    /// ```
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which character (code point) of the original stands at a byte offset
    /// of the normalised text.
    ///
    /// An offset inside a character counts as that character's; one at or
    /// past the end gives the number of characters in the original.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::text::NormalisedText;
    ///
    /// let text = NormalisedText::new("å\u{200b}b");
    /// assert_eq!(text.original_char(2), 2);
    /// assert_eq!(text.original_char(3), 3);
    /// ```
    pub fn original_char(&self, byte: usize) -> usize {
        if byte >= self.text.len() {
            return self.original_chars;
        }
        let after = self.anchors.partition_point(|anchor| anchor.byte <= byte);
        // The first anchor is at byte 0 whenever there is any text.
        let Some(anchor) = after.checked_sub(1).and_then(|at| self.anchors.get(at)) else {
            return 0;
        };
        let between = self.text.as_bytes().get(anchor.byte + 1..=byte);
        anchor.original_char + between.map_or(0, count_chars)
    }

    /// The characters of the original behind a byte range of the normalised
    /// text. A range that is not empty never becomes empty.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::text::NormalisedText;
    ///
    /// let text = NormalisedText::new("\u{200b}a\u{30a}r");
    /// assert_eq!(text.as_str(), "år");
    /// assert_eq!(text.original_range(0..2), 1..3);
    /// ```
    pub fn original_range(&self, bytes: Range<usize>) -> Range<usize> {
        let start = self.original_char(bytes.start);
        let end = self.original_char(bytes.end);
        if bytes.is_empty() {
            return start..start;
        }
        start..end.max((start + 1).min(self.original_chars))
    }
}

impl std::fmt::Debug for NormalisedText {
    /// Leaves the text out: it must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NormalisedText")
            .field("bytes", &self.text.len())
            .field("original_chars", &self.original_chars)
            .finish()
    }
}

struct Builder {
    text: String,
    anchors: Vec<Anchor>,
    /// The original character that the next one is taken for without an anchor.
    expected: usize,
    since_anchor: usize,
}

impl Builder {
    /// Composes characters that may merge with each other but with none before
    /// or after them.
    fn push_cluster(&mut self, cluster: &[(usize, char)]) {
        match cluster {
            [] => {}
            // Nearly every cluster. A single character can be out of NFC too,
            // such as the Kelvin sign.
            [(index, char)] if starts_cluster(*char) => self.push(*index, *char),
            [.., (last, _)] => {
                let composed = cluster.iter().map(|&(_, char)| char).nfc();
                for (place, char) in composed.enumerate() {
                    // Composing may change how many there are; then the last
                    // ones share a place.
                    let index = cluster.get(place).map_or(*last, |&(index, _)| index);
                    self.push(index, char);
                }
            }
        }
    }

    fn push(&mut self, index: usize, char: char) {
        if index != self.expected || self.since_anchor == ANCHOR_EVERY || self.anchors.is_empty() {
            self.anchors.push(Anchor {
                byte: self.text.len(),
                original_char: index,
            });
            self.since_anchor = 0;
        }
        self.text.push(char);
        self.expected = index + 1;
        self.since_anchor += 1;
    }
}

/// Whether a character neither changes under NFC nor merges with one before it.
fn starts_cluster(char: char) -> bool {
    // Below this every character does: a shortcut for nearly all Swedish text.
    char < '\u{300}'
        || (canonical_combining_class(char) == 0
            && unicode_normalization::is_nfc_quick(std::iter::once(char)) == IsNormalized::Yes)
}

/// The character to keep for a character, or `None` to leave it out.
fn plain(char: char) -> Option<char> {
    match char {
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => Some('\n'),
        // White space that is not a line break.
        _ if char.is_whitespace() => Some(' '),
        // Soft hyphen, combining grapheme joiner, Arabic letter mark,
        // Mongolian vowel separator, zero-width space and joiners, direction
        // marks, embeddings and isolates, word joiner and invisible operators,
        // byte order mark, interlinear annotation, variation selectors, tags.
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}' => None,
        _ if char.is_control() => None,
        _ => Some(char),
    }
}

/// How many characters begin in a piece of UTF-8.
fn count_chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normalised(text: &str) -> String {
        NormalisedText::new(text).as_str().to_owned()
    }

    #[test]
    fn the_same_words_come_out_the_same_however_they_are_encoded() {
        for (given, wanted) in [
            ("a\u{30a}a\u{308}o\u{308}", "åäö"),
            ("\u{212b}ngström", "Ångström"),
            ("10\u{a0}mg\u{2009}x\u{202f}2\t dag", "10 mg x 2  dag"),
            ("a\r\nb\rc\u{85}d\u{2028}e\u{c}f", "a\nb\nc\nd\ne\nf"),
            ("a\r\n\r\nb", "a\n\nb"),
            ("läke\u{ad}me\u{200b}del", "läkemedel"),
            ("\u{202e}txet\u{202c} \u{2066}x\u{2069}", "txet x"),
            ("a\0b\u{7}c\u{7f}", "abc"),
            ("\u{feff}Hej", "Hej"),
            ("❤\u{fe0f} 👨\u{200d}👩", "❤ 👨👩"),
            // The parts of an å with a zero-width space between them.
            ("a\u{200b}\u{30a}", "å"),
            ("\u{1112}\u{1161}\u{11ab}", "한"),
            ("", ""),
            ("\u{200b}\u{ad}", ""),
        ] {
            assert_eq!(normalised(given), wanted);
        }
    }

    #[test]
    fn offsets_lead_back_to_the_callers_characters() {
        let original = "\u{feff}Mo\u{ad}r  fo\u{308}ll.\r\nSen \u{200b}kom ingen.";
        let text = NormalisedText::new(original);
        let chars: Vec<char> = original.chars().collect();
        for word in ["Mo", "r", "ll.", "Sen", "kom", "ingen."] {
            let byte = text.as_str().find(word).unwrap();
            let at = text.original_char(byte);
            let first = word.chars().next().unwrap();
            assert_eq!(chars[at], first, "{word}");
        }
        assert_eq!(text.original_char(text.as_str().len()), chars.len());
        assert_eq!(text.original_char(usize::MAX), chars.len());
    }

    #[test]
    fn debug_output_holds_no_text() {
        assert!(!format!("{:?}", NormalisedText::new("hemligt")).contains("hemligt"));
    }

    /// Text with much of what normalisation is about.
    fn text() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(
            "aåz .\n\r\t\u{a0}\u{ad}\u{200b}\u{200d}\u{202e}\u{feff}\u{30a}\u{308}\u{323}\u{212b}\u{1100}\u{1161}\u{11a8}\u{ac00}\u{958}\u{fb1d}\u{344}\u{1f600}\u{fe0f}\0"
                .chars()
                .collect::<Vec<_>>(),
        );
        prop::collection::vec(prop_oneof![3 => odd, 1 => any::<char>()], 0..200)
            .prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn offsets_are_in_order_and_in_range(original in text()) {
            let text = NormalisedText::new(&original);
            let chars = original.chars().count();
            let mut before = 0;
            for byte in 0..=text.as_str().len() {
                let at = text.original_char(byte);
                prop_assert!(before <= at && at <= chars);
                before = at;
            }
            for (byte, char) in text.as_str().char_indices() {
                let range = text.original_range(byte..byte + char.len_utf8());
                prop_assert!(range.start < range.end && range.end <= chars);
            }
        }

        #[test]
        fn characters_that_stay_are_found_where_they_stood(original in text()) {
            let text = NormalisedText::new(&original);
            let chars: Vec<char> = original.chars().collect();
            for (byte, char) in text.as_str().char_indices() {
                if char.is_ascii_alphanumeric() {
                    prop_assert_eq!(chars[text.original_char(byte)], char);
                }
            }
        }

        #[test]
        fn normalising_twice_changes_nothing_more(original in text()) {
            let once = normalised(&original);
            prop_assert_eq!(normalised(&once), once.clone());
            prop_assert!(unicode_normalization::is_nfc(&once));
        }
    }
}
