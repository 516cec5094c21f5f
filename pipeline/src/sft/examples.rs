//! Turns histories into instruction examples (§3.3.1): one for each target and each value that its item carries.
//!
//! ```text
//!   a row of `sequences`   │ i_1 i_2 i_3 i_4 i_5 │   roles 4 0 1 0 3, target_from 1
//!   its examples             ╰─ i_1 i_2 → i_3        once for each value of i_3
//!                            ╰─ i_1 … i_4 → i_5      once for each value of i_5
//! ```

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBuilder, Float32Array, ListArray, RecordBatch, StringBuilder,
    TimestampMillisecondArray, UInt8Array, UInt32Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::Result;
use schemas::history::{Role, Window};
use schemas::tables::SFT_SCHEMA;

use super::carriers::Carriers;
use super::counts::ExampleTally;
use crate::engine::bucket_field;
use crate::histories::{History, Output, Sink};

/// The columns of examples, after the column `bucket`, which selects the shard.
static EXAMPLES_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields: Vec<FieldRef> = vec![Arc::new(bucket_field())];
    fields.extend(SFT_SCHEMA.fields().iter().cloned());
    Arc::new(Schema::new(fields))
});

/// A batch is full at this many positions or examples.
const BATCH_POSITIONS: usize = 1 << 16;
const BATCH_EXAMPLES: usize = 1 << 13;

/// The examples of one condition.
#[derive(Debug)]
pub(super) struct Examples {
    pub carriers: Carriers,
    /// `conditions.min_pool`.
    pub min_pool: usize,
    /// `conditions.min_matching_history`.
    pub min_matching_history: usize,
    /// Sums of the counters; each partition adds its own at its end.
    pub counts: Mutex<ExampleTally>,
}

impl Output for Examples {
    fn schema(&self) -> SchemaRef {
        EXAMPLES_SCHEMA.clone()
    }

    fn start(self: Arc<Self>) -> Box<dyn Sink> {
        let counts = ExampleTally { by_value: vec![0; self.carriers.names.len()], ..ExampleTally::default() };
        Box::new(ExampleSink { of: self, counts, rows: Rows::of_bucket(0), window: Lists::default() })
    }
}

struct ExampleSink {
    of: Arc<Examples>,
    counts: ExampleTally,
    rows: Rows,
    /// The current window.
    window: Lists,
}

impl Sink for ExampleSink {
    fn history(&mut self, history: History<'_>, done: &mut Vec<RecordBatch>) -> Result<()> {
        if self.rows.bucket != history.bucket {
            done.extend(self.rows.take()?);
            self.rows = Rows::of_bucket(history.bucket);
        }
        let before = self.counts.examples.total();
        self.counts.events += history.ts.len() as u64;
        for window in &history.windows {
            self.window.fill(&history, window);
            for k in window.target_from..window.positions.len() {
                self.target(&history, window, k);
                if self.rows.is_full() {
                    done.extend(self.rows.take()?);
                }
            }
        }
        self.counts.users += u64::from(self.counts.examples.total() > before);
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<RecordBatch>> {
        let counts = std::mem::take(&mut self.counts);
        self.of.counts.lock().unwrap_or_else(PoisonError::into_inner).merge(&counts);
        self.rows.take()
    }
}

impl ExampleSink {
    /// Appends the examples of the target at position `k` of the window.
    fn target(&mut self, history: &History<'_>, window: &Window, k: usize) {
        let t = window.positions[k] as usize;
        let role = history.roles[t];
        if matches!(role, Role::Pretrain | Role::Context) {
            return;
        }
        let Examples { carriers, min_pool, min_matching_history, .. } = &*self.of;
        let counts = &mut self.counts;
        let values = carriers.values(history.item[t], history.ts[t]);
        counts.targets.add(role, 1);
        counts.without_value.add(role, u64::from(values.is_empty()));
        // Limits of quality apply to learning only, not to evaluation.
        let chosen = role == Role::Sft;
        if chosen && !history.fit[t] {
            counts.left_out.by_event += values.len() as u64;
            return;
        }
        let visible = window.visible_len(history.visible[t]);
        for &value in values {
            if chosen && carriers.pools[value as usize] < *min_pool as u64 {
                counts.left_out.by_pool += 1;
                continue;
            }
            let past = self.window.item[..k].iter().zip(&self.window.ts[..k]);
            self.window.matches.clear();
            self.window.matches.extend(past.map(|(&i, &ts)| carriers.values(i, ts).contains(&value)));
            let matching = self.window.matches[..visible as usize].iter().filter(|m| **m).count();
            if chosen && matching < *min_matching_history {
                counts.left_out.by_history += 1;
                continue;
            }
            counts.examples.add(role, 1);
            counts.matched.add(u64::from(visible), matching as u64);
            counts.by_value[value as usize] += 1;
            let rows = &mut self.rows;
            rows.push_history(history.user, &self.window, k);
            rows.target_item.push(history.item[t]);
            rows.target_ts.push(history.ts[t]);
            rows.visible_len.push(visible);
            rows.role.push(role as u8);
            rows.condition.append_value(&carriers.names[value as usize]);
            rows.weight.push(1.0 / values.len() as f32);
        }
    }
}

/// The lists of one window, and the positions before a target that carry a value.
#[derive(Debug, Default)]
struct Lists {
    item: Vec<u32>,
    ts: Vec<i64>,
    session: Vec<u32>,
    request: Vec<u32>,
    matches: Vec<bool>,
}

impl Lists {
    fn fill(&mut self, history: &History<'_>, window: &Window) {
        self.item.clear();
        self.ts.clear();
        self.session.clear();
        self.request.clear();
        for run in window.runs() {
            self.item.extend_from_slice(&history.item[run.clone()]);
            self.ts.extend_from_slice(&history.ts[run.clone()]);
            self.session.extend_from_slice(&history.session[run.clone()]);
            self.request.extend_from_slice(&history.request[run]);
        }
    }
}

/// A batch of examples of one bucket. All lists of a row have one length, so they share their offsets.
#[derive(Default)]
struct Rows {
    bucket: u32,
    user: StringBuilder,
    offsets: Vec<i32>,
    item: Vec<u32>,
    ts: Vec<i64>,
    session: Vec<u32>,
    request: Vec<u32>,
    matches: BooleanBuilder,
    target_item: Vec<u32>,
    target_ts: Vec<i64>,
    visible_len: Vec<u32>,
    role: Vec<u8>,
    condition: StringBuilder,
    weight: Vec<f32>,
}

impl Rows {
    /// Empty; for examples of `bucket`.
    fn of_bucket(bucket: u32) -> Self {
        Self { bucket, offsets: vec![0], ..Self::default() }
    }

    fn is_full(&self) -> bool {
        self.item.len() >= BATCH_POSITIONS || self.role.len() >= BATCH_EXAMPLES
    }

    /// Appends the positions of the window before `k`.
    fn push_history(&mut self, user: &str, window: &Lists, k: usize) {
        self.user.append_value(user);
        self.item.extend_from_slice(&window.item[..k]);
        self.ts.extend_from_slice(&window.ts[..k]);
        self.session.extend_from_slice(&window.session[..k]);
        self.request.extend_from_slice(&window.request[..k]);
        self.matches.append_slice(&window.matches[..k]);
        // A row has fewer than `max_len` positions and a batch little more than BATCH_POSITIONS.
        self.offsets.push(self.item.len() as i32);
    }

    /// Takes the examples so far, if any, and continues with an empty batch of the same bucket.
    fn take(&mut self) -> Result<Option<RecordBatch>> {
        if self.role.is_empty() {
            return Ok(None);
        }
        let mut rows = std::mem::replace(self, Self::of_bucket(self.bucket));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(rows.offsets));
        let list = |column: &str, values: ArrayRef| -> Result<ArrayRef> {
            let element = match SFT_SCHEMA.field_with_name(column)?.data_type() {
                DataType::List(element) => Arc::clone(element),
                other => unreachable!("{column} is a list, not {other}"),
            };
            Ok(Arc::new(ListArray::try_new(element, offsets.clone(), values, None)?))
        };
        let times = |ts: Vec<i64>| Arc::new(TimestampMillisecondArray::from(ts).with_timezone("UTC"));
        let matches: BooleanArray = rows.matches.finish();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![rows.bucket; rows.role.len()])),
            Arc::new(rows.user.finish()),
            list("item_index", Arc::new(UInt32Array::from(rows.item)))?,
            list("ts", times(rows.ts))?,
            list("session", Arc::new(UInt32Array::from(rows.session)))?,
            list("request", Arc::new(UInt32Array::from(rows.request)))?,
            list("matches", Arc::new(matches))?,
            Arc::new(UInt32Array::from(rows.target_item)),
            times(rows.target_ts),
            Arc::new(UInt32Array::from(rows.visible_len)),
            Arc::new(UInt8Array::from(rows.role)),
            Arc::new(rows.condition.finish()),
            Arc::new(Float32Array::from(rows.weight)),
        ];
        Ok(Some(RecordBatch::try_new(EXAMPLES_SCHEMA.clone(), columns)?))
    }
}
