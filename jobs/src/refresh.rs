//! `climber refresh`: turns new events into a new published model within minutes, between two daily jobs.
//!
//! ```text
//! events at version E ─▶ build-sequences --since ─▶ refresh ─▶ SFT on the last daily's sets ─▶ gate ─▶ publish
//!        ▲                (what the published base                                                       │
//!        │                 has not learned)                                      another was faster  ◀───┤
//!        └───────────────────────────────────── start again from there ◀─────────────┘                   ▼
//! ```
//!
//! `sequences` and the instruction examples are those of the last daily job: they are replayed against forgetting, and the
//! guard's targets come from them. The next daily job starts from the last daily job again and learns the whole day; models
//! published here bridge the time until then.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use pipeline::engine::Resources;
use pipeline::privacy::sweep_models;
use pipeline::sequences;
use schemas::config::{Config, ConfigError};
use schemas::tables::{EVENTS, ITEMS, REFRESH};
use serde::{Deserialize, Serialize};
use store::failpoint;
use store::lease::Lease;
use store::publication::{self, Kind, Publication};
use store::{Root, Shard, TableError};
use terminal::{Interrupt, with_causes};
use trainer::learn::{Status, TrainError, TrainOptions, refresh, sft};

use crate::daily::{again_on_conflict, anew_if_unusable, cannot_tell_what_is_new};
use crate::gate::{self, Verdict};
use crate::own;
use crate::publish::{self, Candidate};
use crate::retention;
use crate::stop::{Stopped, unless_stopped};

/// Consecutive failures before the loop ends: a lasting fault needs a person.
const FAILURES: u32 = 10;
/// Bytes of `history.jsonl` above which it is renamed to `history.jsonl.old` and begun anew.
const HISTORY_BYTES: u64 = 4 << 20;
/// Longest pause after a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// Result of one refresh: a line of `jobs/refresh/history.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Refreshed {
    pub(crate) at: DateTime<Utc>,
    pub(crate) outcome: RefreshOutcome,
    /// Version of `events` that was read.
    pub(crate) events_version: u64,
    /// Events committed since the published base was trained.
    pub(crate) new_events: u64,
    /// The new model, if any.
    pub(crate) model: Option<String>,
    /// Its publication, if it was published.
    pub(crate) publication: Option<u64>,
    /// The gate's verdict on it.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) seconds: f64,
}

/// How a refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RefreshOutcome {
    /// The new model is served.
    Published,
    /// The gate refused the new model.
    Refused,
    /// Too few events are new.
    NothingNew,
    /// Another job published meanwhile: start again from there.
    Overtaken,
    /// A rollback is in force: the next daily job continues from there.
    Waiting,
}

impl Refreshed {
    /// Returns the outcome without anything to learn up to version `events_version`.
    fn nothing(events_version: u64) -> Self {
        Self {
            at: Utc::now(),
            outcome: RefreshOutcome::NothingNew,
            events_version,
            new_events: 0,
            model: None,
            publication: None,
            verdict: None,
            seconds: 0.0,
        }
    }
}

/// Returns the path of the refresh history.
pub(crate) fn history_path(root: &Root) -> PathBuf {
    root.path().join("jobs").join("refresh").join("history.jsonl")
}

/// Returns the last recorded refresh.
pub(crate) fn last(root: &Root) -> Option<Refreshed> {
    let text = std::fs::read_to_string(history_path(root)).ok()?;
    text.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

/// Takes the lease of this job.
pub(crate) fn lock(root: &Root) -> Result<Lease> {
    Ok(Lease::take("climber refresh", &root.path().join("jobs").join("refresh.lock"))?)
}

/// Refreshes once, again each time another job publishes meanwhile. After a rollback it does nothing, unless `after_rollback`.
pub(crate) async fn once(
    config: &Config,
    root: &Root,
    interrupt: &Interrupt,
    after_rollback: bool,
) -> Result<Refreshed> {
    loop {
        if !after_rollback && let Some(rollback) = brought_back(publication::newest(root)?.as_ref()) {
            eprintln!("{rollback}");
            let events = root.snapshot(EVENTS).await?.map_or(0, |events| events.version());
            return Ok(Refreshed { outcome: RefreshOutcome::Waiting, ..Refreshed::nothing(events) });
        }
        let refreshed = attempt(config, root, interrupt).await?;
        if refreshed.outcome != RefreshOutcome::Overtaken {
            return Ok(refreshed);
        }
    }
}

/// Returns a message if the newest publication is a rollback: a refresh would soon recreate the withdrawn model.
fn brought_back(newest: Option<&Publication>) -> Option<String> {
    let &Publication { number, restores, .. } = newest.filter(|newest| newest.kind == Kind::Rollback)?;
    Some(format!(
        "publication {number} has brought publication {} back: waiting for the next daily job (`climber refresh --once \
         --after-rollback` goes on from here)",
        restores.unwrap_or_default()
    ))
}

/// Refreshes once; the outcome may be [`RefreshOutcome::Overtaken`].
async fn attempt(config: &Config, root: &Root, interrupt: &Interrupt) -> Result<Refreshed> {
    let refreshed = Attempt::begin(config, root, interrupt)?.run().await?;
    match refreshed.outcome {
        RefreshOutcome::Overtaken => {
            eprintln!("another job has published meanwhile: starting again from there")
        }
        RefreshOutcome::NothingNew | RefreshOutcome::Waiting => {}
        RefreshOutcome::Published | RefreshOutcome::Refused => {
            failpoint::reach("refresh:write-down");
            write_down(&history_path(root), &refreshed)?;
        }
    }
    Ok(refreshed)
}

/// Refreshes whenever `events` has new versions, until a stop is requested.
pub(crate) async fn follow(
    config: &Config,
    root: &Root,
    interrupt: &Interrupt,
    after_rollback: bool,
) -> Result<()> {
    let interval = Duration::from_millis(config.near_real_time.poll_interval.ms.unsigned_abs());
    let (mut failures, mut pause) = (0, interval);
    let mut seen = None;
    while !interrupt.requested() {
        match look(config, root, interrupt, after_rollback, &mut seen).await {
            Ok(()) => {
                (failures, pause) = (0, interval);
                failpoint::reach("refresh:looked");
            }
            Err(error) if error.is::<Stopped>() => break,
            Err(error) if error.chain().any(|cause| cause.is::<ConfigError>()) => return Err(error),
            Err(error) => {
                failures += 1;
                if failures == FAILURES {
                    return Err(
                        error.context(format!("{failures} refreshes have failed, one after the other"))
                    );
                }
                pause = (pause * 2).min(PAUSE.max(interval));
                eprintln!("warning: {}; again in {:.0} s", with_causes(error.as_ref()), pause.as_secs_f64());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = interrupt.wait() => {}
        }
    }
    Ok(())
}

/// Newest publication and version of `events`.
type Seen = (Option<u64>, Option<u64>);

/// Refreshes if the publication or the version of `events` differs from `seen`.
async fn look(
    config: &Config,
    root: &Root,
    interrupt: &Interrupt,
    after_rollback: bool,
    seen: &mut Option<Seen>,
) -> Result<()> {
    let newest = publication::newest(root)?;
    let number = newest.as_ref().map(|publication| publication.number);
    let events = root.snapshot(EVENTS).await?.map(|events| events.version());
    if *seen == Some((number, events)) {
        return Ok(());
    }
    if let Some(rollback) = brought_back(newest.as_ref()).filter(|_| !after_rollback) {
        if seen.is_none_or(|(before, _)| before != number) {
            eprintln!("{rollback}");
        }
        *seen = Some((number, events));
        return Ok(());
    }
    let refreshed = attempt(config, root, interrupt).await?;
    match refreshed.outcome {
        // Perhaps by a rollback, which the next look sees.
        RefreshOutcome::Overtaken => return Ok(()),
        RefreshOutcome::NothingNew | RefreshOutcome::Waiting => {}
        RefreshOutcome::Published | RefreshOutcome::Refused => eprintln!("{refreshed}"),
    }
    // Too few events, or a refused model, are not worth another look.
    let number = publication::newest(root)?.map(|publication| publication.number);
    *seen = Some((number, Some(refreshed.events_version)));
    Ok(())
}

fn write_down(path: &Path, refreshed: &Refreshed) -> Result<()> {
    let write = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        if std::fs::metadata(path).is_ok_and(|file| file.len() > HISTORY_BYTES) {
            std::fs::rename(path, path.with_extension("jsonl.old"))?;
        }
        let mut file = std::fs::File::options().append(true).create(true).open(path)?;
        // On a line of its own, after whatever a full disk left of the previous one.
        file.write_all(format!("\n{}\n", serde_json::to_string(refreshed)?).as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reports that the changes since the parent's events are no longer known; returns `nothing`.
fn waits_for_a_day(error: &(dyn std::error::Error + 'static), nothing: Refreshed) -> Refreshed {
    eprintln!(
        "{}\nthe next daily job trains from scratch; until then there is no refresh",
        with_causes(error)
    );
    nothing
}

/// One refresh of one publication.
struct Attempt<'a> {
    config: Config,
    root: &'a Root,
    interrupt: &'a Interrupt,
    parent: Publication,
    /// Last daily publication, for the versions of its tables.
    daily: Publication,
    started: Instant,
}

impl<'a> Attempt<'a> {
    fn begin(config: &Config, root: &'a Root, interrupt: &'a Interrupt) -> Result<Self> {
        let Some(parent) = publication::settle(root)? else {
            bail!("nothing is published yet: `climber daily` publishes the first model");
        };
        let Some(daily) = publication::at(root, parent.daily)? else {
            bail!(
                "publication {} descends from publication {}, which is not there",
                parent.number,
                parent.daily
            );
        };
        let mut config = config.clone();
        config.sft.epochs = config.sft.epochs.min(config.near_real_time.sft_epochs);
        config.sft.examples = match (config.sft.examples, config.near_real_time.sft_examples) {
            (of_all, 0) => of_all,
            (0, of_refresh) => of_refresh,
            (of_all, of_refresh) => of_all.min(of_refresh),
        };
        config.evaluate.baselines = false;
        if config.evaluate.sample == 0 {
            // The gate, like the refresh, costs time by the new events, not by the log.
            config.evaluate.sample = config.refresh.validation_targets;
        }
        Ok(Self { config, root, interrupt, parent, daily, started: Instant::now() })
    }

    async fn run(&self) -> Result<Refreshed> {
        let Self { config, root, parent, daily, .. } = self;
        let events = root.require(EVENTS, "pipeline consume").await?;
        let version = events.version();
        let mut refreshed = Refreshed::nothing(version);
        let since = parent.learned_events;
        if version <= since {
            return Ok(refreshed);
        }
        let appended = match events.appended_since(since).await {
            Err(error @ (TableError::Expired { .. } | TableError::Future { .. })) => {
                return Ok(waits_for_a_day(&error, refreshed));
            }
            appended => appended?,
        };
        let new: Vec<&Shard> =
            events.shards().iter().filter(|shard| appended.contains(&shard.path)).collect();
        refreshed.new_events = new.iter().filter_map(|shard| shard.rows).sum();
        // Shards merged or rewritten since hold further new events.
        if refreshed.new_events < config.near_real_time.min_events && new.len() == appended.len() {
            return Ok(refreshed);
        }

        failpoint::reach("refresh:build");
        let built = root.pinned([(EVENTS, version)]);
        let resources = Resources::within(config.memory.of_refresh());
        let build = || sequences::refresh(config, &built, since, resources);
        let built = match unless_stopped(self.interrupt, "build-sequences", again_on_conflict(build)).await? {
            Err(error) if cannot_tell_what_is_new(&error) => return Ok(waits_for_a_day(&error, refreshed)),
            built => built?,
        };
        let tables = self.tables(version, built.version, built.items_version);
        let seen = root.pinned(tables.iter().map(|(table, &version)| (table.as_str(), version)));
        let Some((base, served)) = self.train(&seen, version).await? else { return Ok(refreshed) };
        failpoint::reach("refresh:gate");
        let turn = gate::turn(root, self.interrupt).await?;
        // The daily job's model is compared too: many small losses add up.
        let mut others = vec![parent];
        others.extend((daily.number != parent.number).then_some(daily));
        let measured = gate::measure(config, &seen, &served, others, None).await?;
        drop(turn);
        let verdict = gate::judge(&config.gate, &measured, true);
        eprintln!("{verdict}");
        refreshed.model = Some(served.clone());
        refreshed.outcome = RefreshOutcome::Refused;
        if verdict.publish {
            failpoint::reach("refresh:publish");
            let candidate = Candidate {
                kind: Kind::Refresh,
                run: &base,
                base: &base,
                served: &served,
                full: (parent.full_training, parent.full_events),
                tables,
                measured: Some(&measured),
            };
            match publish::on(root, Some(parent), &candidate) {
                Ok(number) => {
                    refreshed.publication = Some(number);
                    refreshed.outcome = RefreshOutcome::Published;
                }
                Err(error) if publish::is_conflict(&error) => refreshed.outcome = RefreshOutcome::Overtaken,
                Err(error) => return Err(error),
            }
        }
        if refreshed.outcome != RefreshOutcome::Published {
            for model in [&served, &base] {
                own::discard(root, model)?;
            }
        }
        failpoint::reach("refresh:retention");
        retention::models(config, root)?;
        // The evaluation may have read a user of the last daily job's tables who was forgotten since.
        sweep_models(config, root).await?;
        refreshed.verdict = Some(verdict);
        refreshed.seconds = self.started.elapsed().as_secs_f64();
        Ok(refreshed)
    }

    /// Returns the versions of the tables that the new model is made from.
    fn tables(&self, events: u64, refresh: u64, items: u64) -> BTreeMap<String, u64> {
        let mut tables = self.daily.tables.clone();
        tables.extend([
            (EVENTS.to_owned(), events),
            (REFRESH.to_owned(), refresh),
            (ITEMS.to_owned(), items),
        ]);
        tables
    }

    /// Returns the new base and the model to be served; `None` if there is nothing new to learn.
    async fn train(&self, seen: &Root, version: u64) -> Result<Option<(String, String)>> {
        let Self { config, root, interrupt, parent, daily, .. } = self;
        // The name says what is learned: a stopped refresh resumes if nothing was committed since.
        let name = |again: u32| match again {
            1 => format!("{}-p{}-e{version}", daily.run, parent.number),
            n => format!("{}.{n}-p{}-e{version}", daily.run, parent.number),
        };
        let somebodys =
            |base: &String| [base.clone(), format!("{base}-sft")].iter().any(|m| own::is_somebodys(root, m));
        let base = (1..).map(name).find(|base| !somebodys(base)).unwrap_or_default();
        failpoint::reach("refresh:train");
        retention::unpublished_refreshes(root, &base)?;
        let outcome = anew_if_unusable(async |fresh| {
            let options =
                TrainOptions { name: &base, fresh, interrupt, stop_after: None, job: Some(own::REFRESH) };
            refresh::run(config, seen, &parent.base, options).await
        });
        let outcome = match outcome.await {
            Err(TrainError::NothingNew { .. }) => return Ok(None),
            outcome => outcome?,
        };
        eprintln!("{outcome}");
        let stopped = || Stopped { during: "training".into() };
        if outcome.status == Status::Interrupted {
            return Err(stopped().into());
        }
        // The daily job serves its base as it is only without instruction examples.
        if daily.served == daily.base {
            return Ok(Some((base.clone(), base)));
        }
        failpoint::reach("refresh:sft");
        let served = format!("{base}-sft");
        let outcome = anew_if_unusable(async |fresh| {
            let options =
                TrainOptions { name: &served, fresh, interrupt, stop_after: None, job: Some(own::REFRESH) };
            sft::again(config, seen, &base, &daily.served, options).await
        });
        let outcome = outcome.await?;
        eprintln!("{outcome}");
        if outcome.training.status == Status::Interrupted {
            return Err(stopped().into());
        }
        Ok(Some((base, served)))
    }
}

impl std::fmt::Display for Refreshed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { new_events, events_version, seconds, .. } = self;
        let model = self.model.as_deref().unwrap_or_default();
        let objections = self.verdict.as_ref().map(Verdict::objections).unwrap_or_default();
        match self.outcome {
            RefreshOutcome::Published => write!(
                f,
                "publication {}: `{model}`, {new_events} new events up to version {events_version}, in {seconds:.1} s",
                self.publication.unwrap_or_default()
            ),
            RefreshOutcome::Refused => {
                write!(f, "`{model}` is not published, what is served stays: {objections}")
            }
            RefreshOutcome::NothingNew => {
                write!(f, "{new_events} new events up to version {events_version}: nothing to learn")
            }
            RefreshOutcome::Overtaken => write!(f, "another job has published meanwhile"),
            RefreshOutcome::Waiting => write!(f, "what is served stays, until the next daily job"),
        }
    }
}
