//! Row-wise operations of the encoder, vectorised by rten-simd, which picks
//! the instruction set at run time.

use rten_simd::functional::simd_map;
use rten_simd::ops::{BitOps, FloatOps, NarrowSaturate, NumOps, ToFloat};
use rten_simd::{Isa, SimdIterable, SimdOp, SimdUnaryOp};
use rten_vecmath::{Gelu, MinMax, Normalize, NormalizeOptions, Softmax, Sum, SumSquareSub};

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Gelu,
}

/// Adds a bias to each row of `values` and applies an activation.
pub(crate) struct BiasActivation<'a> {
    /// `[rows, bias.len()]`
    pub values: &'a mut [f32],
    pub bias: &'a [f32],
    pub activation: Activation,
}

impl SimdOp for BiasActivation<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let gelu = Gelu {};
        for row in self.values.chunks_exact_mut(self.bias.len()) {
            let mut bias = self.bias.simd_iter_pad(ops);
            match self.activation {
                Activation::None => simd_map(
                    ops,
                    row,
                    #[inline(always)]
                    |x| ops.add(x, bias.next().unwrap_or(ops.zero())),
                ),
                Activation::Gelu => simd_map(
                    ops,
                    row,
                    #[inline(always)]
                    |x| gelu.eval(isa, ops.add(x, bias.next().unwrap_or(ops.zero()))),
                ),
            };
        }
    }
}

/// Adds rows to a residual stream and normalises each sum to mean 0 and
/// variance 1, then scales and shifts it (layer normalisation, Ba et al. 2016).
pub(crate) struct AddNorm<'a> {
    /// `[rows, weight.len()]`: the residual stream in, the result out.
    pub hidden: &'a mut [f32],
    /// As long as `hidden`, or empty when nothing is to be added.
    pub added: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

impl SimdOp for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let width = self.weight.len();
        let mut added = self.added.chunks_exact(width);
        for row in self.hidden.chunks_exact_mut(width) {
            if let Some(added) = added.next() {
                let mut added = added.simd_iter_pad(ops);
                simd_map(
                    ops,
                    &mut *row,
                    #[inline(always)]
                    |x| ops.add(x, added.next().unwrap_or(ops.zero())),
                );
            }
            let mean = Sum::new(row).eval(isa) / width as f32;
            let variance = SumSquareSub::new(row, mean).eval(isa) / width as f32;
            Normalize::new_mut(
                row,
                NormalizeOptions {
                    pre_scale_bias: mean,
                    scale: (variance + self.eps).sqrt().recip(),
                    element_scale: Some(self.weight),
                    element_bias: Some(self.bias),
                    ..NormalizeOptions::default()
                },
            )
            .eval(isa);
        }
    }
}

/// Softmax over each row of `width` values.
pub(crate) struct SoftmaxRows<'a> {
    pub values: &'a mut [f32],
    pub width: usize,
}

impl SimdOp for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for row in self.values.chunks_exact_mut(self.width) {
            Softmax::new_mut(row).eval(isa);
        }
    }
}

/// Rounds each row to u8 with its own scale and zero point:
/// `x ~ (q - zero_point) * scale`.
pub(crate) struct QuantiseRows<'a> {
    /// `[rows, width]`
    pub values: &'a [f32],
    pub width: usize,
    /// `[rows, width]`
    pub quantised: &'a mut [u8],
    /// `[rows]`
    pub zero_points: &'a mut [u8],
    /// `[rows]`
    pub scales: &'a mut [f32],
}

impl SimdOp for QuantiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let int_ops = isa.i32();
        let rows = self
            .values
            .chunks_exact(self.width)
            .zip(self.quantised.chunks_exact_mut(self.width));
        let parameters = self.zero_points.iter_mut().zip(self.scales.iter_mut());
        for ((row, quantised), (zero_point, scale)) in rows.zip(parameters) {
            let (min, max) = MinMax::new(row).eval(isa);
            // Zero itself must be exact, so it belongs to the range.
            let (min, max) = (min.min(0.0), max.max(0.0));
            let step = ((max - min) / 255.0).max(f32::MIN_POSITIVE);
            let inverse = step.recip();
            let zero = (-min * inverse).round_ties_even().clamp(0.0, 255.0);
            (*zero_point, *scale) = (zero as u8, step);

            let lanes = ops.len() * 4;
            let inverse_vec = ops.splat(inverse);
            let zero_vec = int_ops.splat(zero as i32);
            let mut chunks = row.chunks_exact(lanes);
            let mut out = quantised.chunks_exact_mut(lanes);
            for (chunk, out) in (&mut chunks).zip(&mut out) {
                let rounded = ops.load_many::<4>(chunk).map(
                    #[inline(always)]
                    |x| int_ops.add(ops.to_int_round(ops.mul(x, inverse_vec)), zero_vec),
                );
                let low = int_ops.narrow_saturate(rounded[0], rounded[1]);
                let high = int_ops.narrow_saturate(rounded[2], rounded[3]);
                isa.u8().store(isa.i16().narrow_saturate(low, high), out);
            }
            for (x, out) in chunks.remainder().iter().zip(out.into_remainder()) {
                *out = ((x * inverse).round_ties_even() + zero) as u8;
            }
        }
    }
}

/// Turns the sums of an int8 product back into f32, with a bias and an
/// activation:
/// `out = (sums - zero_point * column_sum) * row_scale * column_scale + bias`.
pub(crate) struct Dequantise<'a> {
    /// `[rows, columns]`
    pub sums: &'a [i32],
    /// `[rows]`
    pub row_scales: &'a [f32],
    /// `[rows]`
    pub zero_points: &'a [u8],
    /// `[columns]`
    pub column_sums: &'a [i32],
    /// `[columns]`
    pub column_scales: &'a [f32],
    /// `[columns]`
    pub bias: &'a [f32],
    pub activation: Activation,
    /// `[rows, columns]`
    pub out: &'a mut [f32],
}

impl SimdOp for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let int_ops = isa.i32();
        let gelu = Gelu {};
        let columns = self.bias.len();
        let rows = self
            .sums
            .chunks_exact(columns)
            .zip(self.out.chunks_exact_mut(columns));
        let parameters = self.row_scales.iter().zip(self.zero_points);
        for ((sums, out), (row_scale, zero_point)) in rows.zip(parameters) {
            let row_scale = ops.splat(*row_scale);
            let zero_point = int_ops.splat(i32::from(*zero_point));
            let mut column_sums = self.column_sums.simd_iter_pad(int_ops);
            let mut sums = sums.simd_iter_pad(int_ops);
            let mut scales = self.column_scales.simd_iter_pad(ops);
            let mut bias = self.bias.simd_iter_pad(ops);
            let values = simd_map(
                ops,
                out,
                #[inline(always)]
                |_| {
                    let shift = column_sums.next().unwrap_or(int_ops.zero());
                    let sum = int_ops.sub(
                        sums.next().unwrap_or(int_ops.zero()),
                        int_ops.mul(zero_point, shift),
                    );
                    let sum = int_ops.to_float(sum);
                    let scale = ops.mul(row_scale, scales.next().unwrap_or(ops.zero()));
                    ops.mul_add(sum, scale, bias.next().unwrap_or(ops.zero()))
                },
            );
            if self.activation == Activation::Gelu {
                simd_map(
                    ops,
                    values,
                    #[inline(always)]
                    |x| gelu.eval(isa, x),
                );
            }
        }
    }
}
