//! Writes `fixtures/backlog.csv`: 200 dev reports as a Swedish case system exports them.
//!
//! `cargo run --example make_backlog`
//!
//! Semicolons between columns, CRLF between rows, UTF-8 with a byte order mark, line breaks kept
//! inside quoted texts: what Excel on a Swedish computer makes and expects. Case number, date,
//! municipality and channel are invented, and the same at every run.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

const ROWS: usize = 200;

const MUNICIPALITIES: &str = "\
    Alingsås Arjeplog Arvika Boden Borgholm Borås Botkyrka Eda Enköping Eskilstuna Falun \
    Gnosjö Gotland Gällivare Gävle Göteborg Halmstad Haparanda Helsingborg Huddinge \
    Härjedalen Höör Jönköping Kalmar Karlstad Kiruna Krokom Linköping Ljusdal Luleå Lund \
    Malmö Mora Norrköping Nybro Olofström Piteå Ragunda Skövde Sollefteå Stockholm Strömsund \
    Sundsvall Södertälje Tomelilla Trollhättan Umeå Uppsala Vadstena Vetlanda Västerås Växjö \
    Ystad Åmål Åre Älmhult Örebro Östersund";

/// Repeated by how common they are.
const CHANNELS: &[&str] = &[
    "e-tjänst",
    "e-tjänst",
    "e-tjänst",
    "e-post",
    "e-post",
    "brev",
    "telefon",
];

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut texts = Vec::new();
    for line in BufReader::new(File::open(fixtures.join("reports.dev.jsonl"))?).lines() {
        let report: serde_json::Value = serde_json::from_str(&line?)?;
        texts.push(
            report["text"]
                .as_str()
                .ok_or("a dev report has no text")?
                .to_owned(),
        );
    }

    let municipalities: Vec<&str> = MUNICIPALITIES.split_whitespace().collect();
    let path = fixtures.join("backlog.csv");
    let mut file = File::create(&path)?;
    file.write_all("\u{feff}".as_bytes())?;
    let mut writer = csv::WriterBuilder::new()
        .delimiter(b';')
        .terminator(csv::Terminator::CRLF)
        .from_writer(file);
    writer.write_record(["diarienummer", "inkom", "kommun", "kanal", "text"])?;
    for row in 0..ROWS {
        // Dev reports lie in order of writer; an even stride takes some of each.
        let text = &texts[row * texts.len() / ROWS];
        writer.write_record([
            &format!("3.5.1-{:05}/2026", 1234 + row * 41 + scatter(row, 1) % 41),
            &date_in_2026(5 + row * 300 / ROWS),
            municipalities[scatter(row, 2) % municipalities.len()],
            CHANNELS[scatter(row, 3) % CHANNELS.len()],
            text,
        ])?;
    }
    writer.flush()?;
    println!("{}: {ROWS} reports", path.display());
    Ok(())
}

/// A number that looks random and depends on nothing but its arguments (Knuth's multiplicative hash).
fn scatter(row: usize, column: u32) -> usize {
    let key = (row as u32 * 8 + column).wrapping_mul(2_654_435_761);
    (key >> 12) as usize
}

/// `day` counts from 0 for 1 January.
fn date_in_2026(mut day: usize) -> String {
    for (month, days) in [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        .into_iter()
        .enumerate()
    {
        if day < days {
            return format!("2026-{:02}-{:02}", month + 1, day + 1);
        }
        day -= days;
    }
    unreachable!("day {day} after the end of the year")
}
