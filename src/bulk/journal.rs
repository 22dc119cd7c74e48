//! What a run keeps on disk so that another can go on where it stopped.
//!
//! Beside the output `OUT` stand, while a run is under way or interrupted:
//!
//! - `OUT.part`: the rows so far, only ever appended to; locked by the run
//! - `OUT.rejected.jsonl.part`: the rows left out so far, likewise
//! - `OUT.journal`: a JSON object that says what the run is about and how
//!   long the other two were after so many rows
//!
//! - `OUT.journal.part` and `OUT.parquet.part`, for a moment: what replaces the
//!   journal, and what is made of the rows when they are done
//!
//! The journal is replaced as a whole, and only after what it speaks of is
//! safe on disk. Whatever is behind the lengths it gives is cut off when the
//! run goes on: so each row is there once, whenever the run was killed.

use super::output::sync_folder;
use super::{Input, Summary};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a run is about: none of it may change until it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    pub(super) engine: String,
    /// SHA-256 of the model's manifest.
    pub(super) model: String,
    pub(super) options: BTreeMap<String, Value>,
    pub(super) inputs: Inputs,
}

/// The inputs of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inputs {
    count: usize,
    bytes: u64,
    /// Of names, lengths and hashes.
    sha256: String,
    /// Each of them, if they are few, to name the one that has changed.
    files: Vec<InputFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InputFile {
    name: String,
    bytes: u64,
    sha256: String,
}

/// So many inputs are listed one by one.
const MAX_LISTED: usize = 100;

impl Inputs {
    /// Reads all inputs; `None` if one of them can only be read once.
    pub(super) fn of(inputs: &[Input]) -> Result<Option<Self>> {
        let mut all = Sha256::new();
        let (mut bytes, mut files) = (0, Vec::new());
        for input in inputs {
            let Some(file) = InputFile::of(input)? else {
                return Ok(None);
            };
            all.update(format!("{}\0{}\0{}\n", file.name, file.bytes, file.sha256));
            bytes += file.bytes;
            if files.len() < MAX_LISTED {
                files.push(file);
            }
        }
        if inputs.len() > MAX_LISTED {
            files.clear();
        }
        Ok(Some(Self {
            count: inputs.len(),
            bytes,
            sha256: hex(all),
            files,
        }))
    }
}

impl InputFile {
    fn of(input: &Input) -> Result<Option<Self>> {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        match input {
            Input::Bytes { bytes: content, .. } => {
                hash.update(content);
                bytes = content.len() as u64;
            }
            Input::File(path) if path.is_file() => {
                let read = |error| Error::io(path, "read", error);
                let mut file = File::open(path).map_err(read)?;
                let mut buffer = vec![0; 1 << 18];
                loop {
                    let length = match file.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(read(error)),
                    };
                    hash.update(buffer.get(..length).unwrap_or_default());
                    bytes += length as u64;
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(Self {
            name: input.to_string(),
            bytes,
            sha256: hex(hash),
        }))
    }
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Binding {
    /// What has changed since `earlier`, if anything.
    fn change_since(&self, earlier: &Self) -> Option<String> {
        let Self {
            engine,
            model,
            options,
            inputs,
        } = earlier;
        if self.engine != *engine {
            return Some(format!(
                "it was begun by version {engine} of this program, and this is {}",
                self.engine
            ));
        }
        if self.model != *model {
            return Some(format!(
                "it was begun with the model {}..., and this is {}...",
                model.get(..12).unwrap_or(model),
                self.model.get(..12).unwrap_or(&self.model)
            ));
        }
        if self.options != *options {
            let names = self.options.keys().chain(options.keys());
            let mut changed: Vec<&str> = names
                .filter(|name| self.options.get(*name) != options.get(*name))
                .map(String::as_str)
                .collect();
            changed.sort_unstable();
            changed.dedup();
            return Some(format!(
                "it was begun with other options: {}",
                changed.join(", ")
            ));
        }
        if self.inputs == *inputs {
            return None;
        }
        let mut pairs = self.inputs.files.iter().zip(&inputs.files);
        Some(match pairs.find(|(now, then)| now != then) {
            _ if self.inputs.count != inputs.count => format!(
                "it was begun with {} inputs, and now there are {}",
                inputs.count, self.inputs.count
            ),
            Some((now, then)) if now.name != then.name => {
                format!(
                    "it was begun with {} where {} stands now",
                    then.name, now.name
                )
            }
            Some((now, then)) if now.bytes != then.bytes => format!(
                "{} has changed: it had {} bytes and has {}",
                now.name, then.bytes, now.bytes
            ),
            Some((now, _)) => format!("{} has changed, though not its length", now.name),
            None => "one of the inputs has changed".to_owned(),
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    journal_version: u32,
    #[serde(flatten)]
    binding: Binding,
    /// After so many rows the files had these lengths.
    rows: u64,
    output_bytes: u64,
    rejected_bytes: u64,
    /// Whether all rows are done, and only names are left to be given.
    is_complete: bool,
    summary: Summary,
}

const VERSION: u32 = 1;

/// Makes the output from the rows, if it is not the rows themselves.
pub(super) type Convert<'a> = &'a dyn Fn(&File, &File) -> Result<()>;

/// The files of a run, locked against others.
pub(super) struct Journal {
    paths: Paths,
    part: File,
    rejected: File,
    state: State,
    /// Whether the run can be gone on with: not if an input can only be read
    /// once.
    is_resumable: bool,
    committed: Instant,
    /// How long it took to make the files safe the last time.
    cost: Duration,
}

struct Paths {
    output: PathBuf,
    part: PathBuf,
    rejected: PathBuf,
    rejected_part: PathBuf,
    journal: PathBuf,
    journal_part: PathBuf,
    converted: PathBuf,
}

impl Paths {
    fn new(output: PathBuf) -> Self {
        let beside = |ending: &str| {
            let mut name = output.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        Self {
            part: beside(".part"),
            rejected: beside(".rejected.jsonl"),
            rejected_part: beside(".rejected.jsonl.part"),
            journal: beside(".journal"),
            journal_part: beside(".journal.part"),
            converted: beside(".parquet.part"),
            output,
        }
    }
}

/// What an earlier run left, if it did anything.
fn earlier(paths: &Paths) -> Result<Option<State>> {
    let bytes = match fs::read(&paths.journal) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&paths.journal, "read", error)),
    };
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.journal_version == VERSION => {
            Ok(Some(state).filter(|state| state.rows > 0 || state.is_complete))
        }
        _ => Err(refused(paths, "its journal is not one of this version")),
    }
}

fn refused(paths: &Paths, reason: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "cannot go on with the earlier run to {}: {reason}; give everything as it was, or delete {} to begin anew",
            paths.output.display(),
            paths.journal.display()
        ),
    )
}

fn open_to_append(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Opens and locks `OUT.part`.
fn lock(paths: &Paths) -> Result<File> {
    let unwritten = |error| Error::io(&paths.part, "write", error);
    loop {
        let file = open_to_append(&paths.part).map_err(unwritten)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "another run is writing to {}: wait for it, or give another output",
                        paths.output.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(&paths.part, "lock", error));
            }
        }
        // The run that had the lock may just have given the file its name.
        if is_same(&file, &paths.part) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.metadata()) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Cuts off what the journal does not speak of.
fn cut(file: &mut File, length: u64, path: &Path) -> Result<()> {
    let unwritten = |error| Error::io(path, "write", error);
    let found = file.metadata().map_err(unwritten)?.len();
    if found < length {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} has {found} bytes where the journal says {length}: it was changed, so the run can't be resumed; delete the journal to begin anew",
                path.display()
            ),
        ));
    }
    file.set_len(length).map_err(unwritten)?;
    file.seek(SeekFrom::End(0)).map_err(unwritten)?;
    Ok(())
}

/// Making the files safe may take this share of the time at most.
const COMMIT_SHARE: u32 = 100;

impl Journal {
    /// Locks an output and takes up the earlier run to it, if there is one, or
    /// begins one.
    pub(super) fn open(
        output: PathBuf,
        binding: Binding,
        is_resumable: bool,
        resume: bool,
    ) -> Result<Self> {
        let paths = Paths::new(output);
        let part = lock(&paths)?;
        let state = match earlier(&paths)? {
            Some(state) if !resume => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "an earlier run to {} stopped after {} rows: go on with --resume, or delete {} to begin anew",
                        paths.output.display(),
                        state.rows,
                        paths.journal.display()
                    ),
                ));
            }
            Some(_) if !is_resumable => {
                let reason = "an input that is no file can't be read again";
                return Err(refused(&paths, reason));
            }
            Some(state) => match binding.change_since(&state.binding) {
                Some(change) => return Err(refused(&paths, &change)),
                None => state,
            },
            None => State {
                journal_version: VERSION,
                binding,
                rows: 0,
                output_bytes: 0,
                rejected_bytes: 0,
                is_complete: false,
                summary: Summary::default(),
            },
        };
        let rejected = open_to_append(&paths.rejected_part)
            .map_err(|error| Error::io(&paths.rejected_part, "write", error))?;
        let mut journal = Self {
            paths,
            part,
            rejected,
            state,
            is_resumable,
            committed: Instant::now(),
            cost: Duration::ZERO,
        };
        if !journal.state.is_complete {
            let (output, rejected) = (journal.state.output_bytes, journal.state.rejected_bytes);
            cut(&mut journal.part, output, &journal.paths.part)?;
            cut(
                &mut journal.rejected,
                rejected,
                &journal.paths.rejected_part,
            )?;
            journal.commit_now()?;
        }
        Ok(journal)
    }

    /// How many rows are done.
    pub(super) fn rows(&self) -> u64 {
        self.state.rows
    }

    pub(super) fn is_complete(&self) -> bool {
        self.state.is_complete
    }

    /// The counts of the rows that are done.
    pub(super) fn summary(&self) -> &Summary {
        &self.state.summary
    }

    /// Whether nothing has been written yet.
    pub(super) fn is_beginning(&self) -> bool {
        self.state.output_bytes == 0
    }

    /// The file that rows are appended to.
    pub(super) fn part(&self) -> Result<File> {
        let file = self.part.try_clone();
        file.map_err(|error| self.unwritten(error))
    }

    pub(super) fn unwritten(&self, error: io::Error) -> Error {
        let error = Error::io(&self.paths.part, "write", error);
        match self.is_resumable && self.state.rows > 0 {
            false => error,
            true => Error::new(
                error.kind(),
                format!(
                    "{error}; the first {} rows are safe: mend that, and give the command again with --resume",
                    self.state.rows
                ),
            ),
        }
    }

    /// Appends a line about a row that is left out.
    pub(super) fn reject(&mut self, line: &[u8]) -> Result<()> {
        let written = self.rejected.write_all(line);
        written.map_err(|error| Error::io(&self.paths.rejected_part, "write", error))
    }

    /// Whether it is time to make safe what is done. By a clock that never
    /// goes back.
    pub(super) fn is_due(&self) -> bool {
        self.is_resumable && self.committed.elapsed() >= self.cost * COMMIT_SHARE
    }

    /// Makes the rows so far safe. What writes to the part must be flushed.
    pub(super) fn commit(&mut self, rows: u64, summary: &Summary) -> Result<()> {
        let length = |file: &File, path| -> Result<u64> {
            let metadata = file.metadata();
            Ok(metadata
                .map_err(|error| Error::io(path, "read", error))?
                .len())
        };
        self.state.output_bytes = length(&self.part, &self.paths.part)?;
        self.state.rejected_bytes = length(&self.rejected, &self.paths.rejected_part)?;
        self.state.rows = rows;
        self.state.summary = summary.clone();
        self.commit_now()
    }

    fn commit_now(&mut self) -> Result<()> {
        let started = Instant::now();
        let sync = |file: &File, path| {
            let synced = file.sync_data();
            synced.map_err(|error| Error::io(path, "write", error))
        };
        if self.is_resumable {
            sync(&self.part, &self.paths.part)?;
            sync(&self.rejected, &self.paths.rejected_part)?;
            let bytes = serde_json::to_vec(&self.state).map_err(io::Error::from);
            let replaced = bytes.and_then(|bytes| {
                let mut file = File::create(&self.paths.journal_part)?;
                file.write_all(&bytes)?;
                file.sync_data()?;
                fs::rename(&self.paths.journal_part, &self.paths.journal)
            });
            replaced.map_err(|error| Error::io(&self.paths.journal, "write", error))?;
            sync_folder(&self.paths.journal);
        }
        self.cost = started.elapsed();
        self.committed = Instant::now();
        Ok(())
    }

    /// All rows are done: gives the files their names. `convert` makes the
    /// output from the part if it is not the part itself.
    ///
    /// Should it be killed on the way, it is done again from the journal.
    pub(super) fn publish(mut self, convert: Option<Convert<'_>>) -> Result<Summary> {
        if !self.state.is_complete {
            self.state.is_complete = true;
            self.commit_now()?;
            let synced = self.part.sync_all().and_then(|()| self.rejected.sync_all());
            synced.map_err(|error| self.unwritten(error))?;
        }
        let paths = &self.paths;
        let renamed = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|error| Error::io(to, "write", error))
        };
        let removed = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(path, "remove", error))
            }
            _ => Ok(()),
        };
        let has = |file: &File, bytes| file.metadata().is_ok_and(|found| found.len() == bytes);
        // An empty part where the journal speaks of more was made by the lock
        // after the real one got its name.
        let State {
            output_bytes,
            rejected_bytes,
            ..
        } = self.state;
        match rejected_bytes {
            // A list of an earlier run would be about other rows.
            0 => {
                removed(&paths.rejected_part)?;
                removed(&paths.rejected)?;
            }
            bytes if has(&self.rejected, bytes) => {
                renamed(&paths.rejected_part, &paths.rejected)?;
            }
            _ => removed(&paths.rejected_part)?,
        }
        match convert {
            _ if !has(&self.part, output_bytes) => removed(&paths.part)?,
            None => renamed(&paths.part, &paths.output)?,
            Some(convert) => {
                let rewound = self.part.rewind();
                rewound.map_err(|error| Error::io(&paths.part, "read", error))?;
                let unwritten = |error| Error::io(&paths.converted, "write", error);
                let converted = File::create(&paths.converted).map_err(unwritten)?;
                convert(&self.part, &converted)?;
                converted.sync_all().map_err(unwritten)?;
                renamed(&paths.converted, &paths.output)?;
                removed(&paths.part)?;
            }
        }
        sync_folder(&paths.output);
        removed(&paths.journal)?;
        Ok(std::mem::take(&mut self.state.summary))
    }
}

impl Drop for Journal {
    /// A run that has done nothing, or can't be gone on with, leaves nothing.
    fn drop(&mut self) {
        let is_worth_keeping = self.state.rows > 0 && self.is_resumable;
        if !is_worth_keeping && !self.state.is_complete {
            // They are of no use, and there is nobody to tell.
            for path in [
                &self.paths.journal,
                &self.paths.journal_part,
                &self.paths.rejected_part,
                &self.paths.part,
            ] {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            engine: "1".to_owned(),
            model: "2".to_owned(),
            options: BTreeMap::new(),
            inputs: Inputs::default(),
        }
    }

    /// A run of two rows, one of them left out, that was killed when all was
    /// done but the names.
    fn complete(folder: &Path) -> PathBuf {
        let output = folder.join("out.jsonl");
        let mut journal = Journal::open(output.clone(), binding(), true, false).unwrap();
        journal.part().unwrap().write_all(b"{}\n").unwrap();
        journal.reject(b"{\"row\":2}\n").unwrap();
        journal.state.is_complete = true;
        journal.commit(2, &Summary::default()).unwrap();
        fs::write(&output, "old").unwrap();
        output
    }

    fn go_on(output: &Path, convert: bool) {
        let journal = Journal::open(output.to_owned(), binding(), true, true).unwrap();
        assert!(journal.is_complete());
        let doubled = |mut part: &File, mut output: &File| {
            let mut lines = Vec::new();
            part.read_to_end(&mut lines).unwrap();
            output.write_all(&lines.repeat(2)).unwrap();
            Ok(())
        };
        let convert: Option<Convert<'_>> = match convert {
            true => Some(&doubled),
            false => None,
        };
        journal.publish(convert).unwrap();
        let folder = output.parent().unwrap();
        let mut names: Vec<_> = folder
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["out.jsonl", "out.jsonl.rejected.jsonl"]);
        let rejected = fs::read(folder.join("out.jsonl.rejected.jsonl")).unwrap();
        assert_eq!(rejected, b"{\"row\":2}\n");
    }

    #[test]
    fn a_run_killed_while_the_names_are_given_is_finished() {
        let rejected = |output: &Path| {
            let name = |ending| output.with_file_name(format!("out.jsonl.rejected.jsonl{ending}"));
            fs::rename(name(".part"), name("")).unwrap();
        };
        let part = |output: &Path| {
            fs::rename(output.with_file_name("out.jsonl.part"), output).unwrap();
        };
        for done in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let output = complete(folder.path());
            if done > 0 {
                rejected(&output);
            }
            if done > 1 {
                part(&output);
            }
            go_on(&output, false);
            assert_eq!(fs::read(&output).unwrap(), b"{}\n");
        }
        for done in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let output = complete(folder.path());
            if done > 0 {
                rejected(&output);
            }
            if done > 1 {
                fs::write(&output, b"{}\n{}\n").unwrap();
                fs::remove_file(folder.path().join("out.jsonl.part")).unwrap();
            }
            go_on(&output, true);
            assert_eq!(fs::read(&output).unwrap(), b"{}\n{}\n");
        }
    }

    #[test]
    fn a_run_that_did_nothing_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let journal = Journal::open(output.clone(), binding(), true, false).unwrap();
        assert!(folder.path().join("out.jsonl.journal").exists());
        drop(journal);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        // One that was killed so early is no reason to refuse another.
        std::mem::forget(Journal::open(output.clone(), binding(), true, false).unwrap());
        fs::rename(output.with_file_name("out.jsonl.part"), &output).unwrap();
        assert!(Journal::open(output, binding(), true, false).is_ok());
    }

    #[test]
    fn what_has_changed_is_named() {
        let now = binding();
        assert_eq!(now.change_since(&now), None);
        let mut then = binding();
        then.options.insert("keep".to_owned(), true.into());
        assert!(now.change_since(&then).unwrap().ends_with("options: keep"));
        let inputs = |bytes: &[u8]| {
            let input = Input::Bytes {
                name: "a.csv".into(),
                bytes: bytes.into(),
            };
            Inputs::of(&[input]).unwrap().unwrap()
        };
        let mut now = binding();
        (now.inputs, then) = (inputs(b"abc"), binding());
        then.inputs = inputs(b"abcd");
        let change = now.change_since(&then).unwrap();
        assert_eq!(change, "a.csv has changed: it had 4 bytes and has 3");
        then.inputs = inputs(b"abd");
        assert!(
            now.change_since(&then)
                .unwrap()
                .contains("though not its length")
        );
        assert_eq!(Inputs::of(&[Input::Stdin]).unwrap(), None);
    }
}
