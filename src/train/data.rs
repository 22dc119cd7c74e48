//! Labelled reports: read from JSON Lines, checked against a taxonomy.

use crate::error::{Error, ErrorKind, Result};
use crate::taxonomy::{Head, HeadKind, Taxonomy};
use crate::text::NormalisedText;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

/// The right answer for one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Places of the labels of a multi-label head that hold, ascending.
    Labels(Vec<usize>),
    /// The place of the label of a single-label head, the level counted from 0
    /// of an ordinal head, or 0 (no) and 1 (yes) for a binary head.
    Class(usize),
}

impl Target {
    /// Whether the logit at `place` of a head should be high: the label holds,
    /// the class is this one, the level is above this step, the answer is yes.
    pub(crate) fn holds(&self, kind: HeadKind, place: usize) -> bool {
        match (kind, self) {
            (_, Self::Labels(labels)) => labels.contains(&place),
            (HeadKind::SingleLabel, Self::Class(class)) => *class == place,
            (_, Self::Class(level)) => *level > place,
        }
    }
}

/// The words of a text that carry one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The label-attention query of the label, see [`Head::queries`].
    pub query: usize,
    /// Where the words stand, in Unicode code points.
    pub spans: Vec<Range<usize>>,
}

/// One report with its labels.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelledReport {
    /// The record's `id`, or its line number where it has none.
    pub id: String,
    /// The report's text.
    pub text: String,
    /// One target for each head of the taxonomy; `None` where it is unknown.
    pub targets: Vec<Option<Target>>,
    /// Marked evidence; empty where there is none.
    pub evidence: Vec<Evidence>,
}

impl std::fmt::Debug for LabelledReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LabelledReport")
            .field("id", &self.id)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// Reads labelled reports, one JSON object a line.
///
/// Each object has `text`, optionally `id`, for each head of the taxonomy its
/// field (`null` or absent when unknown), and optionally `evidence`: a map from
/// a label code or head name to spans `[start, end)` of code points. Multi-label
/// fields hold an array of codes, single-label fields a code, ordinal fields a
/// whole number, binary fields `true` or `false`.
///
/// # Errors
///
/// [`ErrorKind::Io`] when the file cannot be read, [`ErrorKind::InvalidData`]
/// naming file, line and field for a record that does not fit the taxonomy.
///
/// # Examples
///
/// ```
/// use lyhord::{Taxonomy, train};
///
/// let taxonomy = Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml")?;
/// let reports = train::read_labelled("fixtures/snippets.dev.jsonl", &taxonomy)?;
/// assert_eq!(reports.len(), 398);
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn read_labelled(path: impl AsRef<Path>, taxonomy: &Taxonomy) -> Result<Vec<LabelledReport>> {
    let path = path.as_ref();
    let file = std::fs::File::open(path).map_err(|error| Error::io(path, "open", error))?;
    let mut reports = Vec::new();
    let mut ids = HashSet::new();
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(|error| Error::io(path, "read", error))?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let report = parse(&line, index + 1, taxonomy).map_err(|message| {
            let place = format!("{}, line {}", path.display(), index + 1);
            Error::new(ErrorKind::InvalidData, format!("{place}: {message}"))
        })?;
        if !ids.insert(report.id.clone()) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "{}, line {}: the id \"{}\" stands twice; ids must be unique so that no report is in two folds",
                    path.display(),
                    index + 1,
                    report.id
                ),
            ));
        }
        reports.push(report);
    }
    if reports.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("{} holds no records", path.display()),
        ));
    }
    Ok(reports)
}

fn parse(line: &[u8], number: usize, taxonomy: &Taxonomy) -> Result<LabelledReport, String> {
    let record: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
        // serde_json's own message may quote the text, so only the place is told.
        format!("column {}: not a JSON object", error.column())
    })?;
    let text = match record.get("text") {
        Some(Value::String(text)) if !NormalisedText::new(text).as_str().trim().is_empty() => {
            text.clone()
        }
        _ => return Err("the field `text` must hold a text with something to read in it".into()),
    };
    let id = match record.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        None | Some(Value::Null) => number.to_string(),
        Some(_) => return Err("the field `id` must hold a text or a number".into()),
    };
    let targets = taxonomy
        .heads()
        .iter()
        .map(|head| target(head, record.get(head.field())))
        .collect::<Result<Vec<_>, _>>()?;
    let evidence = evidence(&record, taxonomy, text.chars().count())?;
    contradiction(taxonomy, &targets, &evidence)?;
    Ok(LabelledReport {
        id,
        text,
        targets,
        evidence,
    })
}

/// Evidence for a label that the report is said not to have would teach both.
fn contradiction(
    taxonomy: &Taxonomy,
    targets: &[Option<Target>],
    evidence: &[Evidence],
) -> Result<(), String> {
    for (head, target) in taxonomy.heads().iter().zip(targets) {
        let Some(Target::Labels(labels)) = target else {
            continue;
        };
        for query in evidence.iter().map(|evidence| evidence.query) {
            let label = query.wrapping_sub(head.queries().start);
            if head.queries().contains(&query) && !labels.contains(&label) {
                let code = head.labels().get(label).map_or("", |label| label.code());
                let field = head.field();
                return Err(format!(
                    "`evidence` marks \"{code}\", which `{field}` lacks"
                ));
            }
        }
    }
    Ok(())
}

/// A code for an error message, unless it could be a text in the wrong field.
fn shown(code: &str) -> String {
    let like_a_code = code.len() <= 40 && !code.contains(char::is_whitespace);
    match like_a_code {
        true => format!(": {code:?}"),
        false => String::new(),
    }
}

fn target(head: &Head, value: Option<&Value>) -> Result<Option<Target>, String> {
    let field = head.field();
    let index = |code: &Value| {
        let Value::String(code) = code else {
            return Err(format!(
                "the field `{field}` must hold label codes in quotes"
            ));
        };
        head.label_index(code).ok_or_else(|| {
            format!(
                "the field `{field}` holds a code that the taxonomy lacks{}",
                shown(code)
            )
        })
    };
    let value = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let target = match (head.kind(), value) {
        (HeadKind::MultiLabel, Value::Array(codes)) => {
            let mut labels = codes.iter().map(index).collect::<Result<Vec<_>, _>>()?;
            labels.sort_unstable();
            labels.dedup();
            Target::Labels(labels)
        }
        (HeadKind::MultiLabel, _) => {
            return Err(format!(
                "the field `{field}` must hold a list of label codes"
            ));
        }
        (HeadKind::SingleLabel, code) => Target::Class(index(code)?),
        (HeadKind::Binary, Value::Bool(value)) => Target::Class(usize::from(*value)),
        (HeadKind::Binary, _) => {
            return Err(format!("the field `{field}` must hold true or false"));
        }
        (HeadKind::Ordinal, value) => value
            .as_u64()
            .and_then(|level| level.checked_sub(u64::from(head.first_level())))
            .and_then(|level| usize::try_from(level).ok())
            .filter(|level| *level < head.labels().len())
            .map(Target::Class)
            .ok_or_else(|| {
                let last = usize::from(head.first_level()) + head.labels().len() - 1;
                format!(
                    "the field `{field}` must hold a whole number from {} to {last}",
                    head.first_level()
                )
            })?,
    };
    Ok(Some(target))
}

fn evidence(
    record: &Map<String, Value>,
    taxonomy: &Taxonomy,
    chars: usize,
) -> Result<Vec<Evidence>, String> {
    let map = match record.get("evidence") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err("the field `evidence` must map labels to spans".into()),
    };
    let mut evidence = Vec::with_capacity(map.len());
    for (key, spans) in map {
        let query = taxonomy
            .heads()
            .iter()
            .find_map(|head| match head.kind() {
                HeadKind::MultiLabel => head.label_index(key).map(|i| head.queries().start + i),
                _ => (head.name() == key).then_some(head.queries().start),
            })
            .ok_or_else(|| format!("`evidence` names neither a head nor a label{}", shown(key)))?;
        let spans: Vec<[usize; 2]> = serde_json::from_value(spans.clone())
            .map_err(|_| format!("`evidence` for {key:?} must be a list of [start, end]"))?;
        if spans
            .iter()
            .any(|[start, end]| start >= end || *end > chars)
        {
            return Err(format!(
                "`evidence` for {key:?} has a span that is empty or ends after the text"
            ));
        }
        evidence.push(Evidence {
            query,
            spans: spans.into_iter().map(|[start, end]| start..end).collect(),
        });
    }
    Ok(evidence)
}
