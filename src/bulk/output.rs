//! A file that appears whole or not at all.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// Writes beside the file that is meant and takes its name at the end, so
/// that nobody reads a half-written one and a failed run leaves the old one.
///
/// Dropped without [`OutputFile::commit`], it leaves nothing behind. A path
/// to something other than a file, such as `/dev/null` or a named pipe, is
/// written to directly.
///
/// # Examples
///
/// ```
/// use lyhord::bulk::OutputFile;
/// use std::io::Write;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("out.jsonl");
/// let mut file = OutputFile::create(&path)?;
/// file.write_all(b"{}\n")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Renamed(BufWriter<NamedTempFile>),
    Direct(BufWriter<File>),
}

impl OutputFile {
    /// Begins a file in the folder of `path`, which must exist.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Io`] when no file can be made there.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        // Through a link, so that the link stays and its target is replaced.
        let path = given.canonicalize().unwrap_or_else(|_| given.to_owned());
        let target = match path.metadata() {
            Ok(metadata) if !metadata.is_file() => File::options()
                .write(true)
                .open(&path)
                .map(|file| Target::Direct(BufWriter::new(file))),
            _ => beside(&path).map(|file| Target::Renamed(BufWriter::new(file))),
        };
        let target = target.map_err(|error| Error::io(given, "write", error))?;
        Ok(Self { path, target })
    }

    /// Writes everything to disk and gives the file its name.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Io`] when the disk is full or the name cannot be
    /// taken; the file that had the name is then unchanged.
    pub fn commit(self) -> Result<()> {
        let Self { path, target } = self;
        let written = match target {
            Target::Direct(mut file) => file.flush(),
            Target::Renamed(file) => file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| {
                    file.as_file().sync_all()?;
                    file.persist(&path)?;
                    sync_folder(&path);
                    Ok(())
                }),
        };
        written.map_err(|error| Error::io(&path, "write", error))
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in a file's folder safe on disk, where that can be done.
pub(super) fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(folder_of(path)) {
        // Some file systems can't; the name is there all the same.
        let _ = folder.sync_all();
    }
}

fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = folder_of(path);
    let mut builder = Builder::new();
    builder.prefix(".lyhord-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As for any new file: what the user's mask leaves of this.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.target {
            Target::Renamed(file) => file.write(bytes),
            Target::Direct(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::Renamed(file) => file.flush(),
            Target::Direct(file) => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_file_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        std::fs::write(&path, "old").unwrap();
        let mut file = OutputFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut file = OutputFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");

        OutputFile::create("/dev/null").unwrap().commit().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
