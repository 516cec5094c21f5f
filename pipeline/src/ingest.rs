//! `pipeline ingest`: files to `events`, `items` and `dead_letters`.
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
//! **Counting.** Of every file, records read = accepted + duplicates + dead letters, and the program stops
//! rather than report anything else.
//!
//! **Order.** Event files are read in the order of their paths, so that records come by (source, position):
//! the first of equal events wins, and new items get their indexes in that order. Both depend on the files
//! and the tables only.
//!
//! **Crashes.** All shards are written before the first commit, and each table is one commit. A run that
//! dies between two commits has stored dead letters, perhaps items, and no event; running it again finds
//! those dead letters and items stored and commits the rest. The other order would not repair itself: events
//! whose items have no index would be duplicates in the second run. Nothing that is committed is ever
//! half-done, and what was read is checked again against the tables as they are now, so a run can always be
//! repeated.
//!
//! **Memory.** The raw files are streamed. [`stage`] keeps accepted events up to half of the limit and the
//! rest in a temporary file, and [`dates`] writes them within a quarter of it. [`items`], the catalogue with
//! the items seen in events, stays in memory whatever the limit.

mod catalogue;
mod columns;
mod csv;
mod dates;
mod dead;
mod error;
mod files;
mod identity;
mod input;
mod items;
mod jsonl;
mod mapping;
mod parquet;
mod publish;
mod report;
mod source;
mod spill;
mod stage;
#[cfg(test)]
mod tests;
mod time;

use std::time::Instant;

use schemas::cli::Progress;
use schemas::config::{Config, ConfigError};
use schemas::delta::{Root, Snapshot};
use schemas::failpoint;
use schemas::memory::MemorySize;
use schemas::tables::{DEAD_LETTERS, EVENTS, ITEMS};

use catalogue::{Catalogue, Touched};
use columns::Columns;
use dates::{Dates, Written};
use dead::{DeadLetters, Tally};
use files::{ByteCount, InputFile};
use items::{Item, Items};
use mapping::Mapping;
use publish::{Before, Pending, commit_all};
use source::{RecordSource, Rejection, Step, Wanted};
use stage::{BATCH_ROWS, Stage, Staged};

use schemas::cli::Interrupt;

pub use error::IngestError;
pub use report::{CatalogueReport, Counts, FileReport, IngestReport, Versions};

/// Records between two looks at the clock and at the request to stop.
const RECORDS_PER_LOOK: u64 = 4_096;

/// Reads the configured catalogue and interaction log into the tables of `root`.
///
/// `config.events.paths` or `config.items.paths` may be empty: then only the other is read. On an error no
/// table was changed, except that a conflict with another writer may come after an earlier table's commit;
/// the run can be repeated in any case.
pub async fn run(config: &Config, root: &Root, interrupt: &Interrupt) -> Result<IngestReport, IngestError> {
    run_within(config, root, Limits::default(), interrupt).await
}

/// What one run may use. Limits change the time, never the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For events between reading and writing. The catalogue and some 10 MiB a thread come on top.
    pub memory: MemorySize,
    /// Threads that read and write.
    pub threads: usize,
}

impl Default for Limits {
    /// Every core, and half of the machine's memory.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { memory: MemorySize::half_of_machine(), threads }
    }
}

/// [`run`] within given limits.
pub async fn run_within(
    config: &Config,
    root: &Root,
    limits: Limits,
    interrupt: &Interrupt,
) -> Result<IngestReport, IngestError> {
    let mut pending = Pending::default();
    let result = Run::begin(config, root, limits, interrupt).await?.finish(&mut pending).await;
    if result.is_err() {
        pending.discard(root);
    }
    result
}

struct Run<'a> {
    config: &'a Config,
    root: &'a Root,
    limits: Limits,
    interrupt: &'a Interrupt,
    started: Instant,
    event_files: Vec<InputFile>,
    item_files: Vec<InputFile>,
    before: Before,
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
        let item_files = files::resolve(&config.items.paths, config.items.format)?;
        let mut event_files = files::resolve(&config.events.paths, config.events.format)?;
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
            events: root.snapshot(EVENTS).await?,
            items: root.snapshot(ITEMS).await?,
            dead_letters: root.snapshot(DEAD_LETTERS).await?,
        };
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
            dead,
            progress,
            count: ByteCount::default(),
            reports: Vec::new(),
            warnings: Vec::new(),
            tally: Tally::default(),
        })
    }

    async fn finish(mut self, pending: &mut Pending) -> Result<IngestReport, IngestError> {
        let mut items = Items::load(self.before.items.as_ref(), self.config.items.attributes.keys()).await?;
        let touched = self.read_items(&mut items)?;
        let stage = self.read_events()?;

        let mut written = Written::default();
        let result = self.write_events(&stage, &items, &mut written);
        pending.events.extend(std::mem::take(&mut written.shards).into_values());
        result?;
        let events = self.count_duplicates(&written.duplicates);
        let mut catalogue = CatalogueReport::default();
        for id in written.items_in_order() {
            items.put(&id, Item::default())?;
            catalogue.from_events += 1;
        }
        (catalogue.added, catalogue.updated, catalogue.unchanged) = touched.counts(|id| items.get(id));
        catalogue.total = items.len() as u64;
        if items.other_columns() || catalogue.added + catalogue.updated + catalogue.from_events > 0 {
            pending.items.push(items.write(self.root)?);
        }
        pending.dead_letters.extend(self.dead.finish()?);
        if self.interrupt.requested() {
            return Err(IngestError::Interrupted);
        }

        failpoint::reach("ingest:before-commits");
        let new_rows: u64 = pending.events.iter().map(|shard| shard.rows).sum();
        assert_eq!(new_rows, events.accepted, "every accepted event is in one shard");
        let versions =
            commit_all(self.root, &self.before, pending, &items, !self.event_files.is_empty()).await?;

        let mut totals = Counts::default();
        self.reports.iter().filter(|r| r.table == ITEMS).for_each(|r| totals.add(r.counts));
        totals.check("items");
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

    /// Reads the catalogue into `items`.
    fn read_items(&mut self, items: &mut Items) -> Result<Touched, IngestError> {
        let catalogue = Catalogue::new(&self.config.items);
        let mut touched = Touched::default();
        let mut totals = Counts::default();
        let mut tally = Tally::default();
        for file in std::mem::take(&mut self.item_files) {
            let counts = self.read_file(&file, &catalogue.wanted, ITEMS, &mut tally, |record, _| {
                let (id, item) = match catalogue.item(record, |id| items.get(id).cloned()) {
                    Ok(item) => item,
                    Err(rejection) => return Ok(Err(rejection)),
                };
                let first = touched.first(&id, items.get(&id));
                items.put(&id, item)?;
                Ok(Ok(if first { Kept::Accepted } else { Kept::Duplicate }))
            })?;
            if counts.read == 0 {
                self.warnings.push(format!("no record in {}", file.source));
            }
            totals.add(counts);
        }
        self.check_dead_letter_rate("item", totals, tally)?;
        Ok(touched)
    }

    /// Reads the interaction log. What is accepted here may still be a duplicate.
    fn read_events(&mut self) -> Result<Staged, IngestError> {
        let mapping = Mapping::new(&self.config.events);
        let mut stage = Stage::new(usize::try_from(self.limits.memory.bytes / 2).unwrap_or(usize::MAX));
        let mut columns = Columns::new();
        let mut totals = Counts::default();
        let mut tally = Tally::default();
        let files = self.event_files.clone();
        for (at, file) in (0..).zip(&files) {
            let counts = self.read_file(file, &mapping.wanted, EVENTS, &mut tally, |record, position| {
                let event = match mapping.event(record) {
                    Ok(event) => event,
                    Err(rejection) => return Ok(Err(rejection)),
                };
                columns.push(&event, i64::try_from(position).unwrap_or(i64::MAX))?;
                if columns.len() == BATCH_ROWS {
                    stage.push(columns.finish(at)?)?;
                }
                Ok(Ok(Kept::Accepted))
            })?;
            stage.push(columns.finish(at)?)?;
            totals.add(counts);
        }
        if totals.read == 0 && !files.is_empty() {
            return Err(IngestError::Empty { paths: files.into_iter().map(|f| f.source).collect() });
        }
        self.check_dead_letter_rate("event", totals, tally)?;
        stage.finish()
    }

    fn write_events(&self, staged: &Staged, items: &Items, written: &mut Written) -> Result<(), IngestError> {
        let sources: Vec<String> = self.event_files.iter().map(|file| file.source.clone()).collect();
        let dates = Dates {
            root: self.root,
            staged,
            stored: self.before.events.as_ref(),
            sources: &sources,
            threads: self.limits.threads,
            bytes_max: self.limits.memory.bytes / 4,
            interrupt: self.interrupt,
        };
        dates.write(&|id| items.get(id).is_some(), written)
    }

    /// Reads one file record by record; `take` gets each whole one with its position.
    fn read_file(
        &mut self,
        file: &InputFile,
        wanted: &[Wanted],
        table: &'static str,
        tally: &mut Tally,
        mut take: impl FnMut(&dyn RecordSource, u64) -> Result<Result<Kept, Rejection>, IngestError>,
    ) -> Result<Counts, IngestError> {
        let mut record = source::open(file, wanted, self.config.events.max_record_bytes, &self.count)?;
        let mut counts = Counts::default();
        loop {
            let rejection = match record.advance()? {
                Step::End => break,
                Step::Rejected(rejection) => Some(rejection),
                Step::Record => match take(&*record, counts.read)? {
                    Ok(Kept::Accepted) => {
                        counts.accepted += 1;
                        None
                    }
                    Ok(Kept::Duplicate) => {
                        counts.duplicates += 1;
                        None
                    }
                    Err(rejection) => Some(rejection),
                },
            };
            if let Some(rejection) = rejection {
                counts.dead_letters += 1;
                tally.add(&file.source, counts.read, &rejection);
                self.dead.push(&file.source, counts.read, &record.raw()?, &rejection)?;
            }
            counts.read += 1;
            if counts.read.is_multiple_of(RECORDS_PER_LOOK) {
                self.progress.add(self.count.take());
                if self.interrupt.requested() {
                    return Err(IngestError::Interrupted);
                }
            }
        }
        self.progress.add(self.count.take());
        counts.check(&file.source);
        for slot in record.never_seen() {
            let Wanted { key, column, .. } = &wanted[slot];
            self.warnings.push(format!("{}: no record has `{column}`, which `{key}` names", file.source));
        }
        self.reports.push(FileReport { table, source: file.source.clone(), counts });
        Ok(counts)
    }

    fn check_dead_letter_rate(
        &mut self,
        what: &'static str,
        counts: Counts,
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
    fn count_duplicates(&mut self, duplicates: &[u64]) -> Counts {
        let mut totals = Counts::default();
        let reports = self.reports.iter_mut().filter(|report| report.table == EVENTS);
        for (report, &duplicates) in reports.zip(duplicates) {
            report.counts.accepted -= duplicates;
            report.counts.duplicates += duplicates;
            report.counts.check(&report.source);
            totals.add(report.counts);
        }
        totals.check("events");
        totals
    }
}

/// What a record that is none of the rejected came to.
enum Kept {
    Accepted,
    Duplicate,
}
