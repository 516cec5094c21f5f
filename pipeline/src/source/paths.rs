//! Resolves paths, directories and patterns to files, and standard input.
//!
//! ```text
//!   file ───────────────────────────────▶ itself
//!   pattern ──▶ its matches, by name ───▶ files, with the values in their paths ([`partition`])
//!   directory ─▶ all in it, by name ────▶ files, with the values in their paths
//!   Delta table, TABLE@VERSION ─────────▶ the files of a version, with the values in its log
//!   - ──────────────────────────────────▶ standard input
//! ```
//!
//! Memory: the names of all files.
//!
//! [`partition`]: super::partition

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemas::config::{Dialect, Format};
use store::Root;

use super::error::SourceError;
use super::files::{InputFile, Packing};
use super::partition::{PartitionValue, partition_values};

/// The path that means standard input.
const STDIN_PATH: &str = "-";

/// `source` of all records from standard input. A file's is an absolute path, so no file has this one.
pub(crate) const STDIN_SOURCE: &str = "stdin";

/// Directory of a Delta table's log.
const DELTA_LOG: &str = "_delta_log";

/// Files of one path.
struct Found {
    path: PathBuf,
    partitions: Vec<PartitionValue>,
    /// What the path says, where the name of the file does not decide.
    format: Option<Format>,
}

/// The files that `paths` name: in the order given, those of a pattern or a directory in the order of their names, each file once.
pub(crate) async fn resolve(
    paths: &[String],
    format: Option<Format>,
    dialect: &Dialect,
) -> Result<Vec<InputFile>, SourceError> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        if path == STDIN_PATH {
            if !seen.insert(STDIN_SOURCE.to_owned()) {
                return Err(twice());
            }
            files.push(stdin(format, dialect)?);
            continue;
        }
        for Found { path: found, partitions, format: known } in expand(path, format).await? {
            let input = one_file(&found, known.or(format), dialect)?;
            if seen.insert(input.source.clone()) {
                files.push(InputFile { partitions, ..input });
            }
        }
    }
    Ok(files)
}

/// The file at `path`, whatever directories lie above it.
pub(crate) fn one_file(
    path: &Path,
    format: Option<Format>,
    dialect: &Dialect,
) -> Result<InputFile, SourceError> {
    let shown = path.display().to_string();
    let fail = |e| SourceError::read(&shown, e);
    let source = std::fs::canonicalize(path).map_err(fail)?;
    let source = source.into_os_string().into_string().map_err(|_| not_utf8(path))?;
    let bytes = std::fs::metadata(&source).map_err(fail)?.len();
    let (format, packing, dialect) = kind(&shown, format, dialect)?;
    Ok(InputFile { source, is_stdin: false, format, packing, dialect, partitions: Vec::new(), bytes })
}

/// Refuses to read standard input as two things.
pub(crate) fn check_stdin(items: &[InputFile], events: &[InputFile]) -> Result<(), SourceError> {
    let reads = |files: &[InputFile]| files.iter().any(|file| file.is_stdin);
    if reads(items) && reads(events) { Err(twice()) } else { Ok(()) }
}

fn twice() -> SourceError {
    refused(STDIN_PATH, "names standard input twice, which can be read once")
}

fn stdin(format: Option<Format>, dialect: &Dialect) -> Result<InputFile, SourceError> {
    let Some(format) = format else {
        return Err(refused(
            STDIN_PATH,
            "has no name that says its format; set `format` in the configuration, for example with --set \
             events.format=jsonl",
        ));
    };
    let (dialect, source) = (dialect.clone(), STDIN_SOURCE.to_owned());
    Ok(InputFile {
        source,
        is_stdin: true,
        format,
        packing: Packing::Plain,
        dialect,
        partitions: Vec::new(),
        bytes: 0,
    })
}

fn refused(path: &str, problem: impl Into<String>) -> SourceError {
    SourceError::NotTheFormat { path: path.into(), problem: problem.into() }
}

fn not_utf8(path: &Path) -> SourceError {
    let problem = "its path is not UTF-8, and so cannot be stored as the source of an event";
    refused(&path.display().to_string(), problem)
}

async fn expand(path: &str, format: Option<Format>) -> Result<Vec<Found>, SourceError> {
    // An existing file whose name contains brackets is a file, not a pattern.
    let at = Path::new(path);
    if at.is_dir() {
        return if is_delta(at) { delta(path, at, None).await } else { directory(path, format) };
    }
    if at.exists() {
        return Ok(vec![Found { path: at.into(), partitions: Vec::new(), format: None }]);
    }
    if let Some((table, version)) = path.rsplit_once('@')
        && let Ok(version) = version.parse()
        && is_delta(Path::new(table))
    {
        return delta(path, Path::new(table), Some(version)).await;
    }
    if path.contains(WILDCARDS) {
        matches(path, format)
    } else {
        Err(SourceError::NoSuchFile { path: path.into() })
    }
}

const WILDCARDS: [char; 3] = ['*', '?', '['];

/// The part of a pattern before its first wildcard, as whole directories.
fn fixed_prefix(pattern: &str) -> &str {
    let fixed = pattern.find(WILDCARDS).map_or(pattern, |at| &pattern[..at]);
    fixed.rfind('/').map_or("", |at| &fixed[..=at])
}

/// Whether programs that write tables hide a file or directory of this name from readers. `_key=value` is a partition.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// The files that a pattern matches; where it matches directories only, what is in these.
fn matches(pattern: &str, format: Option<Format>) -> Result<Vec<Found>, SourceError> {
    let not_a_pattern = |e: glob::PatternError| refused(pattern, format!("is not a pattern: {e}"));
    let prefix = Path::new(fixed_prefix(pattern));
    // As in directories, `**` finds neither hidden directories nor what is in them.
    let skips_hidden = pattern.contains("**");
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for entry in glob::glob(pattern).map_err(not_a_pattern)? {
        let entry = entry.map_err(|e| SourceError::read(pattern, e))?;
        let below = entry.strip_prefix(prefix).unwrap_or(&entry);
        let mut parents = below.parent().into_iter().flat_map(Path::components);
        if skips_hidden && parents.any(|part| is_hidden(&part.as_os_str().to_string_lossy())) {
            continue;
        }
        if entry.is_file() {
            files.push(entry);
        } else if entry.is_dir() {
            directories.push(entry);
        }
    }
    if files.is_empty() && !directories.is_empty() {
        directories.sort();
        for directory in directories {
            walk(&directory, None, &mut files)?;
        }
        files.retain(|path| format.is_some() || named(path).is_some());
    }
    if files.is_empty() {
        return Err(SourceError::NoMatch { pattern: pattern.into() });
    }
    below(prefix, files)
}

/// All files of a directory and of those in it that have a format.
fn directory(top: &str, format: Option<Format>) -> Result<Vec<Found>, SourceError> {
    let mut files = Vec::new();
    walk(Path::new(top), None, &mut files)?;
    files.retain(|path| format.is_some() || named(path).is_some());
    if files.is_empty() {
        let which = match format {
            Some(_) => String::new(),
            None => format!(" whose name says its format ({})", all_endings()),
        };
        let hint = if format.is_some() { "" } else { "; `format` in the configuration says that of all" };
        return Err(refused(
            top,
            format!(
                "is a directory without a file{which}; hidden files and those that begin with `_` are not read{hint}"
            ),
        ));
    }
    below(Path::new(top), files)
}

/// `files` in the order of their names, with the values in their paths below `top`.
fn below(top: &Path, mut files: Vec<PathBuf>) -> Result<Vec<Found>, SourceError> {
    files.sort();
    let found = files.into_iter().map(|path| {
        let partitions = partition_values(path.strip_prefix(top).unwrap_or(&path))?;
        Ok(Found { path, partitions, format: None })
    });
    found.collect()
}

/// The directories that are being read, from the innermost on.
struct Above<'a> {
    real: PathBuf,
    above: Option<&'a Above<'a>>,
}

/// Appends the files below `directory` to `files`.
fn walk(directory: &Path, above: Option<&Above<'_>>, files: &mut Vec<PathBuf>) -> Result<(), SourceError> {
    let shown = || directory.display().to_string();
    let fail = |e: std::io::Error| SourceError::read(&shown(), e);
    let real = std::fs::canonicalize(directory).map_err(fail)?;
    if std::iter::successors(above, |above| above.above).any(|above| above.real == real) {
        return Err(refused(&shown(), "is a link to a directory above it"));
    }
    if is_delta(directory) {
        return Err(refused(&shown(), "is a Delta table, whose log says which files it has; name it itself"));
    }
    let here = Above { real, above };
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if is_hidden(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        // A link that leads nowhere is an error, not a file less.
        let metadata = std::fs::metadata(&path);
        let metadata = metadata.map_err(|e| SourceError::read(&path.display().to_string(), e))?;
        if metadata.is_dir() {
            walk(&path, Some(&here), files)?;
        } else if metadata.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn is_delta(path: &Path) -> bool {
    path.join(DELTA_LOG).is_dir()
}

/// The files of a Delta table at `version` or its newest. Files that the table had before, or is about to get, are not read.
async fn delta(shown: &str, path: &Path, version: Option<u64>) -> Result<Vec<Found>, SourceError> {
    let fail = |source| SourceError::Table { path: shown.into(), source: Box::new(source) };
    let directory = std::fs::canonicalize(path).map_err(|e| SourceError::read(shown, e))?;
    let (Some(parent), Some(name)) =
        (directory.parent().and_then(Path::to_str), directory.file_name().and_then(|name| name.to_str()))
    else {
        return Err(not_utf8(path));
    };
    let root = Root::new(parent).map_err(fail)?.pinned(version.map(|version| (name, version)));
    let Some(table) = root.snapshot(name).await.map_err(fail)? else {
        return Err(refused(shown, format!("has an empty `{DELTA_LOG}`, so it is not yet a table")));
    };
    if table.shards().is_empty() {
        return Err(refused(shown, format!("has no rows at version {}", table.version())));
    }
    let files = table.shards().iter().map(|shard| Found {
        path: directory.join(shard.location().as_ref()),
        partitions: shard
            .partition
            .iter()
            .map(|(name, value)| PartitionValue { name: name.clone(), value: value.clone() })
            .collect(),
        format: Some(Format::Parquet),
    });
    Ok(files.collect())
}

/// Words as a list for a message.
fn any_of(all: &[String]) -> String {
    match all.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The endings of all formats and packings.
fn all_endings() -> String {
    let formats: Vec<String> =
        Format::ALL.iter().flat_map(|format| format.endings()).map(|ending| format!(".{ending}")).collect();
    let packings: Vec<String> =
        Packing::PACKED.iter().map(|packing| format!(".{}", packing.ending())).collect();
    format!("{}, each also with {}", any_of(&formats), any_of(&packings))
}

/// A file's name without directories and the ending of its packing, its packing, and the format that its ending says.
struct Name {
    ending: String,
    packing: Packing,
    format: Option<Format>,
}

impl Name {
    fn new(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let packed = name.rsplit_once('.').and_then(|(name, ending)| {
            let packing = Packing::PACKED.into_iter().find(|packing| packing.ending() == ending)?;
            Some((name, packing))
        });
        let (name, packing) = packed.unwrap_or((&name, Packing::Plain));
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_owned();
        let format = Format::ALL.into_iter().find(|format| format.endings().contains(&ending.as_str()));
        Self { ending, packing, format }
    }
}

/// The format that the name of a file says.
fn named(path: &Path) -> Option<Format> {
    Name::new(&path.to_string_lossy()).format
}

fn kind(
    path: &str,
    configured: Option<Format>,
    dialect: &Dialect,
) -> Result<(Format, Packing, Dialect), SourceError> {
    let name = Name::new(path);
    match configured.or(name.format) {
        Some(format) => Ok((format, name.packing, by_ending(&name.ending, dialect))),
        None => Err(refused(
            path,
            format!(
                "its name does not say its format ({}); set `format` in the configuration",
                all_endings()
            ),
        )),
    }
}

/// Completes the configured dialect by the ending of a file's name.
fn by_ending(ending: &str, configured: &Dialect) -> Dialect {
    let mut dialect = configured.clone();
    let is_atomic = matches!(ending, "inter" | "item");
    if is_atomic || ending == "tsv" {
        dialect.delimiter.get_or_insert_with(|| "\t".into());
    }
    if is_atomic && dialect.names.is_empty() {
        dialect.typed_header.get_or_insert(true);
    }
    dialect
}
