//! Separated columns with a row of names first.

use super::columns::{Columns, invalid};
use super::encoding::Encoding;
use super::source::Position;
use super::{Kept, MAX_ROW_BYTES, Place, ReadOptions, Rejection, Row, Source, ended_by, failed};
use crate::error::Result;
use crate::report::Report;
use csv_core::ReadRecordResult;
use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;

pub(super) struct CsvRows {
    name: Arc<str>,
    records: Records,
    encoding: Encoding,
    position: Position,
    num_columns: usize,
    columns: Columns,
    rows: u64,
    ended: bool,
}

impl CsvRows {
    pub(super) fn new(source: Source, options: &ReadOptions) -> Result<Self> {
        let Source {
            name,
            mut reader,
            mut encoding,
            position,
            ..
        } = source;
        let first = first_record(&mut *reader).map_err(|error| failed(&name, error))?;
        let delimiter = options.delimiter.unwrap_or_else(|| guess_delimiter(&first));
        let mut records = Records::new(Box::new(Cursor::new(first).chain(reader)), delimiter);
        records.advance().map_err(|error| failed(&name, error))?;
        encoding.see(records.bytes());
        let names = (0..records.len())
            .map(|at| Some(encoding.decode(records.cell(at))?.into_owned()))
            .collect::<Option<Vec<String>>>()
            .ok_or_else(|| invalid(&name, "has column names that are not UTF-8"))?;
        Ok(Self {
            columns: Columns::find(&name, &names, options)?,
            name,
            records,
            encoding,
            position,
            num_columns: names.len(),
            rows: 0,
            ended: false,
        })
    }

    pub(super) fn kept_names(&self) -> Vec<String> {
        self.columns.kept_names()
    }

    fn read(&mut self) -> Result<(Report, Kept), Rejection> {
        if self.records.is_unclosed {
            return Err(Rejection::UnclosedQuote);
        }
        if self.records.is_too_large {
            return Err(Rejection::TextTooLarge);
        }
        let (found, expected) = (self.records.len(), self.num_columns);
        let is_filled = |at| !self.records.cell(at).is_empty();
        if found < expected || (expected..found).any(is_filled) {
            return Err(Rejection::WrongColumns { found, expected });
        }
        self.encoding.see(self.records.bytes());
        let encoding = &mut self.encoding;
        self.columns.read(|at| {
            let bytes = self.records.cell(at);
            encoding.decode(bytes).ok_or(Rejection::NotUtf8)
        })
    }
}

impl Iterator for CsvRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let advanced = self.records.advance();
        let place = Place {
            input: self.name.clone(),
            row: self.rows + 1,
            line: self.records.start_line,
            end: self.position.get(),
        };
        match advanced {
            Ok(true) => {
                self.rows += 1;
                let found = self.read();
                Some(Ok(Row::new(place, found, self.encoding.name())))
            }
            Ok(false) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(ended_by(error, place, self.encoding.name()))
            }
        }
    }
}

/// The records of a CSV input, one at a time, and where each begins. The csv
/// crate's own reader counts lines differently after `\r\n` and blank lines,
/// so this drives its parser directly.
struct Records {
    reader: Box<dyn BufRead + Send>,
    parser: csv_core::Reader,
    /// The record's cells one after the other, and where each ends; both
    /// longer than what is in use.
    cells: Vec<u8>,
    ends: Vec<usize>,
    len: usize,
    /// Whether the input ends inside a quoted cell of the record.
    is_unclosed: bool,
    /// Whether the record is longer than is held of it.
    is_too_large: bool,
    /// The line on which the record begins, and that of the next byte.
    start_line: u64,
    line: u64,
}

impl Records {
    fn new(reader: Box<dyn BufRead + Send>, delimiter: u8) -> Self {
        Self {
            reader,
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            cells: vec![0; 1 << 12],
            ends: vec![0; 1 << 5],
            len: 0,
            is_unclosed: false,
            is_too_large: false,
            start_line: 1,
            line: 1,
        }
    }

    /// Goes on to the next record; false when there is none.
    fn advance(&mut self) -> io::Result<bool> {
        self.len = 0;
        self.is_too_large = false;
        let (mut used, mut quotes) = (0, 0);
        let mut is_before = true;
        loop {
            let input = match self.reader.fill_buf() {
                Ok(input) => input,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if is_before {
                let is_break = |byte: &&u8| matches!(byte, b'\r' | b'\n');
                let breaks = input.iter().take_while(is_break).count();
                if breaks > 0 {
                    self.line += count(b'\n', input, breaks);
                    self.reader.consume(breaks);
                    continue;
                }
                is_before = false;
                self.start_line = self.line;
            }
            let (result, read, written, ended) = self.parser.read_record(
                input,
                self.cells.get_mut(used..).unwrap_or_default(),
                self.ends.get_mut(self.len..).unwrap_or_default(),
            );
            self.line += count(b'\n', input, read);
            quotes += count(b'"', input, read);
            self.is_unclosed = input.is_empty() && quotes % 2 == 1;
            self.reader.consume(read);
            used += written;
            self.len += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                // Of a row that is too large only its end matters: the rest of
                // it is written over what is there.
                ReadRecordResult::OutputFull if self.cells.len() >= MAX_ROW_BYTES => {
                    self.is_too_large = true;
                    used = 0;
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() >= MAX_COLUMNS => {
                    self.is_too_large = true;
                    self.len = 0;
                }
                ReadRecordResult::OutputFull => self.cells.resize(self.cells.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => return Ok(true),
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    /// A cell; empty if there is none.
    fn cell(&self, at: usize) -> &[u8] {
        let ends = self.ends.get(..self.len).unwrap_or_default();
        let start = at
            .checked_sub(1)
            .map_or(Some(0), |at| ends.get(at).copied());
        match (start, ends.get(at)) {
            (Some(start), Some(end)) => self.cells.get(start..*end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// All cells, one after the other.
    fn bytes(&self) -> &[u8] {
        let last = self.len.checked_sub(1).and_then(|at| self.ends.get(at));
        last.and_then(|end| self.cells.get(..*end))
            .unwrap_or_default()
    }
}

/// How often a byte is among the first ones.
fn count(byte: u8, bytes: &[u8], first: usize) -> u64 {
    let found = bytes.iter().take(first).filter(|each| **each == byte);
    found.count() as u64
}

/// So many columns are held of a record: four times what Excel can write.
const MAX_COLUMNS: usize = 1 << 16;

/// So much is looked at for the first record, should a quote never close.
const MAX_FIRST_RECORD: usize = 1 << 20;

/// The bytes of the first record, and perhaps more: up to the first line
/// break outside quotes.
fn first_record(reader: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = reader.take(MAX_FIRST_RECORD as u64);
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let quotes = bytes.iter().filter(|&&byte| byte == b'"').count();
        if quotes % 2 == 0 && !bytes.trim_ascii().is_empty() {
            break;
        }
    }
    Ok(bytes)
}

/// The commonest separator outside quotes; of equally common ones the first.
pub(crate) fn guess_delimiter(record: &[u8]) -> u8 {
    let mut counts = [(b';', 0), (b',', 0), (b'\t', 0)];
    let mut quoted = false;
    for byte in record {
        quoted ^= *byte == b'"';
        if let Some((_, count)) = counts.iter_mut().find(|(each, _)| each == byte && !quoted) {
            *count += 1;
        }
    }
    let mut best = (ONE_COLUMN, 0);
    for (delimiter, count) in counts {
        if count > best.1 {
            best = (delimiter, count);
        }
    }
    best.0
}

/// Separates nothing in practice: a name alone in the first row means that
/// every row is one text, commas and all.
const ONE_COLUMN: u8 = b'\x1f';

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::read::{Input, MAX_TEXT_BYTES};
    use crate::error::ErrorKind;

    fn open(bytes: &[u8], options: &ReadOptions) -> Result<CsvRows> {
        let input = Input::Bytes {
            name: "a.csv".into(),
            bytes: bytes.into(),
        };
        CsvRows::new(Source::open(&input, options)?, options)
    }

    type Found = (u64, u64, Result<(Option<String>, String), Rejection>);

    fn read(bytes: &[u8]) -> Vec<Found> {
        open(bytes, &ReadOptions::default())
            .unwrap()
            .map(|row| {
                let row = row.unwrap();
                let report = row.report;
                let report = report.map(|r| (r.id().map(str::to_owned), r.text().to_owned()));
                (row.place.row, row.place.line, report)
            })
            .collect()
    }

    fn found(row: u64, line: u64, id: &str, text: &str) -> Found {
        (row, line, Ok((Some(id.to_owned()), text.to_owned())))
    }

    #[test]
    fn separators_are_found_and_cells_may_hold_them() {
        for separator in [";", ",", "\t"] {
            let text =
                "dnr|Beskrivning\n1|\"a; b, c\td \"\"e\"\"\nf\"\n2|g\n".replace('|', separator);
            let wanted = [
                found(1, 2, "1", "a; b, c\td \"e\"\nf"),
                found(2, 4, "2", "g"),
            ];
            assert_eq!(read(text.as_bytes()), wanted);
            // With other line breaks, and blank lines that don't count as rows.
            let windows = text.replace("\n2", "\n\n\n2").replace('\n', "\r\n");
            assert_eq!(
                read(windows.as_bytes()),
                [
                    found(1, 2, "1", "a; b, c\td \"e\"\r\nf"),
                    found(2, 6, "2", "g")
                ]
            );
        }
        assert_eq!(read(b"text\na, b; c\n")[0].2, Ok((None, "a, b; c".into())));
    }

    #[test]
    fn rows_with_too_few_or_too_many_columns_are_rejected() {
        let rows = read(b"id;text\n1\n2;a;b\n3;c;;\n");
        let wrong = |found| Rejection::WrongColumns { found, expected: 2 };
        assert_eq!(rows[0].2, Err(wrong(1)));
        assert_eq!(rows[1].2, Err(wrong(3)));
        assert_eq!(rows[2], found(3, 4, "3", "c"));
    }

    #[test]
    fn cells_and_rows_may_be_of_any_length() {
        let (long, columns) = ("å".repeat(100_000), ";b".repeat(100));
        let csv = format!("id;text;{columns}\n1;\"{long}\";{columns}\n2;{long};{columns}\n");
        let wanted = [found(1, 2, "1", &long), found(2, 3, "2", &long)];
        assert!(read(csv.as_bytes()) == wanted);
    }

    #[test]
    fn no_more_is_held_of_a_row_than_its_limit() {
        let text = "a".repeat(MAX_TEXT_BYTES);
        let (over, row) = (format!("{text}a"), "a;".repeat(MAX_ROW_BYTES));
        let csv = format!("id;text\n1;{text}\n2;\"{over}\"\n3;{row}\n4;a\n5;\"{row}\n");
        let mut rows = open(csv.as_bytes(), &ReadOptions::default()).unwrap();
        let mut next = || rows.next().unwrap().unwrap().report;
        assert_eq!(next().unwrap().text().len(), MAX_TEXT_BYTES);
        assert_eq!(next(), Err(Rejection::TextTooLarge));
        assert_eq!(next(), Err(Rejection::TextTooLarge));
        assert_eq!(next().unwrap().id(), Some("4"));
        assert_eq!(next(), Err(Rejection::UnclosedQuote));
        assert!(rows.records.cells.len() <= 2 * MAX_ROW_BYTES);
    }

    #[test]
    fn a_quote_that_never_ends_is_not_taken_for_one_long_text() {
        let rows = read(b"id;text\n1;a\n2;\"b\n3;c\n");
        assert_eq!(rows[0], found(1, 2, "1", "a"));
        assert_eq!(rows[1], (2, 3, Err(Rejection::UnclosedQuote)));
        assert_eq!(rows.len(), 2);
        // Without a line break at its end a file is whole all the same.
        assert_eq!(read(b"id;text\n1;\"a\"")[0], found(1, 2, "1", "a"));
    }

    #[test]
    fn a_broken_row_does_not_change_the_encoding_of_the_others() {
        let rows = read(b"id;text\n1;f\xc3\xb6ll\n2;f\xf6ll\n3;f\xc3\xb6ll\n");
        assert_eq!(rows[1].2, Err(Rejection::NotUtf8));
        assert_eq!(rows[2], found(3, 4, "3", "föll"));
        let rows = read(b"id;h\xe4ndelse\n1;f\xf6ll\n");
        assert_eq!(rows, [found(1, 2, "1", "föll")]);
    }

    #[test]
    fn without_a_text_column_the_columns_are_named_but_no_text() {
        let error = open(b"dnr;ort\n1;Ystad\n", &ReadOptions::default())
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let message = error.to_string();
        assert!(message.contains("\"dnr\", \"ort\""), "{message}");

        let error = open(b"1;Mormor ramlade i hallen.\n", &ReadOptions::default()).err();
        assert!(!error.unwrap().to_string().contains("Mormor"));

        let error = open(b"", &ReadOptions::default()).err().unwrap();
        assert!(error.to_string().contains("empty"));

        let options = ReadOptions {
            id_column: Some("nr".to_owned()),
            ..ReadOptions::default()
        };
        let error = open(b"id;text\n1;a\n", &options).err().unwrap();
        assert!(error.to_string().contains("\"nr\""));
    }
}
