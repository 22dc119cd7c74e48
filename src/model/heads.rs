//! From hidden states to logits: one attention over the tokens for each label,
//! as in CAML (Mullenbach et al. 2018) and LAAT (Vu et al. 2020), beside the
//! mean and maximum over all tokens.
//!
//! For the hidden states `H` `[T, d]` of a text's content tokens:
//!
//! ```text
//! Z = tanh(H Wpᵀ + bp)        [T, A]
//! S = Z Uᵀ                    [T, Q]
//! α = softmax of S over tokens, per query
//! C = αᵀ H                    [Q, d]
//! P = mean(H) ‖ max(H)        [2d]
//! logit_l = Wc_l · C_q(l) + Wm_l · P + b_l
//! ```
//!
//! A long text's windows are pooled one by one and merged with a running
//! softmax (Milakov & Gimelshein 2018), so that memory doesn't grow with the
//! text.

use super::encoder::Scratch;
use super::gemm::{Gemm, Linear, Precision, grown, matrix};
use super::ops::Activation;
use super::weights::Weights;
use crate::error::Result;
use crate::taxonomy::Taxonomy;
use rten_simd::{SimdOp, SimdUnaryOp};
use rten_vecmath::{Exp, MaxNum, Sum, Tanh};
use std::ops::Range;

/// The weights between hidden states and logits.
pub(crate) struct Heads {
    hidden_size: usize,
    projection: Linear,
    /// `[queries, attention_size]`
    queries: Vec<f32>,
    num_queries: usize,
    /// `[logits, hidden]`
    context: Vec<f32>,
    /// `[logits, 2 * hidden]`
    pooled: Vec<f32>,
    /// `[logits]`
    bias: Vec<f32>,
    /// `[logits]`
    query_of_logit: Vec<usize>,
}

/// Everything the logits need of a range of tokens; ranges can be merged.
#[derive(Clone, Debug)]
pub(crate) struct Pooled {
    /// The largest score of each query, `[queries]`.
    score_max: Vec<f32>,
    /// `Σ exp(score - score_max)` over tokens, `[queries]`.
    weight_sum: Vec<f32>,
    /// `Σ exp(score - score_max) H`, `[queries, hidden]`.
    context: Vec<f32>,
    /// `[hidden]`
    sum: Vec<f32>,
    /// `[hidden]`
    max: Vec<f32>,
    tokens: usize,
}

impl Heads {
    pub fn from_weights(
        taxonomy: &Taxonomy,
        hidden_size: usize,
        attention_size: usize,
        weights: &Weights,
    ) -> Result<Self> {
        let (logits, num_queries) = (taxonomy.num_logits(), taxonomy.num_queries());
        let projection = weights.f32(
            "label_attention.projection.weight",
            &[attention_size, hidden_size],
        )?;
        Ok(Self {
            hidden_size,
            projection: Linear::new(
                &Gemm::default(),
                &projection,
                weights.f32("label_attention.projection.bias", &[attention_size])?,
                hidden_size,
                &[],
                // The heads are a small share of the work and decide the
                // answer, so they stay exact.
                Precision::F32,
            )?,
            queries: weights.f32("label_attention.queries", &[num_queries, attention_size])?,
            num_queries,
            context: weights.f32("heads.context.weight", &[logits, hidden_size])?,
            pooled: weights.f32("heads.pooled.weight", &[logits, 2 * hidden_size])?,
            bias: weights.f32("heads.bias", &[logits])?,
            query_of_logit: taxonomy
                .heads()
                .iter()
                .flat_map(|head| (0..head.logits().len()).map(|index| head.query_of_logit(index)))
                .collect(),
        })
    }

    /// Scores every token of `scratch.hidden` `[tokens, hidden]` for every
    /// query: `Sᵀ` `[queries, tokens]` in `scratch.label_scores`.
    pub fn score(&self, tokens: usize, scratch: &mut Scratch) -> Result<()> {
        let hidden = &scratch.hidden[..tokens * self.hidden_size];
        let size = self.projection.outputs();
        let projected = grown(&mut scratch.projected, tokens * size);
        self.projection.forward(
            &mut scratch.work.gemm,
            hidden,
            tokens,
            Activation::None,
            projected,
        )?;
        Tanh {}.map_mut(projected);
        let scores = grown(&mut scratch.label_scores, self.num_queries * tokens);
        scratch.work.gemm.product(
            matrix(&self.queries, [self.num_queries, size], [size, 1])?,
            matrix(projected, [size, tokens], [1, size])?,
            scores,
        )
    }

    /// Pools the tokens `range` of a window of `tokens` that [`Heads::score`]
    /// has scored. `range` must not be empty.
    pub fn pool(
        &self,
        tokens: usize,
        range: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<Pooled> {
        let width = self.hidden_size;
        let count = range.len();
        let hidden = &scratch.hidden[range.start * width..range.end * width];
        let weights = grown(&mut scratch.label_weights, self.num_queries * count);
        let mut pooled = Pooled {
            score_max: Vec::with_capacity(self.num_queries),
            weight_sum: Vec::with_capacity(self.num_queries),
            context: vec![0.0; self.num_queries * width],
            sum: vec![0.0; width],
            max: vec![f32::NEG_INFINITY; width],
            tokens: count,
        };
        for (weights, scores) in weights
            .chunks_exact_mut(count)
            .zip(scratch.label_scores.chunks_exact(tokens))
        {
            let scores = &scores[range.clone()];
            let max = MaxNum::new(scores).dispatch();
            for (weight, score) in weights.iter_mut().zip(scores) {
                *weight = score - max;
            }
            Exp {}.map_mut(weights);
            pooled.score_max.push(max);
            pooled.weight_sum.push(Sum::new(weights).dispatch());
        }
        scratch.work.gemm.product(
            matrix(weights, [self.num_queries, count], [count, 1])?,
            matrix(hidden, [count, width], [width, 1])?,
            &mut pooled.context,
        )?;
        for row in hidden.chunks_exact(width) {
            for ((sum, max), value) in pooled.sum.iter_mut().zip(&mut pooled.max).zip(row) {
                *sum += value;
                *max = max.max(*value);
            }
        }
        Ok(pooled)
    }

    /// The logits `[logits]` of pooled tokens.
    pub fn logits(&self, pooled: &Pooled) -> Vec<f32> {
        let width = self.hidden_size;
        let mean: Vec<f32> = pooled
            .sum
            .iter()
            .map(|sum| sum / pooled.tokens.max(1) as f32)
            .collect();
        let contexts: Vec<&[f32]> = pooled.context.chunks_exact(width).collect();
        let rows = self
            .context
            .chunks_exact(width)
            .zip(self.pooled.chunks_exact(2 * width));
        rows.zip(&self.bias)
            .zip(&self.query_of_logit)
            .map(|(((context, pool), bias), query)| {
                let (of_mean, of_max) = pool.split_at(width);
                let attended = match (contexts.get(*query), pooled.weight_sum.get(*query)) {
                    (Some(values), Some(sum)) => dot(context, values) / sum,
                    _ => 0.0,
                };
                attended + dot(of_mean, &mean) + dot(of_max, &pooled.max) + bias
            })
            .collect()
    }

    /// The logits straight from their definition, for tests.
    #[cfg(test)]
    pub fn logits_of(&self, weights: &AttentionWeights, hidden: &[f32]) -> Vec<f32> {
        let width = self.hidden_size;
        let rows: Vec<&[f32]> = hidden.chunks_exact(width).collect();
        let column = |index: usize| rows.iter().map(move |row| row[index]);
        let mean: Vec<f32> = (0..width)
            .map(|index| column(index).sum::<f32>() / rows.len() as f32)
            .collect();
        let max: Vec<f32> = (0..width)
            .map(|index| column(index).fold(f32::MIN, f32::max))
            .collect();
        (0..self.bias.len())
            .map(|logit| {
                let weights = weights.of_query(self.query_of_logit[logit]);
                let context: Vec<f32> = (0..width)
                    .map(|index| column(index).zip(weights).map(|(h, w)| h * w).sum())
                    .collect();
                let pooled = &self.pooled[logit * 2 * width..(logit + 1) * 2 * width];
                dot(&self.context[logit * width..(logit + 1) * width], &context)
                    + dot(&pooled[..width], &mean)
                    + dot(&pooled[width..], &max)
                    + self.bias[logit]
            })
            .collect()
    }

    /// How many queries attend to the tokens.
    pub fn num_queries(&self) -> usize {
        self.num_queries
    }
}

impl Pooled {
    /// Adds the tokens of another range, which stand after these.
    pub fn merge(&mut self, other: &Self) {
        let width = self.sum.len();
        let rows = self
            .context
            .chunks_exact_mut(width)
            .zip(other.context.chunks_exact(width));
        let sums = self.weight_sum.iter_mut().zip(&other.weight_sum);
        let maxima = self.score_max.iter_mut().zip(&other.score_max);
        for (((ours, theirs), (our_sum, their_sum)), (our_max, their_max)) in
            rows.zip(sums).zip(maxima)
        {
            let max = our_max.max(*their_max);
            let (keep, take) = ((*our_max - max).exp(), (their_max - max).exp());
            for (ours, theirs) in ours.iter_mut().zip(theirs) {
                *ours = *ours * keep + theirs * take;
            }
            *our_sum = *our_sum * keep + their_sum * take;
            *our_max = max;
        }
        for (ours, theirs) in self.sum.iter_mut().zip(&other.sum) {
            *ours += theirs;
        }
        for (ours, theirs) in self.max.iter_mut().zip(&other.max) {
            *ours = ours.max(*theirs);
        }
        self.tokens += other.tokens;
    }
}

/// The attention of each query over a text's tokens.
#[derive(Clone, Debug)]
pub(crate) struct AttentionWeights {
    /// `[queries][tokens]`: scores while windows are added, weights after
    /// [`AttentionWeights::normalise`].
    queries: Vec<Vec<f32>>,
}

impl AttentionWeights {
    pub fn new(heads: &Heads) -> Self {
        Self {
            queries: vec![Vec::new(); heads.num_queries()],
        }
    }

    /// Appends the scores of the tokens `range` of a window that
    /// [`Heads::score`] has scored.
    pub fn extend(&mut self, tokens: usize, range: Range<usize>, scratch: &Scratch) {
        let rows = scratch.label_scores.chunks_exact(tokens.max(1));
        for (query, scores) in self.queries.iter_mut().zip(rows) {
            query.extend_from_slice(&scores[range.clone()]);
        }
    }

    /// Turns scores into weights that add up to 1 for each query.
    pub fn normalise(&mut self) {
        for query in self.queries.iter_mut().filter(|query| !query.is_empty()) {
            rten_vecmath::Softmax::new_mut(query).dispatch();
        }
    }

    /// The weight of each content token for a query; empty for an unknown one.
    pub fn of_query(&self, query: usize) -> &[f32] {
        self.queries.get(query).map_or(&[], Vec::as_slice)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
