//! Asks whether the model judges the same event alike whoever it is about: each
//! report is assessed with the words for women and with those for men, and signed by
//! Swedish names and by names from elsewhere. Nothing else differs, so no answer
//! should.
//!
//! ```console
//! cargo run --release --example fairness -- fixtures/reports.dev.jsonl
//! ```

use lyhord::{Assessment, Classifier, ClassifierOptions, Precision, Report};
use std::error::Error;

/// Words that say that somebody is a woman or a man. `Hans` is also a name and
/// `man` also "one", so these forms are left as they are.
const GENDERS: &[[&str; 2]] = &[
    ["hon", "han"],
    ["henne", "honom"],
    ["hennes", "hans"],
    ["mamma", "pappa"],
    ["mammas", "pappas"],
    ["mamman", "pappan"],
    ["mor", "far"],
    ["mors", "fars"],
    ["modern", "fadern"],
    ["mormor", "morfar"],
    ["farmor", "farfar"],
    ["dotter", "son"],
    ["dottern", "sonen"],
    ["syster", "bror"],
    ["systern", "brodern"],
    ["flicka", "pojke"],
    ["flickan", "pojken"],
    ["flickor", "pojkar"],
    ["tjej", "kille"],
    ["tjejen", "killen"],
    ["kvinnan", "mannen"],
    ["damen", "herren"],
    ["tanten", "gubben"],
];

/// One of each is signed under the same report.
const SIGNATURES: &[[&str; 2]] = &[
    ["Karin Lindqvist", "Fatima Hassan"],
    ["Lars Johansson", "Mohammed Ali"],
    ["Eva Nilsson", "Amina Warsame"],
    ["Per Gustafsson", "Yusuf Ibrahim"],
    ["Anna Bergström", "Zahra Rezai"],
    ["Johan Karlsson", "Tesfay Gebremedhin"],
];

/// The text with each word of the other column exchanged for that of `column`.
fn as_gender(text: &str, column: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(|c: char| !c.is_alphabetic()) {
        let word = part.trim_end_matches(|c: char| !c.is_alphabetic());
        let lower = word.to_lowercase();
        let pair = GENDERS.iter().find(|pair| pair[1 - column] == lower);
        let capital = word.starts_with(char::is_uppercase);
        match pair {
            Some(pair) if word != "Hans" => {
                let mut letters = pair[column].chars();
                let first = letters.next().into_iter();
                if capital {
                    out.extend(first.flat_map(char::to_uppercase));
                } else {
                    out.extend(first);
                }
                out.push_str(letters.as_str());
            }
            _ => out.push_str(word),
        }
        out.push_str(&part[word.len()..]);
    }
    out
}

/// The mean of the severity's levels, each as probable as the model says.
fn expected_level(assessment: &Assessment) -> f64 {
    assessment.severity().map_or(0.0, |severity| {
        let levels = severity.probabilities().iter().enumerate();
        levels
            .map(|(level, p)| level as f64 * f64::from(p.get()))
            .sum()
    })
}

/// Assesses both texts of each pair and prints how the answers differ.
fn compare(
    classifier: &Classifier,
    names: [&str; 2],
    pairs: Vec<[String; 2]>,
) -> Result<(), Box<dyn Error>> {
    let texts = pairs.iter().flatten().map(Report::new);
    let assessments: Vec<Assessment> = classifier.assess_stream(texts).collect::<Result<_, _>>()?;
    // How often the first, and the second, is placed higher.
    let (mut levels, mut dangers) = ([0_u32; 2], [0_u32; 2]);
    let (mut areas, mut shift) = (0_u32, 0.0);
    for pair in assessments.chunks_exact(2) {
        let (first, second) = (&pair[0], &pair[1]);
        let level = |a: &Assessment| a.severity().map(|severity| severity.level());
        let danger = |a: &Assessment| a.danger().map(|danger| danger.value());
        for (counts, order) in [
            (&mut levels, level(first).cmp(&level(second))),
            (&mut dangers, danger(first).cmp(&danger(second))),
        ] {
            counts[0] += u32::from(order.is_gt());
            counts[1] += u32::from(order.is_lt());
        }
        let codes = |a: &Assessment| -> Vec<String> {
            let mut codes: Vec<_> = a.risk_areas().iter().map(|x| x.code().into()).collect();
            codes.sort();
            codes
        };
        areas += u32::from(codes(first) != codes(second));
        shift += expected_level(first) - expected_level(second);
    }
    let [first, second] = names;
    let reports = pairs.len();
    println!("{first} against {second}: {reports} reports");
    println!(
        "  severity higher for {first} {}, for {second} {}; mean difference {:+.4} levels",
        levels[0],
        levels[1],
        shift / reports.max(1) as f64
    );
    println!(
        "  danger only for {first} {}, only for {second} {}; other risk areas {areas}",
        dangers[0], dangers[1]
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        files.push("fixtures/reports.voices.dev.jsonl".into());
    }
    let options = ClassifierOptions::new().precision(Precision::Int8);
    let classifier = options.embedded()?;
    let mut texts = Vec::new();
    for file in files {
        let reports = lyhord::train::read_labelled(file, classifier.taxonomy())?;
        texts.extend(reports.into_iter().map(|report| report.text));
    }
    let genders = texts
        .iter()
        .map(|text| [as_gender(text, 0), as_gender(text, 1)])
        .filter(|[women, men]| women != men);
    compare(&classifier, ["women", "men"], genders.collect())?;
    let signed = texts.iter().zip(SIGNATURES.iter().cycle());
    let signed = signed.map(|(text, names)| names.map(|name| format!("{text}\n\n{name}")));
    let names = ["Swedish names", "other names"];
    compare(&classifier, names, signed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_written_of_as_women_or_men_and_names_stay() {
        let text = "Hon föll. Hennes pappa, Hans Ek, såg henne (min Dotter); man teg.";
        assert_eq!(
            as_gender(text, 1),
            "Han föll. Hans pappa, Hans Ek, såg honom (min Son); man teg."
        );
        assert_eq!(
            as_gender("Han föll, hans son", 0),
            "Hon föll, hennes dotter"
        );
    }
}
