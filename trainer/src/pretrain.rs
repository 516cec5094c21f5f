//! `trainer pretrain`: TAMIP pre-training, validated, selected, resumable.
//!
//! A run keeps two checkpoints below `models/.training/<name>/`: `latest`, from which it resumes after an
//! interruption, and `best`, the one validation selected. At the end `best` becomes `models/<name>`; until then
//! whatever is published under that name stays. The run's records ([`crate::records`]) grow beside the two and are
//! published with `best`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use rand::seq::SliceRandom;
use schemas::cli::{Interrupt, Progress};
use schemas::config::{Config, ConfigError, Pretrain, Schedule, Selection};
use schemas::delta::Root;
use schemas::failpoint;
use schemas::history::Role;
use serde::Serialize;

use crate::checkpoint::{self, Best, CheckpointError, EpochRecord, Lineage, TrainerState};
use crate::data::{Batch, Catalogue, DataError, Loader, Sequences};
use crate::device::{self, DeviceError};
use crate::evaluate::{EvaluateError, Evaluation, Metrics, Protocol};
use crate::loss::TamipLoss;
use crate::model::ClimberPilot;
use crate::ops::Dropout;
use crate::optimizer::Adam;
use crate::random;
use crate::records::{self, EpochMetrics, Records, RecordsError, StepMetrics};
use crate::vocabulary::Vocabulary;

/// Steps of an epoch that are recorded one by one, at most.
const STEPS_RECORDED: usize = 100;

/// A training run that failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's name cannot be used.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run's records cannot be written.
    #[error("the records of the run cannot be written")]
    Records(#[from] RecordsError),
    /// Validation failed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// A tensor operation failed.
    #[error("training failed at step {step}")]
    Step {
        /// Steps finished before.
        step: u64,
        /// Why.
        source: candle_core::Error,
    },
    /// The tables hold nothing to learn.
    #[error(
        "`sequences` holds no pre-training target{hint}; check sequences.split, sequences.sft_share and \
         pretrain.loss_without_history"
    )]
    NoTargets {
        /// What there is instead.
        hint: String,
    },
    /// The selecting number has nothing to count.
    #[error(
        "none of the {targets} validation targets takes part under the protocol {protocol}; \
         choose another pretrain.select_by"
    )]
    NoValidation {
        /// The protocol.
        protocol: &'static str,
        /// Validation targets in all.
        targets: usize,
    },
    /// An unfinished run of this name was started differently.
    #[error(
        "{path} holds an unfinished training of `{name}` that was started with {difference}; \
         finish it with the same settings, or discard it with --fresh"
    )]
    OtherRun {
        /// The model.
        name: String,
        /// Where the run stands.
        path: PathBuf,
        /// The first difference.
        difference: String,
    },
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The model's name.
    pub name: &'a str,
    /// Discard what an earlier run left.
    pub fresh: bool,
    /// Stops after the current step, with a checkpoint.
    pub interrupt: &'a Interrupt,
    /// Stop after this many steps of this run, as if interrupted.
    pub stop_after: Option<u64>,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The model.
    pub model: String,
    /// `trained`, `unchanged` (it was trained on just this before) or `interrupted`.
    pub status: Status,
    /// Steps taken, earlier parts of a resumed run included.
    pub steps: u64,
    /// The selected epoch and its validation.
    pub best: Option<Best>,
    /// One record an epoch.
    pub epochs: Vec<EpochRecord>,
    /// Targets learned in this run, over all epochs and branches.
    pub targets: u64,
    /// Seconds of this run.
    pub seconds: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.model;
        match self.status {
            Status::Trained => {
                match &self.best {
                    Some(best) => {
                        write!(f, "model `{name}`: epoch {} (validation {:.4})", best.epoch, best.value)?
                    }
                    None => write!(f, "model `{name}`: the last epoch")?,
                }
                let rate = self.targets as f64 / self.seconds.max(1e-9);
                write!(
                    f,
                    ", {} steps; {} targets in {:.1} s, {rate:.0} targets/s",
                    self.steps, self.targets, self.seconds
                )
            }
            Status::Unchanged => write!(
                f,
                "model `{name}` was trained on these tables with these settings before: unchanged \
                 (`trainer pretrain --fresh` trains again)"
            ),
            Status::Interrupted => {
                write!(
                    f,
                    "interrupted after step {}; the same command resumes there (without --fresh)",
                    self.steps
                )
            }
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The model is there.
    Trained,
    /// It was there already, from the same tables and configuration.
    Unchanged,
    /// It can be resumed.
    Interrupted,
}

/// One run's data and settings.
struct Run<'a> {
    config: &'a Config,
    options: Options<'a>,
    device: Device,
    sequences: &'a Sequences,
    catalogue: &'a Catalogue,
    lineage: Lineage,
    /// Rows that own at least one target.
    rows: Vec<u32>,
    /// By row, the weight of its targets.
    weights: Vec<f32>,
    loss: TamipLoss,
    /// `models/.training/<name>`: the two checkpoints and the records.
    training: PathBuf,
    latest: PathBuf,
    best: PathBuf,
}

/// Trains `models/<name>` on the newest tables of `root`, resuming an unfinished run of the same settings.
pub async fn run(config: &Config, root: &Root, options: Options<'_>) -> Result<Outcome, TrainError> {
    let started = Instant::now();
    checkpoint::check_name(options.name)?;
    let device = device::open(config.device)?;
    let catalogue = Catalogue::load(root, &config.model.attributes).await?;
    let sequences = Sequences::load(root, catalogue.items()).await?;
    let counts = sequences.training_counts(catalogue.items());
    let lineage = Lineage {
        sequences: sequences.source.clone(),
        items_version: catalogue.version,
        parent: None,
        code_version: env!("CARGO_PKG_VERSION").into(),
    };
    let training = root.model_path(".training").join(options.name);
    let targets = targets_by_row(&sequences, config);
    let run = Run {
        config,
        options,
        device,
        sequences: &sequences,
        catalogue: &catalogue,
        lineage,
        rows: (0u32..).zip(&targets).filter(|&(_, &n)| n > 0).map(|(row, _)| row).collect(),
        weights: row_weights(&sequences, &targets, config.pretrain.user_balance),
        loss: TamipLoss::new(&config.pretrain, &counts, config.seed),
        latest: training.join("latest"),
        best: training.join("best"),
        training,
    };
    let published = root.model_path(options.name);
    if options.fresh {
        checkpoint::discard(&run.latest)?;
        checkpoint::discard(&run.best)?;
        records::discard(&run.training)?;
    } else if let Some(outcome) = run.unchanged(&published)? {
        return Ok(outcome);
    }
    if run.rows.is_empty() {
        let held_out = sequences.roles.iter().filter(|role| role.is_held_out()).count();
        let hint = format!(" among {} positions, {held_out} of them held out", sequences.roles.len());
        return Err(TrainError::NoTargets { hint });
    }
    let (state, targets) = run.train(&counts)?;
    let status = match state {
        (state, true) => {
            records::copy_into(&run.training, &run.best)?;
            checkpoint::rename_over(&run.best, &published)?;
            checkpoint::discard(&run.latest)?;
            records::discard(&run.training)?;
            (state, Status::Trained)
        }
        (state, false) => (state, Status::Interrupted),
    };
    let (state, status) = status;
    Ok(Outcome {
        model: options.name.into(),
        status,
        steps: state.steps,
        best: state.best,
        epochs: state.history,
        targets,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The targets that each row owns, over all branches.
fn targets_by_row(sequences: &Sequences, config: &Config) -> Vec<usize> {
    let (model, pretrain) = (&config.model, &config.pretrain);
    (0..sequences.rows() as u32)
        .map(|row| {
            let without = pretrain.loss_without_history;
            Batch::pretrain(sequences, &[row], model.mask, model.branches, without, None).targets()
        })
        .collect()
}

/// `n^−balance` for the rows of a user with `n` targets, scaled to a mean of 1 over all targets.
fn row_weights(sequences: &Sequences, targets: &[usize], balance: f64) -> Vec<f32> {
    let mut of_user = vec![0usize; sequences.users.len()];
    for (&user, n) in sequences.user.iter().zip(targets) {
        of_user[user as usize] += n;
    }
    let weight = |user: u32| (of_user[user as usize].max(1) as f64).powf(-balance);
    let total: f64 = sequences.user.iter().zip(targets).map(|(&user, &n)| n as f64 * weight(user)).sum();
    let scale = targets.iter().sum::<usize>() as f64 / total.max(f64::MIN_POSITIVE);
    sequences.user.iter().map(|&user| (scale * weight(user)) as f32).collect()
}

impl Run<'_> {
    /// The outcome of the run that published `models/<name>`, if that run was this one.
    fn unchanged(&self, published: &std::path::Path) -> Result<Option<Outcome>, TrainError> {
        // `latest` without `best`: the run was stopped between publishing and tidying up, or in its first epoch.
        let unfinished = checkpoint::find(&self.latest).is_some() && checkpoint::find(&self.best).is_some();
        if checkpoint::find(published).is_none() || unfinished {
            return Ok(None);
        }
        let checkpoint = match checkpoint::load(published, self.catalogue, &Device::Cpu) {
            Ok(checkpoint) => checkpoint,
            // Whatever is there, training replaces it.
            Err(_) => return Ok(None),
        };
        let same = self.difference(&checkpoint).is_none();
        if same {
            checkpoint::discard(&self.latest)?;
            records::discard(&self.training)?;
        }
        Ok(same.then(|| Outcome {
            model: self.options.name.into(),
            status: Status::Unchanged,
            steps: checkpoint.state.steps,
            best: checkpoint.state.best,
            epochs: checkpoint.state.history,
            targets: 0,
            seconds: 0.0,
        }))
    }

    /// What a checkpoint's run was started with, where that differs from this run.
    fn difference(&self, checkpoint: &checkpoint::Checkpoint) -> Option<String> {
        let (theirs, ours) = (&checkpoint.config, self.config);
        if theirs.seed != ours.seed {
            return Some(format!("seed = {}", theirs.seed));
        }
        if theirs.model != ours.model {
            return Some("another [model]".into());
        }
        if theirs.pretrain != ours.pretrain {
            return Some("another [pretrain]".into());
        }
        if checkpoint.lineage != self.lineage {
            let theirs = &checkpoint.lineage;
            return Some(format!(
                "version {} of `sequences` and {} of `items`, by version {} of the code",
                theirs.sequences.sequences_version, theirs.items_version, theirs.code_version
            ));
        }
        None
    }

    /// A new model, or the unfinished one.
    fn begin(&self, counts: &[u32]) -> Result<(ClimberPilot, Adam, TrainerState, Records), TrainError> {
        if checkpoint::find(&self.latest).is_some() {
            let checkpoint = checkpoint::load(&self.latest, self.catalogue, &self.device)?;
            if let Some(difference) = self.difference(&checkpoint) {
                return Err(TrainError::OtherRun {
                    name: self.options.name.into(),
                    path: self.latest.clone(),
                    difference,
                });
            }
            let optimizer = checkpoint.optimizer()?;
            let state = checkpoint.state;
            let records = Records::resume(&self.training, self.options.name, state.epoch, state.steps)?;
            eprintln!("resuming `{}` after epoch {}, step {}", self.options.name, state.epoch, state.steps);
            return Ok((checkpoint.model, optimizer, state, records));
        }
        let config = self.config;
        let vocabulary = Arc::new(Vocabulary::new(&config.model, self.catalogue, counts));
        let step = |source| TrainError::Step { step: 0, source };
        let model = ClimberPilot::new(&config.model, &config.sft, vocabulary, config.seed, &self.device)
            .map_err(step)?;
        let optimizer =
            Adam::new(&model, config.pretrain.weight_decay, config.pretrain.clip_norm).map_err(step)?;
        let records = Records::create(&self.training, self.options.name)?;
        Ok((model, optimizer, TrainerState { seed: config.seed, ..TrainerState::default() }, records))
    }

    /// Trains to the end (`true`) or to an interruption (`false`); also the targets learned in this run.
    fn train(&self, counts: &[u32]) -> Result<((TrainerState, bool), u64), TrainError> {
        let pretrain = &self.config.pretrain;
        let (model, mut optimizer, mut state, mut records) = self.begin(counts)?;
        let validation = Evaluation::new(
            self.sequences,
            self.catalogue,
            &self.config.evaluate,
            self.config.seed,
            Role::Validation,
        );
        let (first_target, last_step) = (state.targets, self.options.stop_after.map(|n| state.steps + n));
        let mut finished = true;
        while finished && state.epoch < pretrain.epochs && state.without_improvement < pretrain.patience {
            finished = self.epoch(&model, &mut optimizer, &mut state, &mut records, last_step)?;
            if finished {
                self.end_epoch(&model, &optimizer, &mut state, &validation, &mut records)?;
            }
        }
        let targets = state.targets - first_target;
        Ok(((state, finished), targets))
    }

    /// The steps of an epoch that are left: to its end (`true`), or to an interruption (`false`), which leaves a
    /// checkpoint.
    fn epoch(
        &self,
        model: &ClimberPilot,
        optimizer: &mut Adam,
        state: &mut TrainerState,
        records: &mut Records,
        last_step: Option<u64>,
    ) -> Result<bool, TrainError> {
        let pretrain = &self.config.pretrain;
        let recorded_every = self.rows.len().div_ceil(pretrain.batch_size).div_ceil(STEPS_RECORDED) as u64;
        let label = format!("epoch {}/{}", state.epoch + 1, pretrain.epochs);
        let mut progress = Progress::start(&label, self.rows.len() as u64, "rows");
        progress.add((state.batch * pretrain.batch_size) as u64);
        let Config { model: architecture, .. } = self.config;
        let loader =
            Loader { sequences: self.sequences, model: architecture, pretrain, weights: &self.weights };
        std::thread::scope(|scope| {
            // Waiting for a batch counts, writing checkpoints does not.
            let mut since = Instant::now();
            for batch in loader.batches(scope, self.order(state.epoch), state.batch) {
                let step = self
                    .step(model, optimizer, state, &batch)
                    .map_err(|source| TrainError::Step { step: state.steps, source })?;
                state.epoch_seconds += since.elapsed().as_secs_f64();
                progress.add(batch.sequences() as u64);
                progress.message(format!("loss {:.4}", step.loss));
                if state.steps.is_multiple_of(recorded_every) {
                    records.step(state.steps, step)?;
                }
                let stop =
                    last_step.is_some_and(|last| state.steps >= last) || self.options.interrupt.requested();
                let due = pretrain.checkpoint_steps > 0
                    && state.steps.is_multiple_of(pretrain.checkpoint_steps as u64);
                if stop || due {
                    self.save_latest(model, optimizer, state, records)?;
                }
                if stop {
                    return Ok(false);
                }
                since = Instant::now();
            }
            Ok(true)
        })
    }

    /// The rows of one epoch, shuffled by the seed and the epoch.
    fn order(&self, epoch: usize) -> Vec<u32> {
        let mut order = self.rows.clone();
        order.shuffle(&mut random::generator(self.config.seed, "order", epoch as u64));
        order
    }

    /// One step on `batch`.
    fn step(
        &self,
        model: &ClimberPilot,
        optimizer: &mut Adam,
        state: &mut TrainerState,
        batch: &Batch,
    ) -> candle_core::Result<StepMetrics> {
        let seed = random::derived(self.config.seed, "dropout", state.steps);
        let dropout = Dropout { p: self.config.model.dropout, seed };
        let step = self.loss.compute(model, batch, Some(dropout), state.steps)?;
        let gradients = step.loss.backward()?;
        let learning_rate = self.learning_rate(state.steps);
        let gradient_norm = optimizer.step(model, &step.touched, &gradients, learning_rate)?;
        let loss = f64::from(step.loss.to_scalar::<f32>()?);
        let targets = batch.targets() as u64;
        state.batch += 1;
        state.steps += 1;
        state.loss_sum += loss;
        state.gradient_norm_sum += gradient_norm;
        state.targets += targets;
        state.epoch_targets += targets;
        Ok(StepMetrics { loss, gradient_norm, learning_rate })
    }

    /// The learning rate of step `step`, from 0.
    fn learning_rate(&self, step: u64) -> f64 {
        let pretrain = &self.config.pretrain;
        let last = (pretrain.epochs * self.rows.len().div_ceil(pretrain.batch_size)) as u64;
        learning_rate(pretrain, step, last)
    }

    /// Validates where it is time, records the epoch, keeps the best, and checkpoints.
    fn end_epoch(
        &self,
        model: &ClimberPilot,
        optimizer: &Adam,
        state: &mut TrainerState,
        validation: &Evaluation<'_>,
        records: &mut Records,
    ) -> Result<(), TrainError> {
        let pretrain = &self.config.pretrain;
        let batches = state.batch as f64;
        state.epoch += 1;
        let loss = state.loss_sum / batches;
        let mut metrics = EpochMetrics {
            epoch: state.epoch,
            step: state.steps,
            loss,
            learning_rate: self.learning_rate(state.steps - 1),
            gradient_norm: state.gradient_norm_sum / batches,
            targets: state.targets,
            seconds: state.epoch_seconds,
            targets_per_s: state.epoch_targets as f64 / state.epoch_seconds.max(1e-9),
            validation: None,
        };
        (state.batch, state.loss_sum, state.gradient_norm_sum) = (0, 0.0, 0.0);
        (state.epoch_targets, state.epoch_seconds) = (0, 0.0);
        let due = state.epoch.is_multiple_of(pretrain.validate_every) || state.epoch == pretrain.epochs;
        let mut record = EpochRecord { epoch: state.epoch, loss, validation: None };
        let mut line = format!("epoch {:>3}: loss {loss:.4}", state.epoch);
        if due && !validation.is_empty() {
            let (protocol, pick) = selector(pretrain.select_by);
            let results = validation.model(self.options.name, model, self.config.model.mask, &[protocol])?;
            let Some(headline) = results.iter().find(|m| m.filter_seen && m.targets > 0) else {
                return Err(TrainError::NoValidation {
                    protocol: protocol.name(),
                    targets: validation.len(),
                });
            };
            let value = pick(headline);
            metrics.validation = Some(headline.into());
            records.epoch(&metrics)?;
            record.validation = Some(value);
            line += &format!(", validation {value:.4}");
            state.without_improvement += 1;
            if state.best.as_ref().is_none_or(|best| value > best.value) {
                state.best = Some(Best { epoch: state.epoch, value });
                state.without_improvement = 0;
                line += " (best)";
            }
            state.history.push(record);
            if state.without_improvement == 0 {
                self.save(&self.best, model, optimizer, state, &results)?;
            }
        } else {
            records.epoch(&metrics)?;
            state.history.push(record);
            // Without validation targets the last model is the selected one.
            if validation.is_empty() {
                self.save(&self.best, model, optimizer, state, &[])?;
            }
        }
        eprintln!("{line}");
        self.save_latest(model, optimizer, state, records)
    }

    /// Saves the checkpoint to resume from. The records are on the disk before it: they must not be behind it.
    fn save_latest(
        &self,
        model: &ClimberPilot,
        optimizer: &Adam,
        state: &TrainerState,
        records: &Records,
    ) -> Result<(), TrainError> {
        records.sync()?;
        failpoint::reach("pretrain:recorded");
        Ok(self.save(&self.latest, model, optimizer, state, &[])?)
    }

    fn save(
        &self,
        directory: &std::path::Path,
        model: &ClimberPilot,
        optimizer: &Adam,
        state: &TrainerState,
        metrics: &[Metrics],
    ) -> Result<(), CheckpointError> {
        checkpoint::save(directory, model, optimizer, self.config, state, &self.lineage, &metrics)
    }
}

/// The learning rate of step `step` (from 0) of at most `steps`.
fn learning_rate(config: &Pretrain, step: u64, steps: u64) -> f64 {
    let warmup = config.warmup_steps as u64;
    let factor = if step < warmup {
        (step + 1) as f64 / warmup as f64
    } else {
        match config.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (steps - step.min(steps)) as f64 / steps.saturating_sub(warmup).max(1) as f64,
        }
    };
    config.learning_rate * factor
}

/// The protocol and the number that select the model.
fn selector(selection: Selection) -> (Protocol, fn(&Metrics) -> f64) {
    match selection {
        Selection::HrStandard => (Protocol::Standard, |m| m.hr_10),
        Selection::HrAsServed => (Protocol::AsServed, |m| m.hr_10),
        Selection::NdcgStandard => (Protocol::Standard, |m| m.ndcg_10),
        Selection::NdcgAsServed => (Protocol::AsServed, |m| m.ndcg_10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let mut config = Pretrain { learning_rate: 1.0, warmup_steps: 2, ..Pretrain::default() };
        let course = |config: &Pretrain| (0..6).map(|s| learning_rate(config, s, 6)).collect::<Vec<_>>();
        assert_eq!(course(&config), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        config.schedule = Schedule::Linear;
        assert_eq!(course(&config), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
    }
}
