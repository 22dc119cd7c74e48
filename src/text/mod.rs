//! Text before any model sees it: cleaned, cut into windows and sentences.
//!
//! Nothing here knows of models. Offsets always lead back to the text as the
//! caller gave it.

mod normalise;
mod sentences;
mod windows;

pub use normalise::NormalisedText;
pub use sentences::sentences;
pub use windows::{Window, windows};
