//! What a program that embeds the classifier may rely on.

use lyhord::{Classifier, ClassifierOptions, ErrorKind, Precision, Report};
use std::cell::Cell;
use std::rc::Rc;

fn options() -> ClassifierOptions {
    ClassifierOptions::new().threads(2)
}

fn tiny(options: &ClassifierOptions) -> Classifier {
    options.from_dir("fixtures/tiny-bundle").unwrap()
}

/// Reports of very different lengths, many of them longer than one window.
fn reports() -> Vec<Report> {
    let sentences = [
        "Brukaren fick dubbel dos insulin på kvällen.",
        "Mamma ramlade i natt och ingen kom när hon larmade!",
        "Vi har väntat i 14 månader på en operation.",
        "Personalen låste in honom på rummet.",
        "Jag vill klaga på bemötandet\n\noch på att ingen ringer tillbaka.",
    ];
    (0..60)
        .map(|index| {
            let length = [1, 2, 3, 5, 40, 1][index % 6];
            let text: Vec<_> = (0..length)
                .map(|n| sentences[(index + n * n) % sentences.len()])
                .collect();
            Report::new(text.join(" ")).with_id(index.to_string())
        })
        .collect()
}

fn json(classifier: &Classifier, reports: &[Report]) -> Vec<String> {
    classifier
        .assess_batch(reports)
        .into_iter()
        .map(|result| serde_json::to_string(&result.unwrap().with_all_probabilities()).unwrap())
        .collect()
}

#[test]
fn a_report_gives_the_same_bytes_whatever_the_batch_the_order_and_the_threads() {
    for precision in [Precision::F32, Precision::Int8] {
        let options = options().precision(precision);
        let reports = reports();
        let expected = json(&tiny(&options), &reports);
        for (threads, batch) in [(1, 256), (1, 1), (3, 7), (5, 1000)] {
            let classifier = tiny(&options.clone().threads(threads).batch(batch));
            assert_eq!(json(&classifier, &reports), expected, "{threads} threads");
        }
        for threads in 1..=3 {
            let together = tiny(&options.clone().threads(threads).latency(true));
            assert_eq!(json(&together, &reports), expected, "{threads} together");
        }
        let classifier = tiny(&options);
        let backwards: Vec<_> = reports.iter().rev().cloned().collect();
        let mut results = json(&classifier, &backwards);
        results.reverse();
        assert_eq!(results, expected);
        for (report, expected) in reports.iter().zip(&expected) {
            let alone = classifier.assess(report).unwrap();
            let alone = serde_json::to_string(&alone.with_all_probabilities()).unwrap();
            assert_eq!(&alone, expected);
        }
    }
}

#[cfg(feature = "embedded")]
#[test]
fn threads_that_share_a_text_say_the_same_of_it_with_the_shipped_model() {
    for precision in [Precision::F32, Precision::Int8] {
        let options = options().precision(precision);
        let alone = options.clone().threads(1).embedded().unwrap();
        let together = options.threads(2).latency(true).embedded().unwrap();
        let reports = reports();
        assert_eq!(
            json(&together, &reports[..12]),
            json(&alone, &reports[..12])
        );
    }
}

/// What the model says, without what the text alone decides.
fn answers(classifier: &Classifier, reports: &[Report]) -> Vec<serde_json::Value> {
    let answer = |line: String| {
        let mut value: serde_json::Value = serde_json::from_str(&line).unwrap();
        value.as_object_mut().unwrap().remove("input_sha256");
        value
    };
    json(classifier, reports).into_iter().map(answer).collect()
}

#[test]
fn different_texts_give_different_answers() {
    let mut results = answers(
        &tiny(&options()),
        &[
            Report::new("Brukaren fick dubbel dos insulin."),
            Report::new("Mamma ramlade i natt."),
        ],
    );
    results.dedup();
    assert_eq!(results.len(), 2);
}

#[test]
fn results_stand_in_the_order_of_the_reports_and_errors_in_their_places() {
    let mut reports = reports();
    reports.insert(3, Report::new(" \n\u{a0}\u{200b}").with_id("empty"));
    let texts = reports.len();
    reports.extend(["", "-", " … \n\n", "\u{fffd}"].map(Report::new));
    let results = tiny(&options().batch(4)).assess_batch(&reports);
    assert_eq!(results.len(), reports.len());
    for (index, (report, result)) in reports.iter().zip(results).enumerate() {
        match result {
            Ok(assessment) => assert_eq!(assessment.id(), report.id()),
            Err(error) => {
                assert!(index == 3 || index >= texts);
                assert_eq!(error.kind(), ErrorKind::InvalidReport);
                assert!(error.to_string().contains("has no text"), "{error}");
            }
        }
    }
}

#[test]
fn a_stream_reads_ahead_by_at_most_two_batches() {
    let classifier = tiny(&options().batch(5));
    let read = Rc::new(Cell::new(0_usize));
    let counter = Rc::clone(&read);
    let reports = (0..100).map(move |index| {
        counter.set(counter.get() + 1);
        Report::new("Larmet fungerar inte.").with_id(index.to_string())
    });
    let mut results = classifier.assess_stream(reports);
    for index in 0..100 {
        let assessment = results.next().unwrap().unwrap();
        assert_eq!(assessment.id(), Some(index.to_string().as_str()));
        assert!(read.get() <= index + 10, "{} read at {index}", read.get());
    }
    assert!(results.next().is_none());
    assert!(results.next().is_none());
}

#[test]
fn a_stream_may_be_dropped_early_and_outlive_its_classifier() {
    let classifier = tiny(&options().batch(2));
    let endless = std::iter::repeat_with(|| Report::new("Larmet fungerar inte."));
    assert_eq!(classifier.assess_stream(endless).take(3).count(), 3);
    let results = classifier.assess_stream(endless);
    drop(classifier);
    assert!(results.take(7).all(|result| result.is_ok()));
}

#[test]
fn one_sentence_at_the_end_of_a_long_letter_counts() {
    let classifier = tiny(&options());
    let filler = "Vi har väntat i 14 månader på en operation. ".repeat(40);
    let sentence = "Mamma ramlade i natt och ingen kom när hon larmade!";
    let without = answers(&classifier, &[Report::new(filler.as_str())]);
    let with = answers(&classifier, &[Report::new(format!("{filler}{sentence}"))]);
    assert_ne!(without, with);
}

#[test]
fn a_text_of_half_a_megabyte_is_assessed_whole() {
    // In the tiny model's windows, as many as 5 MB have in a real one's.
    let text = "Mamma ramlade i natt och ingen kom när hon larmade! ".repeat(10_000);
    let classifier = tiny(&options());
    let assessment = classifier.assess(&Report::new(text)).unwrap();
    assert!(assessment.severity().is_some());
}

#[test]
fn odd_characters_are_assessed_like_any_text() {
    let classifier = tiny(&options());
    for text in [
        "😀😀😀",
        "مرحبا",
        "\u{202e}larmet\u{202c}",
        "a",
        "</s>",
        "\0larm\u{7}",
    ] {
        assert!(classifier.assess(&Report::new(text)).is_ok(), "{text:?}");
    }
}

#[test]
fn attention_adds_up_to_one_over_all_windows_and_leads_back_to_the_text() {
    let classifier = tiny(&options());
    let text = "Mamma ramlade i natt.\u{ad} Ingen kom! ".repeat(40);
    let attention = classifier.attend(&Report::new(text.as_str())).unwrap();
    let characters = text.chars().count();
    assert!(
        attention
            .tokens()
            .iter()
            .all(|token| token.end <= characters)
    );
    assert!(
        attention
            .tokens()
            .windows(2)
            .all(|pair| pair[0].start <= pair[1].start)
    );
    for head in classifier.taxonomy().heads() {
        for label in 0..head.labels().len() {
            let weights = attention.weights(head.name(), label);
            assert_eq!(weights.len(), attention.tokens().len());
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        }
        assert!(
            attention
                .weights(head.name(), head.labels().len())
                .is_empty()
        );
    }
    assert!(attention.weights("no such head", 0).is_empty());
}

#[test]
fn a_classifier_is_shared_by_threads() {
    fn shareable<T: Send + Sync + Clone + 'static>(_: &T) {}
    let classifier = tiny(&options());
    shareable(&classifier);
    let reports = reports();
    let expected = json(&classifier, &reports);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(json(&classifier.clone(), &reports), expected));
        }
    });
}

#[test]
fn an_option_that_cannot_be_used_is_named() {
    for (options, name) in [
        (options().threads(0), "threads"),
        (options().batch(0), "batch"),
    ] {
        let error = options.from_dir("fixtures/tiny-bundle").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn debug_output_and_errors_never_hold_a_text() {
    let classifier = tiny(&options());
    assert!(format!("{classifier:?}").contains("tiny"));
    let report = Report::new("hemlig");
    assert!(!format!("{report:?}").contains("hemlig"));
}
