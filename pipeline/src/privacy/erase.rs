//! Rewrites shards and files without a user's rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemas::config::Config;
use schemas::tables::{DEAD_LETTERS, EVENT_DATE, EVENTS};
use store::commit::{Change, CommitError, CommitMode, NewShard, ShardWriter, Uncommitted};
use store::files;
use store::{Root, Shard, Snapshot};

use super::error::ForgetError;
use super::forgotten::Forgotten;
use super::look_alikes::LookAlikes;
use super::named::{UserColumn, cells, names};
use super::report::{ErasedFile, ErasedTable};

/// Maximum attempts for a table that other writers keep replacing.
const TRIES: usize = 10;

/// The users whose rows are erased.
pub(super) enum Erased<'a> {
    /// Given by their ids; look-alikes found on the way are collected.
    Users(HashSet<&'a str>, LookAlikes),
    /// Given by the hashes of their ids.
    Forgotten(&'a Forgotten),
}

impl Erased<'_> {
    /// Whether these bytes are the id of a user to erase.
    fn is_one(&self, id: &[u8]) -> bool {
        match self {
            Self::Users(..) => std::str::from_utf8(id).is_ok_and(|id| self.has(id)),
            Self::Forgotten(forgotten) => forgotten.is_one(id),
        }
    }

    /// Whether this user is to be erased.
    fn has(&self, user: &str) -> bool {
        match self {
            Self::Users(users, alike) => {
                let has = users.contains(user);
                if !has {
                    alike.see(user);
                }
                has
            }
            Self::Forgotten(forgotten) => forgotten.has(user),
        }
    }
}

/// Removes the rows of `who` from the newest version of `table`; `None` if the table has no rows of users.
pub(super) async fn from_table(
    config: &Config,
    root: &Root,
    table: &str,
    who: &Erased<'_>,
) -> Result<Option<ErasedTable>, ForgetError> {
    for _ in 0..TRIES {
        let Some(snapshot) = root.snapshot_to_write(table, true).await? else { return Ok(None) };
        let state = snapshot
            .delta()
            .snapshot()
            .map_err(|source| store::TableError::Log { table: table.into(), source: Box::new(source) })?;
        let schema = state.snapshot().arrow_schema();
        let owned = if table == DEAD_LETTERS {
            Owned::DeadLetters {
                user_field: config.events.columns.user_id.clone(),
                columns: Mutex::default(),
            }
        } else if schema.field_with_name("user_id").is_ok() {
            Owned::ByColumn
        } else {
            return Ok(None);
        };
        let run = Run { root, snapshot: &snapshot, who, owned };
        let Some((replaced, written, rows)) = run.rewrite().await? else {
            return Ok(Some(ErasedTable {
                table: table.into(),
                rows: 0,
                shards: 0,
                version: snapshot.version(),
            }));
        };
        let change = Change {
            table,
            schema: &snapshot.stored_schema()?,
            partition_by: if table == EVENTS { &[EVENT_DATE] } else { &[] },
            mode: CommitMode::Delete { replaced: &replaced },
            shards: written.shards(),
            properties: BTreeMap::new(),
            read_version: Some(snapshot.version()),
            transactions: BTreeMap::new(),
        };
        match written.commit(change).await {
            // The table was compacted or rebuilt, so its rows are in other shards now.
            Err(CommitError::Superseded { .. } | CommitError::Conflict { .. }) => {}
            committed => {
                let version = committed?.version;
                return Ok(Some(ErasedTable { table: table.into(), rows, shards: replaced.len(), version }));
            }
        }
    }
    Err(ForgetError::Busy { table: table.into() })
}

/// How a table's rows name their user.
enum Owned {
    /// By the column `user_id`.
    ByColumn,
    /// Rejected records: by their key, or by the content of the record ([`names`]).
    DeadLetters { user_field: String, columns: Mutex<HashMap<String, UserColumn>> },
}

struct Run<'a> {
    root: &'a Root,
    snapshot: &'a Snapshot,
    who: &'a Erased<'a>,
    owned: Owned,
}

impl Run<'_> {
    /// The shards with rows of the users, their replacements, and the number of removed rows; `None` if there are none.
    async fn rewrite(&self) -> Result<Option<(Vec<Shard>, Uncommitted, u64)>, ForgetError> {
        let mut written = Uncommitted::new(self.root, self.snapshot.name());
        let (mut replaced, mut rows) = (Vec::new(), 0);
        for shard in self.snapshot.shards() {
            if !self.is_in(shard).await? {
                continue;
            }
            let (kept, left_out) = self.without(shard).await?;
            rows += left_out;
            written.extend(kept);
            replaced.push(shard.clone());
        }
        Ok((!replaced.is_empty()).then_some((replaced, written, rows)))
    }

    async fn is_in(&self, shard: &Shard) -> Result<bool, ForgetError> {
        let columns: &[&str] = match self.owned {
            Owned::ByColumn => &["user_id"],
            Owned::DeadLetters { .. } => &["source", "key", "value"],
        };
        for batch in self.snapshot.read_shard(shard, columns).await? {
            if self.owners(&batch)?.true_count() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// For each row, whether it belongs to one of the users.
    fn owners(&self, batch: &RecordBatch) -> Result<BooleanArray, ForgetError> {
        let rows = |source| ForgetError::Rows { table: self.snapshot.name().into(), source };
        match &self.owned {
            Owned::ByColumn => of_users(batch, self.who).map_err(rows),
            Owned::DeadLetters { user_field, columns } => {
                let sources = batch.column_by_name("source").and_then(|column| column.as_string_opt::<i32>());
                let binary =
                    |name| batch.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
                let (keys, values) = (binary("key"), binary("value"));
                let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
                let mut row = |row: usize| {
                    let of = |column: Option<&'_ BinaryArray>| {
                        column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_vec())
                    };
                    let source = sources.map_or("", |sources| sources.value(row));
                    let column = match columns.get(source) {
                        Some(&column) => column,
                        None => *columns.entry(source.into()).or_insert(user_column(source, user_field)),
                    };
                    let (key, value) = (of(keys), of(values).unwrap_or_default());
                    let is_named =
                        |column| names(user_field, column, key.as_deref(), &value, |id| self.who.is_one(id));
                    // The header names another user, but the file may have been replaced since the record was rejected.
                    let is_doubtful = || column != UserColumn::Unknown && is_named(UserColumn::Unknown);
                    let of_this_file = || has_record(source, &value).unwrap_or(false);
                    Some(is_named(column) || (is_doubtful() && !of_this_file()))
                };
                Ok((0..batch.num_rows()).map(&mut row).collect())
            }
        }
    }

    /// Rewrites the shard without the users' rows; returns it, unless it would be empty, and the number of removed rows.
    async fn without(&self, shard: &Shard) -> Result<(Option<NewShard>, u64), ForgetError> {
        let (table, schema) = (self.snapshot.name(), self.snapshot.stored_schema()?);
        let partition: Vec<(&str, &str)> = shard
            .partition
            .iter()
            .filter_map(|(column, value)| Some((column.as_str(), value.as_deref()?)))
            .collect();
        let columns: Vec<&str> = schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .filter(|name| !shard.partition.contains_key(*name))
            .collect();
        let mut writer = ShardWriter::create(self.root, table, prefix(&shard.path), &schema, &partition)?;
        let (mut kept, mut left_out) = (0, 0);
        let rows = |source| ForgetError::Rows { table: table.into(), source };
        for batch in self.snapshot.read_shard(shard, &columns).await? {
            let owners = self.owners(&batch)?;
            let others = arrow::compute::not(&owners).and_then(|others| filter_record_batch(&batch, &others));
            let others = others.and_then(|others| typed(&others, &schema)).map_err(rows)?;
            kept += others.num_rows() as u64;
            left_out += owners.true_count() as u64;
            writer.write(&others)?;
        }
        // Dropping the writer deletes its file.
        let new = if kept > 0 { Some(writer.finish()?.in_place_of(shard)) } else { None };
        Ok((new, left_out))
    }
}

/// A cast that fails if a value does not fit the type.
fn cast(column: &dyn Array, to: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(column, to, &CastOptions { safe: false, ..CastOptions::default() })
}

/// For each row, whether column `user_id`, of any text or number type, names one of the users.
fn of_users(batch: &RecordBatch, who: &Erased<'_>) -> Result<BooleanArray, ArrowError> {
    let column = batch
        .column_by_name("user_id")
        .ok_or_else(|| ArrowError::SchemaError("there is no column `user_id`".into()))?;
    let users = cast(column, &DataType::Utf8)?;
    Ok(users.as_string::<i32>().iter().map(|user| Some(user.is_some_and(|user| who.has(user)))).collect())
}

/// The batch cast to the types of the table, which need not be a table of the contract.
fn typed(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch, ArrowError> {
    let names = batch.schema_ref().fields().iter();
    let columns = names.zip(batch.columns()).map(|(field, column)| {
        let field = schema.field_with_name(field.name())?.clone();
        Ok((cast(column, field.data_type())?, field))
    });
    let (columns, fields): (Vec<_>, Vec<_>) =
        columns.collect::<Result<Vec<_>, ArrowError>>()?.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The column of the user in a source's lines, from its header, if the source is an existing CSV file, packed or not.
fn user_column(source: &str, user_field: &str) -> UserColumn {
    const HEADER_BYTES_MAX: u64 = 1 << 20;
    let header = || -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        BufReader::new(csv_file(Path::new(source))?.take(HEADER_BYTES_MAX)).read_until(b'\n', &mut line)?;
        Ok(line)
    };
    let Ok(line) = header() else { return UserColumn::Unknown };
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line);
    let fields = cells(line.strip_suffix(b"\n").unwrap_or(line));
    let at = fields.iter().position(|name| **name == *user_field.as_bytes());
    at.map_or(UserColumn::Unknown, |column| UserColumn::At { column, of: fields.len() })
}

/// Whether a CSV file still has this record as whole lines. If so, it is the file that the record was read from, so its header
/// is the record's, even if lines were appended since.
fn has_record(source: &str, record: &[u8]) -> io::Result<bool> {
    const READ_BYTES: u64 = 1 << 20;
    let mut file = csv_file(Path::new(source))?;
    let finder = memchr::memmem::Finder::new(record);
    let mut held = vec![b'\n'];
    loop {
        let is_end = file.by_ref().take(READ_BYTES).read_to_end(&mut held)? == 0;
        if is_end {
            held.push(b'\n');
        }
        let mut from = 0;
        while let Some(found) = finder.find(&held[from..]) {
            let at = from + found;
            let is_line_end = |at: usize| matches!(held.get(at), Some(b'\n' | b'\r'));
            if at > 0 && is_line_end(at - 1) && is_line_end(at + record.len()) {
                return Ok(true);
            }
            from = at + 1;
        }
        if is_end {
            return Ok(false);
        }
        // Keep the bytes that may begin the record, and the one before them.
        held.drain(..held.len().saturating_sub(record.len() + 1));
    }
}

/// The text of a CSV file; an error for any other file.
fn csv_file(path: &Path) -> io::Result<Box<dyn io::Read>> {
    let ends_in =
        |path: &Path, ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let is_packed = ["gz", "zst"].into_iter().any(|ending| ends_in(path, ending));
    let name = if is_packed { path.with_extension("") } else { path.into() };
    if !ends_in(&name, "csv") || !path.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = File::open(path)?;
    Ok(match () {
        () if ends_in(path, "gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        () if ends_in(path, "zst") => Box::new(zstd::stream::read::Decoder::new(file)?),
        () => Box::new(file),
    })
}

/// `part-00003` of `event_date=…/part-00003-<uuid>.parquet`.
fn prefix(path: &str) -> &str {
    const UUID: usize = "-00000000-0000-0000-0000-000000000000.parquet".len();
    let name = path.rsplit('/').next().unwrap_or(path);
    name.len()
        .checked_sub(UUID)
        .and_then(|end| name.get(..end))
        .filter(|name| !name.is_empty())
        .unwrap_or("part")
}

/// The files and links found beside the models.
#[derive(Default)]
pub(super) struct BesideModels {
    pub(super) files: Vec<ErasedFile>,
    /// Links to targets outside; these were not followed.
    pub(super) links: Vec<PathBuf>,
}

/// Removes the users from the Parquet files beside the models, which hold the rank of each predicted event. An unreadable file is
/// an error; a file that another program has just deleted is not.
pub(super) fn from_models(root: &Root, who: &Erased<'_>) -> Result<BesideModels, ForgetError> {
    let mut found = BesideModels::default();
    let models = root.path().join("models");
    let home = models.canonicalize().unwrap_or_else(|_| models.clone());
    let mut directories = vec![models];
    while let Some(directory) = directories.pop() {
        let fail = |source: io::Error| ForgetError::File { path: directory.clone(), source: source.into() };
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(fail)?,
        };
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(fail)?);
            if kind.is_symlink() {
                // Targets inside of `models` are visited there.
                let outside = path.canonicalize().is_ok_and(|target| !target.starts_with(&home));
                found.links.extend(outside.then(|| inside(root, &path)));
            } else if kind.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                let rows = match from_file(&path, who) {
                    Err(_) if !path.exists() => 0,
                    rows => rows.map_err(|source| ForgetError::File { path: path.clone(), source })?,
                };
                found.files.extend((rows > 0).then(|| ErasedFile { path: inside(root, &path), rows }));
            }
        }
    }
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.links.sort();
    Ok(found)
}

fn inside(root: &Root, path: &Path) -> PathBuf {
    path.strip_prefix(root.path()).unwrap_or(path).to_owned()
}

/// Rewrites the file without the users' rows, if it has any; returns their number.
fn from_file(path: &Path, who: &Erased<'_>) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let schema: Arc<Schema> = reader.schema().clone();
    if schema.field_with_name("user_id").is_err() {
        return Ok(0);
    }
    let (mut kept, mut left_out) = (Vec::new(), 0);
    for batch in reader.build()? {
        let batch = batch?;
        let others = arrow::compute::not(&of_users(&batch, who)?)?;
        left_out += (others.len() - others.true_count()) as u64;
        kept.push(filter_record_batch(&batch, &others)?);
    }
    if left_out > 0 {
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties))?;
        kept.iter().try_for_each(|batch| writer.write(batch))?;
        writer.close()?;
        files::replace(path, &bytes)?;
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_header_counts_while_its_file_has_the_record() {
        let directory = tempfile::tempdir().unwrap();
        let text = b"item,user,time\nu7,i1,never\r\nu8,i2,never";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let (gzip, zstd) = (gzip.finish().unwrap(), zstd::encode_all(&text[..], 1).unwrap());
        for (name, bytes, is_csv) in [
            ("a.csv", &text[..], true),
            ("a.csv.gz", &gzip, true),
            ("a.CSV.zst", &zstd, true),
            ("torn.csv.gz", &text[..], false),
            ("a.jsonl", &text[..], false),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let source = path.to_str().unwrap();
            let at = if is_csv { UserColumn::At { column: 1, of: 3 } } else { UserColumn::Unknown };
            assert_eq!(user_column(source, "user"), at, "{name}");
            let has = |record: &[u8]| has_record(source, record).unwrap_or(false);
            assert_eq!((has(b"u7,i1,never"), has(b"u8,i2,never")), (is_csv, is_csv), "{name}");
            assert!(!has(b"7,i1,never") && !has(b"u7,i1,neve") && !has(b"i1"), "{name}");
        }
        assert_eq!(user_column("/nowhere/a.csv", "user"), UserColumn::Unknown);
        // A record that spans two reads.
        let (long, mut many) = (vec![b'x'; 3_000], vec![b'y'; (1 << 20) - 1_500]);
        many.push(b'\n');
        many.extend(&long);
        let path = directory.path().join("long.csv");
        std::fs::write(&path, many).unwrap();
        assert!(has_record(path.to_str().unwrap(), &long).unwrap());
    }

    #[test]
    fn a_shard_keeps_the_beginning_of_its_name() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(prefix(&format!("part-00003-{uuid}.parquet")), "part-00003");
        assert_eq!(prefix(&format!("event_date=2026-01-01/part-{uuid}.parquet")), "part");
        assert_eq!(prefix("foreign.parquet"), "part");
    }
}
