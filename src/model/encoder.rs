//! The transformer encoder: BERT and XLM-R, one text window at a time.

use super::attention::{AttentionHead, ROWS};
use super::config::EncoderConfig;
use super::gemm::{Gemm, Linear, Precision, feed_forward, grown};
use super::lexical::LexicalScratch;
use super::ops::{Activation, AddNorm};
use super::timing::{Stage, Stopwatch};
use super::weights::{Table, Weights};
use crate::error::{Error, ErrorKind, Result};
use rayon::ThreadPool;
use rten_simd::SimdOp;
use std::cell::RefCell;

/// The last part of the name of a tensor `[inputs]` that a bundle may have beside
/// the weights of a linear layer: the largest magnitude that each of its inputs
/// took on training texts.
pub(crate) const INPUT_MAGNITUDES: &str = "input_magnitudes";

/// Buffers of one thread. They grow to the longest window seen and are then
/// reused, so that the steady state allocates nothing.
///
/// # Examples
///
/// ```
/// let scratch = lyhord::model::Scratch::new();
/// # drop(scratch);
/// ```
#[derive(Default)]
pub struct Scratch {
    pub(super) work: Work,
    helpers: Vec<ThreadPool>,
    pub(crate) lexical: LexicalScratch,
    pub(crate) ids: Vec<u32>,
    pub(crate) hidden: Vec<f32>,
    qkv: Vec<f32>,
    next_qkv: Vec<f32>,
    pub(super) projected: Vec<f32>,
    pub(super) label_scores: Vec<f32>,
    pub(super) label_weights: Vec<f32>,
}

/// What one thread needs for the rows that it computes.
#[derive(Default)]
pub(crate) struct Work {
    pub(super) gemm: Gemm,
    pub(crate) stopwatch: Stopwatch,
    attention: Vec<f32>,
    context: Vec<f32>,
    intermediate: Vec<f32>,
    output: Vec<f32>,
}

thread_local! {
    /// The buffers of a helping thread. The kernels in them stay where they were
    /// made.
    static HELP: RefCell<Work> = RefCell::default();
}

impl Scratch {
    /// Buffers and further threads, a pool of one for each, so that every text is
    /// computed by all of them together.
    pub(crate) fn with_helpers(helpers: Vec<ThreadPool>) -> Self {
        Self {
            helpers,
            ..Self::default()
        }
    }

    /// Makes the buffers new, in case work on a text broke off in the middle.
    pub(crate) fn reset(&mut self) {
        let stopwatch = std::mem::take(&mut self.work.stopwatch);
        *self = Self::with_helpers(std::mem::take(&mut self.helpers));
        self.work.stopwatch = stopwatch;
    }

    pub(crate) fn stopwatch(&mut self) -> &mut Stopwatch {
        &mut self.work.stopwatch
    }

    /// Empty buffers with the kernels for this machine.
    ///
    /// # Examples
    ///
    /// ```
    /// let scratch = lyhord::model::Scratch::new();
    /// # drop(scratch);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }
}

/// A BERT or XLM-R encoder with weights packed for this machine.
///
/// Each call encodes one window at its own length, without padding; the result
/// doesn't depend on what else is encoded, before it or beside it. Use a
/// [`Scratch`] per thread, and call from inside a rayon pool of one thread if
/// the matrix products shall not spread over rayon's global pool.
///
/// # Examples
///
/// ```
/// use lyhord::model::{Encoder, EncoderConfig, Scratch};
/// use lyhord::Precision;
///
/// let config = std::fs::read_to_string("fixtures/tiny-bundle/config.json")?;
/// let weights = std::fs::read("fixtures/tiny-bundle/model.safetensors")?;
/// let config = EncoderConfig::from_json(&config)?;
/// let encoder = Encoder::from_safetensors(&config, &weights, Precision::F32)?;
/// let mut scratch = Scratch::new();
/// let hidden = encoder.forward(&[0, 5, 6, 2], &mut scratch)?;
/// assert_eq!(hidden.len(), 4 * config.hidden_size);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Encoder {
    config: EncoderConfig,
    words: Table,
    /// Position and token-type embeddings added up, `[max_tokens, hidden]`.
    positions: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    /// Queries, keys and values in one product.
    qkv: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

impl Encoder {
    /// Reads an encoder from the bytes of a safetensors file in Hugging Face
    /// names (f32, f16 or bf16; a prefix such as `roberta.` is accepted) and
    /// packs its weights.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when a tensor is missing, has another shape
    /// or type, or the bytes aren't safetensors.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::{Encoder, EncoderConfig};
    ///
    /// let config = std::fs::read_to_string("fixtures/tiny-bundle/config.json")?;
    /// let config = EncoderConfig::from_json(&config)?;
    /// let error = Encoder::from_safetensors(&config, b"short", lyhord::Precision::F32);
    /// assert!(error.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_safetensors(
        config: &EncoderConfig,
        weights: &[u8],
        precision: Precision,
    ) -> Result<Self> {
        Self::from_weights(config, &Weights::new(weights)?, precision)
    }

    pub(crate) fn from_weights(
        config: &EncoderConfig,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self> {
        config.validate()?;
        let gemm = Gemm::default();
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let word_embeddings = "embeddings.word_embeddings.weight";
        let rows = weights.rows(word_embeddings)?;
        if rows != vocabulary {
            return Err(Error::new(
                ErrorKind::InvalidBundle,
                format!(
                    "model.safetensors has embeddings for {rows} words, config.json states a vocab_size of {vocabulary}"
                ),
            ));
        }
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm {
                weight: weights.f32(&format!("{name}.weight"), &[width])?,
                bias: weights.f32(&format!("{name}.bias"), &[width])?,
            })
        };
        let magnitudes = |name: &str, inputs: usize| -> Result<Vec<f32>> {
            let name = format!("{name}.{INPUT_MAGNITUDES}");
            let known = weights.has(&name).then(|| weights.f32(&name, &[inputs]));
            Ok(known.transpose()?.unwrap_or_default())
        };
        let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear> {
            let weight = weights.f32(&format!("{name}.weight"), &[outputs, inputs])?;
            let bias = weights.f32(&format!("{name}.bias"), &[outputs])?;
            let magnitudes = magnitudes(name, inputs)?;
            Linear::new(&gemm, &weight, bias, inputs, &magnitudes, precision)
        };
        let mut positions = weights.f32(
            "embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, width],
        )?;
        positions.drain(..config.position_offset() * width);
        let types = weights.f32(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, width],
        )?;
        for row in positions.chunks_exact_mut(width) {
            for (position, token_type) in row.iter_mut().zip(&types) {
                *position += token_type;
            }
        }
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            let layer = format!("encoder.layer.{index}");
            let (mut weight, mut bias) = (Vec::new(), Vec::new());
            let attention = format!("{layer}.attention.self");
            for part in ["query", "key", "value"] {
                let name = format!("{attention}.{part}");
                weight.extend(weights.f32(&format!("{name}.weight"), &[width, width])?);
                bias.extend(weights.f32(&format!("{name}.bias"), &[width])?);
            }
            layers.push(Layer {
                qkv: Linear::new(
                    &gemm,
                    &weight,
                    bias,
                    width,
                    &magnitudes(&attention, width)?,
                    precision,
                )?,
                attention_output: linear(&format!("{layer}.attention.output.dense"), width, width)?,
                attention_norm: norm(&format!("{layer}.attention.output.LayerNorm"))?,
                intermediate: linear(
                    &format!("{layer}.intermediate.dense"),
                    width,
                    config.intermediate_size,
                )?,
                output: linear(
                    &format!("{layer}.output.dense"),
                    config.intermediate_size,
                    width,
                )?,
                output_norm: norm(&format!("{layer}.output.LayerNorm"))?,
            });
        }
        Ok(Self {
            words: weights.table(word_embeddings, vocabulary, width)?,
            positions,
            embedding_norm: norm("embeddings.LayerNorm")?,
            layers,
            config: config.clone(),
        })
    }

    /// The encoder's shape.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::{Encoder, EncoderConfig};
    ///
    /// let config = std::fs::read_to_string("fixtures/tiny-bundle/config.json")?;
    /// let weights = std::fs::read("fixtures/tiny-bundle/model.safetensors")?;
    /// let config = EncoderConfig::from_json(&config)?;
    /// let encoder = Encoder::from_safetensors(&config, &weights, lyhord::Precision::Int8)?;
    /// assert_eq!(encoder.config(), &config);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The hidden states of the last layer, `[ids.len(), hidden_size]`, for one
    /// window of token ids with `<s>` and `</s>` around it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Compute`] when there is no id, there are more than
    /// [`EncoderConfig::max_tokens`], or one is outside the vocabulary.
    ///
    /// # Examples
    ///
    /// See [`Encoder`].
    pub fn forward<'s>(&self, ids: &[u32], scratch: &'s mut Scratch) -> Result<&'s [f32]> {
        self.forward_layers(ids, self.layers.len(), scratch)
    }

    /// The hidden states after the first `layers` layers (0: the embeddings),
    /// `[ids.len(), hidden_size]`: what the trainer computes once for layers
    /// that stay frozen.
    ///
    /// # Errors
    ///
    /// Those of [`Encoder::forward`].
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::{Encoder, EncoderConfig, Scratch};
    ///
    /// let config = std::fs::read_to_string("fixtures/tiny-bundle/config.json")?;
    /// let weights = std::fs::read("fixtures/tiny-bundle/model.safetensors")?;
    /// let config = EncoderConfig::from_json(&config)?;
    /// let encoder = Encoder::from_safetensors(&config, &weights, lyhord::Precision::F32)?;
    /// let mut scratch = Scratch::new();
    /// let all = encoder.forward(&[0, 5, 2], &mut scratch)?.to_vec();
    /// let layers = config.num_hidden_layers;
    /// assert_eq!(encoder.forward_layers(&[0, 5, 2], layers, &mut scratch)?, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forward_layers<'s>(
        &self,
        ids: &[u32],
        layers: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32]> {
        self.embed(ids, &mut scratch.hidden)?;
        scratch.work.stopwatch.lap(Stage::Embed);
        let (tokens, width) = (ids.len(), self.config.hidden_size);
        let Scratch {
            work,
            helpers,
            hidden,
            qkv,
            next_qkv,
            ..
        } = scratch;
        let hidden = grown(hidden, tokens * width);
        // Whole tiles of the kernels, so that no thread computes half ones.
        let rows = tokens.div_ceil(helpers.len() + 1).next_multiple_of(ROWS);
        let layers = self.layers.get(..layers).unwrap_or(&self.layers);
        let columns = 3 * width;
        let mut qkv = grown(qkv, tokens * columns);
        let mut next = grown(next_qkv, tokens * columns);
        let project = |layer: &Layer, hidden: &[f32], qkv: &mut [f32], work: &mut Work| {
            let (rows, none) = (hidden.len() / width, Activation::None);
            layer.qkv.forward(&mut work.gemm, hidden, rows, none, qkv)?;
            work.stopwatch.lap(Stage::Qkv);
            Ok(())
        };
        if let Some(layer) = layers.first() {
            let parts = hidden
                .chunks(rows * width)
                .zip(qkv.chunks_mut(rows * columns));
            shared(work, helpers, parts, &|(hidden, qkv), work| {
                project(layer, hidden, qkv, work)
            })?;
        }
        // Attention needs the keys and values of all rows, so the threads wait
        // for each other before it, once a layer.
        for (index, layer) in layers.iter().enumerate() {
            let following = layers.get(index + 1);
            let all = &*qkv;
            let parts = hidden
                .chunks_mut(rows * width)
                .zip(next.chunks_mut(rows * columns))
                .enumerate();
            shared(work, helpers, parts, &|(part, (hidden, next)), work| {
                self.layer(layer, all, part * rows, hidden, work)?;
                following.map_or(Ok(()), |layer| project(layer, hidden, next, work))
            })?;
            std::mem::swap(&mut qkv, &mut next);
        }
        Ok(hidden)
    }

    fn embed(&self, ids: &[u32], hidden: &mut Vec<f32>) -> Result<()> {
        let width = self.config.hidden_size;
        if ids.is_empty() || ids.len() > self.config.max_tokens() {
            return Err(Error::new(
                ErrorKind::Compute,
                format!(
                    "a window of {} tokens was given; from 1 to {} can be encoded",
                    ids.len(),
                    self.config.max_tokens()
                ),
            ));
        }
        let hidden = grown(hidden, ids.len() * width);
        let rows = hidden.chunks_exact_mut(width);
        for ((row, id), position) in rows.zip(ids).zip(self.positions.chunks_exact(width)) {
            self.words.read(*id as usize, row).ok_or_else(|| {
                Error::new(
                    ErrorKind::Compute,
                    format!(
                        "the token id {id} is outside the vocabulary of {}",
                        self.config.vocab_size
                    ),
                )
            })?;
            for (value, position) in row.iter_mut().zip(position) {
                *value += position;
            }
        }
        self.add_norm(hidden, &[], &self.embedding_norm);
        Ok(())
    }

    /// What follows queries, keys and values `[tokens, 3 * hidden]`, for the
    /// rows `hidden` of some tokens from `first` on.
    fn layer(
        &self,
        layer: &Layer,
        qkv: &[f32],
        first: usize,
        hidden: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        let rows = hidden.len() / width;
        let context = grown(&mut work.context, hidden.len());
        let size = self.config.head_size();
        for offset in (0..width).step_by(size) {
            AttentionHead {
                qkv,
                context,
                tokens: qkv.len() / (3 * width),
                queries: first..first + rows,
                hidden: width,
                offset,
                size,
                scratch: &mut work.attention,
            }
            .dispatch();
        }
        work.stopwatch.lap(Stage::Attention);

        let output = grown(&mut work.output, hidden.len());
        let none = Activation::None;
        layer
            .attention_output
            .forward(&mut work.gemm, context, rows, none, output)?;
        work.stopwatch.lap(Stage::AttentionOutput);
        self.add_norm(hidden, output, &layer.attention_norm);
        work.stopwatch.lap(Stage::Norms);

        feed_forward(
            [&layer.intermediate, &layer.output],
            &mut work.gemm,
            hidden,
            rows,
            &mut work.intermediate,
            output,
        )?;
        work.stopwatch.lap(Stage::FeedForward);
        self.add_norm(hidden, output, &layer.output_norm);
        work.stopwatch.lap(Stage::Norms);
        Ok(())
    }

    fn add_norm(&self, hidden: &mut [f32], added: &[f32], norm: &Norm) {
        AddNorm {
            hidden,
            added,
            weight: &norm.weight,
            bias: &norm.bias,
            eps: self.config.layer_norm_eps,
        }
        .dispatch();
    }
}

/// Runs `run` on each part, the first ones on this thread and one on each
/// helper, and waits for all of them.
fn shared<P: Send>(
    own: &mut Work,
    helpers: &[ThreadPool],
    mut parts: impl Iterator<Item = P> + Send,
    run: &(impl Fn(P, &mut Work) -> Result<()> + Sync),
) -> Result<()> {
    let Some((helper, others)) = helpers.split_first() else {
        return parts.try_for_each(|part| run(part, own));
    };
    let Some(part) = parts.next() else {
        return Ok(());
    };
    let mut theirs = Ok(());
    let ours = helper.in_place_scope(|scope| {
        scope.spawn(|_| theirs = HELP.with_borrow_mut(|work| run(part, work)));
        shared(own, others, parts, run)
    });
    ours.and(theirs)
}
