//! Files that appear as a whole or not at all.
//!
//! Each is written under a temporary name beside its final one, synced, and then linked or renamed. The parent directory is
//! synced too, so that the name survives a power cut.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::failpoint;

/// Replaces `path` by `bytes` atomically: writes a temporary file beside it, syncs it and renames it. A crash before the rename
/// leaves the old file.
///
/// # Errors
///
/// The temporary file cannot be written, synced or renamed, and `path` keeps its old contents; or its directory cannot be synced.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = written_beside(path, bytes, false)?;
    reach(path);
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Creates `path` with `bytes`, atomically.
///
/// # Errors
///
/// [`io::ErrorKind::AlreadyExists`] if the file exists, also if another writer created it meanwhile.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    link(written_beside(path, bytes, false)?, path)
}

/// [`create`], readable and writable by the owner only.
///
/// # Errors
///
/// Those of [`create`].
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    link(written_beside(path, bytes, true)?, path)
}

/// [`fs::create_dir_all`] with mode 0700. Existing directories keep their mode.
pub fn create_private_directories(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// A file that is written piece by piece under a random temporary name, and renamed when it is complete. No other run shares the
/// temporary name, and no symbolic link can redirect it. Deleted if dropped before [`finish`](Self::finish).
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// Creates the temporary file beside `path`, and returns it for writing.
    ///
    /// # Errors
    ///
    /// The temporary file cannot be created.
    pub fn create(path: &Path) -> io::Result<(Self, File)> {
        let temporary = temporary(path);
        let file = File::create_new(&temporary)?;
        Ok((Self { path: path.into(), temporary: Some(temporary) }, file))
    }

    /// Returns the final name if `name` is the temporary name of an unfinished file.
    pub fn intended(name: &str) -> Option<&str> {
        let (name, random) = name.strip_suffix(WRITING)?.rsplit_once('.')?;
        (random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
    }

    /// Path of the temporary file.
    pub fn temporary(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(&self.path)
    }

    /// Renames the file to its final name, replacing what is there. The caller has synced its bytes.
    ///
    /// # Errors
    ///
    /// The file cannot be renamed, and is deleted; or its directory cannot be synced.
    pub fn finish(mut self) -> io::Result<()> {
        let temporary = self.temporary().to_owned();
        fs::rename(temporary, &self.path)?;
        self.temporary = None;
        sync_parent(&self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // A leftover is harmless: nothing reads this name.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Suffix of unfinished files.
const WRITING: &str = ".writing";

/// Returns a temporary name beside `path`. Random rather than the process id, which containers share.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}{WRITING}", RandomState::new().build_hasher().finish()));
    name.into()
}

/// Copies a file's contents but not its permissions, which are those of a new file. Syncs the copy and returns its bytes.
pub fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let bytes = io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    Ok(bytes)
}

fn link(temporary: PathBuf, path: &Path) -> io::Result<()> {
    reach(path);
    let named = match hard_link(&temporary, path) {
        // SMB, FAT and mounted object stores have no hard links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => rename_new(&temporary, path, error),
        linked => linked,
    };
    let removed = fs::remove_file(&temporary);
    named?;
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_parent(path)
}

fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    if failpoint::is_without("link") {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    fs::hard_link(from, to)
}

/// Renames `from` to `to`, which must not exist. `linked` is the error that [`hard_link`] returned.
fn rename_new(from: &Path, to: &Path, linked: io::Error) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            renamed => return Ok(renamed?),
        }
    }
    let problem = format!(
        "the file system can neither link a file nor rename it without replacing another ({linked}); two writers could not be \
         told apart on it, so the root has to lie on another one"
    );
    Err(io::Error::new(linked.kind(), problem))
}

/// Failpoint between the writing of the temporary file and its final name.
fn reach(path: &Path) {
    failpoint::reach(format_args!("file:{}", path.file_name().unwrap_or_default().display()));
}

fn written_beside(path: &Path, bytes: &[u8], private: bool) -> io::Result<PathBuf> {
    let temporary = temporary(path);
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    let mut file = options.open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // The disk is full, for example: delete the partial file.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

/// Syncs the parent directory, which stores the file's name.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_are_their_writers_own() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("rows.jsonl"), directory.path().join("victim"));
        fs::write(&victim, "victim").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&victim, directory.path().join("rows.jsonl.writing")).unwrap();
        let (one, mut first) = NewFile::create(&path).unwrap();
        let (two, mut second) = NewFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        let name = one.temporary().file_name().unwrap().to_str().unwrap();
        assert_eq!(NewFile::intended(name), Some("rows.jsonl"));
        assert_eq!(NewFile::intended("rows.jsonl.writing"), None);
        one.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(two);
        assert_eq!(fs::read(&victim).unwrap(), b"victim");
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, if cfg!(unix) { 3 } else { 2 });
    }

    #[test]
    fn the_second_creator_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.json");
        create(&path, b"first").unwrap();
        let error = create(&path, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        replace(&path, b"third").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn without_links_a_file_is_created_once_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.json");
        let no_links = || io::Error::from(io::ErrorKind::PermissionDenied);
        for (contents, kind) in [("first", None), ("second", Some(io::ErrorKind::AlreadyExists))] {
            let temporary = written_beside(&path, contents.as_bytes(), false).unwrap();
            let renamed = rename_new(&temporary, &path, no_links());
            assert_eq!(renamed.err().map(|error| error.kind()), kind);
        }
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }
}
