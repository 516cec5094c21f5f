//! Properties of the models that hold for any parameter values.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use schemas::config::{Architecture, Loss, MaskMode, Model, Precision, Pretrain, Sft};
use schemas::history::{DeltaTau, Role, request_batches, visible_lengths};

use super::*;
use crate::batch::TrainingBatch;
use crate::data::{Catalogue, IdRow, SequencesTable, from_u32s, ids};
use crate::device::Backend;
use crate::kinds::{Adam, AdamSettings, compute, differentiate};
use crate::objectives::Draws;
use crate::objectives::objective;

mod devices;
mod grow;
pub(crate) mod instruct;

pub(crate) const ITEMS: u32 = 12;

pub(crate) const ARCHITECTURES: [Architecture; 3] =
    [Architecture::ClimberPilot, Architecture::Sasrec, Architecture::Hstu];

fn config(architecture: &Architecture, mask: MaskMode) -> Model {
    Model {
        architecture: architecture.clone(),
        d: 8,
        layers: 2,
        heads: 2,
        branches: if *architecture == Architecture::ClimberPilot { 2 } else { 1 },
        feed_forward: 2,
        mask,
        attributes: vec!["genre".into()],
        max_distance: 8,
        // Shorter than many of the rows.
        max_positions: 40,
        hash_buckets: 3,
        min_count: 2,
        dropout: 0.1,
        time_bias: true,
        score_temperature: 0.0,
    }
}

pub(crate) fn catalogue() -> Catalogue {
    let genres: [&[&str]; 3] = [&["a"], &["b", "c"], &[]];
    let ids: Vec<String> = (1..=ITEMS).map(|i| i.to_string()).collect();
    let items: Vec<_> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), genres[i % 3])).collect();
    Catalogue::example(&items)
}

/// A model with random values everywhere: initial biases are zero, which would hide their effect.
pub(crate) fn random_model(architecture: &Architecture, mask: MaskMode) -> SequenceModel {
    random_model_on(architecture, mask, &Backend::CPU)
}

fn random_model_on(architecture: &Architecture, mask: MaskMode, backend: &Backend) -> SequenceModel {
    let config = config(architecture, mask);
    let counts: Vec<u32> = (0..=ITEMS).map(|i| i % 4).collect();
    let vocabulary = Vocabulary::new(&config, &catalogue(), &counts);
    let model = SequenceModel::new(&config, &Sft::default(), Arc::new(vocabulary), 1, backend).unwrap();
    for (name, var) in model.parameters().iter() {
        let noise = parameters::normal(2, name, var.elem_count(), 0.3).unwrap();
        let noise = Tensor::from_vec(noise, var.shape(), &backend.device).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    model
}

pub(crate) fn model(mask: MaskMode) -> SequenceModel {
    random_model(&Architecture::ClimberPilot, mask)
}

#[test]
fn scores_with_a_temperature_are_cosines() {
    let inner = model(MaskMode::None);
    let cosine = SequenceModel { score_temperature: 0.1, ..inner.clone() };
    let data = sequences(&[(1..=ITEMS).map(|item| (item, 60)).collect()], 0);
    let vectors = inner.item_vectors(&every_item()).unwrap().vectors;
    let lengths = vectors.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
    let rows = |model| logits(model, &data, MaskMode::None, 1);
    for ((_, inner), (_, cosine)) in rows(&inner).into_iter().zip(rows(&cosine)) {
        // They differ by one factor: the length of the hidden state, over ten.
        let factors: Vec<f32> =
            inner.iter().zip(&lengths).zip(&cosine).map(|((inner, length), c)| inner / length / c).collect();
        assert!(factors.iter().all(|f| (f / factors[0] - 1.0).abs() < 1e-2), "{factors:?}");
    }
    // An item's cosine with itself is 1.
    let candidates = cosine.candidates(&vectors).unwrap();
    let own = (&candidates * &candidates).unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    assert!(own.iter().all(|own| (own - 1.0).abs() < 1e-5));
    let tokens = Tokens {
        embedding: ids(&[0, 1]),
        layout: Arc::new(AttentionLayout { offsets: vec![0, 2], times: vec![0, 0], ..Default::default() }),
    };
    let backbone = cosine.backbone(&tokens, &vectors, None).unwrap();
    let hidden = cosine.branch(1, &backbone, &tokens.layout, from_u32s(&[0, 1]), None).unwrap();
    let lengths = hidden.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    assert!(lengths.iter().all(|length| (length - 100.0).abs() < 1e-2), "{lengths:?}");
}

/// One row per history of (item, seconds since the previous event); every event is a pre-training target.
pub(crate) fn sequences(histories: &[Vec<(u32, i64)>], margin_ms: i64) -> SequencesTable {
    let mut all = SequencesTable { offsets: vec![0], ..SequencesTable::default() };
    for history in histories {
        let mut now = 1_000_000_000_000;
        let ts: Vec<i64> = history
            .iter()
            .map(|(_, step)| {
                now += step * 1000;
                now
            })
            .collect();
        let requests = request_batches(&ts, &vec![None::<&str>; ts.len()], 0);
        all.visible.extend(visible_lengths(&ts, &requests, DeltaTau::Margin(margin_ms)));
        all.items.extend(history.iter().map(|&(item, _)| ItemIndex::new(item)));
        all.roles.extend(history.iter().map(|_| Role::Pretrain));
        all.ts.extend(ts);
        all.target_from.push(0);
        all.user.push(all.users.len() as u32);
        all.users.push(String::new());
        all.places.extend(0..history.len() as u32);
        all.leaves_out.push(false);
        all.offsets.push(all.items.len());
    }
    all
}

/// All items of the catalogue.
pub(crate) fn every_item() -> Vec<ItemIndex> {
    ItemIndex::all(ITEMS as usize).collect()
}

/// Vector row of `item` after the start, among the vectors of [`every_item`].
pub(crate) fn row_of_all(item: &ItemIndex) -> VectorRow {
    VectorRow::new(item.get())
}

/// How often batches of the rows of `data` contain each item.
pub(crate) fn draws(data: &SequencesTable, mask: MaskMode, branches: usize) -> Draws {
    let predicted = |row| TrainingBatch::predicted(data, row, mask, branches, true);
    Draws::new(ITEMS as usize, (0..data.rows() as u32).map(predicted))
}

/// Logits over the catalogue of branch `k` for each of its targets, with the target's position.
pub(crate) fn logits(
    model: &SequenceModel,
    data: &SequencesTable,
    mask: MaskMode,
    k: usize,
) -> Vec<(u32, Vec<f32>)> {
    let rows: Vec<u32> = (0..data.rows() as u32).collect();
    let batch = TrainingBatch::pretrain(data, &rows, mask, model.branches(), true, None);
    let vectors = model.item_vectors(&every_item()).unwrap().vectors;
    let embedding = batch.items.iter().map(row_of_all).collect();
    let tokens = Tokens { embedding, layout: batch.layout.clone() };
    let backbone = model.backbone(&tokens, &vectors, None).unwrap();
    let anchors = &batch.branches[k - 1];
    let hidden = model.branch(k, &backbone, &batch.layout, &anchors.tokens, None).unwrap();
    let candidates = model.candidates(&vectors).unwrap();
    let logits = hidden.matmul(&candidates.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    anchors.positions.iter().copied().zip(logits).collect()
}

fn histories() -> impl Strategy<Value = Vec<(u32, i64)>> {
    prop::collection::vec((1..=ITEMS, prop_oneof![0i64..5, 500i64..2000]), 2..90)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Eq. 1 holds for `gather`: neither hidden items nor those after the target affect its prediction.
    #[test]
    fn hidden_items_cannot_change_a_gather_prediction(history in histories(), replaced in prop::collection::vec(1..=ITEMS, 90), at in any::<prop::sample::Index>()) {
        let data = sequences(std::slice::from_ref(&history), 900_000);
        let t = at.index(history.len());
        let visible = data.visible[t] as usize;
        let mut changed = history.clone();
        for ((item, _), other) in changed.iter_mut().zip(&replaced).skip(visible) {
            *item = *other;
        }
        let other = sequences(&[changed], 900_000);
        for architecture in &ARCHITECTURES {
            let model = random_model(architecture, MaskMode::Gather);
            for k in 1..=model.branches() {
                let of = |data| logits(&model, data, MaskMode::Gather, k).into_iter().find(|(p, _)| *p as usize == t);
                prop_assert_eq!(of(&data), of(&other), "{:?}, branch {}", architecture, k);
            }
        }
    }

    /// `gather` equals encoding each target's visible prefix on its own, up to rounding.
    #[test]
    fn gather_equals_encoding_the_visible_prefix(history in histories(), architecture in prop::sample::select(&ARCHITECTURES[..])) {
        let model = random_model(&architecture, MaskMode::Gather);
        let data = sequences(std::slice::from_ref(&history), 900_000);
        for (position, together) in logits(&model, &data, MaskMode::Gather, 1) {
            let visible = data.visible[position as usize] as usize;
            // A target so long after the prefix that it sees all of it.
            let mut alone = history[..visible].to_vec();
            alone.push((1, 1_000_000));
            let alone = sequences(&[alone], 900_000);
            let (_, alone) = logits(&model, &alone, MaskMode::Gather, 1).pop().unwrap();
            for (a, b) in together.iter().zip(&alone) {
                prop_assert!((a - b).abs() < 1e-3, "{} {}", a, b);
            }
        }
    }
}

#[test]
fn row_mode_leaks_through_the_residual_stream() {
    // The known leak of this ablation: at row t − 1 the hidden item is its own query.
    for architecture in &ARCHITECTURES {
        let model = random_model(architecture, MaskMode::Row);
        let of = |item| {
            let data = sequences(&[vec![(1, 0), (item, 5000), (3, 1)]], 900_000);
            logits(&model, &data, MaskMode::Row, 1).pop().unwrap()
        };
        assert_ne!(of(2), of(5), "{architecture:?}");
    }
}

#[test]
fn every_architecture_knows_the_order_of_the_items() {
    for architecture in &ARCHITECTURES {
        let model = random_model(architecture, MaskMode::None);
        let last = |history: &[u32]| {
            let history: Vec<_> = history.iter().map(|&item| (item, 0)).collect();
            logits(&model, &sequences(&[history], 0), MaskMode::None, 1).pop().unwrap().1
        };
        let (a, b) = (last(&[1, 2, 3, 4, 1]), last(&[2, 1, 3, 4, 1]));
        assert!(a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-3), "{architecture:?}: {a:?} {b:?}");
    }
}

pub(crate) fn pretrain(loss: Loss) -> Pretrain {
    Pretrain { loss, uniform_negatives: 4, ..Pretrain::default() }
}

pub(crate) fn long_histories() -> Vec<Vec<(u32, i64)>> {
    (0..8)
        .map(|u| (0..30).map(|i| (1 + (i * 7 + u * 5) % ITEMS, i64::from(i % 3) * 1300)).collect())
        .collect()
}

#[test]
fn every_parameter_receives_a_gradient() {
    let data = sequences(&long_histories(), 900_000);
    let rows: Vec<u32> = (0..data.rows() as u32).collect();
    let masks = [MaskMode::Gather, MaskMode::Row, MaskMode::None];
    for (architecture, mask) in ARCHITECTURES.iter().flat_map(|a| masks.map(|mask| (a, mask))) {
        for loss in [Loss::Full, Loss::Sampled] {
            let what = format!("{architecture:?}, {mask:?}");
            let model = random_model(architecture, mask);
            let batch = TrainingBatch::pretrain(&data, &rows, mask, model.branches(), true, None);
            let loss = objective(&pretrain(loss), draws(&data, mask, model.branches()), 1, 0.0);
            let plan = loss.plan(model.vocabulary(), batch.clone(), 0);
            let (gradients, step) = differentiate(&*loss, &model, &plan, None).unwrap();
            for (name, var) in model.parameters().iter() {
                let gradient =
                    gradients.get(var).unwrap_or_else(|| panic!("{what}: no gradient reaches {name}"));
                let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(size > 0.0 && size.is_finite(), "{what}: the gradient of {name} is {size}");
            }
            let ids = gradients.get(&step.touched.values).unwrap().abs().unwrap().sum(1).unwrap();
            assert!(ids.to_vec1::<f32>().unwrap().iter().all(|&g| g > 0.0));
        }
    }
}

#[test]
fn a_sampled_softmax_over_everything_is_the_full_one() {
    let data = sequences(&long_histories(), 900_000);
    let rows: Vec<u32> = (0..data.rows() as u32).collect();
    let model = model(MaskMode::Gather);
    // One branch: with several, items that other branches predict are excluded as negatives.
    let batch = TrainingBatch::pretrain(&data, &rows, MaskMode::Gather, 1, true, None);
    let value = |config: Pretrain| {
        let loss = objective(&config, draws(&data, MaskMode::Gather, 1), 1, 0.0);
        compute(&*loss, &model, &loss.plan(model.vocabulary(), batch.clone(), 0), None)
            .unwrap()
            .loss
            .to_scalar::<f32>()
            .unwrap()
    };
    // So many draws that every item is surely a negative, with a correction of 0.
    let sampled = value(Pretrain { uniform_negatives: 2000, ..pretrain(Loss::Sampled) });
    let full = value(pretrain(Loss::Full));
    assert!((sampled - full).abs() < 1e-3, "{sampled} {full}");
}

#[test]
fn the_sampled_loss_is_the_softmax_over_the_target_and_the_drawn_items() {
    let data = sequences(&long_histories(), 900_000);
    let rows: Vec<u32> = (0..data.rows() as u32).collect();
    for (score_temperature, sampling_correction) in [(0.0, false), (0.0, true), (0.1, true)] {
        let model = SequenceModel { score_temperature, ..model(MaskMode::Gather) };
        let batch = TrainingBatch::pretrain(&data, &rows, MaskMode::Gather, 1, true, None);
        let uniform_negatives = 5;
        let config = Pretrain {
            uniform_negatives,
            in_batch_negatives: false,
            sampling_correction,
            ..pretrain(Loss::Sampled)
        };
        let loss = objective(&config, draws(&data, MaskMode::Gather, 1), 1, 0.0);
        let value = compute(&*loss, &model, &loss.plan(model.vocabulary(), batch.clone(), 3), None)
            .unwrap()
            .loss
            .to_scalar::<f32>()
            .unwrap();

        let mut generator = crate::random::generator(1, "negatives", 3);
        let draw = |_| ItemIndex::new(rand::Rng::random_range(&mut generator, 1..=ITEMS));
        let drawn: std::collections::BTreeSet<ItemIndex> = (0..uniform_negatives).map(draw).collect();
        let missed = (1.0 - 1.0 / f64::from(ITEMS)).powi(uniform_negatives as i32);
        let shift = if sampling_correction { -(1.0 - missed).ln() } else { 0.0 };
        let rows = logits(&model, &data, MaskMode::Gather, 1);
        let targets = &batch.branches[0].items;
        let losses = rows.iter().zip(targets).map(|((_, logits), &target)| {
            let logit = |item: ItemIndex| f64::from(logits[item.index() - 1]);
            let others = drawn.iter().filter(|&&item| item != target);
            let sum = logit(target).exp() + others.map(|&item| (logit(item) + shift).exp()).sum::<f64>();
            sum.ln() - logit(target)
        });
        let expected = losses.sum::<f64>() / targets.len() as f64;
        assert!((f64::from(value) - expected).abs() < 1e-4 * expected, "{value} {expected}");
    }
}

#[test]
fn training_lowers_the_loss_and_touches_only_its_rows() {
    let data = sequences(&long_histories()[..2], 900_000);
    let model = model(MaskMode::Gather);
    let before = model.ids().weight.copy().unwrap().to_vec2::<f32>().unwrap();
    let loss = objective(&pretrain(Loss::Sampled), draws(&data, MaskMode::Gather, 2), 1, 0.0);
    let mut adam = Adam::new(&model, AdamSettings { weight_decay: 0.0, clip_norm: 5.0 }).unwrap();
    let mut losses = Vec::new();
    let mut touched = std::collections::BTreeSet::new();
    for step in 0..60 {
        let batch = TrainingBatch::pretrain(&data, &[0, 1], MaskMode::Gather, 2, true, None);
        let plan = loss.plan(model.vocabulary(), batch.clone(), step % 4);
        let (gradients, result) = differentiate(&*loss, &model, &plan, None).unwrap();
        touched.extend(result.touched.rows.iter());
        adam.step(&model, &result.touched, &gradients, 1e-2.into()).unwrap();
        losses.push(result.loss.to_scalar::<f32>().unwrap());
    }
    assert!(losses[56] < 0.7 * losses[0], "{losses:?}");
    let after = model.ids().weight.to_vec2::<f32>().unwrap();
    for (row, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before != after, touched.contains(&IdRow::new(row as u32)), "row {row}");
    }
}
