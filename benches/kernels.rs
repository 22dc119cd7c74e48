//! The encoder's parts one by one, on one thread, in the shapes of the shipped
//! model: `cargo bench --bench kernels` (`-- --quick` for a first look).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use lyhord::Precision;
use lyhord::model::kernels::{
    Activation, AddNorm, AttentionHead, BiasActivation, Gemm, Linear, SimdOp, feed_forward,
};
use std::hint::black_box;
use std::time::Duration;

const HIDDEN: usize = 384;
const INNER: usize = 1536;
const HEAD: usize = 32;
const TOKENS: usize = 160;

/// Numbers without a pattern between -1 and 1.
fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

fn linear(inputs: usize, outputs: usize, precision: Precision) -> Linear {
    let weight = numbers(inputs * outputs);
    Linear::new(
        &Gemm::default(),
        &weight,
        numbers(outputs),
        inputs,
        &[],
        precision,
    )
    .expect("the shapes fit")
}

fn matrix_products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    for precision in [Precision::F32, Precision::Int8] {
        for (name, inputs, outputs) in [
            ("qkv", HIDDEN, 3 * HIDDEN),
            ("attention output", HIDDEN, HIDDEN),
            ("intermediate", HIDDEN, INNER),
            ("output", INNER, HIDDEN),
        ] {
            let layer = linear(inputs, outputs, precision);
            let (x, mut out) = (numbers(TOKENS * inputs), vec![0.0; TOKENS * outputs]);
            let mut gemm = Gemm::default();
            // Multiplications, so that criterion prints them per second.
            group.throughput(Throughput::Elements((TOKENS * inputs * outputs) as u64));
            group.bench_function(format!("{name} {precision}"), |bencher| {
                bencher.iter(|| {
                    layer
                        .forward(&mut gemm, black_box(&x), TOKENS, Activation::None, &mut out)
                        .expect("the shapes fit")
                });
            });
        }
        let layers = [
            linear(HIDDEN, INNER, precision),
            linear(INNER, HIDDEN, precision),
        ];
        let (x, mut out) = (numbers(TOKENS * HIDDEN), vec![0.0; TOKENS * HIDDEN]);
        let (mut gemm, mut between) = (Gemm::default(), Vec::new());
        group.throughput(Throughput::Elements((2 * TOKENS * HIDDEN * INNER) as u64));
        group.bench_function(format!("feed forward {precision}"), |bencher| {
            bencher.iter(|| {
                let layers = [&layers[0], &layers[1]];
                feed_forward(
                    layers,
                    &mut gemm,
                    black_box(&x),
                    TOKENS,
                    &mut between,
                    &mut out,
                )
                .expect("the shapes fit")
            });
        });
    }
}

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention, all heads");
    for tokens in [20, 60, 160, 510] {
        let qkv = numbers(tokens * 3 * HIDDEN);
        let (mut context, mut scratch) = (vec![0.0; tokens * HIDDEN], Vec::new());
        group.throughput(Throughput::Elements((2 * tokens * tokens * HIDDEN) as u64));
        group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
            bencher.iter(|| {
                for offset in (0..HIDDEN).step_by(HEAD) {
                    AttentionHead {
                        qkv: black_box(&qkv),
                        context: &mut context,
                        tokens,
                        queries: 0..tokens,
                        hidden: HIDDEN,
                        offset,
                        size: HEAD,
                        scratch: &mut scratch,
                    }
                    .dispatch();
                }
            });
        });
    }
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    let (added, weight, bias) = (numbers(TOKENS * HIDDEN), numbers(HIDDEN), numbers(HIDDEN));
    let mut hidden = numbers(TOKENS * HIDDEN);
    group.throughput(Throughput::Elements((TOKENS * HIDDEN) as u64));
    group.bench_function("residual and layer norm", |bencher| {
        bencher.iter(|| {
            AddNorm {
                hidden: black_box(&mut hidden),
                added: &added,
                weight: &weight,
                bias: &bias,
                eps: 1e-12,
            }
            .dispatch();
        });
    });
    let (fresh, bias) = (numbers(TOKENS * INNER), vec![0.0; INNER]);
    let mut values = fresh.clone();
    group.throughput(Throughput::Elements((TOKENS * INNER) as u64));
    group.bench_function("bias and GELU, and a copy", |bencher| {
        bencher.iter(|| {
            // GELU of GELU ends in numbers that processors are slow at.
            values.copy_from_slice(&fresh);
            BiasActivation {
                values: black_box(&mut values),
                bias: &bias,
                activation: Activation::Gelu,
            }
            .dispatch();
        });
    });
}

fn tokeniser(criterion: &mut Criterion) {
    let tokenizer = tokenizers::Tokenizer::from_file("models/lyhord-small-sv/tokenizer.json")
        .expect("the shipped model has a tokeniser");
    let text = "Brukaren fick dubbel dos insulin på kvällen och hittades medvetslös. ".repeat(10);
    let mut group = criterion.benchmark_group("tokeniser");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("700 characters", |bencher| {
        bencher.iter(|| {
            tokenizer
                .encode_fast(black_box(text.as_str()), false)
                .expect("any text can be tokenised")
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).nresamples(10_000);
    targets = matrix_products, attention, rows, tokeniser
}

fn main() {
    // A product alone would be shared between all cores.
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .expect("no pool has been started yet");
    benches();
    Criterion::default().configure_from_args().final_summary();
}
