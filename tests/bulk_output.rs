//! What a backlog's files look like to those who read them.

use assert_cmd::cargo::cargo_bin;
use lyhord::bulk::{Input, ReadOptions, assessment_schema, rows};
use lyhord::{Classifier, Taxonomy};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const MODEL: &str = "fixtures/tiny-bundle";
const EXPORT: &str = "fixtures/exports/whole/excel.csv";
const SCHEMA: &str = "schema/assessment.schema.json";

fn run(args: &[&str]) -> Output {
    let output = Command::new(cargo_bin("lyhord"))
        .args(["classify", "--model", MODEL])
        .args(args)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{message}");
    output
}

fn written(name: &str, args: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut all = vec!["-o", path.to_str().unwrap()];
    all.extend(args);
    run(&all);
    fs::read(path).unwrap()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_file_has_the_lines_that_standard_output_has() {
    assert_eq!(written("out.jsonl", &[EXPORT]), run(&[EXPORT]).stdout);
    assert_eq!(written("out.json", &[EXPORT]), run(&[EXPORT]).stdout);
}

#[test]
fn csv_opens_in_excel_with_the_columns_of_the_input() {
    let csv = written("out.csv", &[EXPORT, "--keep", "--bom", EXPORT]);
    let csv = String::from_utf8(csv).unwrap();
    let csv = csv.strip_prefix('\u{feff}').unwrap();
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b';')
        .from_reader(csv.as_bytes());
    let names = reader.headers().unwrap().clone();
    let names: Vec<&str> = names.iter().collect();
    assert_eq!(
        names[names.len() - 4..],
        ["input_sha256", "duplicate_of", "Inkom", "Kommun"]
    );
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 8);
    let ends = |row: usize| -> Vec<&str> { rows[row].iter().skip(names.len() - 3).collect() };
    assert_eq!(ends(1), ["", "2026-01-09", "Åre"]);
    assert_eq!(ends(5), ["2026-2", "2026-01-09", "Åre"]);
    // A name that is taken already.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    fs::write(&path, "text;sector;Ort\nIngen kom.;nord;Åre\n").unwrap();
    let csv = written("out.csv", &[path.to_str().unwrap(), "--keep"]);
    let csv = String::from_utf8(csv).unwrap();
    assert!(
        csv.lines()
            .next()
            .unwrap()
            .ends_with(";duplicate_of;kept_sector;Ort")
    );
    assert!(csv.lines().nth(1).unwrap().ends_with(";;nord;Åre"));
}

#[test]
fn what_csv_cannot_know_beforehand_is_refused() {
    let output = Command::new(cargo_bin("lyhord"))
        .args(["classify", "--model", MODEL, "fixtures/bulk/mixed.jsonl"])
        .args(["--keep", "--format", "csv"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("keep them in JSONL or Parquet"),
        "{message}"
    );
}

#[test]
fn parquet_says_what_jsonl_says() {
    let args = [
        EXPORT,
        "--keep",
        "--group-duplicates",
        "--all-probabilities",
        EXPORT,
    ];
    let json = lines(&written("out.jsonl", &args));
    let bytes = written("out.parquet", &args);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
    let types: Vec<String> = reader
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    let mut table = Vec::new();
    // With nulls, so that a column that is not there is told from an empty one.
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(false)
        .build::<_, arrow_json::writer::LineDelimited>(&mut table);
    for batch in reader.build().unwrap() {
        writer.write(&batch.unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let table = lines(&table);
    assert_eq!(table.len(), 8);
    for (row, line) in table.iter().zip(&json) {
        assert_eq!(row, line);
    }
    // No field of the lines is left out.
    let last = json.last().unwrap().as_object().unwrap();
    let fields: Vec<&String> = last.keys().collect();
    assert_eq!(types.iter().collect::<Vec<_>>(), fields);
}

#[test]
fn the_published_schema_is_that_of_the_taxonomy_and_fits_what_is_written() {
    let taxonomy = Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml").unwrap();
    let schema = assessment_schema(&taxonomy);
    let written_schema = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("LYHORD_WRITE_SCHEMA").is_some() {
        fs::create_dir_all("schema").unwrap();
        fs::write(SCHEMA, &written_schema).unwrap();
    }
    let published = fs::read_to_string(SCHEMA).unwrap();
    assert!(
        published == written_schema,
        "the schema has changed: look at it, and write it with LYHORD_WRITE_SCHEMA=1"
    );

    // The tiny model answers in the same taxonomy.
    let tiny = Classifier::from_dir(MODEL).unwrap();
    assert_eq!(assessment_schema(tiny.taxonomy()), schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    for args in [
        &[EXPORT][..],
        &[
            EXPORT,
            "--all-probabilities",
            "--keep",
            "--group-duplicates",
            EXPORT,
        ],
        &["--text", "Ingen kom."],
    ] {
        for line in lines(&run(args).stdout) {
            let errors: Vec<String> = validator
                .iter_errors(&line)
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{errors:?}");
            // Each field is described.
            for name in line.as_object().unwrap().keys() {
                assert!(schema["properties"].get(name).is_some(), "{name}");
            }
            let mut wrong = line.clone();
            wrong["severity"]["level"] = 5.into();
            assert!(!validator.is_valid(&wrong));
            wrong = line.clone();
            wrong["sector"]["code"] = "okänd".into();
            assert!(!validator.is_valid(&wrong));
        }
    }
}

#[test]
fn the_summary_counts_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (output, summary) = (path("out.jsonl"), path("summary.json"));
    let latin = "fixtures/exports/whole/windows-1252.csv";
    run(&[EXPORT, latin, "-o", &output, "--summary", &summary]);
    let summary: Value = serde_json::from_slice(&fs::read(summary).unwrap()).unwrap();
    assert_eq!(summary["assessed"], 8);
    assert_eq!(summary["rejected"], 0);
    assert_eq!(summary["duplicate_ids"], 4);
    assert_eq!(summary["encodings"]["utf-8"], 4);
    assert_eq!(summary["encodings"]["windows-1252"], 4);
    assert_eq!(summary["interrupted"], false);
    assert_eq!(summary["model"]["name"], "tiny");
    for seconds in ["total", "reading", "writing"] {
        assert!(summary["timing"][seconds].as_f64().unwrap() >= 0.0);
    }
    let lines = lines(&fs::read(output).unwrap());
    for level in 0..5 {
        let expected = lines
            .iter()
            .filter(|line| line["severity"]["level"] == level)
            .count();
        let counted = summary["outcomes"]["severity"][level.to_string()]
            .as_u64()
            .unwrap_or(0);
        assert_eq!(counted, expected as u64);
    }
    let total: u64 = summary["outcomes"]["sector"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(total, 8);
    // The other export has the same texts in another encoding.
    let classifier = Classifier::from_dir(MODEL).unwrap();
    let tokens: usize = rows(&Input::from(Path::new(EXPORT)), &ReadOptions::default())
        .unwrap()
        .map(|row| {
            let report = row.unwrap().report.unwrap();
            classifier.attend(&report).unwrap().tokens().len()
        })
        .sum();
    assert_eq!(summary["tokens"], 2 * tokens);
}

#[test]
fn programs_can_follow_a_run() {
    let output = run(&[EXPORT, "--progress", "json"]);
    let message = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(message.lines().last().unwrap()).unwrap();
    assert_eq!(last["rows"], 4);
    assert_eq!(last["rejected"], 0);
    let size = fs::metadata(EXPORT).unwrap().len();
    assert_eq!(last["bytes"], size);
    assert_eq!(last["total_bytes"], size);
    assert!(last["rows_per_second"].as_f64().unwrap() > 0.0);
    // Others see nothing, since standard error is no terminal.
    assert!(run(&[EXPORT]).stderr.is_empty());
}

#[test]
fn folders_and_patterns_are_read_in_the_order_of_names() {
    let ids = |args: &[&str]| -> Vec<String> {
        let lines = lines(&run(args).stdout);
        lines
            .iter()
            .map(|line| line["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = ["2026-1", "2026-2", "2026-3", "2026-4"];
    assert_eq!(ids(&["fixtures/exports/whole/letters"]), expected);
    assert_eq!(ids(&["fixtures/exports/whole/l*/*-[1-4].txt"]), expected);
    assert_eq!(ids(&["fixtures/exports/whole/packed.*"]).len(), 8);
}

#[test]
fn an_export_that_is_read_again_gives_the_same_texts() {
    // What --keep carries through makes the output an input.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.parquet");
    run(&[EXPORT, "--keep", "-o", path.to_str().unwrap()]);
    let mut options = ReadOptions::default();
    options.text_columns = vec!["engine".to_owned()];
    let input = Input::from(Path::new(&path));
    let ids: Vec<String> = rows(&input, &options)
        .unwrap()
        .map(|row| row.unwrap().report.unwrap().id().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["2026-1", "2026-2", "2026-3", "2026-4"]);
}
