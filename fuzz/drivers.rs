//! What the fuzz targets do with bytes. `tests/bulk_fuzz.rs` drives the same
//! over the corpus for a few seconds.
#![allow(dead_code, reason = "each target uses one of them")]

use lyhord::bulk::{Input, ReadOptions, rows};
use lyhord::{Classifier, Report};
use sha2::{Digest, Sha256};

/// Lets a fuzz target go on after a panic of a library that is caught and told
/// as an error. One that is not caught ends the target all the same.
pub fn let_caught_panics_be() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

/// Reads bytes as a file of that name: no panic, and rows that are numbered
/// one after the other.
pub fn reader(name: &str, bytes: &[u8]) {
    let input = Input::Bytes {
        name: name.into(),
        bytes: bytes.into(),
    };
    let mut options = ReadOptions::default();
    options.keep = true;
    let Ok(rows) = rows(&input, &options) else {
        return;
    };
    for (number, row) in (1..).zip(rows) {
        let Ok(row) = row else { return };
        assert_eq!(row.place.row, number);
        assert!(row.place.line >= 1);
    }
}

/// The files of a bundle that a model is read from.
const FILES: [&str; 6] = [
    "manifest.json",
    "config.json",
    "calibration.json",
    "taxonomy.toml",
    "tokenizer.json",
    "model.safetensors",
];

/// Puts bytes in place of a file of a small whole bundle, with their hash in
/// the manifest; the first byte says which file. The bundle is refused or
/// works, and nothing panics.
pub fn bundle(bytes: &[u8]) {
    let Some((which, content)) = bytes.split_first() else {
        return;
    };
    let replaced = FILES[usize::from(*which) % FILES.len()];
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, whole) in BUNDLE {
        files.push(match name {
            _ if name == replaced => (name, content.to_vec()),
            "manifest.json" => (name, manifest(whole, replaced, content)),
            _ => (name, whole.to_vec()),
        });
    }
    if let Ok(classifier) = Classifier::from_bytes(files) {
        let _ = classifier.assess(&Report::new("Ingen kom."));
    }
}

/// A manifest with the hash of a file's new content.
fn manifest(whole: &[u8], replaced: &str, content: &[u8]) -> Vec<u8> {
    let mut manifest: serde_json::Value = serde_json::from_slice(whole).unwrap();
    let hash = Sha256::digest(content);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    manifest["files"][replaced] = hash.into();
    serde_json::to_vec(&manifest).unwrap()
}

macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../fixtures/tiny-bundle/", $name)).as_slice(),
        )
    };
}

const BUNDLE: [(&str, &[u8]); 7] = [
    file!("manifest.json"),
    file!("config.json"),
    file!("calibration.json"),
    file!("taxonomy.toml"),
    file!("tokenizer.json"),
    file!("model.safetensors"),
    file!("MODEL_CARD.md"),
];
