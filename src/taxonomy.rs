//! Heads and labels: what a model can say. Read from `taxonomy.toml`.

use crate::error::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// How the labels of a head relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeadKind {
    /// Any number of labels hold at once: one logit a label.
    MultiLabel,
    /// Exactly one label holds: one logit a label, softmax over them.
    SingleLabel,
    /// Exactly one level of an ordered scale holds: one logit for each step
    /// between neighbouring levels, `P(level > k)`.
    Ordinal,
    /// Yes or no: one logit.
    Binary,
}

/// One label of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    code: String,
    name: String,
    description: String,
}

impl Label {
    /// The stable identifier, as data files and other systems use it.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The name to show to people: the taxonomy's text up to its first colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The taxonomy's whole text about the label.
    pub fn description(&self) -> &str {
        &self.description
    }
}

/// One question that the model answers about each report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    name: String,
    field: String,
    title: String,
    kind: HeadKind,
    labels: Vec<Label>,
    first_level: u8,
    logits: Range<usize>,
    queries: Range<usize>,
}

impl Head {
    /// The head's name: the name of its table in the taxonomy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The field that holds the head's answer in labelled data and in output.
    /// It is the head's name unless the taxonomy says otherwise.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What the head is called to people. It is the head's name unless the
    /// taxonomy says otherwise.
    ///
    /// # Examples
    ///
    /// ```
    /// let taxonomy = lyhord::Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml")?;
    /// assert_eq!(taxonomy.head("sector").unwrap().title(), "Verksamhet");
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn title(&self) -> &str {
        &self.title
    }

    /// How the head's labels relate to each other.
    pub fn kind(&self) -> HeadKind {
        self.kind
    }

    /// The labels in taxonomy order. A binary head has one.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// The place of a label code among [`Head::labels`].
    pub fn label_index(&self, code: &str) -> Option<usize> {
        self.labels.iter().position(|label| label.code == code)
    }

    /// The lowest level of an ordinal head; 0 for every other kind.
    pub fn first_level(&self) -> u8 {
        self.first_level
    }

    /// Where the head's logits stand in the model's `[logits]` vector.
    pub fn logits(&self) -> Range<usize> {
        self.logits.clone()
    }

    /// Which label-attention queries serve the head: one a label for a
    /// multi-label head, one in all for every other kind.
    pub fn queries(&self) -> Range<usize> {
        self.queries.clone()
    }

    /// Which query serves the logit at `index` within [`Head::logits`].
    pub(crate) fn query_of_logit(&self, index: usize) -> usize {
        match self.kind {
            HeadKind::MultiLabel => self.queries.start + index,
            _ => self.queries.start,
        }
    }

    /// How many classes a target of this head has: labels of a single-label
    /// or ordinal head, 2 for a binary one.
    pub fn classes(&self) -> usize {
        match self.kind {
            HeadKind::Binary => 2,
            _ => self.labels.len(),
        }
    }
}

/// Heads and labels with their user-facing names, read from a TOML file.
///
/// Every table but `heads` is a head; its keys are label codes and its values
/// texts for people. The kind of a head follows from its keys: whole numbers
/// in order make it ordinal, a single key that repeats the head's name makes
/// it binary, anything else single-label. The optional table `[heads.NAME]`
/// states `kind` (`"multi_label"`, `"single_label"`, `"ordinal"`, `"binary"`),
/// `field` (in data and output) and `title` (for people) where they differ;
/// multi-label heads need it.
///
/// # Examples
///
/// ```
/// use lyhord::{HeadKind, Taxonomy};
///
/// let taxonomy = Taxonomy::from_toml(r#"
///     version = "1.0"
///     [topic]
///     sports = "Sports"
///     travel = "Travel: by land, sea or air"
/// "#)?;
/// let head = taxonomy.head("topic").unwrap();
/// assert_eq!(head.kind(), HeadKind::SingleLabel);
/// assert_eq!(head.labels()[1].name(), "Travel");
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taxonomy {
    version: String,
    language: String,
    heads: Vec<Head>,
}

impl Taxonomy {
    /// Reads a taxonomy from the text of a TOML file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidTaxonomy`] names the line, table or label at fault.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = lyhord::Taxonomy::from_toml("version = '1'").unwrap_err();
    /// assert!(error.to_string().contains("no heads"));
    /// ```
    pub fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            invalid("cannot be read as TOML").with_source(error)
        })?;
        let mut version = None;
        let mut language = String::new();
        let mut settings = toml::Table::new();
        let mut tables = Vec::new();
        for (key, value) in table {
            match (key.as_str(), value) {
                ("version", toml::Value::String(text)) => version = Some(text),
                ("language", toml::Value::String(text)) => language = text,
                ("heads", toml::Value::Table(table)) => settings = table,
                (_, toml::Value::Table(table)) => tables.push((key, table)),
                _ => {
                    return Err(invalid(format!(
                        "`{key}` is neither a table of labels nor a `version` or `language` in quotes"
                    )));
                }
            }
        }
        if let Some(name) = settings
            .keys()
            .find(|name| tables.iter().all(|(key, _)| &key != name))
        {
            return Err(invalid(format!(
                "[heads.{name}] has no table [{name}] of labels"
            )));
        }
        let mut heads = Vec::with_capacity(tables.len());
        let (mut logits, mut queries) = (0, 0);
        for (name, labels) in tables {
            let head = head(name, labels, &settings, logits, queries)?;
            (logits, queries) = (head.logits.end, head.queries.end);
            heads.push(head);
        }
        if heads.is_empty() {
            return Err(invalid("has no heads: add at least one table of labels"));
        }
        if let Some(head) = heads
            .iter()
            .find(|head: &&Head| RESERVED.contains(&head.field.as_str()))
        {
            return Err(invalid(format!(
                "uses the field `{}`, which every record has",
                head.field
            )));
        }
        let mut fields = HashSet::new();
        if let Some(head) = heads
            .iter()
            .find(|head| !fields.insert(head.field.as_str()))
        {
            return Err(invalid(format!("two heads use the field `{}`", head.field)));
        }
        Ok(Self {
            version: version.ok_or_else(|| invalid("has no `version`"))?,
            language,
            heads,
        })
    }

    /// Reads a taxonomy from a TOML file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the file cannot be read, and those of
    /// [`Taxonomy::from_toml`].
    ///
    /// # Examples
    ///
    /// ```
    /// let taxonomy = lyhord::Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml")?;
    /// assert!(taxonomy.head("severity").is_some());
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
        Self::from_toml(&text)
            .map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// The taxonomy's own version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The language of names and texts, or an empty string.
    pub fn language(&self) -> &str {
        &self.language
    }

    /// The heads in file order.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The head with a name.
    pub fn head(&self, name: &str) -> Option<&Head> {
        self.heads.iter().find(|head| head.name == name)
    }

    /// How many logits a model for this taxonomy gives for each report.
    pub fn num_logits(&self) -> usize {
        self.heads.last().map_or(0, |head| head.logits.end)
    }

    /// How many label-attention queries a model for this taxonomy has.
    pub fn num_queries(&self) -> usize {
        self.heads.last().map_or(0, |head| head.queries.end)
    }
}

/// What a labelled record or an assessment holds besides its heads.
const RESERVED: [&str; 7] = [
    "id",
    "text",
    "evidence",
    "model",
    "engine",
    "input_sha256",
    "duplicate_of",
];

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidTaxonomy,
        format!("the taxonomy {message}"),
    )
}

fn head(
    name: String,
    table: toml::Table,
    settings: &toml::Table,
    logits: usize,
    queries: usize,
) -> Result<Head> {
    let mut labels = Vec::with_capacity(table.len());
    for (code, value) in table {
        let toml::Value::String(description) = value else {
            return Err(invalid(format!(
                "has no text in quotes for [{name}] {code}"
            )));
        };
        let short = description
            .split_once(':')
            .map_or(description.as_str(), |(short, _)| short);
        labels.push(Label {
            code,
            name: short.trim().to_owned(),
            description: description.clone(),
        });
    }
    let levels: Option<Vec<u8>> = labels.iter().map(|label| label.code.parse().ok()).collect();
    let levels = levels.filter(|levels| {
        levels.len() > 1
            && levels
                .windows(2)
                .all(|pair| pair[0].checked_add(1) == Some(pair[1]))
    });
    if let Some(settings) = settings.get(&name) {
        let keys = settings
            .as_table()
            .ok_or_else(|| invalid(format!("needs [heads.{name}] to be a table")))?;
        if let Some(key) = keys
            .keys()
            .find(|key| !["kind", "field", "title"].contains(&key.as_str()))
        {
            return Err(invalid(format!(
                "has an unknown setting in [heads.{name}], {key}: use kind, field and title"
            )));
        }
    }
    let stated = |key: &str| -> Result<Option<String>> {
        match settings.get(&name).and_then(|value| value.get(key)) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(invalid(format!(
                "needs a text in quotes for [heads.{name}] {key}"
            ))),
        }
    };
    let kind = match stated("kind")?.as_deref() {
        Some("multi_label") => HeadKind::MultiLabel,
        Some("single_label") => HeadKind::SingleLabel,
        Some("ordinal") => HeadKind::Ordinal,
        Some("binary") => HeadKind::Binary,
        Some(other) => {
            return Err(invalid(format!(
                "states the kind \"{other}\" for [{name}]: use multi_label, single_label, ordinal or binary"
            )));
        }
        None if levels.is_some() => HeadKind::Ordinal,
        None if labels.len() == 1 && labels[0].code == name => HeadKind::Binary,
        None => HeadKind::SingleLabel,
    };
    let (width, num_queries) = match kind {
        HeadKind::MultiLabel => (labels.len(), labels.len()),
        HeadKind::SingleLabel => (labels.len(), 1),
        HeadKind::Ordinal => (labels.len().saturating_sub(1), 1),
        HeadKind::Binary => (1, 1),
    };
    match kind {
        HeadKind::MultiLabel if labels.is_empty() => {
            return Err(invalid(format!("has no labels in [{name}]")));
        }
        HeadKind::SingleLabel if labels.len() < 2 => {
            return Err(invalid(format!("needs at least two labels in [{name}]")));
        }
        HeadKind::Ordinal if levels.is_none() => {
            return Err(invalid(format!(
                "needs the levels of [{name}] as whole numbers in order, at most 255, as in 0, 1, 2"
            )));
        }
        HeadKind::Binary if labels.len() != 1 => {
            return Err(invalid(format!(
                "needs exactly one label in the binary head [{name}]"
            )));
        }
        _ => {}
    }
    Ok(Head {
        field: stated("field")?.unwrap_or_else(|| name.clone()),
        title: stated("title")?.unwrap_or_else(|| name.clone()),
        first_level: match kind {
            HeadKind::Ordinal => levels.map_or(0, |levels| levels[0]),
            _ => 0,
        },
        name,
        kind,
        labels,
        logits: logits..logits + width,
        queries: queries..queries + num_queries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_be_passed_over_or_write_a_field_twice_are_refused() {
        let topic = "version = '1'\n[topic]\na = 'A'\nb = 'B'\n";
        for (settings, expected) in [
            ("[heads.topic]\nknd = 'multi_label'\n", "knd"),
            ("[heads]\ntopic = 'multi_label'\n", "to be a table"),
            ("[heads.topic]\nfield = 'model'\n", "`model`"),
            ("[heads.other]\nkind = 'binary'\n", "no table [other]"),
        ] {
            let error = Taxonomy::from_toml(&format!("{topic}{settings}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTaxonomy);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(Taxonomy::from_toml(topic).is_ok());
    }
}
