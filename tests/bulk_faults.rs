//! Full disks, folders that can't be written to, cut files, huge cells and
//! dirty rows: each is named, and what can be done is done.

use assert_cmd::cargo::cargo_bin;
use lyhord::Classifier;
use lyhord::bulk::{Backlog, Input, MAX_TEXT_BYTES, OutputFormat};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

const MODEL: &str = "fixtures/tiny-bundle";

fn command(input: &str, output: &Path) -> Command {
    let mut command = Command::new(cargo_bin("lyhord"));
    command
        .args(["classify", "--model", MODEL, "--threads", "1", input, "-o"])
        .arg(output);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn many_rows(folder: &Path, rows: usize) -> String {
    let csv: String = (0..rows)
        .map(|row| format!("{row};Ingen kom förrän {row} minuter senare.\n"))
        .collect();
    let path = folder.join("export.csv");
    fs::write(&path, format!("id;text\n{csv}")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_a_run_that_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let input = many_rows(folder.path(), 4_000);
    let expected = folder.path().join("expected.jsonl");
    assert!(command(&input, &expected).status().unwrap().success());
    let output = folder.path().join("out.jsonl");
    // A limit on the size of files stands for a disk: writing over it fails
    // as on a full one, when its signal is ignored. In blocks of 512 bytes.
    let limited = |blocks: u64| {
        Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\""])
            .arg(blocks.to_string())
            .arg(cargo_bin("lyhord"))
            .args(["classify", "--model", MODEL, "--threads", "1", &input])
            .args(["--resume", "-o"])
            .arg(&output)
            .output()
            .unwrap()
    };
    let size = fs::metadata(&expected).unwrap().len();
    for share in [3, 2] {
        let ended = limited(size / 512 / share);
        assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
        let message = stderr(&ended);
        assert!(message.contains("cannot write"), "{message}");
        assert!(!output.exists());
    }
    let ended = limited(size);
    assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
    assert!(fs::read(&output).unwrap() == fs::read(&expected).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_to_is_named_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let input = many_rows(folder.path(), 10);
    // Whoever runs the tests may be allowed everything elsewhere.
    for place in [
        "/proc/out.jsonl",
        "/dev/full/out.jsonl",
        "/no/such/folder/out.jsonl",
    ] {
        let ended = command(&input, Path::new(place)).output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let message = stderr(&ended);
        assert!(
            message.contains(&format!("cannot write {place}")),
            "{message}"
        );
    }
    let ended = command(&input, Path::new("/dev/full")).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        stderr(&ended).contains("No space left"),
        "{}",
        stderr(&ended)
    );
}

/// What a run to JSONL gives: exit code, ids, and reasons of rows left out.
fn classify(input: &str, args: &[&str]) -> (Option<i32>, Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    let ended = command(input, &output).args(args).output().unwrap();
    let field = |path: &Path, field: &str| -> Vec<String> {
        let lines = fs::read_to_string(path).unwrap_or_default();
        let value = |line| serde_json::from_str::<Value>(line).unwrap()[field].take();
        lines
            .lines()
            .map(|line| value(line).as_str().unwrap_or("none").to_owned())
            .collect()
    };
    (
        ended.status.code(),
        field(&output, "id"),
        field(&folder.path().join("out.jsonl.rejected.jsonl"), "reason"),
    )
}

#[test]
fn files_that_are_cut_off_give_their_whole_rows_and_the_others_follow() {
    let broken = "fixtures/exports/broken";
    for (name, reason) in [
        ("cut-in-a-row.csv", "wrong_columns"),
        ("cut-in-a-letter.csv", "not_utf8"),
        ("cut.csv.gz", "damaged"),
        ("cut.jsonl.zst", "damaged"),
        ("open-quote.csv", "unclosed_quote"),
    ] {
        let next = "fixtures/exports/whole/commas.csv";
        let (code, ids, reasons) = classify(&format!("{broken}/{name}"), &[next]);
        assert_eq!(
            (code, reasons),
            (Some(3), vec![reason.to_owned()]),
            "{name}"
        );
        assert!(ids.len() >= 5, "{name}");
        assert_eq!(
            ids[ids.len() - 4..],
            ["2026-1", "2026-2", "2026-3", "2026-4"]
        );
    }
    for name in ["cut.parquet", "cut.xlsx"] {
        assert_eq!(classify(&format!("{broken}/{name}"), &[]).0, Some(1));
    }
}

#[test]
fn the_strict_stop_at_the_first_row_or_after_some() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    fs::write(
        &path,
        "id;text\n1;Ingen kom.\n2\n3;Hon föll.\n4\n5;Fel dos.\n",
    )
    .unwrap();
    let input = path.to_str().unwrap();
    let output = folder.path().join("out.csv");
    let run = |args: &[&str]| command(input, &output).args(args).output().unwrap();
    let ended = run(&["--fail-fast"]);
    assert_eq!(ended.status.code(), Some(1));
    let message = stderr(&ended);
    assert!(
        message.contains("a.csv: row 2 (line 3): has 1 columns"),
        "{message}"
    );
    assert!(message.contains("--resume goes on after them"), "{message}");
    assert_eq!(
        run(&["--resume", "--max-rejected", "1"]).status.code(),
        Some(1)
    );
    assert_eq!(
        run(&["--resume", "--max-rejected", "2"]).status.code(),
        Some(3)
    );
    assert_eq!(fs::read_to_string(&output).unwrap().lines().count(), 4);
    assert_eq!(run(&["--max-rejected", "2"]).status.code(), Some(3));
    assert_eq!(
        run(&["--fail-fast", "--max-rejected", "2"]).status.code(),
        Some(2)
    );
}

#[test]
fn a_text_over_the_limit_is_left_out_and_not_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    let huge = "Hon föll. ".repeat(2_000_000);
    assert!(huge.len() > 20_000_000 && huge.len() > MAX_TEXT_BYTES);
    fs::write(&path, format!("id;text\n1;\"{huge}\"\n2;Ingen kom.\n")).unwrap();
    let (code, ids, reasons) = classify(path.to_str().unwrap(), &[]);
    assert_eq!(
        (code, ids, reasons),
        (
            Some(3),
            vec!["2".to_owned()],
            vec!["text_too_large".to_owned()]
        )
    );
    for name in ["a.txt", "a.jsonl"] {
        let path = folder.path().join(name);
        fs::write(&path, format!("{{\"text\":\"{huge}\"}}\n")).unwrap();
        let (code, _, reasons) = classify(path.to_str().unwrap(), &[]);
        assert_eq!(
            (code, reasons),
            (Some(3), vec!["text_too_large".to_owned()]),
            "{name}"
        );
    }
}

/// A row as somebody may have typed, cut or pasted it.
fn dirty_row() -> impl Strategy<Value = String> {
    let cell = prop_oneof![
        3 => "[A-Za-zåäöÅÄÖ ,.]{0,30}",
        1 => "\\PC{0,12}",
        1 => "[\";\r\n\t \u{0}\u{feff}\u{202e}]{0,6}",
        1 => "(\"[a-zåäö;\n]{0,9}(\"\"[a-z]?)?\"){0,1}",
    ];
    prop::collection::vec(cell, 0..5).prop_map(|cells| cells.join(";"))
}

#[test]
fn ten_thousand_dirty_rows_are_each_assessed_or_left_out_with_a_reason() {
    let classifier = Classifier::from_dir(MODEL).unwrap();
    // Its seed is printed should it fail, and kept.
    let mut runner = TestRunner::new(Config::with_cases(100));
    let rows = prop::collection::vec(dirty_row(), 100);
    let folder = tempfile::tempdir().unwrap();
    let result = runner.run(&rows, |rows| {
        let csv = format!("id;text;ort\n{}\n", rows.join("\n"));
        let input = Input::Bytes {
            name: "dirty.csv".into(),
            bytes: csv.as_bytes().into(),
        };
        let output = folder.path().join("out.jsonl");
        let mut rejected = 0;
        let mut read_options = lyhord::bulk::ReadOptions::default();
        read_options.keep = true;
        let summary = Backlog::new(vec![input.clone()])
            .read(read_options)
            .run_to_file(&classifier, &output, &AtomicBool::new(false), |event| {
                if let lyhord::bulk::Event::Rejected { .. } = event {
                    rejected += 1;
                }
            })
            .unwrap();
        let found = lyhord::bulk::rows(&input, &Default::default())
            .unwrap()
            .count() as u64;
        prop_assert_eq!(summary.rows(), found);
        prop_assert_eq!(summary.rejected, rejected);
        let lines =
            |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64);
        prop_assert_eq!(lines(&output), summary.assessed);
        prop_assert_eq!(
            lines(&folder.path().join("out.jsonl.rejected.jsonl")),
            rejected
        );
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}\n{runner}");
    }
}

#[test]
fn repeats_are_computed_once_and_marked_and_campaigns_grouped() {
    let classifier = Classifier::from_dir(MODEL).unwrap();
    let letter = "Vi protesterar mot att nattbemanningen på Solgården dras ned. Våra anhöriga \
        får vänta i timmar på hjälp och larmen besvaras inte. Kommunen har fått veta detta.";
    let csv = format!(
        "id,text\n1,{letter}\n2,Fel dos.\n3,{letter}\n,{letter} Mvh Eva\n5,Fel dos.\n6,{letter} Mvh Eva\n"
    );
    let input = Input::Bytes {
        name: "a.csv".into(),
        bytes: csv.as_bytes().into(),
    };
    let mut lines = Vec::new();
    let backlog = Backlog::new(vec![input]).group_duplicates(true);
    let summary = backlog
        .run(&classifier, &mut lines, &AtomicBool::new(false), |_| {})
        .unwrap();
    assert_eq!(summary.duplicate_texts, 3);
    let lines: Vec<Value> = lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let column = |name: &str| -> Vec<&str> {
        lines
            .iter()
            .map(|line| line[name].as_str().unwrap_or("-"))
            .collect()
    };
    assert_eq!(column("id"), ["1", "2", "3", "-", "5", "6"]);
    assert_eq!(
        column("duplicate_of"),
        ["-", "-", "1", "-", "2", "a.csv row 4"]
    );
    assert_eq!(column("duplicate_group"), ["1", "2", "1", "1", "2", "1"]);
    assert_eq!(lines[0]["severity"], lines[2]["severity"]);
    assert_eq!(lines[0]["input_sha256"], lines[2]["input_sha256"]);
    // New fields stand behind those that other systems read.
    let keys: Vec<&String> = lines[2].as_object().unwrap().keys().collect();
    assert_eq!(
        keys[9..],
        ["input_sha256", "duplicate_of", "duplicate_group"]
    );
}

#[test]
fn a_million_equal_or_unreadable_rows_do_not_pile_up() {
    // Rows that need no classifier wait for none.
    let classifier = Classifier::from_dir(MODEL).unwrap();
    let csv = format!(
        "id;text\n{}{}",
        "1\n".repeat(50_000),
        "1;Ingen kom.\n".repeat(50_000)
    );
    let input = Input::Bytes {
        name: "a.csv".into(),
        bytes: csv.as_bytes().into(),
    };
    let summary = Backlog::new(vec![input])
        .format(OutputFormat::Csv)
        .run(
            &classifier,
            &mut std::io::sink(),
            &AtomicBool::new(false),
            |_| {},
        )
        .unwrap();
    assert_eq!((summary.rejected, summary.assessed), (50_000, 50_000));
    assert_eq!(summary.duplicate_texts, 49_999);
}
