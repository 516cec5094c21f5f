//! The report of a compaction, as text and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;
use store::Snapshot;
use store::commit::NewShard;

use super::plan::Partition;

/// One run of `pipeline compact`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CompactReport {
    /// The tables that exist.
    pub tables: Vec<CompactedTable>,
}

/// One table. Changes by other writers are not counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompactedTable {
    /// Its name.
    pub table: String,
    /// The version after the last commit of this run, or the one that was read.
    pub version: u64,
    /// Shards of the version that was read.
    pub shards_before: usize,
    /// The same after merging.
    pub shards_after: usize,
    /// Bytes of the version that was read.
    pub bytes_before: u64,
    /// As `shards_after`.
    pub bytes_after: u64,
    /// Rows that were written again.
    pub rows_rewritten: u64,
    /// The dates that were rewritten; one empty text for a table without partitions.
    pub rewritten: Vec<String>,
    /// Dates that another writer rewrote at the same time; this run left them unchanged.
    pub lost: Vec<String>,
}

impl CompactedTable {
    pub(super) fn before(snapshot: &Snapshot) -> Self {
        let shards = snapshot.shards().len();
        let bytes = snapshot.shards().iter().map(|shard| shard.bytes).sum();
        Self {
            table: snapshot.name().into(),
            version: snapshot.version(),
            shards_before: shards,
            shards_after: shards,
            bytes_before: bytes,
            bytes_after: bytes,
            rows_rewritten: 0,
            rewritten: Vec::new(),
            lost: Vec::new(),
        }
    }

    pub(super) fn rewrote(&mut self, partition: &Partition<'_>, written: &[NewShard], version: u64) {
        self.version = version;
        self.shards_after = self.shards_after + written.len() - partition.shards().count();
        self.bytes_after -= partition.shards().map(|shard| shard.bytes).sum::<u64>();
        self.bytes_after += written.iter().map(|shard| shard.bytes).sum::<u64>();
        self.rows_rewritten += written.iter().map(|shard| shard.rows).sum::<u64>();
        self.rewritten.push(partition.name().into());
    }
}

impl Display for CompactReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tables.is_empty() {
            return write!(f, "nothing to do: the root has no table that is compacted");
        }
        for (i, table) in self.tables.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let CompactedTable { table, version, rewritten, lost, .. } = table;
            let of = &self.tables[i];
            if rewritten.is_empty() {
                write!(f, "{table}: nothing to do, {} shards, version {version}", of.shards_before)?;
            } else {
                write!(
                    f,
                    "{table}: {} shards ({:.1} MB) → {} ({:.1} MB), version {version}, {} rows rewritten{}",
                    of.shards_before,
                    of.bytes_before as f64 / 1e6,
                    of.shards_after,
                    of.bytes_after as f64 / 1e6,
                    of.rows_rewritten,
                    dates(rewritten),
                )?;
            }
            if !lost.is_empty() {
                write!(f, "\n{table}: left alone what another writer rewrote meanwhile{}", dates(lost))?;
            }
        }
        Ok(())
    }
}

fn dates(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] if only.is_empty() => String::new(),
        [only] => format!(", of {only}"),
        [first, .., last] => format!(", of {} dates, {first} to {last}", names.len()),
    }
}
