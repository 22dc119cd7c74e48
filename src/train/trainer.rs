//! The training loop.

use super::batch::{Batcher, Example, Item, LabelledBatch, by_budget, epoch_items};
use super::checkpoint::{self, Progress};
use super::data::{LabelledReport, Target};
use super::loss::{evidence_loss, task_loss};
use super::network::{self, Network, Regularisation};
use super::options::TrainOptions;
use super::parameters::{AdamW, NamedValues, Parameter, Parameters, Values};
use super::{kernels, metrics, ops};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{EncoderConfig, WindowConfig};
use crate::model::{BundleFiles, INPUT_MAGNITUDES, MANIFEST};
use crate::taxonomy::{HeadKind, Taxonomy};
use candle_core::safetensors::Load as _;
use candle_core::{DType, Device, Tensor};
use half::f16;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokenizers::Tokenizer;

/// Where a run stands, for progress displays and logs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Optimiser steps taken.
    pub step: u64,
    /// Epochs done, fractions included.
    pub epoch: f64,
    /// Loss of this step's texts, per text.
    pub loss: f32,
    /// The loss that draws label attention to evidence, before its weight.
    pub evidence_loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate of the encoder's top layer.
    pub learning_rate: f32,
    /// Tokens per second since the session began.
    pub tokens_per_second: f64,
    /// Seconds until the last epoch's end at this pace.
    pub seconds_left: f64,
}

/// Training texts that the magnitudes of the encoder's inputs are taken from.
const MAGNITUDE_TEXTS: usize = 512;

/// What happens during training, for progress displays and logs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum TrainEvent {
    /// A checkpoint was found; the run goes on after this step.
    Resumed {
        /// Optimiser steps taken before.
        step: u64,
    },
    /// One optimiser step was taken.
    Step(StepReport),
    /// An epoch was evaluated on the dev data.
    Epoch {
        /// Epochs done.
        epoch: u64,
        /// The score that decides which epoch is kept: the mean over heads of
        /// mean average precision, accuracy, quadratic weighted kappa or
        /// average precision, by the head's kind.
        score: f64,
        /// The score of each head.
        heads: Vec<(String, f64)>,
    },
}

/// The weights of the best epoch.
pub(crate) struct Trained {
    /// Every tensor.
    pub(crate) tensors: Vec<NamedValues>,
    pub(crate) best_epoch: u64,
    pub(crate) steps: u64,
}

/// What fine-tuning starts from: an encoder in Hugging Face layout, or a bundle.
pub(crate) struct Base {
    pub(crate) config: EncoderConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizer_json: Vec<u8>,
    tensors: Tensors,
    /// A bundle's labels, which its heads answer to.
    taxonomy: Option<Taxonomy>,
}

/// The tensors of a safetensors file, without a framework's prefix.
struct Tensors {
    path: PathBuf,
    named: HashMap<String, Tensor>,
}

impl Tensors {
    fn read(path: PathBuf) -> Result<Self> {
        let bytes = std::fs::read(&path).map_err(|error| Error::io(&path, "read", error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| {
            Error::new(
                ErrorKind::InvalidBundle,
                format!("cannot read {}", path.display()),
            )
            .with_source(error)
        })?;
        let mut named = HashMap::new();
        for (name, view) in file.tensors() {
            // A bundle's lexical path is fitted anew; candle has no type for it.
            if name.starts_with("lexical.") {
                continue;
            }
            let short = ["bert.", "roberta."]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix));
            let short = short.unwrap_or(&name).to_owned();
            named.insert(short, view.load(&Device::Cpu)?);
        }
        Ok(Self { path, named })
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.named
            .get(name)
            .ok_or_else(|| self.invalid(format!("no tensor {name}")))
    }

    /// The tensor of a parameter, which must have its shape.
    fn like(&self, parameter: &Parameter) -> Result<&Tensor> {
        let tensor = self.get(&parameter.name)?;
        let (name, found, shape) = (&parameter.name, tensor.dims(), &parameter.shape);
        if found != shape {
            return Err(self.invalid(format!("{name} in the shape {found:?}, not {shape:?}")));
        }
        Ok(tensor)
    }

    fn invalid(&self, what: String) -> Error {
        let message = format!("{} has {what}", self.path.display());
        Error::new(ErrorKind::InvalidBundle, message)
    }
}

/// The values of a tensor in single precision, row by row.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl Base {
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let taxonomy = if dir.join(MANIFEST).exists() {
            BundleFiles::from_dir(dir)?.verify()?;
            Some(Taxonomy::from_file(dir.join("taxonomy.toml"))?)
        } else {
            None
        };
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|error| Error::io(&path, "read", error))
        };
        let mut config = EncoderConfig::from_json(&String::from_utf8_lossy(&read("config.json")?))?;
        let tokenizer_json = read("tokenizer.json")?;
        let mut tokenizer = Tokenizer::from_bytes(&tokenizer_json).map_err(|error| {
            let path = dir.join("tokenizer.json");
            Error::new(
                ErrorKind::InvalidBundle,
                format!("cannot read {}", path.display()),
            )
            .with_source(error)
        })?;
        // A BERT's config.json names no special tokens, its tokeniser does.
        let special = |name| tokenizer.token_to_id(name);
        if let (Some(first), Some(last)) = (special("[CLS]"), special("[SEP]")) {
            (config.bos_token_id, config.eos_token_id) = (first, last);
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| {
            Error::new(ErrorKind::InvalidBundle, "cannot switch truncation off").with_source(error)
        })?;
        Ok(Self {
            config,
            tokenizer,
            tokenizer_json,
            tensors: Tensors::read(dir.join("model.safetensors"))?,
            taxonomy,
        })
    }

    fn parameters(&self, options: &TrainOptions, device: &Device) -> Result<Parameters> {
        let mut parameters = Parameters::new(device.clone());
        let layers = self.config.num_hidden_layers;
        let fixed = options.freeze;
        let rate = |depth: usize| options.layer_decay.powi((layers - depth) as i32);
        let mut add = |name: String, rate: f32| -> Result<()> {
            let tensor = self.tensors.get(&name)?;
            parameters.add_encoder(&name, tensor.dims().to_vec(), values(tensor)?, rate)
        };
        let embedding_rate = if fixed.is_some() { 0.0 } else { rate(0) };
        for part in [
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm.weight",
            "LayerNorm.bias",
        ] {
            add(format!("embeddings.{part}"), embedding_rate)?;
        }
        for layer in 0..layers {
            let rate = if fixed.is_some_and(|n| layer < n) {
                0.0
            } else {
                rate(layer + 1)
            };
            for part in [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ] {
                add(format!("encoder.layer.{layer}.{part}.weight"), rate)?;
                add(format!("encoder.layer.{layer}.{part}.bias"), rate)?;
            }
        }
        Ok(parameters)
    }

    /// Whether this is a bundle with the same heads and labels.
    fn has_labels_of(&self, taxonomy: &Taxonomy) -> bool {
        let labels = |taxonomy: &Taxonomy| -> Vec<_> {
            let heads = taxonomy.heads().iter();
            heads
                .map(|head| {
                    let codes = head.labels().iter().map(|label| label.code().to_owned());
                    let codes: Vec<String> = codes.collect();
                    (head.name().to_owned(), head.kind(), codes)
                })
                .collect()
        };
        self.taxonomy.as_ref().map(labels) == Some(labels(taxonomy))
    }

    /// Checks that this model's weights can be averaged with `parameters`.
    fn check_alike(&self, parameters: &Parameters, taxonomy: &Taxonomy) -> Result<()> {
        if !self.has_labels_of(taxonomy) {
            return Err(self.tensors.invalid(
                "not the heads and labels of this run, so that they cannot be averaged".to_owned(),
            ));
        }
        let mut all = parameters.all.iter();
        all.try_for_each(|parameter| self.tensors.like(parameter).map(drop))
    }

    /// Lets the heads start from a bundle's, where that has the same heads with
    /// the same labels; says whether it has.
    fn set_heads(&self, parameters: &mut Parameters, taxonomy: &Taxonomy) -> Result<bool> {
        if !self.has_labels_of(taxonomy) {
            return Ok(false);
        }
        for parameter in parameters.all.iter_mut().filter(|p| p.is_head) {
            parameter.value = values(self.tensors.like(parameter)?)?;
            parameter.average.clone_from(&parameter.value);
        }
        parameters.refresh()?;
        Ok(true)
    }
}

/// The default windows, cut to what the base can read at once.
pub(crate) fn window(encoder: &EncoderConfig) -> WindowConfig {
    let default = WindowConfig::default();
    let max_tokens = default
        .max_tokens
        .min(encoder.max_tokens().saturating_sub(2));
    WindowConfig {
        max_tokens,
        overlap: default.overlap.min(max_tokens / 4),
    }
}

/// What training reads.
pub(crate) struct TrainingData<'a> {
    pub(crate) train: &'a [LabelledReport],
    pub(crate) dev: &'a [LabelledReport],
    /// Identifies data and base in the checkpoint.
    pub(crate) fingerprint: String,
    /// Other models, whose weights are averaged with this run's.
    pub(crate) average_with: &'a [Base],
}

struct Trainer<'a> {
    options: &'a TrainOptions,
    data: &'a TrainingData<'a>,
    batcher: Batcher<'a>,
    network: Network,
    pools: Vec<rayon::ThreadPool>,
    /// Hidden states after the frozen layers, by training text.
    cache: Option<Vec<Vec<f16>>>,
}

/// Fine-tunes a base encoder. The run keeps a checkpoint in `output` and goes
/// on from one it finds there.
pub(crate) fn fine_tune(
    base: &Base,
    taxonomy: &Arc<Taxonomy>,
    data: &TrainingData<'_>,
    options: &TrainOptions,
    device: &Device,
    output: &Path,
    events: &mut dyn FnMut(&TrainEvent) -> Result<()>,
) -> Result<Trained> {
    let layers = base.config.num_hidden_layers;
    let frozen = options.freeze.unwrap_or(0);
    if frozen > layers {
        return Err(Error::new(
            ErrorKind::InvalidOption,
            format!("cannot freeze {frozen} layers: the base has {layers}"),
        ));
    }
    let window = window(&base.config);
    let batcher = Batcher {
        tokenizer: &base.tokenizer,
        taxonomy,
        encoder: &base.config,
        window: &window,
    };
    let cached = if options.recompute_frozen { 0 } else { frozen };
    let network = Network::new(base.config.clone(), Arc::clone(taxonomy), cached);
    let mut parameters = base.parameters(options, device)?;
    network::add_heads(
        &mut parameters,
        taxonomy,
        base.config.hidden_size,
        options.attention_size,
        options.seed,
    )?;
    if !base.set_heads(&mut parameters, taxonomy)? {
        set_prior(&mut parameters, taxonomy, data.train);
    }
    for model in data.average_with {
        model.check_alike(&parameters, taxonomy)?;
    }
    let pools = (0..options.threads.max(1))
        .map(|_| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(1)
                .build()
                .map_err(|error| {
                    Error::new(ErrorKind::Io, "cannot start a worker thread").with_source(error)
                })
        })
        .collect::<Result<_>>()?;
    let mut trainer = Trainer {
        options,
        data,
        batcher,
        network,
        pools,
        cache: None,
    };
    let fixed = parameters.fixed()?;
    if cached > 0 {
        trainer.cache = Some(trainer.frozen_states(&parameters.averaged(&fixed)?)?);
    }
    trainer.run(&mut parameters, &fixed, output, events)
}

/// Starts the biases of multi-label, ordinal and binary heads at the log odds
/// of their labels in the training data.
fn set_prior(parameters: &mut Parameters, taxonomy: &Taxonomy, train: &[LabelledReport]) {
    let Some(bias) = parameters.all.iter_mut().find(|p| p.name == "heads.bias") else {
        return;
    };
    for (index, head) in taxonomy.heads().iter().enumerate() {
        if head.kind() == HeadKind::SingleLabel {
            continue;
        }
        let known: Vec<&Target> = train
            .iter()
            .filter_map(|r| r.targets[index].as_ref())
            .collect();
        for logit in head.logits() {
            let place = logit - head.logits().start;
            let hold = known
                .iter()
                .filter(|target| target.holds(head.kind(), place));
            let share = (hold.count() as f32 + 1.0) / (known.len() as f32 + 2.0);
            bias.value[logit] = (share / (1.0 - share)).ln();
        }
    }
    bias.average.clone_from(&bias.value);
    // The tensors that the network reads are made from the master copy.
    let _ = parameters.refresh();
}

/// The gradient of each parameter; empty where there is none.
type Gradients = Vec<Vec<f32>>;

/// What a worker made of its groups, each with the group's place.
type Numbered<T> = Vec<(usize, Vec<T>)>;

/// One shard's contribution to a step.
struct Shard {
    gradients: Gradients,
    loss: f32,
    evidence_loss: f32,
    tokens: usize,
}

impl Trainer<'_> {
    fn run(
        &self,
        parameters: &mut Parameters,
        fixed: &Values,
        output: &Path,
        events: &mut dyn FnMut(&TrainEvent) -> Result<()>,
    ) -> Result<Trained> {
        let options = self.options;
        let checkpoint_path = output.join("checkpoint.safetensors");
        let best_path = output.join("best.safetensors");
        let fingerprint = format!("{} {}", self.data.fingerprint, fingerprint(options));
        let mut progress = Progress {
            fingerprint: fingerprint.clone(),
            ..Progress::default()
        };
        if let Some(found) = checkpoint::load(&checkpoint_path, parameters)? {
            if found.fingerprint != fingerprint {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    format!(
                        "{} belongs to a run with other data, base or options; delete it or choose another output folder",
                        checkpoint_path.display()
                    ),
                ));
            }
            events(&TrainEvent::Resumed { step: found.step })?;
            progress = found;
        }
        let (mut session, mut session_tokens) = (Instant::now(), 0u64);
        let mut saved = Instant::now();
        while progress.epoch < options.epochs {
            let stale = progress.best.map_or(0, |(_, epoch)| progress.epoch - epoch);
            if stale >= options.patience.max(1) {
                break;
            }
            let items = epoch_items(
                self.data.train,
                self.composes(),
                options.seed,
                progress.epoch,
            );
            while progress.position < items.len() {
                let examples = self.next_examples(&items, &mut progress)?;
                let done = progress.epoch as f64 + progress.position as f64 / items.len() as f64;
                let rate = schedule(done / options.epochs as f64, options.warmup);
                progress.step += 1;
                let texts: usize = examples.len();
                let (shards, loss, evidence, tokens) =
                    self.step(parameters, fixed, examples, progress.step)?;
                let adam = AdamW {
                    encoder_rate: options.encoder_rate * rate,
                    head_rate: options.head_rate * rate,
                    weight_decay: options.weight_decay,
                    step: progress.step,
                    average_decay: options.average_decay,
                };
                let gradient_norm = parameters.step(shards, options.clip, adam)?;
                if !gradient_norm.is_finite() {
                    return Err(Error::new(
                        ErrorKind::Compute,
                        format!(
                            "training diverged at step {} ({texts} texts): lower the learning rates",
                            progress.step
                        ),
                    ));
                }
                progress.tokens += tokens as u64;
                session_tokens += tokens as u64;
                let speed = session_tokens as f64 / session.elapsed().as_secs_f64();
                let per_epoch = progress.tokens as f64 / done.max(1e-9);
                events(&TrainEvent::Step(StepReport {
                    step: progress.step,
                    epoch: done,
                    loss,
                    evidence_loss: evidence,
                    gradient_norm,
                    learning_rate: adam.encoder_rate,
                    tokens_per_second: speed,
                    seconds_left: (options.epochs as f64 - done) * per_epoch / speed,
                }))?;
                let stop = options
                    .stop_after
                    .is_some_and(|steps| progress.step >= steps);
                if stop || saved.elapsed().as_secs_f64() > 60.0 * options.checkpoint_minutes {
                    checkpoint::save(&checkpoint_path, parameters, &progress)?;
                    (session, session_tokens, saved) = (Instant::now(), 0, Instant::now());
                }
                if stop {
                    return Err(Error::new(
                        ErrorKind::InvalidOption,
                        format!(
                            "stopped after {} steps as asked; run again to go on",
                            progress.step
                        ),
                    ));
                }
            }
            progress.epoch += 1;
            progress.position = 0;
            let averaged = parameters.averaged(fixed)?;
            let logits = self.predict(&averaged, self.data.dev)?;
            let heads = scores(&self.network.taxonomy, self.data.dev, &logits);
            let score = metrics::mean(heads.iter().map(|(_, score)| *score));
            events(&TrainEvent::Epoch {
                epoch: progress.epoch,
                score,
                heads,
            })?;
            if progress.best.is_none_or(|(best, _)| score > best) {
                progress.best = Some((score, progress.epoch));
                checkpoint::save(&best_path, parameters, &progress)?;
            }
            checkpoint::save(&checkpoint_path, parameters, &progress)?;
            (session, session_tokens, saved) = (Instant::now(), 0, Instant::now());
        }
        checkpoint::load(&best_path, parameters)?.ok_or_else(|| {
            let message = format!("there are no best weights in {}", best_path.display());
            Error::new(ErrorKind::InvalidOption, message)
        })?;
        let runs = self.data.average_with;
        let share = 1.0 / (1 + runs.len()) as f32;
        let weighed =
            |values: &[f32]| -> Vec<f32> { values.iter().map(|value| value * share).collect() };
        let mut tensors = Vec::new();
        for p in &parameters.all {
            let ours = if p.is_trained() { &p.average } else { &p.value };
            let mut sum = weighed(ours);
            for model in runs {
                for (sum, other) in sum
                    .iter_mut()
                    .zip(weighed(&values(model.tensors.like(p)?)?))
                {
                    *sum += other;
                }
            }
            tensors.push((p.name.clone(), p.shape.clone(), sum));
        }
        let magnitudes = self.input_magnitudes(&Values::new(&tensors, fixed.device())?)?;
        tensors.extend(magnitudes);
        Ok(Trained {
            tensors,
            best_epoch: progress.best.map_or(progress.epoch, |(_, epoch)| epoch),
            steps: progress.step,
        })
    }

    fn composes(&self) -> bool {
        let multi = |head: &crate::taxonomy::Head| head.kind() == HeadKind::MultiLabel;
        self.options.compose
            && self.cache.is_none()
            && self.network.taxonomy.heads().iter().any(multi)
    }

    /// Tokenises texts from the current position on until a step's budget is full.
    fn next_examples(
        &self,
        items: &[Item],
        progress: &mut Progress,
    ) -> Result<Vec<(usize, Example)>> {
        let mut examples = Vec::new();
        let mut tokens = 0;
        let augments = self.options.augment && self.cache.is_none();
        while let Some(item) = items.get(progress.position) {
            let seed = kernels::mix(
                self.options.seed ^ (progress.epoch << 32),
                progress.position as u64,
            );
            let example = self
                .batcher
                .example(self.data.train, item, augments.then_some(seed))?;
            let length = example.ids.len() + 2;
            if !examples.is_empty() && tokens + length > self.options.tokens_per_step {
                break;
            }
            tokens += length;
            examples.push((item[0], example));
            progress.position += 1;
        }
        Ok(examples)
    }

    fn step(
        &self,
        parameters: &Parameters,
        fixed: &Values,
        mut examples: Vec<(usize, Example)>,
        step: u64,
    ) -> Result<(Vec<Gradients>, f32, f32, usize)> {
        let texts = examples.len();
        // The longest first, each to the shard with the fewest tokens so far.
        examples.sort_by_key(|(index, e)| (std::cmp::Reverse(e.ids.len()), *index));
        let mut shards: Vec<Vec<(usize, Example)>> =
            self.pools.iter().map(|_| Vec::new()).collect();
        let mut loads = vec![0; shards.len()];
        for example in examples {
            let lightest = (0..loads.len()).min_by_key(|i| loads[*i]).unwrap_or(0);
            loads[lightest] += example.1.ids.len() + 2;
            shards[lightest].push(example);
        }
        let results: Vec<Result<Shard>> = std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .pools
                .iter()
                .zip(shards)
                .enumerate()
                .filter(|(_, (_, shard))| !shard.is_empty())
                .map(|(place, (pool, shard))| {
                    let seed = kernels::mix(self.options.seed ^ 0x5eed, step * 64 + place as u64);
                    scope.spawn(move || {
                        pool.install(|| self.shard(parameters, fixed, shard, texts, seed))
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| Err(worker_died())))
                .collect()
        });
        let (mut gradients, mut loss, mut evidence_loss, mut tokens) = (Vec::new(), 0.0, 0.0, 0);
        for result in results {
            let shard = result?;
            gradients.push(shard.gradients);
            loss += shard.loss;
            evidence_loss += shard.evidence_loss;
            tokens += shard.tokens;
        }
        Ok((gradients, loss, evidence_loss, tokens))
    }

    fn shard(
        &self,
        parameters: &Parameters,
        fixed: &Values,
        shard: Vec<(usize, Example)>,
        texts: usize,
        seed: u64,
    ) -> Result<Shard> {
        let share = shard.len() as f64 / texts as f64;
        let cached: Option<Vec<Vec<f32>>> = self.cache.as_ref().map(|cache| {
            shard
                .iter()
                .map(|(i, _)| cache[*i].iter().map(|x| x.to_f32()).collect())
                .collect()
        });
        let states = cached
            .as_ref()
            .map(|states| states.iter().map(Vec::as_slice).collect());
        let LabelledBatch {
            batch,
            targets,
            evidence,
        } = self
            .batcher
            .pack(shard.into_iter().map(|(_, e)| e).collect(), states);
        let values = parameters.trained(fixed)?;
        let regularisation = Regularisation {
            dropout: self.options.dropout,
            seed,
        };
        let output = self
            .network
            .forward(&values, &batch, Some(regularisation))?;
        let targets: Vec<&[Option<Target>]> = targets.iter().map(Vec::as_slice).collect();
        let taxonomy = &self.network.taxonomy;
        let task = ops::loss(&output.logits, |x| {
            task_loss(
                taxonomy,
                &targets,
                self.options.smoothing,
                self.options.single_label_weight,
                x,
            )
        })?;
        let drawn = ops::loss(&output.scores, |x| {
            evidence_loss(taxonomy.num_queries(), &batch.texts, &evidence, x)
        })?;
        let total = ((&task + (&drawn * f64::from(self.options.evidence_weight))?)? * share)?;
        let grads = total.backward()?;
        Ok(Shard {
            gradients: parameters.gradients(&grads)?,
            loss: total.to_scalar::<f32>()?,
            evidence_loss: drawn.to_scalar::<f32>()? * share as f32,
            tokens: batch.windows.iter().map(|w| w.len()).sum(),
        })
    }

    /// Runs `work` on groups of texts, spread over the worker threads, and gives
    /// the results back in input order.
    fn in_groups<T: Send>(
        &self,
        reports: &[LabelledReport],
        work: impl Fn(Vec<Example>) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let examples = (0..reports.len())
            .map(|index| self.batcher.example(reports, &[index], None))
            .collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
        let mut examples = examples.into_iter();
        let groups: Vec<Vec<Example>> = by_budget(&lengths, 2048)
            .into_iter()
            .map(|group| examples.by_ref().take(group.len()).collect())
            .collect();
        let queue = std::sync::Mutex::new(groups.into_iter().enumerate());
        let done: Vec<Result<Numbered<T>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .pools
                .iter()
                .map(|pool| {
                    let (queue, work) = (&queue, &work);
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        loop {
                            let next = queue.lock().map_err(|_| worker_died())?.next();
                            let Some((place, group)) = next else {
                                return Ok(done);
                            };
                            done.push((place, pool.install(|| work(group))?));
                        }
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| Err(worker_died())))
                .collect()
        });
        let mut ordered: Numbered<T> = done
            .into_iter()
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        ordered.sort_by_key(|(place, _)| *place);
        Ok(ordered
            .into_iter()
            .flat_map(|(_, results)| results)
            .collect())
    }

    /// Encoder logits of each report, in order.
    fn predict(&self, values: &Values, reports: &[LabelledReport]) -> Result<Vec<Vec<f32>>> {
        let whole = self.whole_network();
        self.in_groups(reports, |group| {
            let batch = self.batcher.pack(group, None).batch;
            Ok(whole
                .forward(values, &batch, None)?
                .logits
                .to_vec2::<f32>()?)
        })
    }

    /// What [`Network::input_magnitudes`] gives over a sample of the training
    /// texts, as tensors of the bundle: int8 needs to know them.
    fn input_magnitudes(&self, values: &Values) -> Result<Vec<NamedValues>> {
        let whole = self.whole_network();
        let step = self.data.train.len().div_ceil(MAGNITUDE_TEXTS).max(1);
        let sample: Vec<LabelledReport> = self.data.train.iter().step_by(step).cloned().collect();
        let groups = self.in_groups(&sample, |group| {
            let batch = self.batcher.pack(group, None).batch;
            Ok(vec![whole.input_magnitudes(values, &batch)?])
        })?;
        let mut largest: Vec<(String, Vec<f32>)> = Vec::new();
        for group in groups {
            if largest.is_empty() {
                largest = group;
                continue;
            }
            for ((_, largest), (_, more)) in largest.iter_mut().zip(group) {
                for (largest, more) in largest.iter_mut().zip(more) {
                    *largest = largest.max(more);
                }
            }
        }
        Ok(largest
            .into_iter()
            .map(|(name, values)| {
                (
                    format!("{name}.{INPUT_MAGNITUDES}"),
                    vec![values.len()],
                    values,
                )
            })
            .collect())
    }

    /// The network with its frozen layers.
    fn whole_network(&self) -> Network {
        Network {
            first_layer: 0,
            ..self.network.clone()
        }
    }

    /// Hidden states of every training text after the frozen layers.
    fn frozen_states(&self, values: &Values) -> Result<Vec<Vec<f16>>> {
        self.in_groups(self.data.train, |group| {
            let windows: Vec<usize> = group
                .iter()
                .map(|e| {
                    crate::text::windows(
                        e.ids.len(),
                        self.batcher.window.max_tokens,
                        self.batcher.window.overlap,
                    )
                    .len()
                })
                .collect();
            let batch = self.batcher.pack(group, None).batch;
            let states = self
                .network
                .encode(values, &batch, 0..self.network.first_layer, None)?;
            let states: Vec<f32> = states.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            let hidden = self.network.encoder.hidden_size;
            let mut spans = batch.windows.iter();
            Ok(windows
                .into_iter()
                .map(|count| {
                    let rows: usize = spans.by_ref().take(count).map(|w| w.len()).sum();
                    rows * hidden
                })
                .scan(0, |start, size| {
                    let range = *start..*start + size;
                    *start += size;
                    Some(states[range].iter().map(|x| f16::from_f32(*x)).collect())
                })
                .collect())
        })
    }
}

fn worker_died() -> Error {
    Error::new(ErrorKind::Compute, "a worker thread ended unexpectedly")
}

/// What two runs must share for one to go on from the other's checkpoint.
fn fingerprint(options: &TrainOptions) -> String {
    let options = TrainOptions {
        stop_after: None,
        checkpoint_minutes: 0.0,
        ..options.clone()
    };
    serde_json::to_string(&options).unwrap_or_default()
}

/// The learning rate's factor after a share of the run: linear up, linear down.
fn schedule(done: f64, warmup: f64) -> f32 {
    let factor = if done < warmup {
        done / warmup
    } else {
        (1.0 - done) / (1.0 - warmup).max(1e-9)
    };
    factor.clamp(0.0, 1.0) as f32
}

/// The score of each head by its kind. Heads without known targets are left out.
fn scores(
    taxonomy: &Taxonomy,
    reports: &[LabelledReport],
    logits: &[Vec<f32>],
) -> Vec<(String, f64)> {
    let mut scores = Vec::new();
    for (index, head) in taxonomy.heads().iter().enumerate() {
        let known = || {
            reports.iter().zip(logits).filter_map(|(report, logits)| {
                report.targets[index]
                    .as_ref()
                    .map(|target| (target, &logits[head.logits()]))
            })
        };
        let precision = |place: usize| {
            let scored: Vec<(f32, bool)> = known()
                .map(|(t, x)| (x[place], t.holds(head.kind(), place)))
                .collect();
            metrics::average_precision(&scored)
        };
        let classes = |class: &dyn Fn(&[f32]) -> usize| {
            let pairs = known().filter_map(|(target, logits)| match target {
                Target::Class(truth) => Some((*truth, class(logits))),
                Target::Labels(_) => None,
            });
            metrics::Confusion::new(head.classes(), pairs)
        };
        if known().next().is_none() {
            continue;
        }
        let score = match head.kind() {
            HeadKind::MultiLabel => Some(metrics::mean(
                (0..head.labels().len()).filter_map(precision),
            )),
            HeadKind::Binary => precision(0),
            HeadKind::SingleLabel => Some(
                classes(&|x| {
                    x.iter()
                        .enumerate()
                        .max_by(|a, b| a.1.total_cmp(b.1))
                        .map_or(0, |(i, _)| i)
                })
                .accuracy(),
            ),
            HeadKind::Ordinal => {
                classes(&|x| x.iter().take_while(|x| **x > 0.0).count()).quadratic_weighted_kappa()
            }
        };
        scores.extend(score.map(|score| (head.name().to_owned(), score)));
    }
    scores
}
