//! Matrix products by rten-gemm, in f32 and int8, with the weights packed once.
//!
//! Every sum is taken over the inner dimension in an order that depends on the
//! kernel alone, so a result's bytes don't depend on threads or batches. Call
//! these from a thread whose rayon pool has one thread: the kernels then run
//! without handing work to other threads.

use super::ops::{
    Activation, BiasActivation, Dequantise, DequantiseRows, QuantiseRows, QuantisedRows, ROUNDER,
    Requantise, Rounding,
};
use crate::error::{Error, ErrorKind, Result};
use rten_gemm::{GemmError, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_simd::SimdOp;
use rten_tensor::Matrix;
use serde::{Deserialize, Serialize};
use std::mem::MaybeUninit;

/// The number format of the encoder's matrix products.
///
/// # Examples
///
/// ```
/// assert_eq!(lyhord::Precision::default(), lyhord::Precision::F32);
/// assert_eq!("int8".parse::<lyhord::Precision>()?, lyhord::Precision::Int8);
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floating point: the exact mode.
    #[default]
    F32,
    /// 8-bit integers: weights with one scale an output channel, activations
    /// with one scale and zero point a token, after a factor for each input
    /// channel where the bundle says how large they get. Several times faster, with small
    /// differences in the probabilities.
    Int8,
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::new(
                ErrorKind::InvalidOption,
                format!("the precision `{text}` is unknown; use f32 or int8"),
            )),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

/// The kernels for this machine and the buffers of the int8 path. One for each
/// thread.
#[derive(Default)]
pub struct Gemm {
    float: GemmExecutor<f32>,
    int8: GemmExecutor<u8, i8, i32>,
    input: QuantisedRows,
    inner: QuantisedRows,
    inner_row: Vec<f32>,
    sums: Vec<i32>,
}

impl Gemm {
    /// Rounds `x` `[rows, inputs]` into `input`, as `weight` wants it.
    fn quantise(&mut self, x: &[f32], rows: usize, weight: &Int8Weight) {
        self.input.reserve(rows, weight.factors.len());
        QuantiseRows {
            values: x,
            rounding: weight.rounding(),
            quantised: &mut self.input,
        }
        .dispatch();
    }

    /// The largest whole numbers that inputs and weights are rounded to.
    fn int8_limits(&self) -> (f32, f32) {
        if self.int8.may_saturate() {
            // Without VNNI the kernel adds pairs of products in 16 bits. An
            // input may come out one above its limit: 2 * 182 * 90 = 32,760.
            (181.0, 90.0)
        } else {
            (255.0, 127.0)
        }
    }

    /// `out = a @ b` for unpacked operands.
    pub(crate) fn product(&self, a: Matrix, b: Matrix, out: &mut [f32]) -> Result<()> {
        self.float
            .gemm(
                out,
                GemmInputA::Unpacked(a),
                GemmInputB::Unpacked(b),
                GemmOptions::default(),
            )
            .map_err(refused)
    }
}

/// A view of a matrix inside a larger buffer; `strides` are those of rows and
/// columns, in elements.
pub(crate) fn matrix(data: &[f32], shape: [usize; 2], strides: [usize; 2]) -> Result<Matrix<'_>> {
    Matrix::from_slice_with_strides(shape, data, strides).map_err(|_| {
        Error::new(
            ErrorKind::Compute,
            format!(
                "a buffer of {} is too small for {shape:?} with strides {strides:?}",
                data.len()
            ),
        )
    })
}

/// `y = activation(x Wᵀ + b)` with packed weights.
pub struct Linear {
    weight: Packed,
    bias: Vec<f32>,
}

enum Packed {
    F32(PackedBMatrix<f32>),
    Int8(Int8Weight),
}

struct Int8Weight {
    weight: PackedBMatrix<i8>,
    /// One an output, like the next.
    scales: Vec<f32>,
    /// The sum of an output's weights, which times a token's zero point is
    /// what the zero point adds to the product. It is subtracted here since
    /// rten-gemm 0.27.0 takes the zero points of the first rows for all.
    sums: Vec<i32>,
    /// What each input is multiplied by before it is rounded; its weights are
    /// divided by the same.
    factors: Vec<f32>,
    /// The largest whole number that an input is rounded to.
    input_limit: f32,
}

impl Int8Weight {
    /// Rounds and packs `weight` `[outputs, inputs]`.
    fn new(gemm: &Gemm, weight: &[f32], inputs: usize, magnitudes: &[f32]) -> Result<Self> {
        let (input_limit, limit) = gemm.int8_limits();
        let factors = shared_rounding(weight, inputs, magnitudes);
        let (quantised, scales) = quantise_weight(weight, &factors, limit);
        let shape = [inputs, scales.len()];
        let view = Matrix::from_slice_with_strides(shape, &quantised, [1, inputs])
            .map_err(|_| refused(GemmError::KSizeMismatch))?;
        let sums = quantised
            .chunks_exact(inputs)
            .map(|row| row.iter().map(|x| i32::from(*x)).sum())
            .collect();
        Ok(Self {
            weight: gemm.int8.prepack_b(view),
            scales,
            sums,
            factors,
            input_limit,
        })
    }

    fn rounding(&self) -> Rounding<'_> {
        Rounding {
            factors: &self.factors,
            limit: self.input_limit,
        }
    }

    /// `sums` `[rows, outputs]` of rounded rows and weights, zero points still
    /// in them.
    fn product(
        &self,
        gemm: &GemmExecutor<u8, i8, i32>,
        input: &QuantisedRows,
        rows: usize,
        sums: &mut [i32],
    ) -> Result<()> {
        let inputs = self.weight.rows();
        let view = Matrix::from_slice_with_strides([rows, inputs], &input.values, [inputs, 1])
            .map_err(|_| refused(GemmError::KSizeMismatch))?;
        within_a_page(|| {
            gemm.gemm(
                sums,
                GemmInputA::Unpacked(view),
                GemmInputB::Packed(&self.weight),
                GemmOptions::default(),
            )
        })
        .map_err(refused)
    }

    fn dequantise<'a>(
        &'a self,
        sums: &'a [i32],
        input: &'a QuantisedRows,
        bias: &'a [f32],
        activation: Activation,
    ) -> Dequantise<'a> {
        Dequantise {
            sums,
            input,
            column_sums: &self.sums,
            column_scales: &self.scales,
            bias,
            activation,
        }
    }
}

/// Tokens that go through a layer, or the feed-forward part, together: what is
/// between product, rounding and activation stays in the second cache.
const BLOCK_ROWS: usize = 48;

/// `x` `[rows, inputs]` and `out` `[rows, outputs]` in blocks of [`BLOCK_ROWS`] rows,
/// with how many each has; an error if they are of other lengths.
fn blocks<'a>(
    x: &'a [f32],
    inputs: usize,
    rows: usize,
    out: &'a mut [f32],
    outputs: usize,
) -> Result<impl Iterator<Item = (&'a [f32], usize, &'a mut [f32])>> {
    if x.len() != rows * inputs || out.len() != rows * outputs {
        return Err(Error::new(
            ErrorKind::Compute,
            format!(
                "{rows} rows of {inputs} inputs and {outputs} outputs were given {} and {} numbers",
                x.len(),
                out.len()
            ),
        ));
    }
    Ok(x.chunks(BLOCK_ROWS * inputs)
        .zip(out.chunks_mut(BLOCK_ROWS * outputs))
        .map(move |(x, out)| (x, out.len() / outputs, out)))
}

/// `out = gelu(x W1ᵀ + b1) W2ᵀ + b2` for `x` `[rows, inputs]`; `between` is
/// room that only ever grows. An error if they are of other lengths.
pub fn feed_forward(
    layers: [&Linear; 2],
    gemm: &mut Gemm,
    x: &[f32],
    rows: usize,
    between: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<()> {
    let [inner, outer] = layers;
    for (x, rows, out) in blocks(x, inner.inputs(), rows, out, outer.outputs())? {
        match (&inner.weight, &outer.weight) {
            (Packed::Int8(first), Packed::Int8(second)) => {
                let width = inner.outputs();
                gemm.quantise(x, rows, first);
                let sums = grown(&mut gemm.sums, rows * width);
                first.product(&gemm.int8, &gemm.input, rows, sums)?;
                gemm.inner.reserve(rows, width);
                Requantise {
                    from: first.dequantise(sums, &gemm.input, &inner.bias, Activation::Gelu),
                    rows,
                    row: grown(&mut gemm.inner_row, width),
                    rounding: second.rounding(),
                    into: &mut gemm.inner,
                }
                .dispatch();
                let sums = grown(&mut gemm.sums, out.len());
                second.product(&gemm.int8, &gemm.inner, rows, sums)?;
                let from = second.dequantise(sums, &gemm.inner, &outer.bias, Activation::None);
                DequantiseRows(from, out).dispatch();
            }
            _ => {
                let between = grown(between, rows * inner.outputs());
                inner.forward(gemm, x, rows, Activation::Gelu, between)?;
                outer.forward(gemm, between, rows, Activation::None, out)?;
            }
        }
    }
    Ok(())
}

impl Linear {
    /// Packs `weight` `[outputs, inputs]` for the kernels of this machine;
    /// `bias` has one value an output. `magnitudes` has the largest magnitude
    /// that each input takes, or is empty where that isn't known; int8 shares
    /// the loss by rounding between inputs and weights by it. An error if it is
    /// of another length.
    pub fn new(
        gemm: &Gemm,
        weight: &[f32],
        bias: Vec<f32>,
        inputs: usize,
        magnitudes: &[f32],
        precision: Precision,
    ) -> Result<Self> {
        let outputs = bias.len();
        let shape = [inputs, outputs];
        if !magnitudes.is_empty() && magnitudes.len() != inputs {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("{} magnitudes for {inputs} inputs", magnitudes.len()),
            ));
        }
        let weight = match precision {
            Precision::F32 => {
                Packed::F32(gemm.float.prepack_b(matrix(weight, shape, [1, inputs])?))
            }
            Precision::Int8 => Packed::Int8(Int8Weight::new(gemm, weight, inputs, magnitudes)?),
        };
        Ok(Self { weight, bias })
    }

    fn inputs(&self) -> usize {
        match &self.weight {
            Packed::F32(weight) => weight.rows(),
            Packed::Int8(weight) => weight.factors.len(),
        }
    }

    /// Columns of what [`Linear::forward`] writes.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Applies the layer to `x` `[rows, inputs]` and writes `out`
    /// `[rows, outputs]`; an error if they are of other lengths.
    pub fn forward(
        &self,
        gemm: &mut Gemm,
        x: &[f32],
        rows: usize,
        activation: Activation,
        out: &mut [f32],
    ) -> Result<()> {
        let inputs = self.inputs();
        for (x, rows, out) in blocks(x, inputs, rows, out, self.outputs())? {
            match &self.weight {
                Packed::F32(weight) => {
                    gemm.float
                        .gemm(
                            out,
                            GemmInputA::Unpacked(matrix(x, [rows, inputs], [inputs, 1])?),
                            GemmInputB::Packed(weight),
                            GemmOptions::default(),
                        )
                        .map_err(refused)?;
                    BiasActivation {
                        values: out,
                        bias: &self.bias,
                        activation,
                    }
                    .dispatch();
                }
                Packed::Int8(weight) => {
                    gemm.quantise(x, rows, weight);
                    let sums = grown(&mut gemm.sums, out.len());
                    weight.product(&gemm.int8, &gemm.input, rows, sums)?;
                    let from = weight.dequantise(sums, &gemm.input, &self.bias, activation);
                    DequantiseRows(from, out).dispatch();
                }
            }
        }
        Ok(())
    }
}

/// Calls `work` with its stack beginning at the top of a page.
///
/// The int8 kernel for AVX2 of rten-gemm 0.27 keeps a sum on the stack between
/// steps. Where that lies across two pages, which depends on how deep the calls go
/// before it, the feed-forward part takes 2.3 times as long.
#[inline(never)]
fn within_a_page<T>(work: impl FnOnce() -> T) -> T {
    /// A local of this type makes the compiler align the stack below it.
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "only its place matters")] u8);
    let page = MaybeUninit::<Page>::uninit();
    std::hint::black_box(&page);
    let done = work();
    std::hint::black_box(&page);
    done
}

/// For each input the factor that makes it and its weights equally hard to
/// round: `sqrt(largest weight / largest magnitude)` (SmoothQuant with an exponent
/// of 1/2, Xiao et al. 2023). Ones where the magnitudes aren't known.
fn shared_rounding(weight: &[f32], inputs: usize, magnitudes: &[f32]) -> Vec<f32> {
    let factors = floored(magnitudes).and_then(|magnitudes| {
        let largest = column_maxima(weight, inputs);
        let pairs = floored(&largest)?.zip(magnitudes);
        Some(
            pairs
                .map(|(weight, magnitude)| (weight / magnitude).sqrt())
                .collect(),
        )
    });
    factors.unwrap_or_else(|| vec![1.0; inputs])
}

/// The largest magnitude in each column of `[rows, columns]`.
fn column_maxima(values: &[f32], columns: usize) -> Vec<f32> {
    let mut maxima = vec![0.0_f32; columns];
    for row in values.chunks_exact(columns) {
        for (largest, value) in maxima.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    maxima
}

/// The values, none below a tenth of their median: an input that was small on all
/// texts that were looked at may be larger on the next. `None` when that says
/// nothing.
fn floored(values: &[f32]) -> Option<impl Iterator<Item = f32>> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let floor = 0.1 * sorted.get(sorted.len() / 2)?;
    let usable = floor > f32::MIN_POSITIVE && values.iter().all(|value| value.is_finite());
    usable.then(|| values.iter().map(move |value| value.max(floor)))
}

/// Divides each column of `weight` by its factor and rounds each row to whole
/// numbers of at most `limit`, with one scale a row.
fn quantise_weight(weight: &[f32], factors: &[f32], limit: f32) -> (Vec<i8>, Vec<f32>) {
    let inputs = factors.len();
    let mut quantised = Vec::with_capacity(weight.len());
    let mut scales = Vec::with_capacity(weight.len() / inputs.max(1));
    let mut divided = vec![0.0; inputs];
    for row in weight.chunks_exact(inputs) {
        let mut largest = 0.0_f32;
        for ((divided, x), factor) in divided.iter_mut().zip(row).zip(factors) {
            *divided = x / factor;
        }
        for x in &divided {
            largest = if x.abs() > largest { x.abs() } else { largest };
        }
        let scale = (largest / limit).max(f32::MIN_POSITIVE);
        // Calls that round would make the program's start take twice the time.
        let rounded = |x: &f32| ((x / scale).clamp(-limit, limit) + ROUNDER).to_bits() as i8;
        quantised.extend(divided.iter().map(rounded));
        scales.push(scale);
    }
    (quantised, scales)
}

/// The first `len` elements of a buffer that only ever grows, so that the
/// steady state allocates nothing. What it holds is left from before.
pub(crate) fn grown<T: Default + Copy>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

fn refused(error: GemmError) -> Error {
    Error::new(ErrorKind::Compute, "a matrix product was refused").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(rng: &mut impl Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn both(rows: usize, inputs: usize, outputs: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (mut x, w, b) = (
            random(&mut rng, rows * inputs),
            random(&mut rng, inputs * outputs),
            random(&mut rng, outputs),
        );
        // Rows with means of their own have zero points of their own.
        for (index, x) in x.chunks_exact_mut(inputs).enumerate() {
            x.iter_mut()
                .for_each(|x| *x += (index % 5) as f32 * 0.4 - 0.8);
        }
        let mut gemm = Gemm::default();
        let mut results = [Precision::F32, Precision::Int8].map(|precision| {
            let linear = Linear::new(&gemm, &w, b.clone(), inputs, &[], precision).unwrap();
            let mut out = vec![0.0; rows * outputs];
            linear
                .forward(&mut gemm, &x, rows, Activation::None, &mut out)
                .unwrap();
            out
        });
        let exact = (0..rows * outputs)
            .map(|i| {
                let (row, column) = (i / outputs, i % outputs);
                (0..inputs).fold(b[column], |sum, k| {
                    sum + x[row * inputs + k] * w[column * inputs + k]
                })
            })
            .collect();
        let int8 = std::mem::take(&mut results[1]);
        (exact, std::mem::take(&mut results[0]), int8)
    }

    #[test]
    fn a_linear_layer_in_f32_equals_the_sums_it_stands_for() {
        for (rows, inputs, outputs) in [(1, 3, 5), (2, 8, 8), (7, 300, 33), (65, 1536, 40)] {
            let (exact, float, _) = both(rows, inputs, outputs);
            for (exact, float) in exact.iter().zip(&float) {
                assert!((exact - float).abs() < 2e-4, "{exact} {float}");
            }
        }
    }

    #[test]
    fn buffers_of_other_lengths_are_refused() {
        for precision in [Precision::F32, Precision::Int8] {
            let mut gemm = Gemm::default();
            let layer =
                Linear::new(&gemm, &[1.0; 6], vec![0.0; 2], 3, &[], precision).expect("it fits");
            let outer =
                Linear::new(&gemm, &[1.0; 4], vec![0.0; 2], 2, &[], precision).expect("it fits");
            for (inputs, outputs) in [(5, 4), (6, 3), (6, 5), (9, 4)] {
                let (x, mut out) = (vec![1.0; inputs], vec![0.0; outputs]);
                let refused = layer.forward(&mut gemm, &x, 2, Activation::None, &mut out);
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::Compute);
                let layers = [&layer, &outer];
                let refused = feed_forward(layers, &mut gemm, &x, 2, &mut Vec::new(), &mut out);
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::Compute);
            }
        }
    }

    #[test]
    fn a_linear_layer_in_int8_stays_within_its_rounding() {
        for (rows, inputs, outputs) in [(1, 3, 5), (2, 8, 8), (7, 300, 33), (65, 1536, 40)] {
            let (exact, _, int8) = both(rows, inputs, outputs);
            // Two roundings, to 181 and 90 steps or more, independent over `inputs`.
            let allowed = 0.03 * (inputs as f32).sqrt();
            for (exact, int8) in exact.iter().zip(&int8) {
                assert!((exact - int8).abs() < allowed, "{exact} {int8}");
            }
        }
    }

    #[test]
    fn int8_products_of_the_largest_values_do_not_saturate() {
        // Nearly all inputs come out one above the limit, where that is possible.
        let mut x = [183.0; 64];
        x[63] = -179.0;
        let exact: f32 = x.iter().sum();
        for sign in [1.0, -1.0] {
            let mut gemm = Gemm::default();
            let step = (183.0 + 179.0) / gemm.int8_limits().0;
            let (weight, bias) = (vec![sign; 64], vec![0.0]);
            let linear = Linear::new(&gemm, &weight, bias, 64, &[], Precision::Int8).unwrap();
            let mut out = [0.0];
            linear
                .forward(&mut gemm, &x, 1, Activation::None, &mut out)
                .unwrap();
            // Every rounding may be off by half a step, and no more is lost.
            assert!((out[0] - sign * exact).abs() <= 32.5 * step, "{}", out[0]);
        }
    }

    fn squared_error(exact: &[f32], rounded: &[f32]) -> f32 {
        let squares = exact.iter().zip(rounded).map(|(a, b)| (a - b).powi(2));
        squares.sum()
    }

    #[test]
    fn known_magnitudes_make_int8_more_exact() {
        // Whole vectors, and a rest in which a large input stands.
        for (inputs, large) in [(384, [7, 200]), (300, [7, 299])] {
            let (rows, outputs) = (16, 96);
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
            let mut x = random(&mut rng, rows * inputs);
            let w = random(&mut rng, outputs * inputs);
            for row in x.chunks_exact_mut(inputs) {
                row[large[0]] *= 15.0;
                row[large[1]] *= 40.0;
            }
            let magnitudes = column_maxima(&x, inputs);
            let mut gemm = Gemm::default();
            let mut forward = |magnitudes: &[f32], precision| {
                let bias = vec![0.0; outputs];
                let linear = Linear::new(&gemm, &w, bias, inputs, magnitudes, precision).unwrap();
                let mut out = vec![0.0; rows * outputs];
                linear
                    .forward(&mut gemm, &x, rows, Activation::None, &mut out)
                    .unwrap();
                out
            };
            let exact = forward(&[], Precision::F32);
            let without = squared_error(&exact, &forward(&[], Precision::Int8));
            let with = squared_error(&exact, &forward(&magnitudes, Precision::Int8));
            assert!(with < 0.4 * without, "{inputs} inputs: {with} {without}");
        }
    }

    #[test]
    fn known_magnitudes_make_the_feed_forward_part_more_exact() {
        let (rows, width, inner) = (20, 64, 300);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(12);
        let x = random(&mut rng, rows * width);
        let mut first = random(&mut rng, inner * width);
        // One unit in the rest of a row that answers far more than the others.
        first[299 * width..].iter_mut().for_each(|w| *w *= 30.0);
        let second = random(&mut rng, width * inner);
        let mut gemm = Gemm::default();
        let mut forward = |magnitudes: &[f32], precision| {
            let layer = |w: &[f32], outputs, inputs, magnitudes: &[f32]| {
                let bias = vec![0.0; outputs];
                Linear::new(&Gemm::default(), w, bias, inputs, magnitudes, precision).unwrap()
            };
            let inner_layer = layer(&first, inner, width, &[]);
            let outer = layer(&second, width, inner, magnitudes);
            let mut out = vec![0.0; rows * width];
            let layers = [&inner_layer, &outer];
            feed_forward(layers, &mut gemm, &x, rows, &mut Vec::new(), &mut out).unwrap();
            out
        };
        let mut magnitudes = vec![3.0; inner];
        magnitudes[299] = 90.0;
        let exact = forward(&[], Precision::F32);
        let without = squared_error(&exact, &forward(&[], Precision::Int8));
        let with = squared_error(&exact, &forward(&magnitudes, Precision::Int8));
        assert!(with < 0.7 * without, "{with} {without}");
    }

    #[test]
    fn factors_are_bounded_and_ones_where_the_magnitudes_say_nothing() {
        let weight = [0.5, 0.0, 0.5, 0.5, 0.5];
        let factors = shared_rounding(&weight, 5, &[1.0, 1.0, 0.0, 1e30, 1.0]);
        let bound = (0.5_f32 / 0.1).sqrt() + 1e-6;
        assert!(
            factors.iter().all(|f| *f > 0.0 && *f <= bound),
            "{factors:?}"
        );
        for magnitudes in [[0.0; 5], [f32::NAN; 5], [f32::INFINITY; 5]] {
            assert_eq!(shared_rounding(&weight, 5, &magnitudes), [1.0; 5]);
        }
        let gemm = Gemm::default();
        let short = Linear::new(&gemm, &weight, vec![0.0], 5, &[1.0], Precision::Int8);
        assert!(short.is_err());
    }
}
