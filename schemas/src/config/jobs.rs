//! `[daily]`, `[near_real_time]`, `[gate]` and `[retention]`: how the jobs run, and what may be published.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Span, invalid};

/// `[daily]`: the scheduled job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daily {
    /// Days after which a model is trained from scratch again, instead of a refresh; 1 trains so every day. What people asked to
    /// forget is out of the models by then.
    pub full_every_days: u32,
    /// A model is also trained from scratch when the log has grown by this factor since the last time: a young model has seen too
    /// little for refreshes to make up for. Together such trainings cost about as much as the last one of them.
    pub full_growth: f64,
    /// Runs of a day that fail before `climber daily --to` leaves the day out and goes on with the next; 0 never does. A day that
    /// was left out is named by the exit code, on the pages and by `climber status`; `--date` runs it after all. Schedules that
    /// try several times a night need a larger number than they try.
    pub skip_after_tries: u32,
    /// Runs of a day that are killed in the same step, one after the other, before the day is left out; 0 never does. Power cuts,
    /// restarts and `kill -9` say nothing about the day, so there may be many of them; but a day that needs more memory than the
    /// machine has is killed each time, and must not keep all later days waiting. A run that is asked to stop (SIGTERM) counts
    /// nowhere.
    pub skip_after_kills: u32,
}

impl Default for Daily {
    fn default() -> Self {
        Self { full_every_days: 30, full_growth: 2.0, skip_after_tries: 5, skip_after_kills: 20 }
    }
}

/// `[near_real_time]`: `climber refresh`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NearRealTime {
    /// How often the loop looks for new versions of `events`.
    pub poll_interval: Span,
    /// New events that are worth a refresh.
    pub min_events: u64,
    /// Passes over the last daily job's instruction examples after each refresh, at most `sft.epochs`.
    pub sft_epochs: usize,
    /// Examples of these passes, about, drawn anew for each refresh as `sft.examples` says; 0 learns as many as `sft.examples` says. The
    /// conditions begin with the last daily job's parameters, so some are enough.
    pub sft_examples: usize,
}

impl Default for NearRealTime {
    fn default() -> Self {
        Self { poll_interval: Span { ms: 5_000 }, min_events: 1, sft_epochs: 1, sft_examples: 30_000 }
    }
}

/// `[gate]`: what a model must fulfil to be published in place of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// K of the hit rate that decides: 10, 20 or 50. It is taken as served, seen items filtered.
    pub k: usize,
    /// The share of the published model's hit rate that may be lost. A fall counts where its 95 % interval lies below zero.
    pub max_fall: f64,
    /// The smallest coverage, as a share of the published model's: how many different items the guard's lists hold.
    pub min_coverage: f64,
    /// How far the distribution of the best scores may move after a refresh: the largest difference of the two cumulative
    /// distributions (Kolmogorov–Smirnov), from 0 to 1. A full training may give another scale, so there it decides nothing.
    pub max_score_shift: f64,
    /// Resamples of the bootstrap over users.
    pub resamples: usize,
    /// Guard targets that a hit rate must be the mean of; with fewer it is not measured.
    pub min_targets: usize,
    /// Publications of daily jobs, the newest ones, whose best model a daily model is compared with as well: a slow fall is seen
    /// that no two models in a row show. 0 compares with what is served alone.
    pub best_of: usize,
    /// What happens to a model whose hit rate was not measured: nothing is held out, there are fewer than `min_targets` targets, no
    /// target is hit, or a difference is missing.
    pub unmeasured: Unmeasured,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            k: 10,
            max_fall: 0.05,
            min_coverage: 0.5,
            max_score_shift: 0.5,
            resamples: 2_000,
            min_targets: 200,
            best_of: 30,
            unmeasured: Unmeasured::Refuse,
        }
    }
}

/// `gate.unmeasured`: what happens to a model of which nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmeasured {
    /// It is not published.
    #[default]
    Refuse,
    /// It is published, if nothing else speaks against it.
    Publish,
}

/// `[retention]`: what the daily job deletes. Never what the newest publications need, whatever their age, but for rows of people
/// who were forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Publications whose models are kept, so that `climber rollback` can bring them back.
    pub publications: usize,
    /// How long a table's version stays readable after it was replaced, and at most how long rows of people who were forgotten stay
    /// on the disk. Of `events`, what was appended since the oldest kept publication stays longer, unless a user was forgotten since.
    pub tables: Span,
}

impl Default for Retention {
    fn default() -> Self {
        Self { publications: 7, tables: Span::minutes(7 * 24 * 60) }
    }
}

impl Daily {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.full_every_days == 0 {
            return invalid(
                "daily.full_every_days",
                "must be at least 1, which trains from scratch every day",
            );
        }
        if !(self.full_growth > 1.0 && self.full_growth.is_finite()) {
            return invalid(
                "daily.full_growth",
                "must be a number above 1: the factor by which the log grows between two full trainings",
            );
        }
        Ok(())
    }
}

impl NearRealTime {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.poll_interval.ms == 0 {
            return invalid("near_real_time.poll_interval", "must not be 0");
        }
        if self.min_events == 0 {
            return invalid("near_real_time.min_events", "must be at least 1");
        }
        if self.sft_epochs == 0 {
            return invalid(
                "near_real_time.sft_epochs",
                "must be at least 1, or instructions would be forgotten",
            );
        }
        Ok(())
    }
}

impl Gate {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if ![10, 20, 50].contains(&self.k) {
            return invalid("gate.k", "must be 10, 20 or 50");
        }
        for (key, value) in [
            ("max_fall", self.max_fall),
            ("min_coverage", self.min_coverage),
            ("max_score_shift", self.max_score_shift),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return invalid(format!("gate.{key}"), "must be from 0 to 1");
            }
        }
        if self.resamples < 100 {
            return invalid("gate.resamples", "must be at least 100, or the interval says nothing");
        }
        if self.min_targets == 0 {
            return invalid("gate.min_targets", "must be at least 1: no target measures nothing");
        }
        Ok(())
    }
}

impl Retention {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.publications < 2 {
            return invalid(
                "retention.publications",
                "must be at least 2, or there is nothing to roll back to",
            );
        }
        if self.tables.ms < Span::minutes(60).ms {
            return invalid(
                "retention.tables",
                "must be at least 1h: writers and readers that run now need their files",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_never_or_always_train_or_publish_is_refused() {
        for full_growth in [1.0, 0.5, 0.0, -2.0, f64::NAN, f64::INFINITY] {
            let error = Daily { full_growth, ..Daily::default() }.validate().unwrap_err();
            assert!(error.to_string().starts_with("daily.full_growth"), "{error}");
        }
        assert!(Daily { full_growth: 1.5, ..Daily::default() }.validate().is_ok());
        let error = Gate { min_targets: 0, ..Gate::default() }.validate().unwrap_err();
        assert!(error.to_string().starts_with("gate.min_targets"), "{error}");
    }
}
