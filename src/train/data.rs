//! Labelled reports.

use std::ops::Range;

/// A report with its labels.
#[derive(Clone, Debug)]
pub struct LabelledReport {
    /// The report's identifier.
    pub id: String,
    /// The report's text.
    pub text: String,
    /// One target a head of the taxonomy; `None` is unknown.
    pub targets: Vec<Option<Target>>,
    /// Where the text shows it.
    pub evidence: Vec<Evidence>,
}

/// What is true of a text under one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The indices of the labels that hold.
    Labels(Vec<usize>),
    /// The index of the label or level; 0 or 1 for a binary head.
    Class(usize),
}

/// Passages that show why a query's labels hold.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The label-attention query.
    pub query: usize,
    /// Code-point ranges.
    pub spans: Vec<Range<usize>>,
}
