//! The bytes of an input, unpacked and on the way to UTF-8.

use super::encoding::{self, Encoding};
use super::{Input, ReadOptions, failed, uncompressed};
use crate::error::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open input whose bytes are UTF-8, or in an encoding still to be found.
pub(super) struct Source {
    pub(super) name: Arc<str>,
    /// The file name without its ending, to identify a report by.
    pub(super) stem: Option<String>,
    pub(super) reader: Box<dyn BufRead + Send>,
    pub(super) encoding: Encoding,
    pub(super) position: Position,
}

impl Source {
    pub(super) fn open(input: &Input, options: &ReadOptions) -> Result<Self> {
        let stated = options.encoding.as_deref().map(encoding::by_name);
        let stated = stated.transpose()?;
        let name: Arc<str> = input.to_string().into();
        let (raw, path): (Box<dyn Read + Send>, _) = match input {
            Input::Stdin => (Box::new(io::stdin()), None),
            Input::File(path) => {
                let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
                (Box::new(file), Some(path))
            }
            Input::Bytes { name, bytes } => (Box::new(Cursor::new(bytes.clone())), Some(name)),
        };
        let stem = path.and_then(|path| {
            let path = uncompressed(path);
            Some(path.file_stem()?.to_string_lossy().into_owned())
        });
        let position = Position::default();
        let raw = Counted(raw, position.clone());
        let (reader, encoding) = unpacked(Box::new(BufReader::with_capacity(BUFFER, raw)))
            .and_then(|reader| encoding::decoded(reader, stated))
            .map_err(|error| failed(&name, error))?;
        Ok(Self {
            name,
            stem,
            reader,
            encoding,
            position,
        })
    }
}

const BUFFER: usize = 1 << 16;

/// How many bytes of a file have been read.
#[derive(Clone, Default)]
pub(super) struct Position(Arc<AtomicU64>);

impl Position {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted<R>(R, Position);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(bytes)?;
        self.1.0.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Unpacks what begins like gzip or zstd.
fn unpacked(mut reader: Box<dyn BufRead + Send>) -> io::Result<Box<dyn BufRead + Send>> {
    let mut start = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let magic: [u8; 4] = start.as_slice().try_into().unwrap_or_default();
    let whole = Cursor::new(start).chain(reader);
    Ok(match magic {
        [0x1f, 0x8b, ..] => buffered(MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => buffered(zstd::Decoder::with_buffer(whole)?),
        _ => Box::new(whole),
    })
}

fn buffered(decoder: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(BUFFER, Unpacker(decoder)))
}

/// Tells what is wrong with the packed bytes from a disk that fails.
struct Unpacker<R>(R);

impl<R: Read> Read for Unpacker<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(|error| {
            let is_of_system = error.raw_os_error().is_some();
            match is_of_system || error.kind() == io::ErrorKind::Interrupted {
                true => error,
                false => io::Error::new(io::ErrorKind::InvalidData, Damage),
            }
        })
    }
}

#[derive(Debug)]
struct Damage;

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packed data is damaged or cut off")
    }
}

impl std::error::Error for Damage {}

/// Whether the bytes are at fault and not what they are read from.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Damage>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> (Vec<u8>, io::Result<usize>) {
        let mut found = Vec::new();
        let mut reader = unpacked(Box::new(Cursor::new(bytes.to_vec()))).unwrap();
        let result = reader.read_to_end(&mut found);
        (found, result)
    }

    #[test]
    fn packed_files_are_known_by_their_content_and_where_they_are_cut() {
        let text = (0..9999)
            .map(|id| format!("{id};Hon föll.\n"))
            .collect::<String>();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gz.write_all(text.as_bytes()).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(text.as_bytes(), 1).unwrap();
        for packed in [gz.as_slice(), &zst] {
            assert_eq!(read(packed).0, text.as_bytes());
            let (found, result) = read(&packed[..packed.len() / 2]);
            assert!(text.as_bytes().starts_with(&found));
            assert!(is_damage(&result.unwrap_err()));
        }
        // Several packed files one after the other are one.
        assert_eq!(
            read(&[gz.clone(), gz].concat()).0,
            text.repeat(2).as_bytes()
        );
        assert_eq!(read(b"id").0, b"id");
    }
}
