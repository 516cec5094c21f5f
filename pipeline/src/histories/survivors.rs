//! The filters that need whole histories: one event of each user and item, and the k-core.
//!
//! ```text
//!   buckets ─▶ BucketSort ─▶ Pairs ═▶ (user's number, item), 12 bytes an event: memory, then a scratch file
//!   a round   users: count the events with items that are left  ─▶ which users are left
//!             items: count the events of users that are left    ─▶ which items are left
//!   until a round takes out no item
//! ```
//!
//! Rounds read pairs of integers instead of sorting the log again. The result of the rounds is a mark for each item: which users
//! are left follows from it, history by history ([`Survivors::leave_out`]), so nothing is kept for users. The k-core of a
//! log is unique, and rounds count with integers, so neither threads nor memory change it.
//!
//! **Memory.** 9 bytes an item; while rounds run, a byte for each user and four for each user of the buckets being read.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use arrow::array::{ArrayRef, AsArray, FixedSizeBinaryArray, RecordBatch, StringViewArray, UInt32Array};
use arrow::buffer::Buffer;
use arrow::datatypes::{SchemaRef, UInt32Type};
use datafusion::common::Result;
use datafusion::common::cast::as_fixed_size_binary_array;
use schemas::history::{AtMostOnce, LogFilters};

use super::columns::HistoryColumns;
use super::counts::FilterCounts;
use super::event::PackedEvent;
use crate::engine::{Pass, PassSpec, bucket_schema, scattered_schema};

/// The filters that need whole histories, and the items of the k-core once it is known.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    at_most_once: Option<AtMostOnce>,
    user_events: u64,
    items: OnceLock<Vec<bool>>,
}

impl Survivors {
    pub(super) fn new(filters: &LogFilters) -> Self {
        Self {
            at_most_once: filters.at_most_once,
            user_events: filters.core_user_events(),
            items: OnceLock::new(),
        }
    }

    /// Applies the k-core whose items are marked by index.
    pub(super) fn set_core(&self, items: Vec<bool>) {
        // Set once, between the stages.
        self.items.get_or_init(|| items);
    }

    fn is_all(&self) -> bool {
        self.at_most_once.is_none() && self.items.get().is_none()
    }

    /// Takes out events of a bucket: `events` in the order of histories, `users` with the end of each user's range. Users
    /// without an event left are removed.
    pub(super) fn leave_out(
        &self,
        events: &mut Vec<PackedEvent>,
        users: &mut Vec<(String, usize)>,
    ) -> FilterCounts {
        let mut counts = FilterCounts::default();
        if self.is_all() {
            return counts;
        }
        let (mut left, mut start) = (0, 0);
        let mut seen = HashSet::<u32, foldhash::fast::FixedState>::default();
        let mut of_user = Vec::new();
        users.retain_mut(|(_, end)| {
            of_user.clear();
            of_user.extend_from_slice(&events[start..*end]);
            start = *end;
            let events_before = of_user.len();
            if let Some(keep) = self.at_most_once {
                seen.clear();
                match keep {
                    AtMostOnce::First => of_user.retain(|event| seen.insert(event.item)),
                    AtMostOnce::Last => {
                        of_user.reverse();
                        of_user.retain(|event| seen.insert(event.item));
                        of_user.reverse();
                    }
                }
            }
            counts.by_once += (events_before - of_user.len()) as u64;
            if let Some(items) = self.items.get() {
                let events_before = of_user.len();
                of_user.retain(|event| items.get(event.item as usize).copied().unwrap_or_default());
                if (of_user.len() as u64) < self.user_events {
                    of_user.clear();
                }
                counts.by_core += (events_before - of_user.len()) as u64;
                counts.core_users += u64::from(of_user.is_empty());
            }
            events[left..left + of_user.len()].copy_from_slice(&of_user);
            left += of_user.len();
            *end = left;
            !of_user.is_empty()
        });
        events.truncate(left);
        counts
    }
}

/// Bytes of a pair: the user's number in its bucket, and the item's index.
pub(super) const PAIR_BYTES: usize = 8;

/// The columns of pairs on their way to a bucket; the key is empty.
static PAIR_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| scattered_schema("key", "pair", PAIR_BYTES));

/// The columns of pairs in their bucket.
pub(super) static PAIR_BUCKET_SCHEMA: LazyLock<SchemaRef> =
    LazyLock::new(|| bucket_schema("key", "pair", PAIR_BYTES));

/// The pass from sorted events of a bucket to pairs. It also counts the events of each item.
#[derive(Debug)]
pub(super) struct Pairs {
    pub rounds: Arc<CoreRounds>,
}

impl PassSpec for Pairs {
    fn name(&self) -> &'static str {
        "Pairs"
    }

    fn schema(&self) -> SchemaRef {
        PAIR_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(PairPass { rounds: Arc::clone(&self.rounds), user: None, number: 0 })
    }
}

struct PairPass {
    rounds: Arc<CoreRounds>,
    user: Option<String>,
    /// The number of `user`.
    number: u32,
}

impl Pass for PairPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let columns = HistoryColumns::of(batch)?;
        let mut pairs = Vec::with_capacity(batch.num_rows() * PAIR_BYTES);
        for (user, rows) in columns.users() {
            if self.user.as_deref() != Some(user) {
                self.number += u32::from(self.user.is_some());
                self.user = Some(user.to_owned());
            }
            for &item in &columns.item[rows] {
                self.rounds.count(item);
                pairs.extend_from_slice(&self.number.to_le_bytes());
                pairs.extend_from_slice(&item.to_le_bytes());
            }
        }
        let keys = StringViewArray::from_iter_values(std::iter::repeat_n("", batch.num_rows()));
        let pairs = FixedSizeBinaryArray::try_new(PAIR_BYTES as i32, Buffer::from_vec(pairs), None)?;
        let columns: Vec<ArrayRef> =
            vec![Arc::new(UInt32Array::from(columns.bucket.to_vec())), Arc::new(keys), Arc::new(pairs)];
        Ok(vec![RecordBatch::try_new(PAIR_SCHEMA.clone(), columns)?])
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        Ok(Vec::new())
    }
}

/// The state of the rounds.
#[derive(Debug)]
pub(super) struct CoreRounds {
    /// Item → its events with users that are left.
    counts: Vec<AtomicU64>,
    /// Whether an item is left.
    items: Vec<AtomicBool>,
    /// Bucket → whether each of its users is left.
    users: Vec<Mutex<Vec<bool>>>,
    user_events: u64,
    item_events: u64,
}

/// What a round left: items, and their events with users that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CoreSize {
    pub items: u64,
    pub events: u64,
}

impl CoreRounds {
    /// Before the first round; items have indexes up to `last`.
    pub(super) fn new(filters: &LogFilters, last: u32, buckets: usize) -> Self {
        let items = last as usize + 1;
        Self {
            counts: (0..items).map(|_| AtomicU64::new(0)).collect(),
            items: (0..items).map(|_| AtomicBool::new(true)).collect(),
            users: (0..buckets).map(|_| Mutex::default()).collect(),
            user_events: filters.core_user_events(),
            item_events: filters.core_item_events(),
        }
    }

    /// Counts an event with an item.
    fn count(&self, item: u32) {
        self.counts[item as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a count: takes out items with fewer than `min` events, and sets the counts back.
    pub(super) fn take_out_items(&self, min: u64) -> CoreSize {
        let (mut items, mut events) = (0, 0);
        for (count, left) in self.counts.iter().zip(&self.items) {
            let count = count.swap(0, Ordering::Relaxed);
            let is_left = left.load(Ordering::Relaxed) && count >= min;
            left.store(is_left, Ordering::Relaxed);
            items += u64::from(is_left);
            events += if is_left { count } else { 0 };
        }
        CoreSize { items, events }
    }

    /// Minimum events of an item.
    pub(super) fn item_events(&self) -> u64 {
        self.item_events
    }

    /// Counts the events of the users of a bucket, given batch by batch.
    pub(super) fn user_counts(&self, counts: &mut Vec<u32>, batch: &RecordBatch) -> Result<()> {
        for (user, item) in pairs(batch)? {
            if counts.len() <= user as usize {
                counts.resize(user as usize + 1, 0);
            }
            counts[user as usize] += u32::from(self.items[item as usize].load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// Decides by the counts which users of a bucket are left.
    pub(super) fn take_out_users(&self, bucket: u32, counts: &[u32]) {
        let left = counts.iter().map(|&count| u64::from(count) >= self.user_events).collect();
        *self.users[bucket as usize].lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    /// Counts the events of items with users that are left.
    pub(super) fn item_counts(&self, batch: &RecordBatch) -> Result<()> {
        let Some(bucket) = bucket_of(batch) else { return Ok(()) };
        let users = self.users[bucket as usize].lock().unwrap_or_else(PoisonError::into_inner);
        for (user, item) in pairs(batch)? {
            if users[user as usize] && self.items[item as usize].load(Ordering::Relaxed) {
                self.count(item);
            }
        }
        Ok(())
    }

    /// The items that are left, by index.
    pub(super) fn items(&self) -> Vec<bool> {
        self.items.iter().map(|left| left.load(Ordering::Relaxed)).collect()
    }
}

/// The bucket of a batch; `None` if it is empty.
pub(super) fn bucket_of(batch: &RecordBatch) -> Option<u32> {
    batch.column(0).as_primitive::<UInt32Type>().values().first().copied()
}

fn pairs(batch: &RecordBatch) -> Result<impl Iterator<Item = (u32, u32)>> {
    let words = as_fixed_size_binary_array(batch.column(2))?.value_data().as_chunks::<4>().0;
    let words = words.iter().map(|word| u32::from_le_bytes(*word));
    Ok(words.clone().step_by(2).zip(words.skip(1).step_by(2)))
}
