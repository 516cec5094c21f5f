//! Records of a training run: `metrics.jsonl`, with one line per epoch, and `tensorboard/`, an event file that TensorBoard
//! reads during the run.
//!
//! They are appended next to the run's checkpoints, and synced before each checkpoint that the run can resume from:
//!
//! ```text
//! models/.training/<name>/   metrics.jsonl, tensorboard/   ── synced ──► latest/ ── … ──► copied into best/
//!                                                                                             │ one rename
//!                                                                                             ▼
//!                                                                                       models/<name>/
//! ```
//!
//! After a kill, the records are therefore never behind the checkpoint. Resuming truncates what is ahead of it
//! ([`RunRecords::resume`]), so every epoch has one line, however often the run was stopped. Memory: one file at a time, on
//! resuming.

mod event;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod tfrecord;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use event::ScalarEvent;

use crate::judge::{Metrics, PerMetric, Protocol};

/// Name of the file with one line per epoch.
pub const METRICS: &str = "metrics.jsonl";
/// Name of the directory of the event file.
pub const TENSORBOARD: &str = "tensorboard";
/// Prefix by which TensorBoard recognizes an event file.
const EVENTS_PREFIX: &str = "events.out.tfevents.";
/// Prefix of the tags of single steps; other tags belong to epochs.
const STEP_TAGS: &str = "step/";

/// An error in writing or reading records.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A line is not the record of an epoch.
    #[error("{path}, line {line}: not the record of an epoch")]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The parse error.
        source: serde_json::Error,
    },
}

/// Record of one epoch, a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Number of steps in the run at the end of the epoch.
    pub step: u64,
    /// Mean loss of the epoch's steps (Eq. 4).
    pub loss: f64,
    /// Learning rate in the epoch's last step.
    pub learning_rate: f64,
    /// Mean norm of the epoch's gradients, before clipping.
    pub gradient_norm: f64,
    /// Number of targets learned in the run, over all branches.
    pub targets: u64,
    /// Duration of the epoch's steps, seconds; excludes validation and checkpoints.
    pub seconds: f64,
    /// Targets learned per second in the epoch.
    pub targets_per_s: f64,
    /// Result of validation; `None` if the epoch was not validated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// Headline of a validation: seen items filtered, under the selecting protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Protocol of the validation.
    pub protocol: Protocol,
    /// Number of targets in the means.
    pub targets: usize,
    /// Means by metric; `None` for metrics added after the record was written.
    #[serde(flatten)]
    pub means: PerMetric<Option<f64>>,
}

impl Validation {
    /// Returns the headline of `m`; `None` without targets.
    pub fn new(m: &Metrics) -> Option<Self> {
        let &Metrics { protocol, targets, .. } = m;
        let means = PerMetric::from_fn(|key| m.means[key]);
        means.values().iter().all(Option::is_some).then_some(Self { protocol, targets, means })
    }
}

/// Result of one training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepMetrics {
    /// Loss of the step (Eq. 4).
    pub loss: f64,
    /// Norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
}

/// Open records of a running training.
#[derive(Debug)]
pub struct RunRecords {
    metrics: Output,
    events: Output,
}

#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    /// Opens `path` for appending and truncates it to `keep` bytes.
    fn open(path: PathBuf, keep: u64) -> Result<Self, RecordsError> {
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(keep)?;
            Ok(file)
        };
        let file = open().map_err(io_error(&path))?;
        Ok(Self { path, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecordsError> {
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }
}

impl RunRecords {
    /// Begins the records of the model `name` in `directory` and removes those of an earlier run.
    ///
    /// # Errors
    ///
    /// A file cannot be removed, created or written.
    pub fn create(directory: &Path, name: &str) -> Result<Self, RecordsError> {
        discard(directory)?;
        Self::resume(directory, name, 0, 0)
    }

    /// Continues the records in `directory` from a checkpoint after `epoch` whole epochs and `step` steps. Truncates later and
    /// incomplete records.
    ///
    /// # Errors
    ///
    /// A file cannot be read, truncated or written.
    pub fn resume(directory: &Path, name: &str, epoch: usize, step: u64) -> Result<Self, RecordsError> {
        let metrics = directory.join(METRICS);
        let (keep, epoch_step) = lines_until(&read_or_empty(&metrics)?, epoch);
        let tensorboard = directory.join(TENSORBOARD);
        fs::create_dir_all(&tensorboard).map_err(io_error(&tensorboard))?;
        let path = match event_files(&tensorboard)?.into_iter().next() {
            Some(path) => path,
            None => tensorboard.join(format!("{EVENTS_PREFIX}{}.{name}", wall_time() as u64)),
        };
        let keep_events = events_until(&read_or_empty(&path)?, step, epoch_step);
        let mut records =
            Self { metrics: Output::open(metrics, keep)?, events: Output::open(path, keep_events)? };
        if keep_events == 0 {
            records.event(0, Vec::new())?;
        }
        records.sync()?;
        for directory in [directory, &tensorboard] {
            sync_directory(directory)?;
        }
        Ok(records)
    }

    /// Records one step, in the event file only.
    ///
    /// # Errors
    ///
    /// Writing fails.
    pub fn step(&mut self, step: u64, metrics: StepMetrics) -> Result<(), RecordsError> {
        let StepMetrics { loss, gradient_norm, learning_rate } = metrics;
        let scalars = [("loss", loss), ("gradient_norm", gradient_norm), ("learning_rate", learning_rate)];
        self.event(step, scalars.map(|(tag, value)| (format!("{STEP_TAGS}{tag}"), value as f32)).into())
    }

    /// Records one epoch, in both files.
    ///
    /// # Errors
    ///
    /// Writing fails.
    pub fn epoch(&mut self, line: &EpochMetrics) -> Result<(), RecordsError> {
        let mut text =
            serde_json::to_vec(line).map_err(io::Error::from).map_err(io_error(&self.metrics.path))?;
        text.push(b'\n');
        self.metrics.write(&text)?;
        let scalars = [
            ("epoch/loss", line.loss),
            ("epoch/learning_rate", line.learning_rate),
            ("epoch/gradient_norm", line.gradient_norm),
            ("epoch/targets_per_s", line.targets_per_s),
        ];
        let mut scalars: Vec<(String, f32)> =
            scalars.into_iter().map(|(tag, value)| (tag.into(), value as f32)).collect();
        for (metric, mean) in line.validation.iter().flat_map(|validation| validation.means.iter()) {
            scalars.extend(mean.map(|mean| (format!("validation/{}", metric.column()), mean as f32)));
        }
        self.event(line.step, scalars)
    }

    /// Syncs both files to disk; call it before writing the next checkpoint.
    ///
    /// # Errors
    ///
    /// Syncing fails.
    pub fn sync(&self) -> Result<(), RecordsError> {
        for output in [&self.metrics, &self.events] {
            output.file.sync_data().map_err(io_error(&output.path))?;
        }
        Ok(())
    }

    fn event(&mut self, step: u64, scalars: Vec<(String, f32)>) -> Result<(), RecordsError> {
        self.events.write(&tfrecord::frame(&ScalarEvent { wall_time: wall_time(), step, scalars }.encode()))
    }
}

/// Copies the records in `training` into `checkpoint`, to be moved with it. Repeatable.
///
/// # Errors
///
/// A file cannot be read or written.
pub fn copy_into(training: &Path, checkpoint: &Path) -> Result<(), RecordsError> {
    let copy = |from: &Path, to: &Path| store::files::copy(from, to).map(drop).map_err(io_error(to));
    copy(&training.join(METRICS), &checkpoint.join(METRICS))?;
    let tensorboard = checkpoint.join(TENSORBOARD);
    remove(fs::remove_dir_all(&tensorboard), &tensorboard)?;
    fs::create_dir(&tensorboard).map_err(io_error(&tensorboard))?;
    for file in event_files(&training.join(TENSORBOARD))? {
        copy(&file, &tensorboard.join(file.file_name().unwrap_or_default()))?;
    }
    sync_directory(&tensorboard)?;
    sync_directory(checkpoint)
}

/// Removes the records in `directory`.
///
/// # Errors
///
/// A removal fails; missing records are not an error.
pub fn discard(directory: &Path) -> Result<(), RecordsError> {
    let (metrics, tensorboard) = (directory.join(METRICS), directory.join(TENSORBOARD));
    remove(fs::remove_file(&metrics), &metrics)?;
    remove(fs::remove_dir_all(&tensorboard), &tensorboard)
}

/// Reads the records in a `metrics.jsonl`; `None` if the file does not exist.
///
/// # Errors
///
/// The file cannot be read, or a line is not a record.
pub fn read(path: &Path) -> Result<Option<Vec<EpochMetrics>>, RecordsError> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(io_error(path))?,
    };
    let line = |(i, line)| {
        serde_json::from_str(line).map_err(|source| RecordsError::Line {
            path: path.to_owned(),
            line: i + 1,
            source,
        })
    };
    text.lines().enumerate().map(line).collect::<Result<_, _>>().map(Some)
}

/// Reads the events of an event file, up to the first incomplete or damaged one.
///
/// # Errors
///
/// The file cannot be read.
pub fn read_events(path: &Path) -> Result<Vec<ScalarEvent>, RecordsError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    Ok(events(&bytes).map(|(event, _)| event).collect())
}

/// Returns the length of the lines up to `epoch`, in bytes, and the step of the last of them.
fn lines_until(bytes: &[u8], epoch: usize) -> (u64, u64) {
    let (mut keep, mut step) = (0, 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match serde_json::from_slice::<EpochMetrics>(line) {
            Ok(record) if line.ends_with(b"\n") && record.epoch <= epoch => step = record.step,
            _ => break,
        }
        keep += line.len() as u64;
    }
    (keep, step)
}

/// Returns the length of the events to keep, in bytes: step events up to `step`, epoch events up to `epoch_step`. The two differ
/// if the checkpoint lies between an epoch's last step and its end.
fn events_until(bytes: &[u8], step: u64, epoch_step: u64) -> u64 {
    let known = |event: &ScalarEvent| {
        let of_step = event.scalars.iter().any(|(tag, _)| tag.starts_with(STEP_TAGS));
        event.step <= if of_step { step } else { epoch_step }
    };
    events(bytes).take_while(|(event, _)| known(event)).last().map_or(0, |(_, end)| end as u64)
}

/// Iterates over the events and the end of each frame, in bytes.
fn events(bytes: &[u8]) -> impl Iterator<Item = (ScalarEvent, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (message, length) = tfrecord::unframe(&bytes[at..])?;
        at += length;
        Some((ScalarEvent::decode(message)?, at))
    })
}

fn event_files(directory: &Path) -> Result<Vec<PathBuf>, RecordsError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name: OsString = entry.file_name();
            if name.to_string_lossy().starts_with(EVENTS_PREFIX) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(io_error(directory))
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>, RecordsError> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        bytes => bytes.map_err(io_error(path)),
    }
}

fn remove(removed: io::Result<()>, path: &Path) -> Result<(), RecordsError> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(path)(e)),
        _ => Ok(()),
    }
}

fn sync_directory(directory: &Path) -> Result<(), RecordsError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(io_error(directory))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RecordsError + '_ {
    |source| RecordsError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary directory, removed at the end of the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("records-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const STEPS_AN_EPOCH: u64 = 3;

    fn line(epoch: usize) -> EpochMetrics {
        let value = 1.0 / epoch as f64;
        EpochMetrics {
            epoch,
            step: epoch as u64 * STEPS_AN_EPOCH,
            loss: value,
            learning_rate: 5e-4,
            gradient_norm: value,
            targets: 10 * epoch as u64,
            seconds: value,
            targets_per_s: 10.0 / value,
            validation: epoch.is_multiple_of(2).then_some(Validation {
                protocol: Protocol::AsServed,
                targets: 7,
                means: PerMetric::from_fn(|_| Some(value)),
            }),
        }
    }

    fn epochs(records: &mut RunRecords, epochs: std::ops::RangeInclusive<usize>) {
        for epoch in epochs {
            let last = epoch as u64 * STEPS_AN_EPOCH;
            for step in last - STEPS_AN_EPOCH + 1..=last {
                let metrics = StepMetrics { loss: step as f64, gradient_norm: 1.0, learning_rate: 5e-4 };
                records.step(step, metrics).unwrap();
            }
            records.epoch(&line(epoch)).unwrap();
        }
    }

    /// Tags and values.
    type Scalars = Vec<(String, f32)>;

    /// Returns what a reader finds: lines, and the steps and scalars of events.
    fn found(directory: &Path) -> (Vec<EpochMetrics>, Vec<(u64, Scalars)>) {
        let files = event_files(&directory.join(TENSORBOARD)).unwrap();
        assert_eq!(files.len(), 1);
        let bytes = fs::read(&files[0]).unwrap();
        let events: Vec<_> = events(&bytes).collect();
        assert_eq!(events.last().unwrap().1, bytes.len(), "no byte is left over");
        let lines = read(&directory.join(METRICS)).unwrap().unwrap();
        (lines, events.into_iter().map(|(event, _)| (event.step, event.scalars)).collect())
    }

    #[test]
    fn records_read_back() {
        let directory = Directory::new("read");
        let mut records = RunRecords::create(&directory.0, "m").unwrap();
        epochs(&mut records, 1..=2);
        let (lines, events) = found(&directory.0);
        assert_eq!(lines, [line(1), line(2)]);
        assert_eq!(events.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 2, 3, 3, 4, 5, 6, 6]);
        assert!(events[0].1.is_empty());
        let tags: Vec<&str> = events[8].1.iter().map(|(tag, _)| tag.as_str()).collect();
        assert!(tags.contains(&"epoch/loss") && tags.contains(&"validation/ndcg_10"), "{tags:?}");
        assert!(fs::read_to_string(directory.0.join(METRICS)).unwrap().contains("\"hr_10\":0.5"));
    }

    #[test]
    fn resuming_neither_doubles_nor_loses_records() {
        let whole = Directory::new("whole");
        epochs(&mut RunRecords::create(&whole.0, "m").unwrap(), 1..=4);
        let expected = found(&whole.0);
        // Killed after epoch 3 was recorded, with a checkpoint that is older by an epoch or some steps. The checkpoint (2, 9)
        // lies between the last step of epoch 3 and its end.
        for (epoch, step) in [(2, 6), (2, 7), (2, 9), (3, 9), (0, 0)] {
            for torn in [0, 1, 20] {
                let directory = Directory::new("resume");
                epochs(&mut RunRecords::create(&directory.0, "m").unwrap(), 1..=3);
                for path in [directory.0.join(METRICS)]
                    .into_iter()
                    .chain(event_files(&directory.0.join(TENSORBOARD)).unwrap())
                {
                    let bytes = fs::read(&path).unwrap();
                    // An incomplete write of a record after the checkpoint.
                    fs::write(&path, [&bytes[..], &bytes[..torn]].concat()).unwrap();
                }
                let mut records = RunRecords::resume(&directory.0, "m", epoch, step).unwrap();
                for step in step + 1..=(epoch as u64 + 1) * STEPS_AN_EPOCH {
                    let metrics = StepMetrics { loss: step as f64, gradient_norm: 1.0, learning_rate: 5e-4 };
                    records.step(step, metrics).unwrap();
                }
                records.epoch(&line(epoch + 1)).unwrap();
                epochs(&mut records, epoch + 2..=4);
                assert_eq!(found(&directory.0), expected, "epoch {epoch}, step {step}, torn {torn}");
            }
        }
    }

    #[test]
    fn records_are_copied_whole_and_again() {
        let (training, best) = (Directory::new("training"), Directory::new("best"));
        epochs(&mut RunRecords::create(&training.0, "m").unwrap(), 1..=2);
        for _ in 0..2 {
            copy_into(&training.0, &best.0).unwrap();
            assert_eq!(found(&best.0), found(&training.0));
        }
        discard(&training.0).unwrap();
        assert_eq!(fs::read_dir(&training.0).unwrap().count(), 0);
        assert_eq!(read(&training.0.join(METRICS)).unwrap(), None);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let directory = Directory::new("line");
        let path = directory.0.join(METRICS);
        let text = format!("{}\n{{}}\n", serde_json::to_string(&line(1)).unwrap());
        fs::write(&path, text).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl, line 2"), "{message}");
    }
}
