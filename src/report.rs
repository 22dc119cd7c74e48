//! What comes in: one report.

use sha2::{Digest, Sha256};
use std::fmt;

/// One text to assess, with the identifier that its sender knows it by.
///
/// The text may hold what must not be seen by others, so it is left out of
/// the `Debug` output.
///
/// # Examples
///
/// ```
/// use lyhord::Report;
///
/// let report = Report::new("Brukaren fick dubbel dos insulin.").with_id("2024-123");
/// assert_eq!(report.id(), Some("2024-123"));
/// assert!(!format!("{report:?}").contains("insulin"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    id: Option<String>,
    text: String,
}

impl Report {
    /// A report without an identifier.
    ///
    /// Any text can be held; one without words is refused when it is assessed.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = lyhord::Report::new("Mamma ramlade i natt.");
    /// assert_eq!(report.id(), None);
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            id: None,
            text: text.into(),
        }
    }

    /// Sets the identifier, which comes back in the assessment.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = lyhord::Report::new("Mamma ramlade i natt.").with_id("7");
    /// assert_eq!(report.id(), Some("7"));
    /// ```
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The identifier, if there is one.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::Report::new("Hej").id(), None);
    /// ```
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The text as it was given.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::Report::new("Hej").text(), "Hej");
    /// ```
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the text's UTF-8 bytes, in hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("id", &self.id)
            .field("text_bytes", &self.text.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_utf8_bytes() {
        assert_eq!(
            Report::new("abc").sha256(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
