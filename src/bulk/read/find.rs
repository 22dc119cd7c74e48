//! The inputs that one argument stands for.

use super::Input;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The inputs that a path, a pattern or `-` stands for, in the order of their
/// names.
///
/// A folder stands for the `.txt` files in it and in the folders below, packed
/// (`.txt.gz`, `.txt.zst`) or not: one report each. A pattern has `*`, `?`,
/// `[...]` or `**` (folders at any depth) in it and stands for the files it
/// fits, whatever their format. A file whose name looks like a pattern is
/// taken as that file.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] when a folder holds no such file or a pattern
/// fits none; [`ErrorKind::InvalidOption`] when a pattern is malformed;
/// [`ErrorKind::Io`] when a folder cannot be read.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::{Input, find_inputs};
///
/// let inputs = find_inputs("fixtures/bulk/*.jsonl")?;
/// assert_eq!(inputs, [Input::from("fixtures/bulk/mixed.jsonl")]);
/// assert_eq!(find_inputs("-")?, [Input::Stdin]);
/// # Ok::<(), lyhord::Error>(())
/// ```
pub fn find_inputs(argument: impl AsRef<Path>) -> Result<Vec<Input>> {
    let path = argument.as_ref();
    let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
    let mut files = if path.is_dir() {
        let mut files = Vec::new();
        texts_below(path, &mut files)?;
        if files.is_empty() {
            return Err(invalid(
                path,
                "is a folder without .txt files: give the files in it that you mean, or a pattern such as FOLDER/*.csv",
            ));
        }
        files
    } else if let Some(pattern) = pattern.filter(|_| !path.exists()) {
        let malformed = |error| {
            let message = format!("{pattern:?} is no pattern that can be used");
            Error::new(ErrorKind::InvalidOption, message).with_source(error)
        };
        let mut files = Vec::new();
        for found in glob::glob(pattern).map_err(malformed)? {
            let found = found.map_err(|error| {
                let path = error.path().to_path_buf();
                Error::io(&path, "read", error.into())
            })?;
            if !found.is_dir() {
                files.push(found);
            }
        }
        if files.is_empty() {
            return Err(invalid(path, "fits no file"));
        }
        files
    } else {
        return Ok(vec![Input::from(path)]);
    };
    files.sort();
    Ok(files.into_iter().map(Input::File).collect())
}

fn texts_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let unread = |error| Error::io(folder, "read", error);
    for entry in folder.read_dir().map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let path = entry.path();
        // A link to a folder is not followed, since it may lead back up.
        if entry.file_type().map_err(unread)?.is_dir() {
            texts_below(&path, files)?;
        } else if super::InputFormat::of_file(&path) == Some(super::InputFormat::Text) {
            files.push(path);
        }
    }
    Ok(())
}

fn invalid(path: &Path, what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("{} {what}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_texts_and_a_pattern_all_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b.txt")).unwrap();
        for name in ["c.TXT", "a.txt.gz", "b.txt/1.txt", "d.csv", "e[1].csv"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names = |argument: &str| -> Vec<String> {
            let inputs = find_inputs(folder.path().join(argument)).unwrap();
            let start = folder.path().to_str().unwrap().len();
            let name = |input: &Input| input.to_string().get(start + 1..).unwrap().to_owned();
            inputs.iter().map(name).collect()
        };
        assert_eq!(names(""), ["a.txt.gz", "b.txt/1.txt", "c.TXT"]);
        assert_eq!(names("*.csv"), ["d.csv", "e[1].csv"]);
        assert_eq!(names("**/*.txt"), ["b.txt/1.txt"]);
        assert_eq!(names("e[1].csv"), ["e[1].csv"]);
        assert_eq!(names("no.csv"), ["no.csv"]);
        let kind = |argument| find_inputs(argument).unwrap_err().kind();
        assert_eq!(kind("fixtures/tax*/*.txt"), ErrorKind::InvalidInput);
        assert_eq!(kind("fixtures/tax*/***.txt"), ErrorKind::InvalidOption);
        assert_eq!(kind("fixtures/taxonomy"), ErrorKind::InvalidInput);
    }
}
