//! A broken bundle is refused with a message that says exactly what is wrong.

use lyhord::{Classifier, ErrorKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Files = BTreeMap<String, Vec<u8>>;

/// The files of the tiny bundle.
fn tiny() -> Files {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-bundle");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

/// The tiny bundle after a change, its manifest made to match.
fn changed(change: impl FnOnce(&mut Files)) -> Files {
    let mut files = tiny();
    change(&mut files);
    let mut manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let hashes = manifest.get_mut("files").and_then(Value::as_object_mut);
    for (name, hash) in hashes.into_iter().flatten() {
        if let Some(bytes) = files.get(name) {
            *hash = json!(sha256(bytes));
        }
    }
    files.insert(
        "manifest.json".into(),
        serde_json::to_vec(&manifest).unwrap(),
    );
    files
}

/// The tiny bundle with one of its JSON files changed.
fn changed_json(name: &str, change: impl FnOnce(&mut Value)) -> Files {
    changed(|files| {
        let mut value: Value = serde_json::from_slice(&files[name]).unwrap();
        change(&mut value);
        files.insert(name.into(), serde_json::to_vec(&value).unwrap());
    })
}

/// The tiny bundle with the header of its weights changed.
fn changed_header(change: impl FnOnce(&mut Value)) -> Files {
    changed(|files| {
        let weights = &files["model.safetensors"];
        let (length, rest) = weights.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&rest[..length]).unwrap();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(&rest[length..]);
        files.insert("model.safetensors".into(), bytes);
    })
}

#[track_caller]
fn refused(files: Files, parts: &[&str]) {
    let error = Classifier::from_bytes(files).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "`{part}` is not in: {error}"
        );
    }
}

#[test]
fn a_whole_bundle_loads_from_its_folder_and_from_bytes_as_the_same_model() {
    let from_bytes = Classifier::from_bytes(tiny()).unwrap();
    let from_dir = Classifier::from_dir("fixtures/tiny-bundle").unwrap();
    assert_eq!(from_bytes.model(), from_dir.model());
    let hash = sha256(&tiny()["manifest.json"]);
    assert_eq!(from_dir.model().sha256(), hash);
    assert_eq!(from_dir.model().name(), "tiny");
}

#[test]
fn a_bundle_whose_manifest_was_made_anew_still_loads() {
    Classifier::from_bytes(changed(|_| {})).unwrap();
}

#[test]
fn a_folder_that_is_not_a_bundle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Classifier::from_dir(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle);
    let message = error.to_string();
    assert!(
        message.contains(&folder.path().display().to_string()),
        "{message}"
    );
    assert!(message.contains("is not a model bundle"), "{message}");
    assert!(message.contains("manifest.json"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "taxonomy.toml",
        "calibration.json",
        "MODEL_CARD.md",
    ] {
        let mut files = tiny();
        files.remove(name);
        refused(files, &["has no file", name]);

        let folder = tempfile::tempdir().unwrap();
        for (file, bytes) in tiny().iter().filter(|(file, _)| *file != name) {
            std::fs::write(folder.path().join(file), bytes).unwrap();
        }
        let error = Classifier::from_dir(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidBundle);
        let message = error.to_string();
        assert!(
            message.contains(&format!("has no file {name}")),
            "{message}"
        );
    }
}

#[test]
fn a_manifest_without_the_hash_of_a_part_is_refused() {
    let files = changed_json("manifest.json", |manifest| {
        manifest["files"]
            .as_object_mut()
            .unwrap()
            .remove("taxonomy.toml");
    });
    refused(files, &["manifest.json", "without a hash of taxonomy.toml"]);
}

#[test]
fn a_manifest_that_reaches_out_of_the_folder_is_refused() {
    for name in ["../secret", "/etc/passwd", "a/b", ".."] {
        let files = changed_json("manifest.json", |manifest| {
            manifest["files"][name] = json!("00");
        });
        refused(files, &[name, "not a plain file name"]);
    }
}

#[test]
fn truncated_weights_are_called_truncated() {
    for length in [0, 5, 100, 20_000] {
        let mut files = tiny();
        files.get_mut("model.safetensors").unwrap().truncate(length);
        refused(
            files,
            &["model.safetensors", "truncated", &format!("{length} bytes")],
        );
        // Also when the manifest was made from the truncated file.
        let files = changed(|files| files.get_mut("model.safetensors").unwrap().truncate(length));
        refused(files, &["model.safetensors", "truncated"]);
    }
}

#[test]
fn a_file_with_another_hash_is_named_with_both_hashes() {
    let mut files = tiny();
    files.get_mut("tokenizer.json").unwrap().push(b'\n');
    let found = sha256(&files["tokenizer.json"]);
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let stated = manifest["files"]["tokenizer.json"]
        .as_str()
        .unwrap()
        .to_owned();
    refused(files, &["tokenizer.json", "sha256", &found, &stated]);
}

#[test]
fn an_unknown_format_version_is_stated() {
    let files = changed_json("manifest.json", |manifest| {
        *manifest = json!({"format": "lyhord-bundle", "format_version": 7});
    });
    refused(files, &["format version 7", "reads version 1"]);
    let files = changed_json("manifest.json", |manifest| {
        manifest["format"] = json!("zip")
    });
    refused(files, &["format `zip`"]);
    let mut files = tiny();
    files.insert("manifest.json".into(), b"[]".to_vec());
    refused(files, &["manifest.json", "not one of a bundle"]);
}

#[test]
fn a_vocabulary_of_another_size_is_refused_with_both_sizes() {
    let vocabulary =
        serde_json::from_slice::<Value>(&tiny()["config.json"]).unwrap()["encoder"]["vocab_size"]
            .as_u64()
            .unwrap();
    // config.json against the tokeniser and the embeddings.
    let files = changed_json("config.json", |config| {
        config["encoder"]["vocab_size"] = json!(vocabulary + 1);
    });
    refused(
        files,
        &[
            &vocabulary.to_string(),
            &(vocabulary + 1).to_string(),
            "embeddings",
        ],
    );
    // The tokeniser against config.json.
    let files = changed_json("tokenizer.json", |tokenizer| {
        let pieces = tokenizer["model"]["vocab"].as_array_mut().unwrap();
        pieces.push(json!(["▁one", -9.0]));
    });
    refused(files, &["tokenizer.json", &(vocabulary + 1).to_string()]);
    let files = changed_json("tokenizer.json", |tokenizer| {
        let pieces = tokenizer["model"]["vocab"].as_array_mut().unwrap();
        pieces.truncate(100);
    });
    refused(files, &["tokenizer.json", "a vocabulary of 100"]);
}

#[test]
fn a_label_that_stands_twice_is_named() {
    let files = changed(|files| {
        let taxonomy = String::from_utf8(files["taxonomy.toml"].clone()).unwrap();
        let twice = taxonomy.replace("[risk_area]", "[risk_area]\nfall = \"Fall\"");
        files.insert("taxonomy.toml".into(), twice.into_bytes());
    });
    refused(files, &["taxonomy.toml", "duplicate key", "fall"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let files = changed_header(|header| {
        header["heads.bias"]["shape"] = json!([1, 40]);
    });
    refused(files, &["heads.bias", "[1, 40]", "[40]"]);
    // A taxonomy with one label more needs heads with one logit more.
    let files = changed(|files| {
        let taxonomy = String::from_utf8(files["taxonomy.toml"].clone()).unwrap();
        let more = taxonomy.replace("[report_type]", "[report_type]\nbrev = \"Brev\"");
        files.insert("taxonomy.toml".into(), more.into_bytes());
        let mut calibration: Value = serde_json::from_slice(&files["calibration.json"]).unwrap();
        let bias = calibration["heads"]["report_type"]["bias"]
            .as_array_mut()
            .unwrap();
        bias.push(json!(0.0));
        files.insert(
            "calibration.json".into(),
            serde_json::to_vec(&calibration).unwrap(),
        );
    });
    refused(files, &["heads.context.weight", "[40, 32]", "[41, 32]"]);
}

#[test]
fn a_missing_and_an_extra_tensor_are_named() {
    let rename = |from: &'static str, to: &'static str| {
        changed_header(|header| {
            let tensors = header.as_object_mut().unwrap();
            let tensor = tensors.remove(from).unwrap();
            tensors.insert(to.to_owned(), tensor);
        })
    };
    refused(
        rename("label_attention.queries", "label_attention.keys"),
        &["no tensor label_attention.queries"],
    );
    let files = changed_json("config.json", |config| {
        config["encoder"]["num_hidden_layers"] = json!(1);
    });
    refused(files, &["encoder.layer.1.", "no part of the model uses"]);
    refused(
        rename("embeddings.word_embeddings.weight", "embeddings.words"),
        &["no tensor embeddings.word_embeddings.weight"],
    );
}

#[test]
fn a_tensor_of_another_type_is_named() {
    let files = changed_header(|header| header["heads.bias"]["dtype"] = json!("I16"));
    refused(files, &["heads.bias", "I16"]);
}

#[test]
fn a_calibration_for_other_heads_is_refused() {
    let files = changed_json("calibration.json", |calibration| {
        let bias = calibration["heads"]["severity"]["bias"]
            .as_array_mut()
            .unwrap();
        bias.pop();
    });
    refused(files, &["calibration.json", "severity", "bias"]);
}

#[test]
fn a_config_that_no_encoder_has_is_refused() {
    for (field, value, part) in [
        ("model_type", json!("gpt2"), "gpt2"),
        ("hidden_act", json!("relu"), "relu"),
        ("num_attention_heads", json!(5), "num_attention_heads 5"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        (
            "max_position_embeddings",
            json!(2),
            "max_position_embeddings 2",
        ),
        ("max_position_embeddings", json!(32), "windows of 62 tokens"),
        (
            "position_embedding_type",
            json!("relative_key"),
            "relative_key",
        ),
        ("bos_token_id", json!(100_000), "bos_token_id"),
        ("hidden_size", Value::Null, "config.json"),
    ] {
        let files = changed_json("config.json", |config| config["encoder"][field] = value);
        refused(files, &["config.json", part]);
    }
    let files = changed_json("config.json", |config| {
        config["window"]["overlap"] = json!(62)
    });
    refused(files, &["overlap of 62"]);
    let files = changed_json("config.json", |config| {
        config["window"]["max_tokens"] = json!(u64::MAX)
    });
    refused(files, &["windows of"]);
    let files = changed_json("config.json", |config| {
        config["label_attention"]["attention_size"] = json!(0)
    });
    refused(files, &["attention_size"]);
    let files = changed_json("config.json", |config| {
        config["encoder"]["num_hidden_layers"] = json!(1_000_000_000_000_u64)
    });
    refused(files, &["model.safetensors"]);
    let files = changed_json("config.json", |config| config["name"] = json!("other"));
    refused(files, &["`other`", "`tiny`"]);
}

#[test]
fn any_byte_that_is_changed_is_noticed() {
    for name in tiny().keys().filter(|name| *name != "manifest.json") {
        let mut files = tiny();
        let bytes = files.get_mut(name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        refused(files, &[name]);
    }
}
