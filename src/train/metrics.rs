//! How well predictions agree with targets.
//!
//! Names and definitions are those of scikit-learn unless a comment says
//! otherwise. A figure that is not defined for the given data (average
//! precision without positives, kappa without disagreement by chance) is
//! `None`, so that it is left out rather than counted as 0 or 1.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// How many bins [`expected_calibration_error`] has in every report.
pub const CALIBRATION_BINS: usize = 15;

/// How often a label was rightly given, wrongly given and missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Given, and true.
    pub true_positives: usize,
    /// Given, but not true.
    pub false_positives: usize,
    /// True, but not given.
    pub false_negatives: usize,
}

impl Counts {
    /// Counts one decision.
    pub fn add(&mut self, given: bool, holds: bool) {
        match (given, holds) {
            (true, true) => self.true_positives += 1,
            (true, false) => self.false_positives += 1,
            (false, true) => self.false_negatives += 1,
            (false, false) => {}
        }
    }

    /// Counts one decision after the other.
    pub fn of(decisions: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut counts = Self::default();
        for (given, holds) in decisions {
            counts.add(given, holds);
        }
        counts
    }

    /// The sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            true_positives: self.true_positives + other.true_positives,
            false_positives: self.false_positives + other.false_positives,
            false_negatives: self.false_negatives + other.false_negatives,
        }
    }

    /// How many of the given are true; 0 if none was given.
    pub fn precision(self) -> f64 {
        ratio(
            self.true_positives as f64,
            (self.true_positives + self.false_positives) as f64,
        )
    }

    /// How many of the true were given; 0 if none is true.
    pub fn recall(self) -> f64 {
        ratio(
            self.true_positives as f64,
            (self.true_positives + self.false_negatives) as f64,
        )
    }

    /// The harmonic mean of precision and recall; 0 if no label was given or
    /// true.
    pub fn f1(self) -> f64 {
        self.f_beta(1.0)
    }

    /// The F score that counts recall `beta` times as much as precision.
    pub fn f_beta(self, beta: f64) -> f64 {
        let weight = beta * beta;
        let hits = (1.0 + weight) * self.true_positives as f64;
        let misses = weight * self.false_negatives as f64 + self.false_positives as f64;
        ratio(hits, hits + misses)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// The mean; 0 for no values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    ratio(sum, count as f64)
}

/// Average precision: the sum over thresholds of precision times the rise in
/// recall, without interpolation. Equal scores are one threshold. `None` if
/// nothing is positive.
pub fn average_precision(scored: &[(f32, bool)]) -> Option<f64> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = sorted.iter().filter(|(_, holds)| *holds).count();
    if positives == 0 {
        return None;
    }
    let (mut seen, mut hits, mut sum) = (0usize, 0usize, 0.0);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let new = tied.iter().filter(|(_, holds)| *holds).count();
        seen += tied.len();
        hits += new;
        sum += new as f64 * hits as f64 / seen as f64;
    }
    Some(sum / positives as f64)
}

/// How often each class was taken for each other: `[true class][decision]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    rows: Vec<Vec<usize>>,
}

impl Confusion {
    /// Counts pairs of true class and decision, each below `classes`; pairs
    /// with a class beyond that are not counted.
    pub fn new(classes: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut rows = vec![vec![0; classes]; classes];
        for (truth, decision) in pairs {
            if let Some(count) = rows.get_mut(truth).and_then(|row| row.get_mut(decision)) {
                *count += 1;
            }
        }
        Self { rows }
    }

    /// The counts, `[true class][decision]`.
    pub fn rows(&self) -> &[Vec<usize>] {
        &self.rows
    }

    /// Each cell that is not empty: true class, decision, count.
    pub fn cells(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.rows.iter().enumerate().flat_map(|(truth, row)| {
            let cells = row.iter().enumerate();
            cells.filter_map(move |(decision, &count)| {
                (count > 0).then_some((truth, decision, count))
            })
        })
    }

    fn share(&self, counts: impl Fn(usize, usize) -> bool) -> f64 {
        let total: usize = self.cells().map(|cell| cell.2).sum();
        let counted: usize = self
            .cells()
            .filter_map(|(truth, decision, count)| counts(truth, decision).then_some(count))
            .sum();
        ratio(counted as f64, total as f64)
    }

    /// How many decisions are right.
    pub fn accuracy(&self) -> f64 {
        self.share(|truth, decision| truth == decision)
    }

    /// How many decisions lie at most one level from the truth.
    pub fn within_one(&self) -> f64 {
        self.share(|truth, decision| truth.abs_diff(decision) <= 1)
    }

    /// Right, wrong and missed decisions about the class alone.
    pub fn class(&self, class: usize) -> Counts {
        self.at_least_of(|index| index == class)
    }

    /// Right, wrong and missed decisions that the level is at least `level`.
    pub fn at_least(&self, level: usize) -> Counts {
        self.at_least_of(|index| index >= level)
    }

    fn at_least_of(&self, counts: impl Fn(usize) -> bool) -> Counts {
        let mut sum = Counts::default();
        for (truth, decision, count) in self.cells() {
            match (counts(decision), counts(truth)) {
                (true, true) => sum.true_positives += count,
                (true, false) => sum.false_positives += count,
                (false, true) => sum.false_negatives += count,
                (false, false) => {}
            }
        }
        sum
    }

    /// The mean F1 over the classes that are true or decided anywhere.
    pub fn macro_f1(&self) -> f64 {
        mean(
            (0..self.rows.len())
                .map(|class| self.class(class))
                .filter(|counts| *counts != Counts::default())
                .map(Counts::f1),
        )
    }

    /// Cohen's kappa with quadratic weights: 1 less the squared distance
    /// between truth and decision over that which chance would give. `None`
    /// where chance gives no distance.
    pub fn quadratic_weighted_kappa(&self) -> Option<f64> {
        let classes = self.rows.len();
        let (mut truths, mut decisions) = (vec![0usize; classes], vec![0usize; classes]);
        let (mut observed, mut total) = (0.0, 0usize);
        for (truth, decision, count) in self.cells() {
            truths[truth] += count;
            decisions[decision] += count;
            total += count;
            observed += squared_distance(truth, decision) * count as f64;
        }
        let mut expected = 0.0;
        for (truth, &times) in truths.iter().enumerate() {
            for (decision, &chosen) in decisions.iter().enumerate() {
                expected += squared_distance(truth, decision) * times as f64 * chosen as f64;
            }
        }
        (expected > 0.0).then(|| 1.0 - observed * total as f64 / expected)
    }
}

fn squared_distance(a: usize, b: usize) -> f64 {
    (a.abs_diff(b) as f64).powi(2)
}

/// The mean distance between what was claimed and what came true, over
/// equally wide bins of the claim, weighted by how many claims each bin holds
/// (Naeini et al. 2015). Each pair is a probability and whether it came true.
pub fn expected_calibration_error(claims: &[(f32, bool)], bins: usize) -> f64 {
    let mut sums = vec![(0.0, 0usize); bins.max(1)];
    let last = sums.len() - 1;
    for &(probability, true_) in claims {
        let bin = ((f64::from(probability) * bins as f64) as usize).min(last);
        sums[bin].0 += f64::from(probability);
        sums[bin].1 += usize::from(true_);
    }
    let gap: f64 = sums
        .iter()
        .map(|(claimed, came)| (claimed - *came as f64).abs())
        .sum();
    ratio(gap, claims.len() as f64)
}

/// The mean squared distance between a probability and whether it came true.
pub fn brier(claims: &[(f32, bool)]) -> f64 {
    mean(
        claims.iter().map(|&(probability, true_)| {
            (f64::from(probability) - f64::from(u8::from(true_))).powi(2)
        }),
    )
}

/// The middle 95 % of what a figure may have been.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// Draws `rounds` times as many of `texts` texts as there are, with
/// replacement, computes `figures` from the drawn indices and gives each
/// figure's middle 95 % (Efron's percentile bootstrap). A figure that is
/// `None` in a round is left out of that round; one that is always `None` has
/// no interval. The same seed gives the same intervals.
pub fn bootstrap(
    texts: usize,
    rounds: usize,
    seed: u64,
    figures: impl Fn(&[usize]) -> Vec<Option<f64>>,
) -> Vec<Option<Interval>> {
    if texts == 0 || rounds == 0 {
        return Vec::new();
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; texts];
    let mut values: Vec<Vec<f64>> = Vec::new();
    for _ in 0..rounds {
        for index in &mut drawn {
            *index = random.random_range(0..texts as u64) as usize;
        }
        let round = figures(&drawn);
        values.resize_with(round.len(), Vec::new);
        for (values, value) in values.iter_mut().zip(round) {
            values.extend(value);
        }
    }
    let interval = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let place = quantile * values.len().saturating_sub(1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            let (low, high) = (*values.get(low)?, *values.get(high)?);
            Some(low + (high - low) * place.fract())
        };
        Some(Interval {
            low: at(0.025)?,
            high: at(0.975)?,
        })
    };
    values.into_iter().map(interval).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected numbers of the first four tests are scikit-learn 1.9.1's
    // for the same data: average_precision_score, precision_score,
    // recall_score, f1_score, fbeta_score(beta=2), brier_score_loss,
    // cohen_kappa_score(weights="quadratic"), accuracy_score.

    const SCORED: [(f32, bool); 10] = [
        (0.9, true),
        (0.8, false),
        (0.8, true),
        (0.7, true),
        (0.55, false),
        (0.5, true),
        (0.4, false),
        (0.4, false),
        (0.3, true),
        (0.1, false),
    ];
    const LEVELS: [(usize, usize); 16] = [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 2),
        (1, 1),
        (2, 2),
        (2, 2),
        (2, 3),
        (2, 1),
        (3, 3),
        (3, 4),
        (3, 2),
        (4, 4),
        (4, 4),
        (4, 3),
        (4, 1),
    ];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn average_precision_is_that_of_scikit_learn() {
        close(average_precision(&SCORED).unwrap(), 0.727_777_777_8);
        assert_eq!(average_precision(&[(0.5, false)]), None);
        // Worked by hand: one threshold takes all four, two of them positive.
        close(
            average_precision(&[(0.5, false), (0.5, true), (0.5, true), (0.5, false)]).unwrap(),
            0.5,
        );
    }

    #[test]
    fn counts_are_those_of_scikit_learn() {
        let counts = Counts::of(SCORED.map(|(score, holds)| (score >= 0.5, holds)));
        close(counts.precision(), 0.666_666_666_7);
        close(counts.recall(), 0.8);
        close(counts.f1(), 0.727_272_727_3);
        close(counts.f_beta(2.0), 0.769_230_769_2);
        close(brier(&SCORED), 0.215_25);
        close(Counts::default().f1(), 0.0);
    }

    #[test]
    fn kappa_and_confusions_are_those_of_scikit_learn() {
        let confusion = Confusion::new(5, LEVELS);
        assert_eq!(
            confusion.rows(),
            [
                [1, 1, 0, 0, 0],
                [0, 2, 1, 0, 0],
                [0, 1, 2, 1, 0],
                [0, 0, 1, 1, 1],
                [0, 1, 0, 1, 2],
            ]
        );
        close(
            confusion.quadratic_weighted_kappa().unwrap(),
            0.698_113_207_5,
        );
        close(confusion.accuracy(), 0.5);
        close(confusion.macro_f1(), 0.514_285_714_3);
        close(confusion.within_one(), 15.0 / 16.0);
        close(confusion.at_least(3).precision(), 0.833_333_333_3);
        close(confusion.at_least(3).recall(), 0.714_285_714_3);
        assert_eq!(Confusion::new(2, [(0, 0)]).quadratic_weighted_kappa(), None);
    }

    #[test]
    fn calibration_error_is_the_weighted_gap_over_equal_bins() {
        // numpy: np.minimum((p * 15).astype(int), 14) as bins.
        close(expected_calibration_error(&SCORED, 15), 0.365);
        // Worked by hand: two bins, means 0.2 and 0.8, rates 0.5 and 1.0.
        let claims = [(0.1, false), (0.3, true), (0.7, true), (0.9, true)];
        close(expected_calibration_error(&claims, 2), 0.25);
        close(
            expected_calibration_error(&[(1.0, true), (0.0, false)], 15),
            0.0,
        );
    }

    #[test]
    fn the_same_seed_draws_the_same_intervals() {
        let accuracy = |drawn: &[usize]| {
            let pairs = drawn.iter().map(|&index| LEVELS[index]);
            let confusion = Confusion::new(5, pairs);
            vec![
                Some(confusion.accuracy()),
                confusion.quadratic_weighted_kappa(),
                None,
            ]
        };
        let first = bootstrap(16, 500, 7, accuracy);
        assert_eq!(first, bootstrap(16, 500, 7, accuracy));
        assert_ne!(first, bootstrap(16, 500, 8, accuracy));
        let interval = first[0].unwrap();
        // The normal approximation is 0.5 +- 1.96 * sqrt(0.25 / 16) = 0.255..0.745.
        assert!((interval.low - 0.255).abs() < 0.07, "{interval:?}");
        assert!((interval.high - 0.745).abs() < 0.07, "{interval:?}");
        assert_eq!(first[2], None);
    }
}
