//! Lyhörd reads reports to Sweden's care inspectorate and says which risk
//! areas each concerns and how severe it is.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod assessment;
pub mod bulk;
mod classifier;
mod error;
pub mod evaluation;
pub mod model;
mod report;
mod taxonomy;
pub mod text;
pub mod train;

pub use assessment::{
    Assessment, BinaryOutcome, LabelOutcome, LevelOutcome, ModelInfo, Outcome, Probability,
};
pub use classifier::{Attention, Classifier, ClassifierOptions};
pub use error::{Error, ErrorKind, Result};
pub use model::Precision;
pub use report::Report;
pub use taxonomy::{Head, HeadKind, Label, Taxonomy};
