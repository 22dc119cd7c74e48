//! From raw logits to calibrated probabilities and decisions.
//!
//! The numbers come from `calibration.json`; `train::calibration` fits them.

use crate::error::{Error, ErrorKind, Result};
use crate::taxonomy::{Head, HeadKind, Taxonomy};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// The version of `calibration.json` that this engine reads and writes.
const VERSION: u32 = 1;

/// What the model's two paths say about one text, before calibration.
///
/// Both vectors have shape `[taxonomy.num_logits()]`. A path that the model
/// does not have is `None` and adds nothing to the final logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawLogits {
    /// How many tokens the text has, without the windows' specials.
    pub tokens: usize,
    /// What the encoder's heads say of the whole text.
    pub encoder: Option<Vec<f32>>,
    /// What the lexical path says of the whole text.
    pub lexical: Option<Vec<f32>>,
    /// The same for each window alone, in order; empty for a text that fits
    /// into one window. Windows of windows are not read.
    pub windows: Vec<RawLogits>,
}

/// The calibrated probabilities of one head for one text.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadProbabilities {
    /// One independent probability a label.
    MultiLabel(Vec<f32>),
    /// One probability a label, with the sum 1.
    SingleLabel(Vec<f32>),
    /// `P(level > k)` for each step `k` between neighbouring levels; never
    /// rising.
    Ordinal(Vec<f32>),
    /// The probability of yes.
    Binary(f32),
}

impl HeadProbabilities {
    /// One probability a label of the head (its only label, if binary) or a
    /// level. Those of a single-label or ordinal head have the sum 1.
    pub fn by_label(&self) -> Vec<f32> {
        match self {
            Self::MultiLabel(values) | Self::SingleLabel(values) => values.clone(),
            Self::Binary(value) => vec![*value],
            Self::Ordinal(steps) => {
                let above = steps.iter().copied().chain([0.0]);
                let at_least = [1.0].into_iter().chain(steps.iter().copied());
                at_least.zip(above).map(|(p, q)| p - q).collect()
            }
        }
    }
}

/// What a head decides about one text at the calibrated thresholds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The indices of a multi-label head's labels that hold, ascending.
    Labels(Vec<usize>),
    /// The index of the label or level; 0 or 1 for a binary head.
    Class(usize),
}

/// How one head's raw logits become probabilities and decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadCalibration {
    /// The weight of the encoder's logits; not negative.
    pub encoder: f32,
    /// The weight of the lexical path's logits; not negative.
    pub lexical: f32,
    /// What is added to each logit of the head.
    pub bias: Vec<f32>,
    /// The lowest probability at which a label holds (multi-label), the answer
    /// is yes (binary) or the level lies above a step (ordinal). Empty for a
    /// single-label head, whose most probable label holds.
    pub thresholds: Vec<f32>,
}

impl HeadCalibration {
    /// The head's final logits for one text: the paths' logits weighed and
    /// added, and for other than single-label heads the maximum of that over
    /// the whole text and each window, so that one sentence of a long letter
    /// counts.
    fn logits(&self, head: &Head, raw: &RawLogits) -> Vec<f32> {
        let mut logits = self.weigh(head, raw);
        if head.kind() != HeadKind::SingleLabel {
            for window in &raw.windows {
                for (logit, other) in logits.iter_mut().zip(self.weigh(head, window)) {
                    // A value that is no number must not hide behind one that is.
                    if other.is_nan() || other > *logit {
                        *logit = other;
                    }
                }
            }
        }
        logits
    }

    fn weigh(&self, head: &Head, raw: &RawLogits) -> Vec<f32> {
        let mut logits = self.bias.clone();
        for (weight, path) in [(self.encoder, &raw.encoder), (self.lexical, &raw.lexical)] {
            if let Some(values) = path.as_ref().and_then(|path| path.get(head.logits())) {
                for (logit, value) in logits.iter_mut().zip(values) {
                    *logit += weight * value;
                }
            }
        }
        logits
    }

    /// The head's calibrated probabilities for one text.
    pub fn probabilities(&self, head: &Head, raw: &RawLogits) -> HeadProbabilities {
        let mut values = self.logits(head, raw);
        match head.kind() {
            HeadKind::SingleLabel => {
                softmax(&mut values);
                HeadProbabilities::SingleLabel(values)
            }
            HeadKind::MultiLabel => {
                values.iter_mut().for_each(|value| *value = sigmoid(*value));
                HeadProbabilities::MultiLabel(values)
            }
            HeadKind::Ordinal => {
                let mut lowest = 1.0f32;
                for value in &mut values {
                    let above = sigmoid(*value);
                    if above.is_nan() || above < lowest {
                        lowest = above;
                    }
                    *value = lowest;
                }
                HeadProbabilities::Ordinal(values)
            }
            HeadKind::Binary => {
                HeadProbabilities::Binary(values.first().map_or(0.0, |&value| sigmoid(value)))
            }
        }
    }

    /// What the head decides at its thresholds.
    pub fn decide(&self, probabilities: &HeadProbabilities) -> Decision {
        let over = |values: &[f32]| -> Vec<bool> {
            let pairs = values.iter().zip(&self.thresholds);
            pairs.map(|(value, threshold)| value >= threshold).collect()
        };
        match probabilities {
            HeadProbabilities::MultiLabel(values) => {
                let holds = over(values).into_iter().enumerate();
                Decision::Labels(
                    holds
                        .filter_map(|(index, yes)| yes.then_some(index))
                        .collect(),
                )
            }
            HeadProbabilities::Ordinal(steps) => {
                Decision::Class(over(steps).into_iter().take_while(|&yes| yes).count())
            }
            HeadProbabilities::Binary(value) => {
                Decision::Class(over(&[*value]).into_iter().filter(|&yes| yes).count())
            }
            HeadProbabilities::SingleLabel(values) => Decision::Class(argmax(values)),
        }
    }
}

/// What `calibration.json` says about how it was fitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FitRecord {
    /// On how many texts.
    pub texts: usize,
    /// How many positive texts outweigh the threshold that a multi-label
    /// head's labels have in common, by head.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub threshold_shrinkage: std::collections::BTreeMap<String, f32>,
}

/// How every head's raw logits become probabilities and decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// With the head names, in taxonomy order.
    heads: Vec<(String, HeadCalibration)>,
    fit: FitRecord,
}

impl Calibration {
    /// Joins the heads' calibrations, given in taxonomy order.
    ///
    /// # Errors
    ///
    /// As [`Calibration::from_json`].
    pub(crate) fn new(
        taxonomy: &Taxonomy,
        heads: Vec<HeadCalibration>,
        fit: FitRecord,
    ) -> Result<Self> {
        if heads.len() != taxonomy.heads().len() {
            return Err(invalid(format!(
                "has {} heads, the taxonomy {}",
                heads.len(),
                taxonomy.heads().len()
            )));
        }
        for (head, calibration) in taxonomy.heads().iter().zip(&heads) {
            check(head, calibration)?;
        }
        let names = taxonomy.heads().iter().map(|head| head.name().to_owned());
        Ok(Self {
            heads: names.zip(heads).collect(),
            fit,
        })
    }

    /// Adds both paths with equal weight and decides at one half: what a model
    /// does before it is calibrated.
    pub fn neutral(taxonomy: &Taxonomy) -> Self {
        let neutral = |head: &Head| {
            let width = head.logits().len();
            HeadCalibration {
                encoder: 1.0,
                lexical: 1.0,
                bias: vec![0.0; width],
                thresholds: vec![0.5; num_thresholds(head)],
            }
        };
        Self {
            heads: taxonomy
                .heads()
                .iter()
                .map(|head| (head.name().to_owned(), neutral(head)))
                .collect(),
            fit: FitRecord::default(),
        }
    }

    /// Reads `calibration.json` and checks it against the taxonomy.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] names the head and the value at fault: a
    /// head that is missing or unknown, a list of the wrong length, a weight
    /// that is negative or not finite, a threshold outside 0 to 1.
    pub fn from_json(json: &[u8], taxonomy: &Taxonomy) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        #[derive(Deserialize)]
        struct File {
            heads: serde_json::Map<String, serde_json::Value>,
            #[serde(default)]
            fit: FitRecord,
        }
        let unreadable = |error: serde_json::Error| invalid("cannot be read").with_source(error);
        let Version { version } = serde_json::from_slice(json).map_err(unreadable)?;
        if version != VERSION {
            return Err(invalid(format!(
                "has version {version}; this engine reads version {VERSION}"
            )));
        }
        let File { mut heads, fit } = serde_json::from_slice(json).map_err(unreadable)?;
        let mut calibrations = Vec::with_capacity(taxonomy.heads().len());
        for head in taxonomy.heads() {
            let value = heads
                .remove(head.name())
                .ok_or_else(|| invalid(format!("has no head `{}`", head.name())))?;
            calibrations.push(serde_json::from_value(value).map_err(|error| {
                invalid(format!("cannot be read at head `{}`", head.name())).with_source(error)
            })?);
        }
        if let Some((name, _)) = heads.iter().next() {
            return Err(invalid(format!(
                "has a head `{name}` that the taxonomy lacks"
            )));
        }
        Self::new(taxonomy, calibrations, fit)
    }

    /// Writes `calibration.json`.
    ///
    /// # Errors
    ///
    /// None for a calibration that was made or loaded by this engine.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .map_err(|error| invalid("cannot be written").with_source(error))
    }

    /// One head's calibration.
    #[cfg(test)]
    pub fn head(&self, name: &str) -> Option<&HeadCalibration> {
        let mut heads = self.heads.iter();
        heads.find_map(|(head, calibration)| (head == name).then_some(calibration))
    }

    /// The heads' calibrations in taxonomy order.
    pub fn heads(&self) -> impl Iterator<Item = &HeadCalibration> {
        self.heads.iter().map(|(_, calibration)| calibration)
    }

    /// Every head's calibrated probabilities for one text, in taxonomy order.
    /// The taxonomy must be the one that this calibration was checked against.
    pub fn probabilities(&self, taxonomy: &Taxonomy, raw: &RawLogits) -> Vec<HeadProbabilities> {
        let pairs = taxonomy.heads().iter().zip(self.heads());
        pairs
            .map(|(head, calibration)| calibration.probabilities(head, raw))
            .collect()
    }

    /// Every head's decision about one text, in taxonomy order.
    pub fn decide(&self, probabilities: &[HeadProbabilities]) -> Vec<Decision> {
        let pairs = self.heads().zip(probabilities);
        pairs
            .map(|(calibration, probabilities)| calibration.decide(probabilities))
            .collect()
    }
}

impl Serialize for Calibration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Heads<'a>(&'a [(String, HeadCalibration)]);
        impl Serialize for Heads<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(name, head)| (name, head)))
            }
        }
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("version", &VERSION)?;
        map.serialize_entry("heads", &Heads(&self.heads))?;
        map.serialize_entry("fit", &self.fit)?;
        map.end()
    }
}

/// How many thresholds a head has: none if single-label, else one a logit.
pub(crate) fn num_thresholds(head: &Head) -> usize {
    match head.kind() {
        HeadKind::SingleLabel => 0,
        _ => head.logits().len(),
    }
}

fn check(head: &Head, calibration: &HeadCalibration) -> Result<()> {
    let at_head = |message: String| Err(invalid(format!("{message} at head `{}`", head.name())));
    for (name, weight) in [
        ("encoder", calibration.encoder),
        ("lexical", calibration.lexical),
    ] {
        if !weight.is_finite() || weight < 0.0 {
            return at_head(format!("needs `{name}` at least 0, not {weight},"));
        }
    }
    for (name, found, expected) in [
        ("bias", calibration.bias.len(), head.logits().len()),
        (
            "thresholds",
            calibration.thresholds.len(),
            num_thresholds(head),
        ),
    ] {
        if found != expected {
            return at_head(format!(
                "has {found} values, not {expected}, under `{name}`"
            ));
        }
    }
    if let Some(bias) = calibration.bias.iter().find(|bias| !bias.is_finite()) {
        return at_head(format!("has the `bias` {bias}"));
    }
    let within = |threshold: &&f32| !(0.0..=1.0).contains(*threshold);
    if let Some(threshold) = calibration.thresholds.iter().find(within) {
        return at_head(format!("needs `thresholds` from 0 to 1, not {threshold},"));
    }
    Ok(())
}

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidBundle,
        format!("calibration.json {message}"),
    )
}

/// The index of the highest value, the first of equals; 0 for no values.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &value) in values.iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

fn softmax(values: &mut [f32]) {
    let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - highest).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(
            "version = '1'\n\
             [heads.area]\nkind = 'multi_label'\n\
             [area]\na = 'A'\nb = 'B'\n\
             [topic]\nx = 'X'\ny = 'Y'\nz = 'Z'\n\
             [level]\n0 = 'none'\n1 = 'some'\n2 = 'much'\n\
             [urgent]\nurgent = 'now'\n",
        )
        .unwrap()
    }

    fn json() -> serde_json::Value {
        serde_json::from_str(&Calibration::neutral(&taxonomy()).to_json().unwrap()).unwrap()
    }

    fn message(value: serde_json::Value) -> String {
        let error = Calibration::from_json(value.to_string().as_bytes(), &taxonomy()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidBundle);
        error.to_string()
    }

    fn raw(encoder: [f32; 8]) -> RawLogits {
        RawLogits {
            encoder: Some(encoder.to_vec()),
            ..RawLogits::default()
        }
    }

    #[test]
    fn a_calibration_survives_writing_and_reading() {
        let mut calibration = Calibration::neutral(&taxonomy());
        calibration.heads[0].1.thresholds = vec![0.25, 0.125];
        calibration.fit.texts = 510;
        let json = calibration.to_json().unwrap();
        let read = Calibration::from_json(json.as_bytes(), &taxonomy()).unwrap();
        assert_eq!(read, calibration);
    }

    #[test]
    fn a_broken_calibration_is_refused_by_head_and_value() {
        let mut value = json();
        value["heads"]["topic"]["bias"] = serde_json::json!([0.0, 0.0]);
        assert_eq!(
            message(value),
            "calibration.json has 2 values, not 3, under `bias` at head `topic`"
        );
        let mut value = json();
        value["heads"]["area"]["thresholds"] = serde_json::json!([0.5, 1.5]);
        assert_eq!(
            message(value),
            "calibration.json needs `thresholds` from 0 to 1, not 1.5, at head `area`"
        );
        let mut value = json();
        value["heads"]["level"]["encoder"] = serde_json::json!(-0.5);
        assert!(message(value).contains("`encoder` at least 0, not -0.5, at head `level`"));
        let mut value = json();
        value["heads"]["urgent"]["lexical"] = serde_json::json!(1e300);
        assert!(message(value).contains("urgent"));
        let mut value = json();
        value["heads"].as_object_mut().unwrap().remove("urgent");
        assert!(message(value).contains("has no head `urgent`"));
        let mut value = json();
        value["heads"]["colour"] = value["heads"]["urgent"].clone();
        assert!(message(value).contains("`colour` that the taxonomy lacks"));
        let mut value = json();
        value["version"] = serde_json::json!(2);
        assert!(message(value).contains("version 2"));
    }

    #[test]
    fn ordinal_steps_never_rise_and_levels_have_the_sum_one() {
        let taxonomy = taxonomy();
        let calibration = Calibration::neutral(&taxonomy);
        let raw = raw([0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 2.0, 0.0]);
        let probabilities = calibration.probabilities(&taxonomy, &raw);
        let HeadProbabilities::Ordinal(steps) = &probabilities[2] else {
            panic!("not ordinal")
        };
        assert_eq!(steps[0], steps[1]);
        let levels = probabilities[2].by_label();
        assert_eq!(levels.len(), 3);
        assert!((levels.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(calibration.decide(&probabilities)[2], Decision::Class(0));
    }

    #[test]
    fn both_paths_and_the_bias_make_the_logit() {
        let taxonomy = taxonomy();
        let mut calibration = Calibration::neutral(&taxonomy);
        calibration.heads[3].1 = HeadCalibration {
            encoder: 0.5,
            lexical: 2.0,
            bias: vec![-1.0],
            thresholds: vec![0.7],
        };
        let raw = RawLogits {
            encoder: Some(vec![4.0; 8]),
            lexical: Some(vec![0.25; 8]),
            ..RawLogits::default()
        };
        let probabilities = calibration.probabilities(&taxonomy, &raw);
        // 0.5 * 4 + 2 * 0.25 - 1 = 1.5; sigmoid(1.5) = 0.81757447.
        let HeadProbabilities::Binary(probability) = probabilities[3] else {
            panic!("not binary")
        };
        assert!((probability - 0.817_574_5).abs() < 1e-6);
        assert_eq!(calibration.decide(&probabilities)[3], Decision::Class(1));
    }

    #[test]
    fn one_window_of_a_long_text_is_enough_except_for_single_labels() {
        let taxonomy = taxonomy();
        let calibration = Calibration::neutral(&taxonomy);
        let mut whole = raw([-2.0, -2.0, 1.0, 0.0, 0.0, -2.0, -2.0, -2.0]);
        whole.windows = vec![
            raw([-3.0; 8]),
            raw([2.0, -3.0, 0.0, 0.0, 9.0, 3.0, 3.0, 2.0]),
        ];
        let decisions = calibration.decide(&calibration.probabilities(&taxonomy, &whole));
        assert_eq!(
            decisions,
            [
                Decision::Labels(vec![0]),
                Decision::Class(0),
                Decision::Class(2),
                Decision::Class(1),
            ]
        );
    }

    #[test]
    fn a_logit_that_is_no_number_is_never_turned_into_one() {
        let taxonomy = taxonomy();
        let calibration = Calibration::neutral(&taxonomy);
        for place in 0..8 {
            let mut logits = [0.5; 8];
            logits[place] = f32::NAN;
            let mut long = raw([1.0; 8]);
            long.windows.push(raw(logits));
            for raw in [raw(logits), long] {
                let values: Vec<f32> = calibration
                    .probabilities(&taxonomy, &raw)
                    .into_iter()
                    .flat_map(|head| match head {
                        HeadProbabilities::MultiLabel(values)
                        | HeadProbabilities::SingleLabel(values)
                        | HeadProbabilities::Ordinal(values) => values,
                        HeadProbabilities::Binary(value) => vec![value],
                    })
                    .collect();
                // A single-label head reads the whole text only.
                let is_whole = raw.windows.is_empty() || !(2..5).contains(&place);
                assert_eq!(
                    values.iter().any(|value| value.is_nan()),
                    is_whole,
                    "{place}"
                );
            }
        }
    }
}
