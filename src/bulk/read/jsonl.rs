//! One JSON object a line.

use super::columns::{id_column, joined, text_columns};
use super::{Kept, MAX_ROW_BYTES, Place, ReadOptions, Rejection, Row, Source, ended_by};
use crate::error::Result;
use crate::report::Report;
use serde_json::Value;
use std::io::{self, BufRead};

pub(super) struct JsonlRows {
    source: Source,
    options: ReadOptions,
    /// Kept between rows to save allocations.
    line: Vec<u8>,
    lines: u64,
    rows: u64,
    ended: bool,
}

impl JsonlRows {
    pub(super) fn new(source: Source, options: &ReadOptions) -> Self {
        Self {
            source,
            options: options.clone(),
            line: Vec::new(),
            lines: 0,
            rows: 0,
            ended: false,
        }
    }

    fn read(&mut self) -> Result<(Report, Kept), Rejection> {
        let bytes = self.line.trim_ascii_end();
        // JSON is UTF-8: another encoding is not guessed, only stated.
        let line = match self.options.encoding {
            Some(_) => self.source.encoding.decode(bytes),
            None => std::str::from_utf8(bytes).ok().map(Into::into),
        };
        let line = line.ok_or(Rejection::NotUtf8)?;
        // The library's own message may quote the line. Without its end, an
        // unfinished line is at fault where it stops.
        let value = serde_json::from_str(&line).map_err(|error| Rejection::NotJson {
            column: error.column(),
        })?;
        let Value::Object(mut object) = value else {
            return Err(Rejection::NotAnObject);
        };
        let names = || object.keys().map(String::as_str);
        let text_at = text_columns(names(), &self.options.text_columns);
        let text_at = text_at.map_err(|_| Rejection::MissingText)?;
        let id_at = id_column(names(), self.options.id_column.as_deref());
        let mut texts = Vec::with_capacity(text_at.len());
        for at in &text_at {
            match value_at(&mut object, *at) {
                Some(Value::String(text)) => texts.push(text),
                None | Some(Value::Null) => {}
                Some(_) => return Err(Rejection::TextNotString),
            }
        }
        if texts.is_empty() {
            return Err(Rejection::MissingText);
        }
        let report = Report::new(joined(&texts)?);
        let report = match id_at.and_then(|at| value_at(&mut object, at)) {
            None | Some(Value::Null) => report,
            Some(Value::String(id)) => report.with_id(id),
            Some(Value::Number(id)) => report.with_id(id.to_string()),
            Some(_) => return Err(Rejection::InvalidId),
        };
        let others = object.into_iter().enumerate();
        let kept = others
            .filter(|(at, _)| self.options.keep && !text_at.contains(at) && Some(*at) != id_at)
            .map(|(_, other)| other)
            .collect();
        Ok((report, kept))
    }
}

/// Takes a value out without moving the others.
fn value_at(object: &mut Kept, at: usize) -> Option<Value> {
    object.values_mut().nth(at).map(Value::take)
}

impl Iterator for JsonlRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let is_whole = match read_line(&mut *self.source.reader, &mut self.line) {
                Ok(None) => break,
                Ok(Some(is_whole)) => Ok(is_whole),
                Err(error) => Err(error),
            };
            self.lines += 1;
            if is_whole.is_ok() && self.line.trim_ascii().is_empty() {
                continue;
            }
            self.rows += 1;
            let place = Place {
                input: self.source.name.clone(),
                row: self.rows,
                line: self.lines,
                end: self.source.position.get(),
            };
            let found = match is_whole {
                Ok(true) => self.read(),
                Ok(false) => Err(Rejection::TextTooLarge),
                Err(error) => {
                    self.ended = true;
                    return Some(ended_by(error, place, self.source.encoding.name()));
                }
            };
            return Some(Ok(Row::new(place, found, self.source.encoding.name())));
        }
        self.ended = true;
        None
    }
}

/// Reads up to a line break, no more of it than a row may have; whether that
/// is the whole line, or `None` at the end.
fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let (mut is_any, mut is_whole) = (false, true);
    loop {
        let bytes = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(is_any.then_some(is_whole));
        }
        is_any = true;
        let end = memchr::memchr(b'\n', bytes);
        let length = end.map_or(bytes.len(), |end| end + 1);
        let part = bytes.get(..length).unwrap_or(bytes);
        match line.len() + length > MAX_ROW_BYTES {
            true => is_whole = false,
            false => line.extend_from_slice(part),
        }
        reader.consume(length);
        if end.is_some() {
            return Ok(Some(is_whole));
        }
    }
}
