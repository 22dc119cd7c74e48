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
            .flat_map(|head| {
                head.logits()
                    .map(|l| head.query_of_logit(l - head.logits().start) as u32)
            })
            .collect();
        Self {
            encoder,
            taxonomy,
            query_of_logit,
            first_layer,
        }
    }

    /// Hidden states `[tokens, hidden]` after layer `layers.end`.
    pub(crate) fn encode(
        &self,
        values: &Values,
        batch: &Batch,
        layers: Range<usize>,
        regularisation: Option<Regularisation>,
    ) -> Result<Tensor> {
        let unseen = &mut |_: String, _: &Tensor| Ok(());
        self.encode_seen(values, batch, layers, regularisation, unseen)
    }

    /// Like [`Network::encode`], and shows `see` what goes into each linear
    /// layer, `[tokens, inputs]`, under the name of the layer's weights. Queries,
    /// keys and values have one input.
    fn encode_seen(
        &self,
        values: &Values,
        batch: &Batch,
        layers: Range<usize>,
        regularisation: Option<Regularisation>,
        see: &mut dyn FnMut(String, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let device = values.device();
        let eps = self.encoder.layer_norm_eps;
        let dropout = regularisation.map_or(0.0, |r| r.dropout);
        let seed =
            |place: usize| regularisation.map_or(0, |r| super::kernels::mix(r.seed, place as u64));
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
                let kind = values
                    .get("embeddings.token_type_embeddings.weight")?
                    .narrow(0, 0, 1)?;
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
            see(name("attention.self"), &x)?;
            let q = project(values, &name("attention.self.query"), &x)?;
            let k = project(values, &name("attention.self.key"), &x)?;
            let v = project(values, &name("attention.self.value"), &x)?;
            let heads = self.encoder.num_attention_heads;
            let context = ops::attention(&q, &k, &v, heads, &batch.windows)?;
            see(name("attention.output.dense"), &context)?;
            let attended = project(values, &name("attention.output.dense"), &context)?;
            let sum = ops::add_dropout(&x, &attended, dropout, seed(2 * layer + 1))?;
            let x1 = norm(values, &name("attention.output.LayerNorm"), &sum, eps)?;
            see(name("intermediate.dense"), &x1)?;
            let inner = ops::gelu(&project(values, &name("intermediate.dense"), &x1)?)?;
            see(name("output.dense"), &inner)?;
            let outer = project(values, &name("output.dense"), &inner)?;
            let sum = ops::add_dropout(&x1, &outer, dropout, seed(2 * layer + 2))?;
            x = norm(values, &name("output.LayerNorm"), &sum, eps)?;
        }
        Ok(x)
    }

    /// The largest magnitude of each input of each of the encoder's linear layers
    /// over a batch, by the layer's name.
    pub(crate) fn input_magnitudes(
        &self,
        values: &Values,
        batch: &Batch,
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let mut magnitudes = Vec::new();
        let layers = 0..self.encoder.num_hidden_layers;
        self.encode_seen(values, batch, layers, None, &mut |name, x| {
            magnitudes.push((name, x.abs()?.max(0)?.to_vec1()?));
            Ok(())
        })?;
        Ok(magnitudes)
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
        let contexts =
            contexts.reshape((batch.texts.len(), queries.dim(0)?, self.encoder.hidden_size))?;
        let served = Tensor::from_slice(
            &self.query_of_logit,
            self.query_of_logit.len(),
            &Device::Cpu,
        )?;
        let per_logit = contexts.index_select(&served, 1)?;
        let local = per_logit
            .broadcast_mul(&get("heads.context.weight")?)?
            .sum(2)?;
        let pooled = ops::mean_max_pool(&states, &batch.texts)?;
        let global = ops::linear(&pooled, &get("heads.pooled.weight")?, &get("heads.bias")?)?;
        Ok(Output {
            logits: (local + global)?,
            scores,
        })
    }
}

fn project(values: &Values, name: &str, x: &Tensor) -> Result<Tensor> {
    let (weight, bias) = (
        values.get(&format!("{name}.weight"))?,
        values.get(&format!("{name}.bias"))?,
    );
    ops::linear(x, &weight, &bias)
}

fn norm(values: &Values, name: &str, x: &Tensor, eps: f32) -> Result<Tensor> {
    let (weight, bias) = (
        values.get(&format!("{name}.weight"))?,
        values.get(&format!("{name}.bias"))?,
    );
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
        (
            "label_attention.projection.weight",
            vec![attention_size, hidden],
        ),
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
        let data = (0..size)
            .map(|_| (rng.random::<f32>() * 2.0 - 1.0) * limit)
            .collect();
        parameters.add_head(name, shape, data)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::Target;
    use crate::train::loss::{EvidenceTokens, evidence_loss, task_loss};

    const TAXONOMY: &str = r#"
        version = "1"
        [heads.area]
        kind = "multi_label"
        [area]
        a = "A"
        b = "B"
        c = "C"
        [level]
        0 = "none"
        1 = "some"
        2 = "all"
        [kind]
        x = "X"
        y = "Y"
        z = "Z"
        [urgent]
        urgent = "yes or no"
    "#;

    fn tiny() -> (Network, Parameters, Batch) {
        let taxonomy = Arc::new(Taxonomy::from_toml(TAXONOMY).unwrap());
        let encoder = EncoderConfig::from_json(
            r#"{"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16}"#,
        )
        .unwrap();
        let mut parameters = Parameters::new(Device::Cpu);
        let mut seed = 0;
        let mut add = |name: String, shape: &[usize]| {
            seed += 1;
            let size = shape.iter().product::<usize>() as u64;
            let random =
                |i| (super::super::kernels::mix(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let norm = name.ends_with("LayerNorm.weight");
            let values = (0..size)
                .map(|i| random(i) * 0.5 + if norm { 1.0 } else { 0.0 })
                .collect();
            parameters
                .add_encoder(&name, shape.to_vec(), values, 1.0)
                .unwrap();
        };
        add("embeddings.word_embeddings.weight".into(), &[20, 8]);
        add("embeddings.position_embeddings.weight".into(), &[16, 8]);
        add("embeddings.token_type_embeddings.weight".into(), &[2, 8]);
        add("embeddings.LayerNorm.weight".into(), &[8]);
        add("embeddings.LayerNorm.bias".into(), &[8]);
        for layer in 0..2 {
            for (part, shape) in [
                ("attention.self.query", [8, 8]),
                ("attention.self.key", [8, 8]),
                ("attention.self.value", [8, 8]),
                ("attention.output.dense", [8, 8]),
                ("intermediate.dense", [12, 8]),
                ("output.dense", [8, 12]),
            ] {
                add(format!("encoder.layer.{layer}.{part}.weight"), &shape);
                add(format!("encoder.layer.{layer}.{part}.bias"), &shape[..1]);
            }
            for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
                add(format!("encoder.layer.{layer}.{part}.weight"), &[8]);
                add(format!("encoder.layer.{layer}.{part}.bias"), &[8]);
            }
        }
        add_heads(&mut parameters, &taxonomy, 8, 6, 5).unwrap();
        // Two texts: one of two windows of which the second repeats a token, one short.
        let ids = vec![0, 5, 6, 7, 2, 0, 7, 8, 2, 0, 9, 2];
        let positions = vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2];
        let batch = Batch {
            input: Input::Tokens { ids, positions },
            windows: vec![0..5, 5..9, 9..12].into(),
            kept: vec![1, 2, 3, 7, 10],
            texts: vec![0..4, 4..5].into(),
        };
        (Network::new(encoder, taxonomy, 0), parameters, batch)
    }

    fn total(network: &Network, values: &Values, batch: &Batch) -> Tensor {
        let first = [
            Some(Target::Labels(vec![0, 2])),
            Some(Target::Class(1)),
            Some(Target::Class(2)),
            None,
        ];
        let second = [
            Some(Target::Labels(vec![])),
            Some(Target::Class(2)),
            None,
            Some(Target::Class(1)),
        ];
        let evidence = [EvidenceTokens {
            text: 0,
            query: 2,
            tokens: vec![1, 3],
        }];
        let regularisation = Regularisation {
            dropout: 0.2,
            seed: 3,
        };
        let output = network
            .forward(values, batch, Some(regularisation))
            .unwrap();
        let task = ops::loss(&output.logits, |x| {
            task_loss(&network.taxonomy, &[&first, &second], 0.1, 2.0, x)
        })
        .unwrap();
        let queries = network.taxonomy.num_queries();
        let drawn = ops::loss(&output.scores, |x| {
            evidence_loss(queries, &batch.texts, &evidence, x)
        })
        .unwrap();
        (task + (drawn * 0.5).unwrap()).unwrap()
    }

    #[test]
    fn the_magnitudes_are_the_largest_of_each_input_over_all_tokens() {
        let (network, parameters, batch) = tiny();
        let values = parameters.averaged(&parameters.fixed().unwrap()).unwrap();
        let magnitudes = network.input_magnitudes(&values, &batch).unwrap();
        let inputs: Vec<(&str, usize)> = magnitudes
            .iter()
            .map(|(name, values)| (name.as_str(), values.len()))
            .collect();
        let parts = [
            ("attention.self", 8),
            ("attention.output.dense", 8),
            ("intermediate.dense", 8),
            ("output.dense", 12),
        ];
        let expected: Vec<(String, usize)> = (0..2)
            .flat_map(|layer| {
                parts.map(|(part, size)| (format!("encoder.layer.{layer}.{part}"), size))
            })
            .collect();
        let expected: Vec<(&str, usize)> = expected
            .iter()
            .map(|(name, n)| (name.as_str(), *n))
            .collect();
        assert_eq!(inputs, expected);
        for layer in 0..2 {
            let states = network.encode(&values, &batch, 0..layer, None).unwrap();
            let mut largest = vec![0.0_f32; 8];
            for row in states.to_vec2::<f32>().unwrap() {
                for (largest, x) in largest.iter_mut().zip(row) {
                    *largest = largest.max(x.abs());
                }
            }
            assert_eq!(magnitudes[4 * layer].1, largest);
        }
        let mut of_width_8: Vec<_> = magnitudes.iter().filter(|m| m.1.len() == 8).collect();
        of_width_8.dedup_by(|a, b| a.1 == b.1);
        assert_eq!(of_width_8.len(), 6, "two layers were shown the same input");
    }

    #[test]
    fn every_gradient_equals_its_finite_difference() {
        let (network, mut parameters, batch) = tiny();
        let fixed = parameters.fixed().unwrap();
        let values = parameters.trained(&fixed).unwrap();
        let gradients = parameters
            .gradients(&total(&network, &values, &batch).backward().unwrap())
            .unwrap();
        let mut loss_with = |place: usize, element: usize, change: f32| -> f64 {
            parameters.all[place].value[element] += change;
            parameters.refresh().unwrap();
            let loss = total(&network, &values, &batch).to_scalar::<f32>().unwrap();
            parameters.all[place].value[element] -= change;
            f64::from(loss)
        };
        let mut checked = 0;
        for (place, gradient) in gradients.iter().enumerate() {
            assert!(!gradient.is_empty(), "parameter {place} has no gradient");
            for element in (0..gradient.len()).step_by(gradient.len().div_ceil(6)) {
                let step = 1e-2;
                let slope = (loss_with(place, element, step) - loss_with(place, element, -step))
                    / f64::from(2.0 * step);
                let difference = (slope - f64::from(gradient[element])).abs();
                assert!(
                    difference < 5e-3 + 0.02 * slope.abs(),
                    "parameter {place}, element {element}: {slope} by differences, {} by the backward pass",
                    gradient[element]
                );
                checked += 1;
            }
        }
        assert!(checked > 150, "{checked}");
    }
}
