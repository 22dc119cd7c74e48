//! Whatever is wrong with a row, it is named without its text and the others
//! are assessed.

use assert_cmd::cargo::cargo_bin_cmd;
use lyhord::bulk::{ReadOptions, rows};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// Stands in bad rows: it must not be repeated.
const SECRET: &str = "Hemligtnamn";

struct Outcome {
    code: i32,
    ids: Vec<Value>,
    messages: String,
}

fn classify(name: &str, content: impl AsRef<[u8]>) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), content).unwrap();
    let model = Path::new("fixtures/tiny-bundle").canonicalize().unwrap();
    let output = cargo_bin_cmd!("lyhord")
        .current_dir(folder.path())
        .args(["classify", name, "--model"])
        .arg(model)
        .output()
        .unwrap();
    let ids = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].take())
        .collect();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(!messages.contains(SECRET), "{messages}");
    Outcome {
        code: output.status.code().unwrap(),
        ids,
        messages,
    }
}

/// A bad line between two good ones: it is left out with a reason.
fn left_out(bad: &[u8], reason: &str) {
    let content = [
        "{\"id\":1,\"text\":\"Ingen kom.\"}\n\n".as_bytes(),
        bad,
        "\n{\"id\":3,\"text\":\"Hon ramlade.\"}\n".as_bytes(),
    ]
    .concat();
    let outcome = classify("a.jsonl", content);
    assert_eq!(outcome.ids, ["1", "3"], "{}", outcome.messages);
    assert_eq!(outcome.code, 3);
    let expected = format!("a.jsonl: row 2 (line 3): left out: {reason}");
    assert!(outcome.messages.contains(&expected), "{}", outcome.messages);
}

#[test]
fn a_text_without_words_is_left_out() {
    for text in ["", " ", "\t\r\n \u{a0}", "\u{200b}\u{feff}\u{202e}"] {
        left_out(json!({"text": text}).to_string().as_bytes(), "");
    }
}

#[test]
fn a_line_that_is_not_utf8_is_left_out() {
    let line = [b"{\"text\":\"f\xf6ll ", SECRET.as_bytes(), b"\"}"].concat();
    left_out(&line, "is not UTF-8");
}

#[test]
fn a_line_that_is_not_an_object_with_a_text_is_left_out() {
    for (line, reason) in [
        (format!("{{\"text\":\"{SECRET}"), "is not JSON (at byte 20 "),
        (SECRET.to_owned(), "is not JSON (at byte 1 "),
        (format!("\"{SECRET}\""), "is JSON, but not an object"),
        (format!("[\"{SECRET}\"]"), "is JSON, but not an object"),
        (format!("{{\"id\":\"{SECRET}\"}}"), "has no text"),
        ("{\"text\":null}".to_owned(), "has no text"),
        ("{\"text\":\"\\ud800\"}".to_owned(), "is not JSON"),
        (
            format!("{{\"text\":[\"{SECRET}\"]}}"),
            "has a text that is not a string",
        ),
        (
            format!("{{\"text\":\"a\",\"id\":{{\"{SECRET}\":1}}}}"),
            "has an id that is neither",
        ),
        ("[".repeat(100_000), "is not JSON"),
    ] {
        left_out(line.as_bytes(), reason);
    }
}

#[test]
fn rows_with_the_same_id_are_all_assessed_and_named() {
    let outcome = classify("a.csv", "id,text\n7,Ingen kom.\n8,Hon föll.\n7,Fel dos.\n");
    assert_eq!(outcome.code, 0);
    assert_eq!(outcome.ids, ["7", "8", "7"]);
    let expected = "a.csv: row 3 (line 4): warning: has the id of row 1 of a.csv";
    assert!(outcome.messages.contains(expected), "{}", outcome.messages);
}

#[test]
fn a_csv_without_a_text_column_is_refused_with_its_columns() {
    let outcome = classify("a.csv", format!("dnr;ort\n1;{SECRET}\n"));
    assert_eq!(outcome.code, 1);
    let expected = "\"dnr\", \"ort\"";
    assert!(outcome.messages.contains(expected), "{}", outcome.messages);
    // Without a row of names the first row is a report.
    let outcome = classify("a.csv", format!("1;{SECRET} ramlade i natt.\n"));
    assert_eq!(outcome.code, 1);
    assert_eq!(classify("a.csv", "").code, 1);
}

#[test]
fn a_csv_row_with_other_columns_is_left_out() {
    let csv = format!("id;text\n1;Ingen kom.\n2;{SECRET}; som föll\n3\n4;Fel dos.\n");
    let outcome = classify("a.csv", csv);
    assert_eq!(outcome.code, 3);
    assert_eq!(outcome.ids, ["1", "4"]);
    for expected in [
        "row 2 (line 3): left out: has 3 columns where 2",
        "row 3 (line 4): left out: has 1 columns where 2",
        "2 assessed, 2 left out",
    ] {
        assert!(outcome.messages.contains(expected), "{}", outcome.messages);
    }
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("folder.csv")).unwrap();
    for (name, reason, code) in [
        ("no-such.csv", "cannot open no-such.csv", 1),
        ("folder.csv", "folder.csv", 1),
        ("report.pdf", "cannot tell the format of report.pdf", 2),
    ] {
        let output = cargo_bin_cmd!("lyhord")
            .current_dir(folder.path())
            .args(["classify", name])
            .output()
            .unwrap();
        let messages = String::from_utf8(output.stderr).unwrap();
        assert!(messages.contains(reason), "{messages}");
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn a_folder_that_is_no_model_is_named() {
    let output = cargo_bin_cmd!("lyhord")
        .args(["classify", "--text", SECRET, "--model", "fixtures/bulk"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(messages.contains("fixtures/bulk"), "{messages}");
    assert!(!messages.contains(SECRET), "{messages}");
}

#[test]
fn five_megabytes_of_text_are_one_report() {
    // Few words and much space: this is about size, not about speed.
    let text = format!("Hon låg på golvet.{}", " \n".repeat(5_000)).repeat(500);
    assert!(text.len() > 5_000_000);
    let outcome = classify("brev.txt", text);
    assert_eq!(outcome.code, 0, "{}", outcome.messages);
    assert_eq!(outcome.ids, ["brev"]);
}

#[test]
fn emoji_invisible_and_right_to_left_characters_are_read() {
    let lines: String = [
        "😀👩\u{200d}⚕\u{fe0f}🇸🇪",
        "مرحبا בית",
        "\u{202e}dlo\u{202c}",
        "e\u{301}\u{301}\u{301}",
        "\u{0}\u{1}a",
    ]
    .iter()
    .enumerate()
    .map(|(id, text)| json!({"id": id, "text": text}).to_string() + "\n")
    .collect();
    let outcome = classify("a.jsonl", lines);
    assert_eq!(outcome.code, 0, "{}", outcome.messages);
    assert_eq!(outcome.ids, ["0", "1", "2", "3", "4"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_line_of_any_bytes_is_a_row_or_blank(
        lines in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "\\PC{0,20}".prop_map(String::into_bytes),
                "\\{\"text\":\"[a-zåäö\\\\\"]{0,9}\"\\}?".prop_map(String::into_bytes),
            ],
            0..20,
        ),
    ) {
        // The first line is plain: a start like that of UTF-16 changes what a
        // line is.
        let content = [b"{}  ".to_vec(), lines.join(&b'\n')].join(&b'\n');
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, &content).unwrap();
        let found = rows(&path.into(), &ReadOptions::default()).unwrap();
        let found: Vec<u64> = found.map(|row| row.unwrap().place.line).collect();
        let wanted: Vec<u64> = (1..)
            .zip(content.split(|byte| *byte == b'\n'))
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(number, _)| number)
            .collect();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_written_as_csv_is_read_again(
        texts in prop::collection::vec("[a-zåäö;,\t\"\n\r 😀]{0,30}", 1..20),
        delimiter in prop::sample::select(b";,\t".to_vec()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let mut writer = csv::WriterBuilder::new()
            .delimiter(delimiter)
            .from_path(&path)
            .unwrap();
        writer.write_record(["dnr", "Beskrivning"]).unwrap();
        for (id, text) in texts.iter().enumerate() {
            writer.write_record([&id.to_string(), text]).unwrap();
        }
        drop(writer);
        let found: Vec<String> = rows(&path.into(), &ReadOptions::default())
            .unwrap()
            .map(|row| row.unwrap().report.unwrap().text().to_owned())
            .collect();
        prop_assert_eq!(found, texts);
    }

    #[test]
    fn no_reason_repeats_what_a_row_says(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let folder = tempfile::tempdir().unwrap();
        for (name, start) in [("a.jsonl", SECRET), ("a.csv", "id;text\n1;")] {
            let path = folder.path().join(name);
            let content = [start.as_bytes(), &bytes, SECRET.as_bytes(), b";x;y\n"].concat();
            std::fs::write(&path, content).unwrap();
            for row in rows(&path.into(), &ReadOptions::default()).unwrap() {
                let row = row.unwrap();
                if let Err(reason) = row.report {
                    prop_assert!(!reason.to_string().contains(SECRET));
                }
            }
        }
    }
}
