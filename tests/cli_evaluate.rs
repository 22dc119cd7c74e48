//! What `lyhord evaluate` promises: several files count as one, reports are
//! parted by what is known of them, and faults are named.

use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

fn evaluate(folder: &Path) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("lyhord");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-bundle");
    command.current_dir(folder).args(["evaluate", "--model"]);
    command.arg(model).args(["--bootstrap", "0"]);
    command
}

/// A folder with the reports a0 to a5 in one file, b0 to b3 in another, and their
/// writers.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut groups = String::from("id,writer\n");
    for (name, count) in [("a", 6), ("b", 4)] {
        let mut reports = String::new();
        for index in 0..count {
            let writer = if index % 2 == 0 { "staff" } else { "self" };
            writeln!(groups, "{name}{index},{writer}").unwrap();
            writeln!(
                reports,
                r#"{{"id": "{name}{index}", "text": "Ingen kom {index}.", "severity": {}, "harm": {}}}"#,
                index % 5,
                index > 2
            )
            .unwrap();
        }
        std::fs::write(folder.path().join(format!("{name}.jsonl")), reports).unwrap();
    }
    std::fs::write(folder.path().join("groups.csv"), groups).unwrap();
    folder
}

#[test]
fn several_files_count_as_one_and_are_parted_by_what_is_known() {
    let folder = folder();
    let output = evaluate(folder.path())
        .args(["a.jsonl", "b.jsonl", "--groups", "groups.csv"])
        .args(["--cross-fit", "--format", "json"])
        .assert()
        .success();
    let evaluation: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(evaluation["reports"], 10);
    let writers: Vec<_> = evaluation["groups"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|group| group["by"] == "writer")
        .map(|group| (group["group"].as_str().unwrap(), &group["reports"]))
        .collect();
    assert_eq!(writers, [("self", &5.into()), ("staff", &5.into())]);

    evaluate(folder.path())
        .args(["a.jsonl", "--groups", "groups.csv"])
        .assert()
        .success()
        .stdout(predicate::str::contains("by writer\n").and(predicate::str::contains("staff")));
}

#[test]
fn what_cannot_be_parted_is_refused_and_named() {
    let folder = folder();
    std::fs::write(folder.path().join("others.csv"), "id,writer\nx,staff\n").unwrap();
    for (arguments, fault) in [
        (&["a.jsonl", "--groups", "others.csv"][..], "writer"),
        (
            &["a.jsonl", "a.jsonl", "--groups", "groups.csv"],
            "\"a0\" stands twice",
        ),
        (&["a.jsonl", "--groups", "a.jsonl"], "no column `id`"),
        (&["a.jsonl", "--groups", "none.csv"], "none.csv"),
    ] {
        evaluate(folder.path())
            .args(arguments)
            .assert()
            .code(1)
            .stderr(
                predicate::str::contains(fault).and(predicate::str::contains("Ingen kom").not()),
            );
    }
}

#[test]
fn cross_fitted_thresholds_aim_at_the_recall_that_is_asked_for() {
    let folder = folder();
    let recall = |aim: &str| {
        let output = evaluate(folder.path())
            .args(["a.jsonl", "b.jsonl", "--cross-fit", "--format", "json"])
            .args(["--top-recall", aim])
            .assert()
            .success();
        let evaluation: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        let figures = &evaluation["heads"]["severity"]["figures"];
        figures["top_recall"]["value"].as_f64().unwrap()
    };
    assert!(recall("0") < recall("1"));
    evaluate(folder.path())
        .args(["a.jsonl", "--cross-fit", "--top-recall", "1.5"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("from 0 to 1"));
    evaluate(folder.path())
        .args(["a.jsonl", "--top-recall", "0.9"])
        .assert()
        .code(2);
}
