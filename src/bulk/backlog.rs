//! A backlog from its files to an output that can be gone on with.

use super::journal::{Binding, Convert, Inputs, Journal};
use super::run::{Event, Finished, Reason, Settings, Why, drive, run_strictly, unwritten};
use super::write::{AssessmentWriter, Extras, Layout, OutputFormat, RowWriter, parquet};
use super::{Input, InputFormat, Place, ReadOptions, Row, Summary, rows};
use crate::classifier::Classifier;
use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A run over inputs: what is read, how, and what is written of it.
///
/// Equal texts are computed once, and a row whose text an earlier one has says
/// so in `duplicate_of`. Memory is bounded whatever the inputs' size.
///
/// # Examples
///
/// ```
/// use lyhord::Classifier;
/// use lyhord::bulk::Backlog;
/// use std::sync::atomic::AtomicBool;
///
/// let folder = tempfile::tempdir()?;
/// let output = folder.path().join("out.csv");
/// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
/// let backlog = Backlog::new(vec!["fixtures/bulk/mixed.jsonl".into()]);
/// let summary = backlog.run_to_file(&classifier, &output, &AtomicBool::new(false), |_| {})?;
/// assert_eq!((summary.assessed, summary.rejected), (2, 3));
/// assert!(folder.path().join("out.csv.rejected.jsonl").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backlog {
    inputs: Vec<Input>,
    read: ReadOptions,
    format: Option<OutputFormat>,
    all_probabilities: bool,
    byte_order_mark: bool,
    group_duplicates: bool,
    max_rejected: Option<u64>,
    resume: bool,
}

impl Backlog {
    /// A run over inputs in their order.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]);
    /// ```
    pub fn new(inputs: Vec<Input>) -> Self {
        Self {
            inputs,
            read: ReadOptions::default(),
            format: None,
            all_probabilities: false,
            byte_order_mark: false,
            group_duplicates: false,
            max_rejected: None,
            resume: false,
        }
    }

    /// How the inputs are read. With [`ReadOptions::keep`] their other columns
    /// stand in each row too.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::{Backlog, ReadOptions};
    ///
    /// let mut options = ReadOptions::default();
    /// options.keep = true;
    /// Backlog::new(vec!["export.csv".into()]).read(options);
    /// ```
    pub fn read(mut self, options: ReadOptions) -> Self {
        self.read = options;
        self
    }

    /// The output's format. Default: that of the file's name, or JSONL.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::{Backlog, OutputFormat};
    ///
    /// Backlog::new(vec!["export.csv".into()]).format(OutputFormat::Csv);
    /// ```
    pub fn format(mut self, format: OutputFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Whether every label's probability is written. Default: no.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]).all_probabilities(true);
    /// ```
    pub fn all_probabilities(mut self, all: bool) -> Self {
        self.all_probabilities = all;
        self
    }

    /// Whether CSV begins with a byte order mark, by which Excel knows UTF-8.
    /// Default: no.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]).byte_order_mark(true);
    /// ```
    pub fn byte_order_mark(mut self, mark: bool) -> Self {
        self.byte_order_mark = mark;
        self
    }

    /// Whether rows with nearly the same text are grouped: `duplicate_group`
    /// then is the id of the first row of the group, or its file and row.
    /// Default: no.
    ///
    /// Two texts are nearly the same if they share some 70 % of their runs of
    /// three words, estimated by MinHash. The 50,000 latest groups are
    /// remembered.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]).group_duplicates(true);
    /// ```
    pub fn group_duplicates(mut self, group: bool) -> Self {
        self.group_duplicates = group;
        self
    }

    /// How many rows may be left out; with one more the run stops with an
    /// error. Default: any number.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]).max_rejected(0);
    /// ```
    pub fn max_rejected(mut self, rows: u64) -> Self {
        self.max_rejected = Some(rows);
        self
    }

    /// Whether to go on where an earlier run to the same file stopped; if there
    /// is none, the run begins at the beginning. Default: no, and then an
    /// unfinished earlier run is an error.
    ///
    /// # Examples
    ///
    /// ```
    /// lyhord::bulk::Backlog::new(vec!["export.csv".into()]).resume(true);
    /// ```
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Writes rows to `writer` as they are done. No Parquet, and nothing that
    /// could be resumed.
    ///
    /// # Errors
    ///
    /// The first error of the inputs or the writer;
    /// [`ErrorKind::InvalidOption`] for Parquet;
    /// [`ErrorKind::InvalidInput`] when too many rows are left out. The rows
    /// before it are written.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::Classifier;
    /// use lyhord::bulk::Backlog;
    /// use std::sync::atomic::AtomicBool;
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let mut lines = Vec::new();
    /// Backlog::new(vec!["fixtures/bulk/mixed.jsonl".into()])
    ///     .run(&classifier, &mut lines, &AtomicBool::new(false), |_| {})?;
    /// assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 2);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn run(
        &self,
        classifier: &Classifier,
        writer: &mut dyn Write,
        stop: &AtomicBool,
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<Summary> {
        let format = self.format.unwrap_or(OutputFormat::Jsonl);
        if format == OutputFormat::Parquet {
            return Err(invalid_option("Parquet needs a file to be written to"));
        }
        if self.resume {
            return Err(invalid_option("only a run to a file can be resumed"));
        }
        let (first, layout) = self.prepare(format)?;
        let layout = Layout {
            duplicates: false,
            ..layout
        };
        let mut writer = self.writer(format, writer, classifier, layout, true)?;
        let mut summary = Summary::default();
        let ended = drive(
            classifier,
            self.rows(first),
            self.settings(0),
            stop,
            |row| {
                let writing = Instant::now();
                if let Ok(assessment) = &row.result {
                    writer.write(assessment, extras(&row)).map_err(unwritten)?;
                }
                row.count(&mut summary);
                summary.timing.writing += writing.elapsed();
                let flow = row.flow(&summary, self.max_rejected);
                row.tell(&mut on_event);
                Ok(flow)
            },
        )?;
        writer.flush().map_err(unwritten)?;
        ended.into_summary(summary)
    }

    /// Writes the assessments as `writer` does, without what else a row of a
    /// backlog has; equal texts are not looked for. For people to read.
    ///
    /// # Errors
    ///
    /// As for [`Backlog::run`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::Classifier;
    /// use lyhord::bulk::{Backlog, JsonlWriter};
    /// use std::sync::atomic::AtomicBool;
    ///
    /// let classifier = Classifier::from_dir("fixtures/tiny-bundle")?;
    /// let mut writer = JsonlWriter::new(Vec::new());
    /// Backlog::new(vec!["fixtures/bulk/mixed.jsonl".into()])
    ///     .run_with(&classifier, &mut writer, &AtomicBool::new(false), |_| {})?;
    /// assert!(writer.into_inner().starts_with(br#"{"id":"2024-1","#));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn run_with(
        &self,
        classifier: &Classifier,
        writer: &mut dyn AssessmentWriter,
        stop: &AtomicBool,
        on_event: impl FnMut(Event<'_>),
    ) -> Result<Summary> {
        let rows = self.rows(None);
        run_strictly(classifier, rows, writer, self.max_rejected, stop, on_event)
    }

    /// Opens the files, so that what is wrong with them is known before a model
    /// is loaded. Pipes can only be read once, so they are left alone.
    ///
    /// # Errors
    ///
    /// Those of [`rows`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::Backlog;
    ///
    /// assert!(Backlog::new(vec!["no-such.csv".into()]).check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        for input in &self.inputs {
            if !is_pipe(input) && !is_text(input) {
                rows(input, &self.read)?;
            }
        }
        Ok(())
    }

    /// Writes rows so that the file appears when all are done, and a run that
    /// is stopped before can be resumed. What else is beside it meanwhile is
    /// described in `docs/bulk.md`. Rows that are left out are listed in a file
    /// with `.rejected.jsonl` added to the name.
    ///
    /// # Errors
    ///
    /// The first error of the inputs or of writing;
    /// [`ErrorKind::InvalidInput`] when too many rows are left out, when an
    /// earlier run is not finished and [`Backlog::resume`] is not set, or when
    /// it was about something else; [`ErrorKind::Io`] when another run writes
    /// to the file; [`ErrorKind::InvalidOption`] when kept columns in CSV have
    /// no names beforehand. The rows before the error can be gone on with.
    ///
    /// # Examples
    ///
    /// See [`Backlog`].
    pub fn run_to_file(
        &self,
        classifier: &Classifier,
        path: impl AsRef<Path>,
        stop: &AtomicBool,
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<Summary> {
        let path = path.as_ref();
        // Through a link, so that the link stays and its target is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let format = self.format.or_else(|| OutputFormat::of_file(&path));
        let format = format.unwrap_or(OutputFormat::Jsonl);
        let (first, layout) = self.prepare(format)?;
        let inputs = Inputs::of(&self.inputs)?;
        let is_resumable = inputs.is_some();
        let binding = self.binding(classifier, format, inputs.unwrap_or_default());
        let mut journal = Journal::open(path, binding, is_resumable, self.resume)?;
        if journal.rows() > 0 {
            let rows = journal.rows();
            on_event(Event::Resumed { rows });
        }
        let schema = parquet::schema(
            classifier.taxonomy(),
            self.all_probabilities,
            self.group_duplicates,
        );
        let convert = |part: &File, output: &File| {
            parquet::convert(BufReader::new(part), schema.clone(), output)
        };
        let convert: Option<Convert<'_>> = match format {
            OutputFormat::Parquet => Some(&convert),
            _ => None,
        };
        if journal.is_complete() {
            return journal.publish(convert);
        }
        let mut writer = self.writer(
            format,
            journal.part()?,
            classifier,
            layout,
            journal.is_beginning(),
        )?;
        let earlier = journal.summary().clone();
        let (mut rows, mut summary) = (journal.rows(), earlier.clone());
        summary.interrupted = false;
        let started = Instant::now();
        let settings = self.settings(rows);
        let ended = drive(classifier, self.rows(first), settings, stop, |row| {
            let writing = Instant::now();
            match &row.result {
                Ok(assessment) => writer
                    .write(assessment, extras(&row))
                    .map_err(|error| journal.unwritten(error))?,
                Err(reason) => journal.reject(&rejected_line(row.place, reason)?)?,
            }
            row.count(&mut summary);
            rows += 1;
            if journal.is_due() {
                writer.flush().map_err(|error| journal.unwritten(error))?;
                summary.timing.total = earlier.timing.total + started.elapsed();
                journal.commit(rows, &summary)?;
            }
            summary.timing.writing += writing.elapsed();
            let flow = row.flow(&summary, self.max_rejected);
            row.tell(&mut on_event);
            Ok(flow)
        })?;
        let writing = Instant::now();
        writer.flush().map_err(|error| journal.unwritten(error))?;
        summary.timing.total = earlier.timing.total;
        ended.note(&mut summary);
        journal.commit(rows, &summary)?;
        if let Why::Done = ended.why {
            journal.publish(convert)?;
        }
        let last = writing.elapsed();
        summary.timing.writing += last;
        summary.timing.total += last;
        match ended.why {
            Why::Failed(error) if is_resumable && rows > 0 => Err(Error::new(
                error.kind(),
                format!(
                    "{error}; the {rows} rows so far are kept, and --resume goes on after them"
                ),
            )),
            Why::Failed(error) => Err(error),
            Why::Done | Why::Interrupted => Ok(summary),
        }
    }

    /// Opens the inputs once, so that what is wrong with them is known before
    /// anything is computed. The first one stays open: it may be a pipe.
    fn prepare(&self, format: OutputFormat) -> Result<(Option<super::Rows>, Layout)> {
        let mut first = None;
        let mut kept: Vec<String> = Vec::new();
        for (number, input) in self.inputs.iter().enumerate() {
            // A later pipe would be waited for, and a folder of single reports
            // has nothing to tell.
            if number > 0 && (is_pipe(input) || is_text(input)) {
                if self.read.keep && format == OutputFormat::Csv && is_pipe(input) {
                    return Err(unknown_columns(input));
                }
                continue;
            }
            let rows = rows(input, &self.read)?;
            if self.read.keep && format == OutputFormat::Csv {
                let names = rows.kept_names().ok_or_else(|| unknown_columns(input))?;
                for name in names {
                    if !kept.contains(name) {
                        kept.push(name.clone());
                    }
                }
            }
            if number == 0 {
                first = Some(rows);
            }
        }
        let layout = Layout {
            all_probabilities: self.all_probabilities,
            duplicates: true,
            groups: self.group_duplicates,
            kept,
            kept_as_text: format == OutputFormat::Parquet,
        };
        Ok((first, layout))
    }

    fn rows(&self, first: Option<super::Rows>) -> impl Iterator<Item = Result<Row>> + use<'_> {
        let mut first = first;
        self.inputs.iter().flat_map(move |input| {
            let opened = match first.take() {
                Some(rows) => Ok(rows),
                None => rows(input, &self.read),
            };
            let (rows, failure) = match opened {
                Ok(rows) => (Some(rows), None),
                Err(error) => (None, Some(Err(error))),
            };
            rows.into_iter().flatten().chain(failure)
        })
    }

    fn settings(&self, skip: u64) -> Settings {
        Settings {
            skip,
            repeats: true,
            groups: self.group_duplicates,
        }
    }

    fn writer<W: Write>(
        &self,
        format: OutputFormat,
        mut writer: W,
        classifier: &Classifier,
        layout: Layout,
        is_beginning: bool,
    ) -> Result<RowWriter<W>> {
        if format != OutputFormat::Csv {
            return Ok(RowWriter::jsonl(writer, layout));
        }
        if self.byte_order_mark && is_beginning {
            writer.write_all("\u{feff}".as_bytes()).map_err(unwritten)?;
        }
        RowWriter::csv(writer, classifier.taxonomy(), layout, is_beginning).map_err(unwritten)
    }

    /// What must not change until the run is done. How strict it is, or what it
    /// shows, may.
    fn binding(&self, classifier: &Classifier, format: OutputFormat, inputs: Inputs) -> Binding {
        let ReadOptions {
            format: input_format,
            text_columns,
            id_column,
            delimiter,
            encoding,
            keep,
        } = &self.read;
        let options: [(&str, Value); 11] = [
            ("format", format!("{format:?}").into()),
            ("all-probabilities", self.all_probabilities.into()),
            ("bom", self.byte_order_mark.into()),
            ("group-duplicates", self.group_duplicates.into()),
            (
                "input-format",
                json!(input_format.map(|format| format!("{format:?}"))),
            ),
            ("text-column", json!(text_columns)),
            ("id-column", json!(id_column)),
            ("delimiter", json!(delimiter)),
            ("encoding", json!(encoding)),
            ("keep", json!(keep)),
            ("precision", json!(classifier.model().precision())),
        ];
        Binding {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            model: classifier.model().sha256().to_owned(),
            options: options.map(|(name, value)| (name.to_owned(), value)).into(),
            inputs,
        }
    }
}

/// Whether the input can only be read once.
fn is_pipe(input: &Input) -> bool {
    match input {
        Input::Stdin => true,
        Input::File(path) => path.exists() && !path.is_file() && !path.is_dir(),
        Input::Bytes { .. } => false,
    }
}

/// Whether the input is a single report, of which there may be many.
fn is_text(input: &Input) -> bool {
    let is_text = |path: &Path| InputFormat::of_file(path) == Some(InputFormat::Text);
    matches!(input, Input::File(path) if path.is_file() && is_text(path))
}

fn extras<'a>(row: &Finished<'a>) -> Extras<'a> {
    Extras {
        id: row.id,
        duplicate_of: row.marks.duplicate_of.as_ref(),
        group: row.marks.group.as_ref(),
        kept: row.kept,
    }
}

/// A line of the list of rows that are left out: never with their text.
fn rejected_line(place: &Place, reason: &Reason<'_>) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Line<'a> {
        file: &'a str,
        row: u64,
        line: u64,
        reason: &'a str,
        message: String,
    }
    let line = Line {
        file: &place.input,
        row: place.row,
        line: place.line,
        reason: reason.code(),
        message: reason.to_string(),
    };
    let mut bytes = serde_json::to_vec(&line).map_err(|error| unwritten(error.into()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn invalid_option(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, message)
}

fn unknown_columns(input: &Input) -> Error {
    invalid_option(&format!(
        "the other columns of {input} are not known beforehand, as CSV would need: keep them in JSONL or Parquet"
    ))
}
