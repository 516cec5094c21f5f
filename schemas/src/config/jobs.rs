//! `[daily]`, `[near_real_time]`, `[gate]` and `[retention]`: how the jobs run, and which models may be published.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Span, invalid};

/// `[daily]`: the scheduled job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daily {
    /// Days between two trainings from scratch, with refreshes in between; 1 trains from scratch every day. Bounds the time for
    /// which new models still contain what people asked to forget.
    pub full_every_days: u32,
    /// Growth factor of the log since the last training from scratch that triggers another: a young model has seen too little for
    /// refreshes to make up for it. With a factor of 2, all earlier such trainings together cost about as much as the last one.
    pub full_growth: f64,
    /// Failed runs of a day after which `climber daily --to` skips it and continues with the next; 0 never skips. The exit code,
    /// the pages and `climber status` name a skipped day; `--date` still runs it. Set it higher than the number of tries that a
    /// scheduler makes per night.
    pub skip_after_tries: u32,
    /// Consecutive runs of a day killed in the same step after which the day is skipped; 0 never skips. Power cuts, restarts and
    /// `kill -9` say nothing about the day, so many are allowed; but a day that needs more memory than the machine has is killed
    /// each time and must not block all later days. A run that is asked to stop (SIGTERM) does not count.
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
    /// Interval at which the loop checks for new versions of `events`.
    pub poll_interval: Span,
    /// Fewest new events that start a refresh.
    pub min_events: u64,
    /// Passes over the last daily job's instruction examples after each refresh; at most `sft.epochs`.
    pub sft_epochs: usize,
    /// Approximate number of examples of these passes, drawn anew for each refresh as in `sft.examples`; 0 uses `sft.examples`.
    /// The condition parameters start from the last daily job's, so a sample suffices.
    pub sft_examples: usize,
}

impl Default for NearRealTime {
    fn default() -> Self {
        Self { poll_interval: Span { ms: 5_000 }, min_events: 1, sft_epochs: 1, sft_examples: 30_000 }
    }
}

/// `[gate]`: conditions under which a model may replace the published one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// K of the deciding hit rate: 10, 20 or 50; measured as served, with seen items filtered.
    pub k: usize,
    /// Largest share of the published model's hit rate that may be lost. A fall counts only if its 95 % interval lies below zero.
    pub max_fall: f64,
    /// Smallest coverage (number of different items in the guard users' lists), as a share of the published model's.
    pub min_coverage: f64,
    /// Largest shift of the distribution of best scores after a refresh: the Kolmogorov–Smirnov distance of the two cumulative
    /// distributions, in `[0, 1]`. Not applied after a full training, whose scores may have another scale.
    pub max_score_shift: f64,
    /// Bootstrap resamples over users.
    pub resamples: usize,
    /// Fewest guard targets with which a hit rate is measured.
    pub min_targets: usize,
    /// Number of newest daily publications whose best model a daily model is also compared with; reveals a slow decline that
    /// consecutive models do not show. 0 compares with the served model only.
    pub best_of: usize,
    /// Decision on a model whose hit rate was not measured: nothing is held out, there are fewer than `min_targets` targets, no
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

/// `gate.unmeasured`: decision on a model without a measured hit rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmeasured {
    /// Do not publish it.
    #[default]
    Refuse,
    /// Publish it if all other checks pass.
    Publish,
}

/// `[retention]`: what the daily job deletes. It keeps what the newest publications need, whatever its age, except rows of
/// forgotten users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Number of publications whose models are kept, for `climber rollback`.
    pub publications: usize,
    /// Time for which a replaced version of a table stays readable, and the longest that rows of forgotten users stay on disk.
    /// Shards appended to `events` since the oldest kept publication stay longer, unless a user was forgotten since.
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
