//! `lyhord classify`.

use super::progress::{Progress, Show};
use super::table::TableWriter;
use super::{Exit, Result, message, model};
use clap::ValueEnum;
use clap::builder::NonEmptyStringValueParser;
use lyhord::bulk::{
    AssessmentWriter, Backlog, CsvWriter, Event, Input, InputFormat, JsonlWriter, OutputFile,
    OutputFormat, ReadOptions, Summary, find_inputs,
};
use lyhord::{Classifier, ClassifierOptions, Precision, Report, Taxonomy};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Assess reports
///
/// Rows that cannot be assessed are named on standard error, never with their
/// text, and the rest goes on.
#[derive(clap::Args)]
pub struct Args {
    /// Files of reports (.jsonl, .csv, .tsv, .parquet, .xlsx, or .txt with one
    /// report; .gz and .zst too), folders of .txt files, patterns such as
    /// 'export/*.csv', or `-` for standard input; in the order given
    #[arg(required_unless_present = "text")]
    input: Vec<PathBuf>,

    /// Assess this text
    #[arg(long, conflicts_with = "input")]
    text: Option<String>,

    /// A model bundle's folder, instead of the built-in model
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Format of the output [default: that of FILE's ending; a table on a
    /// terminal; else jsonl]
    #[arg(long)]
    format: Option<Format>,

    /// Write to a file (.jsonl, .csv or .parquet), which appears when all is
    /// done; rows that are left out are listed in FILE.rejected.jsonl
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Go on where an earlier run to the same file stopped
    #[arg(long, requires = "output")]
    resume: bool,

    /// Stop at the first row that is left out
    #[arg(long, conflicts_with = "max_rejected")]
    fail_fast: bool,

    /// Stop when more than N rows are left out
    #[arg(long, value_name = "N")]
    max_rejected: Option<u64>,

    /// Carry all other columns of the input through
    #[arg(long)]
    keep: bool,

    /// Say of each row which earlier one has nearly the same text
    #[arg(long)]
    group_duplicates: bool,

    /// Begin CSV with a byte order mark, by which Excel knows UTF-8
    #[arg(long)]
    bom: bool,

    /// Write what the run came to as JSON
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,

    /// How to show how far the run is
    #[arg(long, value_name = "HOW", default_value = "bar")]
    progress: Show,

    /// The number format of the encoder: f32 is exact, int8 about twice as fast
    /// [default: f32]
    #[arg(long, value_name = "FORMAT")]
    precision: Option<Precision>,

    /// How many threads compute [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Write the probability of every label
    #[arg(long)]
    all_probabilities: bool,

    /// Format of the input [default: by the file name's ending; jsonl for
    /// standard input]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<ReadFormat>,

    /// The column or field with the text, in any case [default: text, fritext,
    /// beskrivning or händelse]. Given several times, their texts are joined
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    text_column: Vec<String>,

    /// The column or field with the identifier, in any case [default: id,
    /// diarienummer or dnr, if there is one]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    id_column: Option<String>,

    /// What separates columns in CSV: one character or `tab` [default: found
    /// out]
    #[arg(long, value_name = "CHAR", value_parser = delimiter)]
    delimiter: Option<u8>,

    /// The encoding of the input, such as utf-8, utf-16le, windows-1252 or
    /// iso-8859-1 [default: found out]
    #[arg(long, value_name = "NAME")]
    encoding: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
    Parquet,
    Table,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReadFormat {
    Jsonl,
    Csv,
    Txt,
    Parquet,
    Xlsx,
}

fn delimiter(text: &str) -> std::result::Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err("give one ASCII character that is not a quote, or `tab`".to_owned()),
    }
}

pub fn run(args: Args) -> Result {
    match &args.text {
        Some(text) => assess(&args, text),
        None => classify(&args),
    }
}

/// Assesses one text.
fn assess(args: &Args, text: &str) -> Result {
    let mut file = args.output.as_ref().map(OutputFile::create).transpose()?;
    let classifier = args.classifier()?;
    let mut stdout = std::io::stdout().lock();
    let format = args.format(file.is_none() && stdout.is_terminal());
    let sink: &mut dyn Write = match &mut file {
        Some(file) => file,
        None => &mut stdout,
    };
    let mut writer = args.writer(format, sink, classifier.taxonomy())?;
    writer.write(&classifier.assess(&Report::new(text))?)?;
    writer.finish()?;
    drop(writer);
    if let Some(file) = file {
        file.commit()?;
    }
    Ok(Exit::Done)
}

/// Assesses the rows of files.
fn classify(args: &Args) -> Result {
    let inputs: Vec<Input> = args
        .input
        .iter()
        .map(find_inputs)
        .collect::<std::result::Result<Vec<_>, _>>()?
        .concat();
    if let Some(output) = &args.output {
        refuse_to_overwrite(output, &inputs)?;
    }
    let to_terminal = args.output.is_none() && std::io::stdout().is_terminal();
    let format = args.format(to_terminal);
    let backlog = args.backlog(inputs.clone(), format);
    // Before the long part: is anything wrong that can be known now?
    backlog.check()?;
    let classifier = args.classifier()?;
    let stop = stop_on_interrupt()?;
    let mut progress = Progress::new(
        &inputs,
        match args.progress {
            Show::Bar if to_terminal => Show::None,
            show => show,
        },
    );
    let mut told = Told::default();
    let on_event = |event: Event<'_>| match event {
        Event::Assessed { place } => progress.assessed(place),
        Event::Rejected { place, reason } => {
            progress.rejected(place);
            // Those of a run to a file are listed there.
            if told.rejected.is_next() || args.output.is_none() {
                progress.message(format_args!("{place}: left out: {reason}"));
            }
        }
        Event::DuplicateId {
            place,
            first_input,
            first_row,
        } if told.repeated.is_next() => progress.message(format_args!(
            "{place}: warning: has the id of row {first_row} of {first_input}; both are assessed"
        )),
        Event::Resumed { rows } => {
            progress.resumed(rows);
            progress.message(format_args!("going on after {rows} rows"));
        }
        _ => {}
    };
    let result = match &args.output {
        Some(output) if format != Format::Table && (output.is_file() || !output.exists()) => {
            backlog.run_to_file(&classifier, output, &stop, on_event)
        }
        // A device or a pipe with a name, or a table for people.
        Some(output) => {
            let mut file = OutputFile::create(output)?;
            let result = match format {
                Format::Table => {
                    let mut table = TableWriter::new(&mut file);
                    backlog.run_with(&classifier, &mut table, &stop, on_event)
                }
                _ => backlog.run(&classifier, &mut file, &stop, on_event),
            };
            result.and_then(|summary| file.commit().map(|()| summary))
        }
        None => {
            let mut stdout = std::io::stdout().lock();
            match format {
                Format::Table => {
                    let mut table = TableWriter::new(stdout);
                    backlog.run_with(&classifier, &mut table, &stop, on_event)
                }
                _ => backlog.run(&classifier, &mut stdout, &stop, on_event),
            }
        }
    };
    let summary = result?;
    drop(progress);
    say_how_it_went(args, &inputs, &summary);
    if let Some(timings) = classifier.timings() {
        message(format_args!(
            "time by stage, added up over threads\n{timings}"
        ));
    }
    if let Some(path) = &args.summary {
        write_summary(path, &summary, &classifier)?;
    }
    Ok(match summary {
        Summary {
            interrupted: true, ..
        } => Exit::Interrupted,
        Summary { rejected: 0, .. } => Exit::Done,
        _ => Exit::WithRejects,
    })
}

/// What has been said of single rows.
#[derive(Default)]
struct Told {
    rejected: Count,
    repeated: Count,
}

#[derive(Default)]
struct Count(u64);

impl Count {
    /// Whether one more may be said: so many are named one by one.
    fn is_next(&mut self) -> bool {
        self.0 += 1;
        self.0 <= 20
    }
}

fn say_how_it_went(args: &Args, inputs: &[Input], summary: &Summary) {
    let Summary {
        assessed,
        rejected,
        duplicate_ids,
        interrupted,
        ..
    } = summary;
    let is_file = |input: &Input| matches!(input, Input::File(path) if path.is_file());
    match &args.output {
        Some(output) if *interrupted && inputs.iter().all(is_file) => message(format_args!(
            "interrupted after {} rows, which are kept: give the command again with --resume to go on, and {} is written",
            summary.rows(),
            output.display()
        )),
        Some(output) if *interrupted => message(format_args!(
            "interrupted; {} is not written, since an input that is no file can't be gone on with",
            output.display()
        )),
        _ if *interrupted => message(format_args!("interrupted")),
        _ => {}
    }
    if args.output.is_none() && !*interrupted && rejected + duplicate_ids == 0 {
        return;
    }
    message(format_args!(
        "{assessed} assessed, {rejected} left out, {duplicate_ids} with a repeated id"
    ));
    if let Some(output) = &args.output {
        say_what_is_in_it(output, summary);
    }
}

fn say_what_is_in_it(output: &Path, summary: &Summary) {
    let listed = |counts: &std::collections::BTreeMap<String, u64>| {
        let counts: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        counts.join(", ")
    };
    for (field, counts) in &summary.outcomes {
        message(format_args!("  {field}: {}", listed(counts)));
    }
    message(format_args!("  encoding: {}", listed(&summary.encodings)));
    if summary.duplicate_texts > 0 {
        message(format_args!(
            "  {} with the text of an earlier row",
            summary.duplicate_texts
        ));
    }
    if summary.rejected > 0 {
        message(format_args!(
            "  left out: {}; see {}.rejected.jsonl",
            listed(&summary.rejected_by_reason),
            output.display()
        ));
    }
    message(format_args!(
        "  {:.1} s, {:.1} reports/s, {:.1} MB of text, {} tokens",
        summary.timing.total.as_secs_f64(),
        summary.reports_per_second(),
        summary.text_bytes as f64 / 1e6,
        summary.tokens
    ));
}

fn write_summary(path: &Path, summary: &Summary, classifier: &Classifier) -> Result<()> {
    let mut json = serde_json::to_value(summary)?;
    json["reports_per_second"] = ((summary.reports_per_second() * 10.0).round() / 10.0).into();
    json["model"] = serde_json::to_value(classifier.model())?;
    json["engine"] = env!("CARGO_PKG_VERSION").into();
    let mut file = OutputFile::create(path)?;
    serde_json::to_writer_pretty(&mut file, &json)?;
    file.write_all(b"\n")?;
    file.commit()?;
    Ok(())
}

/// The first Ctrl-C ends the run after what is under way, the second at once.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset and sets it.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn refuse_to_overwrite(output: &Path, inputs: &[Input]) -> Result<()> {
    let Ok(output) = output.canonicalize() else {
        return Ok(());
    };
    let is_output = |input: &&Input| matches!(input, Input::File(path) if path.canonicalize().is_ok_and(|path| path == output));
    match inputs.iter().find(is_output) {
        Some(input) => Err(format!("{input} is both input and output").into()),
        None => Ok(()),
    }
}

impl Args {
    fn read_options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.format = self.input_format.map(|format| match format {
            ReadFormat::Jsonl => InputFormat::Jsonl,
            ReadFormat::Csv => InputFormat::Csv,
            ReadFormat::Txt => InputFormat::Text,
            ReadFormat::Parquet => InputFormat::Parquet,
            ReadFormat::Xlsx => InputFormat::Xlsx,
        });
        options.text_columns.clone_from(&self.text_column);
        options.id_column.clone_from(&self.id_column);
        options.delimiter = self.delimiter;
        options.encoding.clone_from(&self.encoding);
        options.keep = self.keep;
        options
    }

    fn backlog(&self, inputs: Vec<Input>, format: Format) -> Backlog {
        let mut backlog = Backlog::new(inputs)
            .read(self.read_options())
            .all_probabilities(self.all_probabilities)
            .byte_order_mark(self.bom)
            .group_duplicates(self.group_duplicates)
            .resume(self.resume);
        if let Some(max) = self.max_rejected.or(self.fail_fast.then_some(0)) {
            backlog = backlog.max_rejected(max);
        }
        match format {
            Format::Jsonl => backlog.format(OutputFormat::Jsonl),
            Format::Csv => backlog.format(OutputFormat::Csv),
            Format::Parquet => backlog.format(OutputFormat::Parquet),
            Format::Table => backlog,
        }
    }

    fn classifier(&self) -> Result<Classifier> {
        let mut options = ClassifierOptions::new().precision(self.precision.unwrap_or_default());
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        model::load(self.model.as_deref(), &options)
    }

    fn format(&self, to_terminal: bool) -> Format {
        let of_file = self.output.as_deref().and_then(OutputFormat::of_file);
        match (self.format, of_file) {
            (Some(format), _) => format,
            (None, Some(OutputFormat::Csv)) => Format::Csv,
            (None, Some(OutputFormat::Parquet)) => Format::Parquet,
            (None, _) if to_terminal => Format::Table,
            (None, _) => Format::Jsonl,
        }
    }

    fn writer<'a>(
        &self,
        format: Format,
        sink: &'a mut dyn Write,
        taxonomy: &Taxonomy,
    ) -> Result<Box<dyn AssessmentWriter + 'a>> {
        Ok(match format {
            Format::Jsonl => {
                Box::new(JsonlWriter::new(sink).all_probabilities(self.all_probabilities))
            }
            Format::Csv => Box::new(CsvWriter::new(sink, taxonomy, self.all_probabilities)?),
            Format::Table => Box::new(TableWriter::new(sink)),
            Format::Parquet => return Err("Parquet holds tables: give a file of reports".into()),
        })
    }
}
