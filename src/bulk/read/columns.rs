//! Which column holds what.

use super::{Kept, MAX_TEXT_BYTES, ReadOptions, Rejection};
use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;
use std::borrow::Cow;

const TEXT_NAMES: [&str; 4] = ["text", "fritext", "beskrivning", "händelse"];
const ID_NAMES: [&str; 3] = ["id", "diarienummer", "dnr"];

/// The places of the columns that are read, among all names.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) text: Vec<usize>,
    pub(super) id: Option<usize>,
    pub(super) kept: Vec<(usize, String)>,
}

impl Columns {
    /// Finds the columns of a table. The error names those there are.
    pub(super) fn find(input: &str, names: &[String], options: &ReadOptions) -> Result<Self> {
        let iter = || names.iter().map(String::as_str);
        let text = text_columns(iter(), &options.text_columns).map_err(|stated| {
            let fault = no_column("text", names, stated);
            invalid(input, &fault)
        })?;
        let stated = options.id_column.as_deref();
        let id = id_column(iter(), stated);
        if id.is_none() && stated.is_some() {
            return Err(invalid(input, &no_column("id", names, stated)));
        }
        let is_other = |at: &usize| !text.contains(at) && Some(*at) != id;
        let kept = (0..names.len())
            .filter(|at| options.keep && is_other(at))
            .filter_map(|at| Some((at, names.get(at)?.trim().to_owned())))
            .filter(|(_, name)| !name.is_empty())
            .collect();
        Ok(Self { text, id, kept })
    }

    /// The names of the columns to carry through.
    pub(super) fn kept_names(&self) -> Vec<String> {
        self.kept.iter().map(|(_, name)| name.clone()).collect()
    }

    /// A row's report and what is carried through, from its cells.
    pub(super) fn read<'a>(
        &self,
        mut cell: impl FnMut(usize) -> Result<Cow<'a, str>, Rejection>,
    ) -> Result<(Report, Kept), Rejection> {
        let texts = self.text.iter().map(|at| cell(*at));
        let report = Report::new(joined(&texts.collect::<Result<Vec<_>, _>>()?)?);
        let id = match self.id {
            Some(at) => cell(at)?,
            None => "".into(),
        };
        let mut kept = Kept::new();
        for (at, name) in &self.kept {
            kept.insert(name.clone(), cell(*at)?.into());
        }
        Ok(match id.trim().is_empty() {
            true => (report, kept),
            false => (report.with_id(id), kept),
        })
    }
}

/// Several texts of a row as one, paragraph by paragraph.
pub(super) fn joined(texts: &[impl AsRef<str>]) -> Result<String, Rejection> {
    let filled = texts.iter().map(AsRef::as_ref);
    let filled: Vec<&str> = match texts {
        [_] => filled.collect(),
        _ => filled.filter(|text| !text.trim().is_empty()).collect(),
    };
    let text = filled.join("\n\n");
    match text.len() > MAX_TEXT_BYTES {
        true => Err(Rejection::TextTooLarge),
        false => Ok(text),
    }
}

/// The places of the text columns among the names; the stated name that is
/// not there otherwise.
pub(super) fn text_columns<'a, 's>(
    names: impl Iterator<Item = &'a str> + Clone,
    stated: &'s [String],
) -> Result<Vec<usize>, Option<&'s str>> {
    match stated {
        [] => Ok(vec![find(names, None, &TEXT_NAMES).ok_or(None)?]),
        _ => stated
            .iter()
            .map(|name| find(names.clone(), Some(name), &[]).ok_or(Some(name.as_str())))
            .collect(),
    }
}

/// The place of the id column among the names.
pub(super) fn id_column<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    stated: Option<&str>,
) -> Option<usize> {
    find(names, stated, &ID_NAMES)
}

fn find<'a>(
    mut names: impl Iterator<Item = &'a str> + Clone,
    stated: Option<&str>,
    guesses: &[&str],
) -> Option<usize> {
    let same = |a: &str, b: &str| a.trim().to_lowercase() == b.trim().to_lowercase();
    match stated {
        Some(stated) => names.position(|name| same(name, stated)),
        None => guesses
            .iter()
            .find_map(|guess| names.clone().position(|name| same(name, guess))),
    }
}

pub(super) fn invalid(input: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{input} {what}"))
}

fn no_column(role: &str, names: &[String], stated: Option<&str>) -> String {
    if names.is_empty() {
        return "is empty: it has no row of column names".to_owned();
    }
    let wanted = match stated {
        Some(stated) => format!("has no column \"{stated}\""),
        None => format!("has no column for the {role}"),
    };
    let found: Vec<String> = names.iter().map(|name| shown(name)).collect();
    format!(
        "{wanted}; the first row names {}: state the {role} column, or the separator if the names were cut wrongly",
        found.join(", ")
    )
}

/// A column name for an error message. Without a row of names the first row
/// is a report, so what does not look like a name is not repeated.
fn shown(name: &str) -> String {
    let length = name.chars().count();
    let like_a_name = length <= 40
        && name.split_whitespace().count() <= 3
        && !name.contains(['.', '!', '?', '\n', '\r']);
    match like_a_name {
        true => format!("\"{name}\""),
        false => format!("({length} characters that do not look like a name)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_found_in_any_case_and_order_of_preference() {
        let names = ["Dnr", " HÄNDELSE ", "Fritext", "ID"];
        let stated = |name: &str| vec![name.to_owned()];
        assert_eq!(text_columns(names.into_iter(), &[]), Ok(vec![2]));
        assert_eq!(id_column(names.into_iter(), None), Some(3));
        let one = stated("händelse");
        assert_eq!(text_columns(names.into_iter(), &one), Ok(vec![1]));
        let none = stated("text");
        assert_eq!(text_columns(names.into_iter(), &none), Err(Some("text")));
    }

    #[test]
    fn several_texts_become_paragraphs_and_empty_ones_nothing() {
        assert_eq!(
            joined(&["Fall", " ", "Hon föll."]).unwrap(),
            "Fall\n\nHon föll."
        );
        assert_eq!(joined(&[" a "]).unwrap(), " a ");
        let long = "a".repeat(MAX_TEXT_BYTES / 2 + 1);
        assert_eq!(joined(&[&long, &long]), Err(Rejection::TextTooLarge));
    }
}
