//! Which bytes stand for which characters.

use crate::error::{Error, ErrorKind, Result};
use encoding_rs::{UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
use encoding_rs_io::DecodeReaderBytesBuilder;
use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Cursor, Read};

/// What is known about the encoding of an input.
///
/// UTF-8 and Windows-1252 agree on ASCII, and hardly any Swedish text in
/// Windows-1252 holds UTF-8 by chance, so the first part that is not ASCII
/// decides. From then on it is fixed: a part that is broken in a UTF-8 file is
/// not taken for Windows-1252.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Undecided,
    Utf8,
    Windows1252,
    /// Was another one, with this name, and is UTF-8 now.
    Transcoded(&'static str),
}

impl Encoding {
    /// Decides by some bytes of the input, if it is not decided.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        if *self == Self::Undecided && !bytes.is_ascii() {
            // One whole character is enough, should the part be broken.
            *self = match bytes.utf8_chunks().any(|chunk| !chunk.valid().is_ascii()) {
                true => Self::Utf8,
                false => Self::Windows1252,
            };
        }
    }

    /// The characters that bytes stand for, or `None` if they are broken.
    pub(super) fn decode<'a>(&mut self, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        self.see(bytes);
        match self {
            Self::Windows1252 => Some(WINDOWS_1252.decode_without_bom_handling(bytes).0),
            _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        }
    }

    /// As it is called in the summary of a run.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Undecided | Self::Utf8 => "utf-8",
            Self::Windows1252 => "windows-1252",
            Self::Transcoded(name) => name,
        }
    }
}

/// The encoding that a name such as `latin1` stands for.
pub(super) fn by_name(label: &str) -> Result<&'static encoding_rs::Encoding> {
    encoding_rs::Encoding::for_label(label.as_bytes()).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOption,
            format!(
                "{label:?} is no known encoding: give one such as utf-8, utf-16le, windows-1252 or iso-8859-1"
            ),
        )
    })
}

type Reader = Box<dyn BufRead + Send>;

/// Strips a byte order mark and turns UTF-16 into UTF-8, which is recognised
/// by the first bytes unless the encoding is stated.
pub(super) fn decoded(
    mut reader: Reader,
    stated: Option<&'static encoding_rs::Encoding>,
) -> io::Result<(Reader, Encoding)> {
    // No more than four, so that a slow pipe is not waited for.
    let mut start = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let is_marked = start.starts_with(&[0xef, 0xbb, 0xbf]);
    let found = stated.or(match *start {
        _ if is_marked => Some(UTF_8),
        [0xff, 0xfe, ..] => Some(UTF_16LE),
        [0xfe, 0xff, ..] => Some(UTF_16BE),
        // Two characters of Latin letters, digits or signs.
        [1..=255, 0, 1..=255, 0] => Some(UTF_16LE),
        [0, 1..=255, 0, 1..=255] => Some(UTF_16BE),
        _ => None,
    });
    if is_marked {
        start.drain(..3);
    }
    let whole = Cursor::new(start).chain(reader);
    Ok(match found {
        None => (Box::new(whole), Encoding::Undecided),
        Some(utf8) if utf8 == UTF_8 => (Box::new(whole), Encoding::Utf8),
        Some(latin) if latin == WINDOWS_1252 => (Box::new(whole), Encoding::Windows1252),
        Some(other) => {
            let decoder = DecodeReaderBytesBuilder::new()
                .encoding(Some(other))
                .strip_bom(true)
                .build(whole);
            let name = match other.name() {
                "UTF-16LE" => "utf-16le",
                "UTF-16BE" => "utf-16be",
                name => name,
            };
            (
                Box::new(BufReader::new(decoder)),
                Encoding::Transcoded(name),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], stated: Option<&str>) -> (String, &'static str) {
        let reader = Box::new(Cursor::new(bytes.to_vec()));
        let stated = stated.map(|label| by_name(label).unwrap());
        let (mut reader, mut encoding) = decoded(reader, stated).unwrap();
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        let text = encoding.decode(&text).unwrap().into_owned();
        (text, encoding.name())
    }

    #[test]
    fn utf16_becomes_utf8_with_and_without_a_mark() {
        let text = "id;händelse 😀";
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for (mark, bytes, name) in [
            ([0xff, 0xfe], little, "utf-16le"),
            ([0xfe, 0xff], big, "utf-16be"),
        ] {
            assert_eq!(read(&bytes, None), (text.to_owned(), name));
            assert_eq!(read(&[&mark, &*bytes].concat(), None).0, text);
            assert_eq!(read(&bytes, Some(name)), (text.to_owned(), name));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        assert_eq!(read(b"\xef\xbb\xbfid", None), ("id".to_owned(), "utf-8"));
        assert_eq!(read(b"id", None), ("id".to_owned(), "utf-8"));
        assert_eq!(read(b"", None), (String::new(), "utf-8"));
    }

    #[test]
    fn a_stated_encoding_is_the_one() {
        // Both are whole in UTF-8 too.
        let text = "fÃ¶ll".to_owned();
        assert_eq!(
            read("föll".as_bytes(), Some("latin1")),
            (text, "windows-1252")
        );
        assert_eq!(read(b"\xa4", Some("iso-8859-15")).0, "€");
        assert_eq!(
            by_name("klingon").unwrap_err().kind(),
            ErrorKind::InvalidOption
        );
    }

    #[test]
    fn the_first_part_that_is_not_ascii_decides() {
        let mut encoding = Encoding::Undecided;
        assert_eq!(encoding.decode(b"ascii").as_deref(), Some("ascii"));
        assert_eq!(encoding.decode(b"f\xf6ll").as_deref(), Some("föll"));
        assert_eq!(encoding, Encoding::Windows1252);

        let mut encoding = Encoding::Undecided;
        assert_eq!(encoding.decode("föll".as_bytes()).as_deref(), Some("föll"));
        assert_eq!(encoding.decode(b"f\xf6ll"), None);

        let mut encoding = Encoding::Undecided;
        assert_eq!(encoding.decode(b"f\xc3\xb6ll \xff"), None);
        assert_eq!(encoding, Encoding::Utf8);
    }
}
