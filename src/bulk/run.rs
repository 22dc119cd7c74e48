//! Rows through a classifier to a writer.

use super::{AssessmentWriter, Place, Rejection, Row};
use crate::classifier::Classifier;
use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap, RandomState};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something to know about a row while a run goes on. Events come in the
/// order of the rows.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The row's assessment is written.
    Assessed {
        /// The row.
        place: &'a Place,
    },
    /// The row is left out.
    Rejected {
        /// The row.
        place: &'a Place,
        /// Why.
        reason: Reason<'a>,
    },
    /// The row has an id that an earlier row has. Both are assessed.
    DuplicateId {
        /// The row.
        place: &'a Place,
        /// The name of the input with the first row that has the id.
        first_input: &'a str,
        /// The number of that row, from 1.
        first_row: u64,
    },
}

/// Why a row is left out.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason<'a> {
    /// It could not be read.
    Unreadable(&'a Rejection),
    /// It was read, but its text cannot be assessed.
    Unassessable(&'a Error),
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(rejection) => rejection.fmt(f),
            Self::Unassessable(error) => error.fmt(f),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How many rows were assessed and written.
    pub assessed: u64,
    /// How many rows were left out.
    pub rejected: u64,
    /// How many rows have an id that an earlier row has.
    pub duplicate_ids: u64,
    /// Whether `stop` ended the run before the rows did.
    pub interrupted: bool,
}

/// Assesses rows and writes the assessments in the rows' order.
///
/// Once `stop` is true no more rows are read; those under way are finished.
///
/// # Errors
///
/// The first error of `rows` or `writer`. The assessments of all rows before
/// it are written.
///
/// # Examples
///
/// ```
/// use lyhord::Classifier;
/// use lyhord::bulk::{Event, Input, JsonlWriter, ReadOptions, rows, run};
/// use std::sync::atomic::AtomicBool;
///
/// let input = Input::from("fixtures/bulk/mixed.jsonl");
/// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
/// let mut writer = JsonlWriter::new(Vec::new());
/// let summary = run(
///     &classifier,
///     rows(&input, &ReadOptions::default())?,
///     &mut writer,
///     &AtomicBool::new(false),
///     |event| {
///         if let Event::Rejected { place, reason } = event {
///             eprintln!("{place}: {reason}");
///         }
///     },
/// )?;
/// assert_eq!((summary.assessed, summary.rejected), (2, 3));
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn run(
    classifier: &Classifier,
    rows: impl Iterator<Item = Result<Row>>,
    writer: &mut dyn AssessmentWriter,
    stop: &AtomicBool,
    mut on_event: impl FnMut(Event<'_>),
) -> Result<Summary> {
    let feed = RefCell::new(Feed::new(rows));
    let mut summary = Summary::default();
    let reports = std::iter::from_fn(|| feed.borrow_mut().next_report(stop));
    for result in classifier.assess_stream(reports) {
        let Some(place) = report_rows_before(&feed, &mut summary, &mut on_event) else {
            break;
        };
        match result {
            Ok(assessment) => {
                writer.write(&assessment).map_err(unwritten)?;
                summary.assessed += 1;
                on_event(Event::Assessed { place: &place });
            }
            Err(error) => {
                summary.rejected += 1;
                on_event(Event::Rejected {
                    place: &place,
                    reason: Reason::Unassessable(&error),
                });
            }
        }
    }
    report_rows_before(&feed, &mut summary, &mut on_event);
    writer.finish().map_err(unwritten)?;
    let feed = feed.into_inner();
    summary.interrupted = feed.interrupted;
    feed.failure.map_or(Ok(summary), Err)
}

fn unwritten(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot write the assessments").with_source(error)
}

/// Takes waiting rows up to the next one with a report, which is returned, and
/// passes on what there is to say about them.
fn report_rows_before<R>(
    feed: &RefCell<Feed<R>>,
    summary: &mut Summary,
    on_event: &mut impl FnMut(Event<'_>),
) -> Option<Place> {
    loop {
        let waiting = feed.borrow_mut().waiting.pop_front()?;
        match waiting {
            Waiting::Report(place) => return Some(place),
            Waiting::Rejected(place, rejection) => {
                summary.rejected += 1;
                on_event(Event::Rejected {
                    place: &place,
                    reason: Reason::Unreadable(&rejection),
                });
            }
            Waiting::DuplicateId(place, (first_input, first_row)) => {
                summary.duplicate_ids += 1;
                on_event(Event::DuplicateId {
                    place: &place,
                    first_input: &first_input,
                    first_row,
                });
            }
        }
    }
}

/// The rows on their way into the classifier.
struct Feed<R> {
    rows: R,
    /// Those read whose results have not come out yet.
    waiting: VecDeque<Waiting>,
    ids: Ids,
    failure: Option<Error>,
    interrupted: bool,
}

enum Waiting {
    Report(Place),
    Rejected(Place, Rejection),
    DuplicateId(Place, (Arc<str>, u64)),
}

impl<R> Feed<R> {
    fn new(rows: R) -> Self {
        Self {
            rows,
            waiting: VecDeque::new(),
            ids: Ids::default(),
            failure: None,
            interrupted: false,
        }
    }
}

impl<R: Iterator<Item = Result<Row>>> Feed<R> {
    fn next_report(&mut self, stop: &AtomicBool) -> Option<Report> {
        while self.failure.is_none() && !self.interrupted {
            if stop.load(Ordering::Relaxed) {
                self.interrupted = true;
                break;
            }
            let Row { place, report } = match self.rows.next()? {
                Ok(row) => row,
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            };
            match report {
                Ok(report) => {
                    if let Some(first) = report.id().and_then(|id| self.ids.first(id, &place)) {
                        let waiting = Waiting::DuplicateId(place.clone(), first);
                        self.waiting.push_back(waiting);
                    }
                    self.waiting.push_back(Waiting::Report(place));
                    return Some(report);
                }
                Err(rejection) => self.waiting.push_back(Waiting::Rejected(place, rejection)),
            }
        }
        None
    }
}

/// Which ids have been seen where. It keeps hashes, not ids, so that a row
/// takes some 20 bytes however long its id is; among a million different ids
/// the chance of a false alarm is less than one in ten million.
#[derive(Default)]
struct Ids {
    hasher: RandomState,
    /// By hash: the place in `inputs`, and the row.
    first: HashMap<u64, (u32, u32)>,
    inputs: Vec<Arc<str>>,
}

impl Ids {
    /// The first row with an id, unless it is this one.
    fn first(&mut self, id: &str, place: &Place) -> Option<(Arc<str>, u64)> {
        if self.inputs.last() != Some(&place.input) {
            self.inputs.push(place.input.clone());
        }
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        match self.first.entry(self.hasher.hash_one(id)) {
            Entry::Vacant(entry) => {
                entry.insert((small(self.inputs.len() as u64 - 1), small(place.row)));
                None
            }
            Entry::Occupied(entry) => {
                let (input, row) = *entry.get();
                Some((self.inputs.get(input as usize)?.clone(), row.into()))
            }
        }
    }
}
