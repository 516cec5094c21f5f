//! Shards and files, written again without somebody's rows.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemas::config::Config;
use schemas::delta::{Root, Shard, Snapshot};
use schemas::files;
use schemas::tables::{DEAD_LETTERS, EVENT_DATE, EVENTS};

use super::hashes::{Forgotten, words};
use super::{FileReport, ForgetError, TableReport};
use crate::commit::{Change, CommitError, CommitMode, NewShard, ShardWriter, Uncommitted, commit};
use crate::inspect::{InspectError, stored_schema};

/// So often a table is tried again that another writer has replaced meanwhile.
const TRIES: usize = 10;

/// Whose rows go.
pub(super) enum Who<'a> {
    /// By their ids.
    Users(HashSet<&'a str>),
    /// By the hashes of their ids.
    Forgotten(&'a Forgotten),
}

/// Ids that are so long are found in the bytes of a record wherever they stand; shorter ones would be found by chance.
const LONG: usize = 6;

impl Who<'_> {
    /// Whether these bytes are the id of one.
    fn is_one(&self, id: &[u8]) -> bool {
        match self {
            Self::Users(users) => std::str::from_utf8(id).is_ok_and(|id| users.contains(id)),
            Self::Forgotten(forgotten) => forgotten.is_one(id),
        }
    }

    /// Whether a record that does not say whose it is names one.
    fn is_named_in(&self, value: &[u8]) -> bool {
        let within = match self {
            Self::Users(users) => users
                .iter()
                .filter(|id| id.len() >= LONG)
                .any(|id| memchr::memmem::find(value, id.as_bytes()).is_some()),
            Self::Forgotten(_) => false,
        };
        within || words(value).any(|word| self.is_one(word))
    }
}

/// Takes the rows of `who` out of the newest version of `table`; `None` where the table's rows are of nobody.
pub(super) async fn from_table(
    config: &Config,
    root: &Root,
    table: &str,
    who: &Who<'_>,
) -> Result<Option<TableReport>, ForgetError> {
    for _ in 0..TRIES {
        let Some(snapshot) = root.snapshot(table).await? else { return Ok(None) };
        let state = snapshot.delta().snapshot().map_err(|source| schemas::delta::TableError::Log {
            table: table.into(),
            source: Box::new(source),
        })?;
        let schema = state.snapshot().arrow_schema();
        let owned = if table == DEAD_LETTERS {
            Owned::DeadLetters { user_field: config.events.columns.user_id.clone() }
        } else if schema.field_with_name("user_id").is_ok() {
            Owned::ByColumn
        } else {
            return Ok(None);
        };
        let run = Run { root, snapshot: &snapshot, who, owned };
        let Some((replaced, mut written, rows)) = run.rewrite().await? else {
            return Ok(Some(TableReport {
                table: table.into(),
                rows: 0,
                shards: 0,
                version: snapshot.version(),
            }));
        };
        let change = Change {
            table,
            schema: &run.table_schema()?,
            partition_by: if table == EVENTS { &[EVENT_DATE] } else { &[] },
            mode: CommitMode::Delete { replaced: &replaced },
            shards: written.shards(),
            properties: BTreeMap::new(),
            read_version: Some(snapshot.version()),
            transactions: BTreeMap::new(),
        };
        let committed = commit(root, change).await;
        match written.settle(committed) {
            // The table was compacted, or built again: its rows lie elsewhere now.
            Err(CommitError::Superseded { .. } | CommitError::Conflict { .. }) => {}
            committed => {
                let version = committed?.version;
                return Ok(Some(TableReport { table: table.into(), rows, shards: replaced.len(), version }));
            }
        }
    }
    Err(ForgetError::Busy { table: table.into() })
}

/// Which rows are somebody's.
enum Owned {
    /// Those with the user in `user_id`.
    ByColumn,
    /// Rejected records: known by their key, by the field of a JSON object, or else by a word of the record.
    DeadLetters { user_field: String },
}

struct Run<'a> {
    root: &'a Root,
    snapshot: &'a Snapshot,
    who: &'a Who<'a>,
    owned: Owned,
}

impl Run<'_> {
    /// The table's columns with the types of its shards, which Delta's own schema does not know.
    fn table_schema(&self) -> Result<SchemaRef, ForgetError> {
        stored_schema(self.snapshot).map_err(|error| match error {
            InspectError::Table(error) => error.into(),
            other => {
                ForgetError::File { path: self.root.table_path(self.snapshot.name()), source: other.into() }
            }
        })
    }

    /// The shards with rows of the users, what stands for them, and how many rows were left out; `None` without any.
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
            Owned::DeadLetters { .. } => &["key", "value"],
        };
        for batch in self.snapshot.read_shard(shard, columns).await? {
            if self.owners(&batch).true_count() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// By row, whether it is one of the users'.
    fn owners(&self, batch: &RecordBatch) -> BooleanArray {
        match &self.owned {
            Owned::ByColumn => {
                let column = batch.column_by_name("user_id").and_then(|column| column.as_string_opt::<i32>());
                let is_one =
                    |user: Option<&str>| Some(user.is_some_and(|user| self.who.is_one(user.as_bytes())));
                column.map_or_else(
                    || vec![false; batch.num_rows()].into(),
                    |users| users.iter().map(is_one).collect(),
                )
            }
            Owned::DeadLetters { user_field } => {
                let binary =
                    |name| batch.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
                let (keys, values) = (binary("key"), binary("value"));
                let row = |row: usize| {
                    let of = |column: Option<&arrow::array::BinaryArray>| {
                        column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_vec())
                    };
                    Some(self.is_named(user_field, of(keys).as_deref(), &of(values).unwrap_or_default()))
                };
                (0..batch.num_rows()).map(row).collect()
            }
        }
    }

    fn is_named(&self, user_field: &str, key: Option<&[u8]>, value: &[u8]) -> bool {
        if key.is_some_and(|key| self.who.is_one(key)) {
            return true;
        }
        // A JSON object says whose it is.
        let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(value).ok();
        match object.as_ref().and_then(|object| object.get(user_field)) {
            Some(serde_json::Value::String(user)) => self.who.is_one(user.as_bytes()),
            Some(serde_json::Value::Number(user)) => {
                let whole = user.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64);
                self.who.is_one(user.to_string().as_bytes())
                    || whole.is_some_and(|whole| self.who.is_one(whole.to_string().as_bytes()))
            }
            _ => self.who.is_named_in(value),
        }
    }

    /// The shard without the users' rows, unless nothing is left, and how many these were.
    async fn without(&self, shard: &Shard) -> Result<(Option<NewShard>, u64), ForgetError> {
        let (table, schema) = (self.snapshot.name(), self.table_schema()?);
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
        for batch in self.snapshot.read_shard(shard, &columns).await? {
            let owners = self.owners(&batch);
            let others = arrow::compute::not(&owners).and_then(|others| filter_record_batch(&batch, &others));
            let others = others.map_err(|source| ForgetError::Rows { table: table.into(), source })?;
            kept += others.num_rows() as u64;
            left_out += owners.true_count() as u64;
            writer.write(&others)?;
        }
        // A writer that is dropped deletes its file.
        let new = if kept > 0 { Some(writer.finish()?) } else { None };
        Ok((new, left_out))
    }
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

/// Takes the users out of the Parquet files beside the models, which say how well each event was predicted.
pub(super) fn from_models(root: &Root, who: &Who<'_>) -> Result<Vec<FileReport>, ForgetError> {
    let mut found = Vec::new();
    let mut directories = vec![root.path().join("models")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                let rows = from_file(&path, who)
                    .map_err(|source| ForgetError::File { path: path.clone(), source })?;
                found.extend((rows > 0).then(|| FileReport { path: inside(root, &path), rows }));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn inside(root: &Root, path: &Path) -> PathBuf {
    path.strip_prefix(root.path()).unwrap_or(path).to_owned()
}

/// Writes the file again without the users' rows, if it has any; how many these were.
fn from_file(path: &Path, who: &Who<'_>) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let schema: Arc<Schema> = reader.schema().clone();
    if schema.field_with_name("user_id").is_err() {
        return Ok(0);
    }
    let (mut kept, mut left_out) = (Vec::new(), 0);
    for batch in reader.build()? {
        let batch = batch?;
        let column = batch.column_by_name("user_id").and_then(|column| column.as_string_opt::<i32>());
        let column = column.ok_or("column `user_id` is no text")?;
        let others: BooleanArray =
            column.iter().map(|user| Some(!user.is_some_and(|user| who.is_one(user.as_bytes())))).collect();
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
    use super::*;

    #[test]
    fn a_shard_keeps_the_beginning_of_its_name() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(prefix(&format!("part-00003-{uuid}.parquet")), "part-00003");
        assert_eq!(prefix(&format!("event_date=2026-01-01/part-{uuid}.parquet")), "part");
        assert_eq!(prefix("foreign.parquet"), "part");
    }
}
