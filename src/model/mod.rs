//! The model: from token ids to logits, and the bundle it is stored in.
//!
//! Most programs need only [`crate::Classifier`]. The types here are for
//! programs that load an encoder by itself or write a bundle of their own.

mod attention;
mod bundle;
pub(crate) mod calibration;
pub(crate) mod config;
mod encoder;
mod gemm;
pub(crate) mod heads;
#[cfg(feature = "hub")]
mod hub;
pub(crate) mod lexical;
mod ops;
pub(crate) mod timing;
pub(crate) mod tokeniser;
pub(crate) mod weights;

pub use bundle::{BundleFiles, BundleParts, Manifest, NamedTensor, TensorType};
pub(crate) use bundle::{MANIFEST, Model};
pub use config::{EncoderConfig, WindowConfig};
pub(crate) use encoder::INPUT_MAGNITUDES;
pub use encoder::{Encoder, Scratch};
pub use gemm::Precision;
#[cfg(feature = "hub")]
pub use hub::HubModel;
pub use lexical::LexicalModel;
pub use timing::{Stage, Timings};

/// What the benches measure part by part. Not for use: it changes without
/// notice.
#[doc(hidden)]
pub mod kernels {
    pub use super::attention::AttentionHead;
    pub use super::gemm::{Gemm, Linear, feed_forward};
    pub use super::ops::{Activation, AddNorm, BiasActivation};
    pub use rten_simd::SimdOp;
}
