//! Rows out of files, whatever their format.

mod columns;
mod csv;
mod encoding;
mod find;
mod jsonl;
mod parquet;
mod source;
mod text;
mod xlsx;

pub(crate) use csv::guess_delimiter;
pub use find::find_inputs;

use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;
use source::Source;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest text of a report, in bytes of UTF-8: some 3,000 pages. A longer
/// one is rejected, and no more of it than this is held in memory.
pub const MAX_TEXT_BYTES: usize = 8 << 20;

/// The longest row with all its columns and quotes, in bytes.
const MAX_ROW_BYTES: usize = 2 * MAX_TEXT_BYTES;

/// The columns of a row that are carried through, by name.
pub type Kept = serde_json::Map<String, serde_json::Value>;

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// The content of a file, held in memory.
    Bytes {
        /// The name, whose ending says the format.
        name: PathBuf,
        /// The content.
        bytes: Arc<[u8]>,
    },
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
            Self::File(path) | Self::Bytes { name: path, .. } => path.display().fmt(f),
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
    /// Apache Parquet.
    Parquet,
    /// The first sheet of an Excel workbook, with a row of names first.
    Xlsx,
}

impl InputFormat {
    /// The format that a file name's ending stands for: `.jsonl` or `.ndjson`,
    /// `.csv` or `.tsv`, `.txt`, `.parquet`, `.xlsx`, in small or capital
    /// letters. A last `.gz` or `.zst` is passed over.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::InputFormat;
    /// use std::path::Path;
    ///
    /// assert_eq!(InputFormat::of_file(Path::new("A.CSV")), Some(InputFormat::Csv));
    /// assert_eq!(InputFormat::of_file(Path::new("a.csv.gz")), Some(InputFormat::Csv));
    /// assert_eq!(InputFormat::of_file(Path::new("a.pdf")), None);
    /// ```
    pub fn of_file(path: &Path) -> Option<Self> {
        let path = uncompressed(path);
        let ending = path.extension()?.to_ascii_lowercase();
        match ending.to_str()? {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" | "tsv" => Some(Self::Csv),
            "txt" => Some(Self::Text),
            "parquet" => Some(Self::Parquet),
            "xlsx" => Some(Self::Xlsx),
            _ => None,
        }
    }
}

/// A file's name without the ending of a compressed one.
fn uncompressed(path: &Path) -> PathBuf {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some(ending) if ["gz", "zst"].contains(&&*ending.to_ascii_lowercase()) => {
            path.with_extension("")
        }
        _ => path.to_owned(),
    }
}

/// What to know about an input that it does not say itself.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// The format. By default that of the file name's ending, and JSONL for
    /// standard input.
    pub format: Option<InputFormat>,
    /// The columns or JSON fields that hold the text; those of several become
    /// paragraphs in this order. By default the first of `text`, `fritext`,
    /// `beskrivning` and `händelse` that exists. Names are compared without
    /// regard to case.
    pub text_columns: Vec<String>,
    /// The column or JSON field that identifies the report. By default the
    /// first of `id`, `diarienummer` and `dnr` that exists; there need be none.
    pub id_column: Option<String>,
    /// What separates columns in CSV. By default the commonest of semicolon,
    /// comma and tab in the first row.
    pub delimiter: Option<u8>,
    /// The encoding of the text, such as `windows-1252`. By default it is
    /// recognised: UTF-8, UTF-16 or, but for JSONL, Windows-1252. Parquet and
    /// Excel files say it themselves.
    pub encoding: Option<String>,
    /// Whether to carry all other columns through, as [`Row::kept`].
    pub keep: bool,
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
    /// The line on which the row begins, from 1. In a workbook it is the row of
    /// the sheet, in Parquet that of the table.
    pub line: u64,
    /// How many bytes of the file are read, for showing progress.
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
    /// Its text is longer than [`MAX_TEXT_BYTES`], or the row with all its
    /// columns than twice that.
    TextTooLarge,
    /// The file is damaged or cut off here, so nothing behind it can be read.
    Damaged,
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
            Self::TextTooLarge => "text_too_large",
            Self::Damaged => "damaged",
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
            Self::TextTooLarge => write!(
                f,
                "is larger than {} MiB of text",
                MAX_TEXT_BYTES >> 20
            ),
            Self::Damaged => f.write_str(
                "stands where the file is damaged or cut off, so it and all that follows in the file is left out",
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
    /// The other columns, if [`ReadOptions::keep`] is set.
    pub kept: Kept,
    /// The encoding of the input, as far as it is known by now.
    pub encoding: &'static str,
}

impl Row {
    fn new(place: Place, found: Result<(Report, Kept), Rejection>, encoding: &'static str) -> Self {
        let (report, kept) = match found {
            Ok((report, kept)) => (Ok(report), kept),
            Err(rejection) => (Err(rejection), Kept::new()),
        };
        Self {
            place,
            report,
            kept,
            encoding,
        }
    }
}

/// The rows of one input, in order. Made by [`rows`].
///
/// An error is about the whole input, and nothing comes after it.
pub struct Rows {
    iter: Box<dyn Iterator<Item = Result<Row>> + Send>,
    kept: Option<Vec<String>>,
}

impl Rows {
    /// The names of the columns to carry through, in order, if the format
    /// tells them before the rows. Each line of JSONL has names of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::bulk::{ReadOptions, rows};
    ///
    /// let mut options = ReadOptions::default();
    /// options.keep = true;
    /// let rows = rows(&"fixtures/bulk/windows-1252.csv".into(), &options)?;
    /// assert_eq!(rows.kept_names(), Some(&["Inkom".to_owned()][..]));
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn kept_names(&self) -> Option<&[String]> {
        self.kept.as_deref()
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.iter.next()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

/// Opens an input and reads so much of it as is needed to know its columns.
///
/// What is packed by gzip or zstd is unpacked, whatever its name.
///
/// # Errors
///
/// [`ErrorKind::Io`] when it cannot be opened or read;
/// [`ErrorKind::InvalidOption`] when the format cannot be told or the encoding
/// is unknown; [`ErrorKind::InvalidInput`] when a table has no column for the
/// text, or a file is not in its format.
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
        (None, Input::File(path) | Input::Bytes { name: path, .. }) => {
            InputFormat::of_file(path).ok_or_else(|| cannot_tell(path))?
        }
    };
    let (iter, kept): (Box<dyn Iterator<Item = _> + Send>, _) = match format {
        InputFormat::Jsonl => {
            let rows = jsonl::JsonlRows::new(Source::open(input, options)?, options);
            (Box::new(rows), (!options.keep).then(Vec::new))
        }
        InputFormat::Csv => {
            let rows = csv::CsvRows::new(Source::open(input, options)?, options)?;
            let names = rows.kept_names();
            (Box::new(rows), Some(names))
        }
        InputFormat::Text => {
            let source = Source::open(input, options)?;
            let row = std::iter::once_with(move || text::row(source));
            (Box::new(row), Some(Vec::new()))
        }
        InputFormat::Parquet => {
            let rows = parquet::ParquetRows::open(input, options)?;
            let names = rows.kept_names();
            (Box::new(rows), Some(names))
        }
        InputFormat::Xlsx => {
            let rows = xlsx::XlsxRows::open(input, options)?;
            let names = rows.kept_names();
            (Box::new(rows), Some(names))
        }
    };
    Ok(Rows { iter, kept })
}

fn cannot_tell(path: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidOption,
        format!(
            "cannot tell the format of {} by its name: it ends in none of .jsonl, .csv, .tsv, .txt, .parquet and .xlsx, so state the format",
            path.display()
        ),
    )
}

/// A row where the input ends too early, or the error that ended it.
fn ended_by(error: std::io::Error, place: Place, encoding: &'static str) -> Result<Row> {
    match source::is_damage(&error) {
        true => Ok(Row::new(place, Err(Rejection::Damaged), encoding)),
        false => Err(failed(&place.input, error)),
    }
}

fn failed(name: &str, error: std::io::Error) -> Error {
    match source::is_damage(&error) {
        true => columns::invalid(name, "is damaged or cut off"),
        false => Error::io(Path::new(name), "read", error),
    }
}
