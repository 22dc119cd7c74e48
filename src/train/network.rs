//! The trainable model: a BERT encoder, label attention and linear heads over
//! packed token sequences, without padding.

use super::ops;
use super::parameters::{Parameters, Values};
use crate::error::Result;
use crate::model::config::EncoderConfig;
use crate::taxonomy::Taxonomy;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Dropout probability and the seed of its masks; `None` when evaluating.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regularisation {
    /// Dropout probability of the encoder's residual branches.
    pub(crate) dropout: f32,
    /// The masks follow from this seed alone.
    pub(crate) seed: u64,
}

/// Texts of one step, as token windows that lie one after another.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// What the encoder starts from.
    pub(crate) input: Input,
    /// The windows' rows in the packed matrix.
    pub(crate) windows: Arc<[Range<usize>]>,
    /// Rows that label attention sees: content tokens, each once.
    pub(crate) kept: Vec<u32>,
    /// Each text's rows among `kept`.
    pub(crate) texts: Arc<[Range<usize>]>,
}

/// What the first trainable layer reads.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Token ids and their positions, one a row.
    Tokens {
        /// Rows of the word embeddings.
        ids: Vec<u32>,
        /// Rows of the position embeddings.
        positions: Vec<u32>,
    },
    /// Hidden states `[tokens, hidden]` after the frozen layers.
    States(Vec<f32>),
}

/// What the network says of a batch.
pub(crate) struct Output {
    /// `[texts, logits]`
    pub(crate) logits: Tensor,
    /// Label-attention scores, `[kept tokens, queries]`
    pub(crate) scores: Tensor,
}

/// The network's shape. Its weights come from [`Parameters`].
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) encoder: EncoderConfig,
    pub(crate) taxonomy: Arc<Taxonomy>,
    /// For each logit the query that serves it.
    pub(crate) query_of_logit: Vec<u32>,
    /// Layers below this one are left out: their output is the input.
    pub(crate) first_layer: usize,
}

impl Network {
    pub(crate) fn new(encoder: EncoderConfig, taxonomy: Arc<Taxonomy>, first_layer: usize) -> Self {
        let query_of_logit = taxonomy
            .heads()
            .iter()
            .flat_map(|head| head.logits().map(|l| head.query_of_logit(l - head.logits().start) as u32))
            .collect();
        Self { encoder, taxonomy, query_of_logit, first_layer }
    }

    /// Hidden states `[tokens, hidden]` after layer `layers.end`.
    pub(crate) fn encode(
        &self,
        values: &Values,
        batch: &Batch,
        layers: Range<usize>,
        regularisation: Option<Regularisation>,
    ) -> Result<Tensor> {
        let device = values.device();
        let eps = self.encoder.layer_norm_eps;
        let dropout = regularisation.map_or(0.0, |r| r.dropout);
        let seed = |place: usize| {
            regularisation.map_or(0, |r| super::kernels::mix(r.seed, place as u64))
        };
        let mut x = match &batch.input {
            Input::States(states) => {
                let rows = states.len() / self.encoder.hidden_size;
                Tensor::from_slice(states, (rows, self.encoder.hidden_size), device)?
            }
            Input::Tokens { ids, positions } => {
                let gather = |name: &str, rows: &[u32]| -> Result<Tensor> {
                    let rows = Tensor::from_slice(rows, rows.len(), device)?;
                    Ok(values.get(name)?.index_select(&rows, 0)?)
                };
                let words = gather("embeddings.word_embeddings.weight", ids)?;
                let positions = gather("embeddings.position_embeddings.weight", positions)?;
                let kind = values.get("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?;
                let sum = (words + positions)?.broadcast_add(&kind)?;
                let normed = norm(values, "embeddings.LayerNorm", &sum, eps)?;
                if dropout > 0.0 {
                    ops::add_dropout(&normed.zeros_like()?, &normed, dropout, seed(0))?
                } else {
                    normed
                }
            }
        };
        for layer in layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let q = project(values, &name("attention.self.query"), &x)?;
            let k = project(values, &name("attention.self.key"), &x)?;
            let v = project(values, &name("attention.self.value"), &x)?;
            let heads = self.encoder.num_attention_heads;
            let context = ops::attention(&q, &k, &v, heads, &batch.windows)?;
            let attended = project(values, &name("attention.output.dense"), &context)?;
            let sum = ops::add_dropout(&x, &attended, dropout, seed(2 * layer + 1))?;
            let x1 = norm(values, &name("attention.output.LayerNorm"), &sum, eps)?;
            let inner = ops::gelu(&project(values, &name("intermediate.dense"), &x1)?)?;
            let outer = project(values, &name("output.dense"), &inner)?;
            let sum = ops::add_dropout(&x1, &outer, dropout, seed(2 * layer + 2))?;
            x = norm(values, &name("output.LayerNorm"), &sum, eps)?;
        }
        Ok(x)
    }

    /// Logits and label-attention scores. The heads run on the CPU whatever the
    /// encoder's device: they are small.
    pub(crate) fn forward(
        &self,
        values: &Values,
        batch: &Batch,
        regularisation: Option<Regularisation>,
    ) -> Result<Output> {
        let layers = self.first_layer..self.encoder.num_hidden_layers;
        let states = self.encode(values, batch, layers, regularisation)?;
        let kept = Tensor::from_slice(&batch.kept, batch.kept.len(), states.device())?;
        let mut states = states.index_select(&kept, 0)?.to_device(&Device::Cpu)?;
        if let Some(r) = regularisation.filter(|r| r.dropout > 0.0) {
            let seed = super::kernels::mix(r.seed, u64::MAX);
            states = ops::add_dropout(&states.zeros_like()?, &states, r.dropout, seed)?;
        }
        let get = |name: &str| -> Result<Tensor> { Ok(values.get(name)?.to_device(&Device::Cpu)?) };
        let projected = ops::linear(
            &states,
            &get("label_attention.projection.weight")?,
            &get("label_attention.projection.bias")?,
        )?
        .tanh()?;
        let queries = get("label_attention.queries")?;
        let no_bias = Tensor::zeros(queries.dim(0)?, queries.dtype(), &Device::Cpu)?;
        let scores = ops::linear(&projected, &queries, &no_bias)?;
        let contexts = ops::label_attention(&scores, &states, &batch.texts)?;
        let contexts = contexts.reshape((batch.texts.len(), queries.dim(0)?, self.encoder.hidden_size))?;
        let served = Tensor::from_slice(&self.query_of_logit, self.query_of_logit.len(), &Device::Cpu)?;
        let per_logit = contexts.index_select(&served, 1)?;
        let local = per_logit.broadcast_mul(&get("heads.context.weight")?)?.sum(2)?;
        let pooled = ops::mean_max_pool(&states, &batch.texts)?;
        let global = ops::linear(&pooled, &get("heads.pooled.weight")?, &get("heads.bias")?)?;
        Ok(Output { logits: (local + global)?, scores })
    }
}

fn project(values: &Values, name: &str, x: &Tensor) -> Result<Tensor> {
    let (weight, bias) = (values.get(&format!("{name}.weight"))?, values.get(&format!("{name}.bias"))?);
    ops::linear(x, &weight, &bias)
}

fn norm(values: &Values, name: &str, x: &Tensor, eps: f32) -> Result<Tensor> {
    let (weight, bias) = (values.get(&format!("{name}.weight"))?, values.get(&format!("{name}.bias"))?);
    ops::layer_norm(x, &weight, &bias, eps)
}

/// Names and shapes of the tensors that stand above the encoder.
pub(crate) fn head_shapes(
    taxonomy: &Taxonomy,
    hidden: usize,
    attention_size: usize,
) -> Vec<(&'static str, Vec<usize>)> {
    let (logits, queries) = (taxonomy.num_logits(), taxonomy.num_queries());
    vec![
        ("label_attention.projection.weight", vec![attention_size, hidden]),
        ("label_attention.projection.bias", vec![attention_size]),
        ("label_attention.queries", vec![queries, attention_size]),
        ("heads.context.weight", vec![logits, hidden]),
        ("heads.pooled.weight", vec![logits, 2 * hidden]),
        ("heads.bias", vec![logits]),
    ]
}

/// Adds freshly drawn head parameters: weights uniform with the variance of
/// Glorot and Bengio (2010), biases zero.
pub(crate) fn add_heads(
    parameters: &mut Parameters,
    taxonomy: &Taxonomy,
    hidden: usize,
    attention_size: usize,
    seed: u64,
) -> Result<()> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    for (name, shape) in head_shapes(taxonomy, hidden, attention_size) {
        let size = shape.iter().product();
        let limit = match shape.as_slice() {
            [rows, columns] => (6.0 / (rows + columns) as f32).sqrt(),
            _ => 0.0,
        };
        let data = (0..size).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * limit).collect();
        parameters.add_head(name, shape, data)?;
    }
    Ok(())
}
