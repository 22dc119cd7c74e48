//! Rows through a classifier to whatever takes the results.

use super::seen::{Marks, Seen, TextHash, text_hash};
use super::summary::{Summary, increment};
use super::{AssessmentWriter, Kept, Place, Rejection, Row};
use crate::assessment::Assessment;
use crate::classifier::Classifier;
use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;
use lru::LruCache;
use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    /// The run goes on after the rows that an earlier one did.
    Resumed {
        /// How many rows are done.
        rows: u64,
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

impl Reason<'_> {
    /// A code for machines, which stays as it is.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(rejection) => rejection.code(),
            Self::Unassessable(error) => match error.kind() {
                ErrorKind::InvalidReport => "no_text",
                _ => "not_assessable",
            },
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(rejection) => rejection.fmt(f),
            Self::Unassessable(error) => error.fmt(f),
        }
    }
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
    on_event: impl FnMut(Event<'_>),
) -> Result<Summary> {
    run_strictly(classifier, rows, writer, None, stop, on_event)
}

/// The same, but an error as soon as more rows than `max_rejected` are left
/// out.
pub(super) fn run_strictly(
    classifier: &Classifier,
    rows: impl Iterator<Item = Result<Row>>,
    writer: &mut dyn AssessmentWriter,
    max_rejected: Option<u64>,
    stop: &AtomicBool,
    mut on_event: impl FnMut(Event<'_>),
) -> Result<Summary> {
    let mut summary = Summary::default();
    let ended = drive(classifier, rows, Settings::default(), stop, |row| {
        let writing = Instant::now();
        if let Ok(assessment) = &row.result {
            writer.write(assessment).map_err(unwritten)?;
        }
        row.count(&mut summary);
        summary.timing.writing += writing.elapsed();
        let flow = row.flow(&summary, max_rejected);
        row.tell(&mut on_event);
        Ok(flow)
    })?;
    writer.finish().map_err(unwritten)?;
    ended.into_summary(summary)
}

pub(super) fn unwritten(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot write the assessments").with_source(error)
}

/// How rows are driven.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    /// So many rows are done; they are only read.
    pub(super) skip: u64,
    /// Whether equal texts are computed once and marked.
    pub(super) repeats: bool,
    /// Whether nearly equal texts are grouped.
    pub(super) groups: bool,
}

/// A row and what came of it.
pub(super) struct Finished<'a> {
    pub(super) place: &'a Place,
    pub(super) id: Option<&'a str>,
    pub(super) kept: &'a Kept,
    pub(super) marks: &'a Marks,
    encoding: &'static str,
    text_bytes: usize,
    /// Of a repeat it has the id of the first report with the text.
    pub(super) result: std::result::Result<&'a Assessment, Reason<'a>>,
}

impl Finished<'_> {
    pub(super) fn count(&self, summary: &mut Summary) {
        increment(&mut summary.encodings, self.encoding);
        summary.duplicate_ids += u64::from(self.marks.duplicate_id.is_some());
        match &self.result {
            Ok(assessment) => {
                summary.text_bytes += self.text_bytes as u64;
                summary.duplicate_texts += u64::from(self.marks.duplicate_of.is_some());
                summary.count_assessed(assessment);
            }
            Err(reason) => {
                summary.rejected += 1;
                increment(&mut summary.rejected_by_reason, reason.code());
            }
        }
    }

    /// Stops when more rows than may be are left out.
    pub(super) fn flow(&self, summary: &Summary, max_rejected: Option<u64>) -> Flow {
        match (max_rejected, &self.result) {
            (Some(max), Err(reason)) if summary.rejected > max => Flow::Stop(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{}: {reason}; with it {} are left out, and no more than {max} may be",
                    self.place, summary.rejected
                ),
            )),
            _ => Flow::GoOn,
        }
    }

    pub(super) fn tell(self, on_event: &mut impl FnMut(Event<'_>)) {
        let place = self.place;
        if let Some((first_input, first_row)) = &self.marks.duplicate_id {
            on_event(Event::DuplicateId {
                place,
                first_input,
                first_row: *first_row,
            });
        }
        on_event(match self.result {
            Ok(_) => Event::Assessed { place },
            Err(reason) => Event::Rejected { place, reason },
        });
    }
}

/// Whether to go on after a row.
pub(super) enum Flow {
    GoOn,
    Stop(Error),
}

/// How the rows came to an end.
pub(super) struct Ended {
    pub(super) why: Why,
    total: Duration,
    reading: Duration,
}

pub(super) enum Why {
    Done,
    Interrupted,
    /// By an input, or by what took the rows. All rows before are finished.
    Failed(Error),
}

impl Ended {
    /// Adds the time to a summary, and whether the run was interrupted.
    pub(super) fn note(&self, summary: &mut Summary) {
        summary.timing.total += self.total;
        summary.timing.reading += self.reading;
        summary.interrupted = matches!(self.why, Why::Interrupted);
    }

    /// The summary with the time, or the error that ended the rows.
    pub(super) fn into_summary(self, mut summary: Summary) -> Result<Summary> {
        self.note(&mut summary);
        match self.why {
            Why::Failed(error) => Err(error),
            Why::Done | Why::Interrupted => Ok(summary),
        }
    }
}

/// Assesses rows and hands over each in its turn.
///
/// # Errors
///
/// The first error of `take`.
pub(super) fn drive(
    classifier: &Classifier,
    rows: impl Iterator<Item = Result<Row>>,
    settings: Settings,
    stop: &AtomicBool,
    mut take: impl FnMut(Finished<'_>) -> Result<Flow>,
) -> Result<Ended> {
    let started = Instant::now();
    let feed = RefCell::new(Feed::new(rows, settings));
    let mut hand_over = |waiting: Waiting, computed: Option<Result<Assessment>>| {
        let result = feed.borrow_mut().results.of(classifier, &waiting, computed);
        take(Finished {
            place: &waiting.place,
            id: waiting.id.as_deref(),
            kept: &waiting.kept,
            marks: &waiting.marks,
            encoding: waiting.encoding,
            text_bytes: waiting.text_bytes,
            result: match (&waiting.what, &result) {
                (What::Rejected(rejection), _) => Err(Reason::Unreadable(rejection)),
                (_, Ok(assessment)) => Ok(&**assessment),
                (_, Err(error)) => Err(Reason::Unassessable(error)),
            },
        })
    };
    let why = 'rows: loop {
        let reports = std::iter::from_fn(|| feed.borrow_mut().next_report(stop));
        for computed in classifier.assess_stream(reports) {
            let mut computed = Some(computed);
            // The rows before the one that this is of, and that one.
            while computed.is_some() {
                let next = feed.borrow_mut().pop();
                let Some(waiting) = next else { break };
                let own = match waiting.what {
                    What::Computed => computed.take(),
                    _ => None,
                };
                if let Flow::Stop(error) = hand_over(waiting, own)? {
                    break 'rows Why::Failed(error);
                }
            }
        }
        // Those after the last report.
        loop {
            let next = feed.borrow_mut().pop();
            let Some(waiting) = next else { break };
            if let Flow::Stop(error) = hand_over(waiting, None)? {
                break 'rows Why::Failed(error);
            }
        }
        if let Some(why) = feed.borrow_mut().ended.take() {
            break why;
        }
    };
    Ok(Ended {
        why,
        total: started.elapsed(),
        reading: feed.into_inner().reading,
    })
}

/// A row that has been read and waits for its turn.
struct Waiting {
    place: Place,
    id: Option<String>,
    kept: Kept,
    marks: Marks,
    encoding: &'static str,
    text_bytes: usize,
    hash: TextHash,
    what: What,
}

enum What {
    /// Its report is with the classifier.
    Computed,
    /// The same text was given to the classifier just before.
    Repeat(Report),
    Rejected(Rejection),
}

/// The rows on their way into the classifier.
struct Feed<R> {
    rows: R,
    settings: Settings,
    seen: Seen,
    /// Those read whose results have not come out yet, and the bytes in them.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    results: Results,
    skipped: u64,
    ended: Option<Why>,
    reading: Duration,
}

/// So much may wait, should row upon row need no classifier. Two batches of
/// the classifier's are less, so that it never idles for this.
const MAX_WAITING: usize = 4096;
const MAX_WAITING_BYTES: usize = 32 << 20;

impl<R: Iterator<Item = Result<Row>>> Feed<R> {
    fn new(rows: R, settings: Settings) -> Self {
        Self {
            rows,
            settings,
            seen: Seen::new(settings.repeats, settings.groups),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            results: Results::default(),
            skipped: 0,
            ended: None,
            reading: Duration::ZERO,
        }
    }

    /// Reads on to the next report that must be computed; `None` at the end,
    /// and when what waits must be taken first.
    fn next_report(&mut self, stop: &AtomicBool) -> Option<Report> {
        let started = Instant::now();
        let mut report = None;
        while report.is_none()
            && self.ended.is_none()
            && self.waiting.len() < MAX_WAITING
            && self.waiting_bytes < MAX_WAITING_BYTES
        {
            if stop.load(Ordering::Relaxed) {
                self.ended = Some(Why::Interrupted);
                break;
            }
            match self.rows.next() {
                Some(Ok(row)) => report = self.take(row),
                Some(Err(error)) => self.ended = Some(Why::Failed(error)),
                None => self.ended = Some(Why::Done),
            }
        }
        self.reading += started.elapsed();
        report
    }

    fn take(&mut self, row: Row) -> Option<Report> {
        let hash = match &row.report {
            Ok(report) if self.settings.repeats => text_hash(report),
            _ => TextHash::default(),
        };
        let marks = self.seen.note(&row, &hash);
        if self.skipped < self.settings.skip {
            self.skipped += 1;
            return None;
        }
        let (mut id, mut text_bytes, mut report) = (None, 0, None);
        let what = match row.report {
            Ok(found) => {
                id = found.id().map(str::to_owned);
                text_bytes = found.text().len();
                match marks.duplicate_of.is_some() && self.results.is_expected(&hash) {
                    true => What::Repeat(found),
                    false => {
                        if self.settings.repeats {
                            self.results.expect(hash);
                        }
                        report = Some(found);
                        What::Computed
                    }
                }
            }
            Err(rejection) => What::Rejected(rejection),
        };
        let waiting = Waiting {
            place: row.place,
            id,
            kept: row.kept,
            marks,
            encoding: row.encoding,
            text_bytes,
            hash,
            what,
        };
        self.waiting_bytes += waiting.bytes();
        self.waiting.push_back(waiting);
        report
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.waiting_bytes -= waiting.bytes();
        Some(waiting)
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        let texts = self.kept.values().filter_map(|value| value.as_str());
        self.text_bytes + texts.map(str::len).sum::<usize>()
    }
}

/// Results of late, by the hash of the text: some 20 MB.
struct Results {
    done: LruCache<TextHash, Arc<Assessment>>,
    /// Those that the classifier has still.
    computing: HashSet<TextHash>,
}

const MAX_RESULTS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

impl Default for Results {
    fn default() -> Self {
        Self {
            done: LruCache::new(MAX_RESULTS),
            computing: HashSet::new(),
        }
    }
}

impl Results {
    fn expect(&mut self, hash: TextHash) {
        self.computing.insert(hash);
    }

    fn is_expected(&self, hash: &TextHash) -> bool {
        self.computing.contains(hash) || self.done.contains(hash)
    }

    /// The result of a row whose turn it is. One that has been dropped in the
    /// meantime, or was an error, is computed again.
    fn of(
        &mut self,
        classifier: &Classifier,
        waiting: &Waiting,
        computed: Option<Result<Assessment>>,
    ) -> Result<Arc<Assessment>> {
        let result = match (&waiting.what, computed) {
            (_, Some(computed)) => computed,
            (What::Repeat(report), None) => match self.done.get(&waiting.hash) {
                Some(assessment) => return Ok(Arc::clone(assessment)),
                None => classifier.assess(report),
            },
            // Such a row has no result, and nobody asks for it.
            (_, None) => Err(Error::new(ErrorKind::Compute, "the row was not assessed")),
        };
        let is_wanted = self.computing.remove(&waiting.hash);
        let assessment = Arc::new(result?);
        if is_wanted {
            self.done.put(waiting.hash, Arc::clone(&assessment));
        }
        Ok(assessment)
    }
}
