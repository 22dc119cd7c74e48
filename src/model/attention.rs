//! Scaled dot-product attention (Vaswani et al. 2017) of one head, fused:
//! scores, softmax and weighted sum of a few queries at a time, so that the
//! scores never leave the first cache.

use super::gemm::grown;
use super::ops::{exp_of_negative, largest};
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};
use std::ops::Range;

/// Queries that are computed together. With two vectors each, their partial
/// sums fill the 16 registers of AVX2 and hide the latency of AVX-512.
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
        let ops = isa.f32();
        let lanes = ops.len();
        let Self {
            qkv,
            context,
            tokens,
            queries: rows_wanted,
            hidden,
            offset,
            size,
            scratch,
        } = self;
        let stride = 3 * hidden;
        // Whole vectors of keys, and of values where the size is no multiple.
        let padded = tokens.next_multiple_of(lanes.max(LINE));
        let value_width = size.next_multiple_of(lanes.max(LINE));
        let needed = size * padded + tokens * value_width + ROWS * (padded + value_width + size);
        // Vectors that begin with a cache line are read in half the time.
        let aligned = grown(scratch, needed + LINE);
        let start = aligned.as_ptr().align_offset(LINE * size_of::<f32>());
        let aligned = &mut aligned[start.min(LINE)..];
        let (keys, rest) = aligned.split_at_mut(size * padded);
        let (values, rest) = rest.split_at_mut(tokens * value_width);
        let (scores, rest) = rest.split_at_mut(ROWS * padded);
        let (sums, rest) = rest.split_at_mut(ROWS * value_width);
        let (queries, _) = rest[..ROWS * size].as_chunks_mut::<ROWS>();

        // Keys are transposed, `[size, padded]`, so that a vector holds the same
        // column of neighbouring keys.
        for (token, row) in qkv.chunks_exact(stride).take(tokens).enumerate() {
            let key = &row[hidden + offset..hidden + offset + size];
            for (column, value) in key.iter().enumerate() {
                keys[column * padded + token] = *value;
            }
            let value = &mut values[token * value_width..(token + 1) * value_width];
            value[..size].copy_from_slice(&row[2 * hidden + offset..2 * hidden + offset + size]);
            value[size..].fill(0.0);
        }
        // Behind the last key stands itself again, which changes no maximum.
        for row in keys.chunks_exact_mut(padded) {
            let last = row[tokens - 1];
            row[tokens..].fill(last);
        }
        let scale = (size as f32).sqrt().recip();

        let count = rows_wanted.len();
        let rows = ROWS.min(count);
        let mut first = 0;
        while first < count {
            // The last rows may be computed twice; they come out the same.
            let start = first.min(count - rows);
            for row in 0..ROWS {
                let token = rows_wanted.start + start + row.min(rows - 1);
                let query = &qkv[token * stride + offset..][..size];
                for (packed, value) in queries.iter_mut().zip(query) {
                    packed[row] = *value;
                }
            }
            let max = score(isa, queries, keys, padded, scores);
            let mut inverse = [0.0; ROWS];
            let rows_of_scores = scores.chunks_exact_mut(padded).zip(max);
            for ((row, max), inverse) in rows_of_scores.zip(&mut inverse) {
                *inverse = softmax(isa, row, tokens, max, scale);
            }
            weigh(isa, scores, padded, values, value_width, tokens, sums);
            let results = sums.chunks_exact(value_width).zip(inverse).take(rows);
            for (row, (sum, inverse)) in results.enumerate() {
                let out = &mut context[(start + row) * hidden + offset..][..size];
                for (out, sum) in out.iter_mut().zip(sum) {
                    *out = sum * inverse;
                }
            }
            first += ROWS;
        }
    }
}

/// `scores` `[ROWS, padded]` of a few queries, `[size, ROWS]`, against `keys`
/// `[size, padded]`, and the largest of each row.
#[inline(always)]
fn score<I: Isa>(
    isa: I,
    queries: &[[f32; ROWS]],
    keys: &[f32],
    padded: usize,
    scores: &mut [f32],
) -> [f32; ROWS] {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut max = [ops.splat(f32::NEG_INFINITY); ROWS];
    let mut column = 0;
    while column < padded {
        // Two vectors of keys at a time, one at the end.
        let second = if column + lanes < padded { lanes } else { 0 };
        let mut low = [ops.zero(); ROWS];
        let mut high = [ops.zero(); ROWS];
        for (row, query) in keys.chunks_exact(padded).zip(queries) {
            let a = ops.load(&row[column..]);
            let b = ops.load(&row[column + second..]);
            for r in 0..ROWS {
                let q = ops.splat(query[r]);
                low[r] = ops.mul_add(q, a, low[r]);
                high[r] = ops.mul_add(q, b, high[r]);
            }
        }
        for r in 0..ROWS {
            let row = &mut scores[r * padded..(r + 1) * padded];
            ops.store(low[r], &mut row[column..]);
            ops.store(high[r], &mut row[column + second..]);
            max[r] = ops.max(max[r], ops.max(low[r], high[r]));
        }
        column += 2 * lanes;
    }
    max.map(largest)
}

/// Turns a row of scores into `exp(scale * (score - max))`, 0 behind `tokens`,
/// and gives the inverse of the sum.
#[inline(always)]
fn softmax<I: Isa>(isa: I, row: &mut [f32], tokens: usize, max: f32, scale: f32) -> f32 {
    let ops = isa.f32();
    let lanes = ops.len();
    row[tokens..].fill(f32::NEG_INFINITY);
    let max = ops.splat(max);
    let scale = ops.splat(scale);
    let mut sum = ops.zero();
    for chunk in row.chunks_exact_mut(lanes) {
        let x = ops.mul(ops.sub(ops.load(chunk), max), scale);
        let y = exp_of_negative(isa, x);
        sum = ops.add(sum, y);
        ops.store(y, chunk);
    }
    ops.sum(sum).recip()
}

/// `sums` `[ROWS, width]`: the values `[tokens, width]` weighed by each row of
/// `weights` `[ROWS, padded]`.
#[inline(always)]
fn weigh<I: Isa>(
    isa: I,
    weights: &[f32],
    padded: usize,
    values: &[f32],
    width: usize,
    tokens: usize,
    sums: &mut [f32],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let row = |r: usize| &weights[r * padded..r * padded + tokens];
    let [w0, w1, w2, w3, w4, w5]: [&[f32]; ROWS] = std::array::from_fn(row);
    let mut column = 0;
    while column < width {
        let second = if column + lanes < width { lanes } else { 0 };
        let mut low = [ops.zero(); ROWS];
        let mut high = [ops.zero(); ROWS];
        // Iterators of one length each, so that nothing is checked in the loop.
        let weights = w0.iter().zip(w1).zip(w2).zip(w3).zip(w4).zip(w5);
        for (value, (((((w0, w1), w2), w3), w4), w5)) in values.chunks_exact(width).zip(weights) {
            let a = ops.load(&value[column..]);
            let b = ops.load(&value[column + second..]);
            let weights = [*w0, *w1, *w2, *w3, *w4, *w5];
            for r in 0..ROWS {
                let weight = ops.splat(weights[r]);
                low[r] = ops.mul_add(weight, a, low[r]);
                high[r] = ops.mul_add(weight, b, high[r]);
            }
        }
        for r in 0..ROWS {
            let row = &mut sums[r * width..(r + 1) * width];
            ops.store(low[r], &mut row[column..]);
            ops.store(high[r], &mut row[column + second..]);
        }
        column += 2 * lanes;
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
