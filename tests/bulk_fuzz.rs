//! The fuzz targets, with any compiler: over the corpus, and over mutations of
//! it for some seconds (`LYHORD_FUZZ_SECONDS`, by default 2 for each target).

#[path = "../fuzz/drivers.rs"]
mod drivers;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

fn fuzz(target: &str, drive: impl Fn(&[u8])) {
    let seed = match std::env::var("LYHORD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    println!("LYHORD_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut paths: Vec<_> = fs::read_dir(format!("fixtures/fuzz/{target}"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!corpus.is_empty());
    for bytes in &corpus {
        drive(bytes);
    }
    let seconds = std::env::var("LYHORD_FUZZ_SECONDS").ok();
    let seconds = seconds.map_or(2, |seconds| seconds.parse().unwrap());
    let started = Instant::now();
    let mut runs = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        drive(&mutated(&corpus, &mut random));
        runs += 1;
    }
    println!("{target}: {runs} runs");
}

/// One of the corpus with a few bytes changed, cut out, doubled or brought in
/// from another.
fn mutated(corpus: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let length = bytes.len();
        if length == 0 {
            return bytes;
        }
        let start = random.random_range(0..length);
        let end = (start + random.random_range(1..40)).min(length);
        match random.random_range(0..6) {
            0 => bytes[start] = random.random(),
            1 => bytes[start] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(start..end)),
            3 => {
                let part = bytes[start..end].to_vec();
                bytes.splice(start..start, part);
            }
            4 => bytes.truncate(start),
            _ => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = random.random_range(0..other.len().max(1)).min(other.len());
                let to = (from + end - start).min(other.len());
                bytes.splice(start..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn csv_is_read_or_refused() {
    fuzz("csv", |bytes| drivers::reader("a.csv", bytes));
}

#[test]
fn jsonl_is_read_or_refused() {
    fuzz("jsonl", |bytes| drivers::reader("a.jsonl", bytes));
}

#[test]
fn texts_are_read_or_refused() {
    fuzz("text", |bytes| drivers::reader("a.txt", bytes));
}

#[test]
fn parquet_is_read_or_refused() {
    fuzz("parquet", |bytes| drivers::reader("a.parquet", bytes));
}

#[test]
fn workbooks_are_read_or_refused() {
    fuzz("xlsx", |bytes| drivers::reader("a.xlsx", bytes));
}

#[test]
fn bundles_are_loaded_or_refused() {
    fuzz("bundle", drivers::bundle);
}
