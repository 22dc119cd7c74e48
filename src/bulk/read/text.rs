//! A whole input as one report.

use super::{Place, Rejection, Row, Source, failed};
use crate::error::Result;
use crate::report::Report;

pub(super) fn row(mut source: Source) -> Result<Row> {
    let mut bytes = Vec::new();
    source
        .reader
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&source.name, error))?;
    let report = match source.encoding.decode(&bytes) {
        None => Err(Rejection::NotUtf8),
        Some(text) => {
            let report = Report::new(text);
            Ok(match source.stem {
                Some(stem) => report.with_id(stem),
                None => report,
            })
        }
    };
    Ok(Row {
        place: Place {
            input: source.name,
            row: 1,
            line: 1,
            end: bytes.len() as u64,
        },
        report,
    })
}
