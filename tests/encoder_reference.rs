//! The encoder gives the numbers of other implementations on the same weights:
//! candle-transformers' stock BERT, and a float64 forward pass of the base
//! model where that is at hand.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use half::f16;
use lyhord::Precision;
use lyhord::model::{Encoder, EncoderConfig, Scratch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::path::Path;

fn config(model_type: &str, hidden_size: usize, heads: usize) -> EncoderConfig {
    EncoderConfig::from_json(
        &serde_json::json!({
            "model_type": model_type,
            "vocab_size": 50,
            "hidden_size": hidden_size,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "intermediate_size": 2 * hidden_size + 4,
            "max_position_embeddings": 80,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        })
        .to_string(),
    )
    .unwrap()
}

/// Random tensors in Hugging Face names.
fn tensors(config: &EncoderConfig, rng: &mut ChaCha8Rng) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let mut shapes = vec![
        (
            "embeddings.word_embeddings.weight".to_owned(),
            vec![config.vocab_size, width],
        ),
        (
            "embeddings.position_embeddings.weight".to_owned(),
            vec![config.max_position_embeddings, width],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![config.type_vocab_size, width],
        ),
    ];
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..config.num_hidden_layers {
        let layer = format!("encoder.layer.{layer}");
        for (name, outputs, inputs) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ] {
            shapes.push((format!("{layer}.{name}.weight"), vec![outputs, inputs]));
            shapes.push((format!("{layer}.{name}.bias"), vec![outputs]));
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![width]));
        shapes.push((format!("{norm}.bias"), vec![width]));
    }
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product();
            let values = (0..len)
                .map(|_| f16::from_f32(rng.random_range(-0.6..0.6)).to_f32())
                .collect();
            (name, shape, values)
        })
        .collect()
}

fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)], prefix: &str, dtype: Dtype) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| match dtype {
                    Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
                    _ => value.to_le_bytes().to_vec(),
                })
                .collect()
        })
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            let view = TensorView::new(dtype, shape.clone(), bytes).unwrap();
            (format!("{prefix}{name}"), view)
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}

fn stock(config: &EncoderConfig, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> bert::BertModel {
    let map: HashMap<String, Tensor> = tensors
        .iter()
        .map(|(name, shape, values)| {
            let tensor = Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap();
            (name.clone(), tensor)
        })
        .collect();
    let config = bert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        hidden_act: bert::HiddenAct::Gelu,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        layer_norm_eps: config.layer_norm_eps.into(),
        ..bert::Config::default()
    };
    let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
    bert::BertModel::load(vb, &config).unwrap()
}

fn stock_hidden(model: &bert::BertModel, ids: &[u32]) -> Vec<f32> {
    let ids = Tensor::new(ids, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let types = ids.zeros_like().unwrap();
    let hidden = model.forward(&ids, &types, None).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

fn ids(rng: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| rng.random_range(0..50)).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn f32_hidden_states_equal_stock_candle_bert_at_every_length() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (width, heads) in [(24, 3), (64, 4), (20, 5)] {
        let config = config("bert", width, heads);
        let tensors = tensors(&config, &mut rng);
        let stock = stock(&config, &tensors);
        let bytes = safetensors(&tensors, "", Dtype::F32);
        let encoder = Encoder::from_safetensors(&config, &bytes, Precision::F32).unwrap();
        let mut scratch = Scratch::new();
        for len in [2, 3, 7, 16, 33, 80, 5] {
            let ids = ids(&mut rng, len);
            let hidden = encoder.forward(&ids, &mut scratch).unwrap();
            let difference = largest_difference(hidden, &stock_hidden(&stock, &ids));
            assert!(
                difference <= 1e-4,
                "width {width}, {len} tokens: {difference}"
            );
        }
    }
}

#[test]
fn int8_hidden_states_point_the_same_way_as_stock_candle_bert() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let config = config("bert", 64, 4);
    let tensors = tensors(&config, &mut rng);
    let stock = stock(&config, &tensors);
    let bytes = safetensors(&tensors, "", Dtype::F16);
    let encoder = Encoder::from_safetensors(&config, &bytes, Precision::Int8).unwrap();
    let mut scratch = Scratch::new();
    for len in [2, 9, 80] {
        let ids = ids(&mut rng, len);
        let cosine = cosine(
            encoder.forward(&ids, &mut scratch).unwrap(),
            &stock_hidden(&stock, &ids),
        );
        assert!(cosine > 0.99, "{len} tokens: cosine {cosine}");
    }
}

/// How far int8 is from stock candle's BERT with the magnitudes of the named part's
/// inputs (of all for an empty name), as a share of how far without.
fn share_of_int8_error_left(part: &str, seed: u64) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let config = config("bert", 64, 4);
    let mut tensors = tensors(&config, &mut rng);
    // A column that is far larger than the others, as in trained encoders.
    let mut magnitudes = Vec::new();
    for (name, _, values) in &mut tensors {
        let Some(norm) = name.strip_suffix("LayerNorm.weight") else {
            continue;
        };
        values[3] *= 40.0;
        let layer = match norm.split('.').nth(2) {
            // What an attention block's norm gives goes to the feed-forward part.
            Some(layer) if norm.contains("attention") => {
                format!("encoder.layer.{layer}.intermediate.dense")
            }
            Some(layer) => {
                let next: usize = layer.parse::<usize>().unwrap() + 1;
                format!("encoder.layer.{next}.attention.self")
            }
            None => "encoder.layer.0.attention.self".to_owned(),
        };
        if !layer.contains(&format!(".{}.", config.num_hidden_layers)) {
            let values: Vec<f32> = values.iter().map(|x| 3.0 * x.abs()).collect();
            magnitudes.push((format!("{layer}.input_magnitudes"), vec![64], values));
        }
    }
    let stock = stock(&config, &tensors);
    let ids = ids(&mut rng, 60);
    let exact = stock_hidden(&stock, &ids);
    let error = |tensors: &[(String, Vec<usize>, Vec<f32>)]| {
        let bytes = safetensors(tensors, "", Dtype::F32);
        let encoder = Encoder::from_safetensors(&config, &bytes, Precision::Int8).unwrap();
        1.0 - cosine(encoder.forward(&ids, &mut Scratch::new()).unwrap(), &exact)
    };
    let without = error(&tensors);
    tensors.extend(magnitudes.into_iter().filter(|m| m.0.contains(part)));
    error(&tensors) / without
}

#[test]
fn magnitudes_beside_the_weights_bring_int8_nearer_to_stock_candle_bert() {
    // One draw says little: the share is between 0.01 and 85.
    const DRAWS: u64 = 16;
    for (part, most) in [
        ("attention.self", 0.9),
        ("intermediate.dense", 0.9),
        ("", 0.6),
    ] {
        let logs = (1..=DRAWS).map(|seed| share_of_int8_error_left(part, seed).ln());
        let share = (logs.sum::<f64>() / DRAWS as f64).exp();
        assert!(share < most, "{part}: {share}");
    }
}

#[test]
fn int8_heeds_the_magnitudes_of_every_linear_layer_and_f32_none() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let config = config("bert", 64, 4);
    let tensors = tensors(&config, &mut rng);
    let ids = ids(&mut rng, 60);
    let hidden = |tensors: &[(String, Vec<usize>, Vec<f32>)], precision| {
        let bytes = safetensors(tensors, "", Dtype::F32);
        let encoder = Encoder::from_safetensors(&config, &bytes, precision).unwrap();
        encoder.forward(&ids, &mut Scratch::new()).unwrap().to_vec()
    };
    let [exact, without] = [Precision::F32, Precision::Int8].map(|p| hidden(&tensors, p));
    for layer in 0..config.num_hidden_layers {
        for (part, inputs) in [
            ("attention.self", config.hidden_size),
            ("attention.output.dense", config.hidden_size),
            ("intermediate.dense", config.hidden_size),
            ("output.dense", config.intermediate_size),
        ] {
            let name = format!("encoder.layer.{layer}.{part}.input_magnitudes");
            let values = (0..inputs).map(|i| 1.0 + (i % 3) as f32).collect();
            let mut known = tensors.clone();
            known.push((name.clone(), vec![inputs], values));
            assert_eq!(hidden(&known, Precision::F32), exact, "{name}");
            let with = hidden(&known, Precision::Int8);
            assert_ne!(with, without, "{name}");
            let cosine = cosine(&with, &exact);
            assert!(cosine > 0.99, "{name}: cosine {cosine}");
        }
    }
}

#[test]
fn prefixed_and_half_precision_weights_load_as_the_same_encoder() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let config = config("bert", 24, 3);
    let tensors = tensors(&config, &mut rng);
    let ids = ids(&mut rng, 11);
    let hidden: Vec<Vec<f32>> = [
        ("", Dtype::F32),
        ("bert.", Dtype::F16),
        ("roberta.", Dtype::F32),
    ]
    .iter()
    .map(|(prefix, dtype)| {
        let bytes = safetensors(&tensors, prefix, *dtype);
        let encoder = Encoder::from_safetensors(&config, &bytes, Precision::F32).unwrap();
        encoder.forward(&ids, &mut Scratch::new()).unwrap().to_vec()
    })
    .collect();
    assert_eq!(hidden[0], hidden[1]);
    assert_eq!(hidden[0], hidden[2]);
}

#[test]
fn an_xlm_roberta_encoder_counts_positions_from_after_the_padding_id() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let bert = config("bert", 24, 3);
    let tensors = tensors(&bert, &mut rng);
    let xlm_roberta = config("xlm-roberta", 24, 3);
    assert_eq!(xlm_roberta.max_tokens(), bert.max_tokens() - 2);
    let ids = ids(&mut rng, 11);
    // The same encoder by stock BERT, with the position rows moved up by two.
    let mut moved = tensors.clone();
    for (name, shape, values) in &mut moved {
        if name.contains("position") {
            values.drain(..2 * shape[1]);
            values.extend(vec![0.0; 2 * shape[1]]);
        }
    }
    let bytes = safetensors(&tensors, "roberta.", Dtype::F32);
    let encoder = Encoder::from_safetensors(&xlm_roberta, &bytes, Precision::F32).unwrap();
    let mut scratch = Scratch::new();
    let hidden = encoder.forward(&ids, &mut scratch).unwrap();
    let difference = largest_difference(hidden, &stock_hidden(&stock(&bert, &moved), &ids));
    assert!(difference <= 1e-4, "{difference}");
}

#[test]
fn a_window_gives_the_same_bytes_whatever_was_encoded_before_it() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let config = config("bert", 64, 4);
    let bytes = safetensors(&tensors(&config, &mut rng), "", Dtype::F32);
    let window = ids(&mut rng, 23);
    for precision in [Precision::F32, Precision::Int8] {
        let encoder = Encoder::from_safetensors(&config, &bytes, precision).unwrap();
        let alone = encoder
            .forward(&window, &mut Scratch::new())
            .unwrap()
            .to_vec();
        let mut scratch = Scratch::new();
        for len in [80, 2, 40] {
            encoder.forward(&ids(&mut rng, len), &mut scratch).unwrap();
            assert_eq!(encoder.forward(&window, &mut scratch).unwrap(), alone);
        }
        // Inside a pool of several threads the sums are the same, too.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .unwrap();
        let spread = pool.install(|| {
            encoder
                .forward(&window, &mut Scratch::new())
                .unwrap()
                .to_vec()
        });
        assert_eq!(spread, alone);
    }
}

#[test]
fn a_window_that_cannot_be_encoded_is_refused_with_its_length_or_id() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let config = config("bert", 24, 3);
    let bytes = safetensors(&tensors(&config, &mut rng), "", Dtype::F32);
    let encoder = Encoder::from_safetensors(&config, &bytes, Precision::F32).unwrap();
    let mut scratch = Scratch::new();
    for (ids, message) in [
        (vec![], "0 tokens"),
        (vec![0; 81], "81 tokens"),
        (vec![0, 50], "id 50"),
    ] {
        let error = encoder.forward(&ids, &mut scratch).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// Runs only where `models/base/import_base.py` has built the base encoder.
#[test]
fn the_base_encoder_equals_its_float64_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = root.join("models/base/multilingual-e5-small-sv");
    let parity = root.join("fixtures/parity/encoder.json");
    let (Ok(config), Ok(weights), Ok(parity)) = (
        std::fs::read_to_string(base.join("config.json")),
        std::fs::read(base.join("model.safetensors")),
        std::fs::read_to_string(parity),
    ) else {
        eprintln!("skipped: the base encoder is not built");
        return;
    };
    let config = EncoderConfig::from_json(&config).unwrap();
    let parity: serde_json::Value = serde_json::from_str(&parity).unwrap();
    let floats = |value: &serde_json::Value| -> Vec<f32> {
        let values = value.as_array().unwrap().iter();
        values.map(|value| value.as_f64().unwrap() as f32).collect()
    };
    for (precision, allowed) in [(Precision::F32, 1e-4), (Precision::Int8, 0.2)] {
        let encoder = Encoder::from_safetensors(&config, &weights, precision).unwrap();
        let mut scratch = Scratch::new();
        for case in parity["cases"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let hidden = encoder.forward(&ids, &mut scratch).unwrap();
            let mut mean = vec![0.0; config.hidden_size];
            for row in hidden.chunks_exact(config.hidden_size) {
                for (mean, value) in mean.iter_mut().zip(row) {
                    *mean += value / ids.len() as f32;
                }
            }
            let bos = floats(&case["bos"]);
            let (first, average) = (
                largest_difference(&hidden[..config.hidden_size], &bos),
                largest_difference(&mean, &floats(&case["mean"])),
            );
            eprintln!(
                "{precision} {} tokens: bos {first}, mean {average}",
                ids.len()
            );
            assert!(first <= allowed && average <= allowed, "{first} {average}");
        }
    }
}
