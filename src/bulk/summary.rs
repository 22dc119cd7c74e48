//! What a run came to.

use crate::assessment::{Assessment, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a run came to. A run that was resumed counts from its first start.
///
/// It serialises to the JSON that `lyhord classify --summary` writes.
///
/// # Examples
///
/// ```
/// let summary = lyhord::bulk::Summary::default();
/// assert_eq!(summary.rows(), 0);
/// assert_eq!(serde_json::to_value(&summary)?["rejected"], 0);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// How many rows were assessed and written.
    pub assessed: u64,
    /// How many rows were left out.
    pub rejected: u64,
    /// The same by the reason's code.
    pub rejected_by_reason: BTreeMap<String, u64>,
    /// How many rows have an id that an earlier row has.
    pub duplicate_ids: u64,
    /// How many rows have a text that an earlier row has.
    pub duplicate_texts: u64,
    /// How many assessments have each label, level or answer, by the field of
    /// the head. `none` counts those without any label.
    pub outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    /// How many rows were read in which encoding.
    pub encodings: BTreeMap<String, u64>,
    /// Bytes of UTF-8 in the texts that were assessed.
    pub text_bytes: u64,
    /// Tokens in the same texts: what the time of a run goes by.
    #[serde(default)]
    pub tokens: u64,
    /// Where the time went.
    pub timing: Timing,
    /// Whether `stop` ended the run before the rows did.
    pub interrupted: bool,
}

/// Where the time of a run went, in seconds in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timing {
    /// All of it, from the first row read to the last one written.
    #[serde(with = "seconds")]
    pub total: Duration,
    /// Reading, decoding and comparing with earlier rows. The engine computes
    /// earlier rows meanwhile.
    #[serde(with = "seconds")]
    pub reading: Duration,
    /// Writing, with what makes it safe on disk. The engine computes later
    /// rows meanwhile.
    #[serde(with = "seconds")]
    pub writing: Duration,
}

mod seconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((duration.as_secs_f64() * 1e3).round() / 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

impl Summary {
    /// How many rows the inputs had so far: those assessed and those left out.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::bulk::Summary::default().rows(), 0);
    /// ```
    pub fn rows(&self) -> u64 {
        self.assessed + self.rejected
    }

    /// How many reports were assessed in a second.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::bulk::Summary::default().reports_per_second(), 0.0);
    /// ```
    pub fn reports_per_second(&self) -> f64 {
        match self.timing.total.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.assessed as f64 / seconds,
        }
    }

    pub(super) fn count_assessed(&mut self, assessment: &Assessment) {
        self.assessed += 1;
        self.tokens += assessment.tokens() as u64;
        for (head, outcome) in assessment.outcomes() {
            match outcome {
                Outcome::Labels(labels) if labels.is_empty() => self.count(head.field(), "none"),
                Outcome::Labels(labels) => {
                    for label in labels {
                        self.count(head.field(), label.code());
                    }
                }
                Outcome::Label(label) => self.count(head.field(), label.code()),
                Outcome::Level(level) => self.count(head.field(), &level.level().to_string()),
                Outcome::Binary(answer) => self.count(head.field(), &answer.value().to_string()),
            }
        }
    }

    fn count(&mut self, field: &str, value: &str) {
        // Without a new string for what is there already, which is nearly all.
        if !self.outcomes.contains_key(field) {
            self.outcomes.insert(field.to_owned(), BTreeMap::new());
        }
        if let Some(values) = self.outcomes.get_mut(field) {
            increment(values, value);
        }
    }
}

/// Counts one more.
pub(super) fn increment(counts: &mut BTreeMap<String, u64>, key: &str) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => {
            counts.insert(key.to_owned(), 1);
        }
    }
}
