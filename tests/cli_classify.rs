//! What `lyhord` promises to those who run it.

use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const MODEL: &str = "fixtures/tiny-bundle";

fn lyhord() -> assert_cmd::Command {
    cargo_bin_cmd!("lyhord")
}

fn classify() -> assert_cmd::Command {
    let mut command = lyhord();
    command.args(["classify", "--model", MODEL]);
    command
}

fn stdout(command: &mut assert_cmd::Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

fn lines(output: &str) -> Vec<Value> {
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn ids(output: &str) -> Vec<String> {
    let id = |line: &Value| line["id"].as_str().unwrap_or("none").to_owned();
    lines(output).iter().map(id).collect()
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn many_reports(folder: &Path, number: usize) -> String {
    let lines: String = (0..number)
        .map(|id| format!("{{\"id\":\"{id}\",\"text\":\"Hon ramlade {id} gånger.\"}}\n"))
        .collect();
    write(folder, "many.jsonl", lines)
}

#[test]
fn a_text_in_an_argument_gives_the_json_line_that_other_systems_read() {
    let output = stdout(classify().args(["--text", "Brukaren fick dubbel dos insulin."]));
    let [line] = &lines(&output)[..] else {
        panic!("not one line: {output}");
    };
    let keys: Vec<&str> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "id",
            "report_type",
            "sector",
            "risk_areas",
            "severity",
            "harm",
            "danger",
            "model",
            "engine",
            "input_sha256"
        ]
    );
    assert_eq!(line["id"], Value::Null);
    for field in ["report_type", "sector"] {
        assert!(line[field]["code"].is_string() && line[field]["name"].is_string());
        assert!(line[field]["probability"].is_number());
    }
    assert_eq!(
        line["severity"]["probabilities"].as_array().unwrap().len(),
        5
    );
    assert!(line["danger"]["value"].is_boolean());
    assert_eq!(line["model"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(line["engine"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_format_is_read_and_inputs_come_out_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let jsonl = write(
        folder.path(),
        "a.jsonl",
        "{\"ID\":7,\"Fritext\":\"Ingen kom.\"}\n",
    );
    let csv = write(
        folder.path(),
        "b.csv",
        "\u{feff}Diarienummer;Text\n2024-1;\"Fall; i\nhallen\"\n2024-2;Fel dos.\n",
    );
    let text = write(folder.path(), "brev 1.txt", "Till IVO.\n\nMor föll.\n");
    let output = stdout(
        classify()
            .args([&csv, &text, "-", &jsonl])
            .write_stdin("{\"text\":\"Från standard in.\"}\n\n{\"text\":\"Igen.\",\"id\":\"in\"}"),
    );
    assert_eq!(
        ids(&output),
        ["2024-1", "2024-2", "brev 1", "none", "in", "7"]
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_with_a_name_is_read_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.jsonl");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let child = spawn(&[pipe.to_str().unwrap()]);
    std::fs::write(&pipe, "{\"text\":\"Ingen kom.\",\"id\":\"7\"}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(ids(&String::from_utf8(output.stdout).unwrap()), ["7"]);
}

#[test]
fn columns_separator_and_format_can_be_stated() {
    let folder = tempfile::tempdir().unwrap();
    let export = "nr|text|Ärende\nA|kort|Det långa brevet.\n";
    let path = write(folder.path(), "export.dat", export);
    let output = stdout(classify().arg(&path).args([
        "--input-format",
        "csv",
        "--delimiter",
        "|",
        "--text-column",
        "ÄRENDE",
        "--id-column",
        "NR",
    ]));
    assert_eq!(ids(&output), ["A"]);
    let alone = stdout(classify().args(["--text", "Det långa brevet."]));
    assert_eq!(
        lines(&output)[0]["input_sha256"],
        lines(&alone)[0]["input_sha256"]
    );
}

#[test]
fn the_same_text_gives_the_same_bytes_in_every_encoding_and_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let csv = "id;händelse\n1;Två nätter på golvet.\n2;Läkaren gav fel dos.\n";
    let utf8 = write(folder.path(), "a.csv", csv);
    let (bytes, _, _) = encoding_rs::WINDOWS_1252.encode(csv);
    let latin = write(folder.path(), "b.csv", bytes);
    let utf16: Vec<u8> = csv.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16 = write(folder.path(), "c.csv", utf16);
    let expected = stdout(classify().arg(&utf8));
    assert_eq!(stdout(classify().arg(&latin)), expected);
    assert_eq!(stdout(classify().arg(&utf16)), expected);
    assert_eq!(
        stdout(classify().arg(&utf8).args(["--threads", "3"])),
        expected
    );
}

#[test]
fn all_probabilities_come_on_demand() {
    let args = ["--text", "Ingen kom.", "--all-probabilities"];
    let line = lines(&stdout(classify().args(args))).remove(0);
    assert_eq!(
        line["risk_area_probabilities"].as_object().unwrap().len(),
        21
    );
    assert!(line["risk_area_probabilities"]["lakemedel"].is_number());
    let line = lines(&stdout(classify().args(&args[..2]))).remove(0);
    assert!(line.get("risk_area_probabilities").is_none());
}

#[test]
fn csv_has_flat_columns_with_the_same_answers() {
    let output = stdout(classify().args(["fixtures/bulk/windows-1252.csv", "--format", "csv"]));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b';')
        .from_reader(output.as_bytes());
    let names: Vec<String> = reader
        .headers()
        .unwrap()
        .iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(
        names,
        [
            "id",
            "report_type",
            "sector",
            "risk_areas",
            "severity",
            "harm",
            "danger",
            "report_type_probability",
            "sector_probability",
            "risk_area_probabilities",
            "severity_probabilities",
            "harm_probability",
            "danger_probability",
            "model",
            "model_version",
            "model_sha256",
            "taxonomy",
            "engine",
            "input_sha256"
        ]
    );
    let json = lines(&stdout(classify().arg("fixtures/bulk/windows-1252.csv")));
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), json.len());
    for (row, line) in rows.iter().zip(&json) {
        let cell = |name: &str| &row[names.iter().position(|each| each == name).unwrap()];
        assert_eq!(cell("id"), line["id"]);
        assert_eq!(cell("sector"), line["sector"]["code"]);
        assert_eq!(cell("severity"), line["severity"]["level"].to_string());
        assert_eq!(cell("danger"), line["danger"]["value"].to_string());
        assert_eq!(
            cell("harm_probability"),
            line["harm"]["probability"].to_string()
        );
        let areas: Vec<&str> = line["risk_areas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|area| area["code"].as_str().unwrap())
            .collect();
        assert_eq!(cell("risk_areas"), areas.join("|"));
    }
    let all = stdout(classify().args(["--text", "a", "--format", "csv", "--all-probabilities"]));
    assert!(all.contains(";risk_area_lakemedel;"));
}

#[test]
fn the_table_is_in_swedish_and_fits_the_terminal() {
    let id = "2024-1 \u{1b}[31m";
    let line = serde_json::json!({"id": id, "text": "Mor föll."}).to_string();
    let output = stdout(
        classify()
            .args(["-", "--format", "table"])
            .write_stdin(line),
    );
    for word in ["Ärendetyp", "Riskområden", "Allvarlighetsgrad", " %"] {
        assert!(output.contains(word), "{word} is not in:\n{output}");
    }
    assert!(!output.contains('\u{1b}'));
    // Answers stand in one column, å, ä and ö or not.
    let columns: Vec<usize> = output
        .lines()
        .filter_map(|line| Some(line.split_once(" %")?.0.chars().count()))
        .collect();
    assert!(
        columns.windows(2).all(|pair| pair[0] == pair[1]),
        "{output}"
    );
    assert!(output.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn a_file_is_written_in_the_format_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, start) in [
        ("out.csv", "id;report_type;"),
        ("out.jsonl", "{\"id\":null,"),
    ] {
        let path = folder.path().join(name);
        classify()
            .args(["--text", "Ingen kom.", "-o"])
            .arg(&path)
            .assert()
            .success()
            .stdout("");
        assert!(std::fs::read_to_string(path).unwrap().starts_with(start));
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

#[test]
fn an_input_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.csv", "text\nIngen kom.\n");
    classify()
        .args([&path, "-o", &path])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("both input and output"));
    assert_eq!(std::fs::read(&path).unwrap(), b"text\nIngen kom.\n");
}

fn spawn(args: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin!("lyhord"))
        .args(["classify", "--model", MODEL])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = many_reports(folder.path(), 3000);
    for format in ["jsonl", "csv", "table"] {
        let mut child = spawn(&[&path, "--format", format]);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_finishes_what_is_under_way_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = many_reports(folder.path(), 5000);
    let mut child = spawn(&[&path]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut output = String::new();
    // From here the run waits for this reader, far from its end.
    stdout.read_line(&mut output).unwrap();
    let pid = child.id().to_string();
    let kill = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(kill.success());
    std::thread::sleep(std::time::Duration::from_millis(200));
    stdout.read_to_string(&mut output).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("interrupted"));
    let ids = ids(&output);
    assert!(ids.len() < 5000);
    let expected: Vec<String> = (0..ids.len()).map(|id| id.to_string()).collect();
    assert_eq!(ids, expected);
}

#[test]
fn a_wrong_command_line_is_told_from_an_error() {
    lyhord().assert().code(2);
    classify().assert().code(2);
    classify().args(["--text", "a", "b.csv"]).assert().code(2);
    classify()
        .args(["--text", "a", "--threads", "0"])
        .assert()
        .code(2);
    classify()
        .args(["a.csv", "--delimiter", "\""])
        .assert()
        .code(2);
    lyhord()
        .arg("--help")
        .assert()
        .success()
        .stdout(predicate::str::contains("130 interrupted"));
}

#[test]
fn a_model_can_be_looked_at_and_checked() {
    let info = stdout(lyhord().args(["model", "info", MODEL]));
    assert!(info.contains("name      tiny"), "{info}");
    assert!(info.contains("risk_areas: lakemedel diagnostik"), "{info}");
    assert!(stdout(lyhord().args(["model", "verify", MODEL])).contains("is whole"));

    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(MODEL).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let mut taxonomy = std::fs::OpenOptions::new()
        .append(true)
        .open(folder.path().join("taxonomy.toml"))
        .unwrap();
    taxonomy.write_all(b"# changed\n").unwrap();
    lyhord()
        .args(["model", "verify"])
        .arg(folder.path())
        .assert()
        .code(1)
        .stderr(predicate::str::contains("taxonomy.toml"));
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(stdout(lyhord().args(["completions", shell])).contains("classify"));
    }
}
