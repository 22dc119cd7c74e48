//! One JSON object a line.

use super::AssessmentWriter;
use crate::assessment::Assessment;
use std::io::{self, Write};

/// Writes each assessment as a line of JSON.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::{AssessmentWriter, JsonlWriter};
/// use lyhord::{Classifier, Report};
///
/// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
/// let mut writer = JsonlWriter::new(Vec::new());
/// writer.write(&classifier.assess(&Report::new("Ingen kom.").with_id("7"))?)?;
/// writer.finish()?;
/// assert!(writer.into_inner().starts_with(br#"{"id":"7","#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct JsonlWriter<W> {
    writer: W,
    all_probabilities: bool,
    line: Vec<u8>,
}

impl<W: Write> JsonlWriter<W> {
    /// Writes to `writer`, one write a line.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            all_probabilities: false,
            line: Vec::new(),
        }
    }

    /// Whether to write every label's probability too; by default not. See
    /// [`Assessment::with_all_probabilities`].
    pub fn all_probabilities(mut self, all: bool) -> Self {
        self.all_probabilities = all;
        self
    }

    /// The writer that was given.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

impl<W: Write> AssessmentWriter for JsonlWriter<W> {
    fn write(&mut self, assessment: &Assessment) -> io::Result<()> {
        self.line.clear();
        match self.all_probabilities {
            true => serde_json::to_writer(&mut self.line, &assessment.with_all_probabilities()),
            false => serde_json::to_writer(&mut self.line, assessment),
        }?;
        self.line.push(b'\n');
        self.writer.write_all(&self.line)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
