//! Training and measuring models.

pub mod calibration;
pub mod data;
pub mod metrics;
