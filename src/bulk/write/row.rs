//! Rows of a backlog: assessments with what the run knows about them.

use super::csv;
use crate::assessment::Assessment;
use crate::bulk::Kept;
use crate::taxonomy::Taxonomy;
use serde_json::Value;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

/// What stands in the row beside the assessment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extras<'a> {
    /// The row's own id: a repeat has the assessment of another row.
    pub(crate) id: Option<&'a str>,
    pub(crate) duplicate_of: Option<&'a Arc<str>>,
    pub(crate) group: Option<&'a Arc<str>>,
    pub(crate) kept: &'a Kept,
}

/// What rows look like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Whether every label's probability is written.
    pub(crate) all_probabilities: bool,
    /// Whether CSV has a column for `duplicate_of`. In JSON the field stands
    /// where it applies.
    pub(crate) duplicates: bool,
    /// Whether there are groups of duplicates.
    pub(crate) groups: bool,
    /// The names of kept columns, for CSV.
    pub(crate) kept: Vec<String>,
    /// Whether kept values that are no text are written as text, as Parquet
    /// needs them.
    pub(crate) kept_as_text: bool,
}

/// Writes rows in a format that can be gone on with.
pub(crate) struct RowWriter<W: Write> {
    layout: Layout,
    format: Format<W>,
}

enum Format<W: Write> {
    Jsonl(BufWriter<W>, Vec<u8>),
    Csv(Box<::csv::Writer<W>>),
}

impl<W: Write> RowWriter<W> {
    pub(crate) fn jsonl(writer: W, layout: Layout) -> Self {
        let format = Format::Jsonl(BufWriter::with_capacity(1 << 16, writer), Vec::new());
        Self { layout, format }
    }

    /// CSV, with a row of names if this is the beginning.
    pub(crate) fn csv(
        writer: W,
        taxonomy: &Taxonomy,
        layout: Layout,
        is_beginning: bool,
    ) -> io::Result<Self> {
        let mut writer = ::csv::WriterBuilder::new()
            .delimiter(b';')
            .buffer_capacity(1 << 16)
            .from_writer(writer);
        if is_beginning {
            let mut names = csv::names(taxonomy, layout.all_probabilities);
            names.extend(layout.duplicates.then(|| "duplicate_of".to_owned()));
            names.extend(layout.groups.then(|| "duplicate_group".to_owned()));
            for name in &layout.kept {
                names.push(match names.contains(name) {
                    true => format!("kept_{name}"),
                    false => name.clone(),
                });
            }
            writer.write_record(&names).map_err(csv::unwrapped)?;
        }
        let format = Format::Csv(Box::new(writer));
        Ok(Self { layout, format })
    }

    pub(crate) fn write(&mut self, assessment: &Assessment, extras: Extras<'_>) -> io::Result<()> {
        match &mut self.format {
            Format::Jsonl(writer, line) => {
                line.clear();
                write_json(line, assessment, extras, &self.layout)?;
                line.push(b'\n');
                writer.write_all(line)
            }
            Format::Csv(writer) => {
                let mut values = csv::values(assessment, self.layout.all_probabilities);
                if let Some(id) = values.first_mut() {
                    *id = extras.id.unwrap_or_default().to_owned();
                }
                let text = |text: Option<&Arc<str>>| text.map(|text| text.to_string());
                if self.layout.duplicates {
                    values.push(text(extras.duplicate_of).unwrap_or_default());
                }
                if self.layout.groups {
                    values.push(text(extras.group).unwrap_or_default());
                }
                let kept = self.layout.kept.iter().map(|name| extras.kept.get(name));
                values.extend(kept.map(|value| value.map(shown).unwrap_or_default()));
                writer.write_record(&values).map_err(csv::unwrapped)
            }
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match &mut self.format {
            Format::Jsonl(writer, _) => writer.flush(),
            Format::Csv(writer) => writer.flush(),
        }
    }
}

fn write_json(
    line: &mut Vec<u8>,
    assessment: &Assessment,
    extras: Extras<'_>,
    layout: &Layout,
) -> io::Result<()> {
    let is_plain = extras.id == assessment.id()
        && extras.duplicate_of.is_none()
        && extras.group.is_none()
        && extras.kept.is_empty();
    if is_plain {
        return Ok(match layout.all_probabilities {
            true => serde_json::to_writer(line, &assessment.with_all_probabilities()),
            false => serde_json::to_writer(line, assessment),
        }?);
    }
    let mut value = match layout.all_probabilities {
        true => serde_json::to_value(assessment.with_all_probabilities()),
        false => serde_json::to_value(assessment),
    }?;
    if let Value::Object(fields) = &mut value {
        fields.insert("id".to_owned(), extras.id.into());
        let mut add = |name: &str, text: Option<&Arc<str>>| {
            if let Some(text) = text {
                fields.insert(name.to_owned(), Value::from(&**text));
            }
        };
        add("duplicate_of", extras.duplicate_of);
        add("duplicate_group", extras.group);
        if !extras.kept.is_empty() {
            let mut kept = extras.kept.clone();
            if layout.kept_as_text {
                for value in kept.values_mut().filter(|value| !value.is_null()) {
                    *value = shown(value).into();
                }
            }
            fields.insert("kept".to_owned(), Value::Object(kept));
        }
    }
    Ok(serde_json::to_writer(line, &value)?)
}

/// A value as a cell.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
