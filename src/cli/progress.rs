//! A bar on the terminal, and messages that do not break it.

use super::message;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lyhord::bulk::{Input, Place};
use std::sync::Arc;

pub struct Progress {
    bar: ProgressBar,
    input: Option<Arc<str>>,
    /// Bytes of the inputs before this one, and of those up to the last row.
    before: u64,
    done: u64,
    reports: u64,
}

impl Progress {
    /// A bar over the bytes of the inputs, or only a count if their length is
    /// not known. Nothing is drawn unless standard error is a terminal.
    pub fn new(inputs: &[Input], hidden: bool) -> Self {
        let bytes = inputs.iter().map(|input| match input {
            Input::File(path) if path.is_file() => Some(path.metadata().ok()?.len()),
            _ => None,
        });
        let bar = ProgressBar::new_spinner();
        if let Some(total) = bytes.sum::<Option<u64>>() {
            bar.set_length(total);
            let style = ProgressStyle::with_template("{bar:20} {percent:>3} %  {msg}, {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        if hidden {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            bar,
            input: None,
            before: 0,
            done: 0,
            reports: 0,
        }
    }

    /// A row's report is assessed.
    pub fn assessed(&mut self, place: &Place) {
        if self.input.as_ref() != Some(&place.input) {
            self.input = Some(place.input.clone());
            self.before = self.done;
        }
        self.done = self.before + place.end;
        self.reports += 1;
        self.bar.set_position(self.done);
        self.bar.set_message(format!("{} reports", self.reports));
    }

    /// Writes a line to standard error, above the bar.
    pub fn message(&self, line: std::fmt::Arguments<'_>) {
        self.bar.suspend(|| message(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
