//! Files that are there as a whole or not at all.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::failpoint;

/// Writes a file under a temporary name beside it, flushes it and renames it over `path`. A crash leaves the old file.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = written_beside(path, bytes, false)?;
    reach(path);
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Writes a file that must not be there yet: [`io::ErrorKind::AlreadyExists`] where it is, whoever was faster. The file
/// appears with all of its contents.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    link(written_beside(path, bytes, false)?, path)
}

/// [`create`], for a file that only its owner may read.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    link(written_beside(path, bytes, true)?, path)
}

/// [`fs::create_dir_all`], for directories that only their owner may enter. Those that are there stay as they are.
pub fn create_private_directories(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// A file that is written piece by piece, and gets its name when it is whole. Until then it has one of its own beside that, which
/// no other run shares and no link can redirect. Dropped before it is whole, it is deleted.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// Begins the file that will be `path`.
    pub fn create(path: &Path) -> io::Result<(Self, File)> {
        let temporary = temporary(path);
        let file = File::create_new(&temporary)?;
        Ok((Self { path: path.into(), temporary: Some(temporary) }, file))
    }

    /// The name of a file that was to become `name`, if this is the one of an unfinished file.
    pub fn intended(name: &str) -> Option<&str> {
        let (name, random) = name.strip_suffix(WRITING)?.rsplit_once('.')?;
        (random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
    }

    /// Where the file is until it is finished.
    pub fn temporary(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(&self.path)
    }

    /// Gives the file its name, in place of what has it. Its bytes must have reached the disk.
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
            // What cannot be deleted has a name that nothing reads.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Ends the names of unfinished files.
const WRITING: &str = ".writing";

/// Beside `path`. Random: writers in containers have equal process ids.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}{WRITING}", RandomState::new().build_hasher().finish()));
    name.into()
}

/// Copies what is in a file, and not who may read it: that is as for any new file.
pub fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let bytes = io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    Ok(bytes)
}

fn link(temporary: PathBuf, path: &Path) -> io::Result<()> {
    reach(path);
    let named = match hard_link(&temporary, path) {
        // SMB, FAT and object stores that are mounted have no links.
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

/// Gives a file a name that must not be there yet. `linked` is why a link could not.
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

/// The file is written, and not yet there.
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
        // A full disk: what was written so far is of no use.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

/// The name itself has to reach the disk too.
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
