//! Row-wise operations of the encoder, vectorised by rten-simd, which picks
//! the instruction set at run time.

use super::gemm::grown;
use rten_simd::ops::{BitOps, FloatOps, IntOps, NarrowSaturate, NumOps, ToFloat};
use rten_simd::{Isa, Simd, SimdOp, SimdUnaryOp};
use rten_vecmath::Gelu;

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU by the error function (Hendrycks and Gimpel 2016); in int8 layers near it.
    Gelu,
}

/// Adds a bias to each row of `values` and applies an activation.
pub struct BiasActivation<'a> {
    /// `[rows, bias.len()]`
    pub values: &'a mut [f32],
    /// One number a column.
    pub bias: &'a [f32],
    /// What is applied to the sums.
    pub activation: Activation,
}

impl SimdOp for BiasActivation<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for row in self.values.chunks_exact_mut(self.bias.len()) {
            each(
                ops,
                row,
                [self.bias],
                ops.zero(),
                #[inline(always)]
                |x, [bias]| match self.activation {
                    Activation::None => ops.add(x, bias),
                    Activation::Gelu => Gelu {}.eval(isa, ops.add(x, bias)),
                },
            );
        }
    }
}

/// Adds rows to a residual stream and normalises each sum to mean 0 and
/// variance 1, then scales and shifts it (layer normalisation, Ba et al. 2016).
pub struct AddNorm<'a> {
    /// `[rows, weight.len()]`: the residual stream in, the result out.
    pub hidden: &'a mut [f32],
    /// As long as `hidden`, or empty when nothing is to be added.
    pub added: &'a [f32],
    /// The scale of each column.
    pub weight: &'a [f32],
    /// The shift of each column.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl SimdOp for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let (width, zero) = (self.weight.len(), ops.zero());
        let mut added = self.added.chunks_exact(width);
        for row in self.hidden.chunks_exact_mut(width) {
            let mut sum = zero;
            match added.next() {
                Some(added) => each(
                    ops,
                    &mut *row,
                    [added],
                    zero,
                    #[inline(always)]
                    |x, [added]| {
                        let x = ops.add(x, added);
                        sum = ops.add(sum, x);
                        x
                    },
                ),
                None => each(
                    ops,
                    &mut *row,
                    [],
                    zero,
                    #[inline(always)]
                    |x, []| {
                        sum = ops.add(sum, x);
                        x
                    },
                ),
            }
            let mean = ops.splat(ops.sum(sum) / width as f32);
            let mut squares = zero;
            each(
                ops,
                &mut *row,
                [],
                mean,
                #[inline(always)]
                |x, []| {
                    let x = ops.sub(x, mean);
                    squares = ops.mul_add(x, x, squares);
                    x
                },
            );
            let variance = ops.sum(squares) / width as f32;
            let scale = ops.splat((variance + self.eps).sqrt().recip());
            each(
                ops,
                &mut *row,
                [self.weight, self.bias],
                zero,
                #[inline(always)]
                |x, [weight, bias]| ops.mul_add(x, ops.mul(weight, scale), bias),
            );
        }
    }
}

/// Replaces each vector of `row` by what `map` makes of it and of the same
/// places of `others`. Behind the row's end `map` sees `fill` in the row and 0
/// in the others.
#[inline(always)]
fn each<O: NumOps<f32>, const N: usize>(
    ops: O,
    row: &mut [f32],
    others: [&[f32]; N],
    fill: O::Simd,
    mut map: impl FnMut(O::Simd, [O::Simd; N]) -> O::Simd,
) {
    let lanes = ops.len();
    let whole = row.len() / lanes * lanes;
    // Slices of one length, so that the checks in the loop fall away.
    let others: [&[f32]; N] = std::array::from_fn(
        #[inline(always)]
        |n| &others[n][..row.len()],
    );
    let mut at = 0;
    while at < whole {
        let theirs = std::array::from_fn(
            #[inline(always)]
            |n| ops.load(&others[n][at..]),
        );
        let out = map(ops.load(&row[at..]), theirs);
        ops.store(out, &mut row[at..]);
        at += lanes;
    }
    let rest = &mut row[whole..];
    if !rest.is_empty() {
        let theirs = std::array::from_fn(
            #[inline(always)]
            |n| ops.load_pad(&others[n][whole..]).0,
        );
        let (ours, mask) = ops.load_pad(rest);
        let out = map(ops.select(ours, fill, mask), theirs);
        for (rest, out) in rest.iter_mut().zip(out.to_array()) {
            *rest = out;
        }
    }
}

/// The largest element.
#[inline(always)]
pub(super) fn largest<S: Simd<Elem = f32>>(vector: S) -> f32 {
    halved(vector, f32::max)
}

/// Combines halves until one element is left, which takes fewer steps one
/// after the other than going through the elements.
#[inline(always)]
fn halved<S: Simd<Elem = f32>>(vector: S, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut array = vector.to_array();
    let mut left = array.as_ref().len();
    while left > 1 {
        left /= 2;
        for index in 0..left {
            array[index] = combine(array[index], array[index + left]);
        }
    }
    array[0]
}

/// 1.5 * 2^23. Adding it rounds to a whole number, ties to even, which then stands
/// in the lowest bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// `2^x` for `x <= 0`, to 3 units in the last place, and next to 0 below -126.
/// Half the work of a function for every `x`.
#[inline(always)]
pub(super) fn exp2_of_negative<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let (ops, int_ops) = (isa.f32(), isa.i32());
    let x = ops.max(x, ops.splat(-126.0));
    // x = k + r, |r| <= 1/2.
    let rounder = ops.splat(ROUNDER);
    let shifted = ops.add(x, rounder);
    let r = ops.sub(x, ops.sub(shifted, rounder));
    // With these two last coefficients, the polynomial of its degree with the
    // least relative error, 1e-7.
    let mut y = ops.splat(1.330_060_6e-3);
    for coefficient in [
        9.669_691e-3,
        5.550_558_5e-2,
        0.240_222_83,
        std::f32::consts::LN_2,
        1.0,
    ] {
        y = ops.mul_add(y, r, ops.splat(coefficient));
    }
    // Times 2^k, by adding k to the exponent.
    let shifted: I::I32 = shifted.reinterpret_cast();
    let y: I::I32 = y.reinterpret_cast();
    int_ops
        .add(y, int_ops.shift_left::<23>(shifted))
        .reinterpret_cast()
}

/// GELU with an error of at most 5e-5 to ±10 and 4e-6 of `x` beyond, far below a step
/// of u8, in a third of the exact one's work.
#[inline(always)]
fn rounded_gelu<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    // Beyond this the normal distribution function is 0 or 1 for the purpose.
    let bound = ops.splat(4.4);
    let bounded = ops.max(ops.min(x, bound), ops.neg(bound));
    let square = ops.mul(bounded, bounded);
    // (distribution - 1/2) / x as a polynomial of x squared: of this degree and
    // right at the bound, the one with the least error in GELU.
    let mut y = ops.splat(3.569_452_7e-11);
    for coefficient in [
        -3.754_068e-9,
        1.740_853_9e-7,
        -4.724_88e-6,
        8.429_314e-5,
        -1.054_993_3e-3,
        9.643_03e-3,
        -6.607_643_5e-2,
        0.398_761_6,
    ] {
        y = ops.mul_add(y, square, ops.splat(coefficient));
    }
    ops.mul(x, ops.mul_add(y, bounded, ops.splat(0.5)))
}

/// Rows rounded to u8, each with its own scale and zero point:
/// `x ~ (q - zero_point) * scale`. The buffers only ever grow.
#[derive(Default)]
pub(crate) struct QuantisedRows {
    /// `[rows, width]`
    pub values: Vec<u8>,
    /// `[rows]`
    pub zero_points: Vec<u8>,
    /// `[rows]`
    pub scales: Vec<f32>,
}

impl QuantisedRows {
    /// Makes room for `rows` rows of `width` values.
    pub fn reserve(&mut self, rows: usize, width: usize) {
        grown(&mut self.values, rows * width);
        grown(&mut self.zero_points, rows);
        grown(&mut self.scales, rows);
    }
}

/// How rows are rounded to u8.
#[derive(Clone, Copy)]
pub(crate) struct Rounding<'a> {
    /// What each column is multiplied by before.
    pub factors: &'a [f32],
    /// The largest whole number, at most 255. Below that, a value may come out one
    /// above it.
    pub limit: f32,
}

/// Rounds each row of `values` `[rows, rounding.factors.len()]` into
/// `quantised`, which has the room for them.
pub(crate) struct QuantiseRows<'a> {
    pub values: &'a [f32],
    pub rounding: Rounding<'a>,
    pub quantised: &'a mut QuantisedRows,
}

impl SimdOp for QuantiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let rows = self.values.chunks_exact(self.rounding.factors.len());
        for (index, row) in rows.enumerate() {
            quantise_row(isa, row, self.rounding, index, self.quantised);
        }
    }
}

#[inline(always)]
fn quantise_row<I: Isa>(
    isa: I,
    row: &[f32],
    rounding: Rounding,
    index: usize,
    into: &mut QuantisedRows,
) {
    let (ops, int_ops) = (isa.f32(), isa.i32());
    let (width, limit) = (row.len(), rounding.limit);
    let factors = &rounding.factors[..width];
    // Zero itself must be exact, so it belongs to the range.
    let (mut low, mut high) = (ops.zero(), ops.zero());
    let lanes = ops.len();
    let whole = width / lanes * lanes;
    let mut at = 0;
    while at < whole {
        let x = ops.mul(ops.load(&row[at..]), ops.load(&factors[at..]));
        (low, high) = (ops.min(low, x), ops.max(high, x));
        at += lanes;
    }
    let rest = ops.mul(
        ops.load_pad(&row[whole..]).0,
        ops.load_pad(&factors[whole..]).0,
    );
    let min = halved(ops.min(low, rest), f32::min);
    let max = largest(ops.max(high, rest));
    let step = ((max - min) / limit).max(f32::MIN_POSITIVE);
    let inverse = step.recip();
    let zero = (-min * inverse).round_ties_even().clamp(0.0, limit);
    into.zero_points[index] = zero as u8;
    into.scales[index] = step;

    let lanes = lanes * 4;
    let inverse_vec = ops.splat(inverse);
    let zero_vec = int_ops.splat(zero as i32);
    let mut chunks = row.chunks_exact(lanes);
    let mut factor_chunks = factors.chunks_exact(lanes);
    let mut out = into.values[index * width..(index + 1) * width].chunks_exact_mut(lanes);
    for ((chunk, factors), out) in (&mut chunks).zip(&mut factor_chunks).zip(&mut out) {
        let (x, factors) = (ops.load_many::<4>(chunk), ops.load_many::<4>(factors));
        let rounded: [I::I32; 4] = std::array::from_fn(
            #[inline(always)]
            |n| {
                let x = ops.mul(ops.mul(x[n], factors[n]), inverse_vec);
                int_ops.add(ops.to_int_round(x), zero_vec)
            },
        );
        let low = int_ops.narrow_saturate(rounded[0], rounded[1]);
        let high = int_ops.narrow_saturate(rounded[2], rounded[3]);
        isa.u8().store(isa.i16().narrow_saturate(low, high), out);
    }
    let rest = chunks.remainder().iter().zip(factor_chunks.remainder());
    for ((x, factor), out) in rest.zip(out.into_remainder()) {
        *out = ((x * factor * inverse).round_ties_even() + zero) as u8;
    }
}

/// Turns the sums of an int8 product back into f32, with a bias and an
/// activation:
/// `out = (sums - zero_point * column_sum) * row_scale * column_scale + bias`.
#[derive(Clone, Copy)]
pub(crate) struct Dequantise<'a> {
    /// `[rows, columns]`
    pub sums: &'a [i32],
    /// The product's left side: the scales and zero points of its rows.
    pub input: &'a QuantisedRows,
    /// `[columns]`
    pub column_sums: &'a [i32],
    /// `[columns]`
    pub column_scales: &'a [f32],
    /// `[columns]`
    pub bias: &'a [f32],
    pub activation: Activation,
}

impl Dequantise<'_> {
    #[inline(always)]
    fn value<I: Isa>(
        &self,
        isa: I,
        [row_scale, column_scale, bias]: [I::F32; 3],
        [zero_point, column_sum, sum]: [I::I32; 3],
    ) -> I::F32 {
        let (ops, int_ops) = (isa.f32(), isa.i32());
        let sum = int_ops.to_float(int_ops.sub(sum, int_ops.mul(zero_point, column_sum)));
        let x = ops.mul_add(sum, ops.mul(row_scale, column_scale), bias);
        match self.activation {
            Activation::None => x,
            Activation::Gelu => rounded_gelu(isa, x),
        }
    }

    #[inline(always)]
    fn row<I: Isa>(&self, isa: I, index: usize, out: &mut [f32]) {
        let (ops, int_ops) = (isa.f32(), isa.i32());
        let columns = self.bias.len();
        let sums = &self.sums[index * columns..(index + 1) * columns];
        let (column_sums, scales) = (&self.column_sums[..columns], &self.column_scales[..columns]);
        let row_scale = ops.splat(self.input.scales[index]);
        let zero_point = int_ops.splat(i32::from(self.input.zero_points[index]));
        let lanes = ops.len();
        let whole = columns / lanes * lanes;
        let out = &mut out[..columns];
        let mut at = 0;
        while at < whole {
            let x = self.value(
                isa,
                [
                    row_scale,
                    ops.load(&scales[at..]),
                    ops.load(&self.bias[at..]),
                ],
                [
                    zero_point,
                    int_ops.load(&column_sums[at..]),
                    int_ops.load(&sums[at..]),
                ],
            );
            ops.store(x, &mut out[at..]);
            at += lanes;
        }
        if whole < columns {
            let x = self.value(
                isa,
                [
                    row_scale,
                    ops.load_pad(&scales[whole..]).0,
                    ops.load_pad(&self.bias[whole..]).0,
                ],
                [
                    zero_point,
                    int_ops.load_pad(&column_sums[whole..]).0,
                    int_ops.load_pad(&sums[whole..]).0,
                ],
            );
            for (out, x) in out[whole..].iter_mut().zip(x.to_array()) {
                *out = x;
            }
        }
    }
}

/// Writes what a [`Dequantise`] gives to `out` `[rows, columns]`.
pub(crate) struct DequantiseRows<'a>(pub Dequantise<'a>, pub &'a mut [f32]);

impl SimdOp for DequantiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for (index, out) in self.1.chunks_exact_mut(self.0.bias.len()).enumerate() {
            self.0.row(isa, index, out);
        }
    }
}

/// Rounds what a [`Dequantise`] gives to u8 again, row by row, so that the
/// numbers between stay in the first cache.
pub(crate) struct Requantise<'a> {
    pub from: Dequantise<'a>,
    pub rows: usize,
    /// Room for one row.
    pub row: &'a mut [f32],
    pub rounding: Rounding<'a>,
    /// Has the room for all rows.
    pub into: &'a mut QuantisedRows,
}

impl SimdOp for Requantise<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for index in 0..self.rows {
            self.from.row(isa, index, self.row);
            quantise_row(isa, self.row, self.rounding, index, self.into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Function {
        Exp2OfNegative,
        RoundedGelu,
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl SimdOp for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            each(
                isa.f32(),
                self.1,
                [],
                isa.f32().zero(),
                #[inline(always)]
                |x, []| match self.0 {
                    Function::Exp2OfNegative => exp2_of_negative(isa, x),
                    Function::RoundedGelu => rounded_gelu(isa, x),
                },
            );
        }
    }

    #[test]
    fn the_exponential_of_what_is_not_positive_is_exact_to_a_millionth() {
        let inputs: Vec<f32> = (0..126_000).map(|i| i as f32 * -0.001).collect();
        let mut outputs = inputs.clone();
        Apply(Function::Exp2OfNegative, &mut outputs).dispatch();
        for (x, y) in inputs.iter().zip(&outputs) {
            let exact = f64::from(*x).exp2();
            assert!(
                (f64::from(*y) / exact - 1.0).abs() < 1e-6,
                "{x}: {y} {exact}"
            );
        }
        let mut far = [-1e4, f32::NEG_INFINITY, f32::MIN];
        Apply(Function::Exp2OfNegative, &mut far).dispatch();
        assert!(far.iter().all(|y| (0.0..1e-37).contains(y)), "{far:?}");
    }

    #[test]
    fn the_gelu_of_the_rounded_path_is_near_the_exact_one() {
        let inputs: Vec<f32> = (-20_000..=20_000).map(|i| i as f32 * 0.0005).collect();
        let mut rounded = inputs.clone();
        Apply(Function::RoundedGelu, &mut rounded).dispatch();
        let mut exact = inputs.clone();
        BiasActivation {
            values: &mut exact,
            bias: &[0.0],
            activation: Activation::Gelu,
        }
        .dispatch();
        for ((x, y), exact) in inputs.iter().zip(&rounded).zip(&exact) {
            assert!((y - exact).abs() < 5e-5, "{x}: {y} {exact}");
        }
    }

    #[test]
    fn a_row_is_normalised_whatever_its_width() {
        for width in [1, 2, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..width).map(|i| (i * i % 7) as f32 - 2.0).collect();
            let added: Vec<f32> = (0..width).map(|i| (i % 3) as f32).collect();
            let (weight, bias) = (vec![2.0; width], vec![0.5; width]);
            let mut hidden = values.clone();
            AddNorm {
                hidden: &mut hidden,
                added: &added,
                weight: &weight,
                bias: &bias,
                eps: 1e-12,
            }
            .dispatch();
            let sums: Vec<f32> = values.iter().zip(&added).map(|(a, b)| a + b).collect();
            let mean = sums.iter().sum::<f32>() / width as f32;
            let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width as f32;
            for (x, y) in sums.iter().zip(&hidden) {
                let expected = (x - mean) / (variance + 1e-12).sqrt() * 2.0 + 0.5;
                assert!((expected - y).abs() < 1e-4, "{width}: {expected} {y}");
            }
        }
    }
}
