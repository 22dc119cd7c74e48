//! Whole assessments with the shipped model, by length of text and threads, and
//! the time from the start of the program to its first answer:
//! `cargo bench --bench end_to_end` (`-- --quick` for a first look).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lyhord::{Classifier, ClassifierOptions, Precision, Report};
use std::process::Command;
use std::time::Duration;

/// Reports of about `tokens` tokens each, out of the words of the dev reports.
fn reports(classifier: &Classifier, tokens: usize, count: usize) -> Vec<Report> {
    let data = lyhord::train::read_labelled("fixtures/reports.dev.jsonl", classifier.taxonomy())
        .expect("the dev reports can be read");
    let words: Vec<&str> = data
        .iter()
        .flat_map(|r| r.text.split_whitespace())
        .collect();
    // Some 1.6 tokens a word.
    let length = (tokens * 5 / 8).max(1);
    (0..count)
        .map(|index| {
            let start = index * length % (words.len() - length);
            Report::new(words[start..start + length].join(" "))
        })
        .collect()
}

fn throughput(criterion: &mut Criterion) {
    for precision in [Precision::Int8, Precision::F32] {
        let mut group = criterion.benchmark_group(format!("texts, {precision}"));
        group.sample_size(10);
        for threads in [1, 2] {
            let classifier = ClassifierOptions::new()
                .threads(threads)
                .precision(precision)
                .embedded()
                .expect("a model is built in");
            for tokens in [20, 60, 160, 512, 2000] {
                let reports = reports(&classifier, tokens, (1000 / tokens).max(2));
                group.throughput(Throughput::Elements(reports.len() as u64));
                let name = format!("{tokens} tokens, threads");
                group.bench_with_input(
                    BenchmarkId::new(name, threads),
                    &reports,
                    |bencher, reports| {
                        bencher.iter(|| {
                            let assessments = classifier.assess_stream(reports.iter().cloned());
                            assert!(assessments.into_iter().all(|a| a.is_ok()));
                        });
                    },
                );
            }
        }
        group.finish();
    }
}

fn one_text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one text alone");
    for precision in [Precision::Int8, Precision::F32] {
        for (how, latency) in [("one thread", false), ("all threads share it", true)] {
            let classifier = ClassifierOptions::new()
                .precision(precision)
                .latency(latency)
                .embedded()
                .expect("a model is built in");
            let report = &reports(&classifier, 160, 1)[0];
            group.bench_function(format!("160 tokens, {precision}, {how}"), |bencher| {
                bencher.iter(|| classifier.assess(report).expect("the report has a text"));
            });
        }
    }
}

fn cold_start(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cold start");
    group.sample_size(10);
    group.bench_function("the program's first answer", |bencher| {
        bencher.iter(|| {
            let output = Command::new(env!("CARGO_BIN_EXE_lyhord"))
                .args(["classify", "--text", "Brukaren fick dubbel dos insulin."])
                .output()
                .expect("the program runs");
            assert!(output.status.success());
        });
    });
}

/// The most memory that this process has used, after all the above.
fn memory(_: &mut Criterion) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("peak memory, the models loaded one after the other: {line}");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).nresamples(10_000);
    targets = throughput, one_text, cold_start, memory
}
criterion_main!(benches);
