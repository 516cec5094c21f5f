//! Plans a run's training: continue the published base, or train from scratch.

use anyhow::Result;
use chrono::{NaiveDate, Utc};
use schemas::config::Config;
use schemas::tables::EVENTS;
use store::Root;
use store::publication::Publication;
use terminal::with_causes;
use trainer::checkpoint;

use crate::publish::followed;
use crate::record::{DayPlan, Record, Training};

impl DayPlan {
    /// Plans the run of `record`, on `events` as `root` shows it.
    pub(crate) async fn new(config: &Config, root: &Root, record: &Record) -> Result<Self> {
        let date = record.date;
        let followed = followed(root, &record.name)?;
        let events = root.snapshot(EVENTS).await?.map_or(0, |events| events.rows());
        let full_for = |reason: String| Self {
            training: Training::Full,
            reason,
            follows: followed.as_ref().map(|publication| publication.number),
            full: (date, events),
        };
        let Some(publication) = &followed else {
            return Ok(full_for("nothing was published before that can be read".into()));
        };
        if record.full {
            return Ok(full_for("--full asks for it".into()));
        }
        if record.experiment {
            // A refresh may find nothing new to train on, and compared runs should differ in their settings alone.
            return Ok(full_for("it is an experiment (--name without --publish)".into()));
        }
        if let Some(reason) = reason_for_full(config, root, publication, date, events) {
            return Ok(full_for(reason));
        }
        let Publication { full_training, full_events, .. } = *publication;
        let days = (date - full_training).num_days();
        let growth = events as f64 / full_events.max(1) as f64;
        Ok(Self {
            training: Training::Refresh { from: publication.base.clone(), since: publication.learned_events },
            reason: format!(
                "the last full training was {days} days before, on a log that has grown by a factor of {growth:.2}"
            ),
            follows: Some(publication.number),
            full: (full_training, full_events),
        })
    }
}

fn reason_for_full(
    config: &Config,
    root: &Root,
    publication: &Publication,
    date: NaiveDate,
    events: u64,
) -> Option<String> {
    let Publication { base, base_hash, full_training, full_events, .. } = publication;
    let directory = root.model_path(base);
    // A base that is unreadable or was replaced cannot be continued.
    match checkpoint::hash(&directory) {
        Ok(hash) if hash != *base_hash => {
            return Some(format!(
                "the weights of the published base `{base}` are not those that were published"
            ));
        }
        Err(error) => {
            return Some(format!("the published base `{base}` cannot be read: {}", with_causes(&error)));
        }
        Ok(_) => {}
    }
    let (theirs, lineage) = match checkpoint::describe(&directory) {
        Ok(described) => described,
        Err(error) => {
            return Some(format!("the published base `{base}` cannot be read: {}", with_causes(&error)));
        }
    };
    if theirs.model != config.model {
        return Some(format!("`{base}` has another [model]"));
    }
    if theirs.pretrain != config.pretrain {
        return Some(format!("`{base}` was trained with another [pretrain]"));
    }
    if lineage.sequences.config_hash != config.sequences.hash() {
        return Some(format!("`{base}` was trained with another [sequences]"));
    }
    let today = Utc::now().date_naive();
    if *full_training > today {
        return Some(format!("the last full training was on {full_training}, which is still to come"));
    }
    let due = i64::from(config.daily.full_every_days);
    if (date - *full_training).num_days() >= due {
        return Some(format!(
            "the last full training was on {full_training} (daily.full_every_days = {due})"
        ));
    }
    let growth = config.daily.full_growth;
    (events as f64 >= growth * *full_events as f64).then(|| {
        format!("the last full training was made of {full_events} events, and there are {events} now (daily.full_growth = {growth})")
    })
}
