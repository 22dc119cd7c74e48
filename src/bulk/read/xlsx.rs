//! The first sheet of an Excel workbook.

use super::columns::{Columns, invalid};
use super::{Input, Place, ReadOptions, Rejection, Row};
use crate::error::{Error, ErrorKind, Result};
use calamine::{DataRef, Reader, Xlsx};
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Excel keeps the texts of all cells in one table, which must be in memory;
/// this many bytes of it are accepted.
const MAX_TABLE_BYTES: u64 = 256 << 20;

/// The part of the workbook that holds that table.
const TABLE: &str = "xl/sharedStrings.xml";

pub(super) struct XlsxRows {
    name: Arc<str>,
    sheet: Receiver<Part>,
    columns: Columns,
    rows: u64,
    /// The last row of the sheet that has been read, from 1, and how many
    /// there are.
    line: u64,
    last_line: u64,
    bytes: u64,
    ended: bool,
}

/// What the thread that reads a sheet sends.
enum Part {
    /// The number of the last row.
    Opened(u64),
    /// A row's number from 1, and its cells by column.
    Row(u64, Vec<(u32, String)>),
    End,
}

impl XlsxRows {
    pub(super) fn open(input: &Input, options: &ReadOptions) -> Result<Self> {
        match input {
            Input::File(path) => {
                let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
                let bytes = file.metadata().map_or(0, |metadata| metadata.len());
                Self::new(input, BufReader::new(file), bytes, options)
            }
            Input::Bytes { bytes, .. } => {
                let length = bytes.len() as u64;
                Self::new(input, Cursor::new(bytes.clone()), length, options)
            }
            Input::Stdin => Err(Error::new(
                ErrorKind::InvalidOption,
                "an Excel workbook is read from its end, so it needs a file and not standard input",
            )),
        }
    }

    fn new<R>(input: &Input, file: R, bytes: u64, options: &ReadOptions) -> Result<Self>
    where
        R: Read + Seek + Send + 'static,
    {
        let name: Arc<str> = input.to_string().into();
        let unread = || {
            invalid(
                &name,
                "is no whole Excel workbook (.xlsx): it is damaged, cut off, locked by a password or of another kind",
            )
        };
        let mut file = file;
        if table_bytes(&mut file).ok_or_else(unread)? > MAX_TABLE_BYTES {
            let message = format!(
                "has more than {} MiB of text, which for a workbook must all be in memory: save it as CSV or Parquet",
                MAX_TABLE_BYTES >> 20
            );
            return Err(invalid(&name, &message));
        }
        // A thread of its own, since what reads the cells borrows from the
        // workbook; and should the library panic on a damaged one, the channel
        // closes without an end.
        let (sender, sheet) = sync_channel(64);
        let builder = std::thread::Builder::new().name("lyhord-xlsx".to_owned());
        let started = builder.spawn(move || send_sheet(file, &sender));
        started.map_err(|error| Error::io(name.as_ref().as_ref(), "read", error))?;
        let Ok(Part::Opened(last_line)) = sheet.recv() else {
            return Err(unread());
        };
        let names = match sheet.recv() {
            Ok(Part::Row(_, cells)) => filled(cells),
            Ok(Part::End) => Vec::new(),
            _ => return Err(unread()),
        };
        Ok(Self {
            columns: Columns::find(&name, &names, options)?,
            name,
            sheet,
            rows: 0,
            line: 1,
            last_line,
            bytes,
            ended: false,
        })
    }

    pub(super) fn kept_names(&self) -> Vec<String> {
        self.columns.kept_names()
    }
}

/// Cells by column as a list without gaps.
fn filled(cells: Vec<(u32, String)>) -> Vec<String> {
    let mut list = Vec::new();
    for (column, cell) in cells {
        let column = column as usize;
        if column < MAX_COLUMNS {
            list.resize(list.len().max(column + 1), String::new());
            if let Some(place) = list.get_mut(column) {
                *place = cell;
            }
        }
    }
    list
}

/// As many as Excel has.
const MAX_COLUMNS: usize = 1 << 14;

/// The size of the table of texts, unpacked; `None` if the file is no
/// workbook.
fn table_bytes(file: &mut (impl Read + Seek)) -> Option<u64> {
    let mut parts = zip::ZipArchive::new(&mut *file).ok()?;
    let size = parts.by_name(TABLE).map_or(0, |table| table.size());
    drop(parts);
    file.rewind().ok()?;
    Some(size)
}

/// Sends the rows that have a cell. Stops when nobody receives any more, and
/// without an end where the sheet is damaged.
fn send_sheet<R: Read + Seek>(file: R, to: &SyncSender<Part>) -> Option<()> {
    let mut book: Xlsx<R> = Xlsx::new(file).ok()?;
    let name = book.sheet_names().into_iter().next()?;
    let mut cells = book.worksheet_cells_reader(&name).ok()?;
    let last_line = u64::from(cells.dimensions().end.0) + 1;
    to.send(Part::Opened(last_line)).ok()?;
    let mut row = Vec::new();
    let mut line = None;
    loop {
        let cell = cells.next_cell().ok()?;
        let at = cell.as_ref().map(|cell| cell.get_position());
        if line.is_some() && line != at.map(|(row, _)| row) && !row.is_empty() {
            let number = u64::from(line.unwrap_or_default()) + 1;
            to.send(Part::Row(number, std::mem::take(&mut row))).ok()?;
        }
        let (Some(cell), Some((number, column))) = (cell, at) else {
            return to.send(Part::End).ok();
        };
        line = Some(number);
        let text = shown(cell.get_value());
        if !text.is_empty() {
            row.push((column, text));
        }
    }
}

fn shown(value: &DataRef<'_>) -> String {
    match value {
        DataRef::Int(number) => number.to_string(),
        DataRef::Float(number) => number.to_string(),
        DataRef::String(text) => text.clone(),
        DataRef::SharedString(text) => (*text).to_owned(),
        DataRef::Bool(value) => value.to_string(),
        DataRef::DateTime(time) => {
            let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
            let date = format!("{year:04}-{month:02}-{day:02}");
            match (hour, minute, second) {
                (0, 0, 0) => date,
                _ => format!("{date} {hour:02}:{minute:02}:{second:02}"),
            }
        }
        DataRef::DateTimeIso(text) | DataRef::DurationIso(text) => text.clone(),
        DataRef::Error(_) | DataRef::Empty => String::new(),
    }
}

impl Iterator for XlsxRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let part = self.sheet.recv();
        self.ended = !matches!(part, Ok(Part::Row(..)));
        let found = match part {
            Ok(Part::Row(line, cells)) => {
                self.line = line;
                self.columns.read(|at| {
                    let cell = cells.iter().find(|(column, _)| *column as usize == at);
                    Ok(cell.map_or(Cow::Borrowed(""), |(_, text)| text.as_str().into()))
                })
            }
            Ok(_) => return None,
            Err(_) => {
                self.line += 1;
                Err(Rejection::Damaged)
            }
        };
        self.rows += 1;
        let place = Place {
            input: self.name.clone(),
            row: self.rows,
            line: self.line,
            end: (self.bytes * self.line.min(self.last_line))
                .checked_div(self.last_line)
                .unwrap_or(self.bytes),
        };
        Some(Ok(Row::new(place, found, "utf-8")))
    }
}
