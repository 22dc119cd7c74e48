//! Assesses each line of standard input with a model folder and prints one
//! JSON object a line.
//!
//! ```console
//! echo "Brukaren fick dubbel dos insulin." | cargo run --release --example classify -- fixtures/tiny-bundle
//! ```

use lyhord::{Classifier, Report};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("name a model folder")?;
    let classifier = Classifier::from_dir(dir)?;
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
