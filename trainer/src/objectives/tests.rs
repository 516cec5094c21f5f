//! Compares the losses with their definitions: plain sums over the catalogue, in 64 bits.

use std::collections::{BTreeMap, BTreeSet};

use ragged::Candidates;
use rand::Rng as _;
use schemas::config::{MaskMode, Paradigm, Sft};

use super::*;
use crate::data::{ExampleHistory, Examples, ItemIndex, SequencesTable, Token, ids};
use crate::kinds::compute;
use crate::models::SequenceModel;
use crate::models::tests::instruct::random_taught;
use crate::models::tests::{ITEMS, draws, every_item, logits, model, pretrain, row_of_all, sequences};
use crate::random;

const MASK: MaskMode = MaskMode::Gather;

/// Histories that cover the catalogue, with items that repeat, that several users share and that only one user has.
fn histories() -> Vec<Vec<(u32, i64)>> {
    let rows: [&[u32]; 5] = [&[1, 2, 3, 1], &[3, 4, 5], &[1, 6, 7, 8], &[9, 9, 10], &[11, 12, 3, 10, 1]];
    rows.map(|items| items.iter().map(|&item| (item, 1_000)).collect()).to_vec()
}

fn sampled(uniform_negatives: usize, in_batch_negatives: bool) -> Pretrain {
    Pretrain { uniform_negatives, in_batch_negatives, ..pretrain(Loss::Sampled) }
}

/// All subsets of `0..n` with `size` members.
fn subsets(n: u32, size: u32) -> Vec<Vec<u32>> {
    let members = |mask: u32| (0..n).filter(|i| mask >> i & 1 == 1).collect::<Vec<_>>();
    (0..1 << n).filter(|mask: &u32| mask.count_ones() == size).map(members).collect()
}

/// Amount that each competitor of a row adds to its normaliser if all items have `exp(score) = 1`; the target itself is left out.
fn added(
    plan: &Plan,
    candidates: &[ItemIndex],
    asked: &BranchTargets,
    row: usize,
) -> BTreeMap<ItemIndex, f64> {
    let Candidates::Sampled { shift, excluded_offsets, excluded, certain_ranges, certain } =
        &*asked.competitors
    else {
        panic!("not sampled")
    };
    assert!(plan.candidates.is_some());
    let excluded = &excluded[excluded_offsets[row] as usize..excluded_offsets[row + 1] as usize];
    let certain = &certain[certain_ranges[2 * row] as usize..certain_ranges[2 * row + 1] as usize];
    let competing = (0u32..).zip(shift).filter(|(c, _)| !excluded.contains(c));
    competing
        .map(|(c, &shift)| {
            (candidates[c as usize], if certain.contains(&c) { 1.0 } else { f64::from(shift).exp() })
        })
        .collect()
}

/// Items that an anchor predicts, sums of what each item added to its normaliser, number of steps.
type Additions = (Vec<ItemIndex>, BTreeMap<ItemIndex, f64>, f64);

/// Returns, for every target of `data`, the predicted items and each item's mean addition to the normaliser, over all batches
/// that contain the row and `steps` draws for each: 1 if the estimate is unbiased.
fn expected_additions(
    data: &SequencesTable,
    config: &Pretrain,
    (branches, batch_size, steps): (usize, u32, u64),
) -> Vec<(Vec<ItemIndex>, BTreeMap<ItemIndex, f64>)> {
    let model = model(MASK);
    let loss = SampledSoftmax {
        config: config.clone(),
        draws: draws(data, MASK, branches),
        unconditional_weight: 0.0,
        seed: 1,
    };
    let rows = data.rows() as u32;
    // By row of the data, branch and anchor.
    let mut sums: BTreeMap<(u32, usize, u32), Additions> = BTreeMap::new();
    for chosen in subsets(rows, batch_size) {
        for step in 0..steps {
            let batch = TrainingBatch::pretrain(data, &chosen, MASK, branches, true, None);
            let negatives = loss.negatives(&batch, step);
            let candidates: Vec<ItemIndex> = negatives.candidates().collect();
            let plan = loss.plan(model.vocabulary(), batch, step);
            for (k, (of_branch, anchors)) in plan.branches.iter().zip(&plan.batch.branches).enumerate() {
                let Some(asked) = &of_branch.plain else { continue };
                for (i, &position) in anchors.positions.iter().enumerate() {
                    let row =
                        (0..rows).find(|&row| data.row(row as usize).contains(&(position as usize))).unwrap();
                    let end = data.row(row as usize).end;
                    let predicted = (0..branches).map(|k| position as usize + k).filter(|&p| p < end);
                    let predicted = predicted.map(|p| data.items[p]).collect();
                    let (_, sums, n) =
                        sums.entry((row, k, position)).or_insert_with(|| (predicted, BTreeMap::new(), 0.0));
                    *n += 1.0;
                    for (item, value) in added(&plan, &candidates, asked, i) {
                        *sums.entry(item).or_default() += value;
                    }
                }
            }
        }
    }
    let mean = |(predicted, sums, n): (_, BTreeMap<ItemIndex, f64>, f64)| {
        (predicted, sums.into_iter().map(|(item, sum)| (item, sum / n)).collect())
    };
    sums.into_values().map(mean).collect()
}

#[test]
fn in_batch_negatives_estimate_the_full_normaliser_without_bias() {
    let data = sequences(&histories(), 0);
    for (branches, batch_size) in [(1, 2), (1, 3), (2, 2), (2, 3), (1, 5)] {
        // Without uniform negatives: with batches of two or more rows, some batch of each row contains every item.
        let targets = expected_additions(&data, &sampled(0, true), (branches, batch_size, 1));
        assert_eq!(targets.len(), data.items.len() + (branches - 1) * (data.items.len() - data.rows()));
        for (predicted, means) in targets {
            for item in every_item().into_iter().filter(|item| !predicted.contains(item)) {
                let mean = means.get(&item).copied().unwrap_or_default();
                assert!((mean - 1.0).abs() < 1e-5, "{branches}, {batch_size}, {item:?}: {mean}");
            }
            assert!(predicted.iter().all(|item| !means.contains_key(item)), "{predicted:?} {means:?}");
        }
    }
}

#[test]
fn with_uniform_negatives_the_estimate_stays_unbiased() {
    let data = sequences(&histories(), 0);
    for in_batch in [true, false] {
        let targets = expected_additions(&data, &sampled(3, in_batch), (1, 2, 800));
        let mut errors = Vec::new();
        for (predicted, means) in targets {
            let others = every_item().into_iter().filter(|item| !predicted.contains(item));
            errors.extend(others.map(|item| means.get(&item).copied().unwrap_or_default() - 1.0));
        }
        let worst = errors.iter().fold(0f64, |worst, error| worst.max(error.abs()));
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(worst < 0.15 && bias.abs() < 0.01, "{in_batch}: {worst} {bias}");
    }
}

fn choose(n: usize, k: usize) -> f64 {
    if k > n { 0.0 } else { (0..k).map(|i| (n - i) as f64 / (k - i) as f64).product() }
}

/// Returns `Q` of `item` in a batch of `chosen` rows, for a row that does not predict it.
fn chance(data: &SequencesTable, item: ItemIndex, chosen: usize, config: &Pretrain) -> f64 {
    let holds = |row: usize| data.items[data.row(row)].contains(&item);
    let (m, others) = ((0..data.rows()).filter(|&row| holds(row)).count(), data.rows() - 1);
    let in_batch = if config.in_batch_negatives {
        choose(others.saturating_sub(m), chosen - 1) / choose(others, chosen - 1)
    } else {
        1.0
    };
    1.0 - in_batch * (1.0 - 1.0 / f64::from(ITEMS)).powi(config.uniform_negatives as i32)
}

#[test]
fn the_sampled_loss_of_two_branches_is_the_sum_of_its_definition() {
    let data = sequences(&histories(), 0);
    let model = model(MASK);
    let weights: Vec<f32> = (0..data.rows()).map(|row| 0.5 + 0.25 * row as f32).collect();
    let all: Vec<Vec<(u32, Vec<f32>)>> = (1..=2).map(|k| logits(&model, &data, MASK, k)).collect();
    let chosen = [0u32, 2, 3];
    for (in_batch, corrected) in [(true, true), (true, false), (false, true)] {
        let config = Pretrain { sampling_correction: corrected, ..sampled(3, in_batch) };
        let loss = objective(&config, draws(&data, MASK, 2), 1, 0.0);
        let batch = TrainingBatch::pretrain(&data, &chosen, MASK, 2, true, Some(&weights));
        let plan = loss.plan(model.vocabulary(), batch, 7);
        let value = compute(&*loss, &model, &plan, None).unwrap().loss.to_scalar::<f32>().unwrap();

        let mut generator = random::generator(1, "negatives", 7);
        let draw = |_| ItemIndex::new(generator.random_range(1..=ITEMS));
        let mut negatives: BTreeSet<ItemIndex> = (0..3).map(draw).collect();
        if in_batch {
            negatives.extend(chosen.iter().flat_map(|&row| &data.items[data.row(row as usize)]));
        }
        let mut expected = 0.0;
        for (k, logits) in all.iter().enumerate() {
            let in_branch = |p: usize| {
                chosen.iter().any(|&row| {
                    let positions = data.row(row as usize);
                    positions.contains(&p) && p + k < positions.end
                })
            };
            let asked: Vec<&(u32, Vec<f32>)> =
                logits.iter().filter(|(position, _)| in_branch(*position as usize)).collect();
            for (position, logits) in &asked {
                let row =
                    (0..data.rows()).find(|&row| data.row(row).contains(&(*position as usize))).unwrap();
                let end = data.row(row).end;
                let targets: Vec<ItemIndex> =
                    (*position as usize..end.min(*position as usize + 2)).map(|p| data.items[p]).collect();
                let target = data.items[*position as usize + k];
                let logit = |item: ItemIndex| f64::from(logits[item.index() - 1]);
                let mut normaliser = logit(target).exp();
                for &item in negatives.iter().filter(|item| !targets.contains(item)) {
                    let own = in_batch && data.items[data.row(row)].contains(&item);
                    let q = if own || !corrected { 1.0 } else { chance(&data, item, chosen.len(), &config) };
                    normaliser += logit(item).exp() / q;
                }
                let share = f64::from(weights[row]) / asked.len() as f64;
                expected += share * (normaliser.ln() - logit(target));
            }
        }
        let error = (f64::from(value) - expected).abs() / expected;
        assert!(error < 1e-5, "{in_batch}, {corrected}: {value} {expected}");
    }
}

/// Examples of two users; the conditions are rows 0 to 2, the genres.
fn examples() -> Examples {
    // (history, items before the target, visible, target, condition, weight)
    let all = [
        (0, 4, 4, 5, 0, 1.0),
        (0, 4, 4, 5, 1, 0.5),
        (0, 3, 2, 9, 2, 1.5),
        (1, 2, 1, 3, 1, 1.0),
        (1, 2, 2, 5, 0, 1.0),
    ];
    let histories = [vec![1, 2, 3, 4], vec![7, 8]];
    let mut examples = Examples { offsets: vec![0], ..Examples::default() };
    for (h, items) in histories.iter().enumerate() {
        examples.histories.push(ExampleHistory {
            items: ids(items),
            ts: (0..items.len() as i64).map(|i| i * 60_000).collect(),
            examples: (0u32..).zip(all).filter(|(_, e)| e.0 == h).map(|(i, _)| i).collect(),
        });
    }
    for (history, before, visible, target, condition, weight) in all {
        examples.history.push(history as u32);
        // In the tests' catalogue, item `i` carries genre `a` if `i % 3 == 1`, `b` and `c` if it is 2.
        let carries = |item: &u32| match condition {
            0 => item % 3 == 1,
            _ => item % 3 == 2,
        };
        examples.matches.extend(histories[history][..before].iter().map(carries));
        examples.offsets.push(examples.matches.len());
        examples.visible.push(visible);
        examples.targets.push(ItemIndex::new(target));
        examples.conditions.push(condition.into());
        examples.weights.push(weight);
    }
    for history in &mut examples.histories {
        let before = |&e: &u32| all[e as usize].1;
        history.examples.sort_by_key(before);
    }
    examples
}

/// Returns the logits of one example in branch `k` (from 1), with its truncated history encoded alone, under its condition or
/// without one.
fn alone(model: &SequenceModel, examples: &Examples, e: usize, k: usize, instructed: bool) -> Vec<f32> {
    let history = &examples.histories[examples.history[e] as usize];
    let shown = (examples.visible[e] as usize).saturating_sub(k - 1);
    let mut batch = crate::batch::HistoryBatch::new(MaskMode::Gather);
    batch.push(history.items[..shown].iter().map(row_of_all), &history.ts[..shown], &[]);
    let tokens = batch.into_tokens();
    let vectors = model.item_vectors(&every_item()).unwrap().vectors;
    let histories = model.histories(&tokens, &vectors, None);
    let hidden = if instructed {
        let mut matches = vec![true];
        matches.extend_from_slice(&examples.matches[examples.flags(e)][..shown]);
        let reads = crate::models::Reads {
            tokens: vec![Token::new(shown as u32)],
            conditions: vec![examples.conditions[e]],
            matches,
        };
        model.read(k, &histories, &reads).unwrap()
    } else {
        model.read_plain(k, &histories, &[Token::new(shown as u32)]).unwrap()
    };
    let candidates = model.candidates(&vectors).unwrap();
    hidden.matmul(&candidates.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn fine_tuning_predicts_one_target_from_ever_shorter_histories_with_and_without_its_condition() {
    let sft = Sft { paradigm: Paradigm::Cgsa, ..Sft::default() };
    let model = random_taught(&sft);
    let examples = examples();
    let units: Vec<u32> = vec![0, 1];
    let predicted = |&h: &u32| TrainingBatch::instructed_items(&examples, h, MASK, true);
    let draws = Draws::new(ITEMS as usize, units.iter().map(predicted));
    for (loss, unconditional) in [(Loss::Full, 0.0), (Loss::Full, 0.3), (Loss::Sampled, 0.3)] {
        let config = match loss {
            Loss::Full => pretrain(loss),
            Loss::Sampled => sampled(4, true),
        };
        let loss_of = objective(&config, draws.clone(), 1, unconditional);
        let batch = TrainingBatch::instructed(&examples, &units, MASK, 2, true);
        let plan = loss_of.plan(model.vocabulary(), batch, 3);
        let value = compute(&*loss_of, &model, &plan, None).unwrap().loss.to_scalar::<f32>().unwrap();

        let mut generator = random::generator(1, "negatives", 3);
        let draw = |_| ItemIndex::new(generator.random_range(1..=ITEMS));
        let drawn: Vec<ItemIndex> = (0..4).map(draw).collect();
        let negatives: BTreeSet<ItemIndex> =
            drawn.into_iter().chain(examples.targets.iter().copied()).collect();
        let mut expected = 0.0;
        for k in 1..=2 {
            for e in 0..examples.len() {
                let target = examples.targets[e];
                // Every batch contains both histories: items that they predict are negatives with certainty.
                let missed = (1.0 - 1.0 / f64::from(ITEMS)).powi(4);
                let q = |item: ItemIndex| if examples.targets.contains(&item) { 1.0 } else { 1.0 - missed };
                for (instructed, weight) in [(true, 1.0), (false, unconditional)] {
                    let logits = alone(&model, &examples, e, k, instructed);
                    let logit = |item: ItemIndex| f64::from(logits[item.index() - 1]);
                    let sum: f64 = match loss {
                        Loss::Full => every_item().into_iter().map(|item| logit(item).exp()).sum(),
                        Loss::Sampled => {
                            let others = negatives.iter().filter(|&&item| item != target);
                            logit(target).exp() + others.map(|&item| logit(item).exp() / q(item)).sum::<f64>()
                        }
                    };
                    let share = f64::from(examples.weights[e]) / examples.len() as f64;
                    expected += weight * share * (sum.ln() - logit(target));
                }
            }
        }
        let error = (f64::from(value) - expected).abs() / expected;
        assert!(error < 1e-5, "{loss:?}, {unconditional}: {value} {expected}");
    }
}
