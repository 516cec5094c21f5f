//! Batches of rows → one shard for each bucket.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use schemas::delta::Root;
use schemas::tables::{SEQUENCES, SEQUENCES_SCHEMA};

use crate::commit::{CommitError, NewShard, ShardWriter, discard};

/// Writes `part-<bucket>-<uuid>.parquet` for every bucket that has rows. The rows of a bucket come together,
/// so one file is open at a time. Dropped before [`finish`](Self::finish), it deletes what it wrote.
pub(super) struct BucketShards<'a> {
    root: &'a Root,
    open: Option<(u32, ShardWriter)>,
    done: Vec<NewShard>,
}

impl<'a> BucketShards<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, open: None, done: Vec::new() }
    }

    /// Appends rows; gives the number of events that they own.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<u64, CommitError> {
        let buckets = batch.column(0).as_primitive::<UInt32Type>();
        let mut start = 0;
        while start < buckets.len() {
            let bucket = buckets.value(start);
            let end = (start..buckets.len()).find(|&row| buckets.value(row) != bucket);
            let end = end.unwrap_or(buckets.len());
            self.shard(bucket)?.write(&batch.slice(start, end - start))?;
            start = end;
        }
        let lists = batch.column(2).as_list::<i32>();
        let from = batch.column(batch.num_columns() - 1).as_primitive::<UInt32Type>();
        let positions = lists.value_offsets().last().zip(lists.value_offsets().first());
        let positions = positions.map_or(0, |(last, first)| (last - first) as u64);
        Ok(positions - from.values().iter().map(|&from| u64::from(from)).sum::<u64>())
    }

    /// Completes the last file.
    pub(super) fn finish(mut self) -> Result<Vec<NewShard>, CommitError> {
        self.close()?;
        Ok(std::mem::take(&mut self.done))
    }

    fn shard(&mut self, bucket: u32) -> Result<&mut ShardWriter, CommitError> {
        if self.open.as_ref().is_some_and(|(open, _)| *open != bucket) {
            self.close()?;
        }
        let writer = match self.open.take() {
            Some((_, writer)) => writer,
            None => {
                let prefix = format!("part-{bucket:05}");
                ShardWriter::create(self.root, SEQUENCES, &prefix, &SEQUENCES_SCHEMA, &[])?
            }
        };
        Ok(&mut self.open.insert((bucket, writer)).1)
    }

    fn close(&mut self) -> Result<(), CommitError> {
        if let Some((_, writer)) = self.open.take() {
            self.done.push(writer.finish()?);
        }
        Ok(())
    }
}

impl Drop for BucketShards<'_> {
    fn drop(&mut self) {
        discard(self.root, SEQUENCES, &self.done);
    }
}
