//! Writes staged events to shards, one shard a date, several dates at a time.
//!
//! ```text
//!   stored ids of the date ──▶ keys ─┐
//!                                    ▼
//!   staged rows ─▶ repeats ─▶ first of equal keys ─▶ one shard
//!         (content without an id:       └─▶ items by their first event, duplicates by file
//!          how often before in its file)
//! ```
//!
//! [`super::across`] has already decided on ids that occur on several dates.
//!
//! [`super::across`] also knows which ids may occur more than once on one date. Nearly all do not: then the rows of a date are
//! walked once, and only the suspected ids are compared. Where it does not know (some events came without an id, or very many ids
//! repeat), each of the three steps walks once over the rows of a date. If the keys of a date do not fit into memory, the
//! first two steps walk once for each slice of the keys; if its rows do not fit, they are read again from the
//! temporary file.
//!
//! Memory, for each date at work: one row group of the shard and 256 KiB; where all ids are compared, a share of the limit for rows
//! and keys, and besides it one bit for each row, or four bytes if content repeats in the date. Over all dates: the keys of all
//! items, and the items that are not in the table yet.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringBuilder};
use arrow::compute::filter_record_batch;
use schemas::hash::hash128;
use schemas::tables::{EVENT_DATE, EVENTS, EVENTS_SCHEMA};
use store::commit::{NewShard, ShardWriter, Uncommitted, sync_shard};
use store::{Root, Shard, Snapshot};
use terminal::Interrupt;

use super::across::{Across, AcrossSearch, Dropped, Given, Repetition};
use super::error::{IngestError, build, check_interrupt};
use super::stage::{FilePosition, Staged};
use super::stored::{read_stored_ids, shards_by_date};
use crate::records::{Content, KeyMap, KeySet, StagedRows, date_text, id_key, id_of, slice_of};

/// Approximate bytes of a key in a set.
const KEY_BYTES: u64 = 40;

/// The inputs and limits of writing the dates.
pub(super) struct Dates<'a> {
    pub(super) root: &'a Root,
    pub(super) staged: &'a Staged,
    pub(super) given: &'a Given,
    pub(super) dedup_days: u32,
    pub(super) stored: Option<&'a Snapshot>,
    /// The files by their numbers.
    pub(super) sources: &'a [String],
    /// Dates that are written at a time.
    pub(super) threads: usize,
    /// Maximum bytes of the rows and keys of all dates at work.
    pub(super) bytes_max: u64,
    pub(super) interrupt: &'a Interrupt,
}

/// The written shards, with counts of duplicates and new items.
pub(super) struct WrittenDates {
    /// One for each date with new events.
    pub(super) shards: Uncommitted,
    /// File → number of its events that were duplicates.
    pub(super) duplicates: Vec<u64>,
    /// Items of the new events → file and position of the first.
    pub(super) items: KeyMap<String, FilePosition>,
    /// Staged events dropped for an event with the same id on another date.
    pub(super) dropped: Dropped,
}

impl WrittenDates {
    pub(super) fn new(root: &Root) -> Self {
        Self {
            shards: Uncommitted::new(root, EVENTS),
            duplicates: Vec::new(),
            items: KeyMap::default(),
            dropped: Dropped::default(),
        }
    }

    /// The items in the order of their first events.
    pub(super) fn items_in_order(&mut self) -> Vec<String> {
        let mut items: Vec<(String, FilePosition)> = std::mem::take(&mut self.items).into_iter().collect();
        items.sort_unstable_by_key(|(_, place)| *place);
        items.into_iter().map(|(id, _)| id).collect()
    }
}

impl Dates<'_> {
    /// Writes one shard for each date, without events that are stored already or came earlier. Items whose keys are
    /// known are not collected.
    pub(super) fn write(&self, known_items: &KeySet, written: &mut WrittenDates) -> Result<(), IngestError> {
        written.duplicates.resize(self.sources.len(), 0);
        let stored = self.stored.map(shards_by_date).unwrap_or_default();
        let search = AcrossSearch {
            root: self.root,
            staged: self.staged,
            given: self.given,
            bytes_max: self.bytes_max / 8,
            stored: &stored,
            days: self.dedup_days,
            threads: self.threads,
            interrupt: self.interrupt,
        };
        let across = search.find()?;
        let dates = self.staged.dates();
        let (next, stopped, ended) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        // Most items of a date are known from the table or from an earlier date; only the others are collected.
        let items = RwLock::new(std::mem::take(&mut written.items));
        let is_known = |id: &str, place: FilePosition| {
            let items = items.read().unwrap_or_else(PoisonError::into_inner);
            items.get(id).is_some_and(|first| *first <= place)
        };
        let results = Mutex::new((&mut *written, Ok(())));
        let fail = |error: IngestError| {
            stopped.store(true, Ordering::Relaxed);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            if results.1.is_ok() {
                results.1 = Err(error);
            }
        };
        let work = |finished: Sender<NewShard>| {
            while !stopped.load(Ordering::Relaxed) {
                let Some(&date) = dates.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let text = date_text(date);
                let stored = stored.get(text.as_str()).map(Vec::as_slice).unwrap_or_default();
                let date = Date {
                    dates: self,
                    date,
                    text: &text,
                    stored,
                    across: &across,
                    known_items,
                    is_known: &is_known,
                };
                match date.write() {
                    Ok(done) => {
                        // Fails if syncing has failed.
                        done.shard.iter().for_each(|shard| drop(finished.send(shard.clone())));
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        let mut items = items.write().unwrap_or_else(PoisonError::into_inner);
                        done.add_to(results.0, &mut items);
                    }
                    Err(error) => fail(error),
                }
            }
        };
        // The disk works while the next dates are written; at the commit, little is left to sync.
        let sync = |finished: Receiver<NewShard>| {
            // The commit syncs what is left, all together.
            let is_wanted = |_: &NewShard| !ended.load(Ordering::Relaxed) && !stopped.load(Ordering::Relaxed);
            let mut finished = finished.iter().take_while(is_wanted);
            let synced = finished.try_for_each(|shard| sync_shard(self.root, EVENTS, &shard));
            synced.map_err(IngestError::from).unwrap_or_else(fail);
        };
        std::thread::scope(|scope| {
            let (finished, to_sync) = channel();
            scope.spawn(move || sync(to_sync));
            let others = self.threads.min(dates.len()).saturating_sub(1);
            for _ in 0..others {
                let finished = finished.clone();
                scope.spawn(|| work(finished));
            }
            work(finished);
            ended.store(true, Ordering::Relaxed);
        });
        let result = results.into_inner().unwrap_or_else(PoisonError::into_inner).1;
        written.items = items.into_inner().unwrap_or_else(PoisonError::into_inner);
        written.shards.sort();
        written.dropped = across.into_dropped();
        result
    }
}

/// One date.
struct Date<'a> {
    dates: &'a Dates<'a>,
    date: i32,
    text: &'a str,
    stored: &'a [&'a Shard],
    across: &'a Across,
    /// The keys of the items in the table.
    known_items: &'a KeySet,
    /// Whether an event of the item that comes no later is known.
    is_known: &'a (dyn Fn(&str, FilePosition) -> bool + Sync),
}

/// The result of writing a date.
#[derive(Default)]
struct Done {
    shard: Option<NewShard>,
    duplicates: HashMap<u32, u64>,
    /// Items that may need an index, with their first event in the date.
    items: Vec<(String, FilePosition)>,
}

impl Done {
    fn add_to(self, written: &mut WrittenDates, items: &mut KeyMap<String, FilePosition>) {
        written.shards.extend(self.shard);
        for (file, n) in self.duplicates {
            written.duplicates[file as usize] += n;
        }
        for (id, place) in self.items {
            let first = items.entry(id).or_insert(place);
            *first = place.min(*first);
        }
    }
}

/// Staged rows that can be walked more than once.
enum Rows<'a> {
    Held(Vec<RecordBatch>),
    Again(&'a Staged, i32),
}

impl Rows<'_> {
    fn walk(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, IngestError>> + '_> {
        match self {
            Self::Held(batches) => Box::new(batches.iter().cloned().map(Ok)),
            Self::Again(staged, date) => staged.rows(*date),
        }
    }
}

/// Row → number of earlier rows of its file with the same content. Empty if no content repeats, which is the usual case.
struct Repeats {
    rows: usize,
    before: Vec<u32>,
}

impl Repeats {
    fn set(&mut self, row: usize, before: u32) {
        if self.before.is_empty() {
            self.before.resize(self.rows, 0);
        }
        self.before[row] = before;
    }

    /// The key of a row's id.
    fn key(&self, rows: &StagedRows<'_>, row: usize, at: usize, content: &mut Content) -> u128 {
        match self.before.get(at) {
            None | Some(0) => rows.key(row, content),
            Some(&before) => content.key(&rows.event(row), u64::from(before)),
        }
    }
}

/// The key of an item, by which items are compared.
pub(super) fn item_key(id: &str) -> u128 {
    hash128(id.as_bytes())
}

/// The items of a date that are not in the table. Most events are of few items: a small table knows these.
struct NewItems<'a> {
    /// The items in the table.
    known: &'a KeySet,
    seen: KeySet,
    frequent: Vec<u128>,
}

impl<'a> NewItems<'a> {
    /// Fits into a core's cache.
    const FREQUENT_MAX: u64 = 1 << 14;

    /// Nothing has occurred; `rows` events will.
    fn new(known: &'a KeySet, rows: u64) -> Self {
        let frequent = rows.clamp(1, Self::FREQUENT_MAX) as usize;
        Self { known, seen: KeySet::default(), frequent: vec![0; frequent] }
    }

    /// Whether the item is new, and occurs for the first time.
    fn is_first(&mut self, item: &str) -> bool {
        let key = item_key(item);
        let place = key as usize % self.frequent.len();
        let place = &mut self.frequent[place];
        // 0 stands for none.
        if *place == key && key != 0 {
            return false;
        }
        *place = key;
        !self.known.contains(&key) && self.seen.insert(key)
    }
}

/// Decides on ids that may occur again on a date.
struct Judge<'a> {
    repetition: Repetition<'a>,
    /// The keys that are stored, or came before.
    known: KeySet,
}

impl Judge<'_> {
    /// Whether this is the first event with the key.
    fn is_new(&mut self, key: u128) -> bool {
        !self.repetition.has(key) || self.known.insert(key)
    }
}

/// One bit for each row of a date.
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
}

impl Date<'_> {
    fn write(&self) -> Result<Done, IngestError> {
        let mut done = Done::default();
        let Some(mut judge) = self.judge()? else { return self.write_compared() };
        let rows = Rows::Again(self.dates.staged, self.date);
        let repeats = Repeats { rows: 0, before: Vec::new() };
        self.write_new(&rows, &repeats, &mut done, |staged, _, duplicates| {
            let mut content = Content::default();
            let places = staged.files().iter().zip(staged.places()).enumerate();
            let kept = places.map(|(row, (&file, &position))| {
                let key = staged.key(row, &mut content);
                let is_new = self.across.decides(key, (file, position)).unwrap_or_else(|| judge.is_new(key));
                if !is_new {
                    *duplicates.entry(file).or_default() += 1;
                }
                is_new
            });
            kept.collect()
        })?;
        Ok(done)
    }

    /// What decides on the ids that occur again on this date; `None` if all ids must be compared.
    fn judge(&self) -> Result<Option<Judge<'_>>, IngestError> {
        let repetition = self.across.on(self.date);
        let mut known = KeySet::default();
        if let Repetition::Some(..) = repetition {
            self.read_stored(|key| {
                if repetition.has(key) {
                    known.insert(key);
                }
            })?;
        }
        Ok((!matches!(repetition, Repetition::Unknown)).then_some(Judge { repetition, known }))
    }

    /// Passes the keys of the stored ids to `take`.
    fn read_stored(&self, mut take: impl FnMut(u128)) -> Result<(), IngestError> {
        for shard in self.stored {
            check_interrupt(self.dates.interrupt)?;
            read_stored_ids(self.dates.root, shard, |id| take(id_key(id)))?;
        }
        Ok(())
    }

    /// Compares the ids of all events, with one another and with the stored ones, and writes those that are new.
    fn write_compared(&self) -> Result<Done, IngestError> {
        let (rows, bytes) = self.dates.staged.size(self.date);
        let share = self.dates.bytes_max / self.dates.threads.max(1) as u64;
        let held = bytes <= share / 2;
        let staged = if held {
            Rows::Held(self.dates.staged.rows(self.date).collect::<Result<_, _>>()?)
        } else {
            Rows::Again(self.dates.staged, self.date)
        };
        let stored: u64 = self.stored.iter().map(|shard| shard.rows.unwrap_or(shard.bytes)).sum();
        let slices = ((rows + stored) * KEY_BYTES).div_ceil((share / 2).max(1)).max(1);
        let repeats = self.repeats(&staged, rows as usize, slices)?;
        let mut done = Done::default();
        let new = self.first_of_equals(&staged, rows as usize, &repeats, slices, &mut done)?;
        self.write_new(&staged, &repeats, &mut done, |staged, at, _| {
            (at..at + staged.len()).map(|at| new.get(at)).collect()
        })?;
        Ok(done)
    }

    /// Counts equal content of events that came without an id.
    fn repeats(&self, staged: &Rows<'_>, rows: usize, slices: u64) -> Result<Repeats, IngestError> {
        let mut repeats = Repeats { rows, before: Vec::new() };
        for slice in 0..slices {
            let (mut seen, mut file, mut at): (KeyMap<u128, u32>, _, _) = (KeyMap::default(), None, 0);
            let (mut any, mut content) = (false, Content::default());
            for batch in staged.walk() {
                check_interrupt(self.dates.interrupt)?;
                let batch = batch?;
                let staged = StagedRows(&batch);
                let (ids, files) = (staged.event_ids(), staged.files());
                any |= ids.null_count() > 0;
                for row in (0..batch.num_rows()).filter(|&row| ids.is_null(row)) {
                    let key = staged.key(row, &mut content);
                    if slices > 1 && slice_of(key, slices) != slice {
                        continue;
                    }
                    // Repeats are counted within one file.
                    if file.replace(files[row]) != Some(files[row]) {
                        seen.clear();
                    }
                    let before = seen.entry(key).or_insert(0);
                    if *before > 0 {
                        repeats.set(at + row, *before);
                    }
                    *before += 1;
                }
                at += batch.num_rows();
            }
            if !any {
                break;
            }
        }
        Ok(repeats)
    }

    /// Which rows are new: neither stored nor equal to an earlier one.
    fn first_of_equals(
        &self,
        staged: &Rows<'_>,
        rows: usize,
        repeats: &Repeats,
        slices: u64,
        done: &mut Done,
    ) -> Result<Bits, IngestError> {
        let mut new = Bits(vec![0; rows.div_ceil(64)]);
        let mut content = Content::default();
        for slice in 0..slices {
            let mine = |key| slices == 1 || slice_of(key, slices) == slice;
            let mut known = KeySet::default();
            known.reserve(if slices == 1 { rows } else { 0 });
            self.read_stored(|key| {
                if mine(key) {
                    known.insert(key);
                }
            })?;
            let mut at = 0;
            for batch in staged.walk() {
                check_interrupt(self.dates.interrupt)?;
                let batch = batch?;
                let staged = StagedRows(&batch);
                let places = staged.files().iter().zip(staged.places());
                for (row, (&file, &position)) in places.enumerate() {
                    let key = repeats.key(&staged, row, at + row, &mut content);
                    if mine(key) {
                        let across = self.across.decides(key, (file, position));
                        if across.unwrap_or_else(|| known.insert(key)) {
                            new.set(at + row);
                        } else {
                            *done.duplicates.entry(file).or_default() += 1;
                        }
                    }
                }
                at += batch.num_rows();
            }
        }
        Ok(new)
    }

    /// Writes the events that `is_new` keeps, of each batch with the number of rows before it.
    fn write_new(
        &self,
        staged: &Rows<'_>,
        repeats: &Repeats,
        done: &mut Done,
        mut is_new: impl FnMut(&StagedRows<'_>, usize, &mut HashMap<u32, u64>) -> Vec<bool>,
    ) -> Result<(), IngestError> {
        let mut writer = None;
        let (mut content, mut at, mut seen) =
            (Content::default(), 0, NewItems::new(self.known_items, self.dates.staged.size(self.date).0));
        for batch in staged.walk() {
            check_interrupt(self.dates.interrupt)?;
            let batch = batch?;
            let rows = batch.num_rows();
            let kept = is_new(&StagedRows(&batch), at, &mut done.duplicates);
            at += rows;
            if !kept.contains(&true) {
                continue;
            }
            let ids = event_ids(&StagedRows(&batch), &kept, repeats, at - rows, &mut content)?;
            let batch = if kept.contains(&false) {
                filter_record_batch(&batch, &BooleanArray::from(kept)).map_err(build)?
            } else {
                batch
            };
            let staged = StagedRows(&batch);
            let places = staged.files().iter().zip(staged.places());
            for (item, (&file, &position)) in staged.items().iter().flatten().zip(places) {
                if seen.is_first(item) && !(self.is_known)(item, (file, position)) {
                    done.items.push((item.to_owned(), (file, position)));
                }
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                none => none.insert(ShardWriter::create(
                    self.dates.root,
                    EVENTS,
                    "part",
                    &EVENTS_SCHEMA,
                    &[(EVENT_DATE, self.text)],
                )?),
            };
            writer.write(&staged.shard_rows(ids, self.dates.sources).map_err(build)?)?;
        }
        done.shard = writer.map(ShardWriter::finish).transpose()?;
        Ok(())
    }
}

/// The ids of the `kept` rows; `first` is the number, within the date, of the first row.
fn event_ids(
    staged: &StagedRows<'_>,
    kept: &[bool],
    repeats: &Repeats,
    first: usize,
    content: &mut Content,
) -> Result<ArrayRef, IngestError> {
    let ids = staged.event_ids();
    if ids.null_count() == 0 && !kept.contains(&false) {
        return Ok(Arc::new(ids.clone()));
    }
    let mut all = StringBuilder::with_capacity(kept.len(), kept.len() * 32);
    for row in (0..kept.len()).filter(|&row| kept[row]) {
        if ids.is_valid(row) {
            all.append_value(ids.value(row));
        } else {
            // Writing to a text in memory cannot fail.
            let _ = write!(all, "{}", id_of(repeats.key(staged, row, first + row, content)));
            all.append_value("");
        }
    }
    Ok(Arc::new(all.finish()))
}
