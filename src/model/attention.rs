//! Scaled dot-product attention (Vaswani et al. 2017) of one head, fused:
//! scores, softmax and weighted sum of a few queries at a time, so that the
//! scores never leave the nearest caches.
//!
//! In the scores a lane of a vector is a query, so maxima and sums of the
//! softmax need no step across lanes and keys no transposition. In the weighted
//! sums a lane is a column of the values. Each part is dispatched by itself:
//! together they have more live values than registers, and a sum that the
//! compiler keeps in memory costs more than the call.

use super::gemm::grown;
use super::ops::exp2_of_negative;
use rten_simd::ops::{BitOps, FloatOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};
use std::ops::Range;

/// Queries, in vectors, that are scored together.
const VECTORS: usize = 3;

/// Keys that are scored together. With [`VECTORS`] queries each, their sums fit
/// the 16 registers of AVX2 and hide the latency of its successors.
const KEYS: usize = 3;

/// Queries whose values are summed together, in two vectors each.
pub(super) const ROWS: usize = 6;

/// Numbers in a cache line.
const LINE: usize = 16;

/// One head of one window, from `qkv` `[tokens, 3 * hidden]` to its columns of
/// `context`, whose rows `[queries, hidden]` are those of some of the tokens.
pub struct AttentionHead<'a> {
    /// Queries, keys and values side by side.
    pub qkv: &'a [f32],
    /// Where the weighted values go.
    pub context: &'a mut [f32],
    /// Tokens of the window, at least one.
    pub tokens: usize,
    /// The tokens whose rows `context` has, at least one.
    pub queries: Range<usize>,
    /// Columns of `context`.
    pub hidden: usize,
    /// The head's first column.
    pub offset: usize,
    /// The head's columns.
    pub size: usize,
    /// Grows to what is needed; what it holds before and after is of no use.
    pub scratch: &'a mut Vec<f32>,
}

impl SimdOp for AttentionHead<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let lanes = isa.f32().len();
        let Self {
            qkv,
            context,
            tokens,
            queries: wanted,
            hidden,
            offset,
            size,
            scratch,
        } = self;
        let stride = 3 * hidden;
        let block = VECTORS * lanes;
        let padded = tokens.next_multiple_of(KEYS);
        let value_width = size.next_multiple_of(lanes.max(LINE));
        let [keys, values, queries, weights, inverses] = parts(
            scratch,
            [
                padded * size,
                tokens * value_width,
                size * block,
                // The last rows' queries reach beyond a block where its width
                // is no multiple of `ROWS`.
                padded * block + ROWS,
                block,
            ],
        );

        // Rows of `qkv` lie so far apart that few of them fit the first cache.
        let rows = qkv.chunks_exact(stride).take(tokens);
        let keys_and_values = keys
            .chunks_exact_mut(size)
            .zip(values.chunks_exact_mut(value_width));
        for (row, (key, value)) in rows.zip(keys_and_values) {
            key.copy_from_slice(&row[hidden + offset..][..size]);
            value[..size].copy_from_slice(&row[2 * hidden + offset..][..size]);
            value[size..].fill(0.0);
        }
        // Behind the last key stands itself again, which changes no maximum.
        for row in tokens..padded {
            keys.copy_within((tokens - 1) * size..tokens * size, row * size);
        }
        // The softmax is taken of powers of two.
        let scale = std::f32::consts::LOG2_E / (size as f32).sqrt();

        for first in wanted.clone().step_by(block) {
            let count = block.min(wanted.end - first);
            let vectors = count.div_ceil(lanes);
            // The last query fills its vector up.
            for lane in 0..vectors * lanes {
                let token = first + lane.min(count - 1);
                let query = &qkv[token * stride + offset..][..size];
                for (column, value) in queries.chunks_exact_mut(block).zip(query) {
                    column[lane] = value * scale;
                }
            }
            Weights {
                keys,
                queries,
                size,
                tokens,
                vectors,
                weights,
                inverses,
            }
            .dispatch();
            for begin in (0..count).step_by(ROWS) {
                let rows = ROWS.min(count - begin);
                let row = first - wanted.start + begin;
                WeightedSums {
                    weights: &weights[begin..],
                    inverses: &inverses[begin..begin + rows],
                    values,
                    value_width,
                    tokens,
                    out: &mut context[row * hidden + offset..],
                    stride: hidden,
                    size,
                }
                .dispatch();
            }
        }
    }
}

/// Slices of these lengths out of a buffer that grows to hold them. Each begins
/// with a cache line: such vectors are read in half the time.
fn parts<const N: usize>(buffer: &mut Vec<f32>, lengths: [usize; N]) -> [&mut [f32]; N] {
    let whole_lines = |length: usize| length.next_multiple_of(LINE);
    let needed: usize = lengths.iter().copied().map(whole_lines).sum();
    let buffer = grown(buffer, needed + LINE);
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    let mut rest = &mut buffer[start.min(LINE)..];
    lengths.map(|length| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(whole_lines(length));
        rest = behind;
        &mut part[..length]
    })
}

/// `weights` `[tokens, VECTORS vectors]`: for some queries, a lane each,
/// `2^(score - largest score)` of each key, and the inverse of each query's sum.
struct Weights<'a> {
    /// `[tokens, size]` and up to whole [`KEYS`] rows more.
    keys: &'a [f32],
    /// `[size, VECTORS vectors]`
    queries: &'a [f32],
    size: usize,
    tokens: usize,
    /// Those with queries in them.
    vectors: usize,
    /// As many rows as `keys`.
    weights: &'a mut [f32],
    inverses: &'a mut [f32],
}

impl SimdOp for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        match self.vectors {
            1 => self.of_vectors::<I, 1>(isa),
            2 => self.of_vectors::<I, 2>(isa),
            _ => self.of_vectors::<I, VECTORS>(isa),
        }
    }
}

impl Weights<'_> {
    #[inline(always)]
    fn of_vectors<I: Isa, const N: usize>(self, isa: I) {
        let ops = isa.f32();
        let lanes = ops.len();
        let block = VECTORS * lanes;
        let size = self.size;

        let mut max = [ops.splat(f32::NEG_INFINITY); N];
        let keys = self.keys.chunks_exact(KEYS * size);
        for (keys, scores) in keys.zip(self.weights.chunks_exact_mut(KEYS * block)) {
            let mut sums = [[ops.zero(); N]; KEYS];
            // Iterators of one length each, so that nothing is checked in the loop.
            let (k0, keys) = keys.split_at(size);
            let (k1, k2) = keys.split_at(size);
            let columns = k0.iter().zip(k1).zip(k2);
            for (query, ((k0, k1), k2)) in self.queries.chunks_exact(block).zip(columns) {
                let query: [I::F32; N] = std::array::from_fn(
                    #[inline(always)]
                    |n| ops.load(&query[n * lanes..]),
                );
                for (sums, key) in sums.iter_mut().zip([k0, k1, k2]) {
                    let key = ops.splat(*key);
                    for n in 0..N {
                        sums[n] = ops.mul_add(key, query[n], sums[n]);
                    }
                }
            }
            for (sums, scores) in sums.iter().zip(scores.chunks_exact_mut(block)) {
                for n in 0..N {
                    ops.store(sums[n], &mut scores[n * lanes..]);
                    max[n] = ops.max(max[n], sums[n]);
                }
            }
        }

        let mut sums = [ops.zero(); N];
        for scores in self.weights.chunks_exact_mut(block).take(self.tokens) {
            for n in 0..N {
                let score = &mut scores[n * lanes..][..lanes];
                let weight = exp2_of_negative(isa, ops.sub(ops.load(score), max[n]));
                sums[n] = ops.add(sums[n], weight);
                ops.store(weight, score);
            }
        }
        for (sum, inverses) in sums.iter().zip(self.inverses.chunks_exact_mut(lanes)) {
            ops.store(ops.reciprocal(*sum), inverses);
        }
    }
}

/// `out` `[queries, size]`: the values weighed by what [`Weights`] gave for at
/// most [`ROWS`] queries.
struct WeightedSums<'a> {
    /// `[tokens, VECTORS vectors]`, from the first of the queries on.
    weights: &'a [f32],
    /// `[queries]`
    inverses: &'a [f32],
    /// `[tokens, value_width]`
    values: &'a [f32],
    /// `size` in whole vectors.
    value_width: usize,
    tokens: usize,
    /// From the first of the columns on; rows are `stride` apart.
    out: &'a mut [f32],
    stride: usize,
    size: usize,
}

impl SimdOp for WeightedSums<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let lanes = ops.len();
        let (block, width, size) = (VECTORS * lanes, self.value_width, self.size);
        // One more beyond the last row's, so that each chunk has `ROWS` weights.
        let weights = &self.weights[..(self.tokens - 1) * block + ROWS];
        for column in (0..size).step_by(2 * lanes) {
            let second = if column + lanes < width { lanes } else { 0 };
            let mut low = [ops.zero(); ROWS];
            let mut high = [ops.zero(); ROWS];
            for (weights, value) in weights.chunks(block).zip(self.values.chunks_exact(width)) {
                let a = ops.load(&value[column..]);
                let b = ops.load(&value[column + second..]);
                for r in 0..ROWS {
                    let weight = ops.splat(weights[r]);
                    low[r] = ops.mul_add(weight, a, low[r]);
                    high[r] = ops.mul_add(weight, b, high[r]);
                }
            }
            for (r, inverse) in self.inverses.iter().enumerate() {
                let inverse = ops.splat(*inverse);
                for (column, sum) in [(column, low[r]), (column + second, high[r])] {
                    let out = &mut self.out[r * self.stride..];
                    let sum = ops.mul(sum, inverse);
                    if column + lanes <= size {
                        ops.store(sum, &mut out[column..]);
                    } else if column < size {
                        let left = &mut out[column..size];
                        left.copy_from_slice(&sum.to_array().as_ref()[..left.len()]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn a_fused_head_equals_the_sums_it_stands_for() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut scratch = vec![f32::NAN; 7];
        for (tokens, hidden, size) in [
            (1, 8, 4),
            (3, 64, 32),
            (5, 40, 20),
            (77, 64, 32),
            (160, 48, 24),
        ] {
            let qkv: Vec<f32> = (0..tokens * 3 * hidden)
                .map(|_| rng.random_range(-2.0..2.0))
                .collect();
            let mut context = vec![f32::NAN; tokens * hidden];
            for offset in (0..hidden / size * size).step_by(size) {
                // In two parts, as two threads would share it.
                let cut = tokens / 3;
                let (first, second) = context.split_at_mut(cut * hidden);
                for (context, queries) in [(first, 0..cut), (second, cut..tokens)] {
                    if queries.is_empty() {
                        continue;
                    }
                    AttentionHead {
                        qkv: &qkv,
                        context,
                        tokens,
                        queries,
                        hidden,
                        offset,
                        size,
                        scratch: &mut scratch,
                    }
                    .dispatch();
                }
                let row = |part: usize, token: usize| {
                    let begin = token * 3 * hidden + part * hidden + offset;
                    &qkv[begin..begin + size]
                };
                for query in 0..tokens {
                    let weights: Vec<f64> = (0..tokens)
                        .map(|key| {
                            let dot: f64 = row(0, query)
                                .iter()
                                .zip(row(1, key))
                                .map(|(q, k)| f64::from(q * k))
                                .sum();
                            (dot / (size as f64).sqrt()).exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for column in 0..size {
                        let expected: f64 = (0..tokens)
                            .map(|key| weights[key] * f64::from(row(2, key)[column]))
                            .sum::<f64>()
                            / total;
                        let found = f64::from(context[query * hidden + offset + column]);
                        assert!((expected - found).abs() < 1e-4, "{expected} {found}");
                    }
                }
            }
        }
    }
}
