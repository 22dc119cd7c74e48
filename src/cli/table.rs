//! Assessments for people at a terminal, in Swedish.

use lyhord::bulk::AssessmentWriter;
use lyhord::text::NormalisedText;
use lyhord::{Assessment, Outcome, Probability};
use std::io::{self, Write};
use textwrap::core::display_width;

/// Writes each assessment as lines of name, probability and answer, broken to
/// the terminal's width.
pub struct TableWriter<W> {
    writer: W,
    width: usize,
    is_first: bool,
}

impl<W: Write> TableWriter<W> {
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            width: textwrap::termwidth(),
            is_first: true,
        }
    }

    fn text(&mut self, assessment: &Assessment) -> String {
        let mut text = String::new();
        if !std::mem::take(&mut self.is_first) {
            text.push('\n');
        }
        let id = assessment.id().unwrap_or("(utan id)");
        // An id could otherwise steer the terminal.
        text += &NormalisedText::new(id).as_str().replace('\n', " ");
        text.push('\n');
        let heads = assessment.taxonomy().heads();
        let title_width = heads.iter().map(|head| display_width(head.title())).max();
        for (head, outcome) in assessment.outcomes() {
            let mut title = head.title();
            for (probability, answer) in lines(&outcome) {
                let padding = title_width.unwrap_or(0) - display_width(title);
                let start = format!("  {title}{:padding$}  {probability:>6}  ", "");
                let indent = " ".repeat(display_width(&start));
                // However narrow the terminal, there is room for some words.
                let options = textwrap::Options::new(self.width.max(indent.len() + 20))
                    .initial_indent(&start)
                    .subsequent_indent(&indent);
                text += &textwrap::fill(&answer, options);
                text.push('\n');
                title = "";
            }
        }
        text
    }
}

impl<W: Write> AssessmentWriter for TableWriter<W> {
    fn write(&mut self, assessment: &Assessment) -> io::Result<()> {
        let text = self.text(assessment);
        self.writer.write_all(text.as_bytes())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Probabilities and answers.
fn lines(outcome: &Outcome<'_>) -> Vec<(String, String)> {
    match outcome {
        Outcome::Labels(labels) if labels.is_empty() => vec![(String::new(), "inga".to_owned())],
        Outcome::Labels(labels) => labels
            .iter()
            .map(|label| (percent(label.probability()), label.name().to_owned()))
            .collect(),
        Outcome::Label(label) => vec![(percent(label.probability()), label.name().to_owned())],
        Outcome::Level(level) => vec![(
            percent(level.probability()),
            format!("{} {}", level.level(), level.name()),
        )],
        Outcome::Binary(answer) => vec![match answer.value() {
            true => (percent(answer.probability()), "ja".to_owned()),
            false => (percent(answer.probability().complement()), "nej".to_owned()),
        }],
        _ => Vec::new(),
    }
}

/// In whole percent, but never certain.
fn percent(probability: Probability) -> String {
    match probability.get() * 100.0 {
        percent if percent < 1.0 => "< 1 %".to_owned(),
        percent if percent > 99.0 => "> 99 %".to_owned(),
        percent => format!("{percent:.0} %"),
    }
}
