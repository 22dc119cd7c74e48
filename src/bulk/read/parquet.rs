//! Tables in Parquet.

use super::columns::{Columns, invalid};
use super::{Input, Place, ReadOptions, Rejection, Row};
use crate::error::{Error, ErrorKind, Result};
use arrow_array::{Array, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// So few rows are decoded at a time that the longest texts fit in memory.
const BATCH_ROWS: usize = 16;

pub(super) struct ParquetRows {
    name: Arc<str>,
    batches: ParquetRecordBatchReader,
    /// Places among the columns that are read.
    columns: Columns,
    batch: Option<RecordBatch>,
    row_in_batch: usize,
    rows: u64,
    total_rows: u64,
    bytes: u64,
    ended: bool,
}

impl ParquetRows {
    pub(super) fn open(input: &Input, options: &ReadOptions) -> Result<Self> {
        match input {
            Input::File(path) => {
                let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
                Self::new(input, file, options)
            }
            Input::Bytes { bytes, .. } => Self::new(input, Bytes::copy_from_slice(bytes), options),
            Input::Stdin => Err(Error::new(
                ErrorKind::InvalidOption,
                "Parquet is read from its end, so it needs a file and not standard input",
            )),
        }
    }

    fn new<R: ChunkReader + 'static>(
        input: &Input,
        file: R,
        options: &ReadOptions,
    ) -> Result<Self> {
        let name: Arc<str> = input.to_string().into();
        let bytes = file.len();
        let opened = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file));
        let builder = opened.ok_or_else(|| {
            invalid(
                &name,
                "is no whole Parquet file: it is damaged, cut off or of another kind",
            )
        })?;
        // The library panics on some of these.
        let chunks = builder.metadata().row_groups().iter();
        if !chunks
            .flat_map(|group| group.columns())
            .all(|chunk| is_within(chunk, bytes))
        {
            return Err(invalid(
                &name,
                "is damaged: parts of it lie outside the file",
            ));
        }
        let fields = builder.schema().fields();
        let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
        let mut columns = Columns::find(&name, &names, options)?;
        let not_text = |at: &&usize| {
            fields
                .get(**at)
                .is_some_and(|field| !is_text(field.data_type()))
        };
        if let Some(field) = columns
            .text
            .iter()
            .find(not_text)
            .and_then(|at| fields.get(*at))
        {
            let message = format!(
                "has a column \"{}\" of {}, which is no text: state the text column",
                field.name(),
                field.data_type()
            );
            return Err(invalid(&name, &message));
        }
        // Only these are decoded; batches have them in the table's order.
        let mut read: Vec<usize> = columns.text.clone();
        read.extend(columns.id);
        read.extend(columns.kept.iter().map(|(at, _)| *at));
        read.sort_unstable();
        read.dedup();
        let place = |at: &mut usize| *at = read.binary_search(at).unwrap_or_default();
        columns.text.iter_mut().for_each(place);
        columns.id.iter_mut().for_each(place);
        columns.kept.iter_mut().for_each(|(at, _)| place(at));
        let mask = ProjectionMask::roots(builder.parquet_schema(), read.iter().copied());
        let total_rows = builder.metadata().file_metadata().num_rows();
        let batches = guarded(|| {
            builder
                .with_batch_size(BATCH_ROWS)
                .with_projection(mask)
                .build()
        });
        Ok(Self {
            batches: batches.ok_or_else(|| invalid(&name, "is damaged"))?,
            name,
            columns,
            batch: None,
            row_in_batch: 0,
            rows: 0,
            total_rows: u64::try_from(total_rows).unwrap_or(0),
            bytes,
            ended: false,
        })
    }

    pub(super) fn kept_names(&self) -> Vec<String> {
        self.columns.kept_names()
    }

    /// Goes on to the next row; false at the end.
    fn advance(&mut self) -> Result<bool, Rejection> {
        self.row_in_batch += 1;
        while self
            .batch
            .as_ref()
            .is_none_or(|batch| self.row_in_batch >= batch.num_rows())
        {
            let batches = &mut self.batches;
            let next = guarded(|| batches.next().transpose());
            match next.ok_or(Rejection::Damaged)? {
                None => return Ok(false),
                Some(batch) => self.batch = Some(batch),
            }
            self.row_in_batch = 0;
        }
        Ok(true)
    }
}

/// Whether a column's part lies in a file of that length.
fn is_within(chunk: &ColumnChunkMetaData, bytes: u64) -> bool {
    let start = chunk.dictionary_page_offset();
    let start = start.unwrap_or_else(|| chunk.data_page_offset());
    let within = |start: i64, length: i64| {
        let (start, length) = (u64::try_from(start).ok()?, u64::try_from(length).ok()?);
        Some(start.checked_add(length)? <= bytes)
    };
    chunk.data_page_offset() >= 0 && within(start, chunk.compressed_size()) == Some(true)
}

/// What a library call gives, or `None` if it fails: its message may quote
/// what it read, and damaged files could make it panic.
fn guarded<T, E>(call: impl FnOnce() -> Result<T, E>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()?.ok()
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// A value as text; nothing for a missing one.
fn shown(array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return Some(String::new());
    }
    let formatter = ArrayFormatter::try_new(array, &FormatOptions::default()).ok()?;
    formatter.value(row).try_to_string().ok()
}

impl Iterator for ParquetRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let advanced = self.advance();
        self.ended = advanced != Ok(true);
        self.rows += 1;
        let place = Place {
            input: self.name.clone(),
            row: self.rows,
            line: self.rows,
            end: (self.bytes * self.rows)
                .checked_div(self.total_rows)
                .unwrap_or(self.bytes),
        };
        let found = match (advanced, &self.batch) {
            (Ok(true), Some(batch)) => self.columns.read(|at| {
                let array = batch.columns().get(at).ok_or(Rejection::Damaged)?;
                let value = guarded(|| shown(array, self.row_in_batch).ok_or(()));
                Ok(value.ok_or(Rejection::Damaged)?.into())
            }),
            (Err(rejection), _) => Err(rejection),
            _ => return None,
        };
        Some(Ok(Row::new(place, found, "utf-8")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use parquet::arrow::ArrowWriter;

    fn table(rows: usize) -> Vec<u8> {
        let texts = (0..rows).map(|id| (id % 3 != 2).then(|| format!("Hon föll {id} gånger.")));
        let batch = RecordBatch::try_from_iter_with_nullable([
            (
                "antal",
                Arc::new(Int64Array::from_iter(0..rows as i64)) as ArrayRef,
                false,
            ),
            ("Fritext", Arc::new(StringArray::from_iter(texts)), true),
            (
                "dnr",
                Arc::new(Int64Array::from_iter(100..100 + rows as i64)),
                false,
            ),
        ]);
        let batch = batch.unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    fn open(bytes: &[u8], options: &ReadOptions) -> Result<ParquetRows> {
        let input = Input::Bytes {
            name: "a.parquet".into(),
            bytes: bytes.into(),
        };
        ParquetRows::open(&input, options)
    }

    #[test]
    fn columns_are_found_by_name_and_the_others_kept() {
        let options = ReadOptions {
            keep: true,
            ..ReadOptions::default()
        };
        let rows = open(&table(40), &options).unwrap();
        let rows: Vec<Row> = rows.map(Result::unwrap).collect();
        assert_eq!(rows.len(), 40);
        let report = rows[37].report.as_ref().unwrap();
        assert_eq!(report.text(), "Hon föll 37 gånger.");
        assert_eq!(report.id(), Some("137"));
        assert_eq!(rows[37].kept["antal"], "37");
        assert_eq!(rows[38].report.as_ref().unwrap().text(), "");
        assert_eq!(rows[39].place.row, 40);
    }

    #[test]
    fn a_column_of_numbers_is_no_text() {
        let options = ReadOptions {
            text_columns: vec!["antal".to_owned()],
            ..ReadOptions::default()
        };
        let error = open(&table(3), &options).err().unwrap().to_string();
        assert!(error.contains("\"antal\" of Int64"), "{error}");
    }

    #[test]
    fn a_damaged_file_gives_the_rows_before_the_damage() {
        let whole = table(30_000);
        assert!(open(&whole[..whole.len() - 9], &ReadOptions::default()).is_err());
        assert!(open(b"id;text", &ReadOptions::default()).is_err());
        let mut damaged = whole.clone();
        let middle = whole.len() / 2;
        damaged[middle..middle + 2000].fill(0xff);
        let rows = open(&damaged, &ReadOptions::default()).unwrap();
        let rows: Vec<Row> = rows.map(Result::unwrap).collect();
        assert!(!rows.is_empty() && rows.len() <= 30_000);
        let mut rejections = rows.iter().filter_map(|row| row.report.as_ref().err());
        assert!(rejections.all(|rejection| *rejection == Rejection::Damaged));
    }
}
