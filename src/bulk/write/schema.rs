//! The JSON Schema of an assessment.

use crate::taxonomy::{HeadKind, Taxonomy};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// The JSON Schema (draft 2020-12) of a line of JSONL with the answers of a
/// taxonomy.
///
/// That of the shipped model is in the repository as
/// `schema/assessment.schema.json`.
///
/// # Examples
///
/// ```
/// use lyhord::Taxonomy;
/// use lyhord::bulk::assessment_schema;
///
/// let taxonomy = Taxonomy::from_file("fixtures/taxonomy/taxonomy.toml")?;
/// let schema = assessment_schema(&taxonomy);
/// assert_eq!(schema["properties"]["severity"]["$ref"], "#/$defs/severity");
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn assessment_schema(taxonomy: &Taxonomy) -> Value {
    let mut generator = SchemaGenerator::default();
    let mut definitions = Map::new();
    let mut properties = Map::new();
    let mut required = vec![json!("id")];
    properties.insert(
        "id".to_owned(),
        json!({
            "description": "The report's identifier in the input; null if it has none.",
            "type": ["string", "null"]
        }),
    );
    for head in taxonomy.heads() {
        let mut definition = match head.kind() {
            HeadKind::MultiLabel | HeadKind::SingleLabel => {
                generator.root_schema_for::<LabelLine>()
            }
            HeadKind::Ordinal => generator.root_schema_for::<LevelLine>(),
            HeadKind::Binary => generator.root_schema_for::<BinaryLine>(),
        };
        restrict(&mut definition, head);
        let reference = json!({"$ref": format!("#/$defs/{}", head.name())});
        definitions.insert(head.name().to_owned(), definition.to_value());
        let property = match head.kind() {
            HeadKind::MultiLabel => json!({
                "description": "Those over their thresholds, most probable first.",
                "type": "array",
                "items": reference
            }),
            _ => reference,
        };
        properties.insert(head.field().to_owned(), property);
        required.push(json!(head.field()));
        if matches!(head.kind(), HeadKind::MultiLabel | HeadKind::SingleLabel) {
            let codes = head.labels().iter();
            let codes = codes.map(|label| (label.code().to_owned(), probability()));
            properties.insert(
                format!("{}_probabilities", head.name()),
                json!({
                    "description": "Every label's probability, with --all-probabilities.",
                    "type": "object",
                    "properties": Value::Object(codes.collect()),
                    "additionalProperties": false
                }),
            );
        }
    }
    for (name, schema) in [
        ("model", generator.root_schema_for::<ModelLine>().to_value()),
        (
            "engine",
            json!({"description": "The version of this program.", "type": "string"}),
        ),
        (
            "input_sha256",
            json!({
                "description": "SHA-256 of the text's UTF-8 bytes.",
                "type": "string",
                "pattern": "^[0-9a-f]{64}$"
            }),
        ),
    ] {
        properties.insert(name.to_owned(), schema);
        required.push(json!(name));
    }
    for (name, description) in [
        (
            "duplicate_of",
            "Stands where an earlier row has the same text: its id, or its file and row.",
        ),
        (
            "duplicate_group",
            "With --group-duplicates: the id of the first row with nearly this text, or its file and row.",
        ),
    ] {
        let schema = json!({"description": description, "type": "string"});
        properties.insert(name.to_owned(), schema);
    }
    properties.insert(
        "kept".to_owned(),
        json!({"description": "With --keep: the other columns of the input.", "type": "object"}),
    );
    for schema in definitions.values_mut().chain(properties.values_mut()) {
        if let Value::Object(schema) = schema {
            schema.shift_remove("$schema");
            schema.shift_remove("title");
        }
    }
    json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Assessment",
        "description": format!(
            "One line of `lyhord classify` in JSONL; taxonomy {}. Fields may be added at the end.",
            taxonomy.version()
        ),
        "type": "object",
        "properties": properties,
        "required": required,
        "$defs": definitions
    })
    .to_value()
}

/// A label and how probable it is.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only their names and types are looked at")]
struct LabelLine {
    /// The label's stable code.
    code: String,
    /// The label's name, to show to people.
    name: String,
    /// How probable the label is, to four decimals.
    #[schemars(range(min = 0, max = 1))]
    probability: f64,
}

/// A level of an ordered scale.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only their names and types are looked at")]
struct LevelLine {
    /// The level that was decided on.
    level: u8,
    /// The level's name, to show to people.
    name: String,
    /// How probable each level is, lowest first.
    #[schemars(inner(range(min = 0, max = 1)))]
    probabilities: Vec<f64>,
}

/// Yes or no.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only their names and types are looked at")]
struct BinaryLine {
    /// The answer.
    value: bool,
    /// How probable yes is, whatever the answer.
    #[schemars(range(min = 0, max = 1))]
    probability: f64,
}

/// The model that made the assessment.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only their names and types are looked at")]
struct ModelLine {
    /// The model's name.
    name: String,
    /// The model's version.
    version: String,
    /// SHA-256 of the bundle's manifest, which holds the hash of every file.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    sha256: String,
    /// The version of the taxonomy.
    taxonomy: String,
    /// The number format of the encoder, if another than `f32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["int8"]))]
    precision: Option<String>,
}

fn probability() -> Value {
    json!({"type": "number", "minimum": 0, "maximum": 1})
}

/// Lists the codes or levels that a head can answer with.
fn restrict(schema: &mut Schema, head: &crate::taxonomy::Head) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else {
        return;
    };
    let mut set = |property: &str, key: &str, value: Value| {
        if let Some(Value::Object(property)) = properties.get_mut(property) {
            property.insert(key.to_owned(), value);
        }
    };
    match head.kind() {
        HeadKind::Ordinal => {
            let (first, count) = (head.first_level(), head.labels().len());
            set("level", "minimum", first.into());
            set("level", "maximum", (usize::from(first) + count - 1).into());
            set("probabilities", "minItems", count.into());
            set("probabilities", "maxItems", count.into());
        }
        HeadKind::MultiLabel | HeadKind::SingleLabel => {
            let codes: Vec<&str> = head.labels().iter().map(|label| label.code()).collect();
            set("code", "enum", codes.into());
        }
        HeadKind::Binary => {}
    }
}
