//! Training: any taxonomy, runs that can be killed, models that can be made again.

use lyhord::train::{TrainEvent, TrainJob, TrainOptions, read_labelled, train};
use lyhord::{Classifier, ErrorKind, Report, Taxonomy};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const TOPICS: &str = r#"
version = "2"
language = "sv"
[topic]
sport = "Sport"
resor = "Resor: till lands, till sjöss och i luften"
halsa = "Hälsa"
"#;

/// Short texts whose topic follows from their words, as in topic benchmarks.
fn topic_texts(count: usize, offset: usize) -> String {
    let words = [
        ("sport", ["matchen", "målet", "laget", "tränaren", "ligan"]),
        ("resor", ["tåget", "båten", "flyget", "resan", "hotellet"]),
        (
            "halsa",
            ["medicinen", "läkaren", "febern", "sjukhuset", "provet"],
        ),
    ];
    let frames = [
        "Vi pratade om",
        "I går kom",
        "Ingen såg",
        "Alla väntade på",
        "Till slut fick vi",
    ];
    let mut lines = String::new();
    for i in offset..offset + count {
        let (topic, words) = words[i % 3];
        let (a, b) = (words[i / 3 % 5], words[i / 15 % 5]);
        let frame = frames[i / 7 % 5];
        writeln!(
            lines,
            r#"{{"id": "t{i}", "text": "{frame} {a} och {b} nummer {i}.", "topic": "{topic}"}}"#
        )
        .unwrap();
    }
    lines
}

/// A folder with a small base encoder, data and taxonomy.
fn workshop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    let tiny = Path::new("fixtures/tiny-bundle");
    for name in ["tokenizer.json", "model.safetensors"] {
        fs::copy(tiny.join(name), base.join(name)).unwrap();
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    fs::write(base.join("config.json"), config["encoder"].to_string()).unwrap();
    fs::write(dir.path().join("topics.toml"), TOPICS).unwrap();
    fs::write(dir.path().join("train.jsonl"), topic_texts(240, 0)).unwrap();
    fs::write(dir.path().join("dev.jsonl"), topic_texts(60, 240)).unwrap();
    dir
}

fn job(dir: &Path, output: &str) -> TrainJob {
    TrainJob {
        data: vec![dir.join("train.jsonl")],
        lexical_data: Vec::new(),
        dev: vec![dir.join("dev.jsonl")],
        taxonomy: dir.join("topics.toml"),
        base: dir.join("base"),
        output: dir.join(output),
        name: "topics".into(),
        version: "0.1.0".into(),
        command: "lyhord train".into(),
        card: None,
        cuda: false,
        average_with: Vec::new(),
        groups: None,
        top_recall: lyhord::train::TOP_RECALL,
    }
}

fn quick() -> TrainOptions {
    let mut options = TrainOptions::default();
    options.epochs = 4;
    options.tokens_per_step = 400;
    options.encoder_rate = 1e-3;
    options.head_rate = 1e-2;
    options.average_decay = 0.9;
    options.attention_size = 16;
    options
}

#[test]
fn another_agency_trains_on_its_own_labels_without_touching_rust() {
    let dir = workshop();
    let mut job = job(dir.path(), "model");
    let groups = dir.path().join("groups.csv");
    fs::write(&groups, "id,channel\nt240,letter\nt241,letter\nt242,web\n").unwrap();
    job.groups = Some(groups);
    let mut losses = Vec::new();
    let mut epochs = 0;
    let manifest = train(&job, &quick(), &mut |event| {
        match event {
            TrainEvent::Step(step) => losses.push(step.loss),
            TrainEvent::Epoch { .. } => epochs += 1,
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    assert!(epochs >= 1);
    assert!(losses.last().unwrap() < &(0.5 * losses[0]), "{losses:?}");
    assert_eq!(manifest.name, "topics");
    let card = fs::read_to_string(job.output.join("MODEL_CARD.md")).unwrap();
    assert!(card.contains("letter") && card.contains("web"), "{card}");

    let classifier = Classifier::from_dir(&job.output).unwrap();
    let taxonomy = classifier.taxonomy();
    let dev = read_labelled(&job.dev[0], taxonomy).unwrap();
    let right = dev
        .iter()
        .filter(|report| {
            let assessment = classifier
                .assess(&Report::new(report.text.clone()))
                .unwrap();
            let json = serde_json::to_value(&assessment).unwrap();
            let index = taxonomy.heads()[0].label_index(json["topic"]["code"].as_str().unwrap());
            Some(lyhord::train::Target::Class(index.unwrap())) == report.targets[0]
        })
        .count();
    assert!(right * 10 >= dev.len() * 9, "{right} of {}", dev.len());
}

#[test]
fn a_killed_run_resumes_to_the_very_model_that_an_unbroken_one_gives() {
    let dir = workshop();
    let (whole, broken) = (job(dir.path(), "whole"), job(dir.path(), "broken"));
    let options = quick();
    train(&whole, &options, &mut |_| Ok(())).unwrap();
    for steps in [3, 17] {
        let mut stopped = options.clone();
        stopped.stop_after = Some(steps);
        train(&broken, &stopped, &mut |_| Ok(())).unwrap_err();
    }
    let mut resumed = None;
    train(&broken, &options, &mut |event| {
        if let TrainEvent::Resumed { step } = event {
            resumed = Some(*step);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(resumed, Some(17));
    for name in ["model.safetensors", "calibration.json", "config.json"] {
        let read = |job: &TrainJob| fs::read(job.output.join(name)).unwrap();
        assert!(read(&whole) == read(&broken), "{name} differs");
    }
}

#[test]
fn a_checkpoint_of_other_options_or_data_is_refused() {
    let dir = workshop();
    let job = job(dir.path(), "model");
    let mut options = quick();
    options.stop_after = Some(2);
    train(&job, &options, &mut |_| Ok(())).unwrap_err();
    let mut twice = job.clone();
    twice.data.push(job.data[0].clone());
    let mut other_seed = options.clone();
    other_seed.seed += 1;
    for (job, options) in [(&job, &other_seed), (&twice, &options)] {
        let error = train(job, options, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(
            error.to_string().contains("checkpoint.safetensors"),
            "{error}"
        );
    }
}

#[test]
fn a_run_averaged_with_its_equal_is_itself_and_one_that_does_not_fit_is_named_at_once() {
    let dir = workshop();
    let first = job(dir.path(), "first");
    let mut second = job(dir.path(), "second");
    train(&first, &quick(), &mut |_| Ok(())).unwrap();
    second.average_with = vec![dir.path().join("nowhere")];
    let error = train(&second, &quick(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    second.average_with = vec!["fixtures/tiny-bundle".into()];
    let mut steps = 0;
    let error = train(&second, &quick(), &mut |_| {
        steps += 1;
        Ok(())
    })
    .unwrap_err();
    assert!(error.to_string().contains("labels"), "{error}");
    assert_eq!(steps, 0, "found out after training");
    second.average_with = vec![first.output.clone()];
    train(&second, &quick(), &mut |_| Ok(())).unwrap();
    // Those of the first are rounded, so the inputs' magnitudes differ a little.
    let weights = |job: &TrainJob| tensors(job, |name| !name.ends_with(".input_magnitudes"));
    assert!(weights(&first) == weights(&second));
}

/// The tensors of a job's bundle whose names pass, in the order of their names.
fn tensors(job: &TrainJob, pass: impl Fn(&str) -> bool) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(job.output.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .filter(|(name, _)| pass(name))
        .map(|(name, tensor)| (name, tensor.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

#[test]
fn lexical_data_change_the_lexical_path_alone_and_must_not_be_measured_with() {
    let dir = workshop();
    let all = fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
    let lines: Vec<&str> = all.lines().collect();
    let (before, now) = lines.split_at(lines.len() / 2);
    fs::write(dir.path().join("before.jsonl"), before.join("\n")).unwrap();
    fs::write(dir.path().join("train.jsonl"), now.join("\n")).unwrap();
    let without = job(dir.path(), "without");
    let mut with = job(dir.path(), "with");
    with.lexical_data = vec![dir.path().join("before.jsonl")];
    let mut options = quick();
    options.epochs = 1;
    for job in [&without, &with] {
        train(job, &options, &mut |_| Ok(())).unwrap();
    }
    let lexical = |name: &str| name.starts_with("lexical.");
    assert!(tensors(&without, lexical) != tensors(&with, lexical));
    assert!(tensors(&without, |name| !lexical(name)) == tensors(&with, |name| !lexical(name)));

    with.lexical_data = vec![dir.path().join("dev.jsonl")];
    let error = train(&with, &options, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn a_bundle_says_how_large_the_inputs_of_its_linear_layers_are() {
    let dir = workshop();
    let job = job(dir.path(), "model");
    let mut options = quick();
    options.epochs = 1;
    train(&job, &options, &mut |_| Ok(())).unwrap();
    let magnitudes = tensors(&job, |name| name.ends_with(".input_magnitudes"));
    let layers = tensors(&job, |name| name.ends_with(".output.LayerNorm.weight")).len() / 2;
    assert_eq!(magnitudes.len(), 4 * layers);
    for (name, bytes) in &magnitudes {
        let values = bytes.as_chunks().0.iter();
        let mut values = values.map(|bytes| f32::from_le_bytes(*bytes));
        assert!(values.all(|x| x.is_finite() && x >= 0.0), "{name}");
        assert!(bytes.iter().any(|byte| *byte != 0), "{name}");
    }
}

#[test]
fn training_goes_on_from_a_model_and_keeps_its_heads_where_the_labels_are_the_same() {
    let dir = workshop();
    let first = job(dir.path(), "first");
    train(&first, &quick(), &mut |_| Ok(())).unwrap();
    let first_loss = |name: &str, taxonomy: &str| {
        fs::write(dir.path().join("topics.toml"), taxonomy).unwrap();
        let mut next = job(dir.path(), name);
        next.base = first.output.clone();
        let mut options = quick();
        options.epochs = 1;
        let mut losses = Vec::new();
        train(&next, &options, &mut |event| {
            if let TrainEvent::Step(step) = event {
                losses.push(step.loss);
            }
            Ok(())
        })
        .unwrap();
        losses[0]
    };
    let same = first_loss("same", TOPICS);
    let other = first_loss("other", &format!("{TOPICS}\nmat = \"Mat\"\n"));
    assert!(same < 0.5 * other, "{same} against {other}");

    let weights = first.output.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let mut next = job(dir.path(), "next");
    next.base = first.output.clone();
    let error = train(&next, &quick(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn frozen_layers_keep_the_weights_of_the_base() {
    let dir = workshop();
    let tensors = |path: &Path| {
        let bytes = fs::read(path.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let owned = tensors
            .tensors()
            .into_iter()
            .map(|(n, t)| (n, t.data().to_vec()));
        owned.collect::<std::collections::HashMap<_, _>>()
    };
    let tuned = |name: &str, recompute_frozen: bool| {
        let job = job(dir.path(), name);
        let mut options = quick();
        options.freeze = Some(1);
        options.recompute_frozen = recompute_frozen;
        options.epochs = 1;
        train(&job, &options, &mut |_| Ok(())).unwrap();
        let (base, tuned) = (tensors(&job.base), tensors(&job.output));
        let same = |name: &str| base[name] == tuned[name];
        assert!(same("embeddings.word_embeddings.weight"));
        assert!(same("encoder.layer.0.output.dense.weight"));
        assert!(!same("encoder.layer.1.output.dense.weight"));
        tuned
    };
    // Computed anew, the texts are varied and put together: another model.
    assert_ne!(tuned("once", false), tuned("anew", true));
}

#[test]
fn a_text_in_both_training_and_dev_data_is_refused() {
    let dir = workshop();
    let job = job(dir.path(), "model");
    fs::write(&job.dev[0], topic_texts(10, 200)).unwrap();
    let error = train(&job, &quick(), &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("t200"), "{error}");
}

#[test]
fn records_that_do_not_fit_the_taxonomy_are_named_by_file_line_and_field() {
    let taxonomy = Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    let good = r#"{"text": "Hemlig text.", "severity": 2}"#;
    for (bad, expected) in [
        (r#"["Hemlig text."]"#, "not a JSON object"),
        (r#"{"text": "   "}"#, "`text`"),
        (r#"{"text": "Hemlig text.", "severity": 7}"#, "from 0 to 4"),
        (r#"{"text": "Hemlig text.", "harm": "ja"}"#, "`harm`"),
        (
            r#"{"text": "Hemlig text.", "risk_areas": ["okänd"]}"#,
            "okänd",
        ),
        (r#"{"text": "Hemlig text.", "sector": "okänd"}"#, "`sector`"),
        (
            r#"{"text": "Hemlig text.", "sector": "Hemlig text i fel fält"}"#,
            "`sector`",
        ),
        ("{\"text\": \"\u{200b}\u{feff}\"}", "`text`"),
        (
            r#"{"text": "Hemlig text.", "risk_areas": [], "evidence": {"fall": [[0, 6]]}}"#,
            "`risk_areas` lacks",
        ),
        (
            r#"{"text": "Hemlig text.", "evidence": {"fall": [[3, 99]]}}"#,
            "ends after",
        ),
        (
            r#"{"text": "Hemlig text.", "evidence": {"annat": [[3, 9]]}}"#,
            "annat",
        ),
    ] {
        fs::write(&path, format!("{good}\n\n{bad}\n")).unwrap();
        let error = read_labelled(&path, &taxonomy).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(message.contains("data.jsonl, line 3"), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("Hemlig"), "{message}");
    }
}
