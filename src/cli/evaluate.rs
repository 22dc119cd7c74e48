//! `lyhord evaluate`.

use super::{Exit, Result, model};
use lyhord::evaluation::{EvaluationOptions, evaluate, read_groupings};
use lyhord::train::TOP_RECALL;
use lyhord::{ClassifierOptions, Precision};
use std::io::Write;
use std::path::PathBuf;

/// Measure a model on labelled reports
#[derive(clap::Args)]
pub struct Args {
    /// Labelled reports, one JSON object a line; several files count as one
    #[arg(required = true)]
    data: Vec<PathBuf>,
    /// Part the reports by what else is known of them, to see whom the model serves
    /// worse: a CSV file with the column `id` and one for each way to part them
    #[arg(long, value_name = "FILE")]
    groups: Option<PathBuf>,
    /// A model bundle's folder, instead of the built-in model
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Fit the calibration again on these reports, in five folds, each measured
    /// on the reports it has not seen
    #[arg(long)]
    cross_fit: bool,
    /// With --cross-fit: the recall that the two highest levels of severity must
    /// reach on the reports that are fitted to
    #[arg(long, value_name = "SHARE", default_value_t = TOP_RECALL, requires = "cross_fit")]
    top_recall: f64,
    /// The number format of the encoder: f32 is exact, int8 faster
    #[arg(long, value_name = "FORMAT")]
    precision: Option<Precision>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// How often to draw the reports again for the 95 % intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    bootstrap: usize,
    /// Decides what is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Readable tables
    Table,
    /// One JSON object
    Json,
}

pub fn run(args: Args) -> Result {
    let options = ClassifierOptions::new().precision(args.precision.unwrap_or_default());
    let classifier = model::load(args.model.as_deref(), &options)?;
    let mut reports = Vec::new();
    for path in &args.data {
        reports.extend(lyhord::train::read_labelled(path, classifier.taxonomy())?);
    }
    let mut options = EvaluationOptions::default();
    if let Some(path) = &args.groups {
        options.groupings = read_groupings(path)?;
    }
    options.cross_fit = args.cross_fit;
    options.top_recall = args.top_recall;
    options.bootstrap = args.bootstrap;
    options.seed = args.seed;
    let evaluation = evaluate(&classifier, &reports, &options)?;
    let mut stdout = std::io::stdout().lock();
    match args.format {
        Format::Table => write!(stdout, "{evaluation}")?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut stdout, &evaluation).map_err(std::io::Error::from)?;
            writeln!(stdout)?;
        }
    }
    Ok(Exit::Done)
}
