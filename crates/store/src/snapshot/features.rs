//! Checks a table's log for features of Delta that this program does not support.
//!
//! Other engines may enable features that change what a shard means, such as deletion vectors or column mapping. A table is
//! checked once, when it is opened, and refused with the feature's name before any row is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{PROTOCOL, TransactionError};
use deltalake::kernel::{Action, Remove, StructType};
use deltalake::table::state::DeltaTableState;
use schemas::tables::{ELEMENT, appended_schema, partition_columns};

use super::Snapshot;
use crate::error::TableError;

/// Features that do not change a shard's rows if the checks below pass.
const HARMLESS: [&str; 7] = [
    // The add actions say which shards have a vector.
    "deletionVectors",
    // The property `delta.columnMapping.mode` says whether it is used.
    "columnMapping",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "timestampNtz",
    // Readers cast to the types of `schemas::tables`, whatever width a shard has.
    "typeWidening",
    "typeWidening-preview",
];

const MAPPING: &str = "delta.columnMapping.mode";

/// Error that names a feature and its remedy.
fn refused(table: &str, feature: &str, doing: &'static str, remedy: &'static str) -> TableError {
    TableError::Feature { table: table.into(), feature: feature.into(), doing, remedy }
}

/// A table's requirements on its readers.
#[derive(Default)]
struct Asked {
    version: i64,
    features: BTreeSet<String>,
    mapping: Option<String>,
}

impl Asked {
    fn check(&self, table: &str) -> Result<(), TableError> {
        const AGAIN: &str = "write the table again without it";
        if self.mapping.as_ref().is_some_and(|mode| mode != "none") {
            return Err(refused(table, "columnMapping", "read", AGAIN));
        }
        if let Some(feature) = self.features.iter().find(|feature| !HARMLESS.contains(&feature.as_str())) {
            return Err(refused(table, feature, "read", AGAIN));
        }
        if self.version > 3 {
            return Err(refused(table, &format!("reader version {}", self.version), "read", AGAIN));
        }
        Ok(())
    }
}

/// Refuses a table whose rows are not exactly those of its shards.
pub(super) fn check_readable(table: &str, state: &DeltaTableState) -> Result<(), TableError> {
    let protocol = state.protocol();
    let asked = Asked {
        version: protocol.min_reader_version().into(),
        features: protocol.reader_features().into_iter().flatten().map(ToString::to_string).collect(),
        mapping: state.metadata().configuration().get(MAPPING).cloned(),
    };
    asked.check(table)?;
    for file in state.log_data().iter() {
        let path = file.path();
        if file.deletion_vector_descriptor().is_some() {
            let remedy =
                "in Spark, `REORG TABLE … APPLY (PURGE)` writes the shards again without the deleted rows";
            return Err(refused(table, "deletionVectors", "read", remedy));
        }
        let leaves = path.starts_with('/') || path.contains(":/") || path.split('/').any(|part| part == "..");
        if leaves {
            return Err(TableError::Outside { table: table.into(), shard: path.into_owned() });
        }
    }
    Ok(())
}

/// Refuses a table whose log cannot be loaded because of a feature, which Delta's library does not always name. Reads the log's
/// JSON entries up to `version`; succeeds if there is another reason.
pub(crate) fn check_log(table: &str, directory: &Path, version: Option<u64>) -> Result<(), TableError> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_suffix(".json")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(directory.join("_delta_log")).into_iter().flatten().flatten();
    let mut entries: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((number(&entry.path())?, entry.path()))).collect();
    entries.retain(|&(number, _)| version.is_none_or(|version| number <= version));
    entries.sort();
    let mut asked = Asked::default();
    // An unreadable entry is an error that the caller reports.
    for line in entries.iter().filter_map(|(_, path)| std::fs::read_to_string(path).ok()) {
        let actions = line.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        for action in actions {
            if let Some(protocol) = action.get("protocol") {
                asked.version = protocol["minReaderVersion"].as_i64().unwrap_or_default();
                let features = protocol["readerFeatures"].as_array().into_iter().flatten();
                asked.features = features.filter_map(|feature| feature.as_str().map(str::to_owned)).collect();
            }
            if let Some(metadata) = action.get("metaData") {
                asked.mapping = metadata["configuration"][MAPPING].as_str().map(str::to_owned);
            }
        }
    }
    asked.check(table)
}

impl Snapshot {
    /// Refuses a table that this program cannot write to. `removes` says whether shards are to be removed too.
    ///
    /// # Errors
    ///
    /// [`TableError::Feature`] for a feature that is not supported; [`TableError::Shape`] for other partitions, columns or
    /// spellings of paths.
    pub fn check_writable(&self, removes: bool) -> Result<(), TableError> {
        const AGAIN: &str = "write the table again without it, or drop the feature";
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let state = self.table.snapshot().map_err(log)?;
        match PROTOCOL.can_write_to(state) {
            Ok(()) => {}
            Err(TransactionError::UnsupportedTableFeatures(features)) => {
                let mut features: Vec<String> = features.iter().map(ToString::to_string).collect();
                features.sort();
                return Err(refused(&self.name, &features.join(", "), "write", AGAIN));
            }
            Err(other) => return Err(refused(&self.name, &other.to_string(), "write", AGAIN)),
        }
        let active = |property: &str| self.properties.get(property).is_some_and(|value| value == "true");
        if removes && active("delta.appendOnly") {
            return Err(refused(
                &self.name,
                "appendOnly",
                "take shards out of",
                "set `delta.appendOnly` to false",
            ));
        }
        if active("delta.enableChangeDataFeed") {
            return Err(refused(
                &self.name,
                "changeDataFeed",
                "write",
                "set `delta.enableChangeDataFeed` to false",
            ));
        }
        if let Some(wanted) = partition_columns(&self.name).filter(|&wanted| wanted != self.partition_columns)
        {
            let found = self.partition_columns.join(", ");
            return Err(self.other(format!("partitioned by [{found}], not by [{}]", wanted.join(", "))));
        }
        if let Some(schema) = appended_schema(&self.name) {
            let ours: StructType =
                schema.as_ref().try_into_kernel().map_err(|e| log(deltalake::DeltaTableError::from(e)))?;
            if let Some(problem) = misfit(&state.schema(), &ours) {
                return Err(self.other(problem));
            }
        }
        if removes { self.check_spelling(state) } else { Ok(()) }
    }

    fn other(&self, problem: String) -> TableError {
        TableError::Shape { table: self.name.clone(), problem }
    }

    /// Refuses a table whose log spells a shard's path in another way than this program would in a removal: it would remove
    /// nothing.
    fn check_spelling(&self, state: &DeltaTableState) -> Result<(), TableError> {
        use arrow::array::AsArray as _;
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let mut spelled = BTreeSet::new();
        for batch in state.add_actions_batches(false).map_err(log)? {
            if let Some(paths) = batch.column_by_name("path").and_then(|paths| paths.as_string_opt::<i32>()) {
                spelled.extend(paths.iter().flatten().map(str::to_owned));
            }
        }
        for shard in &self.shards {
            let remove = Action::Remove(Remove { path: shard.path.clone(), ..Remove::default() });
            let written = serde_json::to_value(remove).unwrap_or_default();
            let written = written["remove"]["path"].as_str().unwrap_or_default();
            if !spelled.is_empty() && !spelled.contains(written) {
                let problem = format!(
                    "names shard {} in another spelling than `{written}`, so that it could not be taken out",
                    shard.path
                );
                return Err(self.other(problem));
            }
        }
        Ok(())
    }
}

/// Returns how a table's columns differ from those of the rows to append (`ours`), or `None` if the rows fit. The table may allow
/// nulls that the rows do not have, its columns may carry more metadata, and it may lack a column that tables of earlier versions
/// do not have.
pub fn misfit(table: &StructType, ours: &StructType) -> Option<String> {
    for field in ours.fields() {
        let Some(found) = table.field(field.name()) else {
            if field.name() == ELEMENT {
                continue;
            }
            return Some(format!("without a column `{}`", field.name()));
        };
        if found.data_type() != field.data_type() {
            let (found, wanted) = (found.data_type(), field.data_type());
            return Some(format!("whose column `{}` is {found}, not {wanted}", field.name()));
        }
        if field.is_nullable() && !found.is_nullable() {
            return Some(format!("whose column `{}` must not be null", field.name()));
        }
    }
    let more = table.fields().find(|field| ours.field(field.name()).is_none());
    more.map(|field| format!("with a column `{}` that this program does not know", field.name()))
}
