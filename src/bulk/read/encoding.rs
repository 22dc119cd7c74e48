//! Which bytes stand for which characters.

use encoding_rs::{UTF_16BE, UTF_16LE, WINDOWS_1252};
use encoding_rs_io::DecodeReaderBytesBuilder;
use std::borrow::Cow;
use std::io::{BufRead, BufReader, Cursor, Read, Result};

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
}

/// Looks at the first bytes: strips a byte order mark and turns UTF-16, with
/// or without one, into UTF-8.
pub(super) fn detect(
    mut reader: Box<dyn BufRead + Send>,
) -> Result<(Box<dyn BufRead + Send>, Encoding)> {
    // No more than four, so that a slow pipe is not waited for.
    let mut start = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let utf16 = match *start {
        [0xef, 0xbb, 0xbf, ..] => {
            let rest = Cursor::new(start.split_off(3));
            return Ok((Box::new(rest.chain(reader)), Encoding::Utf8));
        }
        [0xff, 0xfe, ..] => Some(UTF_16LE),
        [0xfe, 0xff, ..] => Some(UTF_16BE),
        // Two characters of Latin letters, digits or signs.
        [1..=255, 0, 1..=255, 0] => Some(UTF_16LE),
        [0, 1..=255, 0, 1..=255] => Some(UTF_16BE),
        _ => None,
    };
    let whole = Cursor::new(start).chain(reader);
    Ok(match utf16 {
        Some(utf16) => {
            let decoder = DecodeReaderBytesBuilder::new()
                .encoding(Some(utf16))
                .strip_bom(true)
                .build(whole);
            (Box::new(BufReader::new(decoder)), Encoding::Utf8)
        }
        None => (Box::new(whole), Encoding::Undecided),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<u8>, Encoding) {
        let (mut reader, encoding) = detect(Box::new(Cursor::new(bytes.to_vec()))).unwrap();
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        (text, encoding)
    }

    #[test]
    fn utf16_becomes_utf8_with_and_without_a_mark() {
        let units: Vec<u16> = "id;händelse 😀".encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let wanted = ("id;händelse 😀".as_bytes().to_vec(), Encoding::Utf8);
        assert_eq!(read(&little), wanted);
        assert_eq!(read(&big), wanted);
        assert_eq!(read(&[&[0xff, 0xfe], &*little].concat()), wanted);
        assert_eq!(read(&[&[0xfe, 0xff], &*big].concat()), wanted);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        assert_eq!(read(b"\xef\xbb\xbfid"), (b"id".to_vec(), Encoding::Utf8));
        assert_eq!(read(b"id"), (b"id".to_vec(), Encoding::Undecided));
        assert_eq!(read(b""), (Vec::new(), Encoding::Undecided));
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
