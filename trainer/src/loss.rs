//! The losses of TAMIP (Eq. 3 and 4) and of fine-tuning (Eq. 6): the sum over branches of the mean softmax cross-entropy of
//! their targets; in fine-tuning of what is read under a condition, and, against forgetting, without one.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use rand::Rng;
use schemas::config::{Loss, Pretrain};
use schemas::tables::NO_ITEM;

use crate::data::{Anchors, Batch, ItemSet};
use crate::model::{ClimberPilot, ItemRows, Tokens, TouchedRows};
use crate::ops::{self, Candidates, Dropout, Targets};
use crate::random;
use crate::vocabulary::Vocabulary;

/// A step's loss.
#[derive(Debug)]
pub struct StepLoss {
    /// `Σ_k` of the mean loss of branch `k`: a scalar.
    pub loss: Tensor,
    /// What the optimiser has to write back of the id table.
    pub touched: TouchedRows,
}

/// What a step computes: which rows of which tables, and who competes with whom.
#[derive(Debug)]
pub struct Plan {
    /// The batch.
    pub batch: Batch,
    /// Of the items that the step needs.
    rows: ItemRows,
    /// The histories, in terms of those items.
    tokens: Tokens,
    /// Of those items, the candidates; all of them in a full softmax.
    candidates: Option<Vec<u32>>,
    branches: Vec<BranchPlan>,
}

impl Plan {
    /// Candidates that compete with every target.
    pub fn competitors(&self) -> usize {
        let asked =
            self.branches.iter().find_map(|branch| branch.instructed.as_ref().or(branch.plain.as_ref()));
        let all = self.candidates.as_ref().map_or(self.rows.items(), Vec::len);
        asked.map_or(0, |asked| asked.competitors.competing(all))
    }
}

/// What is asked of one branch.
#[derive(Debug, Default)]
struct BranchPlan {
    /// Under the conditions of the batch's reads (Eq. 6).
    instructed: Option<Asked>,
    /// Without any.
    plain: Option<Asked>,
}

/// Targets at rows of the batch, and what competes with them.
#[derive(Debug)]
struct Asked {
    rows: Vec<u32>,
    targets: Arc<Targets>,
    competitors: Arc<Candidates>,
}

/// What the loss needs to know besides the batch.
#[derive(Debug)]
pub struct TamipLoss {
    config: Pretrain,
    items: usize,
    /// Share of the training events by item index, for the sampling correction.
    frequencies: Vec<f64>,
    /// Weight of the loss without instructions beside that with them.
    unconditional_weight: f64,
    seed: u64,
}

impl TamipLoss {
    /// For a catalogue with `counts` training events by item index.
    pub fn new(config: &Pretrain, counts: &[u32], seed: u64) -> Self {
        let total = counts.iter().map(|&n| f64::from(n)).sum::<f64>().max(1.0);
        Self {
            config: config.clone(),
            items: counts.len() - 1,
            frequencies: counts.iter().map(|&n| f64::from(n) / total).collect(),
            unconditional_weight: 0.0,
            seed,
        }
    }

    /// The loss of fine-tuning: what is read under a condition is read without one too, with this weight.
    #[must_use]
    pub fn with_unconditional(self, weight: f64) -> Self {
        Self { unconditional_weight: weight, ..self }
    }

    /// What a step on `batch` is to compute, of a model with this vocabulary; `step` seeds what is random. It knows no values: it
    /// can be made while the steps before are still going on.
    pub fn plan(&self, vocabulary: &Vocabulary, batch: Batch, step: u64) -> Plan {
        let negatives = match self.config.loss {
            Loss::Full => None,
            Loss::Sampled => Some(self.negatives(&batch, step)),
        };
        // The items whose vectors this step needs, ascending.
        let items = match &negatives {
            None => ItemSet::new(self.items + 1, 1..=self.items as u32),
            Some(negatives) => {
                let inputs = batch.items.iter().filter(|&&item| item != NO_ITEM);
                ItemSet::new(self.items + 1, inputs.copied().chain(negatives.candidates()))
            }
        };
        let place = |item: u32| items.rank(item);
        let asked = |anchors: &Anchors, apart: bool| {
            let (rows, targets, competitors) = match &negatives {
                None => {
                    let (rows, targets) = grouped(anchors, apart);
                    (rows, targets, Candidates::All)
                }
                Some(negatives) => negatives.targets(anchors),
            };
            Asked { rows, targets: Arc::new(targets), competitors: Arc::new(competitors) }
        };
        let of_branch = |anchors: &Anchors| {
            if anchors.items.is_empty() {
                return BranchPlan::default();
            }
            let instructed = anchors.reads.as_ref().map(|_| asked(anchors, true));
            let plain = instructed.is_none() || self.unconditional_weight > 0.0;
            BranchPlan { instructed, plain: plain.then(|| asked(anchors, false)) }
        };
        let row = |&item: &u32| if item == NO_ITEM { 0 } else { 1 + place(item) };
        Plan {
            tokens: Tokens { embedding: batch.items.iter().map(row).collect(), layout: batch.layout.clone() },
            candidates: negatives.as_ref().map(|negatives| negatives.candidates().map(place).collect()),
            branches: batch.branches.iter().map(of_branch).collect(),
            rows: ItemRows::new(vocabulary, &items.to_vec()),
            batch,
        }
    }

    /// The loss of a batch with at least one target, as planned for `model`.
    pub fn compute(&self, model: &ClimberPilot, plan: &Plan, dropout: Option<Dropout>) -> Result<StepLoss> {
        let vectors = model.item_vectors_of(&plan.rows)?;
        let histories = model.histories(&plan.tokens, &vectors.vectors, dropout);
        let scored = model.candidates(&vectors.vectors)?;
        let candidates = match &plan.candidates {
            None => scored,
            Some(index) => ops::gather(&scored, index)?,
        };
        let mut total: Option<Tensor> = None;
        let mut add = |hidden: &Tensor, asked: &Asked, weight: f64| -> Result<()> {
            let (smoothing, precision) = (self.config.label_smoothing, model.parameters().precision());
            let Asked { targets, competitors, .. } = asked;
            let mean = ops::cross_entropy(hidden, &candidates, targets, competitors, smoothing, precision)?;
            let mean = if weight == 1.0 { mean } else { (mean * weight)? };
            total = Some(match total.take() {
                Some(total) => (total + mean)?,
                None => mean,
            });
            Ok(())
        };
        for (k, (of_branch, anchors)) in plan.branches.iter().zip(&plan.batch.branches).enumerate() {
            match (&of_branch.instructed, &anchors.reads) {
                (Some(asked), Some(reads)) => {
                    add(&model.read(k + 1, &histories, reads)?, asked, 1.0)?;
                    if let Some(asked) = &of_branch.plain {
                        let hidden = model.read_plain(k + 1, &histories, &asked.rows)?;
                        add(&hidden, asked, self.unconditional_weight)?;
                    }
                }
                _ => {
                    let Some(asked) = &of_branch.plain else { continue };
                    let backbone = model.backbone_of(&histories)?;
                    let layout = &plan.tokens.layout;
                    add(&model.branch(k + 1, &backbone, layout, &asked.rows, dropout)?, asked, 1.0)?;
                }
            }
        }
        match total {
            Some(loss) => Ok(StepLoss { loss, touched: vectors.touched }),
            None => candle_core::bail!("a batch without targets has no loss"),
        }
    }

    /// The same, and its gradients.
    pub fn differentiate(
        &self,
        model: &ClimberPilot,
        plan: &Plan,
        dropout: Option<Dropout>,
    ) -> Result<(GradStore, StepLoss)> {
        ops::differentiate(|| {
            let step = self.compute(model, plan, dropout)?;
            Ok((step.loss.clone(), step))
        })
    }

    /// The step's negatives (one set for all targets and branches), and every target as a candidate.
    fn negatives(&self, batch: &Batch, step: u64) -> Negatives {
        let set = |items: &mut dyn Iterator<Item = u32>| ItemSet::new(self.items + 1, items);
        let targets = set(&mut batch.branches.iter().flat_map(|b| b.items.iter().copied()));
        let mut generator = random::generator(self.seed, "negatives", step);
        let uniform = self.config.uniform_negatives;
        let drawn: Vec<u32> = (0..uniform).map(|_| generator.random_range(1..=self.items as u32)).collect();
        let mut items = set(&mut drawn.iter().copied());
        let mut in_batch = 0;
        let mut apart = targets.to_vec();
        if self.config.in_batch_negatives {
            // Branches predict the same events again: each is one draw.
            in_batch = batch.events;
            items = set(&mut drawn.into_iter().chain(apart.drain(..)));
        } else {
            apart.retain(|&item| !items.contains(item));
        }
        let shift = items
            .to_vec()
            .iter()
            .map(|item| {
                if !self.config.sampling_correction {
                    return 0.0;
                }
                // −log Q with Q the chance that the item is among the step's negatives: the estimate of the
                // full normaliser by Horvitz and Thompson, as if the batch's events were drawn one by one.
                let missed = (1.0 - self.frequencies[*item as usize]).powf(in_batch as f64)
                    * (1.0 - 1.0 / self.items as f64).powf(uniform as f64);
                -(1.0 - missed).max(1e-12).ln() as f32
            })
            .collect();
        let targets_only = set(&mut apart.into_iter());
        let mut negatives = Negatives { items, targets_only, shift, at_anchors: Vec::new() };
        let predicted = batch.branches.iter().flat_map(|branch| branch.positions.iter().zip(&branch.items));
        // In one number each: these sort faster.
        let mut at_anchors: Vec<u64> = predicted
            .map(|(&position, &item)| u64::from(position) << 32 | u64::from(negatives.candidate(item)))
            .collect();
        at_anchors.sort_unstable();
        negatives.at_anchors =
            at_anchors.into_iter().map(|both| ((both >> 32) as u32, both as u32)).collect();
        negatives
    }
}

/// Candidates of a sampled softmax.
struct Negatives {
    /// The negatives: the first candidates, ascending.
    items: ItemSet,
    /// The targets that are no negatives: the candidates behind them, ascending.
    targets_only: ItemSet,
    /// What is added to the logits of the negatives.
    shift: Vec<f32>,
    /// Anchors and candidates that some branch predicts there, ascending.
    at_anchors: Vec<(u32, u32)>,
}

impl Negatives {
    /// The candidates' item indexes.
    fn candidates(&self) -> impl Iterator<Item = u32> {
        self.items.to_vec().into_iter().chain(self.targets_only.to_vec())
    }

    /// The candidate that `item`, a negative or a target, is.
    fn candidate(&self, item: u32) -> u32 {
        if self.items.contains(item) {
            self.items.rank(item)
        } else {
            self.items.len() as u32 + self.targets_only.rank(item)
        }
    }

    /// One row for each target. No item that any branch predicts at the row's anchor is a negative of it.
    fn targets(&self, anchors: &Anchors) -> (Vec<u32>, Targets, Candidates) {
        let (mut excluded_offsets, mut excluded) = (vec![0], Vec::new());
        for &position in &anchors.positions {
            let from = self.at_anchors.partition_point(|&(anchor, _)| anchor < position);
            let here = self.at_anchors[from..].iter().take_while(|&&(anchor, _)| anchor == position);
            excluded.extend(here.map(|&(_, candidate)| candidate));
            excluded_offsets.push(excluded.len() as u32);
        }
        let targets = Targets {
            offsets: (0..=anchors.items.len() as u32).collect(),
            candidates: anchors.items.iter().map(|&item| self.candidate(item)).collect(),
            weights: (0..anchors.items.len()).map(|i| anchors.share(i)).collect(),
        };
        let candidates = Candidates::Sampled { shift: self.shift.clone(), excluded_offsets, excluded };
        (anchors.tokens.clone(), targets, candidates)
    }
}

/// One row for each distinct token: targets that share a context share its normaliser. With `apart`, one for each target:
/// a token that is read under several conditions is as many rows.
fn grouped(anchors: &Anchors, apart: bool) -> (Vec<u32>, Targets) {
    let mut rows: Vec<u32> = Vec::new();
    let mut targets = Targets { offsets: vec![0], ..Targets::default() };
    for (i, (&token, &item)) in anchors.tokens.iter().zip(&anchors.items).enumerate() {
        if apart || rows.last() != Some(&token) {
            rows.push(token);
            targets.offsets.push(targets.candidates.len() as u32);
        }
        targets.candidates.push(item - 1);
        targets.weights.push(anchors.share(i));
        if let Some(end) = targets.offsets.last_mut() {
            *end = targets.candidates.len() as u32;
        }
    }
    (rows, targets)
}
