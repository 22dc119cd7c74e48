//! From labelled reports to the packed token matrices of one step.

use super::augment::{TracedText, augment};
use super::data::{Evidence, LabelledReport, Target};
use super::loss::EvidenceTokens;
use super::network::{Batch, Input};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{EncoderConfig, WindowConfig};
use crate::taxonomy::{HeadKind, Taxonomy};
use crate::text::windows;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

/// Texts of at most this many characters may be put together to longer ones.
const SHORT_TEXT_CHARS: usize = 300;

/// One training text: a report, or several short ones put together.
pub(super) type Item = Vec<usize>;

/// One text as tokens, without special tokens.
pub(super) struct Example {
    pub(super) ids: Vec<u32>,
    pub(super) targets: Vec<Option<Target>>,
    /// For each piece of evidence its query and tokens.
    evidence: Vec<(usize, Vec<usize>)>,
}

/// What one training step or one part of it reads.
pub(super) struct LabelledBatch {
    pub(super) batch: Batch,
    pub(super) targets: Vec<Vec<Option<Target>>>,
    pub(super) evidence: Vec<EvidenceTokens>,
}

/// The order of training texts in one epoch. Where `compose` is set, half of
/// the short texts are put together in groups of two to four: their labels add
/// up, and each part is the evidence of its own labels.
pub(super) fn epoch_items(
    reports: &[LabelledReport],
    compose: bool,
    seed: u64,
    epoch: u64,
) -> Vec<Item> {
    let mut rng = ChaCha8Rng::seed_from_u64(super::kernels::mix(seed, epoch));
    let mut items: Vec<Item> = Vec::with_capacity(reports.len());
    let mut short = Vec::new();
    for (index, report) in reports.iter().enumerate() {
        if compose && report.text.chars().count() <= SHORT_TEXT_CHARS && rng.random() {
            short.push(index);
        } else {
            items.push(vec![index]);
        }
    }
    short.shuffle(&mut rng);
    let mut rest = short.as_slice();
    while !rest.is_empty() {
        let (group, others) = rest.split_at(rng.random_range(2..=4).min(rest.len()));
        items.push(group.to_vec());
        rest = others;
    }
    items.shuffle(&mut rng);
    items
}

/// Joins short reports to one text with the labels of all of them.
fn compose(parts: &[&LabelledReport], taxonomy: &Taxonomy, separator: &str) -> LabelledReport {
    let mut joined = parts[0].clone();
    joined.text = String::new();
    joined.evidence.clear();
    let mut start = 0;
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            joined.text.push_str(separator);
            start += separator.chars().count();
        }
        joined.text.push_str(&part.text);
        let length = part.text.chars().count();
        let spans = |query: usize| {
            part.evidence.iter().find(|e| e.query == query).map_or_else(
                || std::iter::once(start..start + length).collect(),
                |e| {
                    e.spans
                        .iter()
                        .map(|s| s.start + start..s.end + start)
                        .collect()
                },
            )
        };
        for (index, head) in taxonomy.heads().iter().enumerate() {
            let target = &part.targets[index];
            if place > 0 {
                let sum = joined.targets[index].take();
                joined.targets[index] = match (sum, target) {
                    (Some(Target::Labels(mut all)), Some(Target::Labels(labels))) => {
                        all.extend(labels);
                        all.sort_unstable();
                        all.dedup();
                        Some(Target::Labels(all))
                    }
                    (Some(Target::Class(a)), Some(Target::Class(b))) => match head.kind() {
                        HeadKind::SingleLabel => (a == *b).then_some(Target::Class(a)),
                        _ => Some(Target::Class(a.max(*b))),
                    },
                    _ => None,
                };
            }
            let first = head.queries().start;
            match target {
                Some(Target::Labels(labels)) => {
                    for query in labels.iter().map(|label| first + label) {
                        joined.evidence.push(Evidence {
                            query,
                            spans: spans(query),
                        });
                    }
                }
                // The part with the highest level carries the level of the whole.
                Some(class) if head.kind() != HeadKind::SingleLabel => {
                    let highest = parts.iter().filter_map(|part| match &part.targets[index] {
                        Some(Target::Class(class)) => Some(*class),
                        _ => None,
                    });
                    if *class != Target::Class(0)
                        && highest.max().map(Target::Class).as_ref() == Some(class)
                    {
                        joined.evidence.push(Evidence {
                            query: first,
                            spans: spans(first),
                        });
                    }
                }
                _ => {}
            }
        }
        start += length;
    }
    // Where one part's target is unknown the whole's is, and so is its evidence.
    let heads = taxonomy.heads().iter().zip(&joined.targets);
    let unknown: Vec<_> = heads
        .filter(|(_, target)| target.is_none())
        .map(|(head, _)| head.queries())
        .collect();
    let known = |e: &Evidence| !unknown.iter().any(|queries| queries.contains(&e.query));
    joined.evidence.retain(known);
    joined
}

pub(super) struct Batcher<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) taxonomy: &'a Taxonomy,
    pub(super) encoder: &'a EncoderConfig,
    pub(super) window: &'a WindowConfig,
}

impl Batcher<'_> {
    /// Tokenises one item. With a seed, the text is varied by [`augment`].
    pub(super) fn example(
        &self,
        reports: &[LabelledReport],
        item: &[usize],
        augment_seed: Option<u64>,
    ) -> Result<Example> {
        let mut rng = ChaCha8Rng::seed_from_u64(augment_seed.unwrap_or(0));
        let joined;
        let report = match item {
            [index] => &reports[*index],
            several => {
                let parts: Vec<&LabelledReport> = several.iter().map(|i| &reports[*i]).collect();
                joined = compose(&parts, self.taxonomy, if rng.random() { " " } else { "\n" });
                &joined
            }
        };
        let traced = match augment_seed {
            Some(_) => augment(&report.text, &mut rng),
            None => TracedText::new(&report.text),
        };
        let encoding = self
            .tokenizer
            .encode_char_offsets(traced.text(), false)
            .map_err(|_| {
                // The tokeniser's own message could quote the text.
                Error::new(
                    ErrorKind::InvalidData,
                    format!("record {}: the text cannot be tokenised", report.id),
                )
            })?;
        let offsets = encoding.get_offsets();
        let evidence = report
            .evidence
            .iter()
            .map(|evidence| {
                let carries = |&(start, end): &(usize, usize)| {
                    (start..end)
                        .filter_map(|i| traced.origin(i))
                        .any(|o| evidence.spans.iter().any(|s| s.contains(&o)))
                };
                let tokens = offsets
                    .iter()
                    .enumerate()
                    .filter(|(_, o)| carries(o))
                    .map(|(t, _)| t)
                    .collect();
                (evidence.query, tokens)
            })
            .filter(|(_, tokens): &(usize, Vec<usize>)| !tokens.is_empty())
            .collect();
        if encoding.is_empty() && augment_seed.is_some() {
            // A variant may leave nothing of a text that was all punctuation.
            return self.example(reports, item, None);
        }
        if encoding.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("record {}: the text has no tokens", report.id),
            ));
        }
        Ok(Example {
            ids: encoding.get_ids().to_vec(),
            targets: report.targets.clone(),
            evidence,
        })
    }

    /// Packs examples to one batch. `states` replaces token ids by cached hidden
    /// states of each example's windows, special tokens included.
    pub(super) fn pack(
        &self,
        examples: Vec<Example>,
        states: Option<Vec<&[f32]>>,
    ) -> LabelledBatch {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut spans, mut kept, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut targets, mut evidence) = (Vec::new(), Vec::new());
        for (text, example) in examples.into_iter().enumerate() {
            let text_start = kept.len();
            for window in windows(
                example.ids.len(),
                self.window.max_tokens,
                self.window.overlap,
            ) {
                let row = ids.len();
                ids.push(self.encoder.bos_token_id);
                ids.extend(&example.ids[window.tokens.clone()]);
                ids.push(self.encoder.eos_token_id);
                positions.extend(
                    (0..ids.len() - row).map(|p| (p + self.encoder.position_offset()) as u32),
                );
                spans.push(row..ids.len());
                let offset = row + 1;
                kept.extend(
                    window
                        .keep
                        .map(|t| (t - window.tokens.start + offset) as u32),
                );
            }
            texts.push(text_start..kept.len());
            targets.push(example.targets);
            evidence.extend(
                example
                    .evidence
                    .into_iter()
                    .map(|(query, tokens)| EvidenceTokens {
                        text,
                        query,
                        tokens,
                    }),
            );
        }
        let input = match states {
            Some(states) => Input::States(states.concat()),
            None => Input::Tokens { ids, positions },
        };
        LabelledBatch {
            batch: Batch {
                input,
                windows: spans.into(),
                kept,
                texts: texts.into(),
            },
            targets,
            evidence,
        }
    }
}

/// Splits `0..lengths.len()` into consecutive groups of at most `budget` tokens;
/// a longer text is a group of its own.
pub(super) fn by_budget(lengths: &[usize], budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (index, length) in lengths.iter().enumerate() {
        if index > start && sum + length > budget {
            groups.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += length;
    }
    if start < lengths.len() {
        groups.push(start..lengths.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(
            "version = '1'\n\
             [heads.area]\nkind = 'multi_label'\n\
             [area]\na = 'A'\nb = 'B'\n\
             [topic]\nx = 'X'\ny = 'Y'\n\
             [level]\n0 = 'none'\n1 = 'some'\n2 = 'much'\n\
             [urgent]\nurgent = 'now'\n",
        )
        .unwrap()
    }

    fn part(text: &str, targets: [Option<Target>; 4], evidence: Vec<Evidence>) -> LabelledReport {
        let record = format!("{{\"id\": \"{text}\", \"text\": \"{text}\"}}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, record).unwrap();
        let mut report = crate::train::read_labelled(file.path(), &taxonomy())
            .unwrap()
            .remove(0);
        report.targets = targets.to_vec();
        report.evidence = evidence;
        report
    }

    fn marked(report: &LabelledReport) -> Vec<(usize, String)> {
        let chars: Vec<char> = report.text.chars().collect();
        let words = |e: &Evidence| {
            e.spans
                .iter()
                .map(|span| chars[span.clone()].iter().collect::<String>())
                .collect::<Vec<_>>()
                .join("|")
        };
        report
            .evidence
            .iter()
            .map(|e| (e.query, words(e)))
            .collect()
    }

    #[test]
    fn texts_put_together_have_the_labels_of_all_and_the_evidence_of_each() {
        let labels = |all: &[usize]| Some(Target::Labels(all.to_vec()));
        let class = |class| Some(Target::Class(class));
        let spans = |query, span: std::ops::Range<usize>| Evidence {
            query,
            spans: vec![span],
        };
        let first = part(
            "hon föll",
            [labels(&[1]), class(0), class(1), class(0)],
            vec![spans(1, 4..8)],
        );
        let second = part(
            "ingen kom",
            [labels(&[0]), class(1), class(2), class(1)],
            vec![],
        );
        let joined = compose(&[&first, &second], &taxonomy(), " ");
        assert_eq!(joined.text, "hon föll ingen kom");
        // Two topics are none; the higher level and any yes count.
        assert_eq!(joined.targets, [labels(&[0, 1]), None, class(2), class(1)]);
        // Queries: a, b, topic, level, urgent. Without marks, a part is its own
        // evidence; the level is shown by the part that has it.
        let expected = [
            (1, "föll"),
            (0, "ingen kom"),
            (3, "ingen kom"),
            (4, "ingen kom"),
        ];
        let found = marked(&joined);
        for (query, words) in expected {
            assert!(found.contains(&(query, words.to_owned())), "{found:?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:?}");
    }

    #[test]
    fn what_one_part_does_not_know_the_whole_has_no_evidence_for() {
        let known = part(
            "hon föll",
            [Some(Target::Labels(vec![1])), None, None, None],
            vec![],
        );
        let unknown = part("ingen kom", [None, None, None, None], vec![]);
        let joined = compose(&[&known, &unknown], &taxonomy(), "\n");
        assert_eq!(joined.targets, [None, None, None, None]);
        assert_eq!(marked(&joined), []);
    }
}
