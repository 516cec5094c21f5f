//! `trainer pretrain`: TAMIP pre-training on the rows of `sequences` (§3.2). Memory: the whole table and the model.

use std::sync::Arc;

use schemas::config::{Config, Pretrain};
use schemas::history::Role;
use store::Root;
use store::boxed::Boxed;

use super::training_loop::Run;
use super::{Task, TrainError, TrainOptions, TrainOutcome, selector};
use crate::batch::TrainingBatch;
use crate::checkpoint::{self, Checkpoint, Lineage};
use crate::data::vocabulary::Vocabulary;
use crate::data::{Catalogue, ItemIndex, SequencesTable};
use crate::device::{self, Backend};
use crate::judge::{Evaluation, Metrics};
use crate::kinds::{self, Learner, New, TrainedModel};
use crate::models::Values;
use crate::objectives::{Draws, Objective, objective};

/// Trains `models/<name>` on the newest tables of `root`, resuming an unfinished run of the same settings.
///
/// # Errors
///
/// A table is missing or invalid, there is nothing to learn, an unfinished run has other settings, or a step fails.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    options: TrainOptions<'a>,
) -> Boxed<'a, Result<TrainOutcome, TrainError>> {
    Box::pin(pretrain(config, root, options))
}

async fn pretrain(
    config: &Config,
    root: &Root,
    options: TrainOptions<'_>,
) -> Result<TrainOutcome, TrainError> {
    checkpoint::check_name(options.name)?;
    kinds::find(&config.model.architecture)?;
    let backend = device::open(config)?;
    let catalogue = Catalogue::load(root, &config.model.attributes).await?;
    let sequences = SequencesTable::load(root, catalogue.items()).await?;
    let counts = sequences.training_counts(catalogue.items());
    let lineage = Lineage {
        sequences: sequences.source.clone(),
        items_version: catalogue.version,
        parent: None,
        parent_hash: None,
        fresh: None,
        inherited_events: None,
        taught_by: None,
        examples: Vec::new(),
        made_by: options.made_by(),
        code_version: env!("CARGO_PKG_VERSION").into(),
    };
    let targets = targets_by_row(&sequences, config);
    let task = Pretraining {
        config,
        backend: &backend,
        sequences: &sequences,
        catalogue: &catalogue,
        rows: (0u32..).zip(&targets).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect(),
        weights: row_weights(&sequences, &targets, config.pretrain.user_balance),
        objective: objective(
            &config.pretrain,
            draws(&sequences, &targets, config, catalogue.items()),
            config.seed,
            0.0,
        ),
        counts: &counts,
        validation: Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, Role::Validation),
    };
    let run = Run::new(config, root, options, &backend, &catalogue, &task, lineage);
    if let Some(outcome) = run.prepare()? {
        return Ok(outcome);
    }
    if task.rows.is_empty() {
        let held_out = sequences.roles.iter().filter(|role| role.is_held_out()).count();
        let hint = format!(" among {} positions, {held_out} of them held out", sequences.roles.len());
        return Err(TrainError::NoTargets { hint });
    }
    run.finish()
}

/// Pre-training on the rows of `sequences`.
struct Pretraining<'a> {
    config: &'a Config,
    backend: &'a Backend,
    sequences: &'a SequencesTable,
    catalogue: &'a Catalogue,
    /// Rows with at least one target.
    rows: Vec<u32>,
    /// Weight of each row's targets.
    weights: Vec<f32>,
    objective: Box<dyn Objective>,
    /// Number of training events by item index.
    counts: &'a [u32],
    validation: Evaluation<'a>,
}

impl Task for Pretraining<'_> {
    fn settings(&self) -> &Pretrain {
        &self.config.pretrain
    }

    fn units(&self) -> (&[u32], &'static str) {
        (&self.rows, "rows")
    }

    fn batch(&self, rows: &[u32]) -> TrainingBatch {
        let Config { model, pretrain, .. } = self.config;
        let without_history = pretrain.loss_without_history;
        TrainingBatch::pretrain(
            self.sequences,
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
        let config = self.config;
        let vocabulary = Arc::new(Vocabulary::new(&config.model, self.catalogue, self.counts));
        let new = New { config, vocabulary, values: Values::Seed(config.seed), backend: self.backend };
        let learner = new.model().and_then(|model| model.into_learner(&config.pretrain, None));
        learner.map_err(|source| TrainError::Step { step: 0, source })
    }

    fn validate(&self, name: &str, model: &dyn TrainedModel) -> Result<Vec<Metrics>, TrainError> {
        if self.validation.is_empty() {
            return Ok(Vec::new());
        }
        let (protocol, _) = selector(self.config.pretrain.select_by);
        Ok(self.validation.model(name, model, &[protocol])?)
    }

    fn difference(&self, checkpoint: &Checkpoint) -> Option<String> {
        (checkpoint.config.pretrain != self.config.pretrain).then(|| "another [pretrain]".into())
    }
}

/// Iterates over the items that a row predicts, over all branches.
pub(super) fn predicted<'a>(
    sequences: &'a SequencesTable,
    row: u32,
    config: &Config,
) -> impl Iterator<Item = ItemIndex> + 'a {
    let (model, without) = (&config.model, config.pretrain.loss_without_history);
    TrainingBatch::predicted(sequences, row, model.mask, model.branches, without)
}

/// Counts the targets of each row, over all branches.
pub(super) fn targets_by_row(sequences: &SequencesTable, config: &Config) -> Vec<usize> {
    (0..sequences.rows() as u32).map(|row| predicted(sequences, row, config).count()).collect()
}

/// Counts how many rows with `targets` predict each item.
pub(super) fn draws(sequences: &SequencesTable, targets: &[usize], config: &Config, items: usize) -> Draws {
    let rows = (0u32..).zip(targets).filter(|&(_, &n)| n > 0);
    Draws::new(items, rows.map(|(row, _)| predicted(sequences, row, config)))
}

/// Returns the weight of each row's targets: `n^−balance` for a user with `n` targets, scaled to a mean of 1 over all targets.
pub(super) fn row_weights(sequences: &SequencesTable, targets: &[usize], balance: f64) -> Vec<f32> {
    let mut of_user = vec![0usize; sequences.users.len()];
    for (&user, n) in sequences.user.iter().zip(targets) {
        of_user[user as usize] += n;
    }
    let weight = |user: u32| (of_user[user as usize].max(1) as f64).powf(-balance);
    let total: f64 = sequences.user.iter().zip(targets).map(|(&user, &n)| n as f64 * weight(user)).sum();
    let scale = targets.iter().sum::<usize>() as f64 / total.max(f64::MIN_POSITIVE);
    sequences.user.iter().map(|&user| (scale * weight(user)) as f32).collect()
}
