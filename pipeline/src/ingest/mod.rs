//! `pipeline ingest`: reads files into `events`, `items` and `dead_letters`.
//!
//! ```text
//!   catalogue files ─▶ record ─▶ item ─────────────▶ Items ────────┐
//!      (in the order given)  └─▶ rejected ─▶ DeadLetters ──────┐   │ indexes: stored, then catalogue,
//!   event files ─────▶ record ─▶ event ─▶ Stage ─▶ by date ──┐ │   │ then first seen in an event
//!      (by path)             └─▶ rejected ─▶ DeadLetters ──┐ │ │   │
//!                                                          ▼ ▼ ▼   ▼
//!                                  commits, in this order: dead_letters, items, events
//! ```
//!
//! **Counting.** For every file, records read = accepted + duplicates + dead letters + forgotten; if they do not add up, the
//! run fails.
//!
//! **Order.** Event files are read in the order of their paths, so records come by (source, position):
//! the first of equal events wins, and new items get their indexes in that order. Both depend on the files
//! and the tables only.
//!
//! **Other writers.** Before its own commits, a run takes account of all commits made since it began ([`publish`]).
//!
//! **Crashes.** All shards are written before the first commit, and each table is one commit. A run that
//! dies between two commits has stored dead letters, perhaps items, and no event; a second run finds these dead
//! letters and items stored, and commits the rest. With events first, a second run would not repair the tables: it would
//! drop the events as duplicates, and their items would stay without an index. A commit is complete or absent, and each
//! run checks its records against the current tables, so a run can always be repeated.
//!
//! **Threads.** One thread reads, several parse records ([`crate::source`]), several write ([`dates`]); the tables do not
//! depend on their number.
//!
//! **Memory.** The raw files are streamed. [`stage`] keeps accepted events up to half of the limit and the rest in a
//! temporary file; [`across`] takes a sixteenth of the limit for ids, and [`dates`] a quarter of it for writing, an eighth of that
//! for the ids that occur again on one date. [`items`], the catalogue with the items seen in events, and a key for each, stay in
//! memory whatever the limit.

mod across;
mod catalogue;
mod check;
mod dates;
mod dead;
mod error;
mod items;
mod publish;
mod report;
mod spill;
mod stage;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use schemas::config::{Config, ConfigError, TimeFormat};
use schemas::memory::MemorySize;
use schemas::tables::{DEAD_LETTERS, EVENTS, ITEMS};
use store::boxed::LocalBoxed;
use store::failpoint;
use store::{Root, Snapshot};
use terminal::{Interrupt, Progress};

use across::{Given, GivenIds};
use catalogue::ItemMapping;
use dates::{Dates, WrittenDates, item_key};
use dead::{DeadLetters, Letter, Tally};
use items::{Item, Items, Touched};
use publish::{Before, Pending, Publish};
use stage::{EventStage, Staged};

use crate::privacy::{Forgotten, UserColumn};
use crate::records::{Fields, Forms, Mapping, Rejection, StagedRows, Times, Wanted};
use crate::source::{
    Accepted, At, ByteCount, Carry, Delivered, InputFile, LogReader, Raw, ReadOptions, Rejected, SeenFields,
    Source, Unpacking, Visit, Walked, WholeRows, check_stdin, resolve,
};

pub use crate::source::{RecordCounts, SourceError};
pub use check::{CheckLimits, CheckReport, CheckedDeadLetter, CheckedFile, CheckedRow, check};
pub use error::IngestError;
pub use report::{CatalogueReport, FileReport, IngestReport, Versions};

/// Reads the configured catalogue and interaction log into the tables of `root`.
///
/// `config.events.paths` or `config.items.paths` may be empty: then only the other is read.
///
/// # Errors
///
/// Any [`IngestError`]. No table was changed, except that commits of earlier tables stay when a later one fails; the run
/// can be repeated in any case.
pub async fn run(config: &Config, root: &Root, interrupt: &Interrupt) -> Result<IngestReport, IngestError> {
    run_within(config, root, Limits::default(), interrupt).await
}

/// Limits on the resources of a run. They change its duration, never the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for events between reading and writing. The catalogue and some 10 MiB a thread come on top.
    pub memory: MemorySize,
    /// Number of threads that parse records, and of dates that are written at a time.
    pub threads: usize,
    /// Bytes of a text file that one thread parses at a time.
    pub block_bytes: usize,
}

impl Default for Limits {
    /// Every core, and half of the machine's memory.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { memory: MemorySize::half_of_machine(), threads, block_bytes: 512 << 10 }
    }
}

/// [`run`] within given limits.
pub fn run_within<'a>(
    config: &'a Config,
    root: &'a Root,
    limits: Limits,
    interrupt: &'a Interrupt,
) -> LocalBoxed<'a, Result<IngestReport, IngestError>> {
    Box::pin(ingest(config, root, limits, interrupt))
}

async fn ingest(
    config: &Config,
    root: &Root,
    limits: Limits,
    interrupt: &Interrupt,
) -> Result<IngestReport, IngestError> {
    Run::begin(config, root, limits, interrupt).await?.finish().await
}

/// Minimum bytes of an event in a file, to estimate the number of events.
const EVENT_BYTES_MIN: u64 = 16;

struct Run<'a> {
    config: &'a Config,
    root: &'a Root,
    limits: Limits,
    interrupt: &'a Interrupt,
    started: Instant,
    event_files: Vec<InputFile>,
    item_files: Vec<InputFile>,
    before: Before,
    forgotten: Option<Forgotten>,
    dead: DeadLetters<'a>,
    progress: Progress,
    count: ByteCount,
    reports: Vec<FileReport>,
    warnings: Vec<String>,
    tally: Tally,
}

impl<'a> Run<'a> {
    async fn begin(
        config: &'a Config,
        root: &'a Root,
        limits: Limits,
        interrupt: &'a Interrupt,
    ) -> Result<Self, IngestError> {
        let started = Instant::now();
        let item_files = resolve(&config.items.paths, config.items.format, &config.items.csv).await?;
        let mut event_files = resolve(&config.events.paths, config.events.format, &config.events.csv).await?;
        check_stdin(&item_files, &event_files)?;
        if item_files.is_empty() && event_files.is_empty() {
            return Err(ConfigError::Invalid {
                key: "events.paths".into(),
                problem:
                    "nothing to read; name files there or with --events, or a catalogue in items.paths or \
                          with --items"
                        .into(),
            }
            .into());
        }
        event_files.sort_by(|a, b| a.source.cmp(&b.source));
        let before = Before {
            events: root.snapshot_to_write(EVENTS, false).await?,
            items: root.snapshot_to_write(ITEMS, true).await?,
            dead_letters: root.snapshot_to_write(DEAD_LETTERS, false).await?,
            forgotten: Forgotten::version(root)?,
        };
        let forgotten = Forgotten::load(root, &config.forget).await?;
        let all = || item_files.iter().chain(&event_files);
        let sources: Vec<&str> = all().map(|f| f.source.as_str()).collect();
        let dead = DeadLetters::new(root, before.dead_letters.as_ref(), &sources).await?;
        let progress = Progress::start("reading", all().map(|f| f.bytes).sum(), "bytes");
        Ok(Self {
            config,
            root,
            limits,
            interrupt,
            started,
            event_files,
            item_files,
            before,
            forgotten,
            dead,
            progress,
            count: ByteCount::default(),
            reports: Vec::new(),
            warnings: Vec::new(),
            tally: Tally::default(),
        })
    }

    async fn finish(mut self) -> Result<IngestReport, IngestError> {
        self.check_columns()?;
        let sources =
            self.item_files.iter().chain(&self.event_files).map(|file| file.source.clone()).collect();
        let mut items = Items::load(self.before.items.as_ref(), self.config.items.attributes.keys()).await?;
        let touched = self.read_items(&mut items)?;
        let (stage, given) = self.read_events()?;

        let mut written = WrittenDates::new(self.root);
        self.write_events(&stage, &given, &items, &mut written)?;
        // Giving back gigabytes takes the system most of a second, for which nobody waits.
        let _ = std::thread::Builder::new().spawn(move || drop(stage));
        let mut pending = Pending::new(self.root);
        let mut catalogue = CatalogueReport::default();
        for id in written.items_in_order() {
            items.put(&id, Item::default())?;
            catalogue.from_events += 1;
        }
        (catalogue.added, catalogue.updated, catalogue.unchanged) = touched.counts(|id| items.get(id));
        if items.other_columns() || catalogue.added + catalogue.updated + catalogue.from_events > 0 {
            pending.items.push(items.write(self.root)?);
        }
        pending.dead_letters.extend(self.dead.finish()?);
        pending.events = written.shards;
        if self.interrupt.requested() {
            return Err(IngestError::Interrupted);
        }

        failpoint::reach("ingest:before-commits");
        let read = self.reports.iter().filter(|report| report.table == EVENTS);
        let read: u64 = read.map(|report| report.counts.accepted).sum();
        let (rows, duplicates) = (pending.events.rows(), written.duplicates.iter().sum::<u64>());
        if rows + duplicates != read {
            return Err(IngestError::LostEvents { rows, accepted: read.saturating_sub(duplicates) });
        }
        let event_sources: Vec<String> = self.event_files.iter().map(|file| file.source.clone()).collect();
        let mut publish = Publish {
            root: self.root,
            before: &mut self.before,
            pending: &mut pending,
            items: &mut items,
            touched: &touched,
            sources: &sources,
            event_sources: &event_sources,
            dedup_days: self.config.events.dedup_days,
            duplicates: std::mem::take(&mut written.duplicates),
            dropped: &written.dropped,
        };
        let versions = publish.commit_all().await?;
        let duplicates = publish.duplicates;
        let events = self.count_duplicates(&duplicates)?;
        let new_rows = pending.events.rows();
        catalogue.total = items.len() as u64;

        let mut totals = RecordCounts::default();
        self.reports.iter().filter(|r| r.table == ITEMS).for_each(|r| totals.add(r.counts));
        error::check_counts(totals, "items")?;
        Ok(IngestReport {
            events,
            items: totals,
            dead_letters: self.tally.counts().map(|(reason, n)| (reason.code(), n)).collect(),
            examples: self.tally.lines(),
            catalogue,
            events_stored: self.before.events.as_ref().map_or(0, Snapshot::rows) + new_rows,
            versions,
            warnings: self.warnings,
            seconds: self.started.elapsed().as_secs_f64(),
            files: self.reports,
        })
    }

    fn reading(&self) -> ReadOptions {
        ReadOptions {
            max_record_bytes: self.config.events.max_record_bytes,
            block_bytes: self.limits.block_bytes,
            unpacking: Unpacking {
                limit: self.config.events.max_unpacked_bytes,
                directory: terminal::scratch::directory(),
            },
            check_times: self.config.events.check_times,
        }
    }

    /// Refuses Parquet files with unreadable columns before any file is read.
    fn check_columns(&self) -> Result<(), IngestError> {
        let reading = self.reading();
        let items = ItemMapping::new(&self.config.items, self.config.events.max_record_bytes);
        let events = Mapping::new(&self.config.events);
        for (files, wanted) in [(&self.item_files, &items.wanted), (&self.event_files, &events.wanted)] {
            files.iter().try_for_each(|file| Source::check(file, wanted, &reading))?;
        }
        Ok(())
    }

    /// Reads the catalogue into `items`, on one thread: each record may change the item of the one before.
    fn read_items(&mut self, items: &mut Items) -> Result<Touched, IngestError> {
        let catalogue = ItemMapping::new(&self.config.items, self.config.events.max_record_bytes);
        let mut upsert = Upsert { catalogue: &catalogue, items, touched: Touched::default() };
        let mut totals = RecordCounts::default();
        let mut tally = Tally::default();
        for file in std::mem::take(&mut self.item_files) {
            let mut source = Source::open(&file, &catalogue.wanted, &self.reading(), &self.count)?;
            let (mut carry, mut state) = (Carry::default(), FileState::default());
            while let Some(block) = source.next()? {
                let block = carry.join(block);
                let walked = block.walk(None, &mut upsert)?;
                carry.keep(&block, &walked);
                self.count_block(&file, &catalogue.wanted, &mut state, walked, &mut tally)?;
                self.read_again(&file, &mut state, &mut tally, false, &|_| false)?;
            }
            self.read_again(&file, &mut state, &mut tally, true, &|_| false)?;
            let counts = self.end_file(&file, &catalogue.wanted, state, ITEMS)?;
            if counts.read == 0 {
                self.warnings.push(format!("no record in {}", file.source));
            }
            totals.add(counts);
        }
        self.check_dead_letter_rate("item", totals, tally)?;
        Ok(upsert.touched)
    }

    /// Reads the interaction log. What is accepted here may still be a duplicate.
    fn read_events(&mut self) -> Result<(Staged, Given), IngestError> {
        let mut mapping = Mapping::new(&self.config.events);
        mapping.forget(self.forgotten.take());
        let bytes = |share: u64| usize::try_from(self.limits.memory.bytes / share).unwrap_or(usize::MAX);
        let mut stage = EventStage::new(bytes(2));
        let days = self.config.events.dedup_days;
        let events = self.event_files.iter().map(|file| file.bytes).sum::<u64>() / EVENT_BYTES_MIN;
        let mut given = GivenIds::new(events, bytes(16), days);
        let mut totals = RecordCounts::default();
        let mut tally = Tally::default();
        let files = std::mem::take(&mut self.event_files);
        let count = self.count.clone();
        let log = LogReader {
            files: &files,
            mapping: &mapping,
            reading: self.reading(),
            threads: self.limits.threads,
            count: &count,
        };
        let mut state = FileState::default();
        let is_forgotten = |raw: &[u8]| mapping.is_forgotten(UserColumn::Unknown, None, raw);
        log.read(|delivered| -> Result<(), IngestError> {
            match delivered {
                Delivered::Block { file, walked, batch, forms } => {
                    state.forms.merge(&forms);
                    state.times.add(StagedRows(&batch.rows).times());
                    given.push(&batch)?;
                    stage.push(batch.moved_by(state.records, state.counts.read).map_err(error::build)?)?;
                    self.count_block(&files[file], &mapping.wanted, &mut state, *walked, &mut tally)?;
                    self.read_again(&files[file], &mut state, &mut tally, false, &is_forgotten)?;
                }
                Delivered::End { file } => {
                    self.read_again(&files[file], &mut state, &mut tally, true, &is_forgotten)?;
                    self.check_times(&files[file], &state.times)?;
                    let state = std::mem::take(&mut state);
                    let forms = state.forms.clone();
                    totals.add(self.end_file(&files[file], &mapping.wanted, state, EVENTS)?);
                    self.note_forms(&files[file], &forms);
                }
            }
            Ok(())
        })?;
        if totals.read == 0 && !files.is_empty() {
            return Err(IngestError::Empty { paths: files.into_iter().map(|f| f.source).collect() });
        }
        self.event_files = files;
        self.check_dead_letter_rate("event", totals, tally)?;
        Ok((stage.finish()?, given.finish()?))
    }

    /// Counts the records of a file's next block, and keeps the rejected ones.
    fn count_block(
        &mut self,
        file: &InputFile,
        wanted: &[Wanted],
        state: &mut FileState,
        walked: Walked,
        tally: &mut Tally,
    ) -> Result<(), IngestError> {
        for Rejected { at, raw, mut rejection, user_unreadable } in walked.counted.rejected {
            let letter = Letter { position: state.records + at.record, element: at.element };
            if let Some(element) = at.element {
                rejection.message = format!("element {element}: {}", rejection.message);
            }
            match raw {
                Raw::Bytes(raw) => {
                    tally.add(&file.source, letter.position, &rejection);
                    self.dead.push(&file.source, letter, &raw, &rejection)?;
                }
                Raw::Again => {
                    if state.again_rows.last() != Some(&letter.position) {
                        state.again_rows.push(letter.position);
                    }
                    state.again.push_back(Again { letter, rejection, user_unreadable });
                }
            }
        }
        state.whole = walked.whole;
        state.counts.add(walked.counted.counts);
        state.records += walked.counted.records;
        state.seen.add(walked.seen);
        state.seen.check(file, wanted, false)?;
        self.progress.add(self.count.take());
        if self.interrupt.requested() { Err(IngestError::Interrupted) } else { Ok(()) }
    }

    /// Reads rejected rows again with all their columns: the rows of row groups that have been read to the end, or, if
    /// the file has `ended`, all remaining ones.
    fn read_again(
        &mut self,
        file: &InputFile,
        state: &mut FileState,
        tally: &mut Tally,
        ended: bool,
        is_forgotten: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), IngestError> {
        let Some(whole) = state.whole.clone().filter(|_| !state.again_rows.is_empty()) else { return Ok(()) };
        let before = if ended { u64::MAX } else { whole.complete(state.records) };
        let rest = state.again_rows.split_off(state.again_rows.partition_point(|&row| row < before));
        let rows = std::mem::replace(&mut state.again_rows, rest);
        let mut records = rows.iter();
        whole.read(&rows, |raw| {
            let Some(&record) = records.next() else { return Ok(()) };
            while let Some(again) = state.again.pop_front_if(|again| again.letter.position == record) {
                if again.user_unreadable && is_forgotten(&raw) {
                    state.counts.dead_letters -= 1;
                    state.counts.forgotten += 1;
                } else {
                    tally.add(&file.source, record, &again.rejection);
                    self.dead.push(&file.source, again.letter, &raw, &again.rejection)?;
                }
            }
            Ok(())
        })
    }

    fn end_file(
        &mut self,
        file: &InputFile,
        wanted: &[Wanted],
        state: FileState,
        table: &'static str,
    ) -> Result<RecordCounts, IngestError> {
        let FileState { counts, seen, records, .. } = state;
        error::check_counts(counts, &file.source)?;
        seen.check(file, wanted, true)?;
        for Wanted { key, column, .. } in seen.never(wanted) {
            self.warnings.push(format!("{}: no record has `{column}`, which `{key}` names", file.source));
        }
        self.reports.push(FileReport {
            table,
            source: file.source.clone(),
            counts,
            records: (table == EVENTS && self.config.events.explode.is_on()).then_some(records),
            times: None,
        });
        Ok(counts)
    }

    /// Fails on implausible times before anything is committed, unless `events.check_times` is off.
    fn check_times(&mut self, file: &InputFile, times: &Times) -> Result<(), IngestError> {
        if !self.config.events.check_times {
            return Ok(());
        }
        if let Some(problem) = times.question(&self.config.events.ts_format) {
            return Err(SourceError::Times { path: file.source.clone(), problem }.into());
        }
        self.warnings.extend(times.remark().map(|remark| format!("{}: {remark}", file.source)));
        Ok(())
    }

    /// Notes how the times of a file were recognized.
    fn note_forms(&mut self, file: &InputFile, forms: &Forms) {
        if self.config.events.ts_format != TimeFormat::Auto {
            return;
        }
        if let Some(mixed) = forms.mixed() {
            self.warnings.push(format!(
                "{}: times were read in more than one way: {mixed}; events.ts_format names one",
                file.source
            ));
        }
        if let Some(report) = self.reports.last_mut() {
            report.times = forms.only();
        }
    }

    fn write_events(
        &self,
        staged: &Staged,
        given: &Given,
        items: &Items,
        written: &mut WrittenDates,
    ) -> Result<(), IngestError> {
        let sources: Vec<String> = self.event_files.iter().map(|file| file.source.clone()).collect();
        let dates = Dates {
            root: self.root,
            staged,
            given,
            dedup_days: self.config.events.dedup_days,
            stored: self.before.events.as_ref(),
            sources: &sources,
            threads: self.limits.threads,
            bytes_max: self.limits.memory.bytes / 4,
            interrupt: self.interrupt,
        };
        dates.write(&items.ids().map(item_key).collect(), written)
    }

    fn check_dead_letter_rate(
        &mut self,
        what: &'static str,
        counts: RecordCounts,
        tally: Tally,
    ) -> Result<(), IngestError> {
        let allowed = self.config.events.max_dead_letter_rate;
        if counts.dead_letters as f64 > allowed * counts.read as f64 {
            return Err(IngestError::TooManyDeadLetters {
                what,
                rejected: counts.dead_letters,
                read: counts.read,
                allowed,
                reasons: tally.lines(),
            });
        }
        self.tally.merge(tally);
        Ok(())
    }

    /// Moves each event file's duplicates from accepted to duplicates, and returns the sum of all.
    fn count_duplicates(&mut self, duplicates: &[u64]) -> Result<RecordCounts, IngestError> {
        let mut totals = RecordCounts::default();
        let reports = self.reports.iter_mut().filter(|report| report.table == EVENTS);
        for (report, &duplicates) in reports.zip(duplicates) {
            report.counts.accepted -= duplicates;
            report.counts.duplicates += duplicates;
            error::check_counts(report.counts, &report.source)?;
            totals.add(report.counts);
        }
        error::check_counts(totals, "events")?;
        Ok(totals)
    }
}

/// The state of a file that is being read.
#[derive(Default)]
struct FileState {
    counts: RecordCounts,
    seen: SeenFields,
    times: Times,
    forms: Forms,
    /// Records of the file, each of which may hold several events.
    records: u64,
    /// The rows that are read again because they, or elements of them, were rejected.
    again_rows: Vec<u64>,
    again: VecDeque<Again>,
    whole: Option<Arc<WholeRows>>,
}

/// A rejected row, or a rejected element of a row, that is read again.
struct Again {
    letter: Letter,
    rejection: Rejection,
    user_unreadable: bool,
}

/// Puts items into the catalogue.
struct Upsert<'a> {
    catalogue: &'a ItemMapping<'a>,
    items: &'a mut Items,
    touched: Touched,
}

impl Visit for Upsert<'_> {
    type Error = IngestError;

    fn record(&mut self, record: &impl Fields, _: At) -> Result<Result<Accepted, Rejection>, IngestError> {
        let (id, item) = match self.catalogue.item(record, |id| self.items.get(id).cloned()) {
            Ok(item) => item,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let first = self.touched.first(&id, self.items.get(&id));
        self.items.put(&id, item)?;
        Ok(Ok(if first { Accepted::New } else { Accepted::Duplicate }))
    }
}
