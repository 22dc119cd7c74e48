//! Assesses each line of standard input and prints one JSON object a line. A
//! model folder may be named; else the shipped model is used.
//!
//! ```console
//! echo "Brukaren fick dubbel dos insulin." | cargo run --release --example classify
//! ```

use lyhord::{Classifier, Report};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let classifier = match std::env::args().nth(1) {
        Some(dir) => Classifier::from_dir(dir)?,
        None => Classifier::embedded()?,
    };
    let lines = std::io::stdin().lines();
    let reports = lines
        .map_while(Result::ok)
        .zip(1_u64..)
        .map(|(line, number)| Report::new(line).with_id(number.to_string()));
    for assessment in classifier.assess_stream(reports) {
        match assessment {
            Ok(assessment) => println!("{}", serde_json::to_string(&assessment)?),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}
