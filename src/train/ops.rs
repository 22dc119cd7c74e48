//! Differentiable operations of the trainable model, as candle tensors.
//!
//! On the CPU each is a candle custom op with a backward pass of its own on the
//! kernels of [`super::kernels`]; on other devices the encoder's operations are
//! composed of candle's. The tests hold the two against each other and against
//! finite differences.

use super::kernels::{self, Attention, Dropout, Matrix};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Shape, Storage, Tensor};
use std::ops::Range;
use std::sync::Arc;

type OpResult<T> = candle_core::Result<T>;

fn to_candle(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> OpResult<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("an operand is not contiguous".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Runs `body` on the values of CPU tensors.
fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    body: impl FnOnce([&[f32]; N]) -> OpResult<T>,
) -> OpResult<T> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut guards = Vec::with_capacity(N);
    for tensor in &tensors {
        match tensor {
            Ok(tensor) => guards.push(tensor.storage_and_layout()),
            Err(error) => candle_core::bail!("{error}"),
        }
    }
    let mut slices: [&[f32]; N] = [&[]; N];
    for (target, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cpu(storage) => *target = slice(storage, layout)?,
            _ => candle_core::bail!("the fused operations run on the CPU only"),
        }
    }
    body(slices)
}

fn tensor(data: Vec<f32>, like: &Tensor) -> OpResult<Option<Tensor>> {
    Tensor::from_vec(data, like.shape(), like.device()).map(Some)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> OpResult<(CpuStorage, Shape)> {
        let (rows, columns) = lx.shape().dims2()?;
        let outputs = lw.shape().dims2()?.0;
        let mut out = Vec::with_capacity(rows * outputs);
        kernels::matmul(
            &mut out,
            Matrix::new(slice(x, lx)?, rows, columns),
            Matrix::new(slice(w, lw)?, outputs, columns).t(),
            1.0,
            Some(slice(b, lb)?),
        )
        .map_err(to_candle)?;
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> OpResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, columns) = x.dims2()?;
        let outputs = w.dim(0)?;
        let (dx, dw, db) = with_slices([x, w, grad], |[xs, ws, grads]| {
            let grad = Matrix::new(grads, rows, outputs);
            let mut dx = Vec::with_capacity(xs.len());
            kernels::matmul(&mut dx, grad, Matrix::new(ws, outputs, columns), 1.0, None)
                .map_err(to_candle)?;
            let mut dw = Vec::with_capacity(ws.len());
            kernels::matmul(&mut dw, grad.t(), Matrix::new(xs, rows, columns), 1.0, None)
                .map_err(to_candle)?;
            Ok((dx, dw, kernels::column_sums(grads, outputs)))
        })?;
        Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, b)?))
    }
}

/// `x wᵀ + b`: `[rows, inputs]`, `[outputs, inputs]`, `[outputs]` to `[rows, outputs]`.
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op3(w, b, Linear)?);
    }
    composed::linear(x, w, b)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> OpResult<(CpuStorage, Shape)> {
        let out = kernels::gelu(slice(x, layout)?);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> OpResult<Option<Tensor>> {
        let dx = with_slices([x, grad], |[x, grad]| Ok(kernels::gelu_backward(x, grad)))?;
        tensor(dx, x)
    }
}

/// GELU with the error function, element by element.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.apply_op1(Gelu)?);
    }
    composed::gelu(x)
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        gamma: &CpuStorage,
        lg: &Layout,
        beta: &CpuStorage,
        lb: &Layout,
    ) -> OpResult<(CpuStorage, Shape)> {
        let out = kernels::layer_norm(slice(x, lx)?, slice(gamma, lg)?, slice(beta, lb)?, self.eps);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> OpResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dgamma, dbeta) = with_slices([x, gamma, grad], |[x, gamma, grad]| {
            Ok(kernels::layer_norm_backward(x, gamma, self.eps, grad))
        })?;
        Ok((tensor(dx, x)?, tensor(dgamma, gamma)?, tensor(dbeta, beta)?))
    }
}

/// Layer norm over the last dimension of `[rows, hidden]`.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.apply_op3(gamma, beta, LayerNorm { eps })?);
    }
    composed::layer_norm(x, gamma, beta, eps)
}

impl CustomOp2 for Dropout {
    fn name(&self) -> &'static str {
        "add-dropout"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
    ) -> OpResult<(CpuStorage, Shape)> {
        let out = kernels::add_dropout(slice(x, lx)?, slice(y, ly)?, *self);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        y: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> OpResult<(Option<Tensor>, Option<Tensor>)> {
        let dy = with_slices([grad], |[grad]| Ok(kernels::dropout_backward(grad, *self)))?;
        Ok((Some(grad.clone()), tensor(dy, y)?))
    }
}

/// `x + dropout(y)`. The mask follows from `seed` alone.
pub(crate) fn add_dropout(x: &Tensor, y: &Tensor, probability: f32, seed: u64) -> Result<Tensor> {
    let dropout = Dropout { probability, seed };
    if x.device().is_cpu() {
        return Ok(x.apply_op2(y, dropout)?);
    }
    composed::add_dropout(x, y, dropout)
}

struct MultiHeadAttention {
    heads: usize,
    sequences: Arc<[Range<usize>]>,
}

impl MultiHeadAttention {
    fn on<'a>(&'a self, [q, k, v]: [&'a [f32]; 3], hidden: usize) -> Attention<'a> {
        Attention {
            q,
            k,
            v,
            hidden,
            heads: self.heads,
            sequences: &self.sequences,
        }
    }
}

impl CustomOp3 for MultiHeadAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> OpResult<(CpuStorage, Shape)> {
        let hidden = lq.shape().dims2()?.1;
        let out = self
            .on([slice(q, lq)?, slice(k, lk)?, slice(v, lv)?], hidden)
            .forward()
            .map_err(to_candle)?;
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> OpResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let hidden = q.dim(1)?;
        let [dq, dk, dv] = with_slices([q, k, v, grad], |[qs, ks, vs, grad]| {
            self.on([qs, ks, vs], hidden)
                .backward(grad)
                .map_err(to_candle)
        })?;
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

/// Multi-head self-attention over several sequences that lie one after another
/// in `[tokens, hidden]` queries, keys and values.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    sequences: &Arc<[Range<usize>]>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let op = MultiHeadAttention {
            heads,
            sequences: Arc::clone(sequences),
        };
        return Ok(q.apply_op3(k, v, op)?);
    }
    composed::attention(q, k, v, heads, sequences)
}

struct LabelAttention {
    spans: Arc<[Range<usize>]>,
}

impl CustomOp2 for LabelAttention {
    fn name(&self) -> &'static str {
        "label-attention"
    }

    fn cpu_fwd(
        &self,
        scores: &CpuStorage,
        ls: &Layout,
        states: &CpuStorage,
        lh: &Layout,
    ) -> OpResult<(CpuStorage, Shape)> {
        let queries = ls.shape().dims2()?.1;
        let hidden = lh.shape().dims2()?.1;
        let (scores, states) = (slice(scores, ls)?, slice(states, lh)?);
        let mut out = Vec::with_capacity(self.spans.len() * queries * hidden);
        let weights = kernels::span_softmax(scores, queries, &self.spans);
        for (span, weights) in self.spans.iter().zip(&weights) {
            let states = &states[span.start * hidden..span.end * hidden];
            kernels::matmul(
                &mut out,
                Matrix::new(weights, queries, span.len()),
                Matrix::new(states, span.len(), hidden),
                1.0,
                None,
            )
            .map_err(to_candle)?;
        }
        Ok((
            CpuStorage::F32(out),
            (self.spans.len() * queries, hidden).into(),
        ))
    }

    fn bwd(
        &self,
        scores: &Tensor,
        states: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> OpResult<(Option<Tensor>, Option<Tensor>)> {
        let (queries, hidden) = (scores.dim(1)?, states.dim(1)?);
        let (dscores, dstates) = with_slices([scores, states, grad], |[scores, states, grad]| {
            let mut dscores = vec![0.0; scores.len()];
            let mut dstates = vec![0.0; states.len()];
            let all_weights = kernels::span_softmax(scores, queries, &self.spans);
            let grads = grad.chunks_exact(queries * hidden);
            let mut block = Vec::new();
            for ((span, weights), grad) in self.spans.iter().zip(&all_weights).zip(grads) {
                let n = span.len();
                let range = span.start * hidden..span.end * hidden;
                let grad = Matrix::new(grad, queries, hidden);
                block.clear();
                kernels::matmul(
                    &mut block,
                    Matrix::new(weights, queries, n).t(),
                    grad,
                    1.0,
                    None,
                )
                .map_err(to_candle)?;
                dstates[range.clone()].copy_from_slice(&block);
                block.clear();
                let states = Matrix::new(&states[range], n, hidden);
                kernels::matmul(&mut block, grad, states.t(), 1.0, None).map_err(to_candle)?;
                for (q, (dw, w)) in block
                    .chunks_exact_mut(n)
                    .zip(weights.chunks_exact(n))
                    .enumerate()
                {
                    kernels::softmax_backward(dw, w);
                    for (t, dw) in dw.iter().enumerate() {
                        dscores[(span.start + t) * queries + q] = *dw;
                    }
                }
            }
            Ok((dscores, dstates))
        })?;
        Ok((tensor(dscores, scores)?, tensor(dstates, states)?))
    }
}

/// Label-wise attention (Mullenbach et al. 2018, Vu et al. 2020): for each text
/// and query the states averaged with the softmax of the query's scores over
/// the text's tokens. `[tokens, queries]` and `[tokens, hidden]` to
/// `[texts * queries, hidden]`. Every text has at least one token.
pub(crate) fn label_attention(
    scores: &Tensor,
    states: &Tensor,
    texts: &Arc<[Range<usize>]>,
) -> Result<Tensor> {
    Ok(scores.apply_op2(
        states,
        LabelAttention {
            spans: Arc::clone(texts),
        },
    )?)
}

struct MeanMaxPool {
    spans: Arc<[Range<usize>]>,
}

impl CustomOp1 for MeanMaxPool {
    fn name(&self) -> &'static str {
        "mean-max-pool"
    }

    fn cpu_fwd(&self, states: &CpuStorage, layout: &Layout) -> OpResult<(CpuStorage, Shape)> {
        let hidden = layout.shape().dims2()?.1;
        let states = slice(states, layout)?;
        let mut out = vec![0.0; self.spans.len() * 2 * hidden];
        for (span, out) in self.spans.iter().zip(out.chunks_exact_mut(2 * hidden)) {
            let (mean, max) = out.split_at_mut(hidden);
            max.fill(f32::NEG_INFINITY);
            for row in states[span.start * hidden..span.end * hidden].chunks_exact(hidden) {
                for ((mean, max), x) in mean.iter_mut().zip(max.iter_mut()).zip(row) {
                    *mean += x / span.len() as f32;
                    *max = max.max(*x);
                }
            }
        }
        Ok((CpuStorage::F32(out), (self.spans.len(), 2 * hidden).into()))
    }

    fn bwd(&self, states: &Tensor, res: &Tensor, grad: &Tensor) -> OpResult<Option<Tensor>> {
        let hidden = states.dim(1)?;
        let dx = with_slices([states, res, grad], |[states, res, grad]| {
            let mut dx = vec![0.0; states.len()];
            let rows = res
                .chunks_exact(2 * hidden)
                .zip(grad.chunks_exact(2 * hidden));
            for (span, (res, grad)) in self.spans.iter().zip(rows) {
                let mut taken = vec![false; hidden];
                for t in span.clone() {
                    for i in 0..hidden {
                        let at = t * hidden + i;
                        dx[at] = grad[i] / span.len() as f32;
                        // Of equal maxima the first takes the gradient.
                        if !taken[i] && states[at] == res[hidden + i] {
                            taken[i] = true;
                            dx[at] += grad[hidden + i];
                        }
                    }
                }
            }
            Ok(dx)
        })?;
        tensor(dx, states)
    }
}

/// Mean and maximum over each text's tokens: `[tokens, hidden]` to `[texts, 2 hidden]`.
pub(crate) fn mean_max_pool(states: &Tensor, texts: &Arc<[Range<usize>]>) -> Result<Tensor> {
    Ok(states.apply_op1(MeanMaxPool {
        spans: Arc::clone(texts),
    })?)
}

/// A function of one tensor whose value and gradient are computed together.
struct WithGradient {
    value: f32,
    gradient: Vec<f32>,
}

impl CustomOp1 for WithGradient {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> OpResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> OpResult<Option<Tensor>> {
        let grad = grad.to_scalar::<f32>()?;
        tensor(self.gradient.iter().map(|g| g * grad).collect(), x)
    }
}

/// Applies a scalar function to a CPU tensor. `evaluate` gives its value and its
/// gradient for each element.
pub(crate) fn loss(x: &Tensor, evaluate: impl FnOnce(&[f32]) -> (f32, Vec<f32>)) -> Result<Tensor> {
    let (value, gradient) = with_slices([x], |[x]| Ok(evaluate(x)))?;
    Ok(x.apply_op1(WithGradient { value, gradient })?)
}

/// The encoder's operations composed of candle's own, for other devices than
/// the CPU and as the reference in tests.
mod composed {
    use super::{D, Dropout, Range, Result, Tensor, kernels};

    pub(super) fn linear(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&w.t()?)?.broadcast_add(b)?)
    }

    pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
        Ok(x.gelu_erf()?)
    }

    pub(super) fn layer_norm(
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        eps: f32,
    ) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
        Ok(normed.broadcast_mul(gamma)?.broadcast_add(beta)?)
    }

    pub(super) fn add_dropout(x: &Tensor, y: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let zeros = vec![0.0; y.elem_count()];
        let mask = kernels::add_dropout(&zeros, &vec![1.0; y.elem_count()], dropout);
        let mask = Tensor::from_vec(mask, y.shape(), y.device())?;
        Ok((x + y.mul(&mask)?)?)
    }

    pub(super) fn attention(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        sequences: &[Range<usize>],
    ) -> Result<Tensor> {
        let hidden = q.dim(1)?;
        let scale = 1.0 / ((hidden / heads) as f64).sqrt();
        let mut parts = Vec::with_capacity(sequences.len());
        for span in sequences.iter() {
            let split = |x: &Tensor| -> candle_core::Result<Tensor> {
                x.narrow(0, span.start, span.len())?
                    .reshape((span.len(), heads, hidden / heads))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let (q, k, v) = (split(q)?, split(k)?, split(v)?);
            let scores = (q.matmul(&k.t()?)? * scale)?;
            let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
            let out = weights
                .matmul(&v)?
                .transpose(0, 1)?
                .reshape((span.len(), hidden))?;
            parts.push(out);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn random(seed: u64, shape: &[usize]) -> Var {
        let size = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..size)
            .map(|i| (kernels::mix(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap()
    }

    /// Values and gradients of `fused` and `composed` agree, for every argument.
    fn agree(
        arguments: &[Var],
        fused: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let tensors: Vec<Tensor> = arguments.iter().map(|a| a.as_tensor().clone()).collect();
        let (a, b) = (fused(&tensors).unwrap(), composed(&tensors).unwrap());
        assert!(largest_difference(&a, &b) < 1e-5, "values differ");
        // Weights that differ by element, so that no gradient cancels out.
        let weights = random(99, a.dims());
        let gradients = |x: &Tensor| {
            (x * weights.as_tensor())
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap()
        };
        let (a, b) = (gradients(&a), gradients(&b));
        for (place, argument) in tensors.iter().enumerate() {
            let difference = largest_difference(a.get(argument).unwrap(), b.get(argument).unwrap());
            assert!(
                difference < 1e-4,
                "gradients of argument {place} differ by {difference}"
            );
        }
    }

    #[test]
    fn linear_equals_its_composition() {
        let arguments = [random(1, &[7, 12]), random(2, &[5, 12]), random(3, &[5])];
        agree(
            &arguments,
            |t| linear(&t[0], &t[1], &t[2]),
            |t| composed::linear(&t[0], &t[1], &t[2]),
        );
    }

    #[test]
    fn gelu_equals_its_composition() {
        let arguments = [random(1, &[7, 300])];
        agree(
            &arguments,
            |t| gelu(&(&t[0] * 4.0)?),
            |t| composed::gelu(&(&t[0] * 4.0)?),
        );
    }

    #[test]
    fn layer_norm_equals_its_composition() {
        let arguments = [random(1, &[7, 24]), random(2, &[24]), random(3, &[24])];
        agree(
            &arguments,
            |t| layer_norm(&t[0], &t[1], &t[2], 1e-6),
            |t| composed::layer_norm(&t[0], &t[1], &t[2], 1e-6),
        );
    }

    #[test]
    fn dropout_equals_its_composition_and_drops_its_share() {
        let arguments = [random(1, &[40, 50]), random(2, &[40, 50])];
        let dropout = Dropout {
            probability: 0.3,
            seed: 7,
        };
        agree(
            &arguments,
            |t| add_dropout(&t[0], &t[1], 0.3, 7),
            |t| composed::add_dropout(&t[0], &t[1], dropout),
        );
        let dropped = kernels::add_dropout(&[0.0; 20_000], &[1.0; 20_000], dropout);
        let share = dropped.iter().filter(|x| **x == 0.0).count() as f32 / 20_000.0;
        assert!((share - 0.3).abs() < 0.02, "{share}");
        let mean = dropped.iter().sum::<f32>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }

    #[test]
    fn attention_equals_its_composition_and_keeps_sequences_apart() {
        let arguments = [
            random(1, &[11, 8]),
            random(2, &[11, 8]),
            random(3, &[11, 8]),
        ];
        let sequences: Arc<[Range<usize>]> = vec![0..4, 4..5, 5..11].into();
        agree(
            &arguments,
            |t| attention(&t[0], &t[1], &t[2], 2, &sequences),
            |t| composed::attention(&t[0], &t[1], &t[2], 2, &sequences),
        );
    }
}
