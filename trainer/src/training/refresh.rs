//! `trainer refresh`: a pre-trained model goes on learning, from what is new.
//!
//! ```text
//!   refresh     rows with a new event: their new targets ──┐
//!   sequences   old targets, some rows by lot ─────────────┴─▶ one run of the loop, from the parent's weights and moments
//! ```
//!
//! The vocabulary grows with the catalogue: rows of the embedding tables never move, new ones begin at the mean of their
//! categories ([`ClimberPilot::grown`]).

use std::sync::Arc;

use rand::seq::SliceRandom;
use schemas::config::{Config, Pretrain};
use schemas::delta::Root;
use schemas::history::Role;
use schemas::tables::{REFRESH, SEQUENCES};

use super::parent::{Parent, check_names};
use super::pretrain::{row_weights, targets_by_row};
use super::run::Run;
use super::{Options, Outcome, Task, TrainError, selector};
use crate::checkpoint::{self, Checkpoint, Lineage};
use crate::data::{Batch, Catalogue, FreshSource, Sequences};
use crate::device;
use crate::evaluate::{Evaluation, Metrics};
use crate::loss::TamipLoss;
use crate::model::ClimberPilot;
use crate::optimizer::Adam;
use crate::random;

/// Continues `models/<parent>` into `models/<name>` on the newest `refresh` of `root` and a share of `sequences`, resuming an
/// unfinished run of the same settings. The architecture and the loss are the parent's, whatever the configuration says.
pub async fn run(
    config: &Config,
    root: &Root,
    parent: &str,
    options: Options<'_>,
) -> Result<Outcome, TrainError> {
    check_names(options.name, parent, ["model to go on from", "refreshed"])?;
    let backend = device::open(config)?;
    let catalogue = Catalogue::load(root, &checkpoint::attributes(&root.model_path(parent))?).await?;
    let origin = Parent::load(root, parent, &catalogue, &backend)?;
    let (config, loaded) = (&origin.config(config), &origin.checkpoint);
    let settings = config.refresh.training(&config.pretrain);
    let (fresh, source) = Sequences::load_fresh(root, catalogue.items()).await?;
    let sequences = Sequences::load(root, catalogue.items()).await?;
    let pretrained = &loaded.lineage.sequences.config_hash;
    for (table, rows) in [(REFRESH, &fresh), (SEQUENCES, &sequences)] {
        let settings = &rows.source.config_hash;
        if settings != pretrained {
            let (table, settings) = (table.to_owned(), settings.clone());
            let (parent, rows) = (parent.to_owned(), pretrained.clone());
            return Err(TrainError::OtherSplit { table, settings, parent, rows });
        }
    }
    let learned = loaded.lineage.learned_events();
    check_versions(parent, learned, &sequences.source.events_version, &source)?;
    let mut counts = sequences.training_counts(catalogue.items());
    if fresh.source.events_version != sequences.source.events_version {
        // `sequences` is the older one, of the last whole build.
        let new = fresh.training_counts(catalogue.items());
        counts.iter_mut().zip(new).for_each(|(count, new)| *count += new);
    }
    let lineage = Lineage {
        sequences: sequences.source.clone(),
        items_version: catalogue.version,
        parent: Some(parent.into()),
        parent_hash: Some(origin.hash.clone()),
        fresh: Some(source.clone()),
        inherited_events: learned,
        examples: Vec::new(),
        made_by: options.made_by(),
        code_version: env!("CARGO_PKG_VERSION").into(),
    };
    let (rows, new) = rows(fresh, &sequences, config, source.refresh_version);
    let targets = targets_by_row(&rows, config);
    let task = Refreshing {
        config,
        units: (0u32..).zip(&targets).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect(),
        weights: row_weights(&rows, &targets, settings.user_balance),
        rows: &rows,
        loss: TamipLoss::new(&settings, &counts, config.seed),
        settings,
        parent: loaded,
        catalogue: &catalogue,
        counts: &counts,
        validation: Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, Role::Validation),
    };
    let run = Run::new(config, root, options, (&backend, &catalogue), &task, lineage);
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

/// `refresh` has to begin where the parent ends, and `sequences` must not be ahead of it.
fn check_versions(
    parent: &str,
    learned: Option<u64>,
    sequences: &str,
    source: &FreshSource,
) -> Result<(), TrainError> {
    let number = |version: &str| version.parse::<u64>().ok();
    let (from, to) = (number(&source.since_version), number(&source.events_version));
    if number(sequences).zip(to).is_none_or(|(sequences, to)| sequences > to) {
        let (sequences, refresh) = (sequences.to_owned(), source.events_version.clone());
        return Err(TrainError::OldRefresh { refresh, sequences, since: source.since_version.clone() });
    }
    match learned.zip(from) {
        Some((learned, from)) if learned < from => {
            Err(TrainError::Gap { parent: parent.into(), learned, since: from })
        }
        Some((learned, from)) if learned > from => {
            eprintln!(
                "warning: `{parent}` has learned of `events` up to version {learned}, and `refresh` begins after version \
                 {from}: some of what is new there is learned again"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The rows with new targets, and behind them as many rows of `sequences` as have `refresh.replay` times as many targets,
/// drawn by the seed; also the number of new targets.
fn rows(mut fresh: Sequences, sequences: &Sequences, config: &Config, version: u64) -> (Sequences, usize) {
    let new: usize = targets_by_row(&fresh, config).iter().sum();
    let wanted = (config.refresh.replay * new as f64).ceil() as usize;
    let mut old = targets_by_row(sequences, config);
    // What is new would be there twice.
    fresh.rows_in(sequences).into_iter().flatten().for_each(|row| old[row] = 0);
    let mut order: Vec<u32> = (0u32..).zip(&old).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect();
    order.shuffle(&mut random::generator(config.seed, "replay", version));
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
    (fresh, new)
}

/// New targets and old ones.
struct Refreshing<'a> {
    config: &'a Config,
    settings: Pretrain,
    parent: &'a Checkpoint,
    catalogue: &'a Catalogue,
    rows: &'a Sequences,
    /// Rows that own at least one target.
    units: Vec<u32>,
    /// By row, the weight of its targets.
    weights: Vec<f32>,
    loss: TamipLoss,
    /// Training events by item index.
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

    fn batch(&self, rows: &[u32]) -> Batch {
        let model = &self.config.model;
        let without_history = self.settings.loss_without_history;
        Batch::pretrain(self.rows, rows, model.mask, model.branches, without_history, Some(&self.weights))
    }

    fn loss(&self) -> &TamipLoss {
        &self.loss
    }

    fn begin(&self) -> Result<(ClimberPilot, Option<Adam>), TrainError> {
        let Config { model, sft, seed, .. } = self.config;
        let known = self.parent.model.vocabulary();
        let vocabulary = Arc::new(known.grown(model.min_count, self.catalogue, self.counts));
        let step = |source| TrainError::Step { step: 0, source };
        let new = vocabulary.own_items() - known.own_items();
        eprintln!("{} items have rows of their own, {new} of them new ones", vocabulary.own_items());
        let grown = self.parent.model.grown(model, sft, vocabulary, *seed).map_err(step)?;
        let optimizer = self.parent.optimizer()?.grown(&grown).map_err(step)?;
        Ok((grown, Some(optimizer)))
    }

    fn validate(&self, name: &str, model: &ClimberPilot) -> Result<Vec<Metrics>, TrainError> {
        if self.validation.is_empty() {
            return Ok(Vec::new());
        }
        let (protocol, _) = selector(self.settings.select_by);
        Ok(self.validation.model(name, model, self.config.model.mask, &[protocol])?)
    }

    fn difference(&self, checkpoint: &Checkpoint) -> Option<String> {
        let theirs = &checkpoint.config;
        if theirs.pretrain != self.config.pretrain {
            return Some("another [pretrain]".into());
        }
        (theirs.refresh != self.config.refresh).then(|| "another [refresh]".into())
    }
}
