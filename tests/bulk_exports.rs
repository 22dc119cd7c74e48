//! The sample exports in `fixtures/exports` are read as their README says.

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use lyhord::bulk::{Input, ReadOptions, Rejection, find_inputs, rows};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

const EXPORTS: &str = "fixtures/exports";

/// What every whole export holds: id, day, place, text.
const REPORTS: [[&str; 4]; 4] = [
    [
        "2026-1",
        "2026-01-07",
        "Ystad",
        "Brukaren fick dubbel dos insulin på kvällen och hittades medvetslös.\nJouren svarade inte; ingen åkte dit.",
    ],
    [
        "2026-2",
        "2026-01-09",
        "Åre",
        "Mamma ramlade i natt. Larmet \"fungerade inte\", sa personalen.",
    ],
    [
        "2026-3",
        "2026-01-12",
        "Örebro",
        "Skolkuratorn har anmält oro fyra gånger utan att socialtjänsten har hört av sig.",
    ],
    [
        "2026-4",
        "2026-02-02",
        "Växjö",
        "Två nätter i rad har en ensam undersköterska haft ansvar för 40 boende.",
    ],
];
const NAMES: [&str; 4] = ["Diarienummer", "Inkom", "Kommun", "Händelse"];

fn read(input: &Input, options: &ReadOptions) -> Vec<Result<(String, String), Rejection>> {
    let rows = rows(input, options).unwrap_or_else(|error| panic!("{error}"));
    rows.map(|row| {
        let report = row.unwrap().report?;
        let id = report.id().unwrap_or_default().to_owned();
        Ok((id, report.text().to_owned()))
    })
    .collect()
}

#[test]
fn every_whole_export_gives_the_same_reports() {
    let expected: Vec<_> = REPORTS
        .iter()
        .map(|[id, _, _, text]| Ok(((*id).to_owned(), (*text).to_owned())))
        .collect();
    let mut found = 0;
    for entry in fs::read_dir(format!("{EXPORTS}/whole")).unwrap() {
        let path = entry.unwrap().path();
        let inputs = find_inputs(&path).unwrap();
        let reports: Vec<_> = inputs
            .iter()
            .flat_map(|input| read(input, &ReadOptions::default()))
            .map(|report| report.map(|(id, text)| (id, text.replace("\r\n", "\n"))))
            .collect();
        assert_eq!(reports, expected, "{}", path.display());
        found += 1;
    }
    assert_eq!(found, 12);
}

#[test]
fn other_columns_are_carried_through_from_every_table() {
    let mut options = ReadOptions::default();
    options.keep = true;
    for name in [
        "excel.csv",
        "export.jsonl",
        "export.parquet",
        "workbook.xlsx",
    ] {
        let input = Input::from(format!("{EXPORTS}/whole/{name}"));
        let row = rows(&input, &options).unwrap().nth(1).unwrap().unwrap();
        let kept = serde_json::to_string(&row.kept).unwrap();
        assert_eq!(kept, r#"{"Inkom":"2026-01-09","Kommun":"Åre"}"#, "{name}");
    }
}

#[test]
fn several_text_columns_become_one_text() {
    let mut options = ReadOptions::default();
    options.text_columns = vec!["kommun".to_owned(), "HÄNDELSE".to_owned()];
    for name in [
        "tabs.tsv",
        "export.jsonl",
        "export.parquet",
        "workbook.xlsx",
    ] {
        let input = Input::from(format!("{EXPORTS}/whole/{name}"));
        let (_, text) = read(&input, &options)[1].clone().unwrap();
        assert!(text.starts_with("Åre\n\nMamma ramlade"), "{name}");
    }
}

#[test]
fn the_encoding_is_found_and_can_be_stated() {
    let encoding = |name: &str, stated: Option<&str>| {
        let mut options = ReadOptions::default();
        options.encoding = stated.map(str::to_owned);
        let input = Input::from(format!("{EXPORTS}/whole/{name}"));
        rows(&input, &options)
            .unwrap()
            .last()
            .unwrap()
            .unwrap()
            .encoding
    };
    for (name, expected) in [
        ("excel.csv", "utf-8"),
        ("windows-1252.csv", "windows-1252"),
        ("utf-16.csv", "utf-16le"),
        ("workbook.xlsx", "utf-8"),
    ] {
        assert_eq!(encoding(name, None), expected);
    }
    assert_eq!(encoding("windows-1252.csv", Some("latin1")), "windows-1252");
    assert_eq!(encoding("utf-16.csv", Some("utf-16")), "utf-16le");
}

#[test]
fn every_broken_export_gives_what_is_whole_in_it() {
    let read = |name: &str| {
        let input = Input::from(format!("{EXPORTS}/broken/{name}"));
        let found = read(&input, &ReadOptions::default());
        let rejections: Vec<_> = found.iter().filter_map(|row| row.clone().err()).collect();
        (found.len() - rejections.len(), rejections)
    };
    let wrong = |found| Rejection::WrongColumns { found, expected: 4 };
    assert_eq!(read("cut-in-a-row.csv"), (3, vec![wrong(3)]));
    assert_eq!(read("cut-in-a-letter.csv"), (3, vec![Rejection::NotUtf8]));
    assert_eq!(read("open-quote.csv"), (1, vec![Rejection::UnclosedQuote]));
    assert_eq!(read("two-encodings.csv"), (3, vec![Rejection::NotUtf8]));
    let (whole, rejections) = read("cut.csv.gz");
    assert!(whole < 1000);
    assert_eq!(rejections, [Rejection::Damaged]);
    let (whole, rejections) = read("cut.jsonl.zst");
    assert!(whole > 0 && whole < 5000);
    assert_eq!(rejections, [Rejection::Damaged]);
    let (whole, rejections) = read("not-json.jsonl");
    assert_eq!((whole, rejections.len()), (3, 1));
}

#[test]
fn an_export_that_cannot_be_read_at_all_is_named() {
    for (name, reason) in [
        ("no-text-column.csv", "has no column for the text"),
        ("cut.parquet", "is no whole Parquet file"),
        ("cut.xlsx", "is no whole Excel workbook"),
        ("empty.csv", "is empty"),
    ] {
        let input = Input::from(format!("{EXPORTS}/broken/{name}"));
        let error = rows(&input, &ReadOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
}

/// Writes `fixtures/exports`, to be looked through before it is committed:
/// `cargo test --test bulk_exports -- --ignored`.
#[test]
#[ignore = "writes fixtures"]
fn write_the_exports() {
    let whole = Path::new(EXPORTS).join("whole");
    let broken = Path::new(EXPORTS).join("broken");
    fs::create_dir_all(whole.join("letters")).unwrap();
    fs::create_dir_all(&broken).unwrap();
    let write = |folder: &Path, name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).unwrap();
    };

    let excel = csv(b';', "\r\n");
    let plain = csv(b',', "\n");
    write(&whole, "excel.csv", format!("\u{feff}{excel}").as_bytes());
    write(&whole, "commas.csv", plain.as_bytes());
    write(&whole, "tabs.tsv", csv(b'\t', "\n").as_bytes());
    let latin = encoding_rs::WINDOWS_1252.encode(&excel).0;
    write(&whole, "windows-1252.csv", &latin);
    let utf16 = format!("\u{feff}{excel}");
    let utf16: Vec<u8> = utf16.encode_utf16().flat_map(u16::to_le_bytes).collect();
    write(&whole, "utf-16.csv", &utf16);
    let jsonl: String = REPORTS
        .iter()
        .map(|report| {
            let fields = NAMES.iter().zip(report);
            let object = fields.map(|(name, value)| ((*name).to_owned(), (*value).into()));
            let object: serde_json::Map<_, serde_json::Value> = object.collect();
            serde_json::to_string(&object).unwrap() + "\n"
        })
        .collect();
    write(&whole, "export.jsonl", jsonl.as_bytes());
    write(&whole, "packed.csv.gz", &gzip(excel.as_bytes()));
    write(
        &whole,
        "packed.jsonl.zst",
        &zstd::encode_all(jsonl.as_bytes(), 3).unwrap(),
    );
    // Packed, though its name doesn't say so.
    write(&whole, "unsaid.csv", &gzip(plain.as_bytes()));
    write(&whole, "export.parquet", &parquet());
    write(&whole, "workbook.xlsx", &workbook());
    for [id, _, _, text] in REPORTS {
        write(
            &whole.join("letters"),
            &format!("{id}.txt"),
            text.as_bytes(),
        );
    }

    let end = excel.trim_end();
    let cut = end.rfind(';').unwrap();
    write(&broken, "cut-in-a-row.csv", &excel.as_bytes()[..cut]);
    let letter = end.rfind("öv").unwrap_or_else(|| end.rfind('å').unwrap());
    write(&broken, "cut-in-a-letter.csv", &excel.as_bytes()[..=letter]);
    let open = excel.replace("sa personalen.\"", "sa personalen.");
    assert_ne!(open, excel);
    write(&broken, "open-quote.csv", open.as_bytes());
    let (head, tail) = plain.split_at(plain.find("2026-3").unwrap());
    let tail_end = tail.find('\n').unwrap() + 1;
    let latin = encoding_rs::WINDOWS_1252.encode(&tail[..tail_end]).0;
    let two = [head.as_bytes(), &latin, &tail.as_bytes()[tail_end..]].concat();
    write(&broken, "two-encodings.csv", &two);
    let many = plain.clone() + &plain[plain.find('\n').unwrap() + 1..].repeat(250);
    let packed = gzip(many.as_bytes());
    write(&broken, "cut.csv.gz", &packed[..packed.len() / 2]);
    let many: String = (0..5000)
        .map(|id| format!("{{\"id\":{id},\"text\":\"Ingen kom på {id} minuter.\"}}\n"))
        .collect();
    let packed = zstd::encode_all(many.as_bytes(), 3).unwrap();
    write(&broken, "cut.jsonl.zst", &packed[..packed.len() * 4 / 5]);
    let table = parquet();
    write(&broken, "cut.parquet", &table[..table.len() / 2]);
    let book = workbook();
    write(&broken, "cut.xlsx", &book[..book.len() / 2]);
    write(
        &broken,
        "not-json.jsonl",
        jsonl
            .replace("{\"Diarienummer\":\"2026-2\"", "{'dnr': 2")
            .as_bytes(),
    );
    write(&broken, "no-text-column.csv", b"dnr;ort\n1;Ystad\n");
    write(&broken, "empty.csv", b"");
}

fn csv(delimiter: u8, newline: &str) -> String {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(delimiter)
        .terminator(match newline {
            "\r\n" => csv::Terminator::CRLF,
            _ => csv::Terminator::Any(b'\n'),
        })
        .from_writer(Vec::new());
    writer.write_record(NAMES).unwrap();
    for report in REPORTS {
        writer.write_record(report).unwrap();
    }
    String::from_utf8(writer.into_inner().unwrap()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn parquet() -> Vec<u8> {
    let columns = NAMES.iter().enumerate().map(|(at, name)| {
        let values = REPORTS.iter().map(|report| report[at]);
        let array: ArrayRef = Arc::new(StringArray::from_iter_values(values));
        (*name, array)
    });
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// The least that a workbook must have; the day is a number with a date's
/// format, as Excel keeps it, and the texts are in the table of all texts.
fn workbook() -> Vec<u8> {
    const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8" standalone="yes"?>"#;
    const MAIN: &str = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
    const OFFICE: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
    const PACKAGE: &str = "http://schemas.openxmlformats.org/package/2006/relationships";
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let mut table = Vec::new();
    let mut sheet = String::new();
    for (number, row) in std::iter::once(NAMES).chain(REPORTS).enumerate() {
        sheet += &format!("<row r=\"{}\">", number + 1);
        for (column, cell) in row.iter().enumerate() {
            let at = format!("{}{}", ["A", "B", "C", "D"][column], number + 1);
            match (column, number) {
                (1, 1..) => {
                    let days: i64 = days_since_1900(cell);
                    sheet += &format!("<c r=\"{at}\" s=\"1\"><v>{days}</v></c>");
                }
                _ => {
                    sheet += &format!("<c r=\"{at}\" t=\"s\"><v>{}</v></c>", table.len());
                    table.push(format!(
                        "<si><t xml:space=\"preserve\">{}</t></si>",
                        escaped(cell)
                    ));
                }
            }
        }
        sheet += "</row>";
    }
    let types = "http://schemas.openxmlformats.org/package/2006/content-types";
    let kind = "application/vnd.openxmlformats-officedocument.spreadsheetml";
    let parts = [
        (
            "[Content_Types].xml",
            format!(
                "{HEAD}<Types xmlns=\"{types}\"><Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/><Default Extension=\"xml\" ContentType=\"application/xml\"/><Override PartName=\"/xl/workbook.xml\" ContentType=\"{kind}.sheet.main+xml\"/><Override PartName=\"/xl/worksheets/sheet1.xml\" ContentType=\"{kind}.worksheet+xml\"/><Override PartName=\"/xl/styles.xml\" ContentType=\"{kind}.styles+xml\"/><Override PartName=\"/xl/sharedStrings.xml\" ContentType=\"{kind}.sharedStrings+xml\"/></Types>"
            ),
        ),
        (
            "_rels/.rels",
            format!(
                "{HEAD}<Relationships xmlns=\"{PACKAGE}\"><Relationship Id=\"rId1\" Type=\"{OFFICE}/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>"
            ),
        ),
        (
            "xl/workbook.xml",
            format!(
                "{HEAD}<workbook xmlns=\"{MAIN}\" xmlns:r=\"{OFFICE}\"><sheets><sheet name=\"Ärenden\" sheetId=\"1\" r:id=\"rId1\"/></sheets></workbook>"
            ),
        ),
        (
            "xl/_rels/workbook.xml.rels",
            format!(
                "{HEAD}<Relationships xmlns=\"{PACKAGE}\"><Relationship Id=\"rId1\" Type=\"{OFFICE}/worksheet\" Target=\"worksheets/sheet1.xml\"/><Relationship Id=\"rId2\" Type=\"{OFFICE}/styles\" Target=\"styles.xml\"/><Relationship Id=\"rId3\" Type=\"{OFFICE}/sharedStrings\" Target=\"sharedStrings.xml\"/></Relationships>"
            ),
        ),
        (
            "xl/styles.xml",
            format!(
                "{HEAD}<styleSheet xmlns=\"{MAIN}\"><fonts count=\"1\"><font/></fonts><fills count=\"1\"><fill/></fills><borders count=\"1\"><border/></borders><cellStyleXfs count=\"1\"><xf/></cellStyleXfs><cellXfs count=\"2\"><xf/><xf numFmtId=\"14\" applyNumberFormat=\"1\"/></cellXfs></styleSheet>"
            ),
        ),
        (
            "xl/sharedStrings.xml",
            format!("{HEAD}<sst xmlns=\"{MAIN}\">{}</sst>", table.concat()),
        ),
        (
            "xl/worksheets/sheet1.xml",
            format!("{HEAD}<worksheet xmlns=\"{MAIN}\"><sheetData>{sheet}</sheetData></worksheet>"),
        ),
    ];
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, content) in parts {
        zip.start_file(name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The number by which Excel knows a day of 2026.
fn days_since_1900(day: &str) -> i64 {
    let month: i64 = day[5..7].parse().unwrap();
    let number: i64 = day[8..].parse().unwrap();
    46022 + (month - 1) * 31 + number
}
