//! Fits calibration and thresholds on held-out data.
//!
//! For each head, the weights of both paths and the biases minimise the
//! negative log-likelihood of the targets (Platt 1999; for several logits
//! Guo et al. 2017, "vector scaling" with one slope). The loss is convex, so
//! that Newton's method finds the one minimum and the same data give the same
//! numbers. Thresholds are then chosen on the calibrated probabilities.

use crate::error::{Error, ErrorKind, Result};
use crate::model::calibration::{
    Calibration, FitRecord, HeadCalibration, HeadProbabilities, RawLogits, num_thresholds,
};
use crate::taxonomy::{Head, HeadKind, Taxonomy};
use crate::train::data::Target;
use crate::train::metrics::{Confusion, Counts, mean};

/// The recall of an ordered head's two highest levels together that its
/// thresholds are fitted to reach unless something else is asked for.
///
/// # Examples
///
/// ```
/// assert_eq!(lyhord::train::TOP_RECALL, 0.92);
/// ```
pub const TOP_RECALL: f64 = 0.92;

/// How [`fit`] weighs what it fits. The defaults are meant for some hundreds
/// of texts.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// Half of this times the squared path weights is added to the loss.
    pub weight_penalty: f64,
    /// Half of this times the squared biases is added to the loss, so that
    /// labels with few texts stay near what the model said.
    pub bias_penalty: f64,
    /// The recall that an ordinal head's upper two levels together must reach
    /// on the given texts, where the thresholds can.
    pub top_recall: f64,
    /// A binary head that is true of less than this share of texts is a rare
    /// alarm, which a miss harms more than a false one: its threshold
    /// maximises F with [`FitOptions::rare_beta`]. Others maximise accuracy.
    pub rare_share: f64,
    /// How many times recall counts as much as precision for a rare alarm.
    pub rare_beta: f64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            weight_penalty: 0.01,
            bias_penalty: 1.0,
            top_recall: TOP_RECALL,
            rare_share: 0.25,
            rare_beta: 2.0,
        }
    }
}

impl FitOptions {
    /// The defaults with another recall to reach.
    pub(crate) fn with_top_recall(top_recall: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&top_recall) {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("the recall to reach is {top_recall}; it must be from 0 to 1"),
            ));
        }
        Ok(Self {
            top_recall,
            ..Self::default()
        })
    }
}

/// How many folds cross-fitting has.
pub const FOLDS: usize = 5;

/// The numbers of positive texts that may outweigh the common threshold;
/// [`choose_shrinkage`] takes the best. The last leaves the common one.
const SHRINKAGES: [f64; 8] = [0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 1e9];

/// Fits the calibration of every head to raw logits and targets of the same
/// texts, `targets[text][head]`. Unknown targets are left out; a head without
/// any known target keeps a neutral calibration.
///
/// # Errors
///
/// [`ErrorKind::InvalidData`] when the lists differ in length, a vector does
/// not fit the taxonomy or a logit is not finite; the message names the head
/// and the place of the text in the list.
pub fn fit(
    taxonomy: &Taxonomy,
    raw: &[RawLogits],
    targets: &[Vec<Option<Target>>],
    options: &FitOptions,
) -> Result<Calibration> {
    check(taxonomy, raw, targets)?;
    let neutral = Calibration::neutral(taxonomy);
    let mut record = FitRecord {
        texts: raw.len(),
        ..FitRecord::default()
    };
    let mut heads = Vec::with_capacity(taxonomy.heads().len());
    for (index, (head, neutral)) in taxonomy.heads().iter().zip(neutral.heads()).enumerate() {
        let known: Vec<Known> = raw
            .iter()
            .zip(targets)
            .filter_map(|(raw, targets)| {
                let target = targets.get(index)?.as_ref()?;
                Some(Known { raw, target })
            })
            .collect();
        if known.is_empty() {
            heads.push(neutral.clone());
            continue;
        }
        let mut calibration = fit_weights(head, &known, options);
        match head.kind() {
            HeadKind::MultiLabel => {
                let shrinkage = choose_shrinkage(head, &known, options);
                let scored = scored_labels(head, &calibration, &known);
                calibration.thresholds = label_thresholds(&scored, shrinkage);
                record
                    .threshold_shrinkage
                    .insert(head.name().to_owned(), shrinkage as f32);
            }
            HeadKind::Ordinal => {
                calibration.thresholds = step_thresholds(head, &calibration, &known, options);
            }
            HeadKind::Binary => {
                calibration.thresholds = vec![alarm_threshold(head, &calibration, &known, options)];
            }
            HeadKind::SingleLabel => {}
        }
        heads.push(calibration);
    }
    Calibration::new(taxonomy, heads, record)
}

/// Gives each text the calibration that was fitted without its fold: text `i`
/// belongs to fold `i % 5`. The returned list has one calibration a fold.
///
/// # Errors
///
/// As [`fit`].
pub fn cross_fit(
    taxonomy: &Taxonomy,
    raw: &[RawLogits],
    targets: &[Vec<Option<Target>>],
    options: &FitOptions,
) -> Result<Vec<Calibration>> {
    check(taxonomy, raw, targets)?;
    (0..FOLDS)
        .map(|fold| {
            let kept = || (0..raw.len()).filter(|index| index % FOLDS != fold);
            let raw: Vec<RawLogits> = kept().map(|index| raw[index].clone()).collect();
            let targets: Vec<_> = kept().map(|index| targets[index].clone()).collect();
            fit(taxonomy, &raw, &targets, options)
        })
        .collect()
}

/// A text whose target is known for the head at hand.
#[derive(Clone, Copy)]
struct Known<'a> {
    raw: &'a RawLogits,
    target: &'a Target,
}

fn check(taxonomy: &Taxonomy, raw: &[RawLogits], targets: &[Vec<Option<Target>>]) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidData, message));
    if raw.len() != targets.len() {
        return invalid(format!(
            "calibration has logits of {} texts but targets of {}",
            raw.len(),
            targets.len()
        ));
    }
    for (place, (raw, targets)) in raw.iter().zip(targets).enumerate() {
        if targets.len() != taxonomy.heads().len() {
            return invalid(format!(
                "calibration text {place} has targets for {} heads, the taxonomy {} heads",
                targets.len(),
                taxonomy.heads().len()
            ));
        }
        for path in [&raw.encoder, &raw.lexical].into_iter().flatten() {
            if path.len() != taxonomy.num_logits() {
                return invalid(format!(
                    "calibration text {place} has {} logits, the taxonomy {}",
                    path.len(),
                    taxonomy.num_logits()
                ));
            }
            if let Some(index) = path.iter().position(|logit| !logit.is_finite()) {
                let mut heads = taxonomy.heads().iter();
                let head = heads.find(|head| head.logits().contains(&index));
                return invalid(format!(
                    "calibration text {place} has a logit that is not finite at head `{}`",
                    head.map_or("", |head| head.name())
                ));
            }
        }
        for (head, target) in taxonomy.heads().iter().zip(targets) {
            let fits = match (head.kind(), target) {
                (_, None) => true,
                (HeadKind::MultiLabel, Some(Target::Labels(labels))) => {
                    labels.iter().all(|&label| label < head.labels().len())
                }
                (HeadKind::MultiLabel, _) | (_, Some(Target::Labels(_))) => false,
                (_, Some(Target::Class(class))) => *class < head.classes(),
            };
            if !fits {
                return invalid(format!(
                    "calibration text {place} has a target that head `{}` lacks",
                    head.name()
                ));
            }
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------
// Weights and biases

/// One text for one head: what each path says and what is true, by logit.
struct Row {
    encoder: Vec<f64>,
    lexical: Vec<f64>,
    holds: Vec<bool>,
}

fn fit_weights(head: &Head, known: &[Known], options: &FitOptions) -> HeadCalibration {
    let width = head.logits().len();
    let values = |path: &Option<Vec<f32>>| -> Vec<f64> {
        path.as_ref()
            .and_then(|path| path.get(head.logits()))
            .map_or_else(
                || vec![0.0; width],
                |values| values.iter().map(|&value| f64::from(value)).collect(),
            )
    };
    let rows: Vec<Row> = known
        .iter()
        .map(|known| Row {
            encoder: values(&known.raw.encoder),
            lexical: values(&known.raw.lexical),
            holds: (0..width)
                .map(|index| known.target.holds(head.kind(), index))
                .collect(),
        })
        .collect();
    let present = [
        known.iter().any(|known| known.raw.encoder.is_some()),
        known.iter().any(|known| known.raw.lexical.is_some()),
    ];
    // The loss is convex and only two weights are bounded, so the bounded
    // minimum is the best of those with none, either or both weights at 0.
    let mut best: Option<(f64, Vec<f64>)> = None;
    for free in [[true, true], [true, false], [false, true], [false, false]] {
        if (0..2).any(|path| free[path] && !present[path]) {
            continue;
        }
        let (loss, parameters) = newton(head, &rows, free, options);
        let feasible = parameters.iter().take(2).all(|&weight| weight >= 0.0);
        if feasible && best.as_ref().is_none_or(|(lowest, _)| loss < *lowest) {
            best = Some((loss, parameters));
        }
    }
    let parameters = best.map_or_else(|| vec![0.0; width + 2], |(_, parameters)| parameters);
    HeadCalibration {
        encoder: parameters[0] as f32,
        lexical: parameters[1] as f32,
        bias: parameters[2..].iter().map(|&bias| bias as f32).collect(),
        thresholds: vec![0.5; num_thresholds(head)],
    }
}

/// Loss, gradient and Hessian at `parameters`: encoder weight, lexical weight
/// and one bias a logit.
#[allow(clippy::needless_range_loop)] // Indices, as in the formulas.
fn derivatives(
    head: &Head,
    rows: &[Row],
    parameters: &[f64],
    options: &FitOptions,
) -> (f64, Vec<f64>, Vec<Vec<f64>>) {
    let size = parameters.len();
    let width = size - 2;
    let mut loss = 0.0;
    let mut gradient = vec![0.0; size];
    let mut hessian = vec![vec![0.0; size]; size];
    let mut probabilities = vec![0.0; width];
    for row in rows {
        let logit = |index: usize| {
            parameters[0] * row.encoder[index]
                + parameters[1] * row.lexical[index]
                + parameters[2 + index]
        };
        if head.kind() == HeadKind::SingleLabel {
            let highest = (0..width).map(logit).fold(f64::NEG_INFINITY, f64::max);
            let mut sum = 0.0;
            for (index, probability) in probabilities.iter_mut().enumerate() {
                *probability = (logit(index) - highest).exp();
                sum += *probability;
            }
            probabilities.iter_mut().for_each(|value| *value /= sum);
            // Means of the paths' logits under the probabilities.
            let (mut encoder, mut lexical) = (0.0, 0.0);
            for index in 0..width {
                encoder += probabilities[index] * row.encoder[index];
                lexical += probabilities[index] * row.lexical[index];
            }
            for index in 0..width {
                let probability = probabilities[index];
                let (e, x) = (row.encoder[index], row.lexical[index]);
                let residual = probability - f64::from(u8::from(row.holds[index]));
                if row.holds[index] {
                    loss -= probability.max(f64::MIN_POSITIVE).ln();
                }
                gradient[0] += residual * e;
                gradient[1] += residual * x;
                gradient[2 + index] += residual;
                hessian[0][0] += probability * (e - encoder) * e;
                hessian[0][1] += probability * (e - encoder) * x;
                hessian[1][1] += probability * (x - lexical) * x;
                hessian[0][2 + index] += probability * (e - encoder);
                hessian[1][2 + index] += probability * (x - lexical);
                hessian[2 + index][2 + index] += probability;
                for other in index..width {
                    hessian[2 + index][2 + other] -= probability * probabilities[other];
                }
            }
        } else {
            for index in 0..width {
                let logit = logit(index);
                let sign = if row.holds[index] { -1.0 } else { 1.0 };
                // ln(1 + exp(x)) without overflow.
                let signed = sign * logit;
                loss += signed.max(0.0) + (-signed.abs()).exp().ln_1p();
                let probability = 1.0 / (1.0 + (-logit).exp());
                let residual = probability - f64::from(u8::from(row.holds[index]));
                let curvature = probability * (1.0 - probability);
                let (e, x) = (row.encoder[index], row.lexical[index]);
                gradient[0] += residual * e;
                gradient[1] += residual * x;
                gradient[2 + index] += residual;
                hessian[0][0] += curvature * e * e;
                hessian[0][1] += curvature * e * x;
                hessian[1][1] += curvature * x * x;
                hessian[0][2 + index] += curvature * e;
                hessian[1][2 + index] += curvature * x;
                hessian[2 + index][2 + index] += curvature;
            }
        }
    }
    for (index, &parameter) in parameters.iter().enumerate() {
        let penalty = if index < 2 {
            options.weight_penalty
        } else {
            options.bias_penalty
        };
        loss += 0.5 * penalty * parameter * parameter;
        gradient[index] += penalty * parameter;
        hessian[index][index] += penalty;
    }
    for row in 0..size {
        for column in 0..row {
            hessian[row][column] = hessian[column][row];
        }
    }
    (loss, gradient, hessian)
}

/// Minimises the loss over the biases and those path weights that are free;
/// the others stay 0. Gives the loss and the parameters.
fn newton(head: &Head, rows: &[Row], free: [bool; 2], options: &FitOptions) -> (f64, Vec<f64>) {
    let size = head.logits().len() + 2;
    let free: Vec<usize> = (0..size)
        .filter(|&index| free.get(index).copied().unwrap_or(true))
        .collect();
    let mut parameters = vec![0.0; size];
    let (mut loss, mut gradient, mut hessian) = derivatives(head, rows, &parameters, options);
    for _ in 0..100 {
        let mut matrix: Vec<Vec<f64>> = free
            .iter()
            .map(|&row| free.iter().map(|&column| hessian[row][column]).collect())
            .collect();
        let mut step: Vec<f64> = free.iter().map(|&index| gradient[index]).collect();
        solve(&mut matrix, &mut step);
        let slope: f64 = free
            .iter()
            .zip(&step)
            .map(|(&index, step)| gradient[index] * step)
            .sum();
        if slope < 1e-12 {
            break;
        }
        // Halve the step until the loss falls enough (Armijo).
        let mut length = 1.0;
        loop {
            let mut moved = parameters.clone();
            for (&index, step) in free.iter().zip(&step) {
                moved[index] -= length * step;
            }
            let next = derivatives(head, rows, &moved, options);
            if next.0 <= loss - 1e-4 * length * slope {
                parameters = moved;
                (loss, gradient, hessian) = next;
                break;
            }
            length *= 0.5;
            if length < 1e-10 {
                return (loss, parameters);
            }
        }
    }
    (loss, parameters)
}

/// Solves a positive definite system in place, by Cholesky factors.
fn solve(matrix: &mut [Vec<f64>], vector: &mut [f64]) {
    let size = vector.len();
    for column in 0..size {
        for row in column..size {
            let dot: f64 = (0..column)
                .map(|inner| matrix[row][inner] * matrix[column][inner])
                .sum();
            let value = matrix[row][column] - dot;
            matrix[row][column] = if row == column {
                // The penalties keep pivots above 0; rounding must not undo it.
                value.max(1e-12).sqrt()
            } else {
                value / matrix[column][column]
            };
        }
    }
    for row in 0..size {
        let dot: f64 = (0..row)
            .map(|inner| matrix[row][inner] * vector[inner])
            .sum();
        vector[row] = (vector[row] - dot) / matrix[row][row];
    }
    for row in (0..size).rev() {
        let dot: f64 = (row + 1..size)
            .map(|inner| matrix[inner][row] * vector[inner])
            .sum();
        vector[row] = (vector[row] - dot) / matrix[row][row];
    }
}

// ---------------------------------------------------------------------------
// Thresholds

/// For each label, the probability and the truth of each text.
fn scored_labels(
    head: &Head,
    calibration: &HeadCalibration,
    known: &[Known],
) -> Vec<Vec<(f32, bool)>> {
    let mut labels = vec![Vec::with_capacity(known.len()); head.logits().len()];
    for known in known {
        let probabilities = calibration.probabilities(head, known.raw).by_label();
        for (index, (label, probability)) in labels.iter_mut().zip(probabilities).enumerate() {
            label.push((probability, known.target.holds(head.kind(), index)));
        }
    }
    labels
}

/// The thresholds that are tried: from 0.05 to 0.9, in even steps of log odds.
fn grid() -> Vec<f32> {
    let (low, high) = (log_odds(0.05), log_odds(0.9));
    (0..=50)
        .map(|step| odds_to_probability(low + (high - low) * f64::from(step) / 50.0) as f32)
        .collect()
}

fn log_odds(probability: f64) -> f64 {
    (probability / (1.0 - probability)).ln()
}

fn odds_to_probability(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-log_odds).exp())
}

/// One threshold a label: each label's own best, drawn in log odds towards
/// the one that all labels share, the more the fewer positive texts it has.
/// `shrinkage` is the number of positive texts at which both weigh the same.
fn label_thresholds(labels: &[Vec<(f32, bool)>], shrinkage: f64) -> Vec<f32> {
    let grid = grid();
    let f1: Vec<Vec<f64>> = labels
        .iter()
        .map(|scored| smoothed_f1(scored, &grid))
        .collect();
    let common = best(&grid, |place| mean(f1.iter().map(|f1| f1[place])));
    labels
        .iter()
        .zip(&f1)
        .map(|(scored, f1)| {
            let positives = scored.iter().filter(|(_, holds)| *holds).count() as f64;
            let weight = if positives == 0.0 {
                0.0
            } else {
                positives / (positives + shrinkage)
            };
            let own = log_odds(f64::from(best(&grid, |place| f1[place])));
            let common = log_odds(f64::from(common));
            odds_to_probability(common + weight * (own - common)) as f32
        })
        .collect()
}

/// F1 at each threshold with blurred decisions: a text near the threshold is
/// counted in part, so that the best threshold does not hang on single texts.
fn smoothed_f1(scored: &[(f32, bool)], grid: &[f32]) -> Vec<f64> {
    /// How far, in log odds, a decision is blurred.
    const BLUR: f64 = 0.3;
    let odds = |probability: f32| log_odds(f64::from(probability).clamp(1e-6, 1.0 - 1e-6));
    let positives = scored.iter().filter(|(_, holds)| *holds).count() as f64;
    let scored: Vec<(f64, bool)> = scored.iter().map(|&(p, holds)| (odds(p), holds)).collect();
    grid.iter()
        .map(|&threshold| {
            let threshold = odds(threshold);
            let (mut hits, mut given) = (0.0, 0.0);
            for &(value, holds) in &scored {
                let decision = odds_to_probability((value - threshold) / BLUR);
                given += decision;
                if holds {
                    hits += decision;
                }
            }
            if positives == 0.0 {
                0.0
            } else {
                2.0 * hits / (given + positives)
            }
        })
        .collect()
}

/// The grid's value of the highest figure, of equals the middle one.
fn best(grid: &[f32], figure: impl Fn(usize) -> f64) -> f32 {
    let figures: Vec<f64> = (0..grid.len()).map(figure).collect();
    let highest = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let equals: Vec<f32> = grid
        .iter()
        .zip(&figures)
        .filter_map(|(&value, &figure)| (figure >= highest).then_some(value))
        .collect();
    equals.get(equals.len() / 2).copied().unwrap_or(0.5)
}

/// The shrinkage whose thresholds, fitted on four folds, give the highest
/// macro F1 over the texts of the fifth; of near equals the strongest.
fn choose_shrinkage(head: &Head, known: &[Known], options: &FitOptions) -> f64 {
    let mut counts = vec![vec![Counts::default(); head.logits().len()]; SHRINKAGES.len()];
    for fold in 0..FOLDS {
        let part = |inside: bool| -> Vec<Known> {
            let texts = known.iter().enumerate();
            texts
                .filter_map(|(index, known)| ((index % FOLDS == fold) == inside).then_some(*known))
                .collect()
        };
        let (others, own) = (part(false), part(true));
        if others.is_empty() || own.is_empty() {
            continue;
        }
        let calibration = fit_weights(head, &others, options);
        let fitted = scored_labels(head, &calibration, &others);
        let scored = scored_labels(head, &calibration, &own);
        for (shrinkage, counts) in SHRINKAGES.iter().zip(&mut counts) {
            let thresholds = label_thresholds(&fitted, *shrinkage);
            for ((threshold, scored), counts) in thresholds.iter().zip(&scored).zip(counts) {
                for &(probability, holds) in scored {
                    counts.add(probability >= *threshold, holds);
                }
            }
        }
    }
    let macro_f1: Vec<f64> = counts
        .iter()
        .map(|counts| mean(counts.iter().map(|counts| counts.f1())))
        .collect();
    let highest = macro_f1.iter().copied().fold(0.0, f64::max);
    let pairs = SHRINKAGES.iter().zip(&macro_f1);
    pairs
        .filter_map(|(&shrinkage, &figure)| (figure >= highest - 0.001).then_some(shrinkage))
        .next_back()
        .unwrap_or(1e9)
}

/// Step thresholds of the highest quadratic weighted kappa among those that
/// find enough of the upper two levels.
///
/// Starting from one half, each threshold in turn takes its best value until
/// none moves. If no thresholds find enough, those that find most win.
fn step_thresholds(
    head: &Head,
    calibration: &HeadCalibration,
    known: &[Known],
    options: &FitOptions,
) -> Vec<f32> {
    let texts: Vec<(Vec<f32>, usize)> = known
        .iter()
        .filter_map(|known| {
            let HeadProbabilities::Ordinal(steps) = calibration.probabilities(head, known.raw)
            else {
                return None;
            };
            let Target::Class(level) = known.target else {
                return None;
            };
            Some((steps, *level))
        })
        .collect();
    let levels = head.classes();
    // Levels below which nothing counts as severe: with three levels or
    // fewer, only the highest.
    let top = if levels > 3 { levels - 2 } else { levels - 1 };
    let figure = |thresholds: &[f32]| {
        let decided = texts.iter().map(|(steps, level)| {
            let pairs = steps.iter().zip(thresholds);
            (*level, pairs.take_while(|(p, t)| p >= t).count())
        });
        let confusion = Confusion::new(levels, decided);
        let found = confusion.at_least(top);
        let has_top = found.true_positives + found.false_negatives > 0;
        let missing = if has_top {
            (options.top_recall - found.recall()).max(0.0)
        } else {
            0.0
        };
        // Any missing recall outweighs every kappa. The last term prefers, of
        // equals, thresholds near one half.
        let spread: f64 = thresholds
            .iter()
            .map(|&t| (f64::from(t) - 0.5).powi(2))
            .sum();
        confusion.quadratic_weighted_kappa().unwrap_or(0.0) - 100.0 * missing - 0.01 * spread
    };
    let mut thresholds = vec![0.5f32; head.logits().len()];
    let mut highest = figure(&thresholds);
    loop {
        let before = highest;
        for index in 0..thresholds.len() {
            for step in 5..=95 {
                let mut tried = thresholds.clone();
                tried[index] = step as f32 / 100.0;
                let value = figure(&tried);
                if value > highest + 1e-12 {
                    (highest, thresholds) = (value, tried);
                }
            }
        }
        if highest <= before {
            return thresholds;
        }
    }
}

fn alarm_threshold(
    head: &Head,
    calibration: &HeadCalibration,
    known: &[Known],
    options: &FitOptions,
) -> f32 {
    let scored = scored_labels(head, calibration, known)
        .into_iter()
        .next()
        .unwrap_or_default();
    let share = mean(scored.iter().map(|(_, holds)| f64::from(u8::from(*holds))));
    if share < options.rare_share {
        let grid = grid();
        return best(&grid, |place| {
            let decisions = scored.iter().map(|&(p, holds)| (p >= grid[place], holds));
            Counts::of(decisions).f_beta(options.rare_beta)
        });
    }
    // Calibrated probabilities are most often right at one half; a threshold
    // fitted to the texts would only follow their noise.
    0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(
            "version = '1'\n\
             [heads.area]\nkind = 'multi_label'\n\
             [area]\na = 'A'\nb = 'B'\n\
             [topic]\nx = 'X'\ny = 'Y'\nz = 'Z'\n\
             [level]\n0 = '0'\n1 = '1'\n2 = '2'\n3 = '3'\n4 = '4'\n\
             [urgent]\nurgent = 'now'\n",
        )
        .unwrap()
    }

    /// Texts whose encoder logits are three times too bold and whose lexical
    /// logits are half of the truth's and noise.
    fn texts(count: usize) -> (Vec<RawLogits>, Vec<Vec<Option<Target>>>) {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut noise = move || random.random_range(-1.0f32..1.0) + random.random_range(-1.0..1.0);
        let mut raw = Vec::new();
        let mut targets = Vec::new();
        for index in 0..count {
            let level = index % 5;
            let mut truth = [-1.5; 10];
            truth[index % 2] = 1.5;
            truth[2 + index % 3] = 1.0;
            for (step, value) in truth[5..9].iter_mut().enumerate() {
                *value = 1.5 * (level as f32 - step as f32 - 0.5);
            }
            truth[9] = if index % 7 == 0 { 1.0 } else { -2.0 };
            raw.push(RawLogits {
                encoder: Some(truth.iter().map(|value| 3.0 * (value + noise())).collect()),
                lexical: Some(
                    truth
                        .iter()
                        .map(|value| 0.5 * (value + 2.0 * noise()))
                        .collect(),
                ),
                ..RawLogits::default()
            });
            targets.push(vec![
                Some(Target::Labels(vec![index % 2])),
                (index % 4 != 0).then_some(Target::Class(index % 3)),
                Some(Target::Class(level)),
                Some(Target::Class(usize::from(index % 7 == 0))),
            ]);
        }
        (raw, targets)
    }

    #[test]
    fn weights_are_those_of_penalised_logistic_regression() {
        // scikit-learn 1.9.1, LogisticRegression(C=1, tol=1e-10) on the same
        // nine points gives coef_ [0.70023, 0.64071] and intercept_ -0.31649.
        let taxonomy = Taxonomy::from_toml("version='1'\n[urgent]\nurgent = 'now'").unwrap();
        let points = [
            (-2.0, 1.0, 0),
            (-1.5, -0.5, 0),
            (-1.0, 0.3, 1),
            (-0.5, -1.0, 0),
            (0.0, 0.5, 0),
            (0.5, 0.2, 1),
            (1.0, -0.7, 0),
            (1.5, 0.9, 1),
            (2.0, 0.1, 1),
        ];
        let raw: Vec<RawLogits> = points
            .iter()
            .map(|&(e, x, _)| RawLogits {
                encoder: Some(vec![e]),
                lexical: Some(vec![x]),
                ..RawLogits::default()
            })
            .collect();
        let targets: Vec<_> = points
            .iter()
            .map(|&(_, _, class)| vec![Some(Target::Class(class))])
            .collect();
        let options = FitOptions {
            weight_penalty: 1.0,
            bias_penalty: 1e-9,
            ..FitOptions::default()
        };
        let calibration = fit(&taxonomy, &raw, &targets, &options).unwrap();
        let head = calibration.head("urgent").unwrap();
        let found = [head.encoder, head.lexical, head.bias[0]];
        for (found, expected) in found.iter().zip([0.700_23, 0.640_71, -0.316_49]) {
            assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let taxonomy = taxonomy();
        let (raw, targets) = texts(30);
        let options = FitOptions::default();
        for (index, head) in taxonomy.heads().iter().enumerate() {
            let rows: Vec<Row> = raw
                .iter()
                .zip(&targets)
                .filter_map(|(raw, targets)| {
                    let target = targets[index].as_ref()?;
                    let path = |path: &Option<Vec<f32>>| -> Vec<f64> {
                        let path = path.as_ref().unwrap();
                        path[head.logits()].iter().map(|&v| f64::from(v)).collect()
                    };
                    Some(Row {
                        encoder: path(&raw.encoder),
                        lexical: path(&raw.lexical),
                        holds: (0..head.logits().len())
                            .map(|index| target.holds(head.kind(), index))
                            .collect(),
                    })
                })
                .collect();
            let size = head.logits().len() + 2;
            let point: Vec<f64> = (0..size).map(|i| 0.3 - 0.1 * i as f64).collect();
            let (_, gradient, hessian) = derivatives(head, &rows, &point, &options);
            for i in 0..size {
                let moved = |by: f64| {
                    let mut point = point.clone();
                    point[i] += by;
                    derivatives(head, &rows, &point, &options)
                };
                let (up, down) = (moved(1e-5), moved(-1e-5));
                let slope = (up.0 - down.0) / 2e-5;
                assert!((slope - gradient[i]).abs() < 1e-4, "{} {i}", head.name());
                for (j, (up, down)) in up.1.iter().zip(&down.1).enumerate() {
                    let curvature = (up - down) / 2e-5;
                    assert!(
                        (curvature - hessian[i][j]).abs() < 1e-4,
                        "{} {i} {j}",
                        head.name()
                    );
                }
            }
        }
    }

    #[test]
    fn too_bold_logits_become_calibrated_probabilities() {
        use crate::train::metrics::expected_calibration_error;
        let taxonomy = Taxonomy::from_toml("version='1'\n[urgent]\nurgent = 'now'").unwrap();
        let head = &taxonomy.heads()[0];
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let (mut raw, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..4000 {
            let truth: f32 = random.random_range(-4.0..3.0);
            let yes = random.random::<f64>() < odds_to_probability(f64::from(truth));
            raw.push(RawLogits {
                encoder: Some(vec![4.0 * truth + 1.0]),
                ..RawLogits::default()
            });
            targets.push(vec![Some(Target::Class(usize::from(yes)))]);
        }
        let error = |calibration: &Calibration| {
            let claims = raw.iter().zip(&targets).map(|(raw, targets)| {
                let probability = calibration.probabilities(&taxonomy, raw)[0].by_label()[0];
                (
                    probability,
                    targets[0].as_ref().unwrap().holds(head.kind(), 0),
                )
            });
            expected_calibration_error(&claims.collect::<Vec<_>>(), 15)
        };
        let calibration = fit(&taxonomy, &raw, &targets, &FitOptions::default()).unwrap();
        let urgent = calibration.head("urgent").unwrap();
        assert!((urgent.encoder - 0.25).abs() < 0.02, "{urgent:?}");
        assert!((urgent.bias[0] + 0.25).abs() < 0.1, "{urgent:?}");
        assert!(error(&Calibration::neutral(&taxonomy)) > 0.08);
        assert!(error(&calibration) < 0.02);
    }

    #[test]
    fn a_path_that_is_absent_or_misleading_gets_no_weight() {
        let taxonomy = taxonomy();
        let (mut raw, targets) = texts(300);
        for raw in &mut raw {
            raw.encoder = None;
        }
        let calibration = fit(&taxonomy, &raw, &targets, &FitOptions::default()).unwrap();
        assert!(calibration.heads().all(|head| head.encoder == 0.0));
        assert!(calibration.heads().all(|head| head.lexical > 0.0));
        for raw in &mut raw {
            raw.encoder = raw
                .lexical
                .as_ref()
                .map(|path| path.iter().map(|v| -v).collect());
            raw.lexical = None;
        }
        let calibration = fit(&taxonomy, &raw, &targets, &FitOptions::default()).unwrap();
        assert!(calibration.heads().all(|head| head.encoder == 0.0));
    }

    #[test]
    fn severe_levels_are_found_as_often_as_asked() {
        let taxonomy = taxonomy();
        let (raw, targets) = texts(1000);
        let level = &taxonomy.heads()[2];
        for top_recall in [0.8, 0.92, 0.99] {
            let options = FitOptions {
                top_recall,
                ..FitOptions::default()
            };
            let calibration = fit(&taxonomy, &raw, &targets, &options).unwrap();
            let head = calibration.head("level").unwrap();
            let pairs = raw.iter().zip(&targets).map(|(raw, targets)| {
                let Some(Target::Class(truth)) = targets[2] else {
                    panic!("no level")
                };
                use crate::model::calibration::Decision;
                match head.decide(&head.probabilities(level, raw)) {
                    Decision::Class(class) => (truth, class),
                    Decision::Labels(_) => panic!("not a level"),
                }
            });
            let confusion = Confusion::new(5, pairs);
            assert!(confusion.at_least(3).recall() >= top_recall);
            assert!(confusion.quadratic_weighted_kappa().unwrap() > 0.7);
        }
    }

    #[test]
    fn labels_with_few_texts_stay_near_the_common_threshold() {
        // Label 0: 100 positives best found at a high threshold. Label 1: two
        // positives, best at a low one.
        let frequent: Vec<(f32, bool)> = (0..400)
            .map(|i| {
                if i % 4 == 0 {
                    (0.85, true)
                } else {
                    (0.6, false)
                }
            })
            .collect();
        let rare: Vec<(f32, bool)> = (0..400)
            .map(|i| {
                if i % 200 == 0 {
                    (0.3, true)
                } else {
                    (0.1, false)
                }
            })
            .collect();
        let free = label_thresholds(&[frequent.clone(), rare.clone()], 0.0);
        let drawn = label_thresholds(&[frequent.clone(), rare.clone()], 20.0);
        let common = label_thresholds(&[frequent, rare], 1e9);
        assert!((common[0] - common[1]).abs() < 1e-5);
        assert!((free[0] - drawn[0]).abs() < (free[0] - common[0]).abs() / 2.0 + 1e-6);
        assert!((free[1] - drawn[1]).abs() > (free[1] - common[1]).abs() / 2.0);
    }

    #[test]
    fn the_same_data_give_the_same_calibration() {
        let (raw, targets) = texts(200);
        let fit = || {
            let calibration = fit(&taxonomy(), &raw, &targets, &FitOptions::default()).unwrap();
            calibration.to_json().unwrap()
        };
        let json = fit();
        assert_eq!(json, fit());
        assert!(Calibration::from_json(json.as_bytes(), &taxonomy()).is_ok());
    }

    #[test]
    fn cross_fitting_never_sees_the_fold_it_is_for() {
        let (raw, mut targets) = texts(200);
        let before = cross_fit(&taxonomy(), &raw, &targets, &FitOptions::default()).unwrap();
        // Text 3 is in fold 3: only the other four calibrations may change.
        targets[3][3] = Some(Target::Class(1));
        targets[3][0] = Some(Target::Labels(vec![0, 1]));
        let after = cross_fit(&taxonomy(), &raw, &targets, &FitOptions::default()).unwrap();
        for (fold, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before == after, fold == 3, "fold {fold}");
        }
    }

    #[test]
    fn data_that_do_not_fit_are_refused_by_head_and_text() {
        let (mut raw, mut targets) = texts(10);
        targets[4][2] = Some(Target::Class(5));
        let error = fit(&taxonomy(), &raw, &targets, &FitOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "calibration text 4 has a target that head `level` lacks"
        );
        targets[4][2] = None;
        raw[2].lexical.as_mut().unwrap()[9] = f32::NAN;
        let error = fit(&taxonomy(), &raw, &targets, &FitOptions::default()).unwrap_err();
        assert!(error.to_string().contains("text 2"));
        assert!(error.to_string().contains("`urgent`"));
    }
}
