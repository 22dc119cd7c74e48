//! Where the time goes, for whoever asks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A part of the work on a text.
///
/// # Examples
///
/// ```
/// use lyhord::model::Stage;
///
/// assert_eq!(Stage::FeedForward.to_string(), "feed forward");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Normalising the text and cutting it into tokens and windows.
    Tokenise,
    /// Word, position and type embeddings and their norm.
    Embed,
    /// Queries, keys and values.
    Qkv,
    /// Attention proper: scores, softmax and weighted sums.
    Attention,
    /// The projection of attention's output.
    AttentionOutput,
    /// The two layers of the feed-forward part and the activation between.
    FeedForward,
    /// Residual sums and layer norms.
    Norms,
    /// Label attention, pooling and logits.
    Heads,
    /// The lexical path.
    Lexical,
    /// Threads without work: the reader, the writer or the end of a batch
    /// holds them up.
    Waiting,
}

impl Stage {
    /// Every stage, in the order of the work.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::Stage;
    ///
    /// assert_eq!(Stage::ALL.first(), Some(&Stage::Tokenise));
    /// ```
    pub const ALL: [Self; 10] = [
        Self::Tokenise,
        Self::Embed,
        Self::Qkv,
        Self::Attention,
        Self::AttentionOutput,
        Self::FeedForward,
        Self::Norms,
        Self::Heads,
        Self::Lexical,
        Self::Waiting,
    ];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tokenise => "tokenise",
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::Attention => "attention",
            Self::AttentionOutput => "attention output",
            Self::FeedForward => "feed forward",
            Self::Norms => "norms",
            Self::Heads => "heads",
            Self::Lexical => "lexical",
            Self::Waiting => "waiting",
        })
    }
}

/// How much time the threads of a classifier have spent, by stage.
///
/// # Examples
///
/// ```
/// use lyhord::{ClassifierOptions, Report, model::Stage};
///
/// let classifier = ClassifierOptions::new().timing(true).from_dir("fixtures/tiny-bundle")?;
/// classifier.assess(&Report::new("Larmet fungerar inte."))?;
/// let timings = classifier.timings().unwrap();
/// assert!(timings.of(Stage::FeedForward) <= timings.busy());
/// println!("{timings}");
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Timings {
    nanoseconds: [u64; Stage::ALL.len()],
}

impl Timings {
    /// The time of one stage, added up over threads.
    ///
    /// # Examples
    ///
    /// See [`Timings`].
    pub fn of(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.nanoseconds[stage as usize])
    }

    /// The time of all stages but [`Stage::Waiting`], added up over threads.
    ///
    /// # Examples
    ///
    /// See [`Timings`].
    pub fn busy(&self) -> Duration {
        Stage::ALL
            .into_iter()
            .filter(|stage| *stage != Stage::Waiting)
            .map(|stage| self.of(stage))
            .sum()
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = self.busy().as_secs_f64().max(f64::MIN_POSITIVE);
        for stage in Stage::ALL {
            let seconds = self.of(stage).as_secs_f64();
            let share = 100.0 * seconds / busy;
            match stage {
                Stage::Waiting => writeln!(f, "{stage:<17} {seconds:>9.3} s")?,
                _ => writeln!(f, "{stage:<17} {seconds:>9.3} s  {share:>5.1} %")?,
            }
        }
        Ok(())
    }
}

/// What all threads of a classifier add their times to.
#[derive(Debug, Default)]
pub(crate) struct Ledger([AtomicU64; Stage::ALL.len()]);

impl Ledger {
    pub fn timings(&self) -> Timings {
        Timings {
            nanoseconds: std::array::from_fn(|stage| self.0[stage].load(Ordering::Relaxed)),
        }
    }
}

/// The clock of one thread. It stands still unless it is started, and then
/// costs some 25 ns a lap.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    last: Option<Instant>,
    spent: [u64; Stage::ALL.len()],
}

impl Stopwatch {
    pub fn start(&mut self) {
        self.last = Some(Instant::now());
    }

    /// Books the time since the last lap, or the start, to a stage.
    #[inline]
    pub fn lap(&mut self, stage: Stage) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.spent[stage as usize] += now.duration_since(*last).as_nanos() as u64;
            *last = now;
        }
    }

    /// Hands over what has been booked.
    pub fn settle(&mut self, ledger: &Ledger) {
        for (spent, total) in self.spent.iter_mut().zip(&ledger.0) {
            total.fetch_add(std::mem::take(spent), Ordering::Relaxed);
        }
    }
}
