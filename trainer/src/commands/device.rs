//! `trainer device`: parses its arguments, calls `trainer::bench` and `trainer::device` and prints the result.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ragged::agreement::{Agreement, compare};
use serde::Serialize;
use terminal::{CommonArgs, EXIT_DONE, EXIT_FAILED, print_json};
use trainer::bench::{BenchMeasured, Ceilings, Setting, Throughput, Trainer, losses};
use trainer::device::{self, Backend, Card};

/// Check and measure the device that the trainer computes on.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer device check --set device=cuda:0\n  trainer device throughput --set device=cuda:0 --set \
                  precision=bf16 --vary length=50,100,200,400"
)]
pub(crate) struct DeviceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Compare every operation with a kernel, its gradients, and short trainings with the CPU.
    ///
    /// Exits with 1 if any difference exceeds its tolerance.
    Check,
    /// Measure whole training steps on synthetic histories, and the ceilings of the device.
    Throughput(ThroughputArgs),
    /// Take a few steps, the last one between the start and stop marks of the CUDA profiler.
    Step(SettingArgs),
}

/// Sizes of a measured model; the defaults have a catalogue of industrial size.
#[derive(Debug, Clone, Copy, Args)]
struct SettingArgs {
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    d: usize,
    /// Layers of the backbone.
    #[arg(long, default_value_t = 3)]
    layers: usize,
    /// Heads of every layer.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// TAMIP branches, each with its own layer.
    #[arg(long, default_value_t = 2)]
    branches: usize,
    /// Maximum tokens of a history.
    #[arg(long, default_value_t = 100)]
    length: usize,
    /// Minimum tokens of a history; lengths are uniform between the two. Default: --length.
    #[arg(long)]
    shortest: Option<usize>,
    /// Histories per step.
    #[arg(long, default_value_t = 256)]
    sequences: usize,
    /// Items of the catalogue.
    #[arg(long, default_value_t = 6_000_000)]
    items: usize,
    /// Sampled negatives; 0 is the softmax over the whole catalogue.
    #[arg(long, default_value_t = 8_192)]
    negatives: usize,
}

#[derive(Debug, Args)]
struct ThroughputArgs {
    #[command(flatten)]
    setting: SettingArgs,
    /// Vary one of the numbers above over these values: NAME=N,N,…
    #[arg(long, value_name = "NAME=N,…")]
    vary: Vec<String>,
    /// Seconds to measure each setting for.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

impl SettingArgs {
    fn setting(self) -> Result<Setting> {
        let Self { d, layers, heads, branches, length, sequences, items, negatives, .. } = self;
        let shortest = self.shortest.unwrap_or(length);
        if heads == 0 || d % heads != 0 {
            bail!("--d {d} is no multiple of --heads {heads}");
        }
        let least =
            [("--layers", layers), ("--branches", branches), ("--sequences", sequences), ("--items", items)];
        if let Some((name, _)) = least.iter().find(|(_, n)| *n == 0) {
            bail!("{name} must be 1 at least");
        }
        if u32::try_from(items).is_err() {
            bail!("--items {items} is more than tables count: {} at most", u32::MAX);
        }
        if shortest > length {
            bail!("--shortest {shortest} is more than --length {length}");
        }
        if shortest <= branches {
            bail!("histories of {shortest} tokens leave nothing to predict for {branches} branches");
        }
        Ok(Setting { d, layers, heads, branches, length, shortest, sequences, items, negatives })
    }

    /// Returns these arguments with the number `name` set to `value`.
    fn with(mut self, name: &str, value: usize) -> Result<Self> {
        let number = match name {
            "d" => &mut self.d,
            "layers" => &mut self.layers,
            "heads" => &mut self.heads,
            "branches" => &mut self.branches,
            "length" => &mut self.length,
            "shortest" => self.shortest.insert(value),
            "sequences" => &mut self.sequences,
            "items" => &mut self.items,
            "negatives" => &mut self.negatives,
            other => bail!(
                "--vary {other}: none of d, layers, heads, branches, length, shortest, sequences, items, negatives"
            ),
        };
        *number = value;
        Ok(self)
    }
}

impl ThroughputArgs {
    fn settings(&self) -> Result<Vec<Setting>> {
        if self.vary.is_empty() {
            return Ok(vec![self.setting.setting()?]);
        }
        let mut settings = Vec::new();
        for axis in &self.vary {
            let Some((name, values)) = axis.split_once('=') else {
                bail!("--vary {axis}: write NAME=N,N,…, such as --vary length=50,100,200");
            };
            for value in values.split(',') {
                let value =
                    value.parse().map_err(|_| anyhow::anyhow!("--vary {axis}: `{value}` is no number"))?;
                settings.push(self.setting.with(name, value)?.setting()?);
            }
        }
        Ok(settings)
    }
}

impl DeviceArgs {
    pub(crate) fn run(&self, common: &CommonArgs) -> Result<u8> {
        let backend = device::open(&common.load()?)?;
        match &self.what {
            What::Check => check(&backend, common.json),
            What::Throughput(args) => throughput(&backend, args, common.json),
            What::Step(args) => step(&backend, args.setting()?, common.json),
        }
    }
}

/// Result of `trainer device check`.
#[derive(Debug, Serialize)]
struct Checked {
    card: Card,
    operations: Vec<Agreement>,
    trainings: Vec<Training>,
    holds: bool,
}

/// Losses of one training by step, on the device and on the CPU.
#[derive(Debug, Serialize)]
struct Training {
    precision: schemas::config::Precision,
    setting: Setting,
    device: Vec<f64>,
    cpu: Vec<f64>,
    /// Maximum relative difference to the CPU.
    tolerance: f64,
    holds: bool,
}

fn check(backend: &Backend, json: bool) -> Result<u8> {
    use schemas::config::Precision::{Bf16, F32};
    let card = Card::of(&backend.device)?;
    if backend.device.is_cpu() {
        eprintln!(
            "this is the CPU, which agrees with itself: only finite differences say anything here; name a GPU with \
             --set device=cuda:0"
        );
    }
    eprintln!("{}, compared with the CPU; differences as shares of the largest value", card.name);
    let operations = compare(&backend.device)?;
    for agreement in &operations {
        eprintln!("{agreement}");
    }
    let mut trainings = Vec::new();
    for (precision, tolerance) in [(F32, 1e-3), (Bf16, 2e-2)] {
        for negatives in [0, 128] {
            let setting = Setting {
                d: 64,
                layers: 2,
                heads: 2,
                branches: 2,
                length: 50,
                shortest: 10,
                sequences: 32,
                items: 5_000,
                negatives,
            };
            let backend = Backend { precision, ..backend.clone() };
            let [device, cpu] = losses(&backend, setting, 20)?;
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= tolerance * b.abs();
            let holds = device.iter().zip(&cpu).all(near);
            let last = |losses: &[f64]| losses.last().copied().unwrap_or(f64::NAN);
            let (ours, expected) = (last(&device), last(&cpu));
            let verdict = if holds { "ok" } else { "TOO FAR" };
            eprintln!(
                "{verdict:>7}  loss of 20 steps, {precision}, {negatives} negatives: {ours:.5}, on the CPU {expected:.5}"
            );
            trainings.push(Training { precision, setting, device, cpu, tolerance, holds });
        }
    }
    let holds = operations.iter().all(Agreement::holds) && trainings.iter().all(|training| training.holds);
    let wrong = operations.iter().filter(|agreement| !agreement.holds()).count();
    eprintln!(
        "{} operations, {wrong} too far; {} trainings, {} too far",
        operations.len(),
        trainings.len(),
        trainings.iter().filter(|training| !training.holds).count()
    );
    if json {
        print_json(&Checked { card, operations, trainings, holds })?;
    }
    Ok(if holds { EXIT_DONE } else { EXIT_FAILED })
}

fn throughput(backend: &Backend, args: &ThroughputArgs, json: bool) -> Result<u8> {
    let settings = args.settings()?;
    let (card, ceilings) = (Card::of(&backend.device)?, Ceilings::of(&backend.device)?);
    eprintln!(
        "{}: {:.1} TFLOP/s in bf16, {:.1} in f32, a copy moves {:.0} GB/s",
        card.name, ceilings.bf16_tflops, ceilings.f32_tflops, ceilings.copy_gb_per_s
    );
    eprintln!("    d    length  seq.     items negatives   step ms  targets/s  TFLOP/s  memory GiB  plan ms");
    let mut measured = BenchMeasured { card, ceilings, throughput: Vec::new(), failed: Vec::new() };
    for setting in settings {
        let measure = |mut trainer: Trainer| trainer.measure(Duration::from_secs(args.seconds.into()));
        let found = match Trainer::new(backend, setting).and_then(measure) {
            Ok(found) => found,
            // A setting too large for the device does not stop the others.
            Err(error) => {
                eprintln!("{setting:?}: {error}");
                measured.failed.push((setting, error.to_string()));
                continue;
            }
        };
        let Throughput { step_ms, targets_per_s, peak_memory, tflops, plan_ms, .. } = found;
        let Setting { d, length, shortest, sequences, items, negatives, .. } = setting;
        let length = if shortest == length { length.to_string() } else { format!("{shortest}–{length}") };
        let memory =
            peak_memory.map_or("-".into(), |bytes| format!("{:.2}", bytes as f64 / (1u64 << 30) as f64));
        eprintln!(
            "{d:>5} {length:>9} {sequences:>5} {items:>9} {negatives:>9} {step_ms:>9.2} {targets_per_s:>10.0} \
             {tflops:>8.2} {memory:>11} {plan_ms:>8.1}"
        );
        measured.throughput.push(found);
    }
    if json {
        print_json(&measured)?;
    }
    Ok(if measured.failed.is_empty() { EXIT_DONE } else { EXIT_FAILED })
}

fn step(backend: &Backend, setting: Setting, json: bool) -> Result<u8> {
    let mut trainer = Trainer::new(backend, setting)?;
    trainer.steps(3)?;
    let (loss, targets) = device::profiled(&backend.device, || trainer.steps(1))?;
    eprintln!("{targets} targets, loss {loss:.4}");
    if json {
        print_json(&serde_json::json!({ "setting": setting, "targets": targets, "loss": loss }))?;
    }
    Ok(EXIT_DONE)
}
