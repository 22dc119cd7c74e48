//! Fits the lexical path to labelled reports.
//!
//! Every logit is a logistic regression of its own, one against the rest,
//! with an L2 penalty. All are solved together by dual coordinate descent
//! (Yu, Huang and Lin 2011, "Dual coordinate descent methods for logistic
//! regression and maximum entropy models", algorithm 5, as in liblinear): a
//! text's features are visited once for all logits, whose weights lie side by
//! side.
//!
//! Where a report's evidence is marked, each label's passages are one more
//! training text: it has that label, lacks those that the report lacks, and
//! is left out of the report's other labels, which its passages may show too.
//! The passages that show an ordinal head's level are one more text of that
//! level.

use crate::error::{Error, ErrorKind, Result};
use crate::model::lexical::{GramScratch, LexicalConfig, LexicalModel, for_each_gram, kind};
use crate::taxonomy::{HeadKind, Taxonomy};
use crate::text::NormalisedText;
use crate::train::data::{LabelledReport, Target};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// How the lexical path is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct LexicalOptions {
    /// How much a training error costs against large weights (liblinear's C).
    pub cost: f64,
    /// In how many texts an n-gram must occur to become a feature.
    pub minimum_texts: usize,
    /// The most features that the model keeps: the most frequent ones.
    pub maximum_features: usize,
    /// Decides the order in which texts are visited.
    pub seed: u64,
}

impl Default for LexicalOptions {
    fn default() -> Self {
        Self {
            cost: 30.0,
            minimum_texts: 2,
            maximum_features: 150_000,
            seed: 1,
        }
    }
}

/// Rounds over the texts at most; some fifteen are usual.
const ROUNDS: usize = 60;

/// The largest slope of the dual objective at which the fit is done. More exact
/// weights no longer change the order of texts.
const TOLERANCE: f64 = 0.2;

/// Fits a lexical path. Unknown targets are left out of their logits.
///
/// # Errors
///
/// [`ErrorKind::InvalidData`] when a report's targets do not fit the taxonomy
/// or no n-gram occurs in enough texts.
pub fn fit(
    taxonomy: &Taxonomy,
    reports: &[LabelledReport],
    options: &LexicalOptions,
) -> Result<LexicalModel> {
    let texts = texts(taxonomy, reports)?;
    fit_to(taxonomy, &texts.iter().collect::<Vec<_>>(), options)
}

/// One text to learn from: a report, or its evidence for one label.
struct Text {
    /// N-grams by key, ascending, and how often each occurs.
    grams: Vec<(u32, u32)>,
    /// By logit, see [`signs`].
    signs: Vec<i8>,
    whole: bool,
}

fn texts(taxonomy: &Taxonomy, reports: &[LabelledReport]) -> Result<Vec<Text>> {
    let mut scratch = GramScratch::default();
    let mut texts = Vec::with_capacity(reports.len());
    for report in reports {
        let signs = signs(taxonomy, report)?;
        for evidence in &report.evidence {
            let Some(signs) = evidence_signs(taxonomy, &signs, evidence.query) else {
                continue;
            };
            let mut passages = String::new();
            for span in &evidence.spans {
                let length = span.end.saturating_sub(span.start);
                passages.extend(report.text.chars().skip(span.start).take(length));
                passages.push('\n');
            }
            texts.push(Text {
                grams: grams(&passages, &mut scratch),
                signs,
                whole: false,
            });
        }
        texts.push(Text {
            grams: grams(&report.text, &mut scratch),
            signs,
            whole: true,
        });
    }
    Ok(texts)
}

/// The signs of a query's evidence, from those of its report. For other than
/// multi-label and ordinal heads, whose evidence marks one answer only, none.
fn evidence_signs(taxonomy: &Taxonomy, report: &[i8], query: usize) -> Option<Vec<i8>> {
    let mut heads = taxonomy.heads().iter();
    let head = heads.find(|head| head.queries().contains(&query))?;
    let label = query - head.queries().start;
    let mut signs = vec![0; report.len()];
    for (place, index) in head.logits().enumerate() {
        signs[index] = match head.kind() {
            HeadKind::MultiLabel if place == label => 1,
            HeadKind::MultiLabel => report[index].min(0),
            HeadKind::Ordinal => report[index],
            _ => return None,
        };
    }
    Some(signs)
}

fn grams(text: &str, scratch: &mut GramScratch) -> Vec<(u32, u32)> {
    let text = NormalisedText::new(text);
    let mut keys = Vec::new();
    let config = LexicalConfig::new(0);
    for_each_gram(&config, text.as_str(), scratch, |key| keys.push(key));
    keys.sort_unstable();
    keys.chunk_by(|a, b| a == b)
        .filter_map(|same| Some((*same.first()?, same.len() as u32)))
        .collect()
}

/// For each logit, 1 where it should be high, -1 where low, 0 where unknown.
fn signs(taxonomy: &Taxonomy, report: &LabelledReport) -> Result<Vec<i8>> {
    let mut signs = vec![0; taxonomy.num_logits()];
    for (head, target) in taxonomy.heads().iter().zip(&report.targets) {
        let Some(target) = target else { continue };
        for (index, sign) in signs[head.logits()].iter_mut().enumerate() {
            let holds = match (head.kind(), target) {
                (HeadKind::MultiLabel, Target::Labels(labels)) => labels.contains(&index),
                (HeadKind::SingleLabel, Target::Class(class)) => *class == index,
                (HeadKind::Ordinal, Target::Class(level)) => *level > index,
                (HeadKind::Binary, Target::Class(class)) => *class == 1,
                _ => {
                    return Err(Error::new(
                        ErrorKind::InvalidData,
                        format!(
                            "report {} has a target of another kind than head `{}`",
                            report.id,
                            head.name()
                        ),
                    ));
                }
            };
            *sign = if holds { 1 } else { -1 };
        }
    }
    Ok(signs)
}

fn fit_to(taxonomy: &Taxonomy, texts: &[&Text], options: &LexicalOptions) -> Result<LexicalModel> {
    let features = features(texts, options);
    if features.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "no word occurs in {} of the training texts, so that a lexical path has nothing to learn from",
                options.minimum_texts,
            ),
        ));
    }
    let places: HashMap<u32, u32> = features
        .iter()
        .enumerate()
        .map(|(place, &(key, _))| (key, place as u32))
        .collect();
    let rows: Vec<Row> = texts
        .iter()
        .map(|text| Row {
            values: values(&text.grams, &features, &places),
            signs: &text.signs,
        })
        .collect();
    let (weights, bias) = solve(
        &rows,
        features.len(),
        taxonomy.num_logits(),
        options,
        TOLERANCE,
    );
    let config = LexicalConfig::new(features.len());
    LexicalModel::new(config, &features, &weights, bias)
}

/// The n-grams that become features, by ascending key, with their idf. Only
/// whole reports are counted: their evidence would count the same words again.
fn features(texts: &[&Text], options: &LexicalOptions) -> Vec<(u32, f32)> {
    let mut frequencies: HashMap<u32, u32> = HashMap::new();
    let mut total = 1.0;
    for text in texts.iter().filter(|text| text.whole) {
        total += 1.0;
        for &(key, _) in &text.grams {
            *frequencies.entry(key).or_default() += 1;
        }
    }
    let mut kept: Vec<(u32, u32)> = frequencies
        .into_iter()
        .filter(|&(_, texts)| texts as usize >= options.minimum_texts.max(1))
        .collect();
    kept.sort_unstable_by_key(|&(key, texts)| (std::cmp::Reverse(texts), key));
    kept.truncate(options.maximum_features);
    kept.sort_unstable();
    kept.into_iter()
        .map(|(key, texts)| (key, (total / (1.0 + texts as f32)).ln() + 1.0))
        .collect()
}

/// The tf-idf values of one text by feature, words and characters each of
/// length 1: what `model::lexical` computes, idf included.
fn values(
    text: &[(u32, u32)],
    features: &[(u32, f32)],
    places: &HashMap<u32, u32>,
) -> Vec<(u32, f32)> {
    let mut squares = [0.0f32; 2];
    let mut values: Vec<(u32, f32)> = text
        .iter()
        .filter_map(|&(key, count)| {
            let &place = places.get(&key)?;
            let value = (1.0 + (count as f32).ln()) * features[place as usize].1;
            squares[kind(key)] += value * value;
            Some((place, value))
        })
        .collect();
    for (place, value) in &mut values {
        *value /= squares[kind(features[*place as usize].0)].sqrt();
    }
    values
}

/// One training text.
struct Row<'a> {
    /// Feature and value.
    values: Vec<(u32, f32)>,
    /// By logit, see [`signs`].
    signs: &'a [i8],
}

/// The weights `[features, logits]` and the biases `[logits]` of lowest
/// `|w|^2 / 2 + cost * sum of ln(1 + exp(-sign * logit))` for each logit.
///
/// The bias is the weight of a value 1 in every text, as in liblinear.
fn solve(
    rows: &[Row],
    num_features: usize,
    width: usize,
    options: &LexicalOptions,
    tolerance: f64,
) -> (Vec<f32>, Vec<f32>) {
    let cost = options.cost;
    let mut weights = vec![0.0f32; num_features * width];
    let mut bias = vec![0.0f32; width];
    // The dual variable of each text and logit, and the rest of `cost`. Both
    // are kept, since near either end their difference would lose its digits.
    let mut used = vec![0.0f32; rows.len() * width];
    let mut rest = vec![0.0f32; rows.len() * width];
    let mut change = vec![0.0f32; width];
    let mut logits = vec![0.0f32; width];

    let first = (0.001 * cost).min(1e-8) as f32;
    for (index, row) in rows.iter().enumerate() {
        for (logit, &sign) in row.signs.iter().enumerate() {
            change[logit] = first * f32::from(sign);
            used[index * width + logit] = first;
            rest[index * width + logit] = cost as f32 - first;
        }
        add(row, &change, &mut weights, &mut bias);
    }
    let squares: Vec<f64> = rows
        .iter()
        .map(|row| {
            let values = row.values.iter();
            1.0 + values.map(|&(_, x)| f64::from(x).powi(2)).sum::<f64>()
        })
        .collect();

    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let mut inner_tolerance = 1e-2;
    for _ in 0..ROUNDS {
        order.shuffle(&mut random);
        let mut steepest = 0.0f64;
        let mut newton_steps = 0usize;
        for &index in &order {
            let row = &rows[index];
            logits.copy_from_slice(&bias);
            for &(feature, value) in &row.values {
                let feature = feature as usize * width;
                let weights = &weights[feature..feature + width];
                for (logit, weight) in logits.iter_mut().zip(weights) {
                    *logit += weight * value;
                }
            }
            let own = index * width..(index + 1) * width;
            let pairs = used[own.clone()].iter_mut().zip(&mut rest[own]);
            let mut moved = false;
            for (logit, (used, rest)) in pairs.enumerate() {
                change[logit] = 0.0;
                let sign = row.signs[logit];
                if sign == 0 {
                    continue;
                }
                let step = Step {
                    cost,
                    square: squares[index],
                    margin: f64::from(logits[logit]) * f64::from(sign),
                    tolerance: inner_tolerance,
                }
                .take(f64::from(*used), f64::from(*rest));
                steepest = steepest.max(step.slope);
                newton_steps += step.iterations;
                if step.iterations > 0 {
                    change[logit] = ((step.used - f64::from(*used)) * f64::from(sign)) as f32;
                    (*used, *rest) = (step.used as f32, step.rest as f32);
                    moved = true;
                }
            }
            if moved {
                add(row, &change, &mut weights, &mut bias);
            }
        }
        if steepest < tolerance {
            break;
        }
        if newton_steps <= rows.len() * width / 10 {
            inner_tolerance = f64::max(inner_tolerance * 0.1, 1e-6);
        }
    }
    (weights, bias)
}

fn add(row: &Row, change: &[f32], weights: &mut [f32], bias: &mut [f32]) {
    for &(feature, value) in &row.values {
        let feature = feature as usize * change.len();
        let weights = &mut weights[feature..feature + change.len()];
        for (weight, change) in weights.iter_mut().zip(change) {
            *weight += change * value;
        }
    }
    for (bias, change) in bias.iter_mut().zip(change) {
        *bias += change;
    }
}

/// The minimisation over one dual variable.
struct Step {
    cost: f64,
    /// The squared length of the text's values.
    square: f64,
    /// The logit times the sign.
    margin: f64,
    tolerance: f64,
}

struct Taken {
    used: f64,
    rest: f64,
    /// The slope before the first iteration.
    slope: f64,
    iterations: usize,
}

impl Step {
    /// Newton's method on whichever of the variable and its rest is the
    /// smaller at the minimum, where the logarithm is steep (section 3.3 of
    /// the paper).
    fn take(&self, used: f64, rest: f64) -> Taken {
        let swap = 0.5 * self.square * (rest - used) + self.margin < 0.0;
        let (old, sign) = if swap { (rest, -1.0) } else { (used, 1.0) };
        let slope_at =
            |z: f64| self.square * (z - old) + sign * self.margin + (z / (self.cost - z)).ln();
        let mut z = if self.cost - old < 0.5 * self.cost {
            0.1 * old
        } else {
            old
        };
        let mut slope = slope_at(z);
        let first = slope.abs();
        let mut iterations = 0;
        while slope.abs() >= self.tolerance && iterations < 100 {
            let curvature = self.square + self.cost / (self.cost - z) / z;
            let next = z - slope / curvature;
            z = if next <= 0.0 { 0.1 * z } else { next };
            slope = slope_at(z);
            iterations += 1;
        }
        let (used, rest) = if swap {
            (self.cost - z, z)
        } else {
            (z, self.cost - z)
        };
        Taken {
            used,
            rest,
            slope: first,
            iterations,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::lexical::LexicalScratch;
    use crate::train::data::Evidence;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(
            "version = '1'\n\
             [heads.area]\nkind = 'multi_label'\n\
             [area]\na = 'A'\nb = 'B'\n\
             [level]\n0 = '0'\n1 = '1'\n2 = '2'\n\
             [urgent]\nurgent = 'now'\n",
        )
        .unwrap()
    }

    /// Texts that speak of a fall, of a drug, of both or of neither.
    fn reports() -> Vec<LabelledReport> {
        (0..80)
            .map(|index| {
                let (fall, drug) = (index % 2 == 0, index % 3 == 0);
                let mut text = format!("Rapport {index} om gatan vid torget.");
                let mut labels = Vec::new();
                if fall {
                    text += " Hon ramlade i trappan hemma.";
                    labels.push(0);
                }
                if drug {
                    text += " Fel dos insulin gavs igen.";
                    labels.push(1);
                }
                LabelledReport {
                    id: format!("r{index}"),
                    text,
                    targets: vec![
                        Some(Target::Labels(labels.clone())),
                        (index % 5 != 0).then_some(Target::Class(labels.len())),
                        None,
                    ],
                    evidence: Vec::new(),
                }
            })
            .collect()
    }

    fn logits(model: &LexicalModel, text: &str) -> Vec<f32> {
        model.logits(text, &mut LexicalScratch::default())
    }

    #[test]
    fn weights_are_those_of_liblinear() {
        // scikit-learn 1.9.1, LogisticRegression(C=3, fit_intercept=False,
        // tol=1e-12) with a column of ones for the bias.
        let texts: [&[(u32, f32)]; 8] = [
            &[(0, 0.6), (1, 0.8)],
            &[(0, 1.0)],
            &[(1, 0.6), (2, 0.8)],
            &[(0, 0.8), (2, 0.6)],
            &[(2, 1.0)],
            &[(1, 1.0)],
            &[(0, 0.6), (2, 0.8)],
            &[(1, 0.8), (2, 0.6)],
        ];
        let truth = [[1, 1, 1, 0, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0, 1, 0]];
        let signs: Vec<Vec<i8>> = (0..8)
            .map(|text| truth.iter().map(|truth| 2 * truth[text] - 1).collect())
            .collect();
        let rows: Vec<Row> = texts
            .iter()
            .zip(&signs)
            .map(|(values, signs)| Row {
                values: values.to_vec(),
                signs,
            })
            .collect();
        let options = LexicalOptions {
            cost: 3.0,
            ..LexicalOptions::default()
        };
        let (weights, bias) = solve(&rows, 3, 2, &options, 1e-4);
        let found = [
            [weights[0], weights[2], weights[4], bias[0]],
            [weights[1], weights[3], weights[5], bias[1]],
        ];
        let expected = [
            [0.2222, 1.0509, -1.511, 0.1855],
            [1.094, -2.1472, 0.6498, 0.0917],
        ];
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 2e-3, "{found} is not {expected}");
        }
    }

    #[test]
    fn words_are_learnt_and_unknown_targets_are_not() {
        let model = fit(&taxonomy(), &reports(), &LexicalOptions::default()).unwrap();
        let fall = logits(&model, "Han ramlade i trappan.");
        let drug = logits(&model, "Det var fel dos insulin.");
        let other = logits(&model, "En fin dag vid torget.");
        assert!(fall[0] > 0.0 && fall[1] < 0.0, "{fall:?}");
        assert!(drug[1] > 0.0 && drug[0] < 0.0, "{drug:?}");
        assert!(other[0] < 0.0 && other[1] < 0.0, "{other:?}");
        // Nothing is known of the binary head.
        assert_eq!((fall[4], drug[4]), (0.0, 0.0));
    }

    #[test]
    fn quantised_weights_say_what_exact_weights_say() {
        let taxonomy = taxonomy();
        let texts = texts(&taxonomy, &reports()).unwrap();
        let texts: Vec<&Text> = texts.iter().collect();
        let options = LexicalOptions::default();
        let features = features(&texts, &options);
        let places: HashMap<u32, u32> = features.iter().map(|f| f.0).zip(0..).collect();
        let rows: Vec<Row> = texts
            .iter()
            .map(|text| Row {
                values: values(&text.grams, &features, &places),
                signs: &text.signs,
            })
            .collect();
        let (weights, bias) = solve(&rows, features.len(), 5, &options, TOLERANCE);
        let mut config = LexicalConfig::new(features.len());
        config.passages = 0.0;
        let model = LexicalModel::new(config, &features, &weights, bias.clone()).unwrap();
        for (report, row) in reports().iter().zip(&rows) {
            let found = logits(&model, &report.text);
            for logit in 0..5 {
                let exact = row
                    .values
                    .iter()
                    .fold(bias[logit], |sum, &(feature, value)| {
                        sum + weights[feature as usize * 5 + logit] * value
                    });
                // A stored weight, idf included, is off by half a step at most;
                // one per cent more for the idf in half precision.
                let stored = |place: usize| weights[place * 5 + logit] * features[place].1;
                let highest = (0..features.len())
                    .map(|i| stored(i).abs())
                    .fold(0.0, f32::max);
                let frequencies: f32 = row
                    .values
                    .iter()
                    .map(|&(f, value)| value / features[f as usize].1)
                    .sum();
                let bound = 1.01 * frequencies * highest / 127.0 / 2.0 + 1e-3 * exact.abs();
                assert!(
                    (found[logit] - exact).abs() <= bound,
                    "{} {exact} {bound}",
                    found[logit]
                );
            }
        }
    }

    #[test]
    fn evidence_teaches_its_own_label_only() {
        let taxonomy = taxonomy();
        let mut report = reports().swap_remove(0);
        let start = report.text.chars().count() - 10;
        report.evidence = vec![
            Evidence {
                query: 1,
                spans: vec![start..start + 5, start + 6..start + 10],
            },
            Evidence {
                query: 2,
                spans: std::iter::once(0..7).collect(),
            },
            Evidence {
                query: 3,
                spans: std::iter::once(0..7).collect(),
            },
        ];
        report.targets[0] = Some(Target::Labels(vec![0, 1]));
        report.targets[1] = Some(Target::Class(1));
        report.targets[2] = Some(Target::Class(1));
        let texts = texts(&taxonomy, &[report]).unwrap();
        let signs: Vec<&[i8]> = texts.iter().map(|text| text.signs.as_slice()).collect();
        // The label's evidence, the level's, none of the binary head's, and
        // the report.
        assert_eq!(signs, [[0, 1, 0, 0, 0], [0, 0, 1, -1, 0], [1, 1, 1, -1, 1]]);
        assert!(!texts[0].whole && texts[2].whole);
    }

    #[test]
    fn the_same_reports_give_the_same_model() {
        let fit = || fit(&taxonomy(), &reports(), &LexicalOptions::default()).unwrap();
        assert_eq!(fit().tensors(), fit().tensors());
    }

    #[test]
    fn reports_without_a_word_in_common_are_refused() {
        let mut reports = reports();
        reports.truncate(1);
        let error = fit(&taxonomy(), &reports, &LexicalOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
