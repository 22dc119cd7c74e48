//! Assessments into files, whatever their format.

mod csv;
mod jsonl;
pub(super) mod parquet;
mod row;
mod schema;

pub use self::csv::CsvWriter;
pub use jsonl::JsonlWriter;
pub(super) use row::{Extras, Layout, RowWriter};
pub use schema::assessment_schema;

use crate::assessment::Assessment;
use std::io;
use std::path::Path;

/// How assessments stand in an output.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::OutputFormat;
/// use std::path::Path;
///
/// assert_eq!(OutputFormat::of_file(Path::new("a.parquet")), Some(OutputFormat::Parquet));
/// assert_eq!(OutputFormat::of_file(Path::new("a.txt")), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputFormat {
    /// One JSON object a line; see [`assessment_schema`].
    Jsonl,
    /// Flat columns separated by semicolons; see [`CsvWriter`].
    Csv,
    /// Apache Parquet, with nested columns as in JSON.
    Parquet,
}

impl OutputFormat {
    /// The format that a file name's ending stands for: `.jsonl` or `.ndjson`,
    /// `.csv`, `.parquet`, in small or capital letters.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::OutputFormat;
    ///
    /// assert_eq!(OutputFormat::of_file("A.CSV".as_ref()), Some(OutputFormat::Csv));
    /// ```
    pub fn of_file(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_ascii_lowercase();
        match ending.to_str()? {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

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
