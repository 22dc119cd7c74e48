//! The lexical path: from the words of a text to logits.
//!
//! A text is a bag of word n-grams and of character n-grams, weighed by
//! tf-idf, and a sparse linear map gives one logit for each of the model's.
//! It reads the words themselves, which a small encoder partly misses.
//!
//! # Features
//!
//! The text is lower-cased. *Words* are runs of two or more letters and
//! digits; word n-grams are one to `words` of them in a row. *Tokens* are what
//! stands between white space; character n-grams are the runs of
//! `characters[0]` to `characters[1]` characters of a token with one space
//! before and after it (a shorter token counts whole). Each n-gram's key is 32
//! bits of the FNV-1a hash of its kind and its UTF-8 bytes, with the lowest bit
//! telling words (0) from characters (1), so that it is the same on every
//! machine. N-grams without a key in the model are passed over.
//!
//! A feature that occurs `n` times has the value `(1 + ln n) * idf`. Words and
//! characters are each scaled to the Euclidean length 1.
//!
//! # Passages
//!
//! A label often rests on one sentence, whose words weigh little in the bag of
//! a long text. So the map is applied to the whole text and to each sentence
//! (short ones joined to the next), and the logits are `1 - passages` times
//! the whole text's plus `passages` times the logarithm of the mean of the
//! exponentials of the sentences', a soft maximum.
//!
//! # Stored tensors
//!
//! With `F` features and `L` logits: `lexical.keys` u32 `[F]`, ascending;
//! `lexical.idf` f16 `[F]`; `lexical.weights` i8 `[F, L]`, to be multiplied by
//! `lexical.scales` f32 `[L]`, the idf of the value included; `lexical.bias`
//! f32 `[L]`.

use crate::error::{Error, ErrorKind, Result};
use crate::text::sentences;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The version of the feature definition above.
const VERSION: u32 = 1;

/// Settings of the lexical path, as `config.json` holds them under `lexical`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LexicalConfig {
    /// The version of the feature definition; 1.
    pub version: u32,
    /// How many features the model knows.
    pub features: usize,
    /// Words in the longest word n-gram, 1 to 4.
    pub words: usize,
    /// Characters in the shortest and the longest character n-gram, 1 to 8.
    pub characters: [usize; 2],
    /// How much single sentences weigh against the whole text, 0 to 1.
    pub passages: f32,
}

impl LexicalConfig {
    /// One and two words, three to five characters, passages at 0.3: what
    /// cross-validation on the training reports found best.
    pub(crate) fn new(features: usize) -> Self {
        Self {
            version: VERSION,
            features,
            words: 2,
            characters: [3, 5],
            passages: 0.3,
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |message: String| {
            Err(Error::new(
                ErrorKind::InvalidBundle,
                format!("config.json: `lexical` {message}"),
            ))
        };
        if self.version != VERSION {
            return invalid(format!(
                "has version {}; this engine reads version {VERSION}",
                self.version
            ));
        }
        if !(1..=4).contains(&self.words) {
            return invalid(format!("needs `words` from 1 to 4, not {}", self.words));
        }
        let [shortest, longest] = self.characters;
        if shortest == 0 || shortest > longest || longest > 8 {
            return invalid(format!(
                "needs `characters` in order from 1 to 8, not {shortest} to {longest}"
            ));
        }
        if !(0.0..=1.0).contains(&self.passages) {
            return invalid(format!(
                "needs `passages` from 0 to 1, not {}",
                self.passages
            ));
        }
        Ok(())
    }
}

/// Room that [`LexicalModel::logits`] uses again for each text.
#[derive(Debug, Default)]
pub(crate) struct LexicalScratch {
    grams: GramScratch,
    /// How often each of the model's features occurs; all 0 between texts.
    counts: Vec<u32>,
    /// The features that occur, words and characters apart.
    found: [Vec<u32>; 2],
}

/// Room for [`for_each_gram`].
#[derive(Debug, Default)]
pub(crate) struct GramScratch {
    /// The lower-cased text.
    text: Vec<char>,
    /// The hashes of the word n-grams that end with the latest word, longest
    /// first.
    open: Vec<u64>,
}

/// A sparse linear map from the n-grams of a text to logits.
#[derive(Clone, Debug)]
pub struct LexicalModel {
    config: LexicalConfig,
    keys: Vec<u32>,
    /// Where the keys with the same upper 16 bits begin, `[65537]`.
    starts: Vec<u32>,
    idf: Vec<f32>,
    /// `[features, logits]`
    weights: Vec<i8>,
    scales: Vec<f32>,
    bias: Vec<f32>,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredTensor {
    /// Its name in `model.safetensors`.
    pub name: &'static str,
    /// The type of its values.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row by row, little endian.
    pub data: Vec<u8>,
}

impl LexicalModel {
    /// Joins a model from its parts, quantising the weights.
    ///
    /// `features` are keys, ascending, with their idf; `weights` has the shape
    /// `[features, logits]` and is for values that hold the idf.
    pub(crate) fn new(
        config: LexicalConfig,
        features: &[(u32, f32)],
        weights: &[f32],
        bias: Vec<f32>,
    ) -> Result<Self> {
        let width = bias.len();
        let idf: Vec<f32> = features
            .iter()
            .map(|&(_, idf)| f16::from_f32(idf).to_f32())
            .collect();
        let mut scales = vec![0.0f32; width];
        for (row, idf) in weights.chunks_exact(width.max(1)).zip(&idf) {
            for (scale, weight) in scales.iter_mut().zip(row) {
                *scale = scale.max((weight * idf).abs() / 127.0);
            }
        }
        let mut quantised = Vec::with_capacity(weights.len());
        for (row, idf) in weights.chunks_exact(width.max(1)).zip(&idf) {
            quantised.extend(scales.iter().zip(row).map(|(&scale, weight)| {
                if scale > 0.0 {
                    (weight * idf / scale).round() as i8
                } else {
                    0
                }
            }));
        }
        let keys = features.iter().map(|&(key, _)| key).collect();
        Self::checked(config, keys, idf, quantised, scales, bias)
    }

    /// Reads a model of `num_logits` logits. `tensor` gives the stored tensor
    /// of a name, having checked that it has the shape.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] names the setting or tensor at fault, and
    /// those of `tensor`.
    pub(crate) fn from_tensors<'a>(
        config: &LexicalConfig,
        num_logits: usize,
        tensor: impl Fn(&str, &[usize]) -> Result<TensorView<'a>>,
    ) -> Result<Self> {
        config.check()?;
        let (features, width) = (config.features, num_logits);
        let read = |name: &'static str, dtype: Dtype, shape: &[usize]| {
            let view = tensor(name, shape)?;
            if view.dtype() == dtype {
                return Ok(view);
            }
            Err(invalid(format!(
                "has {name} in {:?}, not {dtype:?}",
                view.dtype()
            )))
        };
        let keys = read("lexical.keys", Dtype::U32, &[features])?;
        let idf = read("lexical.idf", Dtype::F16, &[features])?;
        let weights = read("lexical.weights", Dtype::I8, &[features, width])?;
        let scales = read("lexical.scales", Dtype::F32, &[width])?;
        let bias = read("lexical.bias", Dtype::F32, &[width])?;
        let f32s = |view: &TensorView| -> Vec<f32> {
            let (chunks, _) = view.data().as_chunks();
            chunks
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect()
        };
        Self::checked(
            config.clone(),
            keys.data()
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| u32::from_le_bytes(bytes))
                .collect(),
            idf.data()
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
                .collect(),
            weights.data().iter().map(|&byte| byte as i8).collect(),
            f32s(&scales),
            f32s(&bias),
        )
    }

    fn checked(
        config: LexicalConfig,
        keys: Vec<u32>,
        idf: Vec<f32>,
        weights: Vec<i8>,
        scales: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self> {
        config.check()?;
        if let Some(place) = keys.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(invalid(format!(
                "has lexical.keys that do not ascend at {}",
                place + 1
            )));
        }
        for (name, values) in [
            ("lexical.idf", &idf),
            ("lexical.scales", &scales),
            ("lexical.bias", &bias),
        ] {
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                return Err(invalid(format!(
                    "has a value in {name} that is not finite, at {place}"
                )));
            }
        }
        let starts = (0..=1u64 << 16)
            .map(|upper| keys.partition_point(|&key| u64::from(key) < upper << 16) as u32)
            .collect();
        Ok(Self {
            config,
            keys,
            starts,
            idf,
            weights,
            scales,
            bias,
        })
    }

    /// The settings to store in `config.json`.
    pub(crate) fn config(&self) -> &LexicalConfig {
        &self.config
    }

    /// The tensors to store in `model.safetensors`.
    pub(crate) fn tensors(&self) -> Vec<StoredTensor> {
        let (features, width) = (self.keys.len(), self.bias.len());
        let stored = |name, dtype, shape: &[usize], data| StoredTensor {
            name,
            dtype,
            shape: shape.to_vec(),
            data,
        };
        let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        vec![
            stored(
                "lexical.keys",
                Dtype::U32,
                &[features],
                self.keys.iter().flat_map(|key| key.to_le_bytes()).collect(),
            ),
            stored(
                "lexical.idf",
                Dtype::F16,
                &[features],
                self.idf
                    .iter()
                    .flat_map(|&idf| f16::from_f32(idf).to_le_bytes())
                    .collect(),
            ),
            stored(
                "lexical.weights",
                Dtype::I8,
                &[features, width],
                self.weights.iter().map(|&weight| weight as u8).collect(),
            ),
            stored("lexical.scales", Dtype::F32, &[width], f32s(&self.scales)),
            stored("lexical.bias", Dtype::F32, &[width], f32s(&self.bias)),
        ]
    }

    /// The logits of a text that was cleaned as [`crate::text::NormalisedText`]
    /// does, `[num_logits]`. The same text gives the same logits whatever
    /// `scratch` was used for before.
    pub(crate) fn logits(&self, text: &str, scratch: &mut LexicalScratch) -> Vec<f32> {
        let mut logits = self.map(text, scratch);
        let passages = passages(text);
        let share = self.config.passages;
        if passages.len() < 2 || share == 0.0 {
            return logits;
        }
        let parts: Vec<Vec<f32>> = passages
            .into_iter()
            .filter_map(|range| Some(self.map(text.get(range)?, scratch)))
            .collect();
        for (index, logit) in logits.iter_mut().enumerate() {
            let values = || parts.iter().filter_map(|part| part.get(index).copied());
            let highest = values().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = values().map(|value| (value - highest).exp()).sum();
            let soft_maximum = highest + (sum / parts.len() as f32).ln();
            *logit += share * (soft_maximum - *logit);
        }
        logits
    }

    /// The linear map of one text.
    fn map(&self, text: &str, scratch: &mut LexicalScratch) -> Vec<f32> {
        let LexicalScratch {
            grams,
            counts,
            found,
        } = scratch;
        if counts.len() != self.keys.len() {
            counts.clear();
            counts.resize(self.keys.len(), 0);
        }
        for_each_gram(&self.config, text, grams, |key| {
            let Some(feature) = self.feature(key) else {
                return;
            };
            if let Some(count) = counts.get_mut(feature as usize) {
                if *count == 0 {
                    found[kind(key)].push(feature);
                }
                *count += 1;
            }
        });
        let width = self.bias.len();
        let mut logits = vec![0.0f32; width];
        let mut sums = vec![0.0f32; width];
        for features in found {
            let mut square = 0.0f32;
            for feature in features.drain(..) {
                let feature = feature as usize;
                let (Some(count), Some(idf), Some(row)) = (
                    counts.get_mut(feature),
                    self.idf.get(feature),
                    self.weights.get(feature * width..(feature + 1) * width),
                ) else {
                    continue;
                };
                let frequency = 1.0 + (std::mem::take(count) as f32).ln();
                square += (frequency * idf).powi(2);
                for (sum, &weight) in sums.iter_mut().zip(row) {
                    *sum += frequency * f32::from(weight);
                }
            }
            for (logit, sum) in logits.iter_mut().zip(&mut sums) {
                if square > 0.0 {
                    *logit += *sum / square.sqrt();
                }
                *sum = 0.0;
            }
        }
        let terms = self.scales.iter().zip(&self.bias);
        for (logit, (scale, bias)) in logits.iter_mut().zip(terms) {
            *logit = *logit * scale + bias;
        }
        logits
    }

    fn feature(&self, key: u32) -> Option<u32> {
        let upper = (key >> 16) as usize;
        let (start, end) = (*self.starts.get(upper)?, *self.starts.get(upper + 1)?);
        let keys = self.keys.get(start as usize..end as usize)?;
        let place = keys.iter().position(|&other| other == key)?;
        Some(start + place as u32)
    }
}

/// The shortest passage, in bytes: a greeting or a name alone says nothing.
const SHORTEST_PASSAGE: usize = 25;

/// The byte ranges of a text's sentences, short ones joined to the next, or to
/// the one before at the end of the text.
fn passages(text: &str) -> Vec<Range<usize>> {
    let mut passages: Vec<Range<usize>> = Vec::new();
    let mut open: Option<Range<usize>> = None;
    for sentence in sentences(text) {
        let start = open.take().map_or(sentence.start, |open| open.start);
        let passage = start..sentence.end;
        if passage.len() < SHORTEST_PASSAGE {
            open = Some(passage);
        } else {
            passages.push(passage);
        }
    }
    match (open, passages.last_mut()) {
        (Some(open), Some(last)) => last.end = open.end,
        (Some(open), None) => passages.push(open),
        (None, _) => {}
    }
    passages
}

fn invalid(message: String) -> Error {
    Error::new(
        ErrorKind::InvalidBundle,
        format!("model.safetensors {message}"),
    )
}

/// Whether a key is that of words (0) or characters (1).
pub(crate) fn kind(key: u32) -> usize {
    (key & 1) as usize
}

/// FNV-1a of 64 bits (Fowler, Noll, Vo), which takes one byte after the other
/// and so gives the n-grams that begin at one place in one pass.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv(hash: u64, character: char) -> u64 {
    let mut bytes = [0; 4];
    let bytes = character.encode_utf8(&mut bytes).as_bytes();
    bytes.iter().fold(hash, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
    })
}

/// The hash folded to 32 bits, with the lowest bit for the kind.
fn key(hash: u64, kind: u32) -> u32 {
    let folded = (hash >> 32) as u32 ^ hash as u32;
    folded & !1 | kind
}

/// Gives the key of each n-gram of a text, words first, each as often as it
/// occurs.
pub(crate) fn for_each_gram(
    config: &LexicalConfig,
    text: &str,
    scratch: &mut GramScratch,
    mut each: impl FnMut(u32),
) {
    let GramScratch { text: lower, open } = scratch;
    lower.clear();
    lower.extend(text.chars().flat_map(char::to_lowercase));

    open.clear();
    for run in lower.split(|character| !character.is_alphanumeric()) {
        if run.len() < 2 {
            continue;
        }
        if open.len() == config.words {
            open.remove(0);
        }
        open.push(fnv(FNV_OFFSET, 'w'));
        for hash in open.iter_mut() {
            *hash = run
                .iter()
                .fold(*hash, |hash, &character| fnv(hash, character));
            each(key(*hash, 0));
            // Whatever follows is another word.
            *hash = fnv(*hash, ' ');
        }
    }

    let [shortest, longest] = config.characters;
    let seed = fnv(FNV_OFFSET, 'c');
    for token in lower.split(|character| character.is_whitespace()) {
        if token.is_empty() {
            continue;
        }
        let length = token.len() + 2;
        let at = |place: usize| token.get(place.wrapping_sub(1)).copied().unwrap_or(' ');
        for start in 0..length {
            let mut hash = seed;
            for end in start + 1..=length.min(start + longest) {
                hash = fnv(hash, at(end - 1));
                if end - start >= shortest || end - start == length {
                    each(key(hash, 1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<u32> {
        let mut keys = Vec::new();
        let config = LexicalConfig::new(0);
        for_each_gram(&config, text, &mut GramScratch::default(), |key| {
            keys.push(key)
        });
        keys
    }

    /// Logit 0 is about `dos`, logit 1 about the character n-gram ` fa`.
    fn model() -> LexicalModel {
        let word = keys("dos")[0];
        let characters = keys("fall")[1];
        let mut features = vec![(word, 2.0), (characters, 1.5), (keys("och")[0], 1.0)];
        features.sort_by_key(|feature| feature.0);
        let weights: Vec<f32> = features
            .iter()
            .flat_map(|&(key, _)| match key {
                key if key == word => [3.0, -0.5],
                key if key == characters => [0.25, 2.0],
                _ => [0.0, 0.0],
            })
            .collect();
        let config = LexicalConfig::new(features.len());
        LexicalModel::new(config, &features, &weights, vec![-1.0, 0.5]).unwrap()
    }

    fn logits(model: &LexicalModel, text: &str) -> Vec<f32> {
        model.logits(text, &mut LexicalScratch::default())
    }

    fn read(model: &LexicalModel, tensors: &[StoredTensor]) -> Result<LexicalModel> {
        LexicalModel::from_tensors(model.config(), 2, |name, shape| {
            let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
            assert_eq!(tensor.shape, shape);
            Ok(TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
        })
    }

    #[test]
    fn keys_are_the_same_on_every_machine() {
        // From a separate implementation in Python of what the module's
        // documentation says: words, then ` \u{e5}l`, ` \u{e5}l `, `\u{e5}l `.
        assert_eq!(
            keys("\u{c5}l"),
            [1_950_491_488, 756_538_451, 2_086_429_997, 59_919_299]
        );
        assert_eq!(
            keys("\u{e5}l 12")[..3],
            [1_950_491_488, 4_212_310_308, 374_994_796]
        );
        assert_eq!(keys("!"), [3_383_547_581]);
        assert!(keys(" \n").is_empty());
    }

    #[test]
    fn logits_are_what_the_formula_says() {
        let model = model();
        // `dos` twice and `och` once: 1 + ln 2 times idf 2, and 1, scaled to
        // length 1; times the weight 3. No known characters.
        let value = (1.0 + 2f32.ln()) * 2.0;
        let expected = -1.0 + 3.0 * value / (value * value + 1.0).sqrt();
        let found = logits(&model, "Dos och dos");
        assert!((found[0] - expected).abs() < 0.02, "{found:?} {expected}");
        // Characters have a length of their own.
        let found = logits(&model, "fall och dos");
        let expected = 0.5 + 2.0 - 0.5 * 2.0 / 5f32.sqrt();
        assert!((found[1] - expected).abs() < 0.02, "{found:?} {expected}");
        assert_eq!(logits(&model, ""), [-1.0, 0.5]);
    }

    #[test]
    fn one_sentence_counts_in_a_long_text() {
        let model = model();
        let filler = "Den lilla bilen stod kvar vid och utanför huset. ".repeat(5);
        let with = format!("{filler}Det var fel dos som gavs i dag.");
        let mut whole = model.clone();
        whole.config.passages = 0.0;
        let lift = |model: &LexicalModel| logits(model, &with)[0] - logits(model, &filler)[0];
        assert!(lift(&model) > 0.0);
        assert_eq!(
            passages("Hej! Det var fel dos som gavs i dag. Mvh").len(),
            1
        );
        assert_eq!(passages(&with).len(), 6);
    }

    #[test]
    fn a_scratch_remembers_nothing() {
        let (model, mut scratch) = (model(), LexicalScratch::default());
        let first = model.logits("Fel dos. Ett fall.", &mut scratch);
        model.logits("och dos och fall ".repeat(50).as_str(), &mut scratch);
        assert_eq!(model.logits("Fel dos. Ett fall.", &mut scratch), first);
    }

    #[test]
    fn a_stored_model_says_the_same() {
        let model = model();
        let read = read(&model, &model.tensors()).unwrap();
        let text = "Ett fall och fel dos.";
        assert_eq!(logits(&read, text), logits(&model, text));
        assert_eq!(read.tensors(), model.tensors());
        let config = serde_json::to_value(model.config()).unwrap();
        assert_eq!(config["characters"], serde_json::json!([3, 5]));
    }

    #[test]
    fn broken_tensors_and_settings_are_refused() {
        let model = model();
        let refused = |model: &LexicalModel, tensors: &[StoredTensor]| {
            let error = read(model, tensors).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidBundle);
            error.to_string()
        };
        let mut tensors = model.tensors();
        tensors[0].data.rotate_left(4);
        assert!(refused(&model, &tensors).contains("lexical.keys that do not ascend"));
        let mut tensors = model.tensors();
        tensors[4].data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(refused(&model, &tensors).contains("lexical.bias that is not finite, at 0"));
        let mut tensors = model.tensors();
        tensors[3].dtype = Dtype::I32;
        assert!(refused(&model, &tensors).contains("lexical.scales in I32, not F32"));
        let mut other = model.clone();
        other.config.version = 2;
        assert!(refused(&other, &model.tensors()).contains("version 2"));
        let mut other = model.clone();
        other.config.characters = [5, 3];
        assert!(refused(&other, &model.tensors()).contains("5 to 3"));
        let mut other = model;
        other.config.passages = 1.5;
        assert!(refused(&other, &other.tensors()).contains("`passages`"));
    }
}
