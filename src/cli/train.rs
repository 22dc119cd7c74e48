//! `lyhord train`.

use super::{Exit, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lyhord::train::{TOP_RECALL, TrainEvent, TrainJob, TrainOptions, train};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// Fine-tune a model on labelled reports
///
/// Writes a bundle that `classify --model` reads. A killed run goes on from its
/// last checkpoint when the same command is given again.
#[derive(clap::Args)]
pub struct Args {
    /// Labelled reports to train on, JSON Lines; may be given several times
    #[arg(long, required = true, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Labelled reports that only the lexical path learns from, beside --data:
    /// what the model to start from has been trained on; may be given several
    /// times
    #[arg(long, value_name = "FILE")]
    lexical_data: Vec<PathBuf>,
    /// Labelled reports to choose the best epoch, calibrate and measure with;
    /// never trained on; may be given several times
    #[arg(long, required = true, value_name = "FILE")]
    dev: Vec<PathBuf>,
    /// The heads and labels [default: taxonomy.toml in the folder to start from]
    #[arg(long, value_name = "FILE")]
    taxonomy: Option<PathBuf>,
    /// What to start from: an encoder in Hugging Face layout, or a model of this
    /// program's, whose heads are kept when it has the same labels
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// The folder for the bundle
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The model's name [default: the output folder's]
    #[arg(long)]
    name: Option<String>,
    /// The model's version
    #[arg(long, default_value = "1.0.0")]
    version: String,
    /// Markdown that the model card begins with
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// What else is known of the dev reports, for figures by it in the model card:
    /// a CSV file as `evaluate --groups` reads it
    #[arg(long, value_name = "FILE")]
    groups: Option<PathBuf>,
    /// The recall that the two highest levels of severity, or of another ordered
    /// head, must reach on the dev data: more finds more and costs false alarms
    #[arg(long, value_name = "SHARE", default_value_t = TOP_RECALL)]
    top_recall: f64,
    /// Where to compute; cuda needs a build with --features candle-core/cuda
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Where to write one JSON object a step [default: training/log.jsonl in
    /// the output folder]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// A model of the same shape and labels, whose weights are averaged with this
    /// run's; may be given several times
    #[arg(long, value_name = "DIR")]
    average_with: Vec<PathBuf>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

/// One argument for each setting whose name and default are the library's.
#[derive(clap::Args)]
#[command(next_help_heading = "Training options")]
struct Options {
    /// Passes over the training data [default: 5]
    #[arg(long)]
    epochs: Option<u64>,
    /// Peak learning rate of the encoder's top layer [default: 0.0001]
    #[arg(long)]
    encoder_rate: Option<f32>,
    /// Peak learning rate of label attention and heads [default: 0.003]
    #[arg(long)]
    head_rate: Option<f32>,
    /// Each layer's learning rate as a share of the next one's [default: 0.95]
    #[arg(long)]
    layer_decay: Option<f32>,
    /// Tokens in one optimiser step [default: 2000]
    #[arg(long)]
    tokens_per_step: Option<usize>,
    /// Dropout probability [default: 0.1]
    #[arg(long)]
    dropout: Option<f32>,
    /// Weight of each single-label head's loss beside the other heads' sums over
    /// their labels [default: 2]
    #[arg(long)]
    single_label_weight: Option<f32>,
    /// Keep the embeddings and this many of the lowest layers fixed and compute
    /// them once, for a machine without a GPU; 0 keeps the embeddings only
    /// [default: everything is trained]
    #[arg(long, value_name = "N")]
    freeze: Option<usize>,
    /// Compute frozen layers at every step instead of once: slower, but texts can
    /// still be varied and put together
    #[arg(long, requires = "freeze")]
    recompute_frozen: bool,
    /// Don't vary texts by typing errors and the like
    #[arg(long)]
    no_augment: bool,
    /// Epochs without a better dev score before training stops [default: 2]
    #[arg(long)]
    patience: Option<u64>,
    /// The same seed and threads give the same model [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; each computes a part of every step, so the result depends on
    /// their number [default: 2]
    #[arg(long)]
    threads: Option<usize>,
    /// Minutes between checkpoints [default: 5]
    #[arg(long)]
    checkpoint_minutes: Option<f64>,
}

impl Options {
    fn build(self) -> TrainOptions {
        let mut options = TrainOptions::default();
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        set(&mut options.epochs, self.epochs);
        set(&mut options.encoder_rate, self.encoder_rate);
        set(&mut options.head_rate, self.head_rate);
        set(&mut options.layer_decay, self.layer_decay);
        set(&mut options.tokens_per_step, self.tokens_per_step);
        set(&mut options.dropout, self.dropout);
        set(&mut options.single_label_weight, self.single_label_weight);
        set(&mut options.patience, self.patience);
        set(&mut options.seed, self.seed);
        set(&mut options.threads, self.threads);
        set(&mut options.checkpoint_minutes, self.checkpoint_minutes);
        options.freeze = self.freeze;
        options.recompute_frozen = self.recompute_frozen;
        options.augment = !self.no_augment;
        options
    }
}

/// Keeps what slows steps down out of the way: candle's own threads, which wait in
/// busy loops while texts are spread over threads here already, and the giving back
/// and getting anew of the same memory at every step. What the environment says of
/// either goes first.
#[allow(unsafe_code, reason = "settings of the process have no safe interface")]
fn settle_process(threads: usize) {
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(CANDLE).is_none() {
        // SAFETY: no thread has been started yet that could read the environment.
        unsafe { std::env::set_var(CANDLE, "1") };
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let of_malloc = |name: &std::ffi::OsString| {
            let name = name.to_string_lossy();
            name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES"
        };
        if std::env::vars_os().any(|(name, _)| of_malloc(&name)) {
            return;
        }
        let arenas = i32::try_from(threads + 1).unwrap_or(i32::MAX);
        for (parameter, value) in [
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, i32::MAX),
            (libc::M_TOP_PAD, 64 << 20),
            (libc::M_ARENA_MAX, arenas),
        ] {
            // SAFETY: `mallopt` takes any parameter and value, and refuses some.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = threads;
}

pub fn run(args: Args) -> Result {
    let options = args.options.build();
    settle_process(options.threads);
    let name = args
        .name
        .or_else(|| Some(args.output.file_name()?.to_str()?.to_owned()));
    let inherited = args.base.join("taxonomy.toml");
    let taxonomy = match args.taxonomy {
        Some(path) => path,
        None if inherited.exists() => inherited,
        None => {
            let base = args.base.display();
            return Err(
                format!("{base} has no labels: name a taxonomy with --taxonomy FILE").into(),
            );
        }
    };
    let job = TrainJob {
        data: args.data,
        lexical_data: args.lexical_data,
        dev: args.dev,
        taxonomy,
        base: args.base,
        name: name.unwrap_or_else(|| "model".to_owned()),
        version: args.version,
        command: std::env::args_os()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" "),
        card: args.card,
        groups: args.groups,
        top_recall: args.top_recall,
        average_with: args.average_with,
        cuda: args.device == DeviceName::Cuda,
        output: args.output,
    };
    let log_path = args
        .log
        .unwrap_or_else(|| job.output.join("training/log.jsonl"));
    let mut log = open_log(&log_path)
        .map_err(|error| format!("cannot write {}: {error}", log_path.display()))?;
    let bar = ProgressBar::new(1000 * options.epochs);
    bar.set_style(ProgressStyle::with_template(
        "{wide_bar} {percent} %  {msg}",
    )?);
    let manifest = train(&job, &options, &mut |event| {
        // A full disk must not end a run of hours: the log is only an aid.
        if let Ok(line) = serde_json::to_string(event) {
            let _ = writeln!(log, "{line}");
        }
        match event {
            TrainEvent::Resumed { step } => {
                say(&bar, format!("going on after step {step}"));
            }
            TrainEvent::Step(step) => {
                bar.set_position((1000.0 * step.epoch) as u64);
                let left = indicatif::HumanDuration(std::time::Duration::from_secs_f64(
                    step.seconds_left.clamp(0.0, 1e7),
                ));
                bar.set_message(format!(
                    "loss {:.3}  {:.0} tokens/s  {left} left",
                    step.loss, step.tokens_per_second
                ));
            }
            TrainEvent::Epoch {
                epoch,
                score,
                heads,
            } => {
                let heads: Vec<String> = heads
                    .iter()
                    .map(|(name, score)| format!("{name} {score:.3}"))
                    .collect();
                let line = format!("epoch {epoch}: dev score {score:.4} ({})", heads.join(", "));
                say(&bar, line);
            }
            _ => {}
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    writeln!(
        std::io::stdout(),
        "{} {} is in {}",
        manifest.name,
        manifest.version,
        job.output.display()
    )?;
    Ok(Exit::Done)
}

/// A line above the bar, or alone where there is none.
fn say(bar: &ProgressBar, line: String) {
    match bar.is_hidden() {
        true => super::message(format_args!("{line}")),
        false => bar.println(line),
    }
}

fn open_log(path: &std::path::Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
