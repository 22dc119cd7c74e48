//! From data and a base encoder to a bundle.

use super::calibration::{self, FitOptions};
use super::data::{LabelledReport, Target, read_labelled};
use super::lexical::{self, LexicalOptions};
use super::options::TrainOptions;
use super::trainer::{self, Base, TrainEvent, TrainingData};
use crate::classifier::ClassifierOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::evaluation::{self, Evaluation, EvaluationOptions, read_groupings};
use crate::model::calibration::{Calibration, RawLogits};
use crate::model::{BundleParts, INPUT_MAGNITUDES, MANIFEST, Manifest, NamedTensor, TensorType};
use crate::report::Report;
use crate::taxonomy::Taxonomy;
use crate::text::NormalisedText;
use candle_core::Device;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to train on, from what, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainJob {
    /// Files of labelled reports to train on, see [`read_labelled`].
    pub data: Vec<PathBuf>,
    /// Files of labelled reports that only the lexical path learns from, beside
    /// `data`: those that the base has been trained on before, see
    /// [`read_labelled`]. May be empty.
    pub lexical_data: Vec<PathBuf>,
    /// Files of labelled reports that decide which epoch is kept and that
    /// calibration and thresholds are fitted on. They are never trained on.
    pub dev: Vec<PathBuf>,
    /// The taxonomy file.
    pub taxonomy: PathBuf,
    /// What training starts from: an encoder in Hugging Face layout, or a
    /// bundle, whose heads are kept when it has the same labels.
    pub base: PathBuf,
    /// The folder for the bundle. Checkpoints are kept in its subfolder
    /// `training`, which may be deleted afterwards.
    pub output: PathBuf,
    /// The model's name.
    pub name: String,
    /// The model's version.
    pub version: String,
    /// For the manifest: the command that runs this job.
    pub command: String,
    /// What the model card says before its figures, in Markdown.
    pub card: Option<PathBuf>,
    /// What else is known of the dev reports, for figures by it in the model
    /// card, see [`read_groupings`].
    pub groups: Option<PathBuf>,
    /// The recall of an ordered head's two highest levels together that its
    /// thresholds must reach on the dev data, from 0 to 1, see
    /// [`TOP_RECALL`](super::TOP_RECALL). More of it costs false alarms.
    pub top_recall: f64,
    /// Whether to train on an NVIDIA GPU. It needs candle built with CUDA.
    pub cuda: bool,
    /// Bundles with the same shape and taxonomy, whose weights are averaged with
    /// this run's (model soups, Wortsman et al. 2022): often better than each, at
    /// no cost in use. It takes runs that started alike: from the same base with
    /// the same seed, or this one from the other. May be empty.
    pub average_with: Vec<PathBuf>,
}

/// Fine-tunes a base encoder, fits the lexical path, calibrates both on the dev
/// data and writes the bundle. Run again after an interruption, it goes on from
/// the last checkpoint.
///
/// Texts are spread over threads, so a program does well to set
/// `CANDLE_NUM_THREADS=1` before candle starts its own, and to keep its allocator
/// from giving memory back to the system at every step, as `lyhord train` does.
///
/// # Errors
///
/// Those of reading data, taxonomy and base, [`ErrorKind::InvalidData`] for fewer
/// than five dev records or a text that is both trained on and measured with,
/// [`ErrorKind::InvalidOption`] for settings that cannot be used or a checkpoint
/// of another run, [`ErrorKind::Compute`] when training diverges, and whatever
/// `events` gives.
///
/// # Examples
///
/// ```no_run
/// use lyhord::train::{TrainEvent, TrainJob, TrainOptions, train};
///
/// let job = TrainJob {
///     data: vec!["train.jsonl".into()],
///     lexical_data: Vec::new(),
///     dev: vec!["dev.jsonl".into()],
///     taxonomy: "taxonomy.toml".into(),
///     base: "models/base/multilingual-e5-small-sv".into(),
///     output: "my-model".into(),
///     name: "my-model".into(),
///     version: "1.0.0".into(),
///     command: String::new(),
///     card: None,
///     groups: None,
///     top_recall: lyhord::train::TOP_RECALL,
///     cuda: false,
///     average_with: Vec::new(),
/// };
/// let manifest = train(&job, &TrainOptions::default(), &mut |event| {
///     if let TrainEvent::Epoch { epoch, score, .. } = event {
///         eprintln!("epoch {epoch}: {score:.3}");
///     }
///     Ok(())
/// })?;
/// println!("{}", manifest.name);
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn train(
    job: &TrainJob,
    options: &TrainOptions,
    events: &mut dyn FnMut(&TrainEvent) -> Result<()>,
) -> Result<Manifest> {
    let taxonomy_text = std::fs::read_to_string(&job.taxonomy)
        .map_err(|error| Error::io(&job.taxonomy, "read", error))?;
    let taxonomy = Arc::new(Taxonomy::from_file(&job.taxonomy)?);
    let data = read_all(&job.data, &taxonomy)?;
    // A file that is named twice is trained on twice. Its words count once.
    let mut lexical_paths: Vec<PathBuf> = Vec::new();
    for path in job.data.iter().chain(&job.lexical_data) {
        if !lexical_paths.contains(path) {
            lexical_paths.push(path.clone());
        }
    }
    let lexical_data = read_all(&lexical_paths, &taxonomy)?;
    let dev = read_all(&job.dev, &taxonomy)?;
    options.check()?;
    let fit = FitOptions::with_top_recall(job.top_recall)?;
    apart(&lexical_data, &dev)?;
    if dev.len() < calibration::FOLDS {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "there are {} dev records; at least {} are needed to calibrate and measure in folds, and some hundreds to do it well",
                dev.len(),
                calibration::FOLDS
            ),
        ));
    }
    let groupings = job.groups.as_ref().map(read_groupings).transpose()?;
    let groupings = groupings.unwrap_or_default();
    evaluation::check_groupings(&groupings, &dev)?;
    let base = Base::load(&job.base)?;
    let device = match job.cuda {
        false => Device::Cpu,
        true => Device::new_cuda(0).map_err(|error| {
            Error::new(
                ErrorKind::InvalidOption,
                "no CUDA device can be used: build with --features candle-core/cuda on a machine with an NVIDIA GPU",
            )
            .with_source(error)
        })?,
    };
    let hashes = hashes(job)?;
    let mut averaged = Vec::new();
    let mut inputs = hashes.clone();
    for path in job.lexical_data.iter().chain(&job.groups) {
        inputs[path.display().to_string()] = hash(path)?.into();
    }
    for folder in &job.average_with {
        averaged.push(Base::load(folder)?);
        let path = folder.join("model.safetensors");
        inputs[path.display().to_string()] = hash(&path)?.into();
    }
    // What can fail soon is done before what takes hours.
    let prose = prose(job)?;
    let words = lexical::fit(&taxonomy, &lexical_data, &LexicalOptions::default())?;
    let training = job.output.join("training");
    std::fs::create_dir_all(&training).map_err(|error| Error::io(&training, "make", error))?;
    let trained = trainer::fine_tune(
        &base,
        &taxonomy,
        &TrainingData {
            train: &data,
            dev: &dev,
            // The files in their order: one may be named twice, or change its role.
            fingerprint: format!("{hashes} {:?} {:?}", job.data, job.dev),
            average_with: &averaged,
        },
        options,
        &device,
        &training,
        events,
    )?;
    let mut tensors: Vec<NamedTensor> = trained
        .tensors
        .into_iter()
        .map(|(name, shape, values)| NamedTensor {
            dtype: match name.ends_with(INPUT_MAGNITUDES) {
                true => TensorType::F32,
                false => TensorType::F16,
            },
            name,
            shape,
            values,
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut parts = BundleParts {
        name: job.name.clone(),
        version: job.version.clone(),
        encoder: base.config.clone(),
        attention_size: options.attention_size,
        lexical: Some(words),
        window: trainer::window(&base.config),
        tokenizer: base.tokenizer_json.clone(),
        taxonomy: taxonomy_text,
        calibration: Calibration::neutral(&taxonomy).to_json()?,
        model_card: String::new(),
        tensors,
        training: serde_json::json!({
            "command": job.command,
            "seed": options.seed,
            "options": options,
            "inputs": inputs,
            "top_recall": job.top_recall,
            "texts": { "train": data.len(), "lexical": lexical_data.len(), "dev": dev.len() },
            "best_epoch": trained.best_epoch,
            "steps": trained.steps,
            "engine": env!("CARGO_PKG_VERSION"),
        }),
        metrics: serde_json::Value::Null,
    };
    // The calibration is fitted to what inference will really say, with weights
    // rounded to f16.
    let classifier = ClassifierOptions::new().load(&parts.files()?)?;
    let texts: Vec<Report> = dev.iter().map(|r| Report::new(r.text.clone())).collect();
    let raw: Vec<RawLogits> = classifier
        .raw_stream(texts)
        .map(|(_, raw)| raw)
        .collect::<Result<_>>()?;
    let targets: Vec<Vec<Option<Target>>> = dev.iter().map(|r| r.targets.clone()).collect();
    let fitted = calibration::fit(&taxonomy, &raw, &targets, &fit)?;
    let how = EvaluationOptions {
        cross_fit: true,
        groupings,
        top_recall: job.top_recall,
        ..EvaluationOptions::default()
    };
    let evaluation = evaluation::measure(&taxonomy, classifier.model(), &fitted, &dev, &raw, &how)?;
    parts.calibration = fitted.to_json()?;
    parts.metrics = metrics(&evaluation);
    parts.model_card = card(job, &prose, &evaluation);
    parts.write(&job.output)
}

/// Each head's figures and their intervals, for the manifest.
fn metrics(evaluation: &Evaluation) -> serde_json::Value {
    let heads = evaluation.heads.iter().map(|head| {
        let figures = serde_json::to_value(&head.figures).unwrap_or_default();
        (head.name.clone(), figures)
    });
    serde_json::json!({
        "reports": evaluation.reports,
        "cross_fitted": evaluation.cross_fitted,
        "heads": heads.collect::<serde_json::Map<_, _>>(),
    })
}

/// What the caller says of the model: a text without a heading.
fn prose(job: &TrainJob) -> Result<String> {
    job.card.as_ref().map_or(Ok(String::new()), |path| {
        std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))
    })
}

/// The model card: name and version, what the caller says, then the figures.
fn card(job: &TrainJob, prose: &str, evaluation: &Evaluation) -> String {
    let dev: Vec<String> = job
        .dev
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!(
        "# {} {}\n\n{}\n\n## Figures\n\nMeasured on {} with 95 % bootstrap intervals.\n\n```text\n{evaluation}```\n",
        job.name,
        job.version,
        prose.trim(),
        dev.join(", "),
    )
}

fn read_all(paths: &[PathBuf], taxonomy: &Taxonomy) -> Result<Vec<LabelledReport>> {
    let mut reports = Vec::new();
    for path in paths {
        reports.extend(read_labelled(path, taxonomy)?);
    }
    if reports.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidOption,
            "no file of labelled reports was named",
        ));
    }
    Ok(reports)
}

/// Refuses data of which a text is both trained on and measured with, or stands
/// twice in what is measured with: its folds would know each other. Texts that
/// differ in capitals and white space only are the same.
fn apart(data: &[LabelledReport], dev: &[LabelledReport]) -> Result<()> {
    let key = |report: &LabelledReport| {
        let text = NormalisedText::new(&report.text);
        let words: Vec<String> = text
            .as_str()
            .split_whitespace()
            .map(str::to_lowercase)
            .collect();
        words.join(" ")
    };
    let trained: HashSet<String> = data.iter().map(key).collect();
    let mut measured = HashSet::new();
    for report in dev {
        let text = key(report);
        let other = match trained.contains(&text) {
            true => "a training record",
            false if !measured.insert(text) => "another dev record",
            false => continue,
        };
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "the dev record {} has the same text as {other}; take one of them out",
                report.id
            ),
        ));
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    let digest = Sha256::digest(&bytes);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// SHA-256 of every file that decides what the encoder and its heads learn.
fn hashes(job: &TrainJob) -> Result<serde_json::Value> {
    let base =
        ["config.json", "tokenizer.json", "model.safetensors"].map(|name| job.base.join(name));
    // A bundle's manifest has the hash of its labels too.
    let manifest = Some(job.base.join(MANIFEST)).filter(|path| path.exists());
    let files = job
        .data
        .iter()
        .chain(&job.dev)
        .chain([&job.taxonomy])
        .chain(&base)
        .chain(&manifest);
    Ok(files
        .map(|path| Ok((path.display().to_string(), hash(path)?.into())))
        .collect::<Result<serde_json::Map<_, _>>>()?
        .into())
}
