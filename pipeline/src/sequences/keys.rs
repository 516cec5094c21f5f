//! From an event to what the sort moves: integers wherever a string is not the answer itself.
//!
//! The order of a history is *total*, so that two builds are equal whatever the threads or the spilling:
//!
//! | key | | |
//! |---|---|---|
//! | `bucket` | `hash64(user_id) % shards` | one shard each |
//! | `user_id` | text | a user's events stand together, users sorted inside a shard |
//! | `ts` | milliseconds | event time |
//! | `tie` | `file-order`: 0; `shuffled`: `mix64(tie_seed, hash64(event_id))` | the policy for equal times |
//! | `source` | rank of the source, compared as text | so `part-10` stands before `part-9` |
//! | `position` | number | place in the source |
//! | `event` | `hash64(event_id)` | a file that was replaced under its own name has other events at its places |

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, StringArray, StringBuilder, UInt32Array, UInt64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use schemas::cli::Progress;
use schemas::config::{Sequences, Ties};
use schemas::hash::{hash64, mix64};

use super::operator::{Pass, PassSpec};
use super::report::Counts;
use super::survey::{Records, Repeated, Survey};
use super::{BuildError, survey};

/// The columns of a keyed event; all but the last two are the sort key, in this order.
pub static KEYED_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("bucket", DataType::UInt32, false),
        Field::new("user_id", DataType::Utf8, false),
        Field::new("ts", DataType::Int64, false),
        Field::new("tie", DataType::UInt64, false),
        Field::new("source", DataType::UInt32, false),
        Field::new("position", DataType::Int64, false),
        Field::new("event", DataType::UInt64, false),
        Field::new("item_index", DataType::UInt32, false),
        Field::new("request_id", DataType::Utf8, true),
    ]))
});

/// The order of [`KEYED_SCHEMA`] that the history pass needs: by the first seven columns.
pub fn key_order() -> LexOrdering {
    [0, 1, 2, 3, 4, 5, 6]
        .map(|index| PhysicalSortExpr {
            expr: Arc::new(Column::new(KEYED_SCHEMA.field(index).name(), index)),
            options: SortOptions { descending: false, nulls_first: false },
        })
        .into()
}

/// The columns that the keys are made from.
pub(super) const INPUT_COLUMNS: [&str; 9] = survey::RECORD_COLUMNS;

/// Drops later copies and filtered actions, and computes the keys of the rest. Memory: one batch.
#[derive(Debug)]
pub(super) struct KeySpec {
    actions: Vec<String>,
    shards: u64,
    /// The seed of the `shuffled` order.
    shuffle: Option<u64>,
    ranks: HashMap<String, u32>,
    repeated: Repeated,
    indexes: HashMap<String, u32>,
    counts: Arc<Mutex<Counts>>,
    progress: Mutex<Progress>,
}

impl KeySpec {
    /// Keys under `config`, with the answers of the survey; the counts are added to `counts`.
    pub(super) fn new(
        config: &Sequences,
        survey: Survey,
        indexes: HashMap<String, u32>,
        counts: Arc<Mutex<Counts>>,
        progress: Progress,
    ) -> Self {
        Self {
            actions: config.actions.clone(),
            shards: config.shards as u64,
            shuffle: (config.ties == Ties::Shuffled).then_some(config.tie_seed),
            ranks: survey.sources.into_iter().zip(0..).collect(),
            repeated: survey.repeated,
            indexes,
            counts,
            progress: Mutex::new(progress),
        }
    }
}

/// [`KeySpec`], shared by the passes over all partitions.
#[derive(Debug)]
pub(super) struct Keys(pub Arc<KeySpec>);

impl PassSpec for Keys {
    fn name(&self) -> &'static str {
        "EventKeys"
    }

    fn schema(&self) -> SchemaRef {
        KEYED_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(KeyPass { spec: Arc::clone(&self.0), counts: Counts::default() })
    }
}

struct KeyPass {
    spec: Arc<KeySpec>,
    counts: Counts,
}

impl Pass for KeyPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let records = Records::of(batch)?;
        let mut keyed = Keyed::with_capacity(batch.num_rows());
        let mut rank = 0;
        for row in 0..batch.num_rows() {
            let event = hash64(records.event.value(row).as_bytes());
            if row == 0 || records.source.value(row) != records.source.value(row - 1) {
                rank = self.spec.rank(records.source.value(row))?;
            }
            if self.spec.repeated.is_later_copy(&records, row, event) {
                self.counts.duplicates += 1;
                continue;
            }
            let action = records.action.value(row);
            if !self.spec.actions.is_empty() && !self.spec.actions.iter().any(|a| a == action) {
                self.counts.filtered += 1;
                continue;
            }
            let user = records.user.value(row);
            keyed.bucket.push((hash64(user.as_bytes()) % self.spec.shards) as u32);
            keyed.user.append_value(user);
            keyed.ts.push(records.ts.value(row));
            keyed.tie.push(self.spec.shuffle.map_or(0, |seed| mix64(seed, event)));
            keyed.source.push(rank);
            keyed.position.push(records.position.value(row));
            keyed.event.push(event);
            keyed.item.push(self.spec.index(records.item.value(row))?);
            keyed.request.append_option(records.request.is_valid(row).then(|| records.request.value(row)));
        }
        self.spec.progress.lock().unwrap_or_else(PoisonError::into_inner).add(batch.num_rows() as u64);
        Ok(if keyed.bucket.is_empty() { Vec::new() } else { vec![keyed.finish()?] })
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        let counts = std::mem::take(&mut self.counts);
        self.spec.counts.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        Ok(Vec::new())
    }
}

impl KeySpec {
    fn rank(&self, source: &str) -> Result<u32> {
        self.ranks.get(source).copied().ok_or_else(|| {
            DataFusionError::Internal(format!("source `{source}` appeared between two scans of one version"))
        })
    }

    fn index(&self, item: &str) -> Result<u32> {
        self.indexes.get(item).copied().ok_or_else(|| {
            BuildError::Items { problem: format!("item `{item}` of an event has no index") }.into()
        })
    }
}

/// Columns of [`KEYED_SCHEMA`] in the making.
struct Keyed {
    bucket: Vec<u32>,
    user: StringBuilder,
    ts: Vec<i64>,
    tie: Vec<u64>,
    source: Vec<u32>,
    position: Vec<i64>,
    event: Vec<u64>,
    item: Vec<u32>,
    request: StringBuilder,
}

impl Keyed {
    fn with_capacity(rows: usize) -> Self {
        Self {
            bucket: Vec::with_capacity(rows),
            user: StringBuilder::with_capacity(rows, rows * 8),
            ts: Vec::with_capacity(rows),
            tie: Vec::with_capacity(rows),
            source: Vec::with_capacity(rows),
            position: Vec::with_capacity(rows),
            event: Vec::with_capacity(rows),
            item: Vec::with_capacity(rows),
            request: StringBuilder::new(),
        }
    }

    fn finish(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(self.bucket)),
            Arc::new(self.user.finish()),
            Arc::new(Int64Array::from(self.ts)),
            Arc::new(UInt64Array::from(self.tie)),
            Arc::new(UInt32Array::from(self.source)),
            Arc::new(Int64Array::from(self.position)),
            Arc::new(UInt64Array::from(self.event)),
            Arc::new(UInt32Array::from(self.item)),
            Arc::new(self.request.finish()) as Arc<StringArray>,
        ];
        Ok(RecordBatch::try_new(KEYED_SCHEMA.clone(), columns)?)
    }
}
