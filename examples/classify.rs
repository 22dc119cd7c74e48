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
    // A line that is not UTF-8 ends the program with an error, not the input.
    let lines: Vec<String> = std::io::stdin().lines().collect::<Result<_, _>>()?;
    let reports = lines
        .into_iter()
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
