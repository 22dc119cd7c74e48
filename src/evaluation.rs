//! How good a model is on labelled reports.
//!
//! [`evaluate`] runs a [`Classifier`] over labelled reports and gives, for each
//! head of its taxonomy, the figures that the field uses, with bootstrap
//! intervals; the labels that it takes for each other; and the same figures by
//! text length, by each single-label head's classes and by what else is known of
//! the reports ([`read_groupings`]), so that one sees whom the model serves worse
//! and which texts to write next.
//!
//! A model's calibration is fitted on held-out data. Figures on those same
//! data are too good, unless [`EvaluationOptions::cross_fit`] fits it again in
//! five folds, each without the texts that it is then measured on.

use crate::assessment::ModelInfo;
use crate::bulk::guess_delimiter;
use crate::classifier::Classifier;
use crate::error::{Error, ErrorKind, Result};
use crate::model::calibration::{Calibration, Decision, HeadProbabilities, RawLogits, argmax};
use crate::report::Report;
use crate::taxonomy::{Head, HeadKind, Taxonomy};
use crate::train::calibration::{FOLDS, FitOptions, TOP_RECALL, cross_fit};
use crate::train::metrics::{
    CALIBRATION_BINS, Confusion, Counts, average_precision, bootstrap, brier,
    expected_calibration_error, mean,
};
use crate::train::{LabelledReport, Target};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::Path;

pub use crate::train::metrics::Interval;

/// How [`evaluate`] measures.
///
/// # Examples
///
/// ```
/// use lyhord::evaluation::EvaluationOptions;
///
/// let mut options = EvaluationOptions::default();
/// options.cross_fit = true;
/// assert_eq!((options.bootstrap, options.seed), (1000, 1));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EvaluationOptions {
    /// Whether to fit the calibration again on the given reports, in five
    /// folds: report `i` of the list is measured with what was fitted to the
    /// reports whose place leaves another remainder by five. Default: no, the
    /// model's own calibration is measured.
    pub cross_fit: bool,
    /// The recall of an ordered head's two highest levels together that
    /// cross-fitted thresholds must reach on the reports they are fitted to.
    /// Default [`TOP_RECALL`].
    pub top_recall: f64,
    /// How often to draw the reports again for the intervals; 0 for none.
    /// Default 1000.
    pub bootstrap: usize,
    /// Decides what is drawn. Default 1.
    pub seed: u64,
    /// What else to part the reports by, see [`read_groupings`]. Default: nothing.
    pub groupings: Vec<Grouping>,
}

/// Something by which reports are parted: who wrote them, where, how.
///
/// # Examples
///
/// ```
/// use lyhord::evaluation::{EvaluationOptions, Grouping};
///
/// let mut options = EvaluationOptions::default();
/// options.groupings.push(Grouping {
///     by: "writer".to_owned(),
///     groups: [("2024-1".to_owned(), "relative".to_owned())].into(),
/// });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// What the reports are parted by.
    pub by: String,
    /// Each report's group, by the report's id. Reports that are not in it are in
    /// none of the groups.
    pub groups: BTreeMap<String, String>,
}

/// Reads what else is known of labelled reports: a CSV file in UTF-8 with a column
/// `id` and any other columns, separated by commas, semicolons or tabs. Each of the
/// other columns parts the reports; an empty cell says nothing.
///
/// # Errors
///
/// [`ErrorKind::Io`] when the file cannot be read; [`ErrorKind::InvalidData`] when
/// it is not such a file or an id stands twice, with the line.
///
/// # Examples
///
/// ```
/// use lyhord::evaluation::read_groupings;
///
/// let groupings = read_groupings("fixtures/registers.dev.csv")?;
/// assert_eq!(groupings[0].by, "writer");
/// assert_eq!(groupings[0].groups["T01-0021"], "relative");
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn read_groupings(path: impl AsRef<Path>) -> Result<Vec<Grouping>> {
    const ID: &str = "id";
    let path = path.as_ref();
    let invalid = |what: String| {
        let message = format!("{}: {what}", path.display());
        Error::new(ErrorKind::InvalidData, message)
    };
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let first = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(guess_delimiter(first))
        .from_reader(bytes);
    let header = reader
        .headers()
        .map_err(|error| invalid(unreadable(&error)))?
        .clone();
    // What stands there instead is not told: it could be a report.
    let ids = header.iter().position(|name| name == ID).ok_or_else(|| {
        invalid(format!(
            "line 1: no column `{ID}`; the first line must hold the columns' names"
        ))
    })?;
    let mut groupings: Vec<Grouping> = header
        .iter()
        .map(|by| Grouping {
            by: by.to_owned(),
            groups: BTreeMap::new(),
        })
        .collect();
    let mut seen = HashSet::new();
    for record in reader.records() {
        let record = record.map_err(|error| invalid(unreadable(&error)))?;
        let id = record.get(ids).unwrap_or_default();
        if !seen.insert(id.to_owned()) {
            let line = record.position().map_or(0, csv::Position::line);
            return Err(invalid(format!("line {line}: the id {id:?} stands twice")));
        }
        for (grouping, group) in groupings.iter_mut().zip(&record) {
            if !group.is_empty() {
                grouping.groups.insert(id.to_owned(), group.to_owned());
            }
        }
    }
    groupings.remove(ids);
    Ok(groupings)
}

/// What is wrong with a CSV file, and where, without what stands there.
fn unreadable(error: &csv::Error) -> String {
    let line = error.position().map_or(1, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => format!("line {line}: not UTF-8"),
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("line {line}: {len} cells where the header has {expected_len}"),
        _ => format!("line {line}: not CSV"),
    }
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self {
            cross_fit: false,
            top_recall: TOP_RECALL,
            bootstrap: 1000,
            seed: 1,
            groupings: Vec::new(),
        }
    }
}

/// A figure and what it may have been by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Figure {
    /// The figure on all the reports.
    pub value: f64,
    /// Its bootstrap interval, if one was drawn.
    #[serde(flatten)]
    pub interval: Option<Interval>,
}

/// Named figures, in a fixed order. They serialise to a map.
///
/// | name | heads | meaning |
/// | --- | --- | --- |
/// | `macro_f1` | multi-label, single-label | mean of the labels' F1 |
/// | `micro_f1`, `micro_precision`, `micro_recall` | multi-label | over all decisions about any label |
/// | `mean_average_precision` | multi-label | mean of the labels' average precision |
/// | `exact_match` | multi-label | share of reports whose labels are all right and complete |
/// | `accuracy` | all but multi-label | share of right decisions |
/// | `within_one` | ordinal | share of decisions at most one level off |
/// | `quadratic_weighted_kappa` | ordinal | agreement beyond chance, distance squared |
/// | `top_recall`, `top_precision` | ordinal | for "one of the upper two levels" (of three levels: the highest) |
/// | `precision`, `recall`, `f1`, `average_precision` | binary | for yes |
/// | `calibration_error` | all | expected calibration error over 15 bins: of every label's probability, of the most probable label's or level's, of yes |
/// | `brier` | all | mean squared error of those probabilities |
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(Vec<(&'static str, Figure)>);

impl Figures {
    /// The figure of a name, if it is defined for these reports.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(lyhord::evaluation::Figures::default().get("accuracy").is_none());
    /// ```
    pub fn get(&self, name: &str) -> Option<Figure> {
        let mut figures = self.0.iter();
        figures.find_map(|(other, figure)| (*other == name).then_some(*figure))
    }

    /// All figures with their names.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::evaluation::Figures::default().iter().count(), 0);
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Figure)> {
        self.0.iter().copied()
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, figure)| (name, figure)))
    }
}

/// How good the decisions about one label or level are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LabelEvaluation {
    /// The label's code.
    pub code: String,
    /// The label's name.
    pub name: String,
    /// In how many reports it holds.
    pub reports: usize,
    /// In how many it was found rightly.
    pub found: usize,
    /// In how many it was given wrongly.
    pub false_alarms: usize,
    /// In how many it was missed.
    pub missed: usize,
    /// Share of right ones among the given.
    pub precision: f64,
    /// Share of given ones among the right.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Average precision of its probability; none if it holds nowhere.
    pub average_precision: Option<f64>,
}

/// One label taken for another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConfusedPair {
    /// The code of the label that holds and was missed.
    pub missed: String,
    /// The code of the label that was given and does not hold.
    pub given: String,
    /// In how many reports.
    pub reports: usize,
}

/// The figures of one head.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadEvaluation {
    /// The head's name.
    #[serde(skip)]
    pub name: String,
    /// How many reports have a known target.
    pub reports: usize,
    /// The head's figures.
    pub figures: Figures,
    /// Each label's figures, in taxonomy order.
    pub labels: Vec<LabelEvaluation>,
    /// How often each label or level was taken for each other,
    /// `[true][decision]`; empty for a multi-label head. A binary head has the
    /// rows no and yes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<usize>>,
    /// The commonest confusions, most frequent first, twelve at most. For a
    /// multi-label head: a label missed where another was given wrongly.
    pub confused: Vec<ConfusedPair>,
}

/// The figures of a part of the reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GroupEvaluation {
    /// What the reports were parted by: `length` (characters), a single-label
    /// head's name, or that of a [`Grouping`].
    pub by: String,
    /// Which part.
    pub group: String,
    /// How many reports are in it.
    pub reports: usize,
    /// Each head's figures, without intervals.
    #[serde(serialize_with = "as_map")]
    pub heads: Vec<(String, Figures)>,
}

/// A report that the model gets wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HardReport {
    /// The report's id.
    pub id: String,
    /// The negative log-likelihood of its targets, averaged over each head's
    /// logits and summed over heads.
    pub loss: f64,
    /// The heads that decide wrongly about it.
    pub wrong: Vec<String>,
}

/// What [`evaluate`] found. It prints as tables and serialises to JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The measured model.
    pub model: ModelInfo,
    /// How many reports it was measured on.
    pub reports: usize,
    /// Whether the calibration was fitted again in folds.
    pub cross_fitted: bool,
    /// Each head's figures, in taxonomy order. They serialise to a map by head
    /// name.
    #[serde(serialize_with = "heads_as_map")]
    pub heads: Vec<HeadEvaluation>,
    /// The figures by text length, by each single-label head's classes and by
    /// each of [`EvaluationOptions::groupings`].
    pub groups: Vec<GroupEvaluation>,
    /// The 25 reports with the highest loss, worst first.
    pub hardest: Vec<HardReport>,
}

impl Evaluation {
    /// The figures of the head with a name.
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "embedded", doc = "```no_run")]
    #[cfg_attr(not(feature = "embedded"), doc = "```ignore")]
    /// use lyhord::{Classifier, evaluation, train};
    ///
    /// let classifier = Classifier::embedded()?;
    /// let reports = train::read_labelled("fixtures/reports.dev.jsonl", classifier.taxonomy())?;
    /// let evaluation = evaluation::evaluate(&classifier, &reports, &Default::default())?;
    /// let areas = evaluation.head("risk_area").unwrap();
    /// assert!(areas.figures.get("macro_f1").unwrap().value > 0.7);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn head(&self, name: &str) -> Option<&HeadEvaluation> {
        self.heads.iter().find(|head| head.name == name)
    }
}

fn heads_as_map<S: Serializer>(heads: &[HeadEvaluation], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(heads.iter().map(|head| (&head.name, head)))
}

fn as_map<S: Serializer>(pairs: &[(String, Figures)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (name, figures) in pairs {
        map.serialize_entry(name, figures)?;
    }
    map.end()
}

/// Measures a model on labelled reports.
///
/// # Errors
///
/// [`ErrorKind::InvalidData`] when there are no reports, or fewer than five to
/// cross-fit on, or when a grouping fits none of them or two have the same id; and
/// those of [`Classifier::assess`] with the report's id.
///
/// # Examples
///
#[cfg_attr(feature = "embedded", doc = "```no_run")]
#[cfg_attr(not(feature = "embedded"), doc = "```ignore")]
/// use lyhord::evaluation::{EvaluationOptions, evaluate};
/// use lyhord::{Classifier, train};
///
/// let classifier = Classifier::embedded()?;
/// let reports = train::read_labelled("fixtures/reports.dev.jsonl", classifier.taxonomy())?;
/// let mut options = EvaluationOptions::default();
/// options.cross_fit = true;
/// println!("{}", evaluate(&classifier, &reports, &options)?);
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn evaluate(
    classifier: &Classifier,
    reports: &[LabelledReport],
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    // What is known at once is said before what takes minutes.
    check_groupings(&options.groupings, reports)?;
    let inputs: Vec<Report> = reports
        .iter()
        .map(|report| Report::new(report.text.clone()).with_id(report.id.clone()))
        .collect();
    let raw = classifier
        .raw_stream(inputs)
        .zip(reports)
        .map(|((_, raw), report)| {
            raw.map_err(|error| {
                let kind = error.kind();
                Error::new(kind, format!("report {}", report.id)).with_source(error)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    measure(
        classifier.taxonomy(),
        classifier.model(),
        classifier.calibration(),
        reports,
        &raw,
        options,
    )
}

/// Measures raw logits that a model gave for labelled reports.
///
/// # Errors
///
/// As [`evaluate`].
pub(crate) fn measure(
    taxonomy: &Taxonomy,
    model: &ModelInfo,
    calibration: &Calibration,
    reports: &[LabelledReport],
    raw: &[RawLogits],
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    let least = if options.cross_fit { FOLDS } else { 1 };
    if reports.len() < least {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "{} reports are too few; at least {least} are needed",
                reports.len()
            ),
        ));
    }
    let calibrations = if options.cross_fit {
        let targets: Vec<_> = reports
            .iter()
            .map(|report| report.targets.clone())
            .collect();
        cross_fit(
            taxonomy,
            raw,
            &targets,
            &FitOptions::with_top_recall(options.top_recall)?,
        )?
    } else {
        vec![calibration.clone()]
    };
    let judged: Vec<Vec<Judged>> = raw
        .iter()
        .zip(reports)
        .zip(calibrations.iter().cycle())
        .map(|((raw, report), calibration)| {
            let probabilities = calibration.probabilities(taxonomy, raw);
            let decisions = calibration.decide(&probabilities);
            probabilities
                .into_iter()
                .zip(decisions)
                .zip(&report.targets)
                .map(|((probabilities, decision), target)| Judged {
                    probabilities,
                    decision,
                    target: target.clone(),
                })
                .collect()
        })
        .collect();

    let all: Vec<usize> = (0..judged.len()).collect();
    let heads = || taxonomy.heads().iter().enumerate();
    let evaluated = heads()
        .map(|(index, head)| {
            let named = figures(head, &column(&judged, index, &all));
            let names: Vec<&'static str> = named.iter().map(|(name, _)| *name).collect();
            let intervals = bootstrap(judged.len(), options.bootstrap, options.seed, |drawn| {
                let drawn = figures(head, &column(&judged, index, drawn));
                let value = |name: &&'static str| {
                    // Draws repeat texts, which widens the gaps in every bin: the
                    // percentiles of this figure lie above it.
                    let is_fit = *name != "calibration_error";
                    is_fit.then(|| drawn.iter().find(|(other, _)| other == name)?.1)?
                };
                names.iter().map(value).collect()
            });
            let figures = named
                .into_iter()
                .enumerate()
                .filter_map(|(place, (name, value))| {
                    let interval = intervals.get(place).copied().flatten();
                    Some((
                        name,
                        Figure {
                            value: value?,
                            interval,
                        },
                    ))
                });
            head_evaluation(
                head,
                &column(&judged, index, &all),
                Figures(figures.collect()),
            )
        })
        .collect();
    let groups = groups(taxonomy, reports, &options.groupings)
        .into_iter()
        .map(|(by, group, members)| GroupEvaluation {
            by,
            group,
            reports: members.len(),
            heads: heads()
                .map(|(index, head)| {
                    let figures = figures(head, &column(&judged, index, &members))
                        .into_iter()
                        .filter_map(|(name, value)| {
                            let (value, interval) = (value?, None);
                            Some((name, Figure { value, interval }))
                        })
                        .collect();
                    (head.name().to_owned(), Figures(figures))
                })
                .collect(),
        })
        .collect();
    Ok(Evaluation {
        model: model.clone(),
        reports: reports.len(),
        cross_fitted: options.cross_fit,
        heads: evaluated,
        groups,
        hardest: hardest(taxonomy, reports, &judged),
    })
}

/// What one head says of one text, and what is true.
struct Judged {
    probabilities: HeadProbabilities,
    decision: Decision,
    target: Option<Target>,
}

impl Judged {
    /// The true and the decided label, level or answer.
    fn classes(&self) -> Option<(usize, usize)> {
        match (&self.target, &self.decision) {
            (Some(Target::Class(truth)), Decision::Class(decided)) => Some((*truth, *decided)),
            _ => None,
        }
    }

    /// The true and the given labels.
    fn labels(&self) -> Option<(&[usize], &[usize])> {
        match (&self.target, &self.decision) {
            (Some(Target::Labels(truth)), Decision::Labels(given)) => Some((truth, given)),
            _ => None,
        }
    }

    /// Whether a label is given and whether it holds.
    fn label(&self, label: usize) -> (bool, bool) {
        match (self.labels(), self.classes()) {
            (Some((truth, given)), _) => (given.contains(&label), truth.contains(&label)),
            (_, Some((truth, decided))) => match self.probabilities {
                HeadProbabilities::Binary(_) => (decided == 1, truth == 1),
                _ => (decided == label, truth == label),
            },
            _ => (false, false),
        }
    }

    /// The claims by which calibration is judged, and whether each came true.
    fn claims(&self) -> Vec<(f32, bool)> {
        let by_label = self.probabilities.by_label();
        match &self.probabilities {
            HeadProbabilities::MultiLabel(_) | HeadProbabilities::Binary(_) => by_label
                .into_iter()
                .enumerate()
                .map(|(label, probability)| (probability, self.label(label).1))
                .collect(),
            HeadProbabilities::SingleLabel(_) | HeadProbabilities::Ordinal(_) => {
                let top = argmax(&by_label);
                let probability = by_label.get(top).copied().unwrap_or(0.0);
                vec![(probability, self.label(top).1)]
            }
        }
    }
}

/// The chosen texts under one head, those with unknown targets left out.
fn column<'a>(judged: &'a [Vec<Judged>], head: usize, chosen: &[usize]) -> Vec<&'a Judged> {
    chosen
        .iter()
        .filter_map(|&index| judged.get(index)?.get(head))
        .filter(|judged| judged.target.is_some())
        .collect()
}

/// The lowest of the levels that [`Figures`] calls top.
fn top_level(head: &Head) -> usize {
    let levels = head.classes();
    levels - if levels > 3 { 2 } else { 1 }
}

fn figures(head: &Head, judged: &[&Judged]) -> Vec<(&'static str, Option<f64>)> {
    if judged.is_empty() {
        return Vec::new();
    }
    let counts = |label: usize| Counts::of(judged.iter().map(|judged| judged.label(label)));
    let average = |label: usize| {
        let scored = judged.iter().filter_map(|judged| {
            let probability = *judged.probabilities.by_label().get(label)?;
            Some((probability, judged.label(label).1))
        });
        average_precision(&scored.collect::<Vec<_>>())
    };
    let confusion = || {
        let pairs = judged.iter().filter_map(|judged| judged.classes());
        Confusion::new(head.classes(), pairs)
    };
    let mut figures = match head.kind() {
        HeadKind::MultiLabel => {
            // A label that holds nowhere and is never given says nothing.
            let labels: Vec<Counts> = (0..head.labels().len()).map(counts).collect();
            let held: Vec<f64> = labels
                .iter()
                .filter(|counts| **counts != Counts::default())
                .map(|counts| counts.f1())
                .collect();
            let micro = labels.iter().copied().fold(Counts::default(), Counts::plus);
            let averages: Vec<f64> = (0..head.labels().len()).filter_map(average).collect();
            let defined = |values: Vec<f64>| (!values.is_empty()).then(|| mean(values));
            let exact = judged.iter().map(|judged| match judged.labels() {
                Some((truth, given)) => f64::from(u8::from(
                    truth.len() == given.len() && truth.iter().all(|label| given.contains(label)),
                )),
                None => 0.0,
            });
            vec![
                ("macro_f1", defined(held)),
                ("micro_f1", Some(micro.f1())),
                ("micro_precision", Some(micro.precision())),
                ("micro_recall", Some(micro.recall())),
                ("mean_average_precision", defined(averages)),
                ("exact_match", Some(mean(exact))),
            ]
        }
        HeadKind::SingleLabel => {
            let confusion = confusion();
            vec![
                ("accuracy", Some(confusion.accuracy())),
                ("macro_f1", Some(confusion.macro_f1())),
            ]
        }
        HeadKind::Ordinal => {
            let confusion = confusion();
            let top = confusion.at_least(top_level(head));
            let any = top.true_positives + top.false_negatives > 0;
            let given = top.true_positives + top.false_positives > 0;
            vec![
                ("accuracy", Some(confusion.accuracy())),
                ("within_one", Some(confusion.within_one())),
                (
                    "quadratic_weighted_kappa",
                    confusion.quadratic_weighted_kappa(),
                ),
                ("top_recall", any.then(|| top.recall())),
                ("top_precision", given.then(|| top.precision())),
            ]
        }
        HeadKind::Binary => {
            let yes = counts(0);
            vec![
                ("accuracy", Some(confusion().accuracy())),
                ("precision", Some(yes.precision())),
                ("recall", Some(yes.recall())),
                ("f1", Some(yes.f1())),
                ("average_precision", average(0)),
            ]
        }
    };
    let claims: Vec<(f32, bool)> = judged.iter().flat_map(|judged| judged.claims()).collect();
    figures.push((
        "calibration_error",
        Some(expected_calibration_error(&claims, CALIBRATION_BINS)),
    ));
    figures.push(("brier", Some(brier(&claims))));
    figures
}

/// How many confusions a head's evaluation names.
const CONFUSIONS: usize = 12;

/// How many reports [`Evaluation::hardest`] names.
const HARDEST: usize = 25;

fn head_evaluation(head: &Head, judged: &[&Judged], figures: Figures) -> HeadEvaluation {
    let labels = head.labels().iter().enumerate().map(|(index, label)| {
        let counts = Counts::of(judged.iter().map(|judged| judged.label(index)));
        let scored: Vec<(f32, bool)> = judged
            .iter()
            .filter_map(|judged| {
                let probability = *judged.probabilities.by_label().get(index)?;
                Some((probability, judged.label(index).1))
            })
            .collect();
        LabelEvaluation {
            code: label.code().to_owned(),
            name: label.name().to_owned(),
            reports: counts.true_positives + counts.false_negatives,
            found: counts.true_positives,
            false_alarms: counts.false_positives,
            missed: counts.false_negatives,
            precision: counts.precision(),
            recall: counts.recall(),
            f1: counts.f1(),
            average_precision: average_precision(&scored),
        }
    });
    let confusion = match head.kind() {
        HeadKind::MultiLabel => Vec::new(),
        _ => {
            let pairs = judged.iter().filter_map(|judged| judged.classes());
            Confusion::new(head.classes(), pairs).rows().to_vec()
        }
    };
    let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for judged in judged {
        match (judged.labels(), judged.classes()) {
            (Some((truth, given)), _) => {
                for &missed in truth.iter().filter(|label| !given.contains(label)) {
                    for &wrong in given.iter().filter(|label| !truth.contains(label)) {
                        *pairs.entry((missed, wrong)).or_default() += 1;
                    }
                }
            }
            (_, Some((truth, decided))) if truth != decided => {
                *pairs.entry((truth, decided)).or_default() += 1;
            }
            _ => {}
        }
    }
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|&(pair, reports)| (std::cmp::Reverse(reports), pair));
    pairs.truncate(CONFUSIONS);
    let code = |index: usize| match (head.kind(), index) {
        (HeadKind::Binary, 0) => "false".to_owned(),
        (HeadKind::Binary, _) => "true".to_owned(),
        _ => head
            .labels()
            .get(index)
            .map_or_else(String::new, |label| label.code().to_owned()),
    };
    HeadEvaluation {
        name: head.name().to_owned(),
        reports: judged.len(),
        figures,
        labels: labels.collect(),
        confusion,
        confused: pairs
            .into_iter()
            .map(|((missed, given), reports)| ConfusedPair {
                missed: code(missed),
                given: code(given),
                reports,
            })
            .collect(),
    }
}

/// Reports are in groups by their ids: these must be told apart and be known.
pub(crate) fn check_groupings(groupings: &[Grouping], reports: &[LabelledReport]) -> Result<()> {
    let invalid = |message| Err(Error::new(ErrorKind::InvalidData, message));
    let mut ids = BTreeSet::new();
    for LabelledReport { id, .. } in reports {
        if !ids.insert(id) && !groupings.is_empty() {
            return invalid(format!(
                "the id {id:?} stands twice among the reports, so its groups are not known"
            ));
        }
    }
    for Grouping { by, groups } in groupings {
        if !groups.keys().any(|id| ids.contains(id)) {
            return invalid(format!(
                "the grouping by {by:?} holds none of the reports' ids"
            ));
        }
    }
    Ok(())
}

/// The parts that figures are given for: what by, which, and who is in it.
fn groups(
    taxonomy: &Taxonomy,
    reports: &[LabelledReport],
    groupings: &[Grouping],
) -> Vec<(String, String, Vec<usize>)> {
    /// Bounds between the length classes, in characters.
    const BOUNDS: [usize; 3] = [250, 500, 1000];
    let names = [
        format!("under {}", BOUNDS[0]),
        format!("{} to {}", BOUNDS[0], BOUNDS[1] - 1),
        format!("{} to {}", BOUNDS[1], BOUNDS[2] - 1),
        format!("{} and more", BOUNDS[2]),
    ];
    let mut groups = Vec::new();
    let mut part = |by: &str, group: &str, members: Vec<usize>| {
        if !members.is_empty() {
            groups.push((by.to_owned(), group.to_owned(), members));
        }
    };
    let indices = |test: &dyn Fn(&LabelledReport) -> bool| -> Vec<usize> {
        let reports = reports.iter().enumerate();
        reports
            .filter_map(|(index, report)| test(report).then_some(index))
            .collect()
    };
    for (class, name) in names.iter().enumerate() {
        let within = |report: &LabelledReport| {
            let length = report.text.chars().count();
            BOUNDS.iter().filter(|&&bound| length >= bound).count() == class
        };
        part("length", name, indices(&within));
    }
    for (index, head) in taxonomy.heads().iter().enumerate() {
        if head.kind() != HeadKind::SingleLabel {
            continue;
        }
        for (class, label) in head.labels().iter().enumerate() {
            let has = |report: &LabelledReport| {
                report.targets.get(index) == Some(&Some(Target::Class(class)))
            };
            part(head.name(), label.code(), indices(&has));
        }
    }
    for Grouping { by, groups } in groupings {
        let names: BTreeSet<&String> = groups.values().collect();
        for name in names {
            let has = |report: &LabelledReport| groups.get(&report.id) == Some(name);
            part(by, name, indices(&has));
        }
    }
    groups
}

fn hardest(
    taxonomy: &Taxonomy,
    reports: &[LabelledReport],
    judged: &[Vec<Judged>],
) -> Vec<HardReport> {
    let mut hard: Vec<HardReport> = reports
        .iter()
        .zip(judged)
        .map(|(report, judged)| {
            let known = || {
                taxonomy
                    .heads()
                    .iter()
                    .zip(judged)
                    .filter(|(_, j)| j.target.is_some())
            };
            HardReport {
                id: report.id.clone(),
                loss: known().map(|(_, judged)| loss(judged)).sum(),
                wrong: known()
                    .filter(|(head, judged)| {
                        (0..head.labels().len()).any(|label| {
                            let (given, holds) = judged.label(label);
                            given != holds
                        })
                    })
                    .map(|(head, _)| head.name().to_owned())
                    .collect(),
            }
        })
        .collect();
    hard.sort_by(|a, b| b.loss.total_cmp(&a.loss));
    hard.truncate(HARDEST);
    hard
}

/// The mean negative log-likelihood of a head's target.
fn loss(judged: &Judged) -> f64 {
    // A probability of 0 that came true costs no more than this.
    let cost = |probability: f32| -f64::from(probability.max(1e-6)).ln();
    let by_label = judged.probabilities.by_label();
    match (&judged.probabilities, judged.classes()) {
        (HeadProbabilities::MultiLabel(_) | HeadProbabilities::Binary(_), _) => {
            mean(by_label.iter().enumerate().map(|(label, &probability)| {
                if judged.label(label).1 {
                    cost(probability)
                } else {
                    cost(1.0 - probability)
                }
            }))
        }
        (_, Some((truth, _))) => by_label
            .get(truth)
            .map_or(0.0, |&probability| cost(probability)),
        _ => 0.0,
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calibration = if self.cross_fitted {
            "calibration fitted in five folds, each measured on the reports it has not seen"
        } else {
            "the model's own calibration"
        };
        writeln!(
            f,
            "{} {} on {} reports, {calibration}",
            self.model.name(),
            self.model.version(),
            self.reports
        )?;
        for head in &self.heads {
            writeln!(f, "\n{} ({} reports)", head.name, head.reports)?;
            for (name, figure) in head.figures.iter() {
                write!(f, "  {name:26} {:.3}", figure.value)?;
                match figure.interval {
                    Some(Interval { low, high }) => writeln!(f, "  [{low:.3}, {high:.3}]")?,
                    None => writeln!(f)?,
                }
            }
            if head.labels.len() > 1 {
                let width = head.labels.iter().map(|label| label.code.chars().count());
                let width = width.max().unwrap_or(0).max(5);
                writeln!(
                    f,
                    "  {:width$} reports  found  false  missed  precision  recall     F1     AP",
                    "label"
                )?;
                for label in &head.labels {
                    write!(
                        f,
                        "  {:width$} {:7} {:6} {:6} {:7}  {:9.3} {:7.3} {:6.3} ",
                        label.code,
                        label.reports,
                        label.found,
                        label.false_alarms,
                        label.missed,
                        label.precision,
                        label.recall,
                        label.f1
                    )?;
                    match label.average_precision {
                        Some(value) => writeln!(f, "{value:6.3}")?,
                        None => writeln!(f, "     -")?,
                    }
                }
                if !head.confused.is_empty() {
                    writeln!(f, "  most often missed, with what was given instead:")?;
                }
                for pair in &head.confused {
                    writeln!(f, "  {:4}  {} -> {}", pair.reports, pair.missed, pair.given)?;
                }
            }
        }
        self.write_groups(f)?;
        writeln!(f, "\nhardest reports (loss, wrong heads)")?;
        for report in &self.hardest {
            writeln!(
                f,
                "  {:6.2}  {}  {}",
                report.loss,
                report.id,
                report.wrong.join(" ")
            )?;
        }
        Ok(())
    }
}

impl Evaluation {
    /// One table of each head's first figure (macro F1, accuracy) and, where
    /// there is one, kappa and the recall of the top levels.
    fn write_groups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: [(&str, &str); 5] = [
            ("macro_f1", "macro F1"),
            ("micro_f1", "micro F1"),
            ("accuracy", "accuracy"),
            ("quadratic_weighted_kappa", "kappa"),
            ("top_recall", "top recall"),
        ];
        let width = self.groups.iter().map(|group| group.group.chars().count());
        let width = width.max().unwrap_or(0);
        let mut by = "";
        for group in &self.groups {
            if group.by != by {
                by = &group.by;
                writeln!(f, "\nby {by}")?;
            }
            write!(f, "  {:width$} {:5} reports", group.group, group.reports)?;
            for (head, figures) in &group.heads {
                if head == by {
                    continue;
                }
                let shown: Vec<String> = SHOWN
                    .iter()
                    .filter_map(|(name, short)| {
                        Some(format!("{short} {:.2}", figures.get(name)?.value))
                    })
                    .collect();
                if !shown.is_empty() {
                    write!(f, "; {head}: {}", shown.join(", "))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(
            "version = '1'\n\
             [heads.area]\nkind = 'multi_label'\n\
             [area]\na = 'A'\nb = 'B'\nc = 'C'\n\
             [topic]\nx = 'X'\ny = 'Y'\n\
             [level]\n0 = '0'\n1 = '1'\n2 = '2'\n3 = '3'\n4 = '4'\n\
             [urgent]\nurgent = 'now'\n",
        )
        .unwrap()
    }

    /// A text with its true and its decided answers: areas, topic, level,
    /// urgent. The decisions are made sure by large logits.
    struct Case {
        length: usize,
        truth: (&'static [usize], usize, usize, usize),
        decided: (&'static [usize], usize, usize, usize),
    }

    const CASES: [Case; 5] = [
        Case {
            length: 100,
            truth: (&[0, 2], 0, 4, 1),
            decided: (&[0], 0, 4, 1),
        },
        Case {
            length: 249,
            truth: (&[1], 0, 3, 0),
            decided: (&[1, 2], 1, 2, 1),
        },
        Case {
            length: 250,
            truth: (&[0, 1], 1, 0, 0),
            decided: (&[0, 2], 1, 0, 0),
        },
        Case {
            length: 700,
            truth: (&[], 1, 2, 1),
            decided: (&[], 1, 4, 0),
        },
        Case {
            length: 1500,
            truth: (&[2], 1, 1, 0),
            decided: (&[1, 2], 1, 1, 0),
        },
    ];

    fn cases() -> (Vec<LabelledReport>, Vec<RawLogits>) {
        let cases = CASES.iter().enumerate().map(|(index, case)| {
            let (areas, topic, level, urgent) = case.truth;
            let report = LabelledReport {
                id: format!("case {index}"),
                text: "å".repeat(case.length),
                targets: vec![
                    Some(Target::Labels(areas.to_vec())),
                    Some(Target::Class(topic)),
                    Some(Target::Class(level)),
                    Some(Target::Class(urgent)),
                ],
                evidence: Vec::new(),
            };
            let mut logits = vec![-3.0f32; 10];
            let (areas, topic, level, urgent) = case.decided;
            areas.iter().for_each(|&area| logits[area] = 3.0);
            logits[3 + topic] = 3.0;
            logits[5..5 + level].fill(3.0);
            logits[9] = if urgent == 1 { 3.0 } else { -3.0 };
            let raw = RawLogits {
                encoder: Some(logits),
                ..RawLogits::default()
            };
            (report, raw)
        });
        cases.unzip()
    }

    fn measured(options: &EvaluationOptions) -> Evaluation {
        let taxonomy = taxonomy();
        let (reports, raw) = cases();
        let model = ModelInfo::new("tiny", "1.0.0", "00", "1", crate::Precision::F32);
        let calibration = Calibration::neutral(&taxonomy);
        measure(&taxonomy, &model, &calibration, &reports, &raw, options).unwrap()
    }

    fn quick() -> EvaluationOptions {
        EvaluationOptions {
            bootstrap: 50,
            ..EvaluationOptions::default()
        }
    }

    fn figure(evaluation: &Evaluation, head: &str, name: &str) -> f64 {
        let head = evaluation.head(head).unwrap();
        head.figures.get(name).unwrap().value
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        let evaluation = measured(&quick());
        let close = |head: &str, name: &str, expected: f64| {
            let found = figure(&evaluation, head, name);
            assert!((found - expected).abs() < 1e-6, "{head} {name} {found}");
        };
        // a: 2 found. b: 1 found, 1 false, 1 missed. c: 1 found, 2 false, 1
        // missed.
        close("area", "macro_f1", (1.0 + 0.5 + 0.4) / 3.0);
        close("area", "micro_f1", 8.0 / 13.0);
        close("area", "micro_precision", 4.0 / 7.0);
        close("area", "micro_recall", 4.0 / 6.0);
        close("area", "exact_match", 0.2);
        close("topic", "accuracy", 0.8);
        close("level", "accuracy", 0.6);
        close("level", "within_one", 0.8);
        close("level", "top_recall", 0.5);
        close("level", "top_precision", 0.5);
        // sklearn.metrics.cohen_kappa_score([4, 3, 0, 2, 1], [4, 2, 0, 4, 1],
        // weights="quadratic").
        close("level", "quadratic_weighted_kappa", 0.782_608_695_7);
        close("urgent", "accuracy", 0.6);
        close("urgent", "f1", 0.5);
        // Two of five answers are wrong, all with the certainty s =
        // sigmoid(3): mean p is (2 s + 3 (1 - s)) / 5, in two bins.
        let sure = 1.0 / (1.0 + (-3.0f64).exp());
        let gap = (2.0 * sure - 1.0).abs() + (3.0 * (1.0 - sure) - 1.0).abs();
        close("urgent", "calibration_error", gap / 5.0);
        let urgent = &evaluation.head("urgent").unwrap();
        assert_eq!(urgent.confusion, [[2, 1], [1, 1]]);
    }

    #[test]
    fn confusions_are_named_by_code() {
        let evaluation = measured(&quick());
        let area = evaluation.head("area").unwrap();
        let pairs: Vec<_> = area
            .confused
            .iter()
            .map(|pair| (pair.missed.as_str(), pair.given.as_str(), pair.reports))
            .collect();
        assert_eq!(pairs, [("b", "c", 1)]);
        assert_eq!(area.labels[2].false_alarms, 2);
        assert_eq!(area.labels[2].missed, 1);
        let level = evaluation.head("level").unwrap();
        assert_eq!(level.confused.len(), 2);
        assert_eq!(level.confused[0].missed, "2");
        assert_eq!(level.confused[0].given, "4");
    }

    #[test]
    fn groups_part_reports_by_what_is_known_of_them() {
        let by = |pairs: &[(&str, &str)]| Grouping {
            by: "writer".to_owned(),
            groups: pairs
                .iter()
                .map(|(id, group)| ((*id).to_owned(), (*group).to_owned()))
                .collect(),
        };
        let options = EvaluationOptions {
            groupings: vec![by(&[
                ("case 0", "staff"),
                ("case 1", "relative"),
                ("case 2", "staff"),
                ("elsewhere", "nobody"),
            ])],
            ..quick()
        };
        let groups: Vec<_> = measured(&options)
            .groups
            .into_iter()
            .filter(|group| group.by == "writer")
            .map(|group| (group.group, group.reports))
            .collect();
        assert_eq!(
            groups,
            [("relative".to_owned(), 1), ("staff".to_owned(), 2)]
        );

        let (reports, _) = cases();
        let error = check_groupings(&[by(&[("elsewhere", "nobody")])], &reports).unwrap_err();
        assert!(error.to_string().contains("none of the reports' ids"));
        let twice = [reports[0].clone(), reports[0].clone()];
        let error = check_groupings(&[by(&[("case 0", "staff")])], &twice).unwrap_err();
        assert!(error.to_string().contains("\"case 0\" stands twice"));
        check_groupings(&[], &twice).unwrap();
    }

    #[test]
    fn groupings_are_read_and_faults_are_named_by_line() {
        let read = |content: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("groups.csv");
            std::fs::write(&path, content).unwrap();
            read_groupings(&path).map_err(|error| error.to_string())
        };
        let groupings = read(b"\xef\xbb\xbfwriter,id,style\nstaff,1,formal\n,2,plain\n").unwrap();
        assert_eq!(groupings.len(), 2);
        assert_eq!(groupings[0].by, "writer");
        assert_eq!(groupings[0].groups, [("1".into(), "staff".into())].into());
        assert_eq!(groupings[1].groups.len(), 2);
        let by_semicolons = read(b"writer;id;style\r\nstaff;1;formal\r\n;2;plain\r\n");
        assert_eq!(by_semicolons.unwrap(), groupings);
        for (content, fault) in [
            (&b"name,writer\n1,staff\n"[..], "no column `id`"),
            (
                b"id,writer\n1,staff\n1,self\n",
                "line 3: the id \"1\" stands twice",
            ),
            (
                b"id,writer\n1,staff,formal\n",
                "line 2: 3 cells where the header has 2",
            ),
            (b"id,writer\n1,st\xe5ff\n", "line 2: not UTF-8"),
        ] {
            let error = read(content).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
    }

    #[test]
    fn groups_part_reports_by_length_and_by_single_labels() {
        let evaluation = measured(&quick());
        let groups: Vec<_> = evaluation
            .groups
            .iter()
            .map(|group| (group.by.as_str(), group.group.as_str(), group.reports))
            .collect();
        assert_eq!(
            groups,
            [
                ("length", "under 250", 2),
                ("length", "250 to 499", 1),
                ("length", "500 to 999", 1),
                ("length", "1000 and more", 1),
                ("topic", "x", 2),
                ("topic", "y", 3),
            ]
        );
        let (head, figures) = &evaluation.groups[0].heads[1];
        assert_eq!(head, "topic");
        assert_eq!(figures.get("accuracy").unwrap().value, 0.5);
    }

    #[test]
    fn the_hardest_reports_come_first_and_show_no_text() {
        let evaluation = measured(&quick());
        assert_eq!(evaluation.hardest.len(), 5);
        assert_eq!(evaluation.hardest[0].id, "case 1");
        assert_eq!(
            evaluation.hardest[0].wrong,
            ["area", "topic", "level", "urgent"]
        );
        let json = serde_json::to_string(&evaluation).unwrap();
        assert!(!json.contains("åå") && !evaluation.to_string().contains("åå"));
    }

    #[test]
    fn intervals_hold_the_figure_and_come_from_the_seed() {
        let first = measured(&quick());
        assert_eq!(first, measured(&quick()));
        let Figure { value, interval } = first
            .head("level")
            .unwrap()
            .figures
            .get("accuracy")
            .unwrap();
        let interval = interval.unwrap();
        assert!(interval.low <= value && value <= interval.high);
        let none = EvaluationOptions {
            bootstrap: 0,
            ..EvaluationOptions::default()
        };
        let accuracy = measured(&none)
            .head("level")
            .unwrap()
            .figures
            .get("accuracy");
        assert_eq!(accuracy.unwrap().interval, None);
    }

    #[test]
    fn unknown_targets_are_left_out() {
        let taxonomy = taxonomy();
        let (mut reports, raw) = cases();
        reports[1].targets = vec![None; 4];
        for report in &mut reports {
            report.targets[3] = None;
        }
        let model = ModelInfo::new("tiny", "1.0.0", "00", "1", crate::Precision::F32);
        let calibration = Calibration::neutral(&taxonomy);
        let evaluation =
            measure(&taxonomy, &model, &calibration, &reports, &raw, &quick()).unwrap();
        assert_eq!(evaluation.head("topic").unwrap().reports, 4);
        assert_eq!(figure(&evaluation, "topic", "accuracy"), 1.0);
        assert_eq!(evaluation.head("urgent").unwrap().figures.iter().count(), 0);
    }

    #[test]
    fn json_has_each_head_by_name() {
        let json = serde_json::to_value(measured(&quick())).unwrap();
        let accuracy = &json["heads"]["topic"]["figures"]["accuracy"];
        assert_eq!(accuracy["value"], 0.8);
        assert!(accuracy["low"].is_number() && accuracy["high"].is_number());
        assert_eq!(json["heads"]["area"]["labels"][0]["code"], "a");
        assert_eq!(json["cross_fitted"], false);
        let table = measured(&quick()).to_string();
        assert!(
            table.contains("quadratic_weighted_kappa   0.783"),
            "{table}"
        );
    }

    #[test]
    fn too_few_reports_are_refused() {
        let taxonomy = taxonomy();
        let (reports, raw) = cases();
        let model = ModelInfo::new("tiny", "1.0.0", "00", "1", crate::Precision::F32);
        let calibration = Calibration::neutral(&taxonomy);
        let mut options = quick();
        options.cross_fit = true;
        let result = measure(
            &taxonomy,
            &model,
            &calibration,
            &reports[..4],
            &raw[..4],
            &options,
        );
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
