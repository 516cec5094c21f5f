//! Publications: the served model, `models/published.json`, and every publication before it.
//!
//! ```text
//! models/published.json             the newest publication, for serving: replaced by one rename
//! models/.published/00000001.json   every publication, numbered in order; written once and never changed
//! ```
//!
//! A publication is a file that must not exist yet, like a commit of a Delta table: of two publishers with the same parent, one
//! creates it and the other fails ([`PublicationError::Conflict`]). This file decides, and `published.json` follows it. If a
//! publisher dies between the two steps, the old model stays served until [`settle`] repeats the second one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use schemas::names;

use crate::root::Root;
use crate::sealed::SealedError;
use crate::{failpoint, files, sealed};

/// A published model and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// Counts from 1 without gaps.
    pub number: u64,
    /// Number of the publication before; `None` for the first.
    pub parent: Option<u64>,
    /// The job that published it.
    pub kind: Kind,
    /// Run of that job.
    #[serde(deserialize_with = "names::plain")]
    pub run: String,
    /// Time by the publisher's clock. The number, not the time, orders publications.
    pub published_at: DateTime<Utc>,
    /// The pre-trained model, which the next refresh continues.
    #[serde(deserialize_with = "names::plain")]
    pub base: String,
    /// Hash of the base's weights.
    pub base_hash: String,
    /// The model that retrieval loads: the base after SFT, or the base itself if there are no SFT sets.
    #[serde(deserialize_with = "names::plain")]
    pub served: String,
    /// Hash of the served model's weights.
    pub served_hash: String,
    /// Number of the last daily publication that this one descends from; its own number if a daily job published it. The next
    /// daily job continues the base of that publication.
    pub daily: u64,
    /// Newest version of `events` that the base was trained on.
    pub learned_events: u64,
    /// Day of the last full training that the base descends from.
    pub full_training: NaiveDate,
    /// Rows of `events` in that full training.
    pub full_events: u64,
    /// Table → version that the model was made from.
    pub tables: BTreeMap<String, u64>,
    /// Metrics of the served model before publication, such as `hr@10`.
    pub metrics: BTreeMap<String, f64>,
    /// Number of the publication that a rollback restores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<u64>,
}

/// The job that publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `climber daily`.
    Daily,
    /// `climber refresh`.
    Refresh,
    /// `climber rollback`.
    Rollback,
}

impl Kind {
    /// Name in printed output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Refresh => "refresh",
            Self::Rollback => "rollback",
        }
    }
}

/// A publication that cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file's contents do not match its hash or are no publication.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: SealedError,
    },
    /// The publication's file is missing, although numbers have no gaps.
    #[error("publication {number} is gone")]
    Gone {
        /// Its number.
        number: u64,
    },
    /// Another publisher used the number first.
    #[error("publication {number} was made by another job meanwhile")]
    Conflict {
        /// Its number.
        number: u64,
    },
}

/// Path of the file that names the served model.
pub fn published_path(root: &Root) -> PathBuf {
    root.model_path("published.json")
}

/// Reads `models/published.json`; `None` if no model was ever published.
///
/// # Errors
///
/// [`PublicationError::Damaged`] or [`PublicationError::Io`].
pub fn published(root: &Root) -> Result<Option<Publication>, PublicationError> {
    read(&published_path(root))
}

/// Returns the newest publication, from `published.json` if its own file is damaged; `None` if there is none.
///
/// # Errors
///
/// [`PublicationError::Damaged`] if both files are damaged.
pub fn newest(root: &Root) -> Result<Option<Publication>, PublicationError> {
    let published = published(root).ok().flatten();
    Ok(newest_beside(root, published.as_ref())?.map(|(newest, _)| newest))
}

/// Returns the newest publication, and whether its own file needs repair from `published.json`.
fn newest_beside(
    root: &Root,
    published: Option<&Publication>,
) -> Result<Option<(Publication, bool)>, PublicationError> {
    let Some(number) = newest_number(root, published)? else { return Ok(None) };
    match (at(root, number), published) {
        (Err(PublicationError::Damaged { .. }), Some(published)) if published.number == number => {
            Ok(Some((published.clone(), true)))
        }
        (newest, _) => Ok(newest?.map(|newest| (newest, false))),
    }
}

/// Returns the number of the newest publication. `published.json` is at most a few behind, so the search starts from it; the
/// directory, which grows forever, is listed only if that file is unusable.
fn newest_number(root: &Root, published: Option<&Publication>) -> Result<Option<u64>, PublicationError> {
    let there = |number: u64| {
        let path = path(root, number);
        path.try_exists().map_err(|source| PublicationError::Io { path, source })
    };
    let named = published.map(|publication| publication.number);
    let Some(mut number) = named.map(|n| there(n).map(|there| there.then_some(n))).transpose()?.flatten()
    else {
        return Ok(numbers(root)?.last().copied());
    };
    while there(number + 1)? {
        number += 1;
    }
    Ok(Some(number))
}

/// Reads publication `number`; `None` if there is none.
///
/// # Errors
///
/// [`PublicationError::Damaged`] or [`PublicationError::Io`].
pub fn at(root: &Root, number: u64) -> Result<Option<Publication>, PublicationError> {
    read(&path(root, number))
}

/// Reads publication `number`, which was made.
fn made(root: &Root, number: u64) -> Result<Publication, PublicationError> {
    at(root, number)?.ok_or(PublicationError::Gone { number })
}

/// Returns the newest `limit` publications, newest first, and an error for each of them that is missing or unreadable. Reads no
/// other publication's file.
///
/// # Errors
///
/// The number of the newest publication cannot be found.
pub fn recent(
    root: &Root,
    limit: usize,
) -> Result<(Vec<Publication>, Vec<PublicationError>), PublicationError> {
    let (mut recent, mut damaged) = (Vec::new(), Vec::new());
    let newest = newest_number(root, published(root).ok().flatten().as_ref())?.unwrap_or_default();
    for number in (1..=newest).rev().take(limit) {
        match made(root, number) {
            Ok(publication) => recent.push(publication),
            Err(error) => damaged.push(error),
        }
    }
    Ok((recent, damaged))
}

/// Returns the last `limit` daily publications that `newest` descends from, newest first, without those that were rolled back.
///
/// Reads two files for each, however many refreshes lie between. A missing or unreadable file hides those before it: the error is returned
/// with the publications found so far.
pub fn dailies(
    root: &Root,
    newest: &Publication,
    limit: usize,
) -> (Vec<Publication>, Option<PublicationError>) {
    let mut dailies = Vec::new();
    let mut number = Some(newest.daily);
    while let Some(found) = number.filter(|_| dailies.len() < limit) {
        let daily = match made(root, found) {
            Ok(daily) => daily,
            Err(problem) => return (dailies, Some(problem)),
        };
        let parent = daily.parent;
        dailies.push(daily);
        number = match parent.map(|parent| made(root, parent)).transpose() {
            Ok(parent) => parent.map(|parent| parent.daily).filter(|&before| before < found),
            Err(problem) => return (dailies, Some(problem)),
        };
    }
    (dailies, None)
}

/// Returns the publications whose models are retained, oldest first: the newest `publications` ones, as many daily ones,
/// `others`, and those that these descend from or restore.
///
/// # Errors
///
/// A publication is missing or cannot be read, so that its needs are unknown.
pub fn kept(
    root: &Root,
    publications: usize,
    others: impl IntoIterator<Item = Publication>,
) -> Result<Vec<Publication>, PublicationError> {
    let Some(newest) = newest(root)? else { return Ok(Vec::new()) };
    let (recent, damaged) = recent(root, publications)?;
    if let Some(problem) = damaged.into_iter().next() {
        return Err(problem);
    }
    let (dailies, problem) = dailies(root, &newest, publications);
    if let Some(problem) = problem {
        return Err(problem);
    }
    let kept = recent.into_iter().chain(dailies).chain(others);
    let mut kept: BTreeMap<u64, Publication> = kept.map(|p| (p.number, p)).collect();
    let origins: BTreeSet<u64> = kept.values().flat_map(|p| [Some(p.daily), p.restores]).flatten().collect();
    for number in origins.into_iter().filter(|number| !kept.contains_key(number)).collect::<Vec<_>>() {
        kept.insert(number, made(root, number)?);
    }
    Ok(kept.into_values().collect())
}

/// Publishes a model. `publication.number` must be the next number.
///
/// # Errors
///
/// [`PublicationError::Conflict`] if another publisher used the number first.
pub fn publish(root: &Root, publication: &Publication) -> Result<(), PublicationError> {
    let directory = directory(root);
    std::fs::create_dir_all(&directory)
        .map_err(|source| PublicationError::Io { path: directory.clone(), source })?;
    let next = newest_number(root, published(root).ok().flatten().as_ref())?.map_or(1, |last| last + 1);
    if publication.number < next {
        return Err(PublicationError::Conflict { number: publication.number });
    }
    enter(root, publication)?;
    failpoint::reach("publish:between");
    settle(root).map(drop)
}

/// Creates a publication's file.
fn enter(root: &Root, publication: &Publication) -> Result<(), PublicationError> {
    let path = path(root, publication.number);
    match files::create(&path, &text(publication)) {
        // A network file system that retries after a lost answer finds its own file.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match at(root, publication.number)? {
            Some(found) if found == *publication => Ok(()),
            _ => Err(PublicationError::Conflict { number: publication.number }),
        },
        created => created.map_err(|source| PublicationError::Io { path, source }),
    }
}

/// Brings `models/published.json` up to the newest publication, in case a publisher died, and repairs that publication's file if
/// it is damaged. Returns the newest publication.
///
/// # Errors
///
/// [`PublicationError::Damaged`] if neither file is readable.
pub fn settle(root: &Root) -> Result<Option<Publication>, PublicationError> {
    loop {
        let published = published(root).ok().flatten();
        let Some((newest, mends)) = newest_beside(root, published.as_ref())? else { return Ok(None) };
        let path = match mends {
            true => path(root, newest.number),
            false if published.as_ref() == Some(&newest) => return Ok(Some(newest)),
            // Replaces a damaged file like a stale one.
            false => published_path(root),
        };
        files::replace(&path, &text(&newest)).map_err(|source| PublicationError::Io { path, source })?;
        // Another job may have published in between: look again.
    }
}

fn text(publication: &Publication) -> Vec<u8> {
    sealed::write(publication).unwrap_or_else(|e| unreachable!("a publication is a JSON document: {e}"))
}

fn directory(root: &Root) -> PathBuf {
    root.model_path(".published")
}

fn path(root: &Root, number: u64) -> PathBuf {
    directory(root).join(format!("{number:08}.json"))
}

/// Returns the numbers of all publication files, ascending.
fn numbers(root: &Root) -> Result<Vec<u64>, PublicationError> {
    let directory = directory(root);
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| PublicationError::Io { path: directory, source })?,
    };
    let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
    let mut numbers: Vec<u64> = entries.flatten().filter_map(|entry| number(entry.file_name())).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(path: &Path) -> Result<Option<Publication>, PublicationError> {
    #[cfg(test)]
    tests::READ.with(|read| read.set(read.get() + 1));
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PublicationError::Io { path: path.into(), source }),
        Ok(bytes) => sealed::read(&bytes)
            .map(Some)
            .map_err(|source| PublicationError::Damaged { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Number of publication files that this thread has read.
        pub(super) static READ: Cell<usize> = const { Cell::new(0) };
    }

    fn reads<T>(work: impl FnOnce() -> T) -> (T, usize) {
        READ.set(0);
        let done = work();
        (done, READ.get())
    }

    fn publication(number: u64, served: &str) -> Publication {
        Publication {
            number,
            parent: number.checked_sub(1).filter(|&n| n > 0),
            kind: Kind::Daily,
            run: served.into(),
            published_at: DateTime::UNIX_EPOCH,
            base: served.into(),
            base_hash: "0".into(),
            served: served.into(),
            served_hash: "0".into(),
            daily: number,
            learned_events: number,
            full_training: NaiveDate::default(),
            full_events: 0,
            tables: BTreeMap::new(),
            metrics: BTreeMap::from([("hr@10".into(), 0.1)]),
            restores: None,
        }
    }

    #[test]
    fn of_two_publishers_one_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        assert_eq!(settle(&root).unwrap(), None);
        publish(&root, &publication(1, "monday")).unwrap();
        publish(&root, &publication(2, "tuesday")).unwrap();
        let late = publish(&root, &publication(2, "also tuesday"));
        assert!(matches!(late, Err(PublicationError::Conflict { number: 2 })), "{late:?}");
        assert_eq!(published(&root).unwrap().unwrap().served, "tuesday");
        assert_eq!(recent(&root, 9).unwrap().0.len(), 2);
    }

    #[test]
    fn many_publishers_at_once_make_one_chain() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        let (threads, each) = (4, 10);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let root = &root;
                scope.spawn(move || {
                    let mut done = 0;
                    while done < each {
                        let next = newest(root).unwrap().map_or(1, |last| last.number + 1);
                        match publish(root, &publication(next, &format!("t{thread}-{done}"))) {
                            Ok(()) => done += 1,
                            Err(PublicationError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        let (mut all, damaged) = recent(&root, usize::MAX).unwrap();
        all.reverse();
        assert!(damaged.is_empty());
        assert_eq!(
            all.iter().map(|p| p.number).collect::<Vec<_>>(),
            (1..=threads * each).collect::<Vec<_>>()
        );
        let runs: std::collections::BTreeSet<_> = all.iter().map(|p| &p.run).collect();
        assert_eq!(runs.len(), all.len());
        assert_eq!(settle(&root).unwrap().as_ref(), all.last());
        assert_eq!(published(&root).unwrap().as_ref(), all.last());
    }

    #[test]
    fn a_torn_or_stale_file_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        publish(&root, &publication(1, "monday")).unwrap();
        publish(&root, &publication(2, "tuesday")).unwrap();
        std::fs::write(published_path(&root), "{").unwrap();
        assert!(matches!(published(&root), Err(PublicationError::Damaged { .. })));
        settle(&root).unwrap();
        assert_eq!(published(&root).unwrap().unwrap().number, 2);
        files::replace(&published_path(&root), &text(&publication(1, "monday"))).unwrap();
        settle(&root).unwrap();
        assert_eq!(published(&root).unwrap().unwrap().number, 2);
    }

    #[test]
    fn each_of_the_two_files_mends_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        publish(&root, &publication(1, "monday")).unwrap();
        publish(&root, &publication(2, "tuesday")).unwrap();
        std::fs::write(path(&root, 2), "{").unwrap();
        assert_eq!(newest(&root).unwrap().unwrap().served, "tuesday");
        settle(&root).unwrap();
        assert_eq!(at(&root, 2).unwrap().unwrap().served, "tuesday");
        // With both files damaged, the served model is unknown.
        std::fs::write(path(&root, 2), "{").unwrap();
        std::fs::write(published_path(&root), "{").unwrap();
        assert!(matches!(settle(&root), Err(PublicationError::Damaged { .. })));
    }

    #[test]
    fn dailies_are_known_up_to_one_that_is_damaged_or_gone() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        (1..=5).for_each(|number| publish(&root, &publication(number, "m")).unwrap());
        std::fs::write(path(&root, 2), "{").unwrap();
        let newest = newest(&root).unwrap().unwrap();
        let (found, problem) = dailies(&root, &newest, 9);
        assert_eq!(found.iter().map(|daily| daily.number).collect::<Vec<_>>(), [5, 4, 3]);
        assert!(matches!(problem, Some(PublicationError::Damaged { .. })));
        assert!(
            dailies(&root, &newest, 3).0.len() == 3
                && kept(&root, 2, []).is_ok()
                && kept(&root, 5, []).is_err()
        );
        std::fs::remove_file(path(&root, 2)).unwrap();
        assert!(matches!(dailies(&root, &newest, 9).1, Some(PublicationError::Gone { number: 2 })));
        assert!(matches!(kept(&root, 5, []), Err(PublicationError::Gone { number: 2 })));
        let old = Publication { restores: Some(2), ..newest };
        assert!(matches!(kept(&root, 1, [old]), Err(PublicationError::Gone { number: 2 })));
    }

    #[test]
    fn a_publication_that_is_there_already_is_no_conflict_with_itself() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        publish(&root, &publication(1, "monday")).unwrap();
        // The state after a write whose answer was lost: the file exists, and nothing after it.
        std::fs::write(path(&root, 2), text(&publication(2, "tuesday"))).unwrap();
        let again = files::create(&path(&root, 2), b"");
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(enter(&root, &publication(2, "tuesday")).is_ok());
        let other = enter(&root, &publication(2, "also tuesday"));
        assert!(matches!(other, Err(PublicationError::Conflict { number: 2 })), "{other:?}");
    }

    #[test]
    fn ten_thousand_publications() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        std::fs::create_dir_all(super::directory(&root)).unwrap();
        // Each daily publication is followed by 999 refreshes.
        let number = |n: u64| {
            let daily = (n - 1) / 1_000 * 1_000 + 1;
            let kind = if n == daily { Kind::Daily } else { Kind::Refresh };
            Publication { kind, daily, ..publication(n, &format!("m{n}")) }
        };
        for n in 1..=10_000 {
            std::fs::write(path(&root, n), text(&number(n))).unwrap();
        }
        std::fs::write(published_path(&root), text(&number(10_000))).unwrap();
        let (found, read) = reads(|| newest(&root).unwrap().unwrap());
        assert_eq!((found.number, read), (10_000, 2));
        let (found, read) = reads(|| settle(&root).unwrap().unwrap());
        assert!(found.number == 10_000 && read <= 4, "{read}");
        let ((found, damaged), read) = reads(|| recent(&root, 15).unwrap());
        assert!(damaged.is_empty() && found[0].number == 10_000 && found[14].number == 9_986);
        assert!(read <= 16, "{read}");
        let newest = found.into_iter().next().unwrap();
        let (found, read) = reads(|| dailies(&root, &newest, 7).0);
        let numbers: Vec<u64> = found.iter().map(|daily| daily.number).collect();
        assert_eq!(numbers, [9_001, 8_001, 7_001, 6_001, 5_001, 4_001, 3_001]);
        assert!(read <= 14, "{read}");
        let ((), read) = reads(|| publish(&root, &number(10_001)).unwrap());
        assert!(read <= 8, "{read}");
        assert_eq!(published(&root).unwrap().unwrap().number, 10_001);
        // All of them can be listed.
        assert_eq!(recent(&root, usize::MAX).unwrap().0.len(), 10_001);
        // If `published.json` is torn, ahead or missing, the directory is used.
        for contents in [&b"{"[..], &text(&number(20_000))] {
            std::fs::write(published_path(&root), contents).unwrap();
            assert_eq!(super::newest(&root).unwrap().unwrap().number, 10_001);
        }
        std::fs::remove_file(published_path(&root)).unwrap();
        assert_eq!(settle(&root).unwrap().unwrap().number, 10_001);
    }

    #[test]
    fn a_path_for_a_name_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        publish(&root, &publication(1, "monday")).unwrap();
        let text = serde_json::to_string_pretty(&publication(1, "monday")).unwrap();
        std::fs::write(path(&root, 1), text.replace("\"served\": \"monday\"", "\"served\": \"../..\""))
            .unwrap();
        let error = at(&root, 1).unwrap_err();
        assert!(terminal::with_causes(&error).contains("`../..`"), "{error}");
    }
}
