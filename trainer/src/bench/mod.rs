//! Training throughput of a device: whole steps on synthetic histories, and the ceilings to compare with. Memory: a model and
//! catalogue of the given size; the ceilings need 2 GiB on a GPU, 128 MiB on the CPU.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use ragged::adam::GradientNorm;
use ragged::{AttentionLayout, Dropout};
use schemas::config::{Config, Loss, Model, Precision, Pretrain};
use schemas::hash::mix64;
use serde::Serialize;

use crate::batch::{Anchors, BatchesFrom, TrainingBatch, ahead};
use crate::data::vocabulary::Vocabulary;
use crate::data::{Catalogue, ItemIndex, Token};
use crate::device::{Backend, Card, peak_memory};
use crate::kinds::{Learner, New, Taken, TrainingStep};
use crate::models::Values;
use crate::objectives::{Draws, Objective, Plan, objective};

/// Steps before timing starts, which allocate memory and load kernels.
const WARM_UP: usize = 3;
/// Number of measurements, each of several steps.
const ROUNDS: usize = 5;

/// Sizes of the model and of the training data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    /// Width of the model.
    pub d: usize,
    /// Layers of the backbone.
    pub layers: usize,
    /// Heads of every layer.
    pub heads: usize,
    /// Branches, each with a layer of its own.
    pub branches: usize,
    /// Maximum tokens of a history.
    pub length: usize,
    /// Minimum tokens of a history; lengths are uniform between the two.
    pub shortest: usize,
    /// Histories per step.
    pub sequences: usize,
    /// Number of items in the catalogue.
    pub items: usize,
    /// Number of sampled negatives; 0 is the softmax over the whole catalogue.
    pub negatives: usize,
}

/// Measured throughput of one setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throughput {
    /// The measured setting.
    pub setting: Setting,
    /// Precision of matrix products and attention.
    pub precision: Precision,
    /// Number of measured steps.
    pub steps: usize,
    /// Duration of a step, milliseconds; the median.
    pub step_ms: f64,
    /// Targets learned per second, over all branches.
    pub targets_per_s: f64,
    /// Peak device memory, bytes; `None` if not counted.
    pub peak_memory: Option<u64>,
    /// Matrix product throughput of a step, TFLOP/s.
    pub tflops: f64,
    /// Duration of preparing a step on one thread, milliseconds; this runs in parallel with earlier steps.
    pub plan_ms: f64,
}

/// Approximate upper bounds of a device, measured by simple programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ceilings {
    /// Throughput of a large bf16 matrix product, TFLOP/s.
    pub bf16_tflops: f64,
    /// Throughput of a large f32 matrix product, TFLOP/s.
    pub f32_tflops: f64,
    /// Bandwidth of a copy, reads plus writes, GB/s.
    pub copy_gb_per_s: f64,
}

impl Setting {
    /// Returns the operations of the matrix products in a step on `batch`, with `competitors` candidates per target: one forward
    /// pass, and twice as many backward.
    fn operations(&self, batch: &TrainingBatch, competitors: usize) -> f64 {
        let (d, tokens) = (self.d as f64, batch.items.len() as f64);
        // Queries, keys, values and output; up to four times the width and down.
        let dense = 2.0 * tokens * (4.0 + 8.0) * d * d;
        // Half of the pairs; two products forward, and backward the scores again and four products.
        let lengths = batch.layout.offsets.windows(2).map(|bounds| (bounds[1] - bounds[0]) as f64);
        let attention = 2.0 * lengths.map(|n| n * n / 2.0).sum::<f64>() * d * (2.0 + 5.0);
        let logits = 2.0 * batch.targets() as f64 * competitors as f64 * d;
        (self.layers + self.branches) as f64 * (3.0 * dense + attention) + 3.0 * logits
    }

    fn model(&self) -> Model {
        let &Self { d, layers, heads, branches, length, .. } = self;
        Model { d, layers, heads, branches, max_positions: length, hash_buckets: 1, ..Model::default() }
    }

    fn pretrain(&self) -> Pretrain {
        Pretrain {
            loss: if self.negatives == 0 { Loss::Full } else { Loss::Sampled },
            in_batch_negatives: false,
            uniform_negatives: self.negatives,
            ..Pretrain::default()
        }
    }

    /// Returns a batch of histories of popular and rare items, one minute apart. All branches predict from every row.
    fn batch(&self, number: u64) -> TrainingBatch {
        let &Self { length, shortest, sequences, branches, .. } = self;
        let item = |sequence: usize, i: usize| {
            let place = (sequence * length + i) as u64;
            let uniform = (mix64(number, place) >> 11) as f64 / (1u64 << 53) as f64;
            ItemIndex::new(1 + (uniform.powi(3) * self.items as f64) as u32)
        };
        let mut layout = AttentionLayout { offsets: vec![0], ..AttentionLayout::default() };
        let mut batch =
            TrainingBatch { branches: vec![Anchors::default(); branches], ..TrainingBatch::default() };
        for sequence in 0..sequences {
            let drawn = mix64(!number, sequence as u64) as usize % (length - shortest + 1);
            let length = shortest + drawn;
            let first = batch.items.len();
            batch.items.push(ItemIndex::NO_ITEM);
            batch.items.extend((0..length - 1).map(|i| item(sequence, i)));
            layout.offsets.push(batch.items.len());
            layout.times.extend((0..length as i64).map(|i| i * 60_000));
            for (k, branch) in batch.branches.iter_mut().enumerate() {
                let rows = 0..length - k;
                branch.tokens.extend(rows.clone().map(|row| Token::new((first + row) as u32)));
                branch.items.extend(rows.clone().map(|row| item(sequence, row + k)));
                branch.positions.extend(rows.clone().map(|row| (first + row) as u32));
                branch.weights.extend(rows.map(|_| 1.0));
            }
        }
        batch.layout = std::sync::Arc::new(layout);
        batch
    }
}

/// A model in training.
pub struct Trainer {
    backend: Backend,
    setting: Setting,
    learner: Box<dyn Learner>,
    objective: Box<dyn Objective>,
    steps: u64,
}

impl Trainer {
    /// Builds a trainer before its first step.
    ///
    /// # Errors
    ///
    /// A tensor operation fails, such as an allocation on the device.
    pub fn new(backend: &Backend, setting: Setting) -> Result<Self> {
        let items = setting.items;
        let mut catalogue = Catalogue::default();
        catalogue.item_ids = (0..=items).map(|i| i.to_string()).collect();
        catalogue.active = vec![true; items + 1];
        let counts = vec![1; items + 1];
        let vocabulary = Vocabulary::new(&setting.model(), &catalogue, &counts);
        let config = Config { model: setting.model(), pretrain: setting.pretrain(), ..Config::default() };
        let new = New { config: &config, vocabulary: vocabulary.into(), values: Values::Seed(1), backend };
        let learner = new.model()?.into_learner(&config.pretrain, None)?;
        // Negatives are uniform, so the draws from batches are unused.
        let draws = Draws::new(items, std::iter::empty::<[ItemIndex; 0]>());
        let objective = objective(&config.pretrain, draws, 1, 0.0);
        Ok(Self { backend: backend.clone(), setting, learner, objective, steps: 0 })
    }

    /// Returns the plan of step `number`.
    fn plan(&self, number: u64) -> Plan {
        plan(&self.setting, &*self.objective, self.learner.model().vocabulary(), number)
    }

    /// Takes `n` steps, with plans prepared in parallel as in training. After each step, `look` gets the number of steps so far
    /// and the step, whose numbers may still be in flight. Returns the total number of targets.
    fn take(&mut self, n: usize, mut look: impl FnMut(usize, &Taken) -> Result<()>) -> Result<usize> {
        let Self { setting, learner, objective, steps, .. } = self;
        let first = *steps;
        let vocabulary = learner.model().vocabulary().clone();
        std::thread::scope(|scope| {
            let (vocabulary, objective, setting) = (&vocabulary, &**objective, *setting);
            let prepare =
                move |number: usize, _: &[u32]| plan(&setting, objective, vocabulary, first + number as u64);
            let mut targets = 0;
            for (number, plan) in
                ahead(scope, vec![0; n], BatchesFrom { first: 0, size: 1 }, prepare).enumerate()
            {
                targets += plan.batch.targets();
                let dropout = Dropout { p: setting.model().dropout, seed: *steps };
                let step =
                    TrainingStep { objective, plan: &plan, rates: 5e-4.into(), dropout: Some(dropout) };
                let taken = learner.step(&step)?;
                *steps += 1;
                look(number + 1, &taken)?;
            }
            Ok(targets)
        })
    }

    /// Takes `n` steps, at least one. Returns the loss of the last step once all are complete, and the total number of targets.
    ///
    /// # Errors
    ///
    /// A tensor operation fails, or a gradient is not finite.
    pub fn steps(&mut self, n: usize) -> Result<(f64, usize)> {
        let mut last = f64::NAN;
        let targets = self.take(n, |number, step| {
            if number == n {
                last = settled(step)?;
            }
            Ok(())
        })?;
        Ok((last, targets))
    }

    /// Measures steps for about `duration`.
    ///
    /// # Errors
    ///
    /// Those of [`steps`](Self::steps).
    pub fn measure(&mut self, duration: Duration) -> Result<Throughput> {
        peak_memory(&self.backend.device)?;
        self.steps(WARM_UP)?;
        let start = Instant::now();
        self.steps(WARM_UP)?;
        let one = start.elapsed().as_secs_f64() / WARM_UP as f64;
        let in_round = (duration.as_secs_f64() / one.max(1e-6) / ROUNDS as f64).ceil() as usize;
        // The first steps wait for their plans.
        let steps = WARM_UP + ROUNDS * in_round;
        let (mut rounds, mut start) = (Vec::with_capacity(ROUNDS), Instant::now());
        let targets = self.take(steps, |number, step| {
            if number >= WARM_UP && (number - WARM_UP).is_multiple_of(in_round) {
                settled(step)?;
                if number > WARM_UP {
                    rounds.push(start.elapsed().as_secs_f64() * 1e3 / in_round as f64);
                }
                start = Instant::now();
            }
            Ok(())
        })?;
        rounds.sort_by(f64::total_cmp);
        let step_ms = rounds[ROUNDS / 2];
        let start = Instant::now();
        let plan = self.plan(self.steps);
        let plan_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(Throughput {
            setting: self.setting,
            precision: self.backend.precision,
            steps: ROUNDS * in_round,
            step_ms,
            targets_per_s: targets as f64 / steps as f64 / step_ms * 1e3,
            peak_memory: peak_memory(&self.backend.device)?,
            tflops: self.setting.operations(&plan.batch, plan.competitors()) / step_ms / 1e9,
            plan_ms,
        })
    }
}

/// Waits for a step and returns its loss.
fn settled(step: &Taken) -> Result<f64> {
    for norm in GradientNorm::values(std::slice::from_ref(&step.gradient_norm))? {
        GradientNorm::checked(norm)?;
    }
    Ok(f64::from(step.loss.to_scalar::<f32>()?))
}

fn plan(setting: &Setting, objective: &dyn Objective, vocabulary: &Vocabulary, number: u64) -> Plan {
    objective.plan(vocabulary, setting.batch(number), number)
}

/// Returns the losses of `steps` steps on `backend` and on the CPU.
///
/// # Errors
///
/// Those of [`Trainer::steps`].
pub fn losses(backend: &Backend, setting: Setting, steps: usize) -> Result<[Vec<f64>; 2]> {
    let of = |backend: &Backend| {
        let mut trainer = Trainer::new(backend, setting)?;
        (0..steps).map(|_| Ok(trainer.steps(1)?.0)).collect::<Result<Vec<_>>>()
    };
    Ok([of(backend)?, of(&Backend::CPU)?])
}

impl Ceilings {
    /// Measures the ceilings of `device`.
    ///
    /// # Errors
    ///
    /// A tensor operation fails, such as an allocation on the device.
    pub fn of(device: &Device) -> Result<Self> {
        // Larger than the caches of a GPU.
        let (size, n) = if device.is_cpu() { (1 << 10, 1 << 24) } else { (1 << 13, 1 << 28) };
        let tflops = |dtype: DType| -> Result<f64> {
            let random = || Tensor::rand(-1f32, 1f32, (size, size), device)?.to_dtype(dtype);
            let (a, b) = (random()?, random()?);
            let seconds = seconds(device, || a.matmul(&b))?;
            Ok(2.0 * (size as f64).powi(3) / seconds / 1e12)
        };
        let values = Tensor::ones(n, DType::F32, device)?;
        let copy = seconds(device, || values.copy())?;
        Ok(Self {
            bf16_tflops: tflops(DType::BF16)?,
            f32_tflops: tflops(DType::F32)?,
            copy_gb_per_s: 2.0 * (n * size_of::<f32>()) as f64 / copy / 1e9,
        })
    }
}

/// Returns the median duration of `f` over several measurements, seconds.
fn seconds(device: &Device, f: impl Fn() -> Result<Tensor>) -> Result<f64> {
    for _ in 0..WARM_UP {
        f()?;
    }
    let mut times = Vec::new();
    for _ in 0..2 * ROUNDS + 1 {
        device.synchronize()?;
        let start = Instant::now();
        f()?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS])
}

/// A device and its measurements.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchMeasured {
    /// The device.
    pub card: Card,
    /// Its ceilings.
    pub ceilings: Ceilings,
    /// One entry per setting.
    pub throughput: Vec<Throughput>,
    /// Settings that could not be measured, with the error.
    pub failed: Vec<(Setting, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Setting = Setting {
        d: 8,
        layers: 1,
        heads: 2,
        branches: 2,
        length: 6,
        shortest: 6,
        sequences: 5,
        items: 40,
        negatives: 0,
    };

    #[test]
    fn made_up_batches_are_learned() {
        for setting in [SMALL, Setting { negatives: 16, ..SMALL }] {
            let mut trainer = Trainer::new(&Backend::CPU, setting).unwrap();
            // Per history, 6 targets of the first branch and 5 of the second.
            let (first, targets) = trainer.steps(1).unwrap();
            assert_eq!(targets, 5 * (6 + 5));
            let (later, targets) = trainer.steps(400).unwrap();
            assert_eq!(targets, 400 * 5 * (6 + 5));
            assert!(later < 0.9 * first, "{first} {later}");
            let throughput = trainer.measure(Duration::from_millis(20)).unwrap();
            assert!(throughput.step_ms > 0.0 && throughput.peak_memory.is_none());
        }
    }

    #[test]
    fn operations_are_counted() {
        // One backbone layer and one branch layer. Each: 12 d² for 30 tokens, three passes, 2 operations; 6/2 keys and 7 products
        // for 30 tokens. Then 30 targets against 40 items.
        let setting = Setting { branches: 1, ..SMALL };
        let batch = setting.batch(0);
        assert_eq!(batch.targets(), 30);
        let expected = 2.0 * (3.0 * 2.0 * 30.0 * 12.0 * 64.0 + 2.0 * 30.0 * 3.0 * 8.0 * 7.0)
            + 3.0 * 2.0 * 30.0 * 40.0 * 8.0;
        assert_eq!(setting.operations(&batch, 40), expected);
    }
}
