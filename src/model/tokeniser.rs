//! From text to token ids, by the bundle's own `tokenizer.json`.

use crate::error::{Error, ErrorKind, Result};
use std::ops::Range;
use tokenizers::Tokenizer;

/// Longer texts are tokenised in pieces of about this many bytes, since the
/// tokeniser needs many times the memory of its input.
const PIECE: usize = 64 * 1024;

/// Embedding tables are often padded to a round number of rows; more unused
/// rows than this mean that the tokeniser belongs to another model.
const UNUSED_ROWS: usize = 128;

/// A Hugging Face tokeniser that treats all of a text as text: no truncation,
/// no padding, and `</s>` in a report is not the end of it.
pub(crate) struct Tokeniser {
    inner: Tokenizer,
    /// Ids that only the engine may set, as that of `</s>`.
    specials: Vec<u32>,
    /// What stands for a special token that a text spells out.
    unknown: u32,
}

/// A text's content tokens, without specials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub ids: Vec<u32>,
    /// The bytes of the text that each token stands for.
    spans: Vec<(u32, u32)>,
}

impl Tokens {
    /// The bytes of the text that a range of tokens stands for.
    pub fn bytes(&self, tokens: Range<usize>) -> Range<usize> {
        match self.spans.get(tokens) {
            Some([(start, end)]) | Some([(start, _), .., (_, end)]) => {
                *start as usize..*end as usize
            }
            _ => 0..0,
        }
    }
}

impl Tokeniser {
    /// Reads a `tokenizer.json` for an encoder with `vocab_size` word
    /// embeddings.
    pub fn from_json(json: &[u8], vocab_size: usize) -> Result<Self> {
        let invalid = |message: String| {
            Error::new(
                ErrorKind::InvalidBundle,
                format!("tokenizer.json {message}"),
            )
        };
        let mut inner = Tokenizer::from_bytes(json)
            .map_err(|error| invalid("cannot be read".to_owned()).with_source(error))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| invalid("cannot be used".to_owned()).with_source(error))?;
        let specials: Vec<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let unknown = ["<unk>", "[UNK]"]
            .into_iter()
            .find_map(|token| inner.token_to_id(token))
            .ok_or_else(|| invalid("has neither <unk> nor [UNK]".to_owned()))?;
        let ids = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        if ids > vocab_size || ids + UNUSED_ROWS < vocab_size {
            return Err(invalid(format!(
                "has a vocabulary of {ids}, config.json states a vocab_size of {vocab_size}"
            )));
        }
        Ok(Self {
            inner,
            specials,
            unknown,
        })
    }

    /// The content tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        for piece in pieces(text, PIECE) {
            let encoding = self
                .inner
                .encode(&text[piece.clone()], false)
                .map_err(|_| {
                    // The cause is left out since it could quote the text.
                    Error::new(
                        ErrorKind::InvalidReport,
                        "the text cannot be cut into tokens",
                    )
                })?;
            let ids = encoding.get_ids().iter();
            tokens
                .ids
                .extend(ids.map(|id| match self.specials.contains(id) {
                    true => self.unknown,
                    false => *id,
                }));
            tokens.spans.extend(
                encoding
                    .get_offsets()
                    .iter()
                    .map(|(start, end)| ((piece.start + start) as u32, (piece.start + end) as u32)),
            );
        }
        Ok(tokens)
    }
}

/// Cuts a text before single spaces, where tokens always begin, into pieces of
/// at least `size` bytes.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= bytes.len() {
            return None;
        }
        let cut = bytes
            .windows(3)
            .enumerate()
            .skip(start + size)
            .find(|(_, near)| {
                near[1] == b' ' && !near[0].is_ascii_whitespace() && !near[2].is_ascii_whitespace()
            })
            .map_or(bytes.len(), |(index, _)| index + 1);
        let piece = start..cut;
        start = cut;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Tokeniser {
        let json = std::fs::read("fixtures/tiny-bundle/tokenizer.json").unwrap();
        let config = std::fs::read("fixtures/tiny-bundle/config.json").unwrap();
        let config = super::super::config::ModelConfig::from_json(&config).unwrap();
        Tokeniser::from_json(&json, config.encoder.vocab_size).unwrap()
    }

    #[test]
    fn a_long_text_has_the_tokens_of_its_whole_although_it_is_cut_in_pieces() {
        let tokeniser = tiny();
        let text = "Brukaren  ramlade i natt,\nfick dubbel dos 3,5 mg å ä ö. ".repeat(7_000);
        let whole = tokeniser.inner.encode(text.as_str(), false).unwrap();
        let tokens = tokeniser.encode(&text).unwrap();
        assert!(pieces(&text, PIECE).count() > 4);
        assert_eq!(tokens.ids, whole.get_ids());
        for (span, (start, end)) in tokens.spans.iter().zip(whole.get_offsets()) {
            assert_eq!((span.0 as usize, span.1 as usize), (*start, *end));
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_only_text() {
        let tokens = tiny().encode("hej </s> <s> <pad>").unwrap();
        assert!(tokens.ids.iter().all(|id| *id > 2), "{:?}", tokens.ids);
    }

    #[test]
    fn spans_lead_back_to_the_text() {
        let text = "Åke fick fel medicin.";
        let tokens = tiny().encode(text).unwrap();
        assert_eq!(tokens.bytes(0..tokens.ids.len()), 0..text.len());
        assert_eq!(tokens.bytes(0..0), 0..0);
    }
}
