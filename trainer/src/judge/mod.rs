//! Evaluation (§4.1): full ranking of targets over the whole catalogue, under two protocols, with and without the items a
//! user has seen. Targets are held-out events, or events that are new to the model.
//!
//! Evaluation reads and scores through [`Recommender`], exactly as serving does. Memory: table `sequences` (or a sample of it),
//! the catalogue, one answer and one row of results per target.
//!
//! | file | content |
//! |---|---|
//! | `targets.rs` | the targets, and the history that each protocol shows before them: the time-aware mask of evaluation |
//! | `metrics.rs`, `per_metric.rs` | HR@K (Eq. 7), NDCG@K and CC@K (Eq. 8): the gain of a rank; one value per metric |
//! | `protocol.rs`, `results.rs` | the two protocols; a line of results and its means |
//! | `condition.rs`, `instructions.rs` | metrics under the target's condition, and under the user's own instructions; diversity (Table 5) |
//! | `horizon.rs` | the horizon curve (Figure 3) |
//! | `prequential.rs` | new events as targets, for a model that has not learned them |
//! | `health.rs` | finite weights, coverage and scores, for the gate |
//! | `report.rs` | the report, as JSON and as tables |
//! | `stored/` | the rank of every target, stored with the model |

mod condition;
mod health;
mod horizon;
mod instructions;
mod metrics;
pub(crate) mod per_metric;
mod prequential;
mod protocol;
mod report;
mod results;
pub mod stored;
mod targets;
#[cfg(test)]
mod tests;

use schemas::config::{Config, ConfigError, Evaluate};
use schemas::history::Role;
use store::Root;
use store::boxed::Boxed;

pub use condition::{AskedConditions, ConditionMetrics};
pub use health::{Health, health};
pub use horizon::{HORIZON, HorizonMetrics};
pub use instructions::Diversity;
pub use metrics::{ALL, CC_10, HR_10, Key, METRICS, Metric, NDCG_10, OF_RANKS};
pub use per_metric::PerMetric;
pub use protocol::Protocol;
pub use report::EvaluateReport;
pub(crate) use report::change;
pub use results::Metrics;
pub(crate) use results::{gains, rate};
pub use stored::{StoredError, TargetRank};
pub use targets::{Target, TargetSplit, targets};

use crate::checkpoint::{self, CheckpointError};
use crate::data::conditions::{Carriers, KnownConditions, UnknownCondition};
use crate::data::{Catalogue, ConditionRow, DataError, SequencesTable};
use crate::device::{self, DeviceError};
use crate::kinds::TrainedModel;
use crate::random;
use crate::serve::{
    Answers, CoOccurrence, Followers, NotFinite, Popular, PopularityOrder, RankQuery, Ranks, Read, Reading,
    RecommendError, Recommender, Serving,
};
use targets::targets_at;

/// Conditions of an evaluation, besides the evaluation without conditions.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnderConditions<'a> {
    /// Attributes of the catalogue and derived conditions; each target is evaluated under its own values of them.
    pub attributes: &'a [String],
    /// Whether to evaluate under each user's own instructions too.
    pub by_instructions: bool,
}

impl<'a> UnderConditions<'a> {
    /// No conditions.
    pub const NONE: Self = Self { attributes: &[], by_instructions: false };

    /// Returns an evaluation under `attributes`, without instructions.
    pub const fn attributes(attributes: &'a [String]) -> Self {
        Self { attributes, by_instructions: false }
    }
}

/// Evaluates `models/<name>` and, if configured, the baselines on the targets of `split`, under both protocols; also the model
/// under the conditions in `asked`. Stores the results with the model ([`stored`]); a split without targets gives an empty
/// report.
///
/// [`TargetSplit::Prequential`] has no baselines, because they would count events of the evaluated table itself.
///
/// # Errors
///
/// The model or a table cannot be loaded, a condition is unknown, the model has learned the new events, a score is not finite, or
/// the results cannot be stored.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    name: &'a str,
    split: TargetSplit,
    asked: UnderConditions<'a>,
) -> Boxed<'a, Result<EvaluateReport, EvaluateError>> {
    Box::pin(evaluate(config, root, name, split, asked))
}

async fn evaluate(
    config: &Config,
    root: &Root,
    name: &str,
    split: TargetSplit,
    UnderConditions { attributes: conditions, by_instructions }: UnderConditions<'_>,
) -> Result<EvaluateReport, EvaluateError> {
    for name in conditions {
        config.check_condition("--condition", name).map_err(EvaluateError::Usage)?;
    }
    let backend = device::open(config)?;
    let directory = root.model_path(name);
    let mut attributes = checkpoint::attributes(&directory)?;
    let derived = &config.conditions.derived;
    let asked = conditions.iter().filter(|name| !derived.contains_key(*name) && !attributes.contains(name));
    attributes.extend(asked.cloned().collect::<Vec<_>>());
    let catalogue = Catalogue::load(root, &attributes).await?;
    let checkpoint = checkpoint::load(&directory, &catalogue, &backend)?;
    // A model without conditions can still be filtered by them.
    let (known, derived) = match checkpoint.model.paradigm() {
        Some(_) => {
            (checkpoint.model.vocabulary().conditions().clone(), &checkpoint.config.conditions.derived)
        }
        None => (KnownConditions::new(conditions, derived, &catalogue), derived),
    };
    for name in conditions {
        known.rows(name).map_err(|e| unknown(&e))?;
    }
    let carriers = Carriers::new(&known, derived, &catalogue);
    let role = if split == TargetSplit::Test { Role::Test } else { Role::Validation };
    let sequences = match split {
        // New events may be in any row.
        TargetSplit::Prequential => SequencesTable::load(root, catalogue.items()).await?,
        TargetSplit::Validation | TargetSplit::Test => {
            asked_rows(config, root, catalogue.items(), role).await?
        }
    };
    let mut evaluation = Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, role);
    if split == TargetSplit::Prequential {
        let (fresh, source) = SequencesTable::load_fresh(root, catalogue.items()).await?;
        let new = prequential::new_positions(&sequences, &fresh, &source, name, &checkpoint.lineage)?;
        evaluation.split = split.name();
        evaluation.targets = targets_at(&sequences, |position| new[position]);
    }
    let mut report = EvaluateReport {
        source: sequences.source.clone(),
        trained_on: None,
        learned_events: None,
        tied: tied_share(&sequences),
        hides_nothing: false,
        results: Vec::new(),
        horizon: Vec::new(),
        by_condition: Vec::new(),
        diversity: Vec::new(),
    };
    if split != TargetSplit::Prequential && checkpoint.lineage.sequences != sequences.source {
        report.trained_on = Some(checkpoint.lineage.sequences.clone());
    }
    if split != TargetSplit::Prequential
        && !config.sequences.holds_out_for_ever(&sequences.source.config_hash)
        && let Some(learned) = checkpoint.lineage.learned_events()
    {
        let is_newer = sequences.source.events_version.parse().is_ok_and(|asked: u64| asked < learned);
        report.learned_events = is_newer.then_some(learned);
    }
    if evaluation.is_empty() {
        return Ok(report);
    }
    let model = checkpoint.model.recommender(evaluation.serving(Some(&carriers)))?;
    let mut ranks = evaluation.rows();
    // If nothing is hidden, both protocols give the same numbers.
    let protocols = if evaluation.hides_nothing() { &[Protocol::Standard][..] } else { &Protocol::ALL };
    for (i, &protocol) in protocols.iter().enumerate() {
        let found = evaluation.ranks(&*model, protocol)?;
        report.results.extend(evaluation.metrics(name, protocol, &found));
        let asked = evaluation.targets.iter().zip(&mut ranks);
        for ((_, row), ranks) in asked.filter(|(target, _)| target.takes_part(protocol)).zip(found) {
            row.ranks[i] = Some(ranks);
        }
    }
    let (curves, mut horizon) = evaluation.horizon(name, &*model, protocols)?;
    report.horizon = curves;
    if config.evaluate.baselines && config.evaluate.sample == 0 && split != TargetSplit::Prequential {
        report.results.extend(evaluation.baselines(protocols)?);
    }
    let stored = checkpoint::find(&directory).unwrap_or(directory);
    if !conditions.is_empty() {
        let instructed = AskedConditions { conditions: &known, carriers: &carriers };
        for attribute in conditions {
            let rows = evaluation.under(attribute, name, &*model, instructed, protocols, &mut report)?;
            let path = stored::instructed::instructed_path(&stored, evaluation.split, attribute);
            stored::instructed::write_instructed(&path, &rows)?;
        }
        if by_instructions {
            let (settings, min_pool) = (&config.instructions, config.conditions.min_pool);
            for &protocol in protocols {
                let (metrics, diversity) =
                    evaluation.under_instructions(name, &*model, instructed, settings, min_pool, protocol)?;
                report.results.extend(metrics);
                report.diversity.extend(diversity);
            }
        }
    }
    if protocols.len() < Protocol::ALL.len() {
        let as_served = |m: &Metrics| Metrics { protocol: Protocol::AsServed, ..m.clone() };
        report.results.extend(report.results.iter().map(as_served).collect::<Vec<_>>());
        let as_served = |c: &HorizonMetrics| HorizonMetrics { protocol: Protocol::AsServed, ..c.clone() };
        report.horizon.extend(report.horizon.iter().map(as_served).collect::<Vec<_>>());
        let as_served = |c: &ConditionMetrics| ConditionMetrics { protocol: Protocol::AsServed, ..c.clone() };
        report.by_condition.extend(report.by_condition.iter().map(as_served).collect::<Vec<_>>());
        let as_served = |d: &Diversity| Diversity { protocol: Protocol::AsServed, ..d.clone() };
        report.diversity.extend(report.diversity.iter().map(as_served).collect::<Vec<_>>());
        let rows = ranks.iter_mut().chain(&mut horizon);
        rows.for_each(|row| row.ranks = [row.ranks[0]; Protocol::ALL.len()]);
        report.hides_nothing = true;
    }
    stored::store(&stored, evaluation.split, &report, &ranks, &horizon)?;
    Ok(report)
}

/// Returns the share of events at the same time as another event of their user; the tie policy orders these.
fn tied_share(sequences: &SequencesTable) -> Option<f64> {
    let (mut events, mut tied) = (0usize, 0usize);
    let mut of_user: Vec<i64> = Vec::new();
    for row in 0..sequences.rows() {
        of_user.extend_from_slice(&sequences.ts[sequences.owned(row)]);
        if sequences.user.get(row + 1) != Some(&sequences.user[row]) {
            events += of_user.len();
            tied += of_user.chunk_by(|a, b| a == b).map(<[_]>::len).filter(|&n| n > 1).sum::<usize>();
            of_user.clear();
        }
    }
    results::mean(tied as f64, events as f64)
}

/// Reads the rows of `sequences` to evaluate on: all, or those of enough users for `evaluate.sample` targets of `role`, the same
/// for every model.
///
/// # Errors
///
/// The table cannot be read.
pub(crate) async fn asked_rows(
    config: &Config,
    root: &Root,
    items: usize,
    role: Role,
) -> Result<SequencesTable, DataError> {
    let wanted = config.evaluate.sample;
    if wanted == 0 {
        return SequencesTable::load(root, items).await;
    }
    let mut lot = random::generator(config.seed, "asked", 0);
    let (mut rows, mut targets) = (0, 0);
    let enough = |read: &SequencesTable, draws: usize| {
        let new = (rows..read.rows()).flat_map(|row| read.owned(row));
        targets += new.filter(|&position| read.roles[position] == role).count();
        rows = read.rows();
        targets >= wanted || draws >= DRAWS_MAX
    };
    let read = SequencesTable::sample(root, items, &mut lot, enough).await?;
    let found = (0..read.rows()).flat_map(|row| read.owned(row)).filter(|&p| read.roles[p] == role).count();
    if found < wanted {
        eprintln!("{found} of {wanted} targets were found (evaluate.sample)");
    }
    Ok(read)
}

/// Maximum draws of users: about half a million rows. A table that still gives too few targets holds out too little.
pub(crate) const DRAWS_MAX: usize = 1_024;

/// An error that ends an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A table cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The checkpoint cannot be loaded.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Tables `refresh` and `sequences` come from different builds.
    #[error(
        "table `refresh` was built from version {refresh} of `events`, and `sequences` from version {sequences} or otherwise: \
         run `pipeline build-sequences` and then `pipeline build-sequences --since {since}`"
    )]
    OtherBuild {
        /// Version of `events` that `refresh` was built from.
        refresh: String,
        /// Version of `events` that `sequences` was built from.
        sequences: String,
        /// Version of `events` after which an event is new.
        since: String,
    },
    /// The model may have learned the new events.
    #[error(
        "`{name}` was trained on version {trained} of `events`, and what is new in `refresh` came after version {since}: it may \
         have learned some of it; ask a model that was there before"
    )]
    Learned {
        /// Name of the model.
        name: String,
        /// Version of `events` that it was trained on.
        trained: String,
        /// Version of `events` after which an event is new.
        since: String,
    },
    /// The model does not know a requested condition.
    #[error("{0}")]
    Usage(#[source] ConfigError),
    /// The results cannot be stored.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// A score is not finite: the model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<RecommendError> for EvaluateError {
    fn from(error: RecommendError) -> Self {
        match error {
            RecommendError::NotFinite(error) => Self::NotFinite(error),
            RecommendError::Tensor(error) => Self::Tensor(error),
            error @ RecommendError::NoVectors { .. } => Self::Tensor(candle_core::Error::wrap(error)),
        }
    }
}

/// Converts an unknown condition into a usage error.
fn unknown(error: &UnknownCondition) -> EvaluateError {
    EvaluateError::Usage(ConfigError::Invalid { key: "--condition".into(), problem: error.to_string() })
}

/// The targets of one split.
#[derive(Debug)]
pub struct Evaluation<'a> {
    sequences: &'a SequencesTable,
    catalogue: &'a Catalogue,
    config: &'a Evaluate,
    seed: u64,
    split: &'static str,
    targets: Vec<Target>,
}

impl<'a> Evaluation<'a> {
    /// Builds the evaluation on the targets of `role`, validation or test.
    pub fn new(
        sequences: &'a SequencesTable,
        catalogue: &'a Catalogue,
        config: &'a Evaluate,
        seed: u64,
        role: Role,
    ) -> Self {
        let split = if role == Role::Test { TargetSplit::Test } else { TargetSplit::Validation }.name();
        Self { sequences, catalogue, config, seed, split, targets: targets(sequences, role) }
    }

    /// Returns the number of targets.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// True if there are no targets.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// True if both protocols show the same events before every target.
    fn hides_nothing(&self) -> bool {
        self.targets.iter().all(|t| t.context(Protocol::Standard) == t.context(Protocol::AsServed))
    }

    /// Returns the serving settings for these targets; `carriers` for evaluation under conditions.
    fn serving<'b>(&self, carriers: Option<&'b Carriers>) -> Serving<'b> {
        let (items, batch) = (self.catalogue.items(), self.config.batch_size);
        Serving { items, carriers, seed: self.seed, batch, graph: None }
    }

    /// Returns the metrics of `model` under each of `protocols`, labelled `name`.
    ///
    /// # Errors
    ///
    /// A score is not finite, or a tensor operation fails.
    pub fn model(
        &self,
        name: &str,
        model: &dyn TrainedModel,
        protocols: &[Protocol],
    ) -> Result<Vec<Metrics>, EvaluateError> {
        let recommender = model.recommender(self.serving(None))?;
        let mut results = Vec::new();
        for &protocol in protocols {
            results.extend(self.metrics(name, protocol, &self.ranks(&*recommender, protocol)?));
        }
        Ok(results)
    }

    /// Returns the ranks of the targets that take part under `protocol`, in order.
    fn ranks(&self, model: &dyn Recommender, protocol: Protocol) -> Result<Vec<Ranks>, EvaluateError> {
        let asked = self.asked(protocol);
        let answers = self.read(model, asked.iter().map(|&(target, context)| (target, context, None)))?;
        let query = |(answer, (target, _)): (usize, &(&Target, usize))| RankQuery {
            item: target.item,
            seen: target.seen(self.sequences, protocol),
            answer,
        };
        let queries: Vec<RankQuery> = asked.iter().enumerate().map(query).collect();
        Ok(answers.ranks(&queries, &self.catalogue.active)?)
    }

    /// Returns the answers of `model` for `asked`: target, context length and condition. Targets of one row must be consecutive.
    /// Their contexts need not ascend: a request id that appears again hides what came after its first appearance.
    fn read<'m, 't>(
        &self,
        model: &'m dyn Recommender,
        asked: impl Iterator<Item = (&'t Target, usize, Option<ConditionRow>)>,
    ) -> Result<Box<dyn Answers + 'm>, EvaluateError> {
        let (mut rows, mut reads) = (Vec::new(), Vec::new());
        for (target, length, condition) in asked {
            rows.push(target.row);
            reads.push(Read { length, condition });
        }
        let mut readings = Vec::new();
        let mut left = &reads[..];
        for same in rows.chunk_by(|a, b| a == b) {
            let reads;
            (reads, left) = left.split_at(same.len());
            let shown = self.sequences.row(same[0]);
            readings.push(Reading {
                items: &self.sequences.items[shown.clone()],
                ts: &self.sequences.ts[shown.clone()],
                visible: &self.sequences.visible[shown],
                reads,
            });
        }
        Ok(model.read(&readings)?)
    }

    /// Returns the horizon curves (Figure 3) and their ranks; empty if the split does not hold out each user's last [`HORIZON`]
    /// events.
    fn horizon(
        &self,
        name: &str,
        model: &dyn Recommender,
        protocols: &[Protocol],
    ) -> Result<(Vec<HorizonMetrics>, Vec<TargetRank>), EvaluateError> {
        let groups = horizon::groups(self.sequences, &self.targets);
        let (mut curves, mut rows) = (Vec::new(), Vec::new());
        if groups.is_empty() {
            return Ok((curves, rows));
        }
        rows = self.rows();
        for (row, h) in rows.iter_mut().zip((1..=HORIZON as u8).cycle()) {
            row.horizon = h;
        }
        for (i, &protocol) in protocols.iter().enumerate() {
            let takes_part = |group: &[Target]| group[0].takes_part(protocol);
            let asked: Vec<&[Target]> = groups.iter().copied().filter(|g| takes_part(g)).collect();
            let anchors = asked.iter().filter_map(|g| Some((&g[0], g[0].context(protocol)?, None)));
            let answers = self.read(model, anchors)?;
            let queries: Vec<RankQuery> = asked
                .iter()
                .enumerate()
                .flat_map(|(answer, group)| {
                    let seen = group[0].seen(self.sequences, protocol);
                    group.iter().map(move |target| RankQuery {
                        item: target.item,
                        seen: seen.clone(),
                        answer,
                    })
                })
                .collect();
            let ranks = answers.ranks(&queries, &self.catalogue.active)?;
            curves.extend([true, false].map(|filter_seen| HorizonMetrics {
                model: name.into(),
                split: self.split.into(),
                protocol,
                filter_seen,
                users: asked.len(),
                hr_10: horizon::hit_rates(&ranks, filter_seen),
            }));
            let rows = rows.chunks_exact_mut(HORIZON).zip(&groups).filter(|(_, g)| takes_part(g));
            for (row, ranks) in rows.flat_map(|(rows, _)| rows).zip(ranks) {
                row.ranks[i] = Some(ranks);
            }
        }
        Ok((curves, rows))
    }

    /// Returns one row per target to store, without ranks.
    fn rows(&self) -> Vec<TargetRank> {
        self.targets.iter().map(|target| self.row(target)).collect()
    }

    fn row(&self, target: &Target) -> TargetRank {
        let sequences = self.sequences;
        let position = sequences.row(target.row).start + target.t;
        TargetRank {
            user_id: sequences.users[sequences.user[target.row] as usize].clone(),
            position: sequences.places[position],
            ts: sequences.ts[position],
            item_id: self.catalogue.item_ids[target.item.index()].clone(),
            horizon: 1,
            ranks: [None; Protocol::ALL.len()],
        }
    }

    /// Returns the metrics of the baselines, which count the training events of the same rows.
    ///
    /// # Errors
    ///
    /// A tensor operation fails.
    pub fn baselines(&self, protocols: &[Protocol]) -> Result<Vec<Metrics>, EvaluateError> {
        let counts = self.sequences.training_counts(self.catalogue.items());
        let popular = Popular { popularity: PopularityOrder::new(&counts), seed: self.seed };
        let followers = Followers::of_training(self.sequences);
        let co_occurrence = CoOccurrence::new(followers, &counts, self.seed);
        let baselines: [(&str, &dyn Recommender); 2] =
            [("popularity", &popular), ("co-occurrence", &co_occurrence)];
        let mut results = Vec::new();
        for &protocol in protocols {
            for (name, baseline) in baselines {
                results.extend(self.metrics(name, protocol, &self.ranks(baseline, protocol)?));
            }
        }
        Ok(results)
    }

    /// Returns the targets that take part under `protocol`, each with its context length (above 0).
    fn asked(&self, protocol: Protocol) -> Vec<(&Target, usize)> {
        self.targets
            .iter()
            .filter_map(|target| target.context(protocol).filter(|&c| c > 0).map(|c| (target, c)))
            .collect()
    }

    /// Returns the means over `ranks`, the ranks of all targets that take part under `protocol`: seen items filtered, then kept.
    fn metrics(&self, name: &str, protocol: Protocol, ranks: &[Ranks]) -> [Metrics; 2] {
        let left_out = self.targets.iter().filter(|t| t.context(protocol).is_none()).count();
        [true, false].map(|filter_seen| {
            let (targets, means) = results::means(ranks.iter().map(|r| r.among(filter_seen)));
            Metrics {
                targets,
                no_history: self.targets.len() - ranks.len() - left_out,
                left_out,
                means: means.without_condition(),
                ..Metrics::of(name, self.split, protocol, filter_seen)
            }
        })
    }
}
