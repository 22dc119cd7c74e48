//! Flat columns.

use super::AssessmentWriter;
use crate::assessment::{Assessment, LabelOutcome, Outcome, Probability};
use crate::taxonomy::{HeadKind, Taxonomy};
use std::io::{self, Write};

/// Writes each assessment as a row of columns separated by semicolons, which
/// is what spreadsheets expect in Sweden.
///
/// The columns are `id`; one for each head, under its field's name: label
/// codes (several joined by `|`), a level, or `true` or `false`; then
/// `{head}_probability`, or `{head}_probabilities` joined by `|` for several
/// labels (in the order of the codes) and for levels (lowest first); on
/// demand `{head}_{code}` for every label; and at last where the row comes
/// from: `model`, `model_version`, `model_sha256`, `taxonomy`, `engine`,
/// `input_sha256`.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::{AssessmentWriter, CsvWriter};
/// use lyhord::{Classifier, Report};
///
/// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
/// let mut csv = Vec::new();
/// let mut writer = CsvWriter::new(&mut csv, classifier.taxonomy(), false)?;
/// writer.write(&classifier.assess(&Report::new("Ingen kom.").with_id("7"))?)?;
/// writer.finish()?;
/// drop(writer);
/// let csv = String::from_utf8_lossy(&csv);
/// assert!(csv.starts_with("id;report_type;sector;risk_areas;severity;harm;danger;"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CsvWriter<W: Write> {
    writer: csv::Writer<W>,
    all_probabilities: bool,
}

impl<W: Write> CsvWriter<W> {
    /// Writes to `writer`, column names first. With `all_probabilities` every
    /// label of heads with several has a column of its own too.
    ///
    /// # Errors
    ///
    /// When the names cannot be written.
    pub fn new(writer: W, taxonomy: &Taxonomy, all_probabilities: bool) -> io::Result<Self> {
        let mut writer = csv::WriterBuilder::new()
            .delimiter(b';')
            .from_writer(writer);
        let names = names(taxonomy, all_probabilities);
        writer.write_record(&names).map_err(unwrapped)?;
        Ok(Self {
            writer,
            all_probabilities,
        })
    }
}

impl<W: Write> AssessmentWriter for CsvWriter<W> {
    fn write(&mut self, assessment: &Assessment) -> io::Result<()> {
        let values = values(assessment, self.all_probabilities);
        self.writer.write_record(&values).map_err(unwrapped)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The column names.
pub(super) fn names(taxonomy: &Taxonomy, all_probabilities: bool) -> Vec<String> {
    let heads = taxonomy.heads();
    let mut names = vec!["id".to_owned()];
    names.extend(heads.iter().map(|head| head.field().to_owned()));
    names.extend(heads.iter().map(|head| match head.kind() {
        HeadKind::MultiLabel | HeadKind::Ordinal => format!("{}_probabilities", head.name()),
        _ => format!("{}_probability", head.name()),
    }));
    if all_probabilities {
        for head in heads.iter().filter(|head| has_labels(head.kind())) {
            let codes = head.labels().iter().map(|label| label.code());
            names.extend(codes.map(|code| format!("{}_{code}", head.name())));
        }
    }
    names.extend(
        [
            "model",
            "model_version",
            "model_sha256",
            "taxonomy",
            "engine",
            "input_sha256",
        ]
        .map(str::to_owned),
    );
    names
}

/// A row's cells.
pub(super) fn values(assessment: &Assessment, all_probabilities: bool) -> Vec<String> {
    let mut values = vec![assessment.id().unwrap_or_default().to_owned()];
    let mut probabilities = Vec::new();
    for (_, outcome) in assessment.outcomes() {
        let (value, probability) = match &outcome {
            Outcome::Labels(labels) => (
                joined(labels.iter().map(LabelOutcome::code)),
                joined(labels.iter().map(|label| decimal(label.probability()))),
            ),
            Outcome::Label(label) => (label.code().to_owned(), decimal(label.probability())),
            Outcome::Level(level) => (
                level.level().to_string(),
                joined(level.probabilities().iter().map(|&each| decimal(each))),
            ),
            Outcome::Binary(answer) => (answer.value().to_string(), decimal(answer.probability())),
        };
        values.push(value);
        probabilities.push(probability);
    }
    values.append(&mut probabilities);
    if all_probabilities {
        let heads = assessment.taxonomy().heads().iter();
        for head in heads.filter(|head| has_labels(head.kind())) {
            let labels = assessment.probabilities(head.name());
            values.extend(labels.map(|label| decimal(label.probability())));
        }
    }
    let model = assessment.model();
    values.extend(
        [
            model.name(),
            model.version(),
            model.sha256(),
            model.taxonomy(),
            assessment.engine(),
            assessment.input_sha256(),
        ]
        .map(str::to_owned),
    );
    values
}

/// The error of what is written to, which callers look for: a closed pipe is
/// no fault.
pub(super) fn unwrapped(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        _ => io::Error::other("the rows have different numbers of columns"),
    }
}

fn has_labels(kind: HeadKind) -> bool {
    matches!(kind, HeadKind::MultiLabel | HeadKind::SingleLabel)
}

/// As in JSON, so that both formats give the same numbers.
fn decimal(probability: Probability) -> String {
    probability.rounded().to_string()
}

fn joined(values: impl Iterator<Item = impl ToString>) -> String {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    values.join("|")
}
