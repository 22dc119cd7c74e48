//! Training and measuring models.

pub mod calibration;
pub mod data;
pub mod lexical;
pub mod metrics;
