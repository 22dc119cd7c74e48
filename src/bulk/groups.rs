//! Texts that are nearly the same, as in a campaign where everybody changes
//! a few words of a letter.
//!
//! MinHash (Broder, "On the resemblance and containment of documents", 1997):
//! the share of places where two signatures agree estimates the Jaccard
//! similarity of the texts' shingles. Signatures that agree in a band of
//! places are candidates (Leskovec, Rajaraman and Ullman, "Mining of Massive
//! Datasets", 3.4). The crates for it are either no longer kept (`gaoya`
//! needs a beta of smallvec and rand 0.3) or bring a whole library of sketches
//! with them, for these few lines.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use twox_hash::XxHash3_64;

/// So many words in a row make a shingle.
const SHINGLE_WORDS: usize = 3;
/// With 16 bands of 4 places, texts that share 70 % of their shingles are
/// candidates in 99 of 100 cases, those that share 30 % in 12.
const BANDS: usize = 16;
const ROWS: usize = 4;
const PLACES: usize = BANDS * ROWS;
/// Two texts are in a group if they agree in 70 % of the places.
const MIN_AGREEING: usize = PLACES * 7 / 10;
/// So many groups are remembered, the latest: some 60 MB.
const MAX_GROUPS: usize = 50_000;

type Signature = [u32; PLACES];

/// The groups of the texts so far, each known by its first text.
#[derive(Default)]
pub(super) struct Groups {
    /// The first text's signature and name, oldest group first.
    groups: VecDeque<(Signature, Arc<str>)>,
    /// The number of the oldest group.
    oldest: u64,
    /// By band and hash of its places: the latest group with them.
    bands: HashMap<(u8, u32), u64>,
}

impl Groups {
    /// The name of the first text of the group that a text belongs to: that of
    /// the text itself if it begins one.
    pub(super) fn find(&mut self, text: &str, name: impl FnOnce() -> Arc<str>) -> Arc<str> {
        let signature = signature(text);
        let bands = bands(&signature);
        let candidates = bands.iter().filter_map(|band| {
            let number = self.bands.get(band)?;
            let (other, name) = self.groups.get((number - self.oldest) as usize)?;
            let agreeing = signature.iter().zip(other).filter(|(a, b)| a == b).count();
            (agreeing >= MIN_AGREEING).then_some((agreeing, number, name))
        });
        // Of equally near groups the oldest.
        let best = candidates.max_by_key(|(agreeing, number, _)| (*agreeing, u64::MAX - **number));
        if let Some((_, _, name)) = best {
            return name.clone();
        }
        if self.groups.len() == MAX_GROUPS
            && let Some((oldest, _)) = self.groups.pop_front()
        {
            for band in self::bands(&oldest) {
                if self.bands.get(&band) == Some(&self.oldest) {
                    self.bands.remove(&band);
                }
            }
            self.oldest += 1;
        }
        let (number, name) = (self.oldest + self.groups.len() as u64, name());
        self.bands.extend(bands.map(|band| (band, number)));
        self.groups.push_back((signature, name.clone()));
        name
    }
}

fn bands(signature: &Signature) -> [(u8, u32); BANDS] {
    let mut chunks = signature.chunks_exact(ROWS);
    std::array::from_fn(|band| {
        let places = chunks.next().unwrap_or_default();
        let mut bytes = [0; 4 * ROWS];
        for (to, place) in bytes.chunks_exact_mut(4).zip(places) {
            to.copy_from_slice(&place.to_le_bytes());
        }
        (band as u8, XxHash3_64::oneshot(&bytes) as u32)
    })
}

/// For each of many hash functions, the least hash of the text's shingles.
fn signature(text: &str) -> Signature {
    let words: Vec<String> = text
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let mut least = [u32::MAX; PLACES];
    for shingle in words.windows(SHINGLE_WORDS.min(words.len()).max(1)) {
        // A cheap generator from each shingle's hash: one value a place.
        let mut state = XxHash3_64::oneshot(shingle.join(" ").as_bytes());
        for least in &mut least {
            *least = (*least).min((split_mix(&mut state) >> 32) as u32);
        }
    }
    least
}

/// The next value of Steele, Lea and Flood's SplitMix64 (2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTER: &str = "Vi som skriver under protesterar mot att nattbemanningen på         Solgården dras ned. Våra anhöriga får vänta i timmar på hjälp till toaletten,         larmen besvaras inte och personalen hinner inte med. Kommunen har fått veta detta         flera gånger utan att något har hänt. Vi kräver att IVO inspekterar boendet.";

    #[test]
    fn a_campaign_is_one_group_and_other_letters_are_not() {
        let mut groups = Groups::default();
        let mut find = |text: &str, name: &str| groups.find(text, || name.into());
        assert_eq!(&*find(LETTER, "1"), "1");
        assert_eq!(&*find("Brukaren fick dubbel dos insulin.", "2"), "2");
        assert_eq!(&*find(&LETTER.to_uppercase(), "3"), "1");
        let signed = format!("{LETTER} Mvh Anna Ek, Ystad");
        assert_eq!(&*find(&signed, "4"), "1");
        let other = "Min mor på Solgården fick fel medicin i går och ingen ringde oss.";
        assert_eq!(&*find(other, "5"), "5");
        assert_eq!(&*find("", "6"), "6");
        assert_eq!(&*find("!", "7"), "6");
    }

    #[test]
    fn only_the_latest_groups_are_remembered() {
        let mut groups = Groups::default();
        for number in 0..=MAX_GROUPS as u64 {
            let text = format!("{number} {} {}", number * 7, number * 13);
            groups.find(&text, || number.to_string().into());
        }
        assert!(groups.bands.len() <= BANDS * MAX_GROUPS);
        assert_eq!(&*groups.find("1 7 13", || "new".into()), "1");
        assert_eq!(&*groups.find("0 0 0", || "new".into()), "new");
    }

    #[test]
    fn agreement_estimates_the_share_of_common_shingles() {
        let words: Vec<String> = (0..400).map(|word| format!("ord{word}")).collect();
        let one = signature(&words[..300].join(" "));
        let two = signature(&words[100..].join(" "));
        let agreeing = one.iter().zip(&two).filter(|(a, b)| a == b).count();
        // 198 of 398 shingles are common.
        let share = agreeing as f64 / PLACES as f64;
        assert!((share - 0.5).abs() < 0.2, "{share}");
    }
}
