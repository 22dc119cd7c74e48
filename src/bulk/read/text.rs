//! A whole input as one report.

use super::columns::joined;
use super::{Kept, MAX_TEXT_BYTES, Place, Rejection, Row, Source, ended_by};
use crate::error::Result;
use crate::report::Report;
use std::io::Read;

pub(super) fn row(source: Source) -> Result<Row> {
    let Source {
        name,
        stem,
        reader,
        mut encoding,
        position,
    } = source;
    let mut bytes = Vec::new();
    let read = reader
        .take(MAX_TEXT_BYTES as u64 + 1)
        .read_to_end(&mut bytes);
    let place = Place {
        input: name,
        row: 1,
        line: 1,
        end: position.get(),
    };
    if let Err(error) = read {
        return ended_by(error, place, encoding.name());
    }
    let found = match bytes.len() > MAX_TEXT_BYTES {
        true => Err(Rejection::TextTooLarge),
        false => encoding.decode(&bytes).ok_or(Rejection::NotUtf8),
    };
    let found = found.and_then(|text| {
        let report = Report::new(joined(&[text])?);
        let report = match stem {
            Some(stem) => report.with_id(stem),
            None => report,
        };
        Ok((report, Kept::new()))
    });
    Ok(Row::new(place, found, encoding.name()))
}
