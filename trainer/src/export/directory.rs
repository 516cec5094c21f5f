//! The directory of an export: written aside, then renamed. What is there and is no export stays as it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use schemas::hash::hash128;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{ExportError, io_error};

/// What describes an export, and shows that a directory is one.
pub const MANIFEST: &str = "manifest.json";
/// What `format` says in every manifest.
pub(super) const FORMAT: &str = "climber-pilot-export";

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// XXH3 of its content, 128 bits, as `xxh128sum` prints it.
    pub xxh3_128: String,
}

/// The part of a manifest that is read again.
#[derive(Deserialize)]
struct Known {
    format: String,
    files: BTreeMap<String, FileEntry>,
}

/// An export that is being written.
#[derive(Debug)]
pub(super) struct Staging {
    /// Beside the destination, so that a rename is all that is left to do; removed with all that is still in it.
    aside: TempDir,
    out: PathBuf,
}

impl Staging {
    /// Begins an export to `out`, which must be free, empty, or an older export.
    pub(super) fn new(out: &Path) -> Result<Self, ExportError> {
        check(out)?;
        // Of `DIR` alone the parent is "".
        let parent = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        let aside =
            tempfile::Builder::new().prefix(".export-").tempdir_in(parent).map_err(io_error(parent))?;
        let staging = Self { aside, out: out.to_owned() };
        fs::create_dir(staging.directory()).map_err(io_error(&staging.directory()))?;
        Ok(staging)
    }

    fn directory(&self) -> PathBuf {
        self.aside.path().join("export")
    }

    /// Where to write the file `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The files written so far, each flushed to disk.
    pub(super) fn files(&self) -> Result<BTreeMap<String, FileEntry>, ExportError> {
        let mut files = BTreeMap::new();
        for name in names(&self.directory())? {
            let path = self.file(&name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(io_error(&path))?;
            let content = fs::read(&path).map_err(io_error(&path))?;
            let (bytes, xxh3_128) = (content.len() as u64, format!("{:032x}", hash128(&content)));
            files.insert(name, FileEntry { bytes, xxh3_128 });
        }
        Ok(files)
    }

    /// Gives the export its name, in place of what was there.
    pub(super) fn publish(self) -> Result<(), ExportError> {
        // Somebody may have used the directory meanwhile.
        check(&self.out)?;
        let previous = self.aside.path().join("previous");
        let replaced = self.out.exists();
        if replaced {
            fs::rename(&self.out, &previous).map_err(io_error(&self.out))?;
        }
        let renamed = fs::rename(self.directory(), &self.out);
        if renamed.is_err() && replaced {
            fs::rename(&previous, &self.out).map_err(io_error(&previous))?;
        }
        renamed.map_err(io_error(&self.out))
    }
}

/// Refuses `out` where writing an export to it would remove something else.
fn check(out: &Path) -> Result<(), ExportError> {
    let occupied = |problem: String| ExportError::Occupied { path: out.to_owned(), problem };
    if !out.exists() {
        return Ok(());
    }
    if !out.is_dir() {
        return Err(occupied("it is a file".into()));
    }
    let names = names(out)?;
    if names.is_empty() {
        return Ok(());
    }
    let path = out.join(MANIFEST);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(occupied(format!("it holds `{}` and no {MANIFEST}", names[0])));
        }
        read => read.map_err(io_error(&path))?,
    };
    let known: Known =
        serde_json::from_slice(&text).map_err(|_| occupied(format!("{MANIFEST} is not an export's")))?;
    if known.format != FORMAT {
        return Err(occupied(format!("{MANIFEST} is of the format `{}`", known.format)));
    }
    match names.iter().find(|&name| name != MANIFEST && !known.files.contains_key(name)) {
        Some(other) => Err(occupied(format!("`{other}` there does not belong to an export"))),
        None => Ok(()),
    }
}

/// The names in `directory`, in order.
fn names(directory: &Path) -> Result<Vec<String>, ExportError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        names.push(entry.map_err(io_error(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}
