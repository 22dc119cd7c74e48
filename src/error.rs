//! The one error type of this crate.

use std::fmt;
use std::path::Path;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong, for callers that act on it.
///
/// # Examples
///
/// ```
/// use lyhord::{Classifier, ErrorKind};
///
/// let error = Classifier::from_dir("no/such/folder").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidBundle);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or stream could not be read or written.
    Io,
    /// A report cannot be assessed, for instance because it has no text.
    InvalidReport,
    /// An input file or one of its rows is not in the stated format.
    InvalidInput,
    /// A model bundle is missing a part, damaged, or of an unknown version.
    InvalidBundle,
    /// A taxonomy file does not describe usable heads and labels.
    InvalidTaxonomy,
    /// Labelled data for training or evaluation do not fit the taxonomy.
    InvalidData,
    /// An option has a value that cannot be used.
    InvalidOption,
    /// A model hub could not be reached or answered with an error.
    Network,
    /// The numerical engine refused an operation.
    Compute,
}

/// The error of every fallible function in this crate.
///
/// Its message names the file, line, column or record at fault and what to do
/// about it. It never holds the text of a report.
///
/// # Examples
///
/// ```
/// use lyhord::{Report, Classifier};
///
/// let error = Classifier::from_dir("no/such/folder").unwrap_err();
/// assert!(error.to_string().contains("no/such/folder"));
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            source: None,
        }))
    }

    /// Attaches the cause. The cause is printed after the message, so it must
    /// not quote a report either.
    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn io(path: &Path, action: &str, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {action} {}", path.display())).with_source(source)
    }

    /// The kind of error, for callers that act on it.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{ErrorKind, Taxonomy};
    ///
    /// let error = Taxonomy::from_toml("not toml").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidTaxonomy);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::new(
            ErrorKind::Compute,
            "the numerical engine refused an operation",
        )
        .with_source(source)
    }
}
