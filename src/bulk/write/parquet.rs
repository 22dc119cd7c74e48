//! Lines of JSON into Parquet.

use crate::error::{Error, ErrorKind, Result};
use crate::taxonomy::{HeadKind, Taxonomy};
use arrow_json::ReaderBuilder;
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::io::{BufRead, Write};
use std::sync::Arc;

/// So many rows are decoded at a time, and stand in a group of the file.
const BATCH_ROWS: usize = 1024;
const GROUP_ROWS: usize = 64 * BATCH_ROWS;

/// Writes the lines that a run wrote as a table with [`schema`].
///
/// Parquet can't be appended to, and a run that can be resumed only appends:
/// so it keeps lines of JSON, which become Parquet when all are there.
///
/// # Errors
///
/// [`ErrorKind::Io`] when a line or the table cannot be read or written.
pub(crate) fn convert(
    lines: impl BufRead,
    schema: Schema,
    output: impl Write + Send,
) -> Result<()> {
    let unwritten = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Io, "cannot write the assessments as Parquet").with_source(error)
    };
    let schema = Arc::new(schema);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_created_by(concat!("lyhord ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(output, Arc::clone(&schema), Some(properties))
        .map_err(|error| unwritten(error.into()))?;
    let batches = ReaderBuilder::new(schema)
        .with_batch_size(BATCH_ROWS)
        .with_coerce_primitive(true)
        .build(lines)
        .map_err(|error| unwritten(error.into()))?;
    for batch in batches {
        let batch = batch.map_err(|error| unwritten(error.into()))?;
        writer
            .write(&batch)
            .map_err(|error| unwritten(error.into()))?;
    }
    writer.close().map_err(|error| unwritten(error.into()))?;
    Ok(())
}

/// The columns of a taxonomy's assessments: as in JSON, with types.
pub(crate) fn schema(taxonomy: &Taxonomy, all_probabilities: bool, groups: bool) -> Schema {
    let mut fields = vec![text("id", true)];
    for head in taxonomy.heads() {
        fields.push(match head.kind() {
            HeadKind::MultiLabel => list(head.field(), structure("item", label(), false)),
            HeadKind::SingleLabel => structure(head.field(), label(), false),
            HeadKind::Ordinal => structure(
                head.field(),
                vec![
                    Field::new("level", DataType::Int32, false),
                    text("name", false),
                    list("probabilities", probability("item")),
                ],
                false,
            ),
            HeadKind::Binary => structure(
                head.field(),
                vec![
                    Field::new("value", DataType::Boolean, false),
                    probability("probability"),
                ],
                false,
            ),
        });
        if all_probabilities && matches!(head.kind(), HeadKind::MultiLabel | HeadKind::SingleLabel)
        {
            let codes = head.labels().iter().map(|label| probability(label.code()));
            let name = format!("{}_probabilities", head.name());
            fields.push(structure(&name, codes.collect(), false));
        }
    }
    let model = ["name", "version", "sha256", "taxonomy"].map(|name| text(name, false));
    let precision = [text("precision", true)];
    fields.push(structure("model", [&model[..], &precision].concat(), false));
    fields.extend([
        text("engine", false),
        text("input_sha256", false),
        text("duplicate_of", true),
    ]);
    fields.extend(groups.then(|| text("duplicate_group", true)));
    let entry = structure(
        "entries",
        vec![text("key", false), text("value", true)],
        false,
    );
    fields.push(Field::new(
        "kept",
        DataType::Map(Arc::new(entry), false),
        true,
    ));
    Schema::new(fields)
}

fn label() -> Vec<Field> {
    vec![
        text("code", false),
        text("name", false),
        probability("probability"),
    ]
}

fn text(name: &str, is_nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, is_nullable)
}

fn probability(name: &str) -> Field {
    Field::new(name, DataType::Float64, false)
}

fn structure(name: &str, fields: Vec<Field>, is_nullable: bool) -> Field {
    Field::new(name, DataType::Struct(Fields::from(fields)), is_nullable)
}

fn list(name: &str, item: Field) -> Field {
    Field::new(name, DataType::List(Arc::new(item)), false)
}
