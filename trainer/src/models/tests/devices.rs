//! Training with stock operations, kernels and GPUs agrees with the fused operations on the CPU.

use ragged::adam::GradientNorm;
use ragged::emulator;
use ragged::{with_kernels, with_stock_operations};

use super::*;
#[cfg(feature = "cuda")]
use crate::device::tests::gpu;
#[cfg(feature = "cuda")]
use crate::kinds::SavedLearner;

const STEPS: u64 = 4;
const RATE: f64 = 1e-3;
const SETTINGS: AdamSettings = AdamSettings { weight_decay: 1e-2, clip_norm: 0.5 };

/// Outcome of training: the loss of each step, the model, and the optimiser with its moments.
struct Trained {
    losses: Vec<f32>,
    model: SequenceModel,
    adam: Adam,
}

fn train(&(ref architecture, loss, score_temperature): &Case, backend: &Backend) -> Trained {
    let data = sequences(&long_histories(), 900_000);
    let model =
        SequenceModel { score_temperature, ..random_model_on(architecture, MaskMode::Gather, backend) };
    let config = Pretrain { label_smoothing: if loss == Loss::Full { 0.1 } else { 0.0 }, ..pretrain(loss) };
    let loss = objective(&config, draws(&data, MaskMode::Gather, model.branches()), 1, 0.0);
    // Gradients are clipped: their norms exceed `clip_norm`.
    let mut adam = Adam::new(&model, SETTINGS).unwrap();
    let mut losses = Vec::new();
    for step in 0..STEPS {
        // Few rows, so that a sampled step leaves some rows of the id table untouched.
        let rows = [step as u32 % 8, (step as u32 + 3) % 8];
        let batch = TrainingBatch::pretrain(&data, &rows, MaskMode::Gather, model.branches(), true, None);
        let plan = loss.plan(model.vocabulary(), batch, step);
        let (gradients, result) =
            differentiate(&*loss, &model, &plan, Some(Dropout { p: 0.2, seed: step })).unwrap();
        let norm = adam.step(&model, &result.touched, &gradients, RATE.into()).unwrap();
        let norm = GradientNorm::values(&[norm]).unwrap()[0];
        assert!(norm > 0.5, "{norm}");
        losses.push(result.loss.to_scalar().unwrap());
    }
    Trained { losses, model, adam }
}

/// Asserts that two ways of training agree up to the order of additions.
fn assert_agree(what: &str, a: &Trained, b: &Trained) {
    for (step, (a, b)) in a.losses.iter().zip(&b.losses).enumerate() {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{what}, step {step}: {a} {b}");
    }
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (kind, a, b) in
        [("parameter", a.model.tensors(), b.model.tensors()), ("moments", a.adam.tensors(), b.adam.tensors())]
    {
        assert_eq!(a.len(), b.len());
        for (name, tensor) in &a {
            for (i, (a, b)) in values(tensor).iter().zip(values(&b[name])).enumerate() {
                assert!((a - b).abs() <= 1e-4, "{what}, {kind} {name}[{i}]: {a} {b}");
            }
        }
    }
}

/// Architecture, loss, score temperature.
type Case = (Architecture, Loss, f64);

fn cases() -> impl Iterator<Item = (Case, String)> {
    ARCHITECTURES
        .into_iter()
        .flat_map(|a| {
            [(Loss::Full, 0.0), (Loss::Full, 0.2), (Loss::Sampled, 0.0)].map(|(loss, t)| (a.clone(), loss, t))
        })
        .map(|case| (case.clone(), format!("{case:?}")))
}

#[test]
fn stock_operations_train_like_the_fused_ones() {
    for (case, what) in cases() {
        let fused = train(&case, &Backend::CPU);
        let stock = with_stock_operations(|| train(&case, &Backend::CPU));
        assert_agree(&what, &fused, &stock);
        // Equal losses would mean that the same code ran twice.
        assert_ne!(fused.losses, stock.losses, "{what}");
    }
}

/// All parameter values by name.
fn values(trained: &Trained) -> std::collections::BTreeMap<String, Vec<f32>> {
    let tensors = trained.model.tensors().into_iter();
    tensors.map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

#[test]
fn kernels_train_like_the_fused_operations() {
    if !emulator::there_is("kernels_train_like_the_fused_operations") {
        return;
    }
    for (case, what) in cases() {
        let fused = train(&case, &Backend::CPU);
        let kernels = with_kernels(|| train(&case, &Backend::CPU));
        assert_agree(&what, &fused, &kernels);
        assert!(values(&fused) != values(&kernels), "{what}: they agree because they are the same");
    }
}

#[test]
fn halves_train_nearly_like_floats() {
    if !emulator::there_is("halves_train_nearly_like_floats") {
        return;
    }
    let halves = Backend { precision: Precision::Bf16, ..Backend::CPU };
    for (case, what) in cases() {
        let floats = train(&case, &Backend::CPU);
        let trained = with_kernels(|| train(&case, &halves));
        for (step, (a, b)) in floats.losses.iter().zip(&trained.losses).enumerate() {
            assert!((a - b).abs() <= 1e-2 * a.abs(), "{what}, step {step}: {a} {b}");
        }
        assert!(floats.losses != trained.losses, "{what}: they agree because they are the same");
    }
}

#[test]
fn any_number_of_threads_trains_the_same_model() {
    for (case, what) in cases() {
        let [one, three] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(&train(&case, &Backend::CPU)))
        });
        assert!(one == three, "{what}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_trains_like_the_cpu() {
    let Some(gpu) = gpu("a_gpu_trains_like_the_cpu") else { return };
    for (case, what) in cases() {
        let on_cpu = train(&case, &Backend::CPU);
        let on_gpu = train(&case, &Backend { device: gpu.clone(), precision: Precision::F32 });
        assert!(on_gpu.model.ids().weight.device().is_cuda());
        assert_agree(&what, &on_cpu, &on_gpu);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_model_moves_between_devices() {
    let Some(gpu) = gpu("a_model_moves_between_devices") else { return };
    let gpu = Backend { device: gpu, precision: Precision::F32 };
    let trained = train((Architecture::ClimberPilot, Loss::Sampled, 0.0), &gpu);
    let config = config(Architecture::ClimberPilot, MaskMode::Gather);
    let vocabulary = Arc::new(trained.model.vocabulary().clone());
    let saved = trained.model.tensors().into();
    let model = SequenceModel::saved(&config, &Sft::default(), vocabulary, saved, &Backend::CPU).unwrap();
    let values = &trained.adam.tensors().into();
    let adam = Adam::restored(&model, SavedLearner { values, steps: STEPS }, SETTINGS).unwrap();
    let moved = Trained { losses: trained.losses.clone(), model, adam };
    assert_agree("to the CPU", &trained, &moved);
    let data = sequences(&long_histories(), 900_000);
    let of = |model: &SequenceModel| logits(model, &data, MaskMode::Gather, 1);
    for ((_, a), (_, b)) in of(&trained.model).iter().zip(of(&moved.model)) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
