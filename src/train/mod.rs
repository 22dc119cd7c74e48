//! Fine-tuning a model on labelled reports.

mod augment;
mod batch;
mod checkpoint;
mod data;
mod kernels;
mod loss;
pub(crate) mod metrics;
mod network;
mod ops;
mod options;
mod parameters;
mod trainer;

pub use data::{Evidence, LabelledReport, Target, read_labelled};
pub use options::TrainOptions;
pub use trainer::{StepReport, TrainEvent};

/// temporary
pub fn temp(args: &[String]) -> crate::Result<()> {
    use std::io::Write;
    let output = std::path::PathBuf::from(&args[0]);
    let mut options = TrainOptions::default();
    for kv in &args[1..] {
        let (k, v) = kv.split_once('=').unwrap();
        let mut j = serde_json::to_value(&options).unwrap();
        j[k] = serde_json::from_str(v).unwrap();
        options = serde_json::from_value(j).unwrap();
    }
    std::fs::create_dir_all(&output).unwrap();
    let taxonomy = std::sync::Arc::new(crate::Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml")?);
    let mut train = read_labelled("fixtures/reports.train.jsonl", &taxonomy)?;
    train.extend(read_labelled("fixtures/snippets.train.jsonl", &taxonomy)?);
    let dev = read_labelled("fixtures/reports.dev.jsonl", &taxonomy)?;
    let base = trainer::Base::load(std::path::Path::new("models/base/multilingual-e5-small-sv"))?;
    let data = trainer::TrainingData { train: &train, dev: &dev, fingerprint: String::new() };
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(output.join("log.jsonl")).unwrap();
    trainer::fine_tune(&base, &taxonomy, &data, &options, &candle_core::Device::Cpu, &output, &mut |e| {
        writeln!(log, "{}", serde_json::to_string(e).unwrap()).unwrap(); Ok(()) })?;
    Ok(())
}
