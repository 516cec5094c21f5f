//! Writes one Parquet shard of a table.
//!
//! Memory: one row group of at most 4 MiB as encoded, the table of its different texts, and one batch.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::hash::Hashed;

use crate::encode::ShardEncoder;
use crate::failpoint;
use crate::{Root, Shard};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::CommitError;

/// Encoded bytes at which a row group is written out; bounds a writer's memory.
const ROW_GROUP_BYTES_MAX: usize = 4 << 20;
const ROW_GROUP_ROWS_MAX: usize = 1 << 20;

/// A complete shard that no version of the table names yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewShard {
    /// Path inside the table.
    pub path: String,
    /// File size in bytes.
    pub bytes: u64,
    /// Number of rows.
    pub rows: u64,
    /// [`hash128`](schemas::hash::hash128) of its bytes.
    pub hash: u128,
    /// Partition column → value; the file does not hold these columns.
    pub partition: BTreeMap<String, String>,
    /// Path of the shard whose remaining rows these are after a deletion; `None` for other shards.
    pub rest_of: Option<String>,
}

impl NewShard {
    /// Marks this shard as the remaining rows of `shard`, whose others are deleted.
    pub fn in_place_of(self, shard: &Shard) -> Self {
        Self { rest_of: Some(shard.path.clone()), ..self }
    }
}

/// Writes one shard. Dropped before [`finish`](Self::finish), it deletes its file.
///
/// Memory: one row group, at most [`ROW_GROUP_BYTES_MAX`] and one batch more.
#[derive(Debug)]
pub struct ShardWriter {
    writer: Option<ShardEncoder<BufWriter<Hashed<File>>>>,
    file: PathBuf,
    table: String,
    path: String,
    partition: BTreeMap<String, String>,
    schema: SchemaRef,
    rows: u64,
}

impl ShardWriter {
    /// Creates `<prefix>-<uuid>.parquet` in the directory of its partition of `table`.
    ///
    /// `schema` has all columns of the table. Those in `partition` are left out of the file, since their single value is in the
    /// path and the log.
    ///
    /// # Errors
    ///
    /// [`CommitError::Shard`]: the file cannot be created.
    pub fn create(
        root: &Root,
        table: &str,
        prefix: &str,
        schema: &SchemaRef,
        partition: &[(&str, &str)],
    ) -> Result<Self, CommitError> {
        let mut path = String::new();
        for (column, value) in partition {
            path.push_str(&format!("{column}={value}/"));
        }
        let directory = root.table_path(table).join(&path);
        path.push_str(&format!("{prefix}-{}.parquet", Uuid::new_v4()));
        let file = root.table_path(table).join(&path);
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| CommitError::Shard {
            path: file.display().to_string(),
            source,
        };
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .filter(|field| !partition.iter().any(|(column, _)| column == field.name()))
            .cloned()
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(|e| fail(e.into()))?))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX));
        let properties = encodings(properties, &schema).build();
        let out = create_in(&directory, &file).map_err(|e| fail(e.into()))?;
        let writer = ShardEncoder::new(BufWriter::new(Hashed::new(out)), schema.clone(), properties)
            .map_err(|e| fail(e.into()))?;
        let partition = partition.iter().map(|(c, v)| (c.to_string(), v.to_string())).collect();
        Ok(Self { writer: Some(writer), file, table: table.into(), path, partition, schema, rows: 0 })
    }

    /// Appends a batch that has the table's columns, with or without the partition's.
    ///
    /// # Errors
    ///
    /// [`CommitError::Shard`]: a column is missing or of another type, or the file cannot be written.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), CommitError> {
        let found = batch.schema();
        let result = (|| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let columns = self
                .schema
                .fields()
                .iter()
                .map(|field| found.index_of(field.name()))
                .collect::<Result<Vec<_>, _>>()?;
            let columns = columns.into_iter().map(|i| batch.column(i).clone()).collect();
            let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
            if let Some(writer) = &mut self.writer {
                writer.write(&batch)?;
            }
            Ok(())
        })();
        result.map_err(|source| self.fail(source))?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Number of rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Completes the file and returns its description; syncing it is the commit's task.
    ///
    /// # Errors
    ///
    /// [`CommitError::Shard`]: the file cannot be written; it is deleted.
    pub fn finish(mut self) -> Result<NewShard, CommitError> {
        failpoint::reach(format_args!("shard:{}:unfinished", self.table));
        let written = (|| -> Result<(u64, u128), Box<dyn std::error::Error + Send + Sync>> {
            let Some(mut writer) = self.writer.take() else { return Ok((0, 0)) };
            // Flushes the buffer too: a full disk is an error here, not a torn file later.
            writer.finish()?;
            let written = writer.inner_mut().get_ref();
            Ok((written.get_ref().metadata()?.len(), written.hash()))
        })();
        match written {
            Ok((bytes, hash)) => Ok(NewShard {
                path: std::mem::take(&mut self.path),
                bytes,
                rows: self.rows,
                hash,
                partition: std::mem::take(&mut self.partition),
                rest_of: None,
            }),
            Err(source) => {
                let _ = fs::remove_file(&self.file);
                Err(self.fail(source))
            }
        }
    }

    fn fail(&self, source: Box<dyn std::error::Error + Send + Sync>) -> CommitError {
        CommitError::Shard { path: self.file.display().to_string(), source }
    }
}

/// Attempts to recreate a directory that other writers keep deleting.
const DIRECTORY_TRIES: usize = 100;

/// Creates `file`, and `directory` if needed. Another writer that discards a partition's last shard may delete its directory
/// between the two calls ([`discard`]), or while the first one looks at what is there already, so both are retried.
fn create_in(directory: &Path, file: &Path) -> io::Result<File> {
    let is_deleted = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => true,
        io::ErrorKind::AlreadyExists => !directory.is_file() && !file.exists(),
        _ => false,
    };
    let mut tries = 0;
    loop {
        let created = fs::create_dir_all(directory).and_then(|()| File::create_new(file));
        match created {
            Err(error) if is_deleted(&error) && tries < DIRECTORY_TRIES => tries += 1,
            created => return created,
        }
    }
}

/// Chooses each column's encoding.
///
/// - Text gets a dictionary; at 1 MiB of different texts in a column, the row group ends ([`crate::encode`]).
/// - Integers and times (timestamps, ordinals, positions) have small differences and are delta-packed; dictionary look-ups took
///   longer than all else that a writer does.
/// - Timestamps and `item_index`, once delta-packed, compress by only 4 and 1 %; they stay uncompressed, which saves writers and
///   readers the work.
/// - Event ids and binary records do not repeat and get no dictionary.
/// - Minima and maxima of random ids tell a reader nothing, so these columns have no statistics.
fn encodings(mut properties: WriterPropertiesBuilder, schema: &Schema) -> WriterPropertiesBuilder {
    for field in schema.fields() {
        let (path, of) = match field.data_type() {
            DataType::List(element) => {
                let path = vec![field.name().clone(), "list".into(), element.name().clone()];
                (ColumnPath::new(path), element.data_type())
            }
            of => (ColumnPath::from(field.name().as_str()), of),
        };
        let differences = of.is_integer() || matches!(of, DataType::Timestamp(..));
        if differences {
            properties = properties.set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
        }
        if matches!(of, DataType::Timestamp(..)) || field.name() == "item_index" {
            properties = properties.set_column_compression(path.clone(), Compression::UNCOMPRESSED);
        }
        if differences || *of == DataType::Binary || field.name() == "event_id" {
            properties = properties.set_column_dictionary_enabled(path.clone(), false);
        }
        if ["event_id", "request_id"].contains(&field.name().as_str()) {
            properties = properties.set_column_statistics_enabled(path, EnabledStatistics::None);
        }
    }
    properties
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Deletes the files of shards that will not be committed. A file that cannot be deleted stays; no version names it.
pub(super) fn discard(root: &Root, table: &str, shards: &[NewShard]) {
    let table = root.table_path(table);
    for shard in shards {
        let file = table.join(&shard.path);
        let _ = fs::remove_file(&file);
        // Deletes the partition's directory with its last file; fails harmlessly while others remain.
        if !shard.partition.is_empty()
            && let Some(directory) = file.parent()
        {
            let _ = fs::remove_dir(directory);
        }
    }
}
