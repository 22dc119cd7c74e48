//! Assessments into files, whatever their format.

mod csv;
mod jsonl;

pub use self::csv::CsvWriter;
pub use jsonl::JsonlWriter;

use crate::assessment::Assessment;
use std::io;

/// Takes assessments one by one and writes them in some format.
pub trait AssessmentWriter {
    /// Writes one assessment.
    ///
    /// # Errors
    ///
    /// When what is written to fails.
    fn write(&mut self, assessment: &Assessment) -> io::Result<()>;

    /// Writes what is still held back. Nothing may be written afterwards.
    ///
    /// # Errors
    ///
    /// As for [`AssessmentWriter::write`].
    fn finish(&mut self) -> io::Result<()>;
}
