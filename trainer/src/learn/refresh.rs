//! `trainer refresh`: continues training a pre-trained model on new events.
//!
//! ```text
//!   refresh     rows with a new event: their new targets ──────┐
//!   sequences   users by lot: some rows of their old targets ──┴─▶ one run of the loop, from the parent's weights and moments
//!                             held-out targets ──────────────────▶ validation
//! ```
//!
//! The cost depends on the new events and the catalogue rather than on the log: the run reads only as many users of `sequences`
//! as it needs, and takes the training counts of items from the parent.
//!
//! The vocabulary grows with the catalogue: rows of the embedding tables never move, new ones start at the mean of their
//! categories ([`TrainedModel::grown`]).

use std::sync::Arc;

use rand::Rng;
use rand::seq::SliceRandom;
use schemas::config::{Config, Pretrain};
use schemas::history::Role;
use schemas::tables::{REFRESH, SEQUENCES};
use store::Root;
use store::boxed::Boxed;

use super::parent::{Parent, check_names};
use super::pretrain::{draws, predicted, row_weights, targets_by_row};
use super::training_loop::Run;
use super::{Task, TrainError, TrainOptions, TrainOutcome, selector};
use crate::batch::TrainingBatch;
use crate::checkpoint::{self, Checkpoint, Lineage};
use crate::data::{Catalogue, FreshSource, SequencesTable};
use crate::device;
use crate::judge::{DRAWS_MAX, Evaluation, Metrics};
use crate::kinds::{Learner, SavedLearner, TrainedModel};
use crate::objectives::{Objective, objective};
use crate::random;

/// Continues `models/<parent>` into `models/<name>` on the newest `refresh` of `root` and a share of `sequences`, resuming an
/// unfinished run of the same settings. `[model]` and `[pretrain]` are the parent's, whatever the configuration says.
///
/// # Errors
///
/// A table is missing, invalid or of other versions than the parent needs, nothing is new, the parent was fine-tuned, an
/// unfinished run has other settings, or a step fails.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    parent: &'a str,
    options: TrainOptions<'a>,
) -> Boxed<'a, Result<TrainOutcome, TrainError>> {
    Box::pin(refresh(config, root, parent, options))
}

async fn refresh(
    config: &Config,
    root: &Root,
    parent: &str,
    options: TrainOptions<'_>,
) -> Result<TrainOutcome, TrainError> {
    check_names(options.name, parent, ["model to go on from", "refreshed"])?;
    let backend = device::open(config)?;
    let catalogue = Catalogue::load(root, &checkpoint::attributes(&root.model_path(parent))?).await?;
    let origin = Parent::load(root, parent, &catalogue, &backend)?;
    let (config, loaded) = (&origin.config(config), &origin.checkpoint);
    let settings = config.refresh.training(&config.pretrain);
    let (fresh, source) = SequencesTable::load_fresh(root, catalogue.items()).await?;
    let old = SequencesTable::source(root).await?;
    let pretrained = &loaded.lineage.sequences.config_hash;
    for (table, settings) in [(REFRESH, &fresh.source.config_hash), (SEQUENCES, &old.config_hash)] {
        if settings != pretrained {
            let (table, settings) = (table.to_owned(), settings.clone());
            let (parent, rows) = (parent.to_owned(), pretrained.clone());
            return Err(TrainError::OtherSplit { table, settings, parent, rows });
        }
    }
    let learned = loaded.lineage.learned_events();
    let holds_out_for_ever = config.sequences.holds_out_for_ever(&old.config_hash);
    for warning in check_versions(parent, learned, &old.events_version, holds_out_for_ever, &source)? {
        eprintln!("warning: {warning}");
    }
    let counts = counts(root, &catalogue, loaded, &fresh, &source, &old.events_version).await?;
    let lineage = Lineage {
        sequences: old,
        items_version: catalogue.version,
        parent: Some(parent.into()),
        parent_hash: Some(origin.hash.clone()),
        fresh: Some(source.clone()),
        inherited_events: learned,
        taught_by: None,
        examples: Vec::new(),
        made_by: options.made_by(),
        code_version: env!("CARGO_PKG_VERSION").into(),
    };
    let new: usize = targets_by_row(&fresh, config).iter().sum();
    let wanted = (config.refresh.replay * new as f64).ceil() as usize;
    let mut lot = random::generator(config.seed, "replay", source.refresh_version);
    let mut enough = Enough { config, wanted, rows: 0, targets: 0, held_out: 0 };
    let sequences =
        SequencesTable::sample(root, catalogue.items(), &mut lot, |read, runs| enough.with(read, runs))
            .await?;
    let rows = rows(fresh, &sequences, config, wanted, &mut lot);
    let targets = targets_by_row(&rows, config);
    let task = Refreshing {
        config,
        units: (0u32..).zip(&targets).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect(),
        weights: row_weights(&rows, &targets, settings.user_balance),
        rows: &rows,
        objective: objective(&settings, draws(&rows, &targets, config, catalogue.items()), config.seed, 0.0),
        settings,
        parent: loaded,
        catalogue: &catalogue,
        counts: &counts,
        validation: Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, Role::Validation),
    };
    let run = Run::new(config, root, options, &backend, &catalogue, &task, lineage);
    if let Some(outcome) = run.prepare()? {
        return Ok(outcome);
    }
    if new == 0 {
        let (version, since) = (source.refresh_version, source.since_version);
        return Err(TrainError::NothingNew { version, since });
    }
    let again = targets.iter().sum::<usize>() - new;
    eprintln!("{new} new targets and {again} old ones again, over all branches");
    run.finish()
}

/// Checks that `refresh` begins where the parent ends and that `sequences` is not ahead of it, and returns warnings. `sequences`
/// is the table's version of `events`; `holds_out_for_ever` is true if its held-out events stay held out as the log grows.
fn check_versions(
    parent: &str,
    learned: Option<u64>,
    sequences: &str,
    holds_out_for_ever: bool,
    source: &FreshSource,
) -> Result<Vec<String>, TrainError> {
    let number = |version: &str| version.parse::<u64>().ok();
    let (from, to) = (number(&source.since_version), number(&source.events_version));
    let asked = number(sequences);
    if asked.zip(to).is_none_or(|(asked, to)| asked > to) {
        let (sequences, refresh) = (sequences.to_owned(), source.events_version.clone());
        return Err(TrainError::OldRefresh { refresh, sequences, since: source.since_version.clone() });
    }
    let mut warnings = Vec::new();
    match learned.zip(from) {
        Some((learned, from)) if learned < from => {
            return Err(TrainError::Gap { parent: parent.into(), learned, since: from });
        }
        Some((learned, from)) if learned > from => warnings.push(format!(
            "`{parent}` has learned of `events` up to version {learned}, and `refresh` begins after version {from}: some of \
             what is new there is learned again"
        )),
        _ => {}
    }
    if asked < to.max(learned) && !holds_out_for_ever {
        warnings.push(format!(
            "validation asks `sequences` of version {sequences} of `events`, and `refresh` brings what came up to version {}: what \
             is held out there is learned here or was learned before, and the epoch is selected by it; run `pipeline \
             build-sequences` first",
            source.events_version
        ));
    }
    Ok(warnings)
}

/// Returns the number of training events by item index, the new ones included.
///
/// The parent stores the counts of the events it has learned. If `refresh` does not begin where they end, or an older version of
/// the code saved the parent without counts, they come from `sequences`.
async fn counts(
    root: &Root,
    catalogue: &Catalogue,
    parent: &Checkpoint,
    fresh: &SequencesTable,
    source: &FreshSource,
    events_version: &str,
) -> Result<Vec<u32>, TrainError> {
    let items = catalogue.items();
    let begins_at_the_parent = parent.lineage.learned_events() == source.since_version.parse().ok();
    let (mut counts, with_new) = match parent.model.vocabulary().counts() {
        Some(known) if begins_at_the_parent => (known.to_vec(), false),
        _ => {
            let all = SequencesTable::load(root, items).await?;
            (all.training_counts(items), events_version == source.events_version)
        }
    };
    counts.resize(items + 1, 0);
    if !with_new {
        let new = fresh.training_counts(items);
        counts.iter_mut().zip(new).for_each(|(count, new)| *count += new);
    }
    Ok(counts)
}

/// Stopping rule for drawing users of `sequences`: enough targets to choose replayed rows from, and `refresh.validation_targets`
/// held-out ones.
struct Enough<'a> {
    config: &'a Config,
    /// Number of old targets to replay.
    wanted: usize,
    /// Counts so far: rows, targets, held-out targets.
    rows: usize,
    targets: usize,
    held_out: usize,
}

impl Enough<'_> {
    /// Number of targets to choose from, per replayed target.
    const CHOICE: usize = 2;
    fn with(&mut self, read: &SequencesTable, draws: usize) -> bool {
        for row in self.rows..read.rows() {
            self.targets += predicted(read, row as u32, self.config).count();
            let held_out = |&position: &usize| read.roles[position] == Role::Validation;
            self.held_out += read.owned(row).filter(held_out).count();
        }
        self.rows = read.rows();
        let validated = self.held_out >= self.config.refresh.validation_targets || draws >= DRAWS_MAX;
        validated && self.targets >= Self::CHOICE * self.wanted
    }
}

/// Appends to the rows with new targets randomly chosen rows of `sequences` that hold `wanted` targets.
fn rows(
    mut fresh: SequencesTable,
    sequences: &SequencesTable,
    config: &Config,
    wanted: usize,
    lot: &mut impl Rng,
) -> SequencesTable {
    let mut old = targets_by_row(sequences, config);
    // Skips rows that `fresh` already contains.
    fresh.rows_in(sequences).into_iter().flatten().for_each(|row| old[row] = 0);
    let mut order: Vec<u32> = (0u32..).zip(&old).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect();
    order.shuffle(lot);
    let mut drawn = 0;
    let mut replayed: Vec<u32> = order
        .into_iter()
        .take_while(|&row| {
            let more = drawn < wanted;
            drawn += old[row as usize];
            more
        })
        .collect();
    replayed.sort_unstable();
    fresh.append(sequences, &replayed);
    fresh
}

/// Training on new targets and replayed old ones.
struct Refreshing<'a> {
    config: &'a Config,
    settings: Pretrain,
    parent: &'a Checkpoint,
    catalogue: &'a Catalogue,
    rows: &'a SequencesTable,
    /// Rows with at least one target.
    units: Vec<u32>,
    /// Weight of each row's targets.
    weights: Vec<f32>,
    objective: Box<dyn Objective>,
    /// Number of training events by item index.
    counts: &'a [u32],
    validation: Evaluation<'a>,
}

impl Task for Refreshing<'_> {
    fn settings(&self) -> &Pretrain {
        &self.settings
    }

    fn units(&self) -> (&[u32], &'static str) {
        (&self.units, "rows")
    }

    fn batch(&self, rows: &[u32]) -> TrainingBatch {
        let model = &self.config.model;
        let without_history = self.settings.loss_without_history;
        TrainingBatch::pretrain(
            self.rows,
            rows,
            model.mask,
            model.branches,
            without_history,
            Some(&self.weights),
        )
    }

    fn objective(&self) -> &dyn Objective {
        &*self.objective
    }

    fn begin(&self) -> Result<Box<dyn Learner>, TrainError> {
        let known = self.parent.model.vocabulary();
        let vocabulary = Arc::new(known.grown(self.config.model.min_count, self.catalogue, self.counts));
        let new = vocabulary.own_items() - known.own_items();
        eprintln!("{} items have rows of their own, {new} of them new ones", vocabulary.own_items());
        let (values, steps) = self.parent.learner_state()?;
        let saved = SavedLearner { values: &values, steps };
        let learner = self.parent.model.grown(self.config, vocabulary, saved);
        learner.map_err(|source| TrainError::Step { step: 0, source })
    }

    fn validate(&self, name: &str, model: &dyn TrainedModel) -> Result<Vec<Metrics>, TrainError> {
        if self.validation.is_empty() {
            return Ok(Vec::new());
        }
        let (protocol, _) = selector(self.settings.select_by);
        Ok(self.validation.model(name, model, &[protocol])?)
    }

    fn difference(&self, checkpoint: &Checkpoint) -> Option<String> {
        let theirs = &checkpoint.config;
        if theirs.pretrain != self.config.pretrain {
            return Some("another [pretrain]".into());
        }
        (theirs.refresh != self.config.refresh).then(|| "another [refresh]".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_out_before_the_news_is_announced() {
        let source = |events: &str, since: &str| FreshSource {
            refresh_version: 0,
            events_version: events.into(),
            since_version: since.into(),
        };
        let check = |learned, sequences: &str, for_ever, source: &FreshSource| {
            check_versions("m", Some(learned), sequences, for_ever, source).map_err(|error| error.to_string())
        };
        // A full build of the same log; events that stay held out for ever.
        assert!(check(7, "8", false, &source("8", "7")).unwrap().is_empty());
        assert!(check(7, "7", true, &source("8", "7")).unwrap().is_empty());
        let leak = check(7, "7", false, &source("8", "7")).unwrap();
        assert!(
            leak.len() == 1 && leak[0].contains("version 7") && leak[0].contains("build-sequences"),
            "{leak:?}"
        );
        let again = check(8, "8", false, &source("8", "7")).unwrap();
        assert!(again.len() == 1 && again[0].contains("learned again"), "{again:?}");
        // The parent is ahead of both tables.
        assert_eq!(check(9, "8", false, &source("8", "7")).unwrap().len(), 2);
        assert!(check(6, "8", false, &source("8", "7")).unwrap_err().contains("never be learned"));
        assert!(check(7, "9", false, &source("8", "7")).unwrap_err().contains("`sequences` from version 9"));
    }
}
