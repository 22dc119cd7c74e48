//! Files of reports in, files of assessments out.
//!
//! A [`Backlog`] takes inputs to an output that can be gone on with, should
//! the run be killed. For other sources and targets, [`rows`] reads one input
//! row by row, and [`run`] passes rows through a classifier to an
//! [`AssessmentWriter`]. A row that cannot be read or assessed becomes an
//! [`Event`] and the rest goes on; no event and no error holds the text of a
//! report.

mod backlog;
mod groups;
mod journal;
mod output;
mod read;
mod run;
mod seen;
mod summary;
mod write;

pub use backlog::Backlog;
pub use output::OutputFile;
pub(crate) use read::guess_delimiter;
pub use read::{
    Input, InputFormat, Kept, MAX_TEXT_BYTES, Place, ReadOptions, Rejection, Row, Rows,
    find_inputs, rows,
};
pub use run::{Event, Reason, run};
pub use summary::{Summary, Timing};
pub use write::{AssessmentWriter, CsvWriter, JsonlWriter, OutputFormat, assessment_schema};
