//! The directory of an export: written to a temporary directory, then renamed. A directory that is not an export is never
//! replaced. Memory: one file at a time, for its hash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use schemas::hash::hash128;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{ExportError, io_error};

/// File name of the manifest; a directory with a valid one is an export.
pub const MANIFEST: &str = "manifest.json";
/// Value of `format` in every manifest.
pub(super) const FORMAT: &str = "climber-pilot-export";

/// Size and hash of one file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// XXH3 of the content, 128 bits, as printed by `xxh128sum`.
    pub xxh3_128: String,
}

/// The fields of a manifest that are read back.
#[derive(Deserialize)]
struct Known {
    format: String,
    files: BTreeMap<String, FileEntry>,
}

/// An export being written.
#[derive(Debug)]
pub(super) struct Staging {
    /// Temporary directory next to the destination, so that publishing is a rename; removed with its content on drop.
    aside: TempDir,
    out: PathBuf,
}

impl Staging {
    /// Begins an export to `out`, which must be absent, empty or an older export.
    ///
    /// # Errors
    ///
    /// `out` holds other files, or the temporary directory cannot be created.
    pub(super) fn new(out: &Path) -> Result<Self, ExportError> {
        check(out)?;
        // The parent of a bare name is "".
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

    /// Returns the path to write the file `name` to.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Syncs the files written so far to disk and returns their sizes and hashes.
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

    /// Renames the export to its destination, in place of an older one.
    ///
    /// # Errors
    ///
    /// `out` holds other files by now, or a rename fails; an older export is then restored.
    pub(super) fn publish(self) -> Result<(), ExportError> {
        // The directory may have changed since the export began.
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

/// Refuses `out` if an export to it would remove other files.
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

/// Returns the names in `directory`, sorted.
fn names(directory: &Path) -> Result<Vec<String>, ExportError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        names.push(entry.map_err(io_error(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}
