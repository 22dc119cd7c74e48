//! Files of reports in, files of assessments out.
//!
//! [`rows`] reads one input row by row; [`run`] passes rows through a
//! classifier to an [`AssessmentWriter`]. A row that cannot be read or
//! assessed becomes an [`Event`] and the rest goes on; no event and no error
//! holds the text of a report.

mod output;
mod read;
mod run;
mod write;

pub use output::OutputFile;
pub use read::{Input, InputFormat, Place, ReadOptions, Rejection, Row, Rows, rows};
pub use run::{Event, Summary, run};
pub use write::{AssessmentWriter, CsvWriter, JsonlWriter};
