//! Lyhörd reads reports to Sweden's care inspectorate and says which risk
//! areas each concerns and how severe it is.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod error;
mod model;
mod taxonomy;
mod train;

pub use error::{Error, ErrorKind, Result};
pub use taxonomy::{Head, HeadKind, Label, Taxonomy};
