//! From reports to assessments: the model at work on all cores.

use crate::assessment::{Assessment, ModelInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::model::calibration::{Calibration, RawLogits};
use crate::model::heads::{AttentionWeights, Pooled};
use crate::model::timing::{Ledger, Stage, Timings};
use crate::model::tokeniser::Tokens;
use crate::model::{BundleFiles, Model, Precision, Scratch};
use crate::report::Report;
use crate::taxonomy::{HeadKind, Taxonomy};
use crate::text::{NormalisedText, Window, windows};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::num::NonZero;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Reports of a stream are read ahead by at most this many bytes of text for
/// each of the two batches in flight.
const BATCH_BYTES: usize = 4 << 20;

/// How a [`Classifier`] uses the machine.
///
/// # Examples
///
/// ```
/// use lyhord::{Classifier, ClassifierOptions, Precision};
///
/// let options = ClassifierOptions::new().threads(1).precision(Precision::Int8);
/// let classifier = options.from_dir("fixtures/tiny-bundle")?;
/// assert_eq!(classifier.model().name(), "tiny");
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifierOptions {
    threads: Option<usize>,
    batch: usize,
    precision: Precision,
    latency: bool,
    timing: bool,
}

impl Default for ClassifierOptions {
    fn default() -> Self {
        Self {
            threads: None,
            batch: 256,
            precision: Precision::default(),
            latency: false,
            timing: false,
        }
    }
}

impl ClassifierOptions {
    /// The defaults: as many threads as the machine has cores for this
    /// program, batches of 256 reports, [`Precision::F32`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::ClassifierOptions;
    ///
    /// assert_eq!(ClassifierOptions::new(), ClassifierOptions::default());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// How many threads compute. Default: as many as the machine has cores for
    /// this program. The number changes the speed, never the result.
    ///
    /// # Examples
    ///
    /// ```
    /// let options = lyhord::ClassifierOptions::new().threads(2);
    /// assert!(options.from_dir("fixtures/tiny-bundle").is_ok());
    /// ```
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// How many reports of a stream are ordered by length and computed
    /// together, at most; up to two such batches are in memory. Default: 256.
    /// The number changes speed and memory, never the result.
    ///
    /// # Examples
    ///
    /// ```
    /// let options = lyhord::ClassifierOptions::new().batch(16);
    /// assert!(options.from_dir("fixtures/tiny-bundle").is_ok());
    /// ```
    pub fn batch(mut self, reports: usize) -> Self {
        self.batch = reports;
        self
    }

    /// The number format of the encoder. Default: [`Precision::F32`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{ClassifierOptions, Precision};
    ///
    /// let options = ClassifierOptions::new().precision(Precision::Int8);
    /// assert!(options.from_dir("fixtures/tiny-bundle").is_ok());
    /// ```
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Whether all threads compute one text together, which gives the shortest
    /// time for a text that comes alone, instead of one text each, which gives
    /// the most texts in a time. Default: one text each. The result is the same.
    ///
    /// # Examples
    ///
    /// ```
    /// let options = lyhord::ClassifierOptions::new().latency(true);
    /// assert!(options.from_dir("fixtures/tiny-bundle").is_ok());
    /// ```
    pub fn latency(mut self, latency: bool) -> Self {
        self.latency = latency;
        self
    }

    /// Whether to measure where the time goes, see [`Classifier::timings`].
    /// Default: only if the environment variable `LYHORD_TIMING` is set to
    /// something other than 0.
    ///
    /// # Examples
    ///
    /// ```
    /// let options = lyhord::ClassifierOptions::new().timing(true);
    /// assert!(options.from_dir("fixtures/tiny-bundle")?.timings().is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn timing(mut self, timing: bool) -> Self {
        self.timing = timing;
        self
    }

    /// Loads the model that was compiled into this program.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when the program was built without one,
    /// [`ErrorKind::InvalidOption`] when an option is 0.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let classifier = lyhord::ClassifierOptions::new().threads(1).embedded()?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    #[cfg(feature = "embedded")]
    pub fn embedded(&self) -> Result<Classifier> {
        self.load(&BundleFiles::embedded()?)
    }

    /// Loads a model from a bundle's folder.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] says what is wrong with the folder,
    /// [`ErrorKind::Io`] that a file of it cannot be read,
    /// [`ErrorKind::InvalidOption`] that an option is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::ClassifierOptions;
    ///
    /// let classifier = ClassifierOptions::new().from_dir("fixtures/tiny-bundle")?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn from_dir(&self, dir: impl AsRef<Path>) -> Result<Classifier> {
        self.load(&BundleFiles::from_dir(dir)?)
    }

    /// Loads a model from the files of a bundle, by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] says what is wrong with the files,
    /// [`ErrorKind::InvalidOption`] that an option is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::ClassifierOptions;
    ///
    /// let error = ClassifierOptions::new().from_bytes([("config.json", b"{}".to_vec())]);
    /// assert!(error.unwrap_err().to_string().contains("manifest.json"));
    /// ```
    pub fn from_bytes<N, B>(&self, files: impl IntoIterator<Item = (N, B)>) -> Result<Classifier>
    where
        N: Into<String>,
        B: Into<Cow<'static, [u8]>>,
    {
        self.load(&BundleFiles::new(files))
    }

    /// Fetches a model from a Hugging Face hub and loads it. Nothing but this
    /// function and [`Classifier::from_hub`] uses a network.
    ///
    /// # Errors
    ///
    /// Those of [`HubModel::download`](crate::model::HubModel::download) and
    /// [`ClassifierOptions::from_dir`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let options = lyhord::ClassifierOptions::new().threads(2);
    /// let classifier = options.from_hub("org/name")?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn from_hub(&self, model: impl Into<crate::model::HubModel>) -> Result<Classifier> {
        self.load(&model.into().download()?)
    }

    pub(crate) fn load(&self, bundle: &BundleFiles) -> Result<Classifier> {
        let threads = self
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
        for (name, value) in [("threads", threads), ("batch", self.batch)] {
            if value == 0 {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    format!("the option `{name}` must be at least 1"),
                ));
            }
        }
        let model = Arc::new(Model::load(bundle, self.precision)?);
        let asked = |value: std::ffi::OsString| !value.is_empty() && value != "0";
        let timing = self.timing || std::env::var_os("LYHORD_TIMING").is_some_and(asked);
        Ok(Classifier {
            inner: Arc::new(Inner {
                workers: match self.latency {
                    true => Workers::start(1, threads - 1, timing)?,
                    false => Workers::start(threads, 0, timing)?,
                },
                model,
                batch: self.batch,
                batches: AtomicU64::new(1),
            }),
        })
    }
}

/// A model that assesses reports on all cores.
///
/// It can be shared between threads and is cheap to clone. What it says of a
/// report has the same bytes whatever other reports it is assessed with, in
/// whatever order, by however many threads.
///
/// # Examples
///
/// ```
/// use lyhord::{Classifier, Report};
///
/// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
/// let assessment = classifier.assess(&Report::new("Brukaren fick dubbel dos."))?;
/// for area in assessment.risk_areas() {
///     println!("{} {:.2}", area.name(), area.probability());
/// }
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone)]
pub struct Classifier {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    workers: Workers,
    batch: usize,
    /// The number of the next batch; see [`Priority`].
    batches: AtomicU64,
}

impl Classifier {
    /// Loads the model that was compiled into this program, with default
    /// options.
    ///
    /// # Errors
    ///
    /// Those of [`ClassifierOptions::embedded`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let classifier = lyhord::Classifier::embedded()?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    #[cfg(feature = "embedded")]
    pub fn embedded() -> Result<Self> {
        ClassifierOptions::default().embedded()
    }

    /// Loads a model from a bundle's folder, with default options.
    ///
    /// # Errors
    ///
    /// Those of [`ClassifierOptions::from_dir`].
    ///
    /// # Examples
    ///
    /// ```
    /// let error = lyhord::Classifier::from_dir("no/such/folder").unwrap_err();
    /// assert!(error.to_string().contains("is not a model bundle"));
    /// ```
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        ClassifierOptions::default().from_dir(dir)
    }

    /// Loads a model from the files of a bundle, by name, with default options.
    ///
    /// # Errors
    ///
    /// Those of [`ClassifierOptions::from_bytes`].
    ///
    /// # Examples
    ///
    /// ```
    /// let mut files = Vec::new();
    /// for entry in std::fs::read_dir("fixtures/tiny-bundle")? {
    ///     let path = entry?.path();
    ///     let name = path.file_name().unwrap().to_string_lossy().into_owned();
    ///     files.push((name, std::fs::read(path)?));
    /// }
    /// let classifier = lyhord::Classifier::from_bytes(files)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_bytes<N, B>(files: impl IntoIterator<Item = (N, B)>) -> Result<Self>
    where
        N: Into<String>,
        B: Into<Cow<'static, [u8]>>,
    {
        ClassifierOptions::default().from_bytes(files)
    }

    /// Fetches a model from a Hugging Face hub, with default options.
    ///
    /// # Errors
    ///
    /// Those of [`ClassifierOptions::from_hub`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let classifier = lyhord::Classifier::from_hub("org/name")?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn from_hub(model: impl Into<crate::model::HubModel>) -> Result<Self> {
        ClassifierOptions::default().from_hub(model)
    }

    /// Assesses one report.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidReport`] when the report has no text, or nothing but
    /// punctuation.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, ErrorKind, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let error = classifier.assess(&Report::new("  \n")).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidReport);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn assess(&self, report: &Report) -> Result<Assessment> {
        let raw = self.raw_logits(report)?;
        self.inner.model.assessment(report, &raw)
    }

    /// Assesses reports; the results stand in the order of the reports.
    ///
    /// # Errors
    ///
    /// Those of [`Classifier::assess`], each in the place of its report.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let reports = [Report::new("Mamma ramlade i natt."), Report::new("")];
    /// let results = classifier.assess_batch(&reports);
    /// assert!(results[0].is_ok() && results[1].is_err());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn assess_batch(&self, reports: &[Report]) -> Vec<Result<Assessment>> {
        self.assess_stream(reports.iter().cloned()).collect()
    }

    /// Assesses reports as they come; the results stand in the order of the
    /// reports. Memory is bounded: reports are read ahead by at most two
    /// batches (see [`ClassifierOptions::batch`]), each of which ends with the
    /// report that fills 4 MB of text.
    ///
    /// # Errors
    ///
    /// Those of [`Classifier::assess`], each in the place of its report.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let reports = (0..1000).map(|id| Report::new("Larmet fungerar inte.").with_id(id.to_string()));
    /// let third = classifier.assess_stream(reports).nth(2).unwrap()?;
    /// assert_eq!(third.id(), Some("2"));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn assess_stream<I>(&self, reports: I) -> impl Iterator<Item = Result<Assessment>> + use<I>
    where
        I: IntoIterator<Item = Report>,
    {
        let model = Arc::clone(&self.inner.model);
        self.raw_stream(reports)
            .map(move |(report, raw)| model.assessment(&report, &raw?))
    }

    /// What each label's attention rests on in a report: the base of evidence
    /// sentences.
    ///
    /// # Errors
    ///
    /// Those of [`Classifier::assess`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let attention = classifier.attend(&Report::new("Larmet fungerar inte."))?;
    /// let weights = attention.weights("risk_area", 0);
    /// assert_eq!(weights.len(), attention.tokens().len());
    /// assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-3);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn attend(&self, report: &Report) -> Result<Attention> {
        let (reply, result) = channel();
        let (model, report) = (Arc::clone(&self.inner.model), report.clone());
        self.inner.workers.submit(
            Priority::NOW,
            Job::Other(Box::new(move |scratch| {
                // A caller that is gone needs no answer.
                let _ = reply.send(model.attend_with_weights(&report, scratch));
            })),
        );
        result.recv().unwrap_or_else(|_| Err(failed()))
    }

    /// What the encoder's heads say of a report, `[num_logits]`, before the
    /// lexical path and calibration: for comparing engines on the same weights.
    ///
    /// # Errors
    ///
    /// Those of [`Classifier::assess`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let logits = classifier.encoder_logits(&Report::new("Larmet fungerar inte."))?;
    /// assert_eq!(logits.len(), classifier.taxonomy().num_logits());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn encoder_logits(&self, report: &Report) -> Result<Vec<f32>> {
        Ok(self.raw_logits(report)?.encoder.unwrap_or_default())
    }

    /// How much time the threads have spent on what since the model was loaded;
    /// `None` unless [`ClassifierOptions::timing`] is on.
    ///
    /// # Examples
    ///
    /// See [`Timings`].
    pub fn timings(&self) -> Option<Timings> {
        self.inner
            .workers
            .queue
            .ledger
            .as_ref()
            .map(Ledger::timings)
    }

    /// Which model this is.
    ///
    /// # Examples
    ///
    /// ```
    /// let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// assert_eq!(classifier.model().sha256().len(), 64);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn model(&self) -> &ModelInfo {
        &self.inner.model.info
    }

    /// The heads and labels the model answers in.
    ///
    /// # Examples
    ///
    /// ```
    /// let classifier = lyhord::Classifier::from_dir("fixtures/tiny-bundle")?;
    /// assert!(classifier.taxonomy().head("severity").is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn taxonomy(&self) -> &Taxonomy {
        &self.inner.model.taxonomy
    }

    pub(crate) fn calibration(&self) -> &Calibration {
        &self.inner.model.calibration
    }

    /// What encoder and lexical path say of a report before calibration.
    pub(crate) fn raw_logits(&self, report: &Report) -> Result<RawLogits> {
        let batch = self.submit(Priority::NOW.batch, vec![report.clone()]);
        let (_, raw) = batch.into_iter().next().ok_or_else(failed)?;
        raw
    }

    /// The same for many reports, in their order.
    pub(crate) fn raw_stream<I>(
        &self,
        reports: I,
    ) -> impl Iterator<Item = (Report, Result<RawLogits>)> + use<I>
    where
        I: IntoIterator<Item = Report>,
    {
        let classifier = self.clone();
        let mut reports = reports.into_iter().fuse();
        let mut in_flight: VecDeque<Batch> = VecDeque::new();
        std::iter::from_fn(move || {
            loop {
                // The next batch is submitted before this one is handed out, so
                // that the workers don't wait for the caller.
                while in_flight.len() < 2 {
                    let batch = classifier.next_batch(&mut reports);
                    if batch.is_empty() {
                        break;
                    }
                    let number = classifier.inner.batches.fetch_add(1, Ordering::Relaxed);
                    in_flight.push_back(classifier.submit(number, batch));
                }
                match in_flight.front_mut()?.next() {
                    Some(result) => return Some(result),
                    None => in_flight.pop_front(),
                };
            }
        })
    }

    fn next_batch(&self, reports: &mut impl Iterator<Item = Report>) -> Vec<Report> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < self.inner.batch && bytes < BATCH_BYTES {
            let Some(report) = reports.next() else { break };
            bytes += report.text().len();
            batch.push(report);
        }
        batch
    }

    fn submit(&self, number: u64, reports: Vec<Report>) -> Batch {
        let (reply, results) = channel();
        let tasks: Vec<_> = reports
            .into_iter()
            .enumerate()
            .map(|(index, report)| {
                Arc::new(Task {
                    model: Arc::clone(&self.inner.model),
                    report,
                    batch: number,
                    index,
                    reply: reply.clone(),
                    text: OnceLock::new(),
                    progress: Mutex::default(),
                })
            })
            .collect();
        for task in &tasks {
            let priority = Priority {
                batch: number,
                stage: 0,
                tokens: Reverse(task.report.text().len()),
                order: (task.index, 0),
            };
            self.inner
                .workers
                .submit(priority, Job::Prepare(Arc::clone(task)));
        }
        Batch {
            results,
            early: BTreeMap::new(),
            tasks: tasks.into(),
            next: 0,
        }
    }
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Classifier")
            .field("model", &self.inner.model.info)
            .field("threads", &self.inner.workers.pools.len())
            .finish()
    }
}

/// What each label's attention rests on in one report.
///
/// # Examples
///
/// See [`Classifier::attend`].
#[derive(Clone, Debug)]
pub struct Attention {
    taxonomy: Arc<Taxonomy>,
    tokens: Vec<Range<usize>>,
    weights: AttentionWeights,
}

impl Attention {
    /// Where each token stands in the report's text, in characters (code
    /// points).
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{Classifier, Report};
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let attention = classifier.attend(&Report::new("Åke föll."))?;
    /// assert_eq!(attention.tokens().last().map(|token| token.end), Some(9));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn tokens(&self) -> &[Range<usize>] {
        &self.tokens
    }

    /// How much of a label's attention rests on each token; the sum is 1. The
    /// labels of a head that is not multi-label share one attention. Empty when
    /// there is no such head or label.
    ///
    /// # Examples
    ///
    /// See [`Classifier::attend`].
    pub fn weights(&self, head: &str, label: usize) -> &[f32] {
        let Some(head) = self.taxonomy.head(head) else {
            return &[];
        };
        if label >= head.labels().len() {
            return &[];
        }
        let own = match head.kind() {
            HeadKind::MultiLabel => label,
            _ => 0,
        };
        self.weights.of_query(head.queries().start + own)
    }
}

/// A text made ready for the encoder.
struct Prepared {
    text: NormalisedText,
    tokens: Tokens,
    windows: Vec<Window>,
}

/// Whether a character is more than space, punctuation or a mark for broken bytes.
fn says_something(character: char) -> bool {
    let is_mark = matches!(character, '\u{2000}'..='\u{206f}' | '\u{fffd}');
    !(is_mark
        || character.is_whitespace()
        || character.is_control()
        || character.is_ascii_punctuation())
}

impl Model {
    fn prepare(&self, report: &Report) -> Result<Prepared> {
        let text = NormalisedText::new(report.text());
        // A dash for "nothing written", or what is left of broken bytes, would be
        // given a severity like any other text.
        let tokens = match text.as_str().contains(says_something) {
            true => self.tokeniser.encode(text.as_str())?,
            false => Tokens::default(),
        };
        if tokens.ids.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidReport,
                "the report has no text: no letter, digit or symbol",
            ));
        }
        let window = &self.config.window;
        Ok(Prepared {
            windows: windows(tokens.ids.len(), window.max_tokens, window.overlap),
            text,
            tokens,
        })
    }

    /// Encodes one window and scores its tokens. Returns how many tokens that
    /// are, specials included.
    fn encode(&self, prepared: &Prepared, window: &Window, scratch: &mut Scratch) -> Result<usize> {
        let config = &self.config.encoder;
        let mut ids = std::mem::take(&mut scratch.ids);
        ids.clear();
        ids.push(config.bos_token_id);
        ids.extend_from_slice(
            prepared
                .tokens
                .ids
                .get(window.tokens.clone())
                .unwrap_or(&[]),
        );
        ids.push(config.eos_token_id);
        let encoded = self.encoder.forward(&ids, scratch).map(drop);
        let tokens = ids.len();
        scratch.ids = ids;
        encoded?;
        self.heads.score(tokens, scratch)?;
        scratch.stopwatch().lap(Stage::Heads);
        Ok(tokens)
    }

    /// Runs one window: what it adds to the whole text, and what it says alone
    /// if the text has other windows.
    fn window(
        &self,
        prepared: &Prepared,
        index: usize,
        scratch: &mut Scratch,
    ) -> Result<(Pooled, Option<RawLogits>)> {
        let window = prepared.windows.get(index).ok_or_else(failed)?;
        let tokens = self.encode(prepared, window, scratch)?;
        let kept = self
            .heads
            .pool(tokens, within(&window.keep, window), scratch)?;
        if prepared.windows.len() == 1 {
            return Ok((kept, None));
        }
        let all = self
            .heads
            .pool(tokens, within(&window.tokens, window), scratch)?;
        let bytes = prepared.tokens.bytes(window.tokens.clone());
        let text = prepared.text.as_str().get(bytes).unwrap_or("");
        let alone = RawLogits {
            tokens: window.tokens.len(),
            encoder: Some(self.heads.logits(&all)),
            lexical: self.words(text, scratch),
            windows: Vec::new(),
        };
        Ok((kept, Some(alone)))
    }

    fn words(&self, text: &str, scratch: &mut Scratch) -> Option<Vec<f32>> {
        let lexical = self.lexical.as_ref()?;
        scratch.stopwatch().lap(Stage::Heads);
        let logits = lexical.logits(text, &mut scratch.lexical);
        scratch.stopwatch().lap(Stage::Lexical);
        Some(logits)
    }

    fn attend_with_weights(&self, report: &Report, scratch: &mut Scratch) -> Result<Attention> {
        let prepared = self.prepare(report)?;
        let mut weights = AttentionWeights::new(&self.heads);
        for window in &prepared.windows {
            let tokens = self.encode(&prepared, window, scratch)?;
            weights.extend(tokens, within(&window.keep, window), scratch);
        }
        weights.normalise();
        let tokens = (0..prepared.tokens.ids.len())
            .map(|index| {
                let bytes = prepared.tokens.bytes(index..index + 1);
                prepared.text.original_range(bytes)
            })
            .collect();
        Ok(Attention {
            taxonomy: Arc::clone(&self.taxonomy),
            tokens,
            weights,
        })
    }

    /// Calibrates a report's logits and decides.
    pub(crate) fn assessment(&self, report: &Report, raw: &RawLogits) -> Result<Assessment> {
        let probabilities = self.calibration.probabilities(&self.taxonomy, raw);
        let decisions = self.calibration.decide(&probabilities);
        Assessment::new(
            Arc::clone(&self.taxonomy),
            Arc::clone(&self.info),
            report,
            raw.tokens,
            probabilities.into_iter().zip(decisions),
        )
    }
}

/// Where tokens of a text stand in a window's rows, behind the first special.
fn within(tokens: &Range<usize>, window: &Window) -> Range<usize> {
    let start = window.tokens.start;
    tokens.start - start + 1..tokens.end - start + 1
}

/// One report on its way through the workers.
struct Task {
    model: Arc<Model>,
    report: Report,
    batch: u64,
    index: usize,
    reply: Sender<(usize, Result<RawLogits>)>,
    text: OnceLock<Prepared>,
    progress: Mutex<Progress>,
}

/// What is known of a text's windows. They are merged in text order, whichever
/// is done first, since floating-point sums depend on the order.
#[derive(Default)]
struct Progress {
    whole: Option<Pooled>,
    alone: Vec<RawLogits>,
    early: BTreeMap<usize, (Pooled, Option<RawLogits>)>,
    merged: usize,
    failed: bool,
}

impl Task {
    /// Tokenises the text and submits its windows.
    fn prepare(self: Arc<Self>, queue: &Queue) {
        if lock(&self.progress).failed {
            return;
        }
        match self.model.prepare(&self.report) {
            Err(error) => self.answer(Err(error)),
            Ok(prepared) => {
                let lengths: Vec<_> = prepared.windows.iter().map(|w| w.tokens.len()).collect();
                // Nobody else prepares this task, so the cell is empty.
                let _ = self.text.set(prepared);
                let total: usize = lengths.iter().sum();
                queue.push(lengths.iter().enumerate().map(|(window, _)| {
                    let priority = Priority {
                        batch: self.batch,
                        stage: 1,
                        tokens: Reverse(total),
                        order: (self.index, window),
                    };
                    (priority, Job::Window(Arc::clone(&self), window))
                }));
            }
        }
    }

    fn window(&self, index: usize, scratch: &mut Scratch) {
        if lock(&self.progress).failed {
            return;
        }
        let Some(prepared) = self.text.get() else {
            return;
        };
        match self.model.window(prepared, index, scratch) {
            Ok(result) => self.merge(prepared, index, result, scratch),
            Err(error) => self.fail(error),
        }
    }

    fn merge(
        &self,
        prepared: &Prepared,
        index: usize,
        result: (Pooled, Option<RawLogits>),
        scratch: &mut Scratch,
    ) {
        let mut progress = lock(&self.progress);
        progress.early.insert(index, result);
        while let Some((pooled, alone)) = {
            let next = progress.merged;
            progress.early.remove(&next)
        } {
            match &mut progress.whole {
                Some(whole) => whole.merge(&pooled),
                whole => *whole = Some(pooled),
            }
            progress.alone.extend(alone);
            progress.merged += 1;
        }
        if progress.merged == prepared.windows.len()
            && let Some(whole) = progress.whole.take()
        {
            let windows = std::mem::take(&mut progress.alone);
            drop(progress);
            self.answer(Ok(RawLogits {
                tokens: prepared.tokens.ids.len(),
                encoder: Some(self.model.heads.logits(&whole)),
                lexical: self.model.words(prepared.text.as_str(), scratch),
                windows,
            }));
        }
    }

    fn fail(&self, error: Error) {
        let before = std::mem::replace(&mut lock(&self.progress).failed, true);
        if !before {
            self.answer(Err(error));
        }
    }

    fn answer(&self, result: Result<RawLogits>) {
        // A caller that is gone needs no answer.
        let _ = self.reply.send((self.index, result));
    }
}

/// The results of a batch, in the order of its reports.
struct Batch {
    results: Receiver<(usize, Result<RawLogits>)>,
    early: BTreeMap<usize, Result<RawLogits>>,
    tasks: VecDeque<Arc<Task>>,
    next: usize,
}

impl Iterator for Batch {
    type Item = (Report, Result<RawLogits>);

    fn next(&mut self) -> Option<Self::Item> {
        let task = self.tasks.pop_front()?;
        let raw = loop {
            if let Some(raw) = self.early.remove(&self.next) {
                break raw;
            }
            match self.results.recv() {
                Ok((index, raw)) => {
                    self.early.insert(index, raw);
                }
                Err(_) => break Err(failed()),
            }
        };
        self.next += 1;
        Some((task.report.clone(), raw))
    }
}

impl Drop for Batch {
    /// A stream that is dropped early leaves no work behind.
    fn drop(&mut self) {
        for task in &self.tasks {
            lock(&task.progress).failed = true;
        }
    }
}

enum Job {
    Prepare(Arc<Task>),
    Window(Arc<Task>, usize),
    Other(Box<dyn FnOnce(&mut Scratch) + Send>),
}

/// What is done first: single reports (batch 0), then batches in turn; in a
/// batch all tokenising, then the longest texts, so that no thread is left with
/// a long one at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Priority {
    batch: u64,
    stage: u8,
    tokens: Reverse<usize>,
    /// Report and window.
    order: (usize, usize),
}

impl Priority {
    const NOW: Self = Self {
        batch: 0,
        stage: 0,
        tokens: Reverse(0),
        order: (0, 0),
    };
}

struct Ranked(Priority, Job);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    ledger: Option<Ledger>,
}

#[derive(Default)]
struct QueueState {
    jobs: BinaryHeap<Reverse<Ranked>>,
    closed: bool,
}

impl Queue {
    fn push(&self, jobs: impl IntoIterator<Item = (Priority, Job)>) {
        let mut state = lock(&self.state);
        state.jobs.extend(
            jobs.into_iter()
                .map(|(priority, job)| Reverse(Ranked(priority, job))),
        );
        drop(state);
        self.changed.notify_all();
    }

    /// The next job; `None` when the classifier is gone.
    fn pop(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(Reverse(Ranked(_, job))) = state.jobs.pop() {
                return Some(job);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, mut scratch: Scratch) {
        if self.ledger.is_some() {
            scratch.stopwatch().start();
        }
        while let Some(job) = self.pop() {
            scratch.stopwatch().lap(Stage::Waiting);
            let last = match &job {
                Job::Prepare(_) => Stage::Tokenise,
                _ => Stage::Heads,
            };
            let task = match &job {
                Job::Prepare(task) | Job::Window(task, _) => Some(Arc::clone(task)),
                Job::Other(_) => None,
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| match job {
                Job::Prepare(task) => task.prepare(self),
                Job::Window(task, index) => task.window(index, &mut scratch),
                Job::Other(run) => run(&mut scratch),
            }));
            if outcome.is_err() {
                // A fault in a dependency costs this report, not the program.
                scratch.reset();
                if let Some(task) = task {
                    task.fail(failed());
                }
            }
            if let Some(ledger) = &self.ledger {
                scratch.stopwatch().lap(last);
                scratch.stopwatch().settle(ledger);
            }
        }
    }
}

/// Threads that work until they are dropped. Each is a rayon pool of its own
/// with one thread, since the matrix kernels would otherwise hand parts of
/// their work to rayon's global pool.
struct Workers {
    queue: Arc<Queue>,
    pools: Vec<rayon::ThreadPool>,
}

impl Workers {
    /// `threads` that take jobs, each with `helpers` of its own.
    fn start(threads: usize, helpers: usize, timing: bool) -> Result<Self> {
        let mut workers = Self {
            queue: Arc::new(Queue {
                ledger: timing.then(Ledger::default),
                ..Queue::default()
            }),
            pools: Vec::with_capacity(threads),
        };
        let start = |name: String| {
            let failure = format!("cannot start the thread {name}");
            let builder = rayon::ThreadPoolBuilder::new().num_threads(1);
            builder
                .thread_name(move |_| name.clone())
                .build()
                .map_err(|error| Error::new(ErrorKind::Compute, failure).with_source(error))
        };
        for index in 0..threads {
            let pool = start(format!("lyhord-{index}"))?;
            let queue = Arc::clone(&workers.queue);
            let helpers = (0..helpers)
                .map(|helper| start(format!("lyhord-{index}-{helper}")))
                .collect::<Result<_>>()?;
            pool.spawn(move || queue.work(Scratch::with_helpers(helpers)));
            workers.pools.push(pool);
        }
        Ok(workers)
    }

    fn submit(&self, priority: Priority, job: Job) {
        self.queue.push([(priority, job)]);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        state.closed = true;
        state.jobs.clear();
        drop(state);
        self.queue.changed.notify_all();
    }
}

/// Locks; what a panicking thread left behind is whole, since nothing here
/// panics between two related changes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed() -> Error {
    Error::new(
        ErrorKind::Compute,
        "the engine failed on this report; other reports are not affected",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BundleParts, LexicalModel, NamedTensor, TensorType, WindowConfig};
    use crate::train::lexical::{LexicalOptions, fit};
    use crate::train::read_labelled;

    /// The tiny model with a lexical path.
    fn with_words() -> (BundleParts, LexicalModel) {
        let read = |name: &str| std::fs::read(format!("fixtures/tiny-bundle/{name}")).unwrap();
        let text = |name: &str| String::from_utf8(read(name)).unwrap();
        let taxonomy = Taxonomy::from_toml(&text("taxonomy.toml")).unwrap();
        let mut reports = read_labelled("fixtures/snippets.dev.jsonl", &taxonomy).unwrap();
        reports.truncate(60);
        let options = LexicalOptions {
            maximum_features: 300,
            ..LexicalOptions::default()
        };
        let words = fit(&taxonomy, &reports, &options).unwrap();
        let weights = read("model.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let tensors = tensors
            .iter()
            .map(|(name, view)| NamedTensor {
                name: name.to_owned(),
                shape: view.shape().to_vec(),
                values: view
                    .data()
                    .chunks_exact(2)
                    .map(|bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
                    .collect(),
                dtype: TensorType::F16,
            })
            .collect();
        let encoder = crate::model::EncoderConfig::from_json(&text("config.json")).unwrap();
        let parts = BundleParts {
            name: "worded".to_owned(),
            version: "2.0.0".to_owned(),
            encoder,
            attention_size: 16,
            lexical: Some(words.clone()),
            window: WindowConfig {
                max_tokens: 62,
                overlap: 16,
            },
            tokenizer: read("tokenizer.json"),
            taxonomy: text("taxonomy.toml"),
            calibration: text("calibration.json"),
            model_card: String::new(),
            tensors,
            training: serde_json::Value::Null,
            metrics: serde_json::Value::Null,
        };
        (parts, words)
    }

    #[test]
    fn the_lexical_path_reads_the_whole_text_and_each_window_of_a_long_one() {
        let (parts, words) = with_words();
        let folder = tempfile::tempdir().unwrap();
        let manifest = parts.write(folder.path()).unwrap();
        assert_eq!(manifest.name, "worded");
        let classifier = Classifier::from_dir(folder.path()).unwrap();
        let short = "Brukaren fick dubbel dos insulin.";
        let raw = classifier.raw_logits(&Report::new(short)).unwrap();
        let scratch = &mut Default::default();
        assert_eq!(raw.lexical, Some(words.logits(short, scratch)));
        assert!(raw.windows.is_empty());

        let long = format!("{} Mamma ramlade i natt.", short.repeat(20));
        let raw = classifier.raw_logits(&Report::new(long.as_str())).unwrap();
        assert_eq!(raw.lexical, Some(words.logits(&long, scratch)));
        assert!(raw.windows.len() > 2);
        let last = raw
            .windows
            .last()
            .and_then(|window| window.lexical.as_ref());
        let tail = (0..long.len())
            .filter(|start| long.is_char_boundary(*start))
            .find(|start| Some(&words.logits(&long[*start..], scratch)) == last);
        assert!(tail.is_some_and(|start| start > 0));
    }

    #[test]
    fn a_window_alone_says_what_its_text_says_alone() {
        let classifier = Classifier::from_dir("fixtures/tiny-bundle").unwrap();
        let text = "Mamma ramlade i natt och ingen kom. ".repeat(30);
        let report = Report::new(text.trim_end());
        let raw = classifier.raw_logits(&report).unwrap();
        let prepared = classifier.inner.model.prepare(&report).unwrap();
        assert_eq!(raw.windows.len(), prepared.windows.len());
        for (window, alone) in prepared.windows.iter().zip(&raw.windows) {
            let bytes = prepared.tokens.bytes(window.tokens.clone());
            let text = prepared.text.as_str()[bytes].trim_start();
            let again = classifier.inner.model.prepare(&Report::new(text)).unwrap();
            // A window that begins inside a word has other tokens than its text.
            if again.tokens.ids == prepared.tokens.ids[window.tokens.clone()] {
                let raw = classifier.raw_logits(&Report::new(text)).unwrap();
                assert_eq!(raw.encoder, alone.encoder);
            }
        }
    }

    #[test]
    fn merged_windows_pool_like_the_tokens_they_keep() {
        // The running softmax against weights that are normalised over the
        // whole text at once.
        let classifier = Classifier::from_dir("fixtures/tiny-bundle").unwrap();
        let report = Report::new("Mamma ramlade i natt och ingen kom. ".repeat(30));
        let model = &classifier.inner.model;
        let mut scratch = Scratch::new();
        let prepared = model.prepare(&report).unwrap();
        let attention = model.attend_with_weights(&report, &mut scratch).unwrap();
        let width = model.config.encoder.hidden_size;
        let mut hidden = Vec::new();
        let mut whole: Option<Pooled> = None;
        for window in &prepared.windows {
            let tokens = model.encode(&prepared, window, &mut scratch).unwrap();
            let keep = within(&window.keep, window);
            hidden.extend_from_slice(&scratch.hidden[keep.start * width..keep.end * width]);
            let pooled = model.heads.pool(tokens, keep, &mut scratch).unwrap();
            match &mut whole {
                Some(whole) => whole.merge(&pooled),
                whole => *whole = Some(pooled),
            }
        }
        let expected = model.heads.logits_of(&attention.weights, &hidden);
        let logits = model.heads.logits(&whole.unwrap());
        for (logit, expected) in logits.iter().zip(&expected) {
            assert!((logit - expected).abs() < 1e-4, "{logit} {expected}");
        }
    }
}
