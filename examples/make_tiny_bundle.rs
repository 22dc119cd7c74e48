//! Makes `fixtures/tiny-bundle`: a model with random weights and no lexical
//! path, a hundred kilobytes in all, for tests and examples.
//!
//! ```console
//! cargo run --release --example make_tiny_bundle
//! ```

use lyhord::model::{BundleParts, EncoderConfig, NamedTensor, TensorType, WindowConfig};
use lyhord::{HeadKind, Taxonomy};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

/// The most frequent words of the reports that get a token of their own.
const WORDS: usize = 400;
const ATTENTION_SIZE: usize = 16;
const SEED: u64 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = root.join("fixtures");
    let target = std::env::args()
        .nth(1)
        .map_or(fixtures.join("tiny-bundle"), Into::into);

    let taxonomy_text = std::fs::read_to_string(fixtures.join("taxonomy/taxonomy.toml"))?;
    let taxonomy = Taxonomy::from_toml(&taxonomy_text)?;
    let reports = std::fs::read_to_string(fixtures.join("reports.dev.jsonl"))?;
    let vocabulary = vocabulary(&reports)?;
    let encoder = EncoderConfig::from_json(
        &json!({
            "model_type": "bert",
            "vocab_size": vocabulary.len(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        })
        .to_string(),
    )?;
    let manifest = BundleParts {
        name: "tiny".to_owned(),
        version: "1.0.0".to_owned(),
        tensors: tensors(&encoder, &taxonomy),
        encoder,
        attention_size: ATTENTION_SIZE,
        lexical: None,
        window: WindowConfig {
            max_tokens: 62,
            overlap: 16,
        },
        tokenizer: serde_json::to_vec(&tokenizer(&vocabulary))?,
        calibration: serde_json::to_string_pretty(&calibration(&taxonomy))?,
        taxonomy: taxonomy_text,
        model_card: "# tiny\n\nRandom weights, for tests only.\n".to_owned(),
        training: json!({"command": "cargo run --release --example make_tiny_bundle", "seed": SEED}),
        metrics: Value::Null,
    }
    .write(&target)?;
    println!("{} files in {}", manifest.files.len(), target.display());
    Ok(())
}

/// Pieces with their log probabilities: specials, every character, and the
/// most frequent words.
fn vocabulary(reports: &str) -> Result<Vec<(String, f64)>, Box<dyn Error>> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for line in reports.lines() {
        let report: Value = serde_json::from_str(line)?;
        for word in report["text"]
            .as_str()
            .unwrap_or_default()
            .split_whitespace()
        {
            *counts.entry(format!("▁{word}")).or_default() += 10;
            for character in word.chars() {
                *counts.entry(character.to_string()).or_default() += 1;
            }
        }
    }
    counts.insert("▁".to_owned(), 1);
    let total = f64::from(counts.values().sum::<u32>());
    let (mut characters, mut words): (Vec<_>, Vec<_>) = counts
        .into_iter()
        .partition(|(piece, _)| piece.chars().count() == 1);
    // Sorted by name already, so that equal counts keep a stable order.
    words.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    words.truncate(WORDS);
    characters.append(&mut words);
    let specials = ["<s>", "<pad>", "</s>", "<unk>"].map(|special| (special.to_owned(), 0.0));
    let scored = characters
        .into_iter()
        .map(|(piece, count)| (piece, (f64::from(count) / total).ln()));
    Ok(specials.into_iter().chain(scored).collect())
}

fn tokenizer(vocabulary: &[(String, f64)]) -> Value {
    let added = |id: usize| {
        json!({
            "id": id, "content": vocabulary[id].0, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0), added(1), added(2), added(3)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
        ]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": false},
    })
}

fn calibration(taxonomy: &Taxonomy) -> Value {
    let heads: Map<String, Value> = taxonomy
        .heads()
        .iter()
        .map(|head| {
            let logits = head.logits().len();
            let thresholds = match head.kind() {
                HeadKind::SingleLabel => 0,
                _ => logits,
            };
            let calibration = json!({
                "encoder": 1.0,
                "lexical": 1.0,
                "bias": vec![0.0; logits],
                "thresholds": vec![0.5; thresholds],
            });
            (head.name().to_owned(), calibration)
        })
        .collect();
    json!({"version": 1, "heads": heads})
}

/// Random weights: norms near the identity, matrices with a spread that keeps
/// hidden states apart, heads with a spread that makes texts differ.
fn tensors(encoder: &EncoderConfig, taxonomy: &Taxonomy) -> Vec<NamedTensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (width, inner) = (encoder.hidden_size, encoder.intermediate_size);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], centre: f32, spread: f32| {
        let values = (0..shape.iter().product())
            .map(|_| centre + rng.random_range(-spread..spread))
            .collect();
        tensors.push(NamedTensor {
            name,
            shape: shape.to_vec(),
            values,
            dtype: TensorType::F16,
        });
    };
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for (name, rows) in [
        ("word", encoder.vocab_size),
        ("position", encoder.max_position_embeddings),
        ("token_type", encoder.type_vocab_size),
    ] {
        add(
            format!("embeddings.{name}_embeddings.weight"),
            &[rows, width],
            0.0,
            0.5,
        );
    }
    for layer in 0..encoder.num_hidden_layers {
        let layer = format!("encoder.layer.{layer}");
        for (name, outputs, inputs) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ] {
            add(
                format!("{layer}.{name}.weight"),
                &[outputs, inputs],
                0.0,
                0.3,
            );
            add(format!("{layer}.{name}.bias"), &[outputs], 0.0, 0.1);
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[width], 1.0, 0.1);
        add(format!("{norm}.bias"), &[width], 0.0, 0.1);
    }
    let (logits, queries) = (taxonomy.num_logits(), taxonomy.num_queries());
    for (name, shape, spread) in [
        (
            "label_attention.projection.weight",
            &[ATTENTION_SIZE, width][..],
            0.4,
        ),
        ("label_attention.projection.bias", &[ATTENTION_SIZE], 0.1),
        ("label_attention.queries", &[queries, ATTENTION_SIZE], 1.0),
        ("heads.context.weight", &[logits, width], 0.4),
        ("heads.pooled.weight", &[logits, 2 * width], 0.2),
        ("heads.bias", &[logits], 0.2),
    ] {
        add(name.to_owned(), shape, 0.0, spread);
    }
    tensors
}
