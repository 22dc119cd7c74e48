//! How far a run is: a bar on the terminal, or lines for programs; and messages
//! that do not break it.

use super::message;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lyhord::bulk::{Input, Place};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Show {
    /// A bar, if standard error is a terminal
    Bar,
    /// A line of JSON on standard error every second
    Json,
    /// Nothing
    None,
}

pub struct Progress {
    show: Show,
    bar: ProgressBar,
    input: Option<Arc<str>>,
    /// Bytes of all inputs if that is known, of those before this one, and of
    /// those up to the last row.
    total: Option<u64>,
    before: u64,
    done: u64,
    /// Rows of an earlier run that this one goes on with.
    resumed: u64,
    assessed: u64,
    rejected: u64,
    /// When the first row came out, and when that was last shown.
    started: Instant,
    shown: Instant,
}

const INTERVAL: Duration = Duration::from_secs(1);

impl Progress {
    /// Over the bytes of the inputs, or only a count if their length is not
    /// known.
    pub fn new(inputs: &[Input], show: Show) -> Self {
        let bytes = inputs.iter().map(|input| match input {
            Input::File(path) if path.is_file() => Some(path.metadata().ok()?.len()),
            _ => None,
        });
        let total = bytes.sum::<Option<u64>>();
        let bar = ProgressBar::new_spinner();
        if let Some(total) = total {
            bar.set_length(total);
            let style = ProgressStyle::with_template("{bar:20} {percent:>3} %  {msg}, {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        if show != Show::Bar {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let now = Instant::now();
        Self {
            show,
            bar,
            input: None,
            total,
            before: 0,
            done: 0,
            resumed: 0,
            assessed: 0,
            rejected: 0,
            started: now,
            shown: now,
        }
    }

    /// So many rows were done by an earlier run.
    pub fn resumed(&mut self, rows: u64) {
        self.resumed = rows;
    }

    /// A row's report is assessed.
    pub fn assessed(&mut self, place: &Place) {
        self.assessed += 1;
        self.row(place);
    }

    /// A row is left out.
    pub fn rejected(&mut self, place: &Place) {
        self.rejected += 1;
        self.row(place);
    }

    fn row(&mut self, place: &Place) {
        if self.input.as_ref() != Some(&place.input) {
            self.input = Some(place.input.clone());
            self.before = self.done;
        }
        self.done = self.before + place.end;
        if self.assessed + self.rejected == 1 {
            // What lies before it was not done now.
            self.bar.set_position(self.done);
            self.bar.reset_eta();
            self.started = Instant::now();
        }
        if self.shown.elapsed() >= INTERVAL / 10 && self.show == Show::Bar {
            self.shown = Instant::now();
            self.bar.set_position(self.done);
            let left_out = match self.rejected {
                0 => String::new(),
                rejected => format!(", {rejected} left out"),
            };
            self.bar.set_message(format!(
                "{} reports, {:.1}/s{left_out}",
                self.resumed + self.assessed,
                self.rate()
            ));
        }
        if self.shown.elapsed() >= INTERVAL && self.show == Show::Json {
            self.line();
        }
    }

    fn rate(&self) -> f64 {
        let rows = (self.assessed + self.rejected) as f64;
        rows / self.started.elapsed().as_secs_f64().max(1e-3)
    }

    /// A line for programs.
    fn line(&mut self) {
        self.shown = Instant::now();
        let left = self.bar.eta().as_secs();
        self.bar.set_position(self.done);
        let line = json!({
            "rows": self.resumed + self.assessed + self.rejected,
            "assessed": self.assessed,
            "rejected": self.rejected,
            "bytes": self.done,
            "total_bytes": self.total,
            "rows_per_second": (self.rate() * 10.0).round() / 10.0,
            "seconds_left": self.total.map(|_| left),
        });
        eprint_line(&line.to_string());
    }

    /// Writes a line to standard error, above the bar.
    pub fn message(&self, line: std::fmt::Arguments<'_>) {
        self.bar.suspend(|| message(line));
    }
}

/// If standard error is closed nobody is told.
fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.show == Show::Json {
            self.line();
        }
        self.bar.finish_and_clear();
    }
}
