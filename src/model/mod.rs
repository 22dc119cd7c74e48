//! The model: from token ids to logits, and the bundle it is stored in.
//!
//! Most programs need only [`crate::Classifier`]. The types here are for
//! programs that load an encoder by itself or write a bundle of their own.

mod config;
mod encoder;
mod gemm;
pub(crate) mod heads;
mod ops;
pub(crate) mod weights;

pub use config::EncoderConfig;
pub use encoder::{Encoder, Scratch};
pub use gemm::Precision;
