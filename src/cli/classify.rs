//! `lyhord classify`.

use super::progress::Progress;
use super::table::TableWriter;
use super::{Exit, Result, model};
use clap::ValueEnum;
use clap::builder::NonEmptyStringValueParser;
use lyhord::bulk::{
    AssessmentWriter, CsvWriter, Event, Input, InputFormat, JsonlWriter, OutputFile, ReadOptions,
    Summary, rows,
};
use lyhord::{Classifier, ClassifierOptions, Report, Taxonomy};
use signal_hook::consts::SIGINT;
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
    /// Files of reports (.jsonl, .csv, .tsv, or .txt with one report), or `-`
    /// for standard input; in the order given
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

    /// Write to a file, which appears when all is done
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

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
    /// beskrivning or händelse]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    text_column: Option<String>,

    /// The column or field with the identifier, in any case [default: id,
    /// diarienummer or dnr, if there is one]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    id_column: Option<String>,

    /// What separates columns in CSV: one character or `tab` [default: found
    /// out]
    #[arg(long, value_name = "CHAR", value_parser = delimiter)]
    delimiter: Option<u8>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
    Table,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReadFormat {
    Jsonl,
    Csv,
    Txt,
}

fn delimiter(text: &str) -> std::result::Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err("give one ASCII character that is not a quote, or `tab`".to_owned()),
    }
}

pub fn run(args: Args) -> Result {
    let inputs: Vec<Input> = args.input.iter().map(Input::from).collect();
    let options = args.read_options();
    // Before the long part: is anything wrong that can be known now? A pipe can
    // only be read once.
    let is_no_pipe = |input: &&Input| match input {
        Input::File(path) => path.is_file() || path.is_dir() || !path.exists(),
        _ => false,
    };
    for input in inputs.iter().filter(is_no_pipe) {
        rows(input, &options)?;
    }
    if let Some(output) = &args.output {
        refuse_to_overwrite(output, &args.input)?;
    }
    let mut file = args.output.as_ref().map(OutputFile::create).transpose()?;
    let classifier = args.classifier()?;

    let mut stdout = std::io::stdout().lock();
    let to_terminal = file.is_none() && stdout.is_terminal();
    let sink: &mut dyn Write = match &mut file {
        Some(file) => file,
        None => &mut stdout,
    };
    let format = args.format(to_terminal);
    let mut writer = args.writer(format, sink, classifier.taxonomy())?;
    let exit = match args.text {
        Some(text) => {
            writer.write(&classifier.assess(&Report::new(text))?)?;
            writer.finish()?;
            Exit::Done
        }
        None => classify(&classifier, &inputs, &options, &mut *writer, to_terminal)?,
    };
    drop(writer);
    if let Some(file) = file
        && !matches!(exit, Exit::Interrupted)
    {
        file.commit()?;
    }
    Ok(exit)
}

fn classify(
    classifier: &Classifier,
    inputs: &[Input],
    options: &ReadOptions,
    writer: &mut dyn AssessmentWriter,
    to_terminal: bool,
) -> Result {
    let stop = stop_on_interrupt()?;
    let mut progress = Progress::new(inputs, to_terminal);
    let rows = inputs.iter().flat_map(|input| {
        let (rows, failure) = match rows(input, options) {
            Ok(rows) => (Some(rows), None),
            Err(error) => (None, Some(Err(error))),
        };
        rows.into_iter().flatten().chain(failure)
    });
    let mut repeated = 0;
    let summary = lyhord::bulk::run(classifier, rows, writer, &stop, |event| match event {
        Event::Assessed { place } => progress.assessed(place),
        Event::Rejected { place, reason } => {
            progress.message(format_args!("{place}: left out: {reason}"));
        }
        Event::DuplicateId {
            place,
            first_input,
            first_row,
        } => {
            repeated += 1;
            if repeated <= MAX_REPEATED {
                progress.message(format_args!(
                    "{place}: warning: has the id of row {first_row} of {first_input}; both are assessed"
                ));
            }
        }
        _ => {}
    })?;
    say_how_it_went(&summary, &progress);
    Ok(match summary {
        Summary {
            interrupted: true, ..
        } => Exit::Interrupted,
        Summary { rejected: 0, .. } => Exit::Done,
        _ => Exit::WithRejects,
    })
}

/// So many repeated ids are named one by one.
const MAX_REPEATED: u64 = 20;

fn say_how_it_went(summary: &Summary, progress: &Progress) {
    let Summary {
        assessed,
        rejected,
        duplicate_ids,
        interrupted,
        ..
    } = summary;
    if *interrupted {
        progress.message(format_args!(
            "interrupted; a file given with -o is not written"
        ));
    }
    if *interrupted || rejected + duplicate_ids > 0 {
        progress.message(format_args!(
            "{assessed} assessed, {rejected} left out, {duplicate_ids} with a repeated id"
        ));
    }
}

/// The first Ctrl-C ends the run after what is under way, the second at once.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // In this order: the first signal finds the flag unset and sets it.
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&stop))?;
    flag::register(SIGINT, Arc::clone(&stop))?;
    Ok(stop)
}

fn refuse_to_overwrite(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    let Ok(output) = output.canonicalize() else {
        return Ok(());
    };
    match inputs
        .iter()
        .find(|input| input.canonicalize().is_ok_and(|input| input == output))
    {
        Some(input) => Err(format!("{} is both input and output", input.display()).into()),
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
        });
        options.text_column.clone_from(&self.text_column);
        options.id_column.clone_from(&self.id_column);
        options.delimiter = self.delimiter;
        options
    }

    fn classifier(&self) -> Result<Classifier> {
        let mut options = ClassifierOptions::new();
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        model::load(self.model.as_deref(), &options)
    }

    fn format(&self, to_terminal: bool) -> Format {
        let ending = self.output.as_ref().and_then(|path| path.extension());
        match self.format {
            Some(format) => format,
            None if ending.is_some_and(|ending| ending.eq_ignore_ascii_case("csv")) => Format::Csv,
            None if to_terminal => Format::Table,
            None => Format::Jsonl,
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
        })
    }
}
