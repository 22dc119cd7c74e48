//! Lyhörd's side of the comparison with other engines: loads a model once, then
//! does a round over all texts for each line on standard input and answers with
//! the seconds it took. `peers.py` drives it.
//!
//! ```text
//! cargo bench --bench peer -- MODEL TEXTS.jsonl f32|int8 THREADS [LOGITS.jsonl]
//! cargo bench --bench peer -- MODEL TEXTS.jsonl alone-f32|alone-int8 THREADS
//! cargo bench --bench peer -- MODEL TEXTS.jsonl gemm-f32|gemm-int8 THREADS
//! ```
//!
//! The second form lets all threads share each text. The third runs nothing but the encoder's weight products, at each
//! text's length: what is left when everything else costs nothing.

use lyhord::model::EncoderConfig;
use lyhord::{Classifier, ClassifierOptions, Precision, Report};
use rten_gemm::{
    GemmExecutor, GemmInT, GemmInputA, GemmInputB, GemmOptions, GemmOutT, PackedBMatrix,
};
use rten_tensor::Matrix;
use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench` to what the user states.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut next = |what: &str| args.next().ok_or(format!("{what} is not stated"));
    let (model, texts) = (next("the model's folder")?, next("the file of texts")?);
    let what = next("the precision")?;
    let threads: usize = next("the number of threads")?.parse()?;
    let logits = args.next();
    let reports: Vec<Report> = std::fs::read_to_string(texts)?
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line)?;
            let text = record["text"].as_str().ok_or("a line has no text")?;
            Ok(Report::new(text))
        })
        .collect::<Result<_, Box<dyn Error>>>()?;
    match what.strip_prefix("gemm-") {
        Some(precision) => {
            let classifier = Classifier::from_dir(&model)?;
            let lengths = reports
                .iter()
                // The two special tokens are encoded as well.
                .map(|report| Ok(classifier.attend(report)?.tokens().len() + 2))
                .collect::<lyhord::Result<Vec<usize>>>()?;
            drop(classifier);
            let config: serde_json::Value =
                serde_json::from_slice(&std::fs::read(format!("{model}/config.json"))?)?;
            let config = EncoderConfig::from_json(&config["encoder"].to_string())?;
            match precision.parse()? {
                Precision::F32 => {
                    let products = Products::<f32, f32, f32>::new(&config, 0.5, 0.5);
                    rounds(|| products.round(&lengths, threads))
                }
                _ => {
                    let products = Products::<u8, i8, i32>::new(&config, 7, 7);
                    rounds(|| products.round(&lengths, threads))
                }
            }
        }
        None => {
            let alone = what.strip_prefix("alone-");
            let options = ClassifierOptions::new()
                .precision(alone.unwrap_or(&what).parse()?)
                .threads(threads)
                .latency(alone.is_some());
            classify(&options.from_dir(&model)?, &reports, logits)
        }
    }
}

/// Answers each line of standard input with the seconds of a round.
fn rounds(mut round: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready")?;
    stdout.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        round()?;
        writeln!(stdout, "{}", start.elapsed().as_secs_f64())?;
        stdout.flush()?;
    }
    Ok(())
}

fn classify(
    classifier: &Classifier,
    reports: &[Report],
    logits: Option<String>,
) -> Result<(), Box<dyn Error>> {
    if let Some(path) = logits {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for report in reports {
            serde_json::to_writer(&mut file, &classifier.encoder_logits(report)?)?;
            writeln!(file)?;
        }
        file.flush()?;
    }
    rounds(|| {
        let assessments = classifier.assess_stream(reports.iter().cloned());
        match assessments.filter(Result::is_ok).count() == reports.len() {
            true => Ok(()),
            false => Err("a text was not assessed".into()),
        }
    })?;
    if let Some(timings) = classifier.timings() {
        eprint!("{timings}");
    }
    Ok(())
}

/// The weight products of one layer, with weights packed beforehand.
struct Products<A: GemmInT, B: GemmInT, C: GemmOutT> {
    gemm: GemmExecutor<A, B, C>,
    weights: Vec<(usize, PackedBMatrix<B>)>,
    layers: usize,
    input: A,
}

impl<A, B, C> Products<A, B, C>
where
    A: GemmInT,
    B: GemmInT,
    C: GemmOutT,
    GemmExecutor<A, B, C>: Default,
    PackedBMatrix<B>: Sync,
{
    fn new(config: &EncoderConfig, input: A, weight: B) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let gemm = GemmExecutor::<A, B, C>::default();
        let shapes = [
            (width, 3 * width),
            (width, width),
            (width, inner),
            (inner, width),
        ];
        let weights = shapes
            .into_iter()
            .map(|(inputs, outputs)| {
                let values = vec![weight; inputs * outputs];
                (
                    inputs,
                    gemm.prepack_b(Matrix::from_data([inputs, outputs], values.as_slice())),
                )
            })
            .collect();
        Self {
            gemm,
            weights,
            layers: config.num_hidden_layers,
            input,
        }
    }

    fn round(&self, lengths: &[usize], threads: usize) -> Result<(), Box<dyn Error>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            pool.is_ok_and(|pool| pool.install(|| self.run(lengths, &next)))
        };
        let done = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .all(|thread| thread.join().unwrap_or(false))
        });
        done.then_some(()).ok_or_else(|| "a product failed".into())
    }

    fn run(&self, lengths: &[usize], next: &AtomicUsize) -> bool {
        let (mut input, mut output) = (Vec::new(), Vec::new());
        while let Some(rows) = lengths.get(next.fetch_add(1, Ordering::Relaxed)) {
            for _ in 0..self.layers {
                for (inputs, weight) in &self.weights {
                    input.resize(rows * inputs, self.input);
                    output.resize(rows * weight.cols(), C::default());
                    let product = self.gemm.gemm(
                        &mut output[..rows * weight.cols()],
                        GemmInputA::Unpacked(Matrix::from_data(
                            [*rows, *inputs],
                            &input[..rows * inputs],
                        )),
                        GemmInputB::Packed(weight),
                        GemmOptions::default(),
                    );
                    if product.is_err() {
                        return false;
                    }
                }
            }
        }
        true
    }
}
