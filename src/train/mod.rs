//! Training and measuring models.

pub(crate) mod calibration;
mod data;
pub(crate) mod lexical;
pub(crate) mod metrics;

pub use data::{Evidence, LabelledReport, Target, read_labelled};
