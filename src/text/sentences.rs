//! Where sentences begin and end in Swedish.

use std::ops::Range;

/// Abbreviations that something always follows, so that their full stop never
/// ends a sentence.
const LEADING: &[&str] = &[
    "adj", "ang", "ass", "bitr", "bl", "bl.a", "ca", "d.v.s", "dir", "doc", "dr", "dvs", "enl",
    "ev", "ex", "exkl", "fr", "fr.o.m", "förf", "gm", "inkl", "jfr", "kap", "kl", "leg", "nr",
    "p.g.a", "pga", "prof", "resp", "s.k", "sid", "spec", "t.ex", "t.o.m", "vik",
];

/// Abbreviations that may also stand last: their full stop ends a sentence
/// when a capital letter follows.
const TRAILING: &[&str] = &[
    "a.a", "avd", "dl", "e.d", "e.dyl", "e.m", "em", "etc", "f.d", "f.m", "f.n", "f.v", "fm",
    "forts", "ggr", "iv", "kg", "kr", "m.a.o", "m.fl", "m.h.a", "m.m", "max", "mfl", "mg", "min",
    "mkt", "ml", "mm", "mob", "mån", "o.d", "o.dyl", "o.s.v", "osv", "p.m", "p.o", "po", "ref",
    "s.a.s", "sek", "st", "t.h", "t.v", "tabl", "tel", "tfn", "tim", "v.b", "v.g", "vb",
];

/// Month names and their abbreviations, after a day's number: `den 3. mars`.
const MONTHS: &[&str] = &[
    "jan",
    "januari",
    "feb",
    "februari",
    "mar",
    "mars",
    "apr",
    "april",
    "maj",
    "jun",
    "juni",
    "jul",
    "juli",
    "aug",
    "augusti",
    "sep",
    "sept",
    "september",
    "okt",
    "oktober",
    "nov",
    "november",
    "dec",
    "december",
];

const END_MARKS: [char; 4] = ['.', '!', '?', '…'];
const CLOSING: [char; 9] = ['"', '”', '’', '\'', '»', ')', ']', '}', '*'];
const OPENING: [char; 9] = ['"', '”', '’', '\'', '«', '»', '(', '[', '{'];

/// So far a word is looked at, so that text without spaces takes no more time.
const WORD_BYTES: usize = 64;

/// The sentences of a text, as byte ranges in order.
///
/// The ranges hold every character but white space between sentences, and do
/// not overlap. Full stops in abbreviations (`t.ex.`, `kl.`, `dr.`), initials,
/// numbers, dates and addresses end nothing; line breaks end a sentence unless
/// the next line plainly goes on in lower case; each item of a list is its
/// own. Text without capital letters is split too.
///
/// # Examples
///
/// ```
/// use lyhord::text::sentences;
///
/// let text = "Hon fick t.ex. Alvedon kl. 14.30. Ingen kom! Varför?";
/// let found: Vec<&str> = sentences(text).into_iter().map(|range| &text[range]).collect();
/// assert_eq!(found, ["Hon fick t.ex. Alvedon kl. 14.30.", "Ingen kom!", "Varför?"]);
/// ```
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let (mut start, mut position) = (0, 0);
    while let Some(offset) = piece(text, position..text.len())
        .find(|char: char| char == '\n' || END_MARKS.contains(&char))
    {
        let at = position + offset;
        let before = piece(text, start..at);
        let rest = piece(text, at..text.len());
        let ends = if let Some(next_lines) = rest.strip_prefix('\n') {
            position = at + 1;
            ends_at_line_break(before, next_lines)
        } else {
            let after = rest
                .trim_start_matches(END_MARKS)
                .trim_start_matches(CLOSING);
            position = text.len() - after.len();
            ends_at_mark(before, piece(text, at..position), after)
        };
        if ends {
            push_trimmed(text, start..position, &mut found);
            start = position;
        }
    }
    push_trimmed(text, start..text.len(), &mut found);
    found
}

fn ends_at_line_break(before: &str, next_lines: &str) -> bool {
    let mut next = next_lines
        .trim_start_matches(|char: char| char != '\n' && char.is_whitespace())
        .chars();
    let goes_on = next.next().is_some_and(char::is_lowercase)
        // `a) den första punkten`
        && next.next() != Some(')')
        && !before.ends_with(':');
    !goes_on
}

/// Whether a sentence ends with `mark`: end marks and what closes after them.
fn ends_at_mark(before: &str, mark: &str, after: &str) -> bool {
    if after
        .chars()
        .next()
        .is_some_and(|char| !char.is_whitespace())
    {
        return is_missing_space(before, mark, after);
    }
    let following = after.trim_start().trim_start_matches(OPENING);
    let Some(next) = following.chars().next() else {
        return true;
    };
    let closes = mark.ends_with(CLOSING);
    if mark.contains(['!', '?']) {
        // "Hjälp!" skrek hon.
        return !(closes && next.is_lowercase());
    }
    if closes || mark.starts_with('…') || mark.starts_with("..") {
        return !next.is_lowercase();
    }
    ends_at_full_stop(before, following, next)
}

fn ends_at_full_stop(before: &str, following: &str, next: char) -> bool {
    let word = last_word(before);
    let lower = word.trim_start_matches(OPENING).to_lowercase();
    if LEADING.contains(&lower.as_str()) {
        return false;
    }
    if TRAILING.contains(&lower.as_str()) {
        return next.is_uppercase();
    }
    if lower.chars().all(|char| char.is_ascii_digit()) {
        let next_word = following.split(|char: char| !char.is_alphabetic()).next();
        // From the end, since a text may be one long list.
        let is_list_number = before
            .strip_suffix(word)
            .is_some_and(|rest| rest.trim_end().is_empty());
        let is_date = next_word.is_some_and(|word| MONTHS.contains(&word))
            || (next.is_ascii_digit() && lower.len() <= 2);
        return !(is_list_number || is_date);
    }
    if is_initials(&lower) {
        if !next.is_uppercase() {
            return false;
        }
        // "patienten A. Hon" ends, "Anna A. Berg" and "A. Berg" go on.
        let name = before.strip_suffix(word).unwrap_or_default();
        return last_word(name.trim_end()).starts_with(char::is_lowercase);
    }
    // An unknown abbreviation such as "sjgy." has no vowels.
    next.is_uppercase() || lower.contains(|char| "aeiouyåäöéü0123456789".contains(char))
}

/// Single letters with full stops between: `a`, `n.n`.
fn is_initials(word: &str) -> bool {
    word.split('.').all(|part| {
        let mut letters = part.chars();
        letters.next().is_some_and(char::is_alphabetic) && letters.next().is_none()
    })
}

/// Whether a new sentence begins right after the mark, as in `föll.Sedan`.
fn is_missing_space(before: &str, mark: &str, after: &str) -> bool {
    let mut next = after.chars();
    let capitalised =
        next.next().is_some_and(char::is_uppercase) && next.next().is_some_and(char::is_lowercase);
    let mut last = before.chars().rev();
    let word_ends =
        last.next().is_some_and(char::is_lowercase) && last.next().is_some_and(char::is_lowercase);
    if !capitalised || !word_ends || mark.ends_with(CLOSING) {
        return false;
    }
    let word = last_word(before).to_lowercase();
    let next_word = piece(after, 0..after.floor_char_boundary(WORD_BYTES));
    let next_word = next_word.split(char::is_whitespace).next();
    let is_address = word.starts_with("www")
        || word.contains(['@', '/'])
        || next_word.is_some_and(|word| word.contains('@'));
    !is_address && !LEADING.contains(&word.as_str())
}

fn last_word(text: &str) -> &str {
    let start = text.floor_char_boundary(text.len().saturating_sub(WORD_BYTES));
    let near = piece(text, start..text.len());
    near.rsplit(char::is_whitespace).next().unwrap_or_default()
}

fn push_trimmed(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let sentence = piece(text, range.clone());
    let start = range.start + (sentence.len() - sentence.trim_start().len());
    let end = start + sentence.trim().len();
    if start < end {
        found.push(start..end);
    }
}

/// A part of the text; the ranges here always stand at character boundaries.
fn piece(text: &str, range: Range<usize>) -> &str {
    text.get(range).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(expected: &[&str]) {
        let text = expected.join(" ");
        let found: Vec<&str> = sentences(&text).into_iter().map(|r| &text[r]).collect();
        assert_eq!(found, expected);
    }

    fn check_lines(text: &str, expected: &[&str]) {
        let found: Vec<&str> = sentences(text).into_iter().map(|r| &text[r]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn abbreviations_end_nothing() {
        check(&["Hon fick t.ex. Alvedon, bl.a. av dr. Berg på avd. 3 kl. 14."]);
        check(&[
            "Hon fick t. ex. Alvedon, d. v. s. fel medel.",
            "Det var ca. 20 tabl. för mycket.",
        ]);
        check(&[
            "Mat, dryck m.m. saknades.",
            "De tog kläder, skor m.m.",
            "Ingen svarade.",
        ]);
        check(&["Det tog 20 min.", "Sedan kom hon."]);
        check(&["Patienten fick bltr. och vila.", "Sedan ringde hon jouren."]);
    }

    #[test]
    fn numbers_and_dates_end_nothing_unless_a_sentence_starts() {
        check(&[
            "Den 3. mars föll hon.",
            "Den 12. 3. 2024 igen.",
            "Det var 2023.",
            "Ingen kom kl 14.",
            "Sen kom de 8.30.",
        ]);
        check_lines(
            "1. Hon föll.\n2. Ingen kom.",
            &["1. Hon föll.", "2. Ingen kom."],
        );
    }

    #[test]
    fn initials_belong_to_names() {
        check(&[
            "A. Berg och Anna K. Berg kom.",
            "Jag såg brukare N.N.",
            "Hon låg på golvet.",
        ]);
    }

    #[test]
    fn quotations_keep_their_sentence() {
        check(&[
            "\"Hjälp!\" skrek hon.",
            "Han sade: ”Du får vänta.”",
            "Sedan gick han.",
            "Va?!",
            "Nej...",
        ]);
        check(&[
            "Vi väntade ... och väntade …",
            "Ingen kom (trots larmet.)",
            "Inget.",
        ]);
    }

    #[test]
    fn text_without_capitals_is_split_too() {
        check(&["mamma ramlade.", "ingen kom!", "varför?", "hon är 85."]);
    }

    #[test]
    fn a_missing_space_still_ends_a_sentence() {
        check_lines("Hon föll.Sedan kom de.", &["Hon föll.", "Sedan kom de."]);
        check(&["Se www.Ivo.se och anna.Berg@kommun.se."]);
    }

    #[test]
    fn line_breaks_and_lists_end_sentences() {
        check_lines(
            "Till IVO\n\nJag skriver om min\nmor. Hon saknar:\nblöjor\n- mat\n- dryck\na) tvål\r\n\r\nHälsningar\nAnna",
            &[
                "Till IVO",
                "Jag skriver om min\nmor.",
                "Hon saknar:",
                "blöjor",
                "- mat",
                "- dryck",
                "a) tvål",
                "Hälsningar",
                "Anna",
            ],
        );
    }

    #[test]
    fn nothing_gives_nothing() {
        check_lines("", &[]);
        check_lines(" \n\t ", &[]);
        check_lines("...", &["..."]);
    }

    #[test]
    fn five_megabytes_without_a_space_take_no_time() {
        for part in ["a.", "A. ", "\n", ".\n", "x", "\"! ", "www.aa.Aa/"] {
            let text = part.repeat(5_000_000 / part.len());
            assert!(sentences(&text).len() <= text.len());
        }
        let text = " ".repeat(2_500_000) + &"1. ".repeat(800_000);
        assert!(sentences(&text).len() <= 800_000);
    }

    proptest! {
        #[test]
        fn sentences_hold_every_character_but_the_space_between(
            text in "([a-zåäöA-ZÅÄÖ0-9]{0,4}[ .!?…\n\t\"”)(:\u{a0}-]{0,3}|\\PC){0,60}",
        ) {
            let mut end = 0;
            for range in sentences(&text) {
                prop_assert!(end <= range.start && range.start < range.end);
                prop_assert!(text[end..range.start].trim().is_empty());
                prop_assert_eq!(text[range.clone()].trim(), &text[range.clone()]);
                end = range.end;
            }
            prop_assert!(text[end..].trim().is_empty());
        }
    }
}
