//! The model: what turns a text into probabilities.

pub mod calibration;
