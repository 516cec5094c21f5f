//! Writes the files of all days, several days in parallel.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;

use terminal::{Interrupt, Progress};

use crate::day::{Days, StoppedEarly};
use crate::error::SimulateError;
use crate::output::{self, EventFile};
use crate::report::LogCounts;
use crate::settings::Settings;
use crate::{DAY_MS, midnight_ms};

/// Records between two reports of a thread's progress.
const RECORDS_PER_REPORT: u64 = 16_384;

/// Writes the files of all days, as many days at a time as there are threads.
pub(crate) fn days(
    settings: &Settings,
    directory: &Path,
    days: &Days<'_>,
    interrupt: &Interrupt,
) -> Result<(LogCounts, u64), SimulateError> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if settings.threads == 0 { cores() } else { settings.threads };
    let threads = threads.min(settings.days as usize);
    let (next, failed, files) = (AtomicU32::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let stopped = || interrupt.requested() || failed.load(Ordering::Relaxed);
    let (report, reports) = mpsc::channel();
    let work = |report: mpsc::Sender<u64>| {
        let mut total = (LogCounts::default(), 0);
        loop {
            let day = next.fetch_add(1, Ordering::Relaxed);
            if day >= settings.days {
                return Ok(total);
            }
            let job = DayJob { settings, directory, day, files: &files, report: &report };
            match job.write(days, stopped) {
                Ok((counts, bytes)) => {
                    total.0.add(&counts);
                    total.1 += bytes;
                }
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut progress = Progress::start("simulating", settings.events, "events");
    let results: Vec<Result<(LogCounts, u64), Halt>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let report = report.clone();
                scope.spawn(|| work(report))
            })
            .collect();
        drop(report);
        reports.iter().for_each(|records| progress.add(records));
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    });

    let mut total = (LogCounts::default(), 0);
    let mut halted = false;
    for result in results {
        match result {
            Ok((counts, bytes)) => {
                total.0.add(&counts);
                total.1 += bytes;
            }
            // The cause; the other threads have only stopped.
            Err(Halt::Failed(error)) => return Err(error),
            Err(Halt::StoppedEarly) => halted = true,
        }
    }
    if halted {
        let of = u64::from(settings.days) * u64::from(settings.files_per_day);
        return Err(SimulateError::Interrupted { files: files.into_inner(), of });
    }
    Ok(total)
}

/// The reason why a thread ended early.
enum Halt {
    Failed(SimulateError),
    StoppedEarly,
}

impl From<StoppedEarly> for Halt {
    fn from(_: StoppedEarly) -> Self {
        Self::StoppedEarly
    }
}

impl From<SimulateError> for Halt {
    fn from(error: SimulateError) -> Self {
        Self::Failed(error)
    }
}

/// The files of one day.
struct DayJob<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    day: u32,
    /// Complete files of all days.
    files: &'a AtomicU64,
    report: &'a mpsc::Sender<u64>,
}

impl DayJob<'_> {
    fn write(&self, days: &Days<'_>, stopped: impl Fn() -> bool) -> Result<(LogCounts, u64), Halt> {
        let files = i64::from(self.settings.files_per_day);
        let midnight = midnight_ms(self.settings.start) + i64::from(self.day) * DAY_MS;
        let mut counts = LogCounts::default();
        let (mut bytes, mut at) = (0, 0);
        let mut file = self.create(at)?;
        days.records(self.day, stopped, |arrival, record| -> Result<(), Halt> {
            while at < arrival * files / DAY_MS {
                at += 1;
                bytes += self.finish(std::mem::replace(&mut file, self.create(at)?))?;
            }
            file.write(record)?;
            counts.record(record, midnight);
            if counts.records.is_multiple_of(RECORDS_PER_REPORT) {
                // Fails if another thread has failed and the receiver is dropped.
                let _ = self.report.send(RECORDS_PER_REPORT);
            }
            Ok(())
        })?;
        while at + 1 < files {
            at += 1;
            bytes += self.finish(std::mem::replace(&mut file, self.create(at)?))?;
        }
        bytes += self.finish(file)?;
        let _ = self.report.send(counts.records % RECORDS_PER_REPORT);
        Ok((counts, bytes))
    }

    /// Creates file number `at` of the day; the names sort in this order.
    fn create(&self, at: i64) -> Result<EventFile, SimulateError> {
        let Settings { start, format, compression, files_per_day, .. } = *self.settings;
        let date = start + chrono::Days::new(self.day.into());
        let mut name = date.to_string();
        if files_per_day > 1 {
            let width = files_per_day.to_string().len();
            name.push_str(&format!("-{:0width$}", at + 1));
        }
        name.push_str(output::extension(format, compression));
        EventFile::create(self.directory.join(output::EVENTS).join(name), format, compression)
    }

    fn finish(&self, file: EventFile) -> Result<u64, SimulateError> {
        let bytes = file.finish()?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }
}
