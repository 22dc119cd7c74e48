//! `config.json`: the shape of a model.

use super::lexical::LexicalConfig;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The shape of a BERT or XLM-R encoder, in the field names of a Hugging Face
/// `config.json`. Fields that inference doesn't need are ignored.
///
/// # Examples
///
/// ```
/// let config = lyhord::model::EncoderConfig::from_json(
///     r#"{"model_type": "bert", "vocab_size": 100, "hidden_size": 8,
///         "num_hidden_layers": 2, "num_attention_heads": 2,
///         "intermediate_size": 16, "max_position_embeddings": 32}"#,
/// )?;
/// assert_eq!(config.max_tokens(), 32);
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EncoderConfig {
    /// `bert`, or one of the RoBERTa family: `xlm-roberta`, `roberta`,
    /// `camembert`, whose positions start after the padding id.
    pub model_type: String,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the position embeddings.
    pub max_position_embeddings: usize,
    /// Rows of the token-type embeddings; only type 0 is used.
    #[serde(default = "default_type_vocab_size")]
    pub type_vocab_size: usize,
    /// Added to the variance in every layer normalisation.
    #[serde(default = "default_layer_norm_eps")]
    pub layer_norm_eps: f32,
    /// Activation of the feed-forward layer; `gelu` (by erf) is the only one.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
    /// Id of the token before each window.
    #[serde(default = "default_bos")]
    pub bos_token_id: u32,
    /// Id of the padding token.
    #[serde(default = "default_pad")]
    pub pad_token_id: u32,
    /// Id of the token after each window.
    #[serde(default = "default_eos")]
    pub eos_token_id: u32,
    /// How positions enter; `absolute` is the only way.
    #[serde(
        default = "default_position_embedding_type",
        skip_serializing_if = "is_absolute"
    )]
    pub position_embedding_type: String,
}

fn default_type_vocab_size() -> usize {
    2
}

fn default_layer_norm_eps() -> f32 {
    1e-12
}

fn default_hidden_act() -> String {
    "gelu".to_owned()
}

fn default_bos() -> u32 {
    0
}

fn default_pad() -> u32 {
    1
}

fn default_eos() -> u32 {
    2
}

fn default_position_embedding_type() -> String {
    "absolute".to_owned()
}

fn is_absolute(value: &str) -> bool {
    value == "absolute"
}

impl EncoderConfig {
    /// Reads a Hugging Face `config.json`, or the encoder's part of a bundle's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when a field is missing, or names an
    /// architecture this crate doesn't have.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = lyhord::model::EncoderConfig::from_json("{}").unwrap_err();
    /// assert!(error.to_string().contains("model_type"));
    /// ```
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Bundle {
            encoder: EncoderConfig,
        }
        let nested = serde_json::from_str(text).map(|bundle: Bundle| bundle.encoder);
        let config = nested
            .or_else(|_| serde_json::from_str(text))
            .map_err(|error| unreadable("an encoder", error))?;
        config.validate()?;
        Ok(config)
    }

    /// The most tokens one forward pass takes, `<s>` and `</s>` included.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = lyhord::model::EncoderConfig::from_json(
    ///     r#"{"model_type": "xlm-roberta", "vocab_size": 100, "hidden_size": 8,
    ///         "num_hidden_layers": 2, "num_attention_heads": 2,
    ///         "intermediate_size": 16, "max_position_embeddings": 514}"#,
    /// )?;
    /// assert_eq!(config.max_tokens(), 512);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings
            .saturating_sub(self.position_offset())
    }

    /// The position of the first token: RoBERTa counts from the padding id on.
    pub(crate) fn position_offset(&self) -> usize {
        match self.model_type.as_str() {
            "bert" => 0,
            _ => self.pad_token_id as usize + 1,
        }
    }

    pub(crate) fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: String| {
            Err(Error::new(
                ErrorKind::InvalidBundle,
                format!("config.json: {message}"),
            ))
        };
        if !["bert", "xlm-roberta", "roberta", "camembert"].contains(&self.model_type.as_str()) {
            return invalid(format!(
                "the model type `{}` is not supported; use bert, roberta, xlm-roberta or camembert",
                self.model_type
            ));
        }
        if self.hidden_act != "gelu" {
            return invalid(format!(
                "the activation `{}` is not supported; use gelu",
                self.hidden_act
            ));
        }
        if self.position_embedding_type != "absolute" {
            return invalid(format!(
                "position embeddings of the type `{}` are not supported; use absolute",
                self.position_embedding_type
            ));
        }
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            if size == 0 {
                return invalid(format!("{name} is 0"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return invalid(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if self.max_tokens() < 3 {
            return invalid(format!(
                "max_position_embeddings {} leaves no room for a text",
                self.max_position_embeddings
            ));
        }
        for (name, id) in [
            ("bos_token_id", self.bos_token_id),
            ("eos_token_id", self.eos_token_id),
        ] {
            if id as usize >= self.vocab_size {
                return invalid(format!(
                    "{name} {id} is outside the vocabulary of {}",
                    self.vocab_size
                ));
            }
        }
        Ok(())
    }
}

/// The whole of a bundle's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelConfig {
    pub name: String,
    pub version: String,
    pub encoder: EncoderConfig,
    pub label_attention: LabelAttentionConfig,
    /// Settings of the lexical path, or null for a model without one.
    #[serde(default)]
    pub lexical: Option<LexicalConfig>,
    #[serde(default)]
    pub window: WindowConfig,
}

impl ModelConfig {
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let config: Self =
            serde_json::from_slice(json).map_err(|error| unreadable("a model", error))?;
        config.encoder.validate()?;
        config.window.validate(&config.encoder)?;
        if config.label_attention.attention_size == 0 {
            return Err(Error::new(
                ErrorKind::InvalidBundle,
                "config.json: `attention_size` must be at least 1",
            ));
        }
        Ok(config)
    }
}

/// Size of the label attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelAttentionConfig {
    pub attention_size: usize,
}

/// How a long text is cut into windows, in content tokens.
///
/// # Examples
///
/// ```
/// assert_eq!(lyhord::model::WindowConfig::default().max_tokens, 510);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowConfig {
    /// Content tokens in a window, at most; `<s>` and `</s>` come on top.
    pub max_tokens: usize,
    /// Tokens that neighbouring windows share, at least.
    pub overlap: usize,
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self {
            max_tokens: 510,
            overlap: 128,
        }
    }
}

impl WindowConfig {
    fn validate(&self, encoder: &EncoderConfig) -> Result<()> {
        if self.max_tokens <= self.overlap
            || self.max_tokens.saturating_add(2) > encoder.max_tokens()
        {
            return Err(Error::new(
                ErrorKind::InvalidBundle,
                format!(
                    "config.json: windows of {} tokens with an overlap of {} do not fit an encoder of {} tokens",
                    self.max_tokens,
                    self.overlap,
                    encoder.max_tokens()
                ),
            ));
        }
        Ok(())
    }
}

fn unreadable(what: &str, error: serde_json::Error) -> Error {
    Error::new(
        ErrorKind::InvalidBundle,
        format!("config.json does not describe {what}"),
    )
    .with_source(error)
}
