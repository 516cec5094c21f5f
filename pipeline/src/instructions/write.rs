//! Writes rows to shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMillisecondArray};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use schemas::tables::{INSTRUCTIONS, INSTRUCTIONS_SCHEMA};
use store::Root;
use store::commit::{ShardWriter, Uncommitted};
use terminal::Progress;

use super::InstructionsError;

/// Users of a full shard.
const SHARD_ROWS: u64 = 1 << 20;

/// Counts of the written rows.
#[derive(Debug, Default)]
pub(super) struct InstructionTotals {
    pub users: u64,
    /// Users whose events carry no retrievable condition.
    pub users_without: u64,
    /// Instructions by attribute.
    pub by_attribute: BTreeMap<String, u64>,
}

/// The finished shards.
#[derive(Debug)]
pub(super) struct WrittenInstructions {
    root: Root,
    shards: Uncommitted,
}

impl WrittenInstructions {
    pub(super) fn new(root: &Root) -> Self {
        Self { root: root.clone(), shards: Uncommitted::new(root, INSTRUCTIONS) }
    }

    /// The shards, to be committed.
    pub(super) fn take(self) -> Uncommitted {
        self.shards
    }

    /// Writes the rows, which have no `as_of` yet, in their order.
    pub(super) async fn write(
        &mut self,
        mut rows: SendableRecordBatchStream,
        as_of: i64,
    ) -> Result<InstructionTotals, InstructionsError> {
        let mut totals = InstructionTotals::default();
        let mut progress = Progress::start("write", 0, "users");
        let mut writer: Option<ShardWriter> = None;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            totals.count(&batch);
            progress.add(batch.num_rows() as u64);
            if let Some(full) = writer.take_if(|writer| writer.rows() >= SHARD_ROWS) {
                self.shards.push(full.finish()?);
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                none => {
                    let prefix = format!("part-{:05}", self.shards.shards().len());
                    let created =
                        ShardWriter::create(&self.root, INSTRUCTIONS, &prefix, &INSTRUCTIONS_SCHEMA, &[])?;
                    none.insert(created)
                }
            };
            writer.write(&dated(&batch, as_of)?)?;
        }
        if let Some(writer) = writer {
            self.shards.push(writer.finish()?);
        }
        Ok(totals)
    }
}

impl InstructionTotals {
    /// Counts rows that begin with the columns of `instructions`.
    pub(super) fn count(&mut self, batch: &RecordBatch) {
        let lists = batch.column(1).as_list::<i32>();
        self.users += batch.num_rows() as u64;
        for row in 0..lists.len() {
            let list = lists.value(row);
            self.users_without += u64::from(list.is_empty());
            for attribute in list.as_string::<i32>().iter().flatten() {
                match self.by_attribute.get_mut(attribute) {
                    Some(count) => *count += 1,
                    None => _ = self.by_attribute.insert(attribute.to_owned(), 1),
                }
            }
        }
    }
}

fn dated(batch: &RecordBatch, as_of: i64) -> Result<RecordBatch, InstructionsError> {
    let times = TimestampMillisecondArray::from_value(as_of, batch.num_rows()).with_timezone("UTC");
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(times) as ArrayRef);
    let dated = RecordBatch::try_new(INSTRUCTIONS_SCHEMA.clone(), columns);
    dated.map_err(|error| datafusion::error::DataFusionError::from(error).into())
}
