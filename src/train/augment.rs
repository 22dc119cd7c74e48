//! Variants of a text as people might have written it: typing errors, missing
//! diacritics, no capitals, no punctuation.

use crate::text::NormalisedText;
use rand::Rng;

/// A text whose characters know where they stood in the original.
#[derive(Clone)]
pub(crate) struct TracedText {
    chars: Vec<(char, usize)>,
}

impl TracedText {
    /// The text as the model reads it, normalised.
    pub(crate) fn new(text: &str) -> Self {
        let normalised = NormalisedText::new(text);
        let place = |(byte, c)| (c, normalised.original_char(byte));
        Self {
            chars: normalised.as_str().char_indices().map(place).collect(),
        }
    }

    pub(crate) fn text(&self) -> String {
        self.chars.iter().map(|(c, _)| *c).collect()
    }

    /// The original place of the character at `index`.
    pub(crate) fn origin(&self, index: usize) -> Option<usize> {
        self.chars.get(index).map(|(_, origin)| *origin)
    }

    fn map(&mut self, change: impl Fn(char) -> Option<char>) {
        self.chars = self
            .chars
            .iter()
            .filter_map(|(c, origin)| change(*c).map(|c| (c, *origin)))
            .collect();
    }
}

/// Keys beside each other on a Swedish keyboard, row by row.
const KEY_ROWS: [&str; 3] = ["qwertyuiopå", "asdfghjklöä", "zxcvbnm"];

fn neighbour(key: char, rng: &mut impl Rng) -> Option<char> {
    let row = KEY_ROWS.iter().find(|row| row.contains(key))?;
    let keys: Vec<char> = row.chars().collect();
    let place = keys.iter().position(|k| *k == key)?;
    let other = if rng.random() {
        place.checked_add(1)?
    } else {
        place.checked_sub(1)?
    };
    keys.get(other).copied()
}

fn without_diacritic(c: char) -> char {
    match c {
        'å' | 'ä' => 'a',
        'ö' => 'o',
        'Å' | 'Ä' => 'A',
        'Ö' => 'O',
        'é' => 'e',
        other => other,
    }
}

/// Gives back a variant of `text`. Each way of writing is drawn independently,
/// so that a variant may combine several and may also equal the original.
pub(crate) fn augment(text: &str, rng: &mut impl Rng) -> TracedText {
    let mut traced = TracedText::new(text);
    if rng.random_bool(0.15) {
        traced.map(|c| c.to_lowercase().next());
    } else if rng.random_bool(0.04) {
        traced.map(|c| c.to_uppercase().next());
    }
    if rng.random_bool(0.08) {
        traced.map(|c| Some(without_diacritic(c)));
    }
    if rng.random_bool(0.10) {
        traced.map(|c| {
            if c == '\n' {
                Some(' ')
            } else {
                (!".,;:!?\"”()".contains(c)).then_some(c)
            }
        });
    }
    if rng.random_bool(0.20) {
        let rate = rng.random_range(0.005..0.04);
        mistype(&mut traced, rate, rng);
    }
    traced
}

fn mistype(traced: &mut TracedText, rate: f64, rng: &mut impl Rng) {
    let mut out = Vec::with_capacity(traced.chars.len() + 8);
    let mut rest = traced.chars.iter().copied().peekable();
    while let Some((c, origin)) = rest.next() {
        if !c.is_alphabetic() || !rng.random_bool(rate) {
            out.push((c, origin));
            continue;
        }
        match rng.random_range(0..5) {
            0 => {}
            1 => out.extend([(c, origin), (c, origin)]),
            2 => out.push((neighbour(c, rng).unwrap_or(c), origin)),
            3 => match rest.next_if(|(next, _)| next.is_alphabetic()) {
                Some(next) => out.extend([next, (c, origin)]),
                None => out.push((c, origin)),
            },
            // A doubled consonant written once, or the wrong vowel.
            _ => {
                if rest.peek().is_some_and(|(next, _)| *next == c) {
                    rest.next();
                }
                let c = match c {
                    'e' => 'ä',
                    'ä' => 'e',
                    'å' => 'o',
                    'o' => 'å',
                    other => other,
                };
                out.push((c, origin));
            }
        }
    }
    traced.chars = out;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn every_character_of_a_variant_knows_its_place_in_the_original() {
        let text = "Hon föll på natten. Larmet, som var trasigt, gick inte alls!";
        let original: Vec<char> = text.chars().collect();
        for seed in 0..200 {
            let variant = augment(text, &mut ChaCha8Rng::seed_from_u64(seed));
            let length = variant.text().chars().count();
            assert!((0..length).all(|i| variant.origin(i).is_some_and(|o| o < original.len())));
            assert_eq!(variant.origin(length), None);
        }
    }

    #[test]
    fn variants_differ_and_the_same_seed_gives_the_same_variant() {
        let text = "Personalen glömde ge Ulla hennes medicin två kvällar i rad.";
        let variants: Vec<String> = (0..50)
            .map(|seed| augment(text, &mut ChaCha8Rng::seed_from_u64(seed)).text())
            .collect();
        assert!(variants.iter().filter(|variant| *variant != text).count() > 10);
        assert!(variants.iter().filter(|variant| *variant == text).count() > 10);
        assert_eq!(
            variants[3],
            augment(text, &mut ChaCha8Rng::seed_from_u64(3)).text()
        );
    }
}
