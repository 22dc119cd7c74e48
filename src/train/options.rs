//! The settings of a training run.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// How to train. The defaults suit some thousands of texts.
///
/// # Examples
///
/// ```
/// use lyhord::train::TrainOptions;
///
/// let mut options = TrainOptions::default();
/// options.epochs = 2;
/// assert_eq!(options.seed, 1);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrainOptions {
    /// Passes over the training data. Default 5.
    pub epochs: u64,
    /// Peak learning rate of the encoder's top layer. Default 1e-4.
    pub encoder_rate: f32,
    /// Peak learning rate of label attention and heads. Default 3e-3.
    pub head_rate: f32,
    /// Each layer's learning rate as a share of the next one's (Howard and
    /// Ruder 2018). Default 0.95.
    pub layer_decay: f32,
    /// Share of the run in which the rate rises from zero. Default 0.1.
    pub warmup: f64,
    /// Decoupled weight decay of matrices. Default 0.01.
    pub weight_decay: f32,
    /// Largest global norm of a gradient. Default 5.
    pub clip: f32,
    /// Tokens in one optimiser step. Default 2,000.
    pub tokens_per_step: usize,
    /// Dropout probability. Default 0.1.
    pub dropout: f32,
    /// How far targets are drawn towards indifference. Default 0.02.
    pub smoothing: f32,
    /// Weight of each single-label head's loss beside the other heads' sums
    /// over their labels. Default 2.
    pub single_label_weight: f32,
    /// Weight of the loss that draws label attention to marked evidence.
    /// Default 0.2.
    pub evidence_weight: f32,
    /// Decay per step of the weights' moving average, which is what is
    /// evaluated and kept. Default 0.995.
    pub average_decay: f32,
    /// Size of the label-attention projection. Default 256.
    pub attention_size: usize,
    /// Whether to vary texts by typing errors, lost diacritics, capitals and
    /// punctuation. Default true.
    pub augment: bool,
    /// Whether to put short texts together where there is a multi-label head.
    /// Default true.
    pub compose: bool,
    /// Keeps the embeddings and this many of the lowest layers fixed. With one
    /// or more the hidden states after them are computed once, so texts are
    /// neither varied nor put together, unless [`Self::recompute_frozen`] is
    /// set. Default none: everything is trained.
    pub freeze: Option<usize>,
    /// Computes frozen layers anew at every step, so that texts can still be
    /// varied and put together; slower. Default false.
    pub recompute_frozen: bool,
    /// Epochs without a better score on the dev data before training stops.
    /// Default 2.
    pub patience: u64,
    /// Decides initial weights, order, variants and dropout. The same seed and
    /// number of threads give the same model. Default 1.
    pub seed: u64,
    /// Parts that each step is computed in, one thread each. Default 2.
    pub threads: usize,
    /// Minutes between checkpoints. Default 5.
    pub checkpoint_minutes: f64,
    /// Stops after this many steps, as a killed run would: for tests. Default
    /// none.
    #[doc(hidden)]
    pub stop_after: Option<u64>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 5,
            encoder_rate: 1e-4,
            head_rate: 3e-3,
            layer_decay: 0.95,
            warmup: 0.1,
            weight_decay: 0.01,
            clip: 5.0,
            tokens_per_step: 2000,
            dropout: 0.1,
            smoothing: 0.02,
            single_label_weight: 2.0,
            evidence_weight: 0.2,
            average_decay: 0.995,
            attention_size: 256,
            augment: true,
            compose: true,
            freeze: None,
            recompute_frozen: false,
            patience: 2,
            seed: 1,
            threads: 2,
            checkpoint_minutes: 5.0,
            stop_after: None,
        }
    }
}

impl TrainOptions {
    /// Refuses what cannot be used, by name.
    pub(crate) fn check(&self) -> Result<()> {
        let rate = |value: f32| value.is_finite() && value > 0.0;
        let share = |value: f32| (0.0..1.0).contains(&value);
        for (name, usable, range) in [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("encoder_rate", rate(self.encoder_rate), "above 0"),
            ("head_rate", rate(self.head_rate), "above 0"),
            (
                "layer_decay",
                rate(self.layer_decay) && self.layer_decay <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "warmup",
                (0.0..1.0).contains(&self.warmup),
                "from 0 to below 1",
            ),
            (
                "weight_decay",
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "at least 0",
            ),
            ("clip", rate(self.clip), "above 0"),
            ("tokens_per_step", self.tokens_per_step >= 1, "at least 1"),
            ("dropout", share(self.dropout), "from 0 to below 1"),
            ("smoothing", share(self.smoothing), "from 0 to below 1"),
            (
                "single_label_weight",
                rate(self.single_label_weight),
                "above 0",
            ),
            (
                "evidence_weight",
                self.evidence_weight >= 0.0 && self.evidence_weight.is_finite(),
                "at least 0",
            ),
            (
                "average_decay",
                share(self.average_decay),
                "from 0 to below 1",
            ),
            ("attention_size", self.attention_size >= 1, "at least 1"),
            ("patience", self.patience >= 1, "at least 1"),
            ("threads", self.threads >= 1, "at least 1"),
        ] {
            if !usable {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    format!("the training option `{name}` must be {range}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        assert!(TrainOptions::default().check().is_ok());
        let refused = |options: TrainOptions, name: &str| {
            let error = options.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains(name), "{error}");
        };
        let options = TrainOptions::default();
        let (dropout, encoder_rate) = (1.0, f32::NAN);
        refused(
            TrainOptions {
                dropout,
                ..options.clone()
            },
            "`dropout`",
        );
        refused(
            TrainOptions {
                encoder_rate,
                ..options.clone()
            },
            "`encoder_rate`",
        );
        refused(
            TrainOptions {
                epochs: 0,
                ..options
            },
            "`epochs`",
        );
    }
}
