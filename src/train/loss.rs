//! What training minimises: a sum over heads and labels, and a term that draws
//! label attention to the marked evidence.

use super::data::Target;
use super::kernels;
use crate::taxonomy::{HeadKind, Taxonomy};
use std::ops::Range;

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Adds the cross-entropy of one logit with a target in 0..=1.
fn binary(logit: f32, target: f32, weight: f32, value: &mut f32, gradient: &mut f32) {
    *value += weight * (softplus(logit) - target * logit);
    *gradient += weight * (sigmoid(logit) - target);
}

/// The task loss of `[texts, logits]` and its gradient: the sum over heads,
/// averaged over texts. Multi-label heads sum a binary cross-entropy over their
/// labels, ordinal ones over their steps (Frank and Hall 2001), single-label
/// heads take the cross-entropy of their softmax. Unknown targets cost nothing.
/// `smoothing` draws every binary target that much towards one half and a
/// softmax target towards the uniform distribution; `single_label_weight`
/// multiplies the loss of single-label heads, of which each is one term beside
/// many.
pub(crate) fn task_loss(
    taxonomy: &Taxonomy,
    targets: &[&[Option<Target>]],
    smoothing: f32,
    single_label_weight: f32,
    logits: &[f32],
) -> (f32, Vec<f32>) {
    let width = taxonomy.num_logits();
    let weight = 1.0 / targets.len().max(1) as f32;
    let mut gradient = vec![0.0; logits.len()];
    let mut value = 0.0;
    let smooth = |hold: bool| {
        if hold {
            1.0 - smoothing / 2.0
        } else {
            smoothing / 2.0
        }
    };
    let rows = logits
        .chunks_exact(width)
        .zip(gradient.chunks_exact_mut(width));
    for ((logits, gradient), targets) in rows.zip(targets) {
        for (head, target) in taxonomy.heads().iter().zip(*targets) {
            let Some(target) = target else { continue };
            let logits = &logits[head.logits()];
            let gradient = &mut gradient[head.logits()];
            match (head.kind(), target) {
                (HeadKind::SingleLabel, Target::Class(class)) => {
                    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
                    let log_sum = max + sum.ln();
                    let weight = weight * single_label_weight;
                    let share = smoothing / logits.len() as f32;
                    for (i, (x, g)) in logits.iter().zip(gradient).enumerate() {
                        let target = share + if i == *class { 1.0 - smoothing } else { 0.0 };
                        value += weight * target * (log_sum - x);
                        *g += weight * ((x - log_sum).exp() - target);
                    }
                }
                (_, target) => {
                    for (i, (x, g)) in logits.iter().zip(gradient).enumerate() {
                        let hold = target.holds(head.kind(), i);
                        binary(*x, smooth(hold), weight, &mut value, g);
                    }
                }
            }
        }
    }
    (value, gradient)
}

/// The tokens of one text that carry one query's label.
#[derive(Clone, Debug)]
pub(crate) struct EvidenceTokens {
    /// The text's place in the batch.
    pub(crate) text: usize,
    /// The label-attention query.
    pub(crate) query: usize,
    /// Token indices within the text.
    pub(crate) tokens: Vec<usize>,
}

/// Minus the logarithm of the attention that each query gives to its evidence,
/// summed over evidence and averaged over texts, and its gradient for the
/// scores `[tokens, queries]`.
pub(crate) fn evidence_loss(
    queries: usize,
    texts: &[Range<usize>],
    evidence: &[EvidenceTokens],
    scores: &[f32],
) -> (f32, Vec<f32>) {
    let weights = kernels::span_softmax(scores, queries, texts);
    let mut gradient = vec![0.0; scores.len()];
    let mut value = 0.0;
    let share = 1.0 / texts.len().max(1) as f32;
    for EvidenceTokens {
        text,
        query,
        tokens,
    } in evidence
    {
        let (Some(span), Some(weights)) = (texts.get(*text), weights.get(*text)) else {
            continue;
        };
        let weights = &weights[query * span.len()..(query + 1) * span.len()];
        let mass: f32 = tokens.iter().map(|t| weights[*t]).sum::<f32>().max(1e-8);
        value -= share * mass.ln();
        for (t, weight) in weights.iter().enumerate() {
            gradient[(span.start + t) * queries + query] += share * weight;
        }
        for t in tokens {
            gradient[(span.start + t) * queries + query] -= share * weights[*t] / mass;
        }
    }
    (value, gradient)
}
