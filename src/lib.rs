//! Lyhörd reads reports to Sweden's care inspectorate and says which risk
//! areas each concerns and how severe it is.
//!
//! ```
//! use lyhord::{Classifier, Report};
//!
//! // `Classifier::embedded()` has the model that ships.
//! let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
//! let assessment = classifier.assess(&Report::new("Brukaren fick dubbel dos insulin."))?;
//! for area in assessment.risk_areas() {
//!     println!("{} {:.2}", area.name(), area.probability());
//! }
//! # Ok::<(), lyhord::Error>(())
//! ```
//!
//! # The types
//!
//! - [`Report`]: what comes in, a text and perhaps an id.
//! - [`Classifier`]: the model at work on all cores. `Send + Sync`, cheap to
//!   clone; assesses one report, a slice or a stream. [`ClassifierOptions`] says
//!   with how many threads and in which number format.
//! - [`Assessment`]: what goes out, with calibrated probabilities. It serialises
//!   to the line of JSON that the command writes.
//! - [`Taxonomy`]: the questions and labels, which come with the model.
//! - [`Error`]: the one error. It names what is at fault and never holds a
//!   report's text.
//!
//! [`bulk`] reads and writes whole files, [`train`] and [`evaluation`] make and
//! measure models, [`model`] holds the encoder and the bundle that a model is
//! stored in, [`text`] what is done to a text before.
//!
//! # What is promised
//!
//! - The same report gives the same bytes on the same kind of processor,
//!   whatever it is assessed together with and by however many threads.
//! - Nothing panics on any input, and nothing uses a network but
//!   `Classifier::from_hub`. A fault in a dependency costs the report at hand:
//!   it is caught and becomes an error. Its message goes to the program's panic
//!   hook, and could quote the report, so a program that logs panics should set
//!   a hook that prints the place only.
#![deny(missing_docs)]
#![deny(unsafe_code)]
// Bad input is an error, never a panic.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

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
