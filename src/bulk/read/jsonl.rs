//! One JSON object a line.

use super::{Place, ReadOptions, Rejection, Row, Source, columns, failed};
use crate::error::Result;
use crate::report::Report;
use serde_json::{Map, Value};

pub(super) struct JsonlRows {
    source: Source,
    text_column: Option<String>,
    id_column: Option<String>,
    /// Kept between rows to save allocations.
    line: Vec<u8>,
    lines: u64,
    rows: u64,
    bytes: u64,
    ended: bool,
}

impl JsonlRows {
    pub(super) fn new(source: Source, options: &ReadOptions) -> Self {
        Self {
            source,
            text_column: options.text_column.clone(),
            id_column: options.id_column.clone(),
            line: Vec::new(),
            lines: 0,
            rows: 0,
            bytes: 0,
            ended: false,
        }
    }

    fn report(&self) -> Result<Report, Rejection> {
        let line =
            std::str::from_utf8(self.line.trim_ascii_end()).map_err(|_| Rejection::NotUtf8)?;
        // The library's own message may quote the line. Without its end, an
        // unfinished line is at fault where it stops.
        let value = serde_json::from_str(line).map_err(|error| Rejection::NotJson {
            column: error.column(),
        })?;
        let Value::Object(mut object) = value else {
            return Err(Rejection::NotAnObject);
        };
        let names = || object.keys().map(String::as_str);
        let text_at = columns::text_column(names(), self.text_column.as_deref());
        let id_at = columns::id_column(names(), self.id_column.as_deref());
        let text = match value_at(&mut object, text_at) {
            Some(Value::String(text)) => text,
            None | Some(Value::Null) => return Err(Rejection::MissingText),
            Some(_) => return Err(Rejection::TextNotString),
        };
        let report = Report::new(text);
        Ok(match value_at(&mut object, id_at) {
            None | Some(Value::Null) => report,
            Some(Value::String(id)) => report.with_id(id),
            Some(Value::Number(id)) => report.with_id(id.to_string()),
            Some(_) => return Err(Rejection::InvalidId),
        })
    }
}

/// Takes a value out without moving the others.
fn value_at(object: &mut Map<String, Value>, at: Option<usize>) -> Option<Value> {
    object.values_mut().nth(at?).map(Value::take)
}

impl Iterator for JsonlRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            self.line.clear();
            match self.source.reader.read_until(b'\n', &mut self.line) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    self.lines += 1;
                    self.bytes += length as u64;
                    if self.line.trim_ascii().is_empty() {
                        continue;
                    }
                    self.rows += 1;
                    return Some(Ok(Row {
                        place: Place {
                            input: self.source.name.clone(),
                            row: self.rows,
                            line: self.lines,
                            end: self.bytes,
                        },
                        report: self.report(),
                    }));
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(failed(&self.source.name, error)));
                }
            }
        }
        None
    }
}
