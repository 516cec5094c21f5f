//! The gate: measures a new model and the published ones, and judges whether the new one may be published.

use std::collections::BTreeMap;
use std::fmt;

use schemas::config::{Config, Gate, Unmeasured};
use schemas::tables::ITEMS;
use store::Root;
use store::lease::{LOOK, Lease, LeaseError};
use store::publication::{self, Publication};

use crate::stop::unless_stopped;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use terminal::{Interrupt, with_causes};
use trainer::checkpoint;
use trainer::compare::{self, Group};
use trainer::judge::{
    self, CC_10, EvaluateError, EvaluateReport, HR_10, Health, Protocol, TargetSplit, UnderConditions,
};

/// Metric → value, as served, seen items filtered: `hr@10`, `ndcg@10`, `cc@10 genre`.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Measurements of a candidate for publication.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The new model; `None` if there is none.
    pub(crate) model: Option<String>,
    /// Figures on the guard's targets (validation); empty if nothing is held out.
    pub(crate) guard: Figures,
    /// Number of guard targets.
    pub(crate) guard_targets: usize,
    /// Figures on the test targets, if the split holds any out.
    pub(crate) test: Figures,
    pub(crate) health: Health,
    /// Models that it is compared with, the served one first.
    pub(crate) published: Vec<PublishedMeasured>,
    /// Best model of the last publications, if it is another one.
    #[serde(default)]
    pub(crate) best: Option<PublishedMeasured>,
    /// Why the served model could not be measured.
    pub(crate) not_compared: Option<String>,
}

/// Measurements of a published model on the same targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PublishedMeasured {
    /// Number of its publication.
    pub(crate) number: u64,
    pub(crate) model: String,
    pub(crate) guard: Figures,
    pub(crate) health: Health,
    /// By metric, the new model's value minus this model's, with its 95 % interval (paired bootstrap over users).
    pub(crate) differences: BTreeMap<String, Difference>,
}

/// A difference and its 95 % interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The gate's decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// True if the new model may be served; false without a new model.
    pub(crate) publish: bool,
    pub(crate) checks: Vec<GateCheck>,
}

/// One check and its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GateCheck {
    pub(crate) name: String,
    pub(crate) passed: bool,
    /// Result in words, with the numbers.
    pub(crate) finding: String,
}

impl GateCheck {
    fn new(name: &str, passed: bool, finding: String) -> Self {
        Self { name: name.into(), passed, finding }
    }
}

impl Verdict {
    /// Returns the findings of the failed checks in one line.
    pub(crate) fn objections(&self) -> String {
        let failed = self.checks.iter().filter(|check| !check.passed);
        failed.map(|check| check.finding.as_str()).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for GateCheck { name, passed, finding } in &self.checks {
            writeln!(f, "  {} {name:<12} {finding}", if *passed { "passed" } else { "FAILED" })?;
        }
        write!(f, "{}", if self.publish { "may be published" } else { "is not published" })
    }
}

/// Takes the evaluation lease, waiting while another job holds it: results are stored beside the models, and both jobs may
/// measure the same one.
pub(crate) async fn turn(root: &Root, interrupt: &Interrupt) -> Result<Lease> {
    let path = root.path().join("jobs").join("evaluate.lock");
    loop {
        match Lease::take("another job", &path) {
            Err(LeaseError::Held { .. }) => {}
            taken => return Ok(taken?),
        }
        unless_stopped(interrupt, "waiting for another job", tokio::time::sleep(LOOK)).await?;
    }
}

/// Returns the publication with the highest hit rate among the last `gate.best_of` daily ones that `newest` descends from and
/// whose models still exist. The recorded rates only select it: both models are then measured on the same targets.
pub(crate) fn best(root: &Root, settings: &Gate, newest: &Publication) -> Option<Publication> {
    let metric = format!("hr@{}", settings.k);
    let rate = |publication: &Publication| publication.metrics.get(&metric).copied().unwrap_or(f64::MIN);
    let (dailies, problem) = publication::dailies(root, newest, settings.best_of);
    if let Some(problem) = problem {
        eprintln!("warning: no daily publication behind it is compared with: {}", with_causes(&problem));
    }
    let there = dailies.into_iter().filter(|p| checkpoint::find(&root.model_path(&p.served)).is_some());
    // Ties go to the newest, which comes first.
    there.reduce(|best, other| if rate(&other) > rate(&best) { other } else { best })
}

/// Measures `model`, the models of `others` (the served one first), and that of `best` unless it is one of them.
pub(crate) async fn measure(
    config: &Config,
    root: &Root,
    model: &str,
    others: Vec<&Publication>,
    best: Option<&Publication>,
) -> Result<Measured> {
    // A model published meanwhile may know newer items. Item indexes only grow, so the newest catalogue fits every model.
    let root = &root.unpinned(ITEMS);
    let mut measured = Measured {
        model: Some(model.into()),
        health: judge::health(config, root, model).await.context("the new model")?,
        ..Measured::default()
    };
    if measured.health.not_finite.is_some() {
        return Ok(measured);
    }
    let conditions = match &config.sft.conditions {
        conditions if model_follows(root, model)? => conditions.as_slice(),
        _ => &[],
    };
    let report =
        judge::run(config, root, model, TargetSplit::Validation, UnderConditions::attributes(conditions))
            .await?;
    (measured.guard, measured.guard_targets) = as_served(&report, model);
    let report = judge::run(config, root, model, TargetSplit::Test, UnderConditions::NONE).await?;
    if !report.results.is_empty() {
        eprint!("{report}");
    }
    measured.test = as_served(&report, model).0;
    if measured.guard.is_empty() {
        return Ok(measured);
    }
    if let Some(best) = best.filter(|best| !others.iter().any(|other| other.served_hash == best.served_hash))
    {
        match damage(root, best) {
            Some(problem) => eprintln!("warning: the best model of before cannot be asked: {problem}"),
            None => measured.best = Some(against(config, root, model, best).await?),
        }
    }
    for other in others {
        // A damaged served model must not keep a good one from replacing it. Any other problem fails this run.
        match damage(root, other) {
            Some(problem) => measured.not_compared = Some(problem),
            None => measured.published.push(against(config, root, model, other).await?),
        }
    }
    Ok(measured)
}

/// Returns why a publication's served model cannot be measured.
pub(crate) fn damage(root: &Root, publication: &Publication) -> Option<String> {
    let Publication { served, served_hash, .. } = publication;
    let directory = root.model_path(served);
    match checkpoint::hash(&directory) {
        Ok(hash) if hash != *served_hash => {
            Some(format!("the weights of `{served}` are not those that were published"))
        }
        Ok(_) => checkpoint::describe(&directory).err().map(|error| with_causes(&error)),
        Err(error) => Some(with_causes(&error)),
    }
}

fn model_follows(root: &Root, model: &str) -> Result<bool> {
    let (_, lineage) = checkpoint::describe(&root.model_path(model))?;
    Ok(!lineage.examples.is_empty())
}

async fn against(
    config: &Config,
    root: &Root,
    model: &str,
    Publication { number, served, .. }: &Publication,
) -> Result<PublishedMeasured> {
    // Baselines do not affect a difference.
    let mut quiet = config.clone();
    quiet.evaluate.baselines = false;
    let report = judge::run(&quiet, root, served, TargetSplit::Validation, UnderConditions::NONE).await?;
    let health = judge::health(config, root, served).await?;
    let groups = [served.as_str(), model].map(|name| Group { label: name.into(), runs: vec![name.into()] });
    let options = compare::Options {
        split: TargetSplit::Validation.name(),
        resamples: config.gate.resamples,
        seed: config.seed,
    };
    let comparison = compare::run(root, &groups, options)?;
    let ours = comparison
        .results
        .iter()
        .find(|result| result.label == model && result.protocol == Protocol::AsServed && result.filter_seen);
    let mut differences = BTreeMap::new();
    if let Some(found) = ours.and_then(|ours| ours.difference.as_ref()) {
        for (metric, interval) in found.iter() {
            let difference = Difference { value: interval.value, low: interval.low, high: interval.high };
            differences.insert(metric.name.to_owned(), difference);
        }
    }
    Ok(PublishedMeasured {
        number: *number,
        model: served.clone(),
        guard: as_served(&report, served).0,
        health,
        differences,
    })
}

/// Returns the figures of `model` as served, and the number of targets behind them.
pub(crate) fn as_served(report: &EvaluateReport, model: &str) -> (Figures, usize) {
    let mut metrics = Figures::new();
    let mut targets = 0;
    let ours = report.results.iter().filter(|m| m.model == model && m.protocol == Protocol::AsServed);
    for m in ours.filter(|m| m.filter_seen) {
        match &m.condition {
            None => {
                targets = m.targets;
                for (metric, mean) in m.means.iter() {
                    metrics.extend(mean.map(|mean| (metric.name.into(), mean)));
                }
            }
            Some(condition) if !m.condition_filter && m.condition_from.as_deref() == Some("target") => {
                for key in [HR_10, CC_10] {
                    let name = format!("{} {condition}", key.metric().name);
                    metrics.extend(m.means[key].map(|mean| (name, mean)));
                }
            }
            Some(_) => {}
        }
    }
    (metrics, targets)
}

/// Evaluates `model` on the new events of `refresh`, which it has not learned.
pub(crate) async fn prequential(
    config: &Config,
    root: &Root,
    model: &str,
) -> Result<(Figures, usize), EvaluateError> {
    let report = judge::run(config, root, model, TargetSplit::Prequential, UnderConditions::NONE).await?;
    Ok(as_served(&report, model))
}

/// Judges the measurements. `refreshed`: the model continues the served one, so that scores keep their scale.
pub(crate) fn judge(settings: &Gate, measured: &Measured, refreshed: bool) -> Verdict {
    let health = &measured.health;
    let mut checks = vec![match &health.not_finite {
        Some(tensor) => {
            GateCheck::new("finite", false, format!("`{tensor}` holds values that are not finite"))
        }
        None => GateCheck::new("finite", true, "all weights and scores are finite".into()),
    }];
    if health.not_finite.is_none() {
        checks.extend(quality(settings, measured));
        for published in &measured.published {
            checks.extend(health_against(settings, health, published, refreshed));
        }
    }
    Verdict { publish: checks.iter().all(|check| check.passed), checks }
}

/// Checks the hit rate against each published model, or by itself if nothing is served yet.
fn quality(settings: &Gate, measured: &Measured) -> Vec<GateCheck> {
    let unmeasured = |why: String| {
        let passed = settings.unmeasured == Unmeasured::Publish;
        let note = if passed { " (gate.unmeasured = \"publish\")" } else { "" };
        GateCheck::new("quality", passed, format!("not measured: {why}{note}"))
    };
    let (metric, targets) = (format!("hr@{}", settings.k), measured.guard_targets);
    let Some(ours) = measured.guard.get(&metric).copied().filter(|_| targets > 0) else {
        return vec![unmeasured("nothing is held out; sequences.guard_share holds users out".into())];
    };
    if targets < settings.min_targets {
        let least = settings.min_targets;
        return vec![unmeasured(format!(
            "the guard has {targets} targets, fewer than gate.min_targets = {least}; a larger sequences.guard_share has more"
        ))];
    }
    let mut checks: Vec<GateCheck> = measured
        .published
        .iter()
        .map(|published| against_published(settings, (&metric, ours), published, None, unmeasured))
        .collect();
    if checks.is_empty() {
        let why = match &measured.not_compared {
            Some(problem) => format!("the served model cannot be asked: {problem}"),
            None => "nothing is served yet".into(),
        };
        checks.push(match ours {
            0.0 => unmeasured(format!("none of the {targets} targets is hit; {why}")),
            _ => GateCheck::new("quality", true, format!("guard HR@{} {ours:.4}; {why}", settings.k)),
        });
    }
    if let Some(best) = &measured.best {
        checks.push(against_published(settings, (&metric, ours), best, Some(settings.best_of), unmeasured));
    }
    checks
}

/// Checks the hit rate against one model that is or was served; `best_of`: it is the best of this many publications.
fn against_published(
    settings: &Gate,
    (metric, ours): (&str, f64),
    published: &PublishedMeasured,
    best_of: Option<usize>,
    unmeasured: impl Fn(String) -> GateCheck,
) -> GateCheck {
    let model = &published.model;
    let theirs = published.guard.get(metric).copied().filter(|rate| rate.is_finite());
    let difference = published.differences.get(metric).copied();
    let difference = difference.filter(|d| [d.value, d.low, d.high].into_iter().all(f64::is_finite));
    let Some((theirs, Difference { value, low, high })) = theirs.zip(difference) else {
        return unmeasured(format!("the difference in {metric} to `{model}` is missing"));
    };
    if ours == 0.0 && theirs == 0.0 {
        return unmeasured(format!("neither the new model nor `{model}` hits any target"));
    }
    let allowed = settings.max_fall * theirs;
    let fell = value < -allowed && high < 0.0;
    let which = best_of.map_or(String::new(), |n| format!(", the best of the last {n} daily publications,"));
    let finding = format!(
        "guard HR@{} {ours:.4}, `{model}`{which} {theirs:.4}: {value:+.4} [{low:+.4}, {high:+.4}], allowed {:+.4}",
        settings.k, -allowed
    );
    GateCheck::new(if best_of.is_some() { "best" } else { "quality" }, !fell, finding)
}

/// Checks coverage and scores against one model that is or was served.
fn health_against(
    settings: &Gate,
    health: &Health,
    published: &PublishedMeasured,
    refreshed: bool,
) -> Vec<GateCheck> {
    let (now, before) = (health.coverage(), published.health.coverage());
    let coverage = format!(
        "{:.1} % of the items are in somebody's list, {:.1} % of `{}`",
        100.0 * now,
        100.0 * before,
        published.model
    );
    let mut checks = vec![GateCheck::new("coverage", now >= settings.min_coverage * before, coverage)];
    if let Some(shift) = health.score_shift(&published.health) {
        let note = if refreshed { "" } else { " (a full training: it decides nothing)" };
        let finding =
            format!("the best scores' distribution is {shift:.2} from that of `{}`{note}", published.model);
        checks.push(GateCheck::new("scores", !refreshed || shift <= settings.max_score_shift, finding));
    }
    checks
}

#[cfg(test)]
mod measuring;

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(difference: Difference, coverage: usize, score: f64) -> Measured {
        let metrics = |value: f64| Figures::from([("hr@10".to_owned(), value)]);
        let health = |listed_items, score: f64| Health {
            listed_items,
            active_items: 100,
            lists: 10,
            best_scores: (0..100).map(|i| f64::from(i) + score).collect(),
            not_finite: None,
        };
        Measured {
            model: Some("new".into()),
            guard: metrics(0.1 + difference.value),
            guard_targets: 1_000,
            health: health(coverage, score),
            published: vec![PublishedMeasured {
                number: 1,
                model: "old".into(),
                guard: metrics(0.1),
                health: health(80, 0.0),
                differences: BTreeMap::from([("hr@10".into(), difference)]),
            }],
            ..Measured::default()
        }
    }

    fn objections(measured: &Measured, refreshed: bool) -> Vec<String> {
        let verdict = judge(&Gate::default(), measured, refreshed);
        let failed = verdict.checks.iter().filter(|check| !check.passed);
        let failed: Vec<String> = failed.map(|check| check.name.clone()).collect();
        assert_eq!(verdict.publish, failed.is_empty());
        failed
    }

    #[test]
    fn a_fall_counts_where_it_is_large_and_not_by_chance() {
        let of = |value, low, high| measured(Difference { value, low, high }, 80, 0.0);
        assert!(objections(&of(0.01, -0.01, 0.03), true).is_empty());
        // Certain, but within the allowed 5 % of 0.1.
        assert!(objections(&of(-0.004, -0.005, -0.003), true).is_empty());
        // Large, but possibly by chance.
        assert!(objections(&of(-0.02, -0.05, 0.01), true).is_empty());
        assert_eq!(objections(&of(-0.02, -0.03, -0.01), true), ["quality"]);
    }

    #[test]
    fn few_items_moved_scores_and_wild_numbers_are_refused() {
        let same = Difference::default();
        assert_eq!(objections(&measured(same, 39, 0.0), true), ["coverage"]);
        assert_eq!(objections(&measured(same, 80, 60.0), true), ["scores"]);
        assert!(objections(&measured(same, 80, 60.0), false).is_empty());
        let mut wild = measured(same, 80, 0.0);
        wild.health.not_finite = Some("items.ids".into());
        assert_eq!(objections(&wild, true), ["finite"]);
    }

    #[test]
    fn without_anything_to_compare_with_it_says_so() {
        let mut first = measured(Difference::default(), 80, 0.0);
        first.published.clear();
        let verdict = judge(&Gate::default(), &first, false);
        assert!(verdict.publish && verdict.to_string().contains("nothing is served yet"), "{verdict}");
        // A first model without a hit is refused.
        first.guard.insert("hr@10".into(), 0.0);
        let verdict = judge(&Gate::default(), &first, false);
        assert!(!verdict.publish && verdict.to_string().contains("none of the 1000 targets"), "{verdict}");
        // A damaged served model does not block a good one.
        first.guard.insert("hr@10".into(), 0.1);
        first.not_compared = Some("it is damaged".into());
        assert!(judge(&Gate::default(), &first, false).publish);
    }

    #[test]
    fn the_gate_needs_targets() {
        let mut few = measured(Difference { value: 0.01, low: 0.0, high: 0.02 }, 80, 0.0);
        few.guard_targets = 199;
        let mut none = few.clone();
        none.guard.clear();
        let mut nothing_hit = measured(Difference { value: -0.1, low: -0.1, high: -0.1 }, 80, 0.0);
        nothing_hit.guard.insert("hr@10".into(), 0.0);
        nothing_hit.published[0].guard.insert("hr@10".into(), 0.0);
        for (measured, says) in [
            (few, "fewer than gate.min_targets = 200"),
            (none, "guard_share"),
            (nothing_hit, "hits any target"),
        ] {
            let verdict = judge(&Gate::default(), &measured, true);
            let text = verdict.to_string();
            assert!(!verdict.publish && text.contains("not measured") && text.contains(says), "{text}");
            let publish = Gate { unmeasured: Unmeasured::Publish, ..Gate::default() };
            let verdict = judge(&publish, &measured, true);
            assert!(verdict.publish && verdict.to_string().contains("not measured"), "{verdict}");
            // The other checks still apply.
            let mut narrow = measured.clone();
            narrow.health.listed_items = 1;
            assert!(!judge(&publish, &narrow, true).publish);
        }
    }

    #[test]
    fn a_missing_difference_refuses() {
        let mut missing = measured(Difference { value: 0.01, low: 0.0, high: 0.02 }, 80, 0.0);
        missing.published[0].differences.clear();
        assert_eq!(objections(&missing, true), ["quality"]);
        let not_a_number = measured(Difference { value: f64::NAN, low: f64::NAN, high: f64::NAN }, 80, 0.0);
        assert_eq!(objections(&not_a_number, true), ["quality"]);
    }

    #[test]
    fn thirty_small_falls_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        let settings = Gate::default();
        // Each day loses 4 % of the day before: less than allowed.
        let rate = |day: u64| 0.1 * 0.96f64.powi(day as i32);
        let compared = |day: u64, other: u64| {
            let value = rate(day) - rate(other);
            let difference = Difference { value, low: value - 0.001, high: value + 0.001 };
            let mut all = measured(difference, 80, 0.0);
            all.guard.insert("hr@10".into(), rate(day));
            all.published[0].guard.insert("hr@10".into(), rate(other));
            all
        };
        let mut refused = None;
        for day in 1..=30 {
            let newest = publication::newest(&root).unwrap();
            let mut now = compared(day, day.saturating_sub(1));
            if let Some(newest) = &newest {
                let best = best(&root, &settings, newest).unwrap();
                if best.number != newest.number {
                    now.best = Some(compared(day, best.number).published.remove(0));
                }
            } else {
                now.published.clear();
            }
            let verdict = judge(&settings, &now, true);
            if !verdict.publish {
                assert!(verdict.to_string().contains("the best of the last 30"), "{verdict}");
                refused = Some(day);
                break;
            }
            let name = format!("day-{day}");
            std::fs::create_dir_all(root.model_path(&name)).unwrap();
            let text = serde_json::json!({
                "number": day, "parent": newest.map(|p| p.number), "kind": "daily", "run": name,
                "published_at": "2026-01-01T00:00:00Z", "base": name, "base_hash": name, "served": name,
                "served_hash": name, "daily": day, "learned_events": day, "full_training": "2026-01-01",
                "full_events": 1, "tables": {}, "metrics": {"hr@10": rate(day)},
            });
            publication::publish(&root, &serde_json::from_value(text).unwrap()).unwrap();
        }
        assert_eq!(refused, Some(3));
    }
}
