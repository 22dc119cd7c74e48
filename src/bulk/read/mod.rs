//! Rows out of files, whatever their format.

mod columns;
mod csv;
mod encoding;
mod jsonl;
mod text;

use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl<P: Into<PathBuf>> From<P> for Input {
    /// A file, or standard input for `-`.
    fn from(path: P) -> Self {
        let path = path.into();
        match path.as_os_str() == "-" {
            true => Self::Stdin,
            false => Self::File(path),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// How rows stand in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InputFormat {
    /// One JSON object a line, in UTF-8 (or UTF-16).
    Jsonl,
    /// Separated columns with a row of names first.
    Csv,
    /// One report: the whole input.
    Text,
}

impl InputFormat {
    /// The format that a file name's ending stands for: `.jsonl` or `.ndjson`,
    /// `.csv` or `.tsv`, `.txt`, in small or capital letters.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::InputFormat;
    /// use std::path::Path;
    ///
    /// assert_eq!(InputFormat::of_file(Path::new("A.CSV")), Some(InputFormat::Csv));
    /// assert_eq!(InputFormat::of_file(Path::new("a.pdf")), None);
    /// ```
    pub fn of_file(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_ascii_lowercase();
        match ending.to_str()? {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" | "tsv" => Some(Self::Csv),
            "txt" => Some(Self::Text),
            _ => None,
        }
    }
}

/// What to know about an input that it does not say itself.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// The format. By default that of the file name's ending, and JSONL for
    /// standard input.
    pub format: Option<InputFormat>,
    /// The column or JSON field that holds the text. By default the first of
    /// `text`, `fritext`, `beskrivning` and `händelse` that exists. Names are
    /// compared without regard to case.
    pub text_column: Option<String>,
    /// The column or JSON field that identifies the report. By default the
    /// first of `id`, `diarienummer` and `dnr` that exists; there need be none.
    pub id_column: Option<String>,
    /// What separates columns in CSV. By default the commonest of semicolon,
    /// comma and tab in the first row.
    pub delimiter: Option<u8>,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The input's name.
    pub input: Arc<str>,
    /// Which row of the input it is, from 1; a row of column names and blank
    /// lines do not count.
    pub row: u64,
    /// The line on which the row begins, from 1.
    pub line: u64,
    /// The bytes of the input, as UTF-8, up to the row's end.
    pub end: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            input, row, line, ..
        } = self;
        write!(f, "{input}: row {row} (line {line})")
    }
}

/// Why a row holds no report.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// It is not UTF-8.
    NotUtf8,
    /// It is not JSON.
    NotJson {
        /// The byte in the line, from 1, at which that shows.
        column: usize,
    },
    /// It is JSON, but not an object.
    NotAnObject,
    /// It has no text field, or a null in it.
    MissingText,
    /// Its text field is not a string.
    TextNotString,
    /// Its id field is neither a string nor a number.
    InvalidId,
    /// It has another number of columns than the row of column names.
    WrongColumns {
        /// How many the row has.
        found: usize,
        /// How many names there are.
        expected: usize,
    },
    /// A quoted cell in it runs to the end of the input, so the rows behind it
    /// can't be told apart.
    UnclosedQuote,
}

impl Rejection {
    /// A code for machines, which stays as it is.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(lyhord::bulk::Rejection::NotUtf8.code(), "not_utf8");
    /// ```
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::NotJson { .. } => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::MissingText => "missing_text",
            Self::TextNotString => "text_not_string",
            Self::InvalidId => "invalid_id",
            Self::WrongColumns { .. } => "wrong_columns",
            Self::UnclosedQuote => "unclosed_quote",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("is not UTF-8"),
            Self::NotJson { column } => write!(f, "is not JSON (at byte {column} of the line)"),
            Self::NotAnObject => f.write_str("is JSON, but not an object"),
            Self::MissingText => f.write_str("has no text"),
            Self::TextNotString => f.write_str("has a text that is not a string"),
            Self::InvalidId => f.write_str("has an id that is neither a string nor a number"),
            Self::WrongColumns { found, expected } => write!(
                f,
                "has {found} columns where {expected} are named; a text with separators in it needs quotes"
            ),
            Self::UnclosedQuote => f.write_str(
                "has a quote that is never closed, so it and all that follows in the file is left out",
            ),
        }
    }
}

/// One row of an input.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Row {
    /// Where the row stands.
    pub place: Place,
    /// The report, or why there is none.
    pub report: Result<Report, Rejection>,
}

/// The rows of one input, in order. Made by [`rows`].
///
/// An error is about the whole input, and nothing comes after it.
pub struct Rows(Box<dyn Iterator<Item = Result<Row>> + Send>);

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

/// Opens an input and reads so much of it as is needed to know its columns.
///
/// # Errors
///
/// [`ErrorKind::Io`] when it cannot be opened or read;
/// [`ErrorKind::InvalidOption`] when the format cannot be told;
/// [`ErrorKind::InvalidInput`] when CSV has no column for the text.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::{ReadOptions, rows};
///
/// let rows = rows(&"fixtures/bulk/windows-1252.csv".into(), &ReadOptions::default())?;
/// let ids: Vec<String> = rows
///     .filter_map(|row| Some(row.ok()?.report.ok()?.id()?.to_owned()))
///     .collect();
/// assert_eq!(ids, ["2024-1", "2024-2"]);
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn rows(input: &Input, options: &ReadOptions) -> Result<Rows> {
    let format = match (options.format, input) {
        (Some(format), _) => format,
        (None, Input::Stdin) => InputFormat::Jsonl,
        (None, Input::File(path)) => InputFormat::of_file(path).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "cannot tell the format of {} by its name: it ends in none of .jsonl, .csv and .txt, so state the format",
                    path.display()
                ),
            )
        })?,
    };
    let source = Source::open(input)?;
    Ok(Rows(match format {
        InputFormat::Jsonl => Box::new(jsonl::JsonlRows::new(source, options)),
        InputFormat::Csv => Box::new(csv::CsvRows::new(source, options)?),
        InputFormat::Text => Box::new(std::iter::once_with(move || text::row(source))),
    }))
}

/// An open input whose bytes are UTF-8, or in an encoding still to be found.
struct Source {
    name: Arc<str>,
    /// The file name without its ending, to identify a report by.
    stem: Option<String>,
    reader: Box<dyn BufRead + Send>,
    encoding: encoding::Encoding,
}

impl Source {
    fn open(input: &Input) -> Result<Self> {
        let name: Arc<str> = input.to_string().into();
        let (raw, stem): (Box<dyn BufRead + Send>, _) = match input {
            Input::Stdin => (Box::new(BufReader::new(std::io::stdin())), None),
            Input::File(path) => {
                let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into());
                (Box::new(BufReader::with_capacity(1 << 16, file)), stem)
            }
        };
        let (reader, encoding) = encoding::detect(raw).map_err(|error| failed(&name, error))?;
        Ok(Self {
            name,
            stem,
            reader,
            encoding,
        })
    }
}

fn failed(name: &str, error: std::io::Error) -> Error {
    Error::io(Path::new(name), "read", error)
}
