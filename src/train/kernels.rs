//! Forward and backward arithmetic of the trainable encoder on plain slices.
//!
//! Candle's own layer norm, softmax and GELU either have no backward pass or
//! are scalar; these use `rten-gemm` and `rten-vecmath`, which pick their
//! kernels for the processor at run time. All matrices are row-major.

use crate::error::{Error, ErrorKind, Result};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions};
use rten_simd::{SimdOp, SimdUnaryOp};
use rten_tensor::NdTensorView;
use rten_vecmath::{Erf, Exp, ExtendInit, Gelu, Softmax, Sum, SumSquareSub};
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    static GEMM: GemmExecutor = GemmExecutor::new();
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix somewhere in a slice: element `(r, c)` is at `r * strides[0] + c * strides[1]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data,
            shape: [rows, columns],
            strides: [columns, 1],
        }
    }

    /// A block of columns of a wider matrix, from row `row` and column `column` on.
    fn block(
        data: &'a [f32],
        width: usize,
        row: usize,
        rows: usize,
        column: usize,
        columns: usize,
    ) -> Self {
        let start = row * width + column;
        let end = if rows == 0 {
            start
        } else {
            start + (rows - 1) * width + columns
        };
        Self {
            data: &data[start..end],
            shape: [rows, columns],
            strides: [width, 1],
        }
    }

    pub(super) fn t(self) -> Self {
        let ([r, c], [rs, cs]) = (self.shape, self.strides);
        Self {
            data: self.data,
            shape: [c, r],
            strides: [cs, rs],
        }
    }

    fn view(&self) -> Result<NdTensorView<'a, f32, 2>> {
        NdTensorView::from_slice_with_strides(self.shape, self.data, self.strides)
            .map_err(|_| Error::new(ErrorKind::Compute, "a matrix reaches outside of its data"))
    }
}

/// Appends `alpha * a b (+ bias)` to `out`, row-major `[a rows, b columns]`.
pub(super) fn matmul(
    out: &mut Vec<f32>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    alpha: f32,
    bias: Option<&[f32]>,
) -> Result<()> {
    let size = a.shape[0] * b.shape[1];
    let (a, b) = (a.view()?, b.view()?);
    let start = out.len();
    out.reserve(size);
    GEMM.with(|gemm| {
        gemm.gemm_uninit(
            &mut out.spare_capacity_mut()[..size],
            GemmInputA::Unpacked(a),
            GemmInputB::Unpacked(b),
            GemmUninitOptions {
                alpha,
                bias: bias.map(BiasVector::Row),
                ..Default::default()
            },
        )
        .map(|_| ())
        .map_err(|error| Error::new(ErrorKind::Compute, format!("matrix product: {error}")))
    })?;
    // SAFETY: on success `gemm_uninit` has written all `size` elements after `start`.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(start + size);
    }
    Ok(())
}

/// Sums of the columns of `[rows, columns]`.
pub(super) fn column_sums(x: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in x.chunks_exact(columns) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x;
        }
    }
    sums
}

/// GELU with the error function (Hendrycks and Gimpel 2016).
pub(super) fn gelu(x: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    out.extend_init(|uninit| Gelu {}.map(x, uninit));
    out
}

/// The gradient of GELU: `Φ(x) + x φ(x)`, times the gradient of the result.
pub(super) fn gelu_backward(x: &[f32], grad: &[f32]) -> Vec<f32> {
    const BLOCK: usize = 1024;
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let mut out = Vec::with_capacity(x.len());
    let (mut cdf, mut pdf) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    for (x, grad) in x.chunks(BLOCK).zip(grad.chunks(BLOCK)) {
        let (cdf, pdf) = (&mut cdf[..x.len()], &mut pdf[..x.len()]);
        for ((c, p), x) in cdf.iter_mut().zip(pdf.iter_mut()).zip(x) {
            *c = x * std::f32::consts::FRAC_1_SQRT_2;
            *p = -0.5 * x * x;
        }
        Erf {}.map_mut(cdf);
        Exp {}.map_mut(pdf);
        out.extend(
            x.iter()
                .zip(grad)
                .zip(cdf.iter().zip(pdf.iter()))
                .map(|((x, g), (c, p))| g * (0.5 * (1.0 + c) + x * p * INV_SQRT_2PI)),
        );
    }
    out
}

fn mean_and_inverse_deviation(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = Sum::new(row).dispatch() / n;
    let variance = SumSquareSub::new(row, mean).dispatch() / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Layer norm over the rows of `[rows, gamma.len()]` (Ba, Kiros and Hinton 2016).
pub(super) fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(gamma.len()) {
        let (mean, inverse) = mean_and_inverse_deviation(row, eps);
        out.extend(
            row.iter()
                .zip(gamma.iter().zip(beta))
                .map(|(x, (g, b))| (x - mean) * inverse * g + b),
        );
    }
    out
}

/// Gradients of [`layer_norm`]: of its input, `gamma` and `beta`.
pub(super) fn layer_norm_backward(
    x: &[f32],
    gamma: &[f32],
    eps: f32,
    grad: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let d = gamma.len();
    let mut dx = Vec::with_capacity(x.len());
    let (mut dgamma, mut dbeta) = (vec![0.0; d], vec![0.0; d]);
    let (mut xhat, mut dxhat, mut product) = (vec![0.0f32; d], vec![0.0f32; d], vec![0.0f32; d]);
    for (x, grad) in x.chunks_exact(d).zip(grad.chunks_exact(d)) {
        let (mean, inverse) = mean_and_inverse_deviation(x, eps);
        for i in 0..d {
            xhat[i] = (x[i] - mean) * inverse;
            dxhat[i] = grad[i] * gamma[i];
            product[i] = dxhat[i] * xhat[i];
            dgamma[i] += grad[i] * xhat[i];
            dbeta[i] += grad[i];
        }
        let mean_dxhat = Sum::new(&dxhat).dispatch() / d as f32;
        let mean_product = Sum::new(&product).dispatch() / d as f32;
        dx.extend(
            dxhat
                .iter()
                .zip(&xhat)
                .map(|(dxh, xh)| inverse * (dxh - mean_dxhat - xh * mean_product)),
        );
    }
    (dx, dgamma, dbeta)
}

/// A dropout mask that depends on nothing but its seed, so that the backward
/// pass and a resumed run make the same one again.
#[derive(Clone, Copy)]
pub(super) struct Dropout {
    pub(super) probability: f32,
    pub(super) seed: u64,
}

impl Dropout {
    /// Calls `apply(index, factor)` for every element: the factor is 0 for a
    /// dropped one and `1 / (1 - p)` for a kept one.
    fn for_each(self, len: usize, mut apply: impl FnMut(usize, f32)) {
        let keep = 1.0 / (1.0 - self.probability);
        let limit = (f64::from(self.probability) * 65536.0) as u64;
        for block in 0..len.div_ceil(4) {
            let mut bits = mix(self.seed, block as u64);
            for index in block * 4..(block * 4 + 4).min(len) {
                apply(index, if bits & 0xffff < limit { 0.0 } else { keep });
                bits >>= 16;
            }
        }
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014), used as a
/// counter-based generator.
pub(super) fn mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed ^ counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `x + dropout(y)`.
pub(super) fn add_dropout(x: &[f32], y: &[f32], dropout: Dropout) -> Vec<f32> {
    if dropout.probability == 0.0 {
        return x.iter().zip(y).map(|(x, y)| x + y).collect();
    }
    let mut out = x.to_vec();
    dropout.for_each(y.len(), |i, factor| out[i] += factor * y[i]);
    out
}

/// The gradient of [`add_dropout`] for its second argument.
pub(super) fn dropout_backward(grad: &[f32], dropout: Dropout) -> Vec<f32> {
    let mut out = grad.to_vec();
    if dropout.probability > 0.0 {
        dropout.for_each(grad.len(), |i, factor| out[i] *= factor);
    }
    out
}

/// Queries, keys and values `[tokens, hidden]` of several sequences, one after
/// another; no token sees another sequence.
pub(super) struct Attention<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) sequences: &'a [Range<usize>],
}

impl Attention<'_> {
    fn head<'b>(&self, data: &'b [f32], sequence: &Range<usize>, head: usize) -> Matrix<'b> {
        let width = self.hidden / self.heads;
        Matrix::block(
            data,
            self.hidden,
            sequence.start,
            sequence.len(),
            head * width,
            width,
        )
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.hidden / self.heads) as f32).sqrt()
    }

    /// `softmax(Q Kᵀ / sqrt(width))` of one head, `[n, n]`.
    fn weights(&self, out: &mut Vec<f32>, sequence: &Range<usize>, head: usize) -> Result<()> {
        out.clear();
        let (q, k) = (
            self.head(self.q, sequence, head),
            self.head(self.k, sequence, head),
        );
        matmul(out, q, k.t(), self.scale(), None)?;
        for row in out.chunks_exact_mut(sequence.len().max(1)) {
            Softmax::new_mut(row).dispatch();
        }
        Ok(())
    }

    fn scatter(&self, out: &mut [f32], sequence: &Range<usize>, head: usize, block: &[f32]) {
        let width = self.hidden / self.heads;
        for (row, values) in sequence.clone().zip(block.chunks_exact(width)) {
            let start = row * self.hidden + head * width;
            out[start..start + width].copy_from_slice(values);
        }
    }

    /// Scaled dot-product attention (Vaswani et al. 2017), `[tokens, hidden]`.
    pub(super) fn forward(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.q.len()];
        let (mut weights, mut block) = (Vec::new(), Vec::new());
        for sequence in self.sequences {
            for head in 0..self.heads {
                self.weights(&mut weights, sequence, head)?;
                block.clear();
                let n = sequence.len();
                matmul(
                    &mut block,
                    Matrix::new(&weights, n, n),
                    self.head(self.v, sequence, head),
                    1.0,
                    None,
                )?;
                self.scatter(&mut out, sequence, head, &block);
            }
        }
        Ok(out)
    }

    /// Gradients of queries, keys and values; the weights are computed again
    /// rather than kept.
    pub(super) fn backward(&self, grad: &[f32]) -> Result<[Vec<f32>; 3]> {
        let mut out = [
            vec![0.0; self.q.len()],
            vec![0.0; self.q.len()],
            vec![0.0; self.q.len()],
        ];
        let (mut weights, mut dweights, mut block) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in self.sequences {
            let n = sequence.len();
            for head in 0..self.heads {
                self.weights(&mut weights, sequence, head)?;
                let grad = self.head(grad, sequence, head);
                block.clear();
                matmul(&mut block, Matrix::new(&weights, n, n).t(), grad, 1.0, None)?;
                self.scatter(&mut out[2], sequence, head, &block);

                dweights.clear();
                matmul(
                    &mut dweights,
                    grad,
                    self.head(self.v, sequence, head).t(),
                    1.0,
                    None,
                )?;
                for (dw, w) in dweights
                    .chunks_exact_mut(n.max(1))
                    .zip(weights.chunks_exact(n.max(1)))
                {
                    softmax_backward(dw, w);
                }
                let dscores = Matrix::new(&dweights, n, n);
                block.clear();
                matmul(
                    &mut block,
                    dscores,
                    self.head(self.k, sequence, head),
                    self.scale(),
                    None,
                )?;
                self.scatter(&mut out[0], sequence, head, &block);
                block.clear();
                matmul(
                    &mut block,
                    dscores.t(),
                    self.head(self.q, sequence, head),
                    self.scale(),
                    None,
                )?;
                self.scatter(&mut out[1], sequence, head, &block);
            }
        }
        Ok(out)
    }
}

/// Turns the gradient of softmax weights into that of its scores, in place.
pub(super) fn softmax_backward(grad: &mut [f32], weights: &[f32]) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.extend(grad.iter().zip(weights).map(|(g, w)| g * w));
        let dot = Sum::new(scratch).dispatch();
        for (g, w) in grad.iter_mut().zip(weights) {
            *g = w * (*g - dot);
        }
    });
}

/// Column-wise softmax over each span of rows of `scores`, `[tokens, queries]`,
/// given back as `[queries, tokens in span]` for each span.
pub(super) fn span_softmax(
    scores: &[f32],
    queries: usize,
    spans: &[Range<usize>],
) -> Vec<Vec<f32>> {
    spans
        .iter()
        .map(|span| {
            let n = span.len();
            let mut weights = vec![0.0; queries * n];
            for (t, row) in scores[span.start * queries..span.end * queries]
                .chunks_exact(queries)
                .enumerate()
            {
                for (q, score) in row.iter().enumerate() {
                    weights[q * n + t] = *score;
                }
            }
            for row in weights.chunks_exact_mut(n.max(1)) {
                Softmax::new_mut(row).dispatch();
            }
            weights
        })
        .collect()
}
