//! The losses of TAMIP (Eq. 3 and 4) and of fine-tuning (Eq. 6): the sum over branches of the mean softmax cross-entropy of
//! their targets; in fine-tuning of what is read under a condition, and, against forgetting, without one.

mod draws;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use ragged::{Candidates, Dropout, Targets};
use rand::Rng;
use schemas::config::{Loss, Pretrain};
use schemas::tables::NO_ITEM;

use crate::batch::{Anchors, Batch};
use crate::data::ItemSet;
use crate::data::vocabulary::Vocabulary;
use crate::models::{ClimberPilot, ItemRows, Tokens, TouchedRows};
use crate::random;

pub use draws::Draws;

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
    /// What batches draw, for the sampling correction.
    draws: Draws,
    /// Weight of the loss without instructions beside that with them.
    unconditional_weight: f64,
    seed: u64,
}

impl TamipLoss {
    /// For batches of the units that `draws` was made of.
    pub fn new(config: &Pretrain, draws: Draws, seed: u64) -> Self {
        Self { config: config.clone(), draws, unconditional_weight: 0.0, seed }
    }

    /// Items of the catalogue.
    fn items(&self) -> usize {
        self.draws.items()
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
            None => ItemSet::new(self.items() + 1, 1..=self.items() as u32),
            Some(negatives) => {
                let inputs = batch.items.iter().filter(|&&item| item != NO_ITEM);
                ItemSet::new(self.items() + 1, inputs.copied().chain(negatives.candidates()))
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
            Some(index) => ragged::gather(&scored, index)?,
        };
        let mut total: Option<Tensor> = None;
        let mut add = |hidden: &Tensor, asked: &Asked, weight: f64| -> Result<()> {
            let (smoothing, precision) = (self.config.label_smoothing, model.parameters().precision());
            let Asked { targets, competitors, .. } = asked;
            let mean =
                ragged::cross_entropy(hidden, &candidates, targets, competitors, smoothing, precision)?;
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
        ragged::differentiate(|| {
            let step = self.compute(model, plan, dropout)?;
            Ok((step.loss.clone(), step))
        })
    }

    /// The step's negatives (one set for all targets and branches), and every target as a candidate.
    fn negatives(&self, batch: &Batch, step: u64) -> Negatives {
        let set = |items: &mut dyn Iterator<Item = u32>| ItemSet::new(self.items() + 1, items);
        let targets = set(&mut batch.branches.iter().flat_map(|b| b.items.iter().copied()));
        let mut generator = random::generator(self.seed, "negatives", step);
        let uniform = self.config.uniform_negatives;
        let drawn: Vec<u32> = (0..uniform).map(|_| generator.random_range(1..=self.items() as u32)).collect();
        let mut items = set(&mut drawn.iter().copied());
        let mut apart = targets.to_vec();
        let in_batch = self.config.in_batch_negatives;
        if in_batch {
            items = set(&mut drawn.into_iter().chain(apart.drain(..)));
        } else {
            apart.retain(|&item| !items.contains(item));
        }
        let units = in_batch.then(|| batch.sequences());
        let corrected =
            |&item: &u32| if self.config.sampling_correction { self.shift(item, units) } else { 0.0 };
        let shift = items.to_vec().iter().map(corrected).collect();
        let targets_only = set(&mut apart.into_iter());
        let mut negatives =
            Negatives { items, targets_only, shift, at_anchors: Vec::new(), certain: Certain::default() };
        let predicted = batch.branches.iter().flat_map(|branch| branch.positions.iter().zip(&branch.items));
        // In one number each: these sort faster.
        let mut at_anchors: Vec<u64> = predicted
            .map(|(&position, &item)| u64::from(position) << 32 | u64::from(negatives.candidate(item)))
            .collect();
        at_anchors.sort_unstable();
        negatives.at_anchors =
            at_anchors.into_iter().map(|both| ((both >> 32) as u32, both as u32)).collect();
        if in_batch && self.config.sampling_correction {
            negatives.certain = Certain::new(batch, &negatives);
        }
        negatives
    }

    /// `−log Q`, with `Q` the chance that `item` is among the negatives of a step, given a row that does not predict it: it is
    /// drawn uniformly, or one of the batch's other `units` predicts it; without `units`, only drawn.
    ///
    /// `Σ_i exp(s_i) = E[Σ_{i drawn} exp(s_i) / Q_i]` (Horvitz and Thompson): the step estimates the row's full normaliser
    /// without bias if `Q_i` is the chance *given that the row is in the batch*. The items that the row's own unit predicts are
    /// then drawn with certainty: `Q_i = 1`, and their logits are not shifted ([`Certain`]); to leave them out would leave their
    /// share out of the normaliser.
    fn shift(&self, item: u32, units: Option<usize>) -> f32 {
        let uniform = self.config.uniform_negatives as f64 * (-1.0 / self.items() as f64).ln_1p();
        let others = units.map_or(0.0, |units| self.draws.ln_missed(item, units));
        -(-(uniform + others).exp_m1()).max(1e-12).ln() as f32
    }
}

/// The candidates that each sequence of a batch brings itself.
#[derive(Default)]
struct Certain {
    /// First token of each sequence, and the end of the last.
    tokens: Vec<usize>,
    /// By sequence, where its candidates begin in `candidates`, and the end of the last.
    offsets: Vec<u32>,
    /// Of each sequence ascending, each once.
    candidates: Vec<u32>,
}

impl Certain {
    fn new(batch: &Batch, negatives: &Negatives) -> Self {
        let tokens = batch.layout.offsets.clone();
        let mut of_branch = vec![0; batch.branches.len()];
        let (mut offsets, mut candidates) = (vec![0], Vec::new());
        for &end in &tokens[1..] {
            let mut own = Vec::new();
            for (branch, from) in batch.branches.iter().zip(&mut of_branch) {
                let to = branch.tokens.partition_point(|&token| (token as usize) < end);
                own.extend(branch.items[*from..to].iter().map(|&item| negatives.candidate(item)));
                *from = to;
            }
            own.sort_unstable();
            own.dedup();
            candidates.extend(own);
            offsets.push(candidates.len() as u32);
        }
        Self { tokens, offsets, candidates }
    }

    /// Begin and end of the candidates of the sequence that `token` is of.
    fn range(&self, token: u32) -> [u32; 2] {
        match self.tokens.partition_point(|&first| first <= token as usize) {
            0 => [0; 2],
            behind => [self.offsets[behind - 1], self.offsets[behind]],
        }
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
    /// What is not shifted, sequence by sequence.
    certain: Certain,
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
        let candidates = Candidates::Sampled {
            shift: self.shift.clone(),
            excluded_offsets,
            excluded,
            certain_ranges: anchors.tokens.iter().flat_map(|&token| self.certain.range(token)).collect(),
            certain: self.certain.candidates.clone(),
        };
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
