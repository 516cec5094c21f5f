//! The training loop: steps, learning rate, validation, selection of the best epoch, checkpoints, resuming.
//!
//! Memory: the learner, the prepared batches, and the losses of at most 32 steps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use ragged::Dropout;
use ragged::adam::GradientNorm;
use rand::seq::SliceRandom;
use schemas::config::{Config, Pretrain, Schedule};
use store::Root;
use store::failpoint;
use terminal::Progress;

use super::{Status, Task, TrainError, TrainOptions, TrainOutcome, marks, selector};
use crate::batch::{BatchesFrom, ahead};
use crate::checkpoint::{self, Best, CheckpointError, EpochRecord, Lineage, TrainerState};
use crate::data::Catalogue;
use crate::device::Backend;
use crate::judge::Metrics;
use crate::kinds::{Learner, LearningRates, Taken, TrainingStep};
use crate::objectives::Plan;
use crate::random;
use crate::records::{self, EpochMetrics, RunRecords, StepMetrics, Validation};

/// Maximum steps of an epoch that are recorded one by one.
const STEPS_RECORDED: usize = 100;

/// Maximum steps in flight before losses are read back; a non-finite gradient is noticed at most this many steps late.
const STEPS_AHEAD: usize = 32;

/// One run: its task, and the directories it writes to.
pub(super) struct Run<'a, T> {
    config: &'a Config,
    options: TrainOptions<'a>,
    backend: &'a Backend,
    catalogue: &'a Catalogue,
    task: &'a T,
    lineage: Lineage,
    started: Instant,
    /// `models/.training/<name>`: the two checkpoints and the records.
    training: PathBuf,
    latest: PathBuf,
    best: PathBuf,
    model: PathBuf,
}

impl<'a, T: Task> Run<'a, T> {
    pub(super) fn new(
        config: &'a Config,
        root: &Root,
        options: TrainOptions<'a>,
        backend: &'a Backend,
        catalogue: &'a Catalogue,
        task: &'a T,
        lineage: Lineage,
    ) -> Self {
        let training = root.model_path(".training").join(options.name);
        Self {
            config,
            options,
            backend,
            catalogue,
            task,
            lineage,
            started: Instant::now(),
            latest: training.join("latest"),
            best: training.join("best"),
            model: root.model_path(options.name),
            training,
        }
    }

    /// Returns the outcome of the run that made `models/<name>`, if it was this one. With `--fresh`, discards what an
    /// earlier run left instead.
    pub(super) fn prepare(&self) -> Result<Option<TrainOutcome>, TrainError> {
        if self.options.fresh {
            checkpoint::discard(&self.latest)?;
            checkpoint::discard(&self.best)?;
            records::discard(&self.training)?;
            return Ok(None);
        }
        self.unchanged()
    }

    /// Trains, from the beginning or from where a run stopped, and puts the model that validation selected in its place.
    pub(super) fn finish(&self) -> Result<TrainOutcome, TrainError> {
        let (state, finished, targets) = self.train()?;
        let mut status = Status::Interrupted;
        if finished {
            // If a run stopped after exchanging the two names, `best` holds the older model.
            if self.is_this_run(&self.best) || !self.is_this_run(&self.model) {
                records::copy_into(&self.training, &self.best)?;
                checkpoint::rename_over(&self.best, &self.model)?;
            }
            checkpoint::discard(&self.best)?;
            checkpoint::discard(&self.latest)?;
            records::discard(&self.training)?;
            marks::clear(&self.training)?;
            status = Status::Trained;
        }
        Ok(TrainOutcome {
            model: self.options.name.into(),
            status,
            steps: state.steps,
            best: state.best,
            epochs: state.history,
            targets,
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }

    fn unchanged(&self) -> Result<Option<TrainOutcome>, TrainError> {
        // `latest` without `best`: the run stopped in its first epoch, or between replacing and tidying up.
        let unfinished = checkpoint::find(&self.latest).is_some() && checkpoint::find(&self.best).is_some();
        if checkpoint::find(&self.model).is_none() || unfinished {
            return Ok(None);
        }
        let checkpoint = match checkpoint::load(&self.model, self.catalogue, &Backend::CPU) {
            Ok(checkpoint) => checkpoint,
            // Training replaces a model that cannot be loaded.
            Err(_) => return Ok(None),
        };
        let same = self.difference(&checkpoint).is_none();
        if same {
            checkpoint::discard(&self.latest)?;
            records::discard(&self.training)?;
            marks::clear(&self.training)?;
        }
        Ok(same.then(|| TrainOutcome {
            model: self.options.name.into(),
            status: Status::Unchanged,
            steps: checkpoint.state.steps,
            best: checkpoint.state.best,
            epochs: checkpoint.state.history,
            targets: 0,
            seconds: 0.0,
        }))
    }

    /// True if the checkpoint in `directory` comes from this run, or if there is no model yet.
    fn is_this_run(&self, directory: &Path) -> bool {
        checkpoint::find(&self.model).is_none()
            || checkpoint::load(directory, self.catalogue, &Backend::CPU)
                .is_ok_and(|checkpoint| self.difference(&checkpoint).is_none())
    }

    /// Returns the first setting in which a checkpoint's run differs from this one, if any.
    fn difference(&self, checkpoint: &checkpoint::Checkpoint) -> Option<String> {
        if let Some(difference) = other_numbers(&checkpoint.config, self.config) {
            return Some(difference);
        }
        if let Some(difference) = self.task.difference(checkpoint) {
            return Some(difference);
        }
        if checkpoint.lineage != self.lineage {
            let theirs = &checkpoint.lineage;
            return Some(format!(
                "version {} of `sequences` and {} of `items`{}{}{}, by version {} of the code",
                theirs.sequences.sequences_version,
                theirs.items_version,
                theirs
                    .fresh
                    .as_ref()
                    .map_or(String::new(), |fresh| format!(", {} of `refresh`", fresh.refresh_version)),
                theirs.parent.as_ref().map_or(String::new(), |parent| format!(", from model `{parent}`")),
                theirs.made_by.as_ref().map_or(String::new(), |by| format!(", by `{}`", by.job)),
                theirs.code_version
            ));
        }
        None
    }

    /// Returns the unfinished model, or a new one.
    fn begin(&self) -> Result<(Box<dyn Learner>, TrainerState, RunRecords), TrainError> {
        if checkpoint::find(&self.latest).is_some() {
            let checkpoint = checkpoint::load(&self.latest, self.catalogue, self.backend)?;
            if let Some(difference) = self.difference(&checkpoint) {
                return Err(TrainError::OtherRun {
                    name: self.options.name.into(),
                    path: self.latest.clone(),
                    difference,
                });
            }
            let state = checkpoint.state.clone();
            let learner = checkpoint.into_learner()?;
            let records = RunRecords::resume(&self.training, self.options.name, state.epoch, state.steps)?;
            eprintln!("resuming `{}` after epoch {}, step {}", self.options.name, state.epoch, state.steps);
            return Ok((learner, state, records));
        }
        let learner = self.task.begin()?;
        // The mark precedes the files that it marks.
        marks::write(&self.training, self.lineage.made_by.as_ref())?;
        let records = RunRecords::create(&self.training, self.options.name)?;
        let state = TrainerState {
            seed: self.config.seed,
            inherited_steps: learner.steps(),
            ..TrainerState::default()
        };
        Ok((learner, state, records))
    }

    /// Trains to the end (`true`) or to an interruption (`false`). Also returns the number of targets learned in this run.
    fn train(&self) -> Result<(TrainerState, bool, u64), TrainError> {
        let settings = self.task.settings();
        let (mut learner, mut state, mut records) = self.begin()?;
        let (first_target, last_step) = (state.targets, self.options.stop_after.map(|n| state.steps + n));
        let mut finished = true;
        while finished && state.epoch < settings.epochs && state.without_improvement < settings.patience {
            finished = self.epoch(&mut *learner, &mut state, &mut records, last_step)?;
            if finished {
                self.end_epoch(&*learner, &mut state, &mut records)?;
            }
        }
        let targets = state.targets - first_target;
        Ok((state, finished, targets))
    }

    /// Takes the remaining steps of an epoch, to its end (`true`) or to an interruption (`false`), which leaves a checkpoint.
    fn epoch(
        &self,
        learner: &mut dyn Learner,
        state: &mut TrainerState,
        records: &mut RunRecords,
        last_step: Option<u64>,
    ) -> Result<bool, TrainError> {
        let settings = self.task.settings();
        let batches_an_epoch = self.task.units().0.len().div_ceil(settings.batch_size);
        let recorded_every = batches_an_epoch.div_ceil(STEPS_RECORDED) as u64;
        let on_cpu = self.backend.device.is_cpu();
        let mut taken = Vec::new();
        let label = format!("epoch {}/{}", state.epoch + 1, settings.epochs);
        let (units, called) = self.task.units();
        let mut progress = Progress::start(&label, units.len() as u64, called);
        progress.add((state.batch * settings.batch_size) as u64);
        std::thread::scope(|scope| {
            let from = BatchesFrom { first: state.batch, size: settings.batch_size };
            // The time of an epoch includes waiting for batches, but not writing checkpoints.
            let mut since = Instant::now();
            let (objective, first_step) = (self.task.objective(), state.steps - state.batch as u64);
            let vocabulary = learner.model().vocabulary().clone();
            let plan = move |number: usize, units: &[u32]| {
                objective.plan(&vocabulary, self.task.batch(units), first_step + number as u64)
            };
            for plan in ahead(scope, self.order(state.epoch), from, plan) {
                let step = self
                    .step(learner, state, &plan)
                    .map_err(|source| TrainError::Step { step: state.steps, source })?;
                taken.push(step);
                progress.add(plan.batch.sequences() as u64);
                let recorded = state.steps.is_multiple_of(recorded_every);
                let stop =
                    last_step.is_some_and(|last| state.steps >= last) || self.options.interrupt.requested();
                let due = settings.checkpoint_steps > 0
                    && state.steps.is_multiple_of(settings.checkpoint_steps as u64);
                let last = state.batch == batches_an_epoch;
                let looked_at = recorded || stop || due || last || taken.len() >= STEPS_AHEAD || on_cpu;
                let step = if looked_at { Some(settle(&mut taken, state)?) } else { None };
                state.epoch_seconds += since.elapsed().as_secs_f64();
                if let Some(step) = step {
                    progress.message(format!("loss {:.4}", step.loss));
                    if recorded {
                        records.step(state.steps, step)?;
                    }
                }
                if stop || due {
                    self.save_latest(learner, state, records)?;
                }
                if stop {
                    return Ok(false);
                }
                since = Instant::now();
            }
            Ok(true)
        })
    }

    /// Returns the units of one epoch, shuffled by the seed and the epoch.
    fn order(&self, epoch: usize) -> Vec<u32> {
        let mut order = self.task.units().0.to_vec();
        order.shuffle(&mut random::generator(self.config.seed, "order", epoch as u64));
        order
    }

    /// Starts one step, without waiting for the device.
    fn step(
        &self,
        learner: &mut dyn Learner,
        state: &mut TrainerState,
        plan: &Plan,
    ) -> candle_core::Result<Started> {
        let seed = random::derived(self.config.seed, "dropout", state.steps);
        let dropout = Dropout { p: self.config.model.dropout, seed };
        let learning_rate = self.learning_rate(state.steps);
        let rates = LearningRates {
            pretrained: learning_rate,
            conditions: learning_rate * self.task.condition_rate(),
        };
        let objective = self.task.objective();
        let taken = learner.step(&TrainingStep { objective, plan, rates, dropout: Some(dropout) })?;
        let targets = plan.batch.targets() as u64;
        state.batch += 1;
        state.steps += 1;
        state.targets += targets;
        state.epoch_targets += targets;
        Ok(Started { taken, learning_rate })
    }

    /// Returns the learning rate of step `step`, from 0.
    fn learning_rate(&self, step: u64) -> f64 {
        let settings = self.task.settings();
        let last = (settings.epochs * self.task.units().0.len().div_ceil(settings.batch_size)) as u64;
        learning_rate(settings, step, last)
    }

    /// Validates if due, records the epoch, saves the best model, and writes the checkpoint to resume from.
    fn end_epoch(
        &self,
        learner: &dyn Learner,
        state: &mut TrainerState,
        records: &mut RunRecords,
    ) -> Result<(), TrainError> {
        let settings = self.task.settings();
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
        let due = state.epoch.is_multiple_of(settings.validate_every) || state.epoch == settings.epochs;
        let mut record = EpochRecord { epoch: state.epoch, loss, validation: None };
        let mut line = format!("epoch {:>3}: loss {loss:.4}", state.epoch);
        let results = if due { self.task.validate(self.options.name, learner.model())? } else { Vec::new() };
        if !results.is_empty() {
            let (protocol, metric) = selector(settings.select_by);
            let picked = |m: &Metrics| Some((Validation::new(m)?, m.means[metric]?));
            let Some((headline, value)) = results.iter().filter(|m| m.filter_seen).find_map(picked) else {
                return Err(TrainError::NoValidation {
                    protocol: protocol.name(),
                    targets: results.iter().map(|m| m.targets + m.no_history + m.left_out).max().unwrap_or(0),
                });
            };
            metrics.validation = Some(headline);
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
                self.save(&self.best, learner, state, &results)?;
            }
        } else {
            records.epoch(&metrics)?;
            state.history.push(record);
            // Without validation targets, the last model is selected.
            if due {
                self.save(&self.best, learner, state, &[])?;
            }
        }
        eprintln!("{line}");
        self.save_latest(learner, state, records)
    }

    /// Saves the checkpoint to resume from, after syncing the records: they must not lag behind it.
    fn save_latest(
        &self,
        learner: &dyn Learner,
        state: &TrainerState,
        records: &RunRecords,
    ) -> Result<(), TrainError> {
        records.sync()?;
        failpoint::reach("training:recorded");
        Ok(self.save(&self.latest, learner, state, &[])?)
    }

    fn save(
        &self,
        directory: &Path,
        learner: &dyn Learner,
        state: &TrainerState,
        metrics: &[Metrics],
    ) -> Result<(), CheckpointError> {
        checkpoint::save(directory, learner, self.config, state, &self.lineage, &metrics)
    }
}

/// Returns the first setting by which a run with `theirs` computes other numbers than one with `ours`, if any.
fn other_numbers(theirs: &Config, ours: &Config) -> Option<String> {
    if theirs.seed != ours.seed {
        return Some(format!("seed = {}", theirs.seed));
    }
    if theirs.precision != ours.precision {
        return Some(format!("precision = {}", theirs.precision));
    }
    (theirs.model != ours.model).then(|| "another [model]".into())
}

/// A step in flight, which the device may still be computing.
struct Started {
    taken: Taken,
    learning_rate: f64,
}

/// Waits for the steps `taken`, at least one, and adds their numbers to the epoch's sums. Returns the numbers of the last.
fn settle(taken: &mut Vec<Started>, state: &mut TrainerState) -> Result<StepMetrics, TrainError> {
    let first = state.steps - taken.len() as u64;
    let fail = |step| move |source| TrainError::Step { step, source };
    let losses: Vec<&Tensor> = taken.iter().map(|step| &step.taken.loss).collect();
    let losses = Tensor::stack(&losses, 0).and_then(|losses| losses.to_vec1::<f32>()).map_err(fail(first))?;
    let norms: Vec<GradientNorm> = taken.iter().map(|step| step.taken.gradient_norm.clone()).collect();
    let norms = GradientNorm::values(&norms).map_err(fail(first))?;
    let mut last = StepMetrics { loss: 0.0, gradient_norm: 0.0, learning_rate: 0.0 };
    for (number, ((step, loss), norm)) in (first..).zip(taken.drain(..).zip(losses).zip(norms)) {
        let gradient_norm = GradientNorm::checked(norm).map_err(fail(number))?;
        last = StepMetrics { loss: loss.into(), gradient_norm, learning_rate: step.learning_rate };
        state.loss_sum += last.loss;
        state.gradient_norm_sum += gradient_norm;
    }
    Ok(last)
}

/// Returns the learning rate of step `step` (from 0) out of `steps`: a linear warm-up, then the schedule.
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

#[cfg(test)]
mod tests {
    use schemas::config::{DeviceSetting, Precision};

    use super::*;

    #[test]
    fn another_precision_is_another_run() {
        let ours = Config::default();
        assert_eq!(other_numbers(&ours, &ours), None);
        let theirs = Config { precision: Precision::Bf16, ..ours.clone() };
        assert_eq!(other_numbers(&theirs, &ours).as_deref(), Some("precision = bf16"));
        assert_eq!(other_numbers(&ours, &theirs).as_deref(), Some("precision = f32"));
        let theirs = Config { seed: 7, ..ours.clone() };
        assert_eq!(other_numbers(&theirs, &ours).as_deref(), Some("seed = 7"));
        // Training may continue on another device.
        let theirs = Config { device: DeviceSetting::Cuda(0), ..ours.clone() };
        assert_eq!(other_numbers(&theirs, &ours), None);
    }

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let mut config = Pretrain { learning_rate: 1.0, warmup_steps: 2, ..Pretrain::default() };
        let course = |config: &Pretrain| (0..6).map(|s| learning_rate(config, s, 6)).collect::<Vec<_>>();
        assert_eq!(course(&config), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        config.schedule = Schedule::Linear;
        assert_eq!(course(&config), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
    }
}
