//! What goes out: the assessment of one report.

use crate::error::{Error, ErrorKind, Result};
use crate::model::Precision;
use crate::model::calibration::{Decision, HeadProbabilities};
use crate::report::Report;
use crate::taxonomy::{Head, HeadKind, Label, Taxonomy};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::fmt;
use std::sync::Arc;

/// A probability, from 0 to 1.
///
/// It prints like a number and is written to JSON with four decimals.
///
/// # Examples
///
/// ```
/// let probability = lyhord::Probability::new(0.93456).unwrap();
/// assert_eq!(format!("{probability:.2}"), "0.93");
/// assert_eq!(serde_json::to_string(&probability).unwrap(), "0.9346");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Probability(f32);

impl Probability {
    /// A probability, or `None` for a value outside 0 to 1.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(lyhord::Probability::new(1.5).is_none());
    /// ```
    pub fn new(value: f32) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// The value, from 0 to 1.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::Probability::new(0.5).unwrap().get(), 0.5);
    /// ```
    pub fn get(self) -> f32 {
        self.0
    }

    /// The probability that it is not so.
    ///
    /// # Examples
    ///
    /// ```
    /// let probability = lyhord::Probability::new(0.75).unwrap();
    /// assert_eq!(probability.complement().get(), 0.25);
    /// ```
    pub fn complement(self) -> Self {
        Self(1.0 - self.0)
    }

    /// The value to four decimals, as it is written to files.
    pub(crate) fn rounded(self) -> f64 {
        (f64::from(self.0) * 1e4).round() / 1e4
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Probability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.rounded())
    }
}

/// Which model made an assessment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    name: String,
    version: String,
    sha256: String,
    taxonomy: String,
    /// Not written for the exact mode, which is the default.
    #[serde(skip_serializing_if = "is_exact")]
    precision: Precision,
}

fn is_exact(precision: &Precision) -> bool {
    *precision == Precision::F32
}

impl ModelInfo {
    pub(crate) fn new(
        name: impl Into<String>,
        version: impl Into<String>,
        sha256: impl Into<String>,
        taxonomy: impl Into<String>,
        precision: Precision,
    ) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            sha256: sha256.into(),
            taxonomy: taxonomy.into(),
            precision,
        }
    }

    /// The number format of the encoder, which decides the last digits.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The model's name.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// assert_eq!(classifier.model().name(), "tiny");
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's version.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// assert_eq!(classifier.model().version().split('.').count(), 3);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn version(&self) -> &str {
        &self.version
    }

    /// SHA-256 of the bundle's manifest, in hexadecimal. The manifest holds
    /// the hash of every other file, so this covers them all.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.model().sha256().len(), 64);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The version of the taxonomy that the model answers in.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.model().taxonomy(), classifier.taxonomy().version());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn taxonomy(&self) -> &str {
        &self.taxonomy
    }
}

/// A label and how probable it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelOutcome<'a> {
    label: &'a Label,
    probability: Probability,
}

impl<'a> LabelOutcome<'a> {
    /// The label's stable code.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// let code = assessment.sector().unwrap().code();
    /// assert!(classifier.taxonomy().head("sector").unwrap().label_index(code).is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn code(&self) -> &'a str {
        self.label.code()
    }

    /// The label's name, to show to people.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(!assessment.sector().unwrap().name().is_empty());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn name(&self) -> &'a str {
        self.label.name()
    }

    /// How probable the label is.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(assessment.sector().unwrap().probability().get() > 1.0 / 9.0);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn probability(&self) -> Probability {
        self.probability
    }
}

impl Serialize for LabelOutcome<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("code", self.code())?;
        map.serialize_entry("name", self.name())?;
        map.serialize_entry("probability", &self.probability)?;
        map.end()
    }
}

/// A level of an ordered scale, and how probable each level is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelOutcome<'a> {
    level: u8,
    label: &'a Label,
    first_level: u8,
    probabilities: &'a [Probability],
}

impl<'a> LevelOutcome<'a> {
    /// The level that the model decided on.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(assessment.severity().unwrap().level() <= 4);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The level's name, to show to people.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(!assessment.severity().unwrap().name().is_empty());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn name(&self) -> &'a str {
        self.label.name()
    }

    /// How probable each level is, lowest level first. They sum to 1.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.severity().unwrap().probabilities().len(), 5);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn probabilities(&self) -> &'a [Probability] {
        self.probabilities
    }

    /// How probable the decided level is.
    ///
    /// The level is decided by thresholds that weigh the cost of missing a
    /// severe report, so it need not be the most probable one.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// let severity = assessment.severity().unwrap();
    /// let level = usize::from(severity.level());
    /// assert_eq!(severity.probability(), severity.probabilities()[level]);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn probability(&self) -> Probability {
        let index = usize::from(self.level - self.first_level);
        self.probabilities.get(index).copied().unwrap_or_default()
    }
}

impl Serialize for LevelOutcome<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("level", &self.level)?;
        map.serialize_entry("name", self.name())?;
        map.serialize_entry("probabilities", self.probabilities)?;
        map.end()
    }
}

/// Yes or no, and how probable yes is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BinaryOutcome {
    value: bool,
    probability: Probability,
}

impl BinaryOutcome {
    /// The answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// if assessment.danger().unwrap().value() {
    ///     println!("somebody is in danger now");
    /// }
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn value(&self) -> bool {
        self.value
    }

    /// How probable yes is, whatever the answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// println!("danger: {:.2}", assessment.danger().unwrap().probability());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn probability(&self) -> Probability {
        self.probability
    }
}

/// The answer of one head.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// The labels over their thresholds, most probable first.
    Labels(Vec<LabelOutcome<'a>>),
    /// The most probable label.
    Label(LabelOutcome<'a>),
    /// The level.
    Level(LevelOutcome<'a>),
    /// Yes or no.
    Binary(BinaryOutcome),
}

/// What the model says about one report.
///
/// It serialises to one JSON object: `id`, one field for each head of the
/// taxonomy, `model`, `engine` (this crate's version) and `input_sha256` (of
/// the report's UTF-8 text). Probabilities have four decimals.
///
/// # Examples
///
#[cfg_attr(feature = "embedded", doc = "```")]
#[cfg_attr(not(feature = "embedded"), doc = "```ignore")]
/// use lyhord::{Classifier, Report};
///
/// let classifier = Classifier::embedded()?;
/// let assessment = classifier.assess(&Report::new("Brukaren fick dubbel dos insulin."))?;
/// for area in assessment.risk_areas() {
///     println!("{} {:.2}", area.name(), area.probability());
/// }
/// println!("{}", serde_json::to_string(&assessment)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    id: Option<String>,
    taxonomy: Arc<Taxonomy>,
    model: Arc<ModelInfo>,
    input_sha256: String,
    tokens: usize,
    /// One for each head, in taxonomy order.
    answers: Vec<Answer>,
}

/// A head's probabilities and what was decided from them.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    /// One for each label; a binary head has one, for yes.
    probabilities: Vec<Probability>,
    /// Label indices: those over their thresholds, most probable first; the
    /// chosen label or level; `[0]` for yes and nothing for no.
    chosen: Vec<usize>,
}

impl Assessment {
    /// Puts together what each head says of a report, given in taxonomy order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Compute`] when a head lacks an answer or a value is not a
    /// probability.
    pub(crate) fn new(
        taxonomy: Arc<Taxonomy>,
        model: Arc<ModelInfo>,
        report: &Report,
        tokens: usize,
        answers: impl ExactSizeIterator<Item = (HeadProbabilities, Decision)>,
    ) -> Result<Self> {
        let heads = taxonomy.heads();
        if answers.len() != heads.len() {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("{} answers from {} heads", answers.len(), heads.len()),
            ));
        }
        let answers = heads
            .iter()
            .zip(answers)
            .map(|(head, (probabilities, decision))| Answer::new(head, &probabilities, decision))
            .collect::<Result<_>>()?;
        Ok(Self {
            id: report.id().map(str::to_owned),
            input_sha256: report.sha256(),
            tokens,
            taxonomy,
            model,
            answers,
        })
    }

    /// The report's identifier, if it had one.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.id(), Some("7"));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The model that made the assessment.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.model(), classifier.model());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// The taxonomy whose heads and labels the assessment uses.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.taxonomy(), classifier.taxonomy());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn taxonomy(&self) -> &Taxonomy {
        &self.taxonomy
    }

    /// SHA-256 of the report's UTF-8 text, in hexadecimal.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.input_sha256().len(), 64);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn input_sha256(&self) -> &str {
        &self.input_sha256
    }

    /// How many tokens the report's text has, which is what computing goes by.
    /// Some words are several tokens, so do not take it for the number of words.
    /// It is not a part of what is written.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let assessment = classifier.assess(&lyhord::Report::new("Ingen kom."))?;
    /// assert!(assessment.tokens() >= 2);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The version of this crate, which made the assessment.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert_eq!(assessment.engine(), env!("CARGO_PKG_VERSION"));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn engine(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// The answer of the head with a name, or `None` if the taxonomy has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// use lyhord::Outcome;
    ///
    /// assert!(matches!(assessment.outcome("severity"), Some(Outcome::Level(_))));
    /// assert!(assessment.outcome("mood").is_none());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn outcome(&self, head: &str) -> Option<Outcome<'_>> {
        let (head, answer) = self.heads().find(|(item, _)| item.name() == head)?;
        answer.outcome(head)
    }

    /// Each head with its answer, in taxonomy order.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// for (head, outcome) in assessment.outcomes() {
    ///     println!("{}: {outcome:?}", head.name());
    /// }
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn outcomes(&self) -> impl Iterator<Item = (&Head, Outcome<'_>)> {
        self.heads()
            .filter_map(|(head, answer)| Some((head, answer.outcome(head)?)))
    }

    /// Every label of a head with its probability, in taxonomy order; empty if
    /// the taxonomy has no such head.
    ///
    /// For an ordinal head these are its levels; for a binary one the only
    /// label, with the probability of yes.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// let sum: f32 = assessment.probabilities("sector").map(|each| each.probability().get()).sum();
    /// assert!((sum - 1.0).abs() < 1e-4);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn probabilities(&self, head: &str) -> impl Iterator<Item = LabelOutcome<'_>> {
        self.heads()
            .filter(move |(item, _)| item.name() == head)
            .flat_map(|(head, answer)| answer.labels(head))
    }

    /// The risk areas over their thresholds, most probable first: the answer
    /// of the head `risk_area`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// for area in assessment.risk_areas() {
    ///     println!("{} {:.2}", area.name(), area.probability());
    /// }
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn risk_areas(&self) -> Vec<LabelOutcome<'_>> {
        match self.outcome("risk_area") {
            Some(Outcome::Labels(labels)) => labels,
            _ => Vec::new(),
        }
    }

    /// How severe the report is: the answer of the head `severity`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// let severity = assessment.severity().unwrap();
    /// println!("{} {}", severity.level(), severity.name());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn severity(&self) -> Option<LevelOutcome<'_>> {
        match self.outcome("severity")? {
            Outcome::Level(level) => Some(level),
            _ => None,
        }
    }

    /// Whether harm has come about: the answer of the head `harm`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(assessment.harm().is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn harm(&self) -> Option<BinaryOutcome> {
        self.binary("harm")
    }

    /// Whether somebody is in danger now: the answer of the head `danger`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// assert!(assessment.danger().is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn danger(&self) -> Option<BinaryOutcome> {
        self.binary("danger")
    }

    /// What kind of report it is: the answer of the head `report_type`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// println!("{}", assessment.report_type().unwrap().name());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn report_type(&self) -> Option<LabelOutcome<'_>> {
        self.single_label("report_type")
    }

    /// Which part of care it concerns: the answer of the head `sector`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// println!("{}", assessment.sector().unwrap().name());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn sector(&self) -> Option<LabelOutcome<'_>> {
        self.single_label("sector")
    }

    /// The same assessment, serialised with a further field
    /// `{head}_probabilities` after each head of several labels: every label's
    /// code with its probability.
    ///
    /// # Examples
    ///
    /// ```
    /// # let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// # let assessment = classifier.assess(&lyhord::Report::new("Ingen kom.").with_id("7"))?;
    /// let json = serde_json::to_value(assessment.with_all_probabilities()).unwrap();
    /// assert_eq!(json["risk_area_probabilities"].as_object().unwrap().len(), 21);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn with_all_probabilities(&self) -> impl Serialize + '_ {
        WithAllProbabilities(self)
    }

    fn heads(&self) -> impl Iterator<Item = (&Head, &Answer)> {
        self.taxonomy.heads().iter().zip(&self.answers)
    }

    fn binary(&self, head: &str) -> Option<BinaryOutcome> {
        match self.outcome(head)? {
            Outcome::Binary(answer) => Some(answer),
            _ => None,
        }
    }

    fn single_label(&self, head: &str) -> Option<LabelOutcome<'_>> {
        match self.outcome(head)? {
            Outcome::Label(label) => Some(label),
            _ => None,
        }
    }

    fn serialize_into<S: Serializer>(&self, serializer: S, all: bool) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        for (head, answer) in self.heads() {
            map.serialize_entry(head.field(), &answer.outcome(head))?;
            // Levels and yes-or-no always show all their probabilities.
            if all && matches!(head.kind(), HeadKind::MultiLabel | HeadKind::SingleLabel) {
                let key = format!("{}_probabilities", head.name());
                map.serialize_entry(&key, &ByCode(head, answer))?;
            }
        }
        map.serialize_entry("model", &*self.model)?;
        map.serialize_entry("engine", self.engine())?;
        map.serialize_entry("input_sha256", &self.input_sha256)?;
        map.end()
    }
}

impl Serialize for Assessment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_into(serializer, false)
    }
}

struct WithAllProbabilities<'a>(&'a Assessment);

impl Serialize for WithAllProbabilities<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_into(serializer, true)
    }
}

struct ByCode<'a>(&'a Head, &'a Answer);

impl Serialize for ByCode<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.1
                .labels(self.0)
                .map(|label| (label.code(), label.probability())),
        )
    }
}

impl Answer {
    fn new(head: &Head, probabilities: &HeadProbabilities, decision: Decision) -> Result<Self> {
        let probabilities = probabilities
            .by_label()
            .into_iter()
            .map(|value| {
                Probability::new(value).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Compute,
                        format!(
                            "the model gave the head {} a value that is not a probability",
                            head.name()
                        ),
                    )
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let chosen = match (head.kind(), decision) {
            (_, Decision::Labels(mut labels)) => {
                // A stable sort: equal ones stay in taxonomy order.
                labels.sort_by(|a, b| {
                    let (a, b) = (probabilities.get(*a), probabilities.get(*b));
                    b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
                });
                labels
            }
            (HeadKind::Binary, Decision::Class(0)) => Vec::new(),
            (HeadKind::Binary, Decision::Class(_)) => vec![0],
            (_, Decision::Class(class)) => vec![class],
        };
        Ok(Self {
            probabilities,
            chosen,
        })
    }

    fn labels<'a>(&'a self, head: &'a Head) -> impl Iterator<Item = LabelOutcome<'a>> {
        head.labels()
            .iter()
            .zip(&self.probabilities)
            .map(|(label, &probability)| LabelOutcome { label, probability })
    }

    /// `None` cannot come about: `new` fills every answer by its head.
    fn outcome<'a>(&'a self, head: &'a Head) -> Option<Outcome<'a>> {
        let label = |index: &usize| {
            Some(LabelOutcome {
                label: head.labels().get(*index)?,
                probability: *self.probabilities.get(*index)?,
            })
        };
        Some(match head.kind() {
            HeadKind::MultiLabel => Outcome::Labels(self.chosen.iter().filter_map(label).collect()),
            HeadKind::SingleLabel => Outcome::Label(label(self.chosen.first()?)?),
            HeadKind::Ordinal => {
                let index = *self.chosen.first()?;
                Outcome::Level(LevelOutcome {
                    level: head.first_level() + u8::try_from(index).ok()?,
                    label: head.labels().get(index)?,
                    first_level: head.first_level(),
                    probabilities: &self.probabilities,
                })
            }
            HeadKind::Binary => Outcome::Binary(BinaryOutcome {
                value: !self.chosen.is_empty(),
                probability: *self.probabilities.first()?,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calibration::HeadCalibration;

    fn taxonomy() -> Arc<Taxonomy> {
        Arc::new(
            Taxonomy::from_toml(
                r#"
                version = "1.0"
                [heads.risk_area]
                kind = "multi_label"
                field = "risk_areas"
                [report_type]
                klagomal = "Klagomål från närstående"
                tips = "Tips: eller fråga"
                [risk_area]
                lakemedel = "Läkemedelshantering: fel dos"
                fall = "Fall"
                barn = "Barn"
                [severity]
                0 = "Ingen"
                1 = "Mindre"
                2 = "Måttlig"
                [danger]
                danger = "true om fara pågår"
                "#,
            )
            .unwrap(),
        )
    }

    /// Answers at probabilities and thresholds that are laid out as logits are.
    fn answers(probabilities: &[f32], thresholds: &[f32]) -> Vec<(HeadProbabilities, Decision)> {
        let heads = taxonomy();
        let answers = heads.heads().iter().map(|head| {
            let values = probabilities[head.logits()].to_vec();
            let calibration = HeadCalibration {
                encoder: 1.0,
                lexical: 0.0,
                bias: Vec::new(),
                thresholds: thresholds[head.logits()].to_vec(),
            };
            let probabilities = match head.kind() {
                HeadKind::MultiLabel => HeadProbabilities::MultiLabel(values),
                HeadKind::SingleLabel => HeadProbabilities::SingleLabel(values),
                HeadKind::Ordinal => HeadProbabilities::Ordinal(values),
                HeadKind::Binary => HeadProbabilities::Binary(values[0]),
            };
            let decision = calibration.decide(&probabilities);
            (probabilities, decision)
        });
        answers.collect()
    }

    fn assess(answers: Vec<(HeadProbabilities, Decision)>) -> Result<Assessment> {
        let model = Arc::new(ModelInfo::new("m", "1.0.0", "abc", "1.0", Precision::F32));
        let report = Report::new("abc").with_id("2024-1");
        Assessment::new(taxonomy(), model, &report, 2, answers.into_iter())
    }

    const PROBABILITIES: [f32; 8] = [0.25, 0.75, 0.5, 0.1, 0.93456, 0.8, 0.3, 0.08];
    const THRESHOLDS: [f32; 8] = [0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];

    #[test]
    fn the_json_line_is_the_one_that_other_systems_read() {
        let assessment = assess(answers(&PROBABILITIES, &THRESHOLDS)).unwrap();
        assert_eq!(
            serde_json::to_string(&assessment).unwrap(),
            format!(
                concat!(
                    r#"{{"id":"2024-1","report_type":{{"code":"tips","name":"Tips","probability":0.75}},"#,
                    r#""risk_areas":[{{"code":"barn","name":"Barn","probability":0.9346}},"#,
                    r#"{{"code":"lakemedel","name":"Läkemedelshantering","probability":0.5}}],"#,
                    r#""severity":{{"level":1,"name":"Mindre","probabilities":[0.2,0.5,0.3]}},"#,
                    r#""danger":{{"value":false,"probability":0.08}},"#,
                    r#""model":{{"name":"m","version":"1.0.0","sha256":"abc","taxonomy":"1.0"}},"#,
                    r#""engine":"{}","#,
                    r#""input_sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}"#,
                ),
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn all_probabilities_come_by_code_on_demand() {
        let assessment = assess(answers(&PROBABILITIES, &THRESHOLDS)).unwrap();
        let json = serde_json::to_value(assessment.with_all_probabilities()).unwrap();
        assert_eq!(
            json["risk_area_probabilities"],
            serde_json::json!({"lakemedel": 0.5, "fall": 0.1, "barn": 0.9346})
        );
        assert_eq!(
            json["report_type_probabilities"],
            serde_json::json!({"klagomal": 0.25, "tips": 0.75})
        );
    }

    #[test]
    fn a_level_needs_every_step_below_it() {
        // The second step alone is over its threshold and does not count.
        let assessment = assess(answers(
            &[0.5, 0.5, 0.0, 0.0, 0.0, 0.4, 0.4, 0.0],
            &[0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.3, 0.5],
        ))
        .unwrap();
        let severity = assessment.severity().unwrap();
        assert_eq!(severity.level(), 0);
        assert_eq!(severity.probability().get(), 0.6);
        let sum: f32 = severity.probabilities().iter().map(|p| p.get()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_probabilities_are_decided_in_taxonomy_order() {
        let assessment = assess(answers(
            &[0.5, 0.5, 0.7, 0.7, 0.7, 0.0, 0.0, 0.5],
            &[0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        ))
        .unwrap();
        assert_eq!(assessment.report_type().unwrap().code(), "klagomal");
        let areas: Vec<_> = assessment.risk_areas().iter().map(|a| a.code()).collect();
        assert_eq!(areas, ["lakemedel", "fall", "barn"]);
        assert!(assessment.danger().unwrap().value());
        assert_eq!(assessment.harm(), None);
    }

    #[test]
    fn what_is_not_a_probability_is_an_error() {
        let mut values = PROBABILITIES;
        values[3] = f32::NAN;
        let error = assess(answers(&values, &THRESHOLDS)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Compute);
        assert!(error.to_string().contains("risk_area"));
        let mut fewer = answers(&PROBABILITIES, &THRESHOLDS);
        fewer.pop();
        assert_eq!(assess(fewer).unwrap_err().kind(), ErrorKind::Compute);
    }
}
