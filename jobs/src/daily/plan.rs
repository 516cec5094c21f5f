//! What a run trains: the published base goes on learning, or a model begins from nothing.

use anyhow::Result;
use chrono::NaiveDate;
use schemas::config::Config;
use schemas::delta::Root;
use schemas::publication::{self, Kind, Publication};
use serde::{Deserialize, Serialize};
use trainer::checkpoint;

/// Decided at the beginning of a run, and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) training: Training,
    /// Why.
    pub(crate) reason: String,
    /// The publication of a daily job that the run follows: its served model predicts what is new, and a refresh continues its
    /// base.
    pub(crate) follows: Option<u64>,
    /// The day of the last full training, this one included.
    pub(crate) full_training: NaiveDate,
}

/// How the base comes about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Training {
    /// From nothing, on all of `sequences`.
    Full,
    /// From a published base, on what is new.
    Refresh {
        /// The base.
        from: String,
        /// The version of `events` that it has learned up to.
        since: u64,
    },
}

impl Training {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Full => "full training",
            Self::Refresh { .. } => "refresh",
        }
    }
}

impl Plan {
    /// For the run called `run`.
    pub(crate) fn new(config: &Config, root: &Root, run: &str, date: NaiveDate, full: bool) -> Result<Self> {
        let followed = followed(root, run)?;
        let full_for = |reason: String| Self {
            training: Training::Full,
            reason,
            follows: followed.as_ref().map(|publication| publication.number),
            full_training: date,
        };
        let Some(publication) = &followed else { return Ok(full_for("nothing was published before".into())) };
        if full {
            return Ok(full_for("--full asks for it".into()));
        }
        if let Some(reason) = reason_for_full(config, root, publication, date) {
            return Ok(full_for(reason));
        }
        let days = (date - publication.full_training).num_days();
        Ok(Self {
            training: Training::Refresh { from: publication.base.clone(), since: publication.learned_events },
            reason: format!("the last full training was {days} days before"),
            follows: Some(publication.number),
            full_training: publication.full_training,
        })
    }
}

/// The newest publication of a daily job that is in force, but for those of `run` itself.
pub(super) fn followed(root: &Root, run: &str) -> Result<Option<Publication>> {
    let mut newest = publication::newest(root)?;
    while let Some(found) = newest {
        let daily =
            if found.daily == found.number { Some(found) } else { publication::at(root, found.daily)? };
        match daily {
            Some(own) if own.kind == Kind::Daily && own.run == run => {
                newest = own.parent.map_or(Ok(None), |parent| publication::at(root, parent))?;
            }
            daily => return Ok(daily),
        }
    }
    Ok(None)
}

fn reason_for_full(
    config: &Config,
    root: &Root,
    publication: &Publication,
    date: NaiveDate,
) -> Option<String> {
    let Publication { base, base_hash, full_training, .. } = publication;
    let directory = root.model_path(base);
    // A base that cannot be read, or is another one, is no place to go on from.
    match checkpoint::hash(&directory) {
        Ok(hash) if hash != *base_hash => {
            return Some(format!(
                "the weights of the published base `{base}` are not those that were published"
            ));
        }
        Err(error) => {
            return Some(format!("the published base `{base}` cannot be read: {}", chain(&error)));
        }
        Ok(_) => {}
    }
    let (theirs, lineage) = match checkpoint::describe(&directory) {
        Ok(described) => described,
        Err(error) => return Some(format!("the published base `{base}` cannot be read: {}", chain(&error))),
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
    let due = i64::from(config.daily.full_every_days);
    ((date - *full_training).num_days() >= due)
        .then(|| format!("the last full training was on {full_training} (daily.full_every_days = {due})"))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
