//! A run that is stopped, however, is gone on with: no report is lost and none
//! is there twice.

use assert_cmd::cargo::cargo_bin;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

const MODEL: &str = "fixtures/tiny-bundle";
/// Stands in rows that are left out: it must not be anywhere on disk.
const SECRET: &str = "Hemligtnamn";

fn command(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(cargo_bin("lyhord"));
    command
        .args(["classify", "--model", MODEL, "--threads", "1"])
        .arg(input)
        .arg("-o")
        .arg(output)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn run(input: &Path, output: &Path, args: &[&str]) -> Output {
    command(input, output).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn with_ending(output: &Path, ending: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The random numbers of a test. Its seed is printed, and taken from
/// `LYHORD_SEED` to do the same again.
fn random() -> ChaCha8Rng {
    let now = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
    };
    let seed = match std::env::var("LYHORD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => now().as_nanos() as u64,
    };
    println!("LYHORD_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// An export with all that makes a row differ from the others: texts that
/// repeat, near and far, ids that repeat, and rows to be left out.
fn export(folder: &Path, rows: usize) -> PathBuf {
    let mut csv = String::from("id;kommun;text\n");
    for row in 0..rows {
        let id = if row % 97 == 0 { 1 } else { row };
        csv += &match row % 13 {
            3 => format!(
                "{id};Ystad;Larmet fungerar inte. Protestbrev nummer {}.\n",
                row % 4
            ),
            7 => format!("{id};Ystad;\"Hon ramlade {} gånger\ni natt.\"\n", row / 2),
            9 => format!("{id};{SECRET};för få; {SECRET}\n"),
            11 => format!("{id};Ystad; \n"),
            _ => format!("{id};Ystad;Ingen kom förrän {row} minuter senare.\n"),
        };
    }
    let path = folder.join("export.csv");
    fs::write(&path, csv).unwrap();
    path
}

/// What must be the same however often a run was stopped.
fn results(output: &Path) -> (Vec<u8>, Vec<u8>) {
    let rejected = with_ending(output, ".rejected.jsonl");
    (fs::read(output).unwrap(), fs::read(rejected).unwrap())
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Lets a run go until its journal speaks of some rows, and kills it.
fn killed_after_a_commit(input: &Path, output: &Path, args: &[&str]) {
    let mut child = command(input, output)
        .args(args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = with_ending(output, ".journal");
    wait_until(&mut child, || {
        let state = fs::read(&journal).ok()?;
        let state: Value = serde_json::from_slice(&state).ok()?;
        (state["rows"].as_u64()? > 0).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

fn wait_until<T>(child: &mut Child, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        assert!(started.elapsed() < Duration::from_secs(60), "took too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_killed_at_100_random_moments_ends_as_if_it_never_was() {
    let mut random = random();
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 10_000);
    let args = ["--keep", "--group-duplicates", "--resume"];
    let mut left = 100;
    for name in ["out.jsonl", "out.csv", "out.parquet"].iter().cycle() {
        let expected = folder.path().join(format!("expected-{name}"));
        let started = Instant::now();
        assert_eq!(run(&input, &expected, &args).status.code(), Some(3));
        let whole = started.elapsed();
        let output = folder.path().join(name);
        let mut is_done = false;
        while left > 0 && !is_done {
            let mut child = command(&input, &output)
                .args(args)
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(whole.mul_f64(random.random_range(0.0..0.6)));
            child.kill().unwrap();
            is_done = child.wait().unwrap().code().is_some();
            left -= usize::from(!is_done);
        }
        if !is_done {
            let ended = run(&input, &output, &args);
            assert_eq!(ended.status.code(), Some(3), "{}", stderr(&ended));
        }
        assert!(results(&output) == results(&expected), "{name} differs");
        fs::remove_file(&output).unwrap();
        fs::remove_file(with_ending(&output, ".rejected.jsonl")).unwrap();
        if left == 0 {
            break;
        }
    }
    let leftovers: Vec<String> = files(folder.path())
        .into_iter()
        .filter(|name| !name.starts_with("expected-") && name != "export.csv")
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn every_row_is_once_in_the_output_or_once_in_the_list_of_those_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 1_000);
    let output = folder.path().join("out.jsonl");
    let ended = run(&input, &output, &[]);
    assert_eq!(ended.status.code(), Some(3), "{}", stderr(&ended));
    assert!(!stderr(&ended).contains(SECRET));
    let (assessed, rejected) = results(&output);
    let lines = |bytes: &[u8]| -> Vec<Value> {
        let lines = bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    };
    let (assessed, rejected) = (lines(&assessed), lines(&rejected));
    assert_eq!(assessed.len() + rejected.len(), 1_000);
    let is_left_out = |row: u64| [9, 11].contains(&((row - 1) % 13));
    let numbers = rejected.iter().map(|line| line["row"].as_u64().unwrap());
    assert!(numbers.clone().all(is_left_out));
    assert_eq!(
        numbers.count(),
        (1..=1_000).filter(|row| is_left_out(*row)).count()
    );
    for line in &rejected {
        assert_eq!(line["file"], input.to_str().unwrap());
        let reason = line["reason"].as_str().unwrap();
        assert!(["wrong_columns", "no_text"].contains(&reason), "{reason}");
        assert!(!line.to_string().contains(SECRET));
    }
    assert_eq!(
        files(folder.path()),
        ["export.csv", "out.jsonl", "out.jsonl.rejected.jsonl"]
    );
}

#[test]
fn an_interrupted_run_keeps_its_rows_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 40_000);
    let expected = folder.path().join("expected.jsonl");
    run(&input, &expected, &[]);
    let output = folder.path().join("out.jsonl");
    let mut child = command(&input, &output).spawn().unwrap();
    let journal = with_ending(&output, ".journal");
    wait_until(&mut child, || {
        let state: Value = serde_json::from_slice(&fs::read(&journal).ok()?).ok()?;
        (state["rows"].as_u64()? > 0).then_some(())
    });
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
    assert!(
        stderr(&ended).contains("with --resume to go on"),
        "{}",
        stderr(&ended)
    );
    assert!(!output.exists());

    // Without being told to go on, nothing is thrown away.
    let refused = run(&input, &output, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("go on with --resume, or delete"));

    let ended = run(&input, &output, &["--resume"]);
    assert_eq!(ended.status.code(), Some(3), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("going on after"));
    assert!(results(&output) == results(&expected));
}

#[test]
fn a_run_about_something_else_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 40_000);
    let output = folder.path().join("out.jsonl");
    killed_after_a_commit(&input, &output, &[]);
    let refused = |args: &[&str], reason: &str| {
        let ended = run(&input, &output, args);
        assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
        assert!(stderr(&ended).contains(reason), "{}", stderr(&ended));
    };
    refused(&["--resume", "--keep"], "other options: keep");
    let other = fs::read_to_string(&input).unwrap();
    fs::write(&input, other.replacen("Ystad", "Ystaf", 1)).unwrap();
    refused(&["--resume"], "has changed, though not its length");
    fs::write(&input, other.clone() + "\n").unwrap();
    refused(&["--resume"], "export.csv has changed: it had");
    fs::write(&input, other).unwrap();

    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(MODEL).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let manifest = fs::read_to_string(model.join("manifest.json")).unwrap();
    fs::write(model.join("manifest.json"), manifest + "\n").unwrap();
    let ended = Command::new(cargo_bin("lyhord"))
        .args(["classify", "--resume", "--model"])
        .arg(&model)
        .arg(&input)
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    assert!(
        stderr(&ended).contains("begun with the model"),
        "{}",
        stderr(&ended)
    );

    // What is strict, or shown, may be chosen anew.
    let ended = run(&input, &output, &["--resume", "--max-rejected", "1000000"]);
    assert_eq!(ended.status.code(), Some(3), "{}", stderr(&ended));
}

#[test]
fn what_was_written_is_not_changed_behind_the_back_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 40_000);
    let output = folder.path().join("out.jsonl");
    killed_after_a_commit(&input, &output, &[]);
    fs::write(with_ending(&output, ".part"), "").unwrap();
    let ended = run(&input, &output, &["--resume"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        stderr(&ended).contains("it was changed"),
        "{}",
        stderr(&ended)
    );

    fs::write(with_ending(&output, ".journal"), "{").unwrap();
    let ended = run(&input, &output, &["--resume"]);
    assert!(
        stderr(&ended).contains("its journal is not"),
        "{}",
        stderr(&ended)
    );
    // To begin anew takes what the message says.
    fs::remove_file(with_ending(&output, ".journal")).unwrap();
    assert_eq!(run(&input, &output, &[]).status.code(), Some(3));
}

#[test]
fn the_second_of_two_runs_to_one_output_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 40_000);
    let expected = folder.path().join("expected.jsonl");
    run(&input, &expected, &[]);
    let output = folder.path().join("out.jsonl");
    let mut first = command(&input, &output)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = with_ending(&output, ".part");
    wait_until(&mut first, || part.exists().then_some(()));
    std::thread::sleep(Duration::from_millis(20));
    for args in [&[][..], &["--resume"]] {
        let second = run(&input, &output, args);
        assert_eq!(second.status.code(), Some(1));
        let message = stderr(&second);
        assert!(message.contains("another run is writing to"), "{message}");
    }
    assert_eq!(first.wait().unwrap().code(), Some(3));
    assert!(results(&output) == results(&expected));
}

#[test]
fn clocks_that_go_back_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let input = export(folder.path(), 40_000);
    let expected = folder.path().join("expected.jsonl");
    run(&input, &expected, &[]);
    let output = folder.path().join("out.jsonl");
    killed_after_a_commit(&input, &output, &[]);
    // As if the clock had been decades ahead when the files were written.
    let future = SystemTime::now() + Duration::from_secs(60 * 60 * 24 * 365 * 30);
    for path in [
        input.clone(),
        with_ending(&output, ".part"),
        with_ending(&output, ".journal"),
        with_ending(&output, ".rejected.jsonl.part"),
    ] {
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(future).unwrap();
    }
    assert_eq!(run(&input, &output, &["--resume"]).status.code(), Some(3));
    assert!(results(&output) == results(&expected));
}

#[test]
fn standard_input_can_be_classified_to_a_file_but_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    let run = |args: &[&str]| {
        assert_cmd::Command::new(cargo_bin("lyhord"))
            .args(["classify", "--model", MODEL, "-", "-o"])
            .arg(&output)
            .args(args)
            .write_stdin("{\"text\":\"Ingen kom.\"}\n")
            .output()
            .unwrap()
    };
    assert_eq!(run(&[]).status.code(), Some(0));
    assert_eq!(files(folder.path()), ["out.jsonl"]);
    // There is nothing to go on with, so it begins.
    assert_eq!(run(&["--resume"]).status.code(), Some(0));
}
