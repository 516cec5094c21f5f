//! The softmax over negatives that all targets of a step share (Eq. 3): the items that the batch predicts and uniform draws,
//! corrected by `−log Q`.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{Candidates, Targets, cross_entropy};
use rand::Rng;
use schemas::config::{Precision, Pretrain};

use super::{BranchTargets, Draws, Objective, Plan};
use crate::batch::{Anchors, TrainingBatch};
use crate::data::vocabulary::Vocabulary;
use crate::data::{Candidate, IdSet, ItemIndex, StepItem, Token, as_u32s};
use crate::random;

/// Softmax over one set of negatives per step, which competes with every target.
#[derive(Debug)]
pub struct SampledSoftmax {
    /// Number, kinds and correction of the negatives.
    pub config: Pretrain,
    /// How often batches contain each item, for the sampling correction.
    pub draws: Draws,
    /// See [`Objective::unconditional_weight`].
    pub unconditional_weight: f64,
    /// Seed of the uniform draws.
    pub seed: u64,
}

impl Objective for SampledSoftmax {
    fn plan(&self, vocabulary: &Vocabulary, batch: TrainingBatch, step: u64) -> Plan {
        let negatives = self.negatives(&batch, step);
        // Items whose vectors this step needs, ascending.
        let inputs = batch.items.iter().filter(|&&item| item != ItemIndex::NO_ITEM);
        let items = IdSet::new(self.draws.items() + 1, inputs.copied().chain(negatives.candidates()));
        let candidates = negatives.candidates().map(|item| StepItem::new(items.rank(item))).collect();
        let plain = self.unconditional_weight > 0.0;
        Plan::new(vocabulary, batch, &items, Some(candidates), plain, |anchors, _| {
            let (rows, targets, competitors) = negatives.targets(anchors);
            BranchTargets { rows, targets: Arc::new(targets), competitors: Arc::new(competitors) }
        })
    }

    fn loss(
        &self,
        hidden: &Tensor,
        candidates: &Tensor,
        asked: &BranchTargets,
        precision: Precision,
    ) -> Result<Tensor> {
        let BranchTargets { targets, competitors, .. } = asked;
        cross_entropy(hidden, candidates, targets, competitors, self.config.label_smoothing, precision)
    }

    fn unconditional_weight(&self) -> f64 {
        self.unconditional_weight
    }
}

impl SampledSoftmax {
    /// Draws the step's negatives, one set for all targets and branches, and adds every target as a candidate.
    pub(super) fn negatives(&self, batch: &TrainingBatch, step: u64) -> Negatives {
        let set = |items: &mut dyn Iterator<Item = ItemIndex>| IdSet::new(self.draws.items() + 1, items);
        let targets = set(&mut batch.branches.iter().flat_map(|b| b.items.iter().copied()));
        let mut generator = random::generator(self.seed, "negatives", step);
        let uniform = self.config.uniform_negatives;
        let draw = |_| ItemIndex::new(generator.random_range(1..=self.draws.items() as u32));
        let drawn: Vec<ItemIndex> = (0..uniform).map(draw).collect();
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
            |&item: &ItemIndex| if self.config.sampling_correction { self.shift(item, units) } else { 0.0 };
        let shift = items.to_vec().iter().map(corrected).collect();
        let targets_only = set(&mut apart.into_iter());
        let mut negatives =
            Negatives { items, targets_only, shift, at_anchors: Vec::new(), certain: Certain::default() };
        let predicted = batch.branches.iter().flat_map(|branch| branch.positions.iter().zip(&branch.items));
        // Packed into one number each, which sorts faster.
        let mut at_anchors: Vec<u64> = predicted
            .map(|(&position, &item)| u64::from(position) << 32 | u64::from(negatives.candidate(item).get()))
            .collect();
        at_anchors.sort_unstable();
        negatives.at_anchors =
            at_anchors.into_iter().map(|both| ((both >> 32) as u32, Candidate::new(both as u32))).collect();
        if in_batch && self.config.sampling_correction {
            negatives.certain = Certain::new(batch, &negatives);
        }
        negatives
    }

    /// Returns `−log Q`, where `Q` is the chance that `item` is among a step's negatives, given a row that does not predict it.
    /// The item is a negative if it is drawn uniformly or if another of the batch's `units` predicts it; without `units`, only if
    /// it is drawn.
    ///
    /// `Σ_i exp(s_i) = E[Σ_{i drawn} exp(s_i) / Q_i]` (Horvitz and Thompson): a step estimates the row's full normaliser without
    /// bias if `Q_i` is the chance *given that the row is in the batch*. Items that the row's own unit predicts are then drawn
    /// with certainty: `Q_i = 1`, so their logits are not shifted ([`Certain`]). Leaving them out would lose their share of the
    /// normaliser.
    fn shift(&self, item: ItemIndex, units: Option<usize>) -> f32 {
        let uniform = self.config.uniform_negatives as f64 * (-1.0 / self.draws.items() as f64).ln_1p();
        let others = units.map_or(0.0, |units| self.draws.ln_missed(item, units));
        -(-(uniform + others).exp_m1()).max(1e-12).ln() as f32
    }
}

/// Candidates that each sequence of a batch predicts itself, so that they are in the batch with certainty.
#[derive(Default)]
struct Certain {
    /// First token of each sequence, and the end of the last.
    tokens: Vec<usize>,
    /// Offset of each sequence's candidates in `candidates`, and the end of the last.
    offsets: Vec<u32>,
    /// Distinct candidates of each sequence, ascending, concatenated.
    candidates: Vec<Candidate>,
}

impl Certain {
    fn new(batch: &TrainingBatch, negatives: &Negatives) -> Self {
        let tokens = batch.layout.offsets.clone();
        let mut of_branch = vec![0; batch.branches.len()];
        let (mut offsets, mut candidates) = (vec![0], Vec::new());
        for &end in &tokens[1..] {
            let mut own = Vec::new();
            for (branch, from) in batch.branches.iter().zip(&mut of_branch) {
                let to = branch.tokens.partition_point(|&token| token.index() < end);
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

    /// Returns the range in `candidates` of the sequence that contains `token`.
    fn range(&self, token: Token) -> [u32; 2] {
        match self.tokens.partition_point(|&first| first <= token.index()) {
            0 => [0; 2],
            behind => [self.offsets[behind - 1], self.offsets[behind]],
        }
    }
}

/// Candidates of a sampled softmax: the negatives, then the remaining targets.
pub(super) struct Negatives {
    /// Negatives, the first candidates, ascending.
    items: IdSet<ItemIndex>,
    /// Targets that are not negatives, the candidates after them, ascending.
    targets_only: IdSet<ItemIndex>,
    /// Shift of each negative's logit.
    shift: Vec<f32>,
    /// Pairs of an anchor and a candidate that some branch predicts there, ascending.
    at_anchors: Vec<(u32, Candidate)>,
    /// Candidates whose logits are not shifted, by sequence.
    certain: Certain,
}

impl Negatives {
    /// Iterates over the item of each candidate.
    pub(super) fn candidates(&self) -> impl Iterator<Item = ItemIndex> {
        self.items.to_vec().into_iter().chain(self.targets_only.to_vec())
    }

    /// Returns the candidate of `item`, which is a negative or a target.
    fn candidate(&self, item: ItemIndex) -> Candidate {
        Candidate::new(if self.items.contains(item) {
            self.items.rank(item)
        } else {
            self.items.len() as u32 + self.targets_only.rank(item)
        })
    }

    /// Creates one row per target; its negatives exclude every item that any branch predicts at its anchor.
    fn targets(&self, anchors: &Anchors) -> (Vec<Token>, Targets, Candidates) {
        let (mut excluded_offsets, mut excluded) = (vec![0], Vec::new());
        for &position in &anchors.positions {
            let from = self.at_anchors.partition_point(|&(anchor, _)| anchor < position);
            let here = self.at_anchors[from..].iter().take_while(|&&(anchor, _)| anchor == position);
            excluded.extend(here.map(|&(_, candidate)| candidate.get()));
            excluded_offsets.push(excluded.len() as u32);
        }
        let targets = Targets {
            offsets: (0..=anchors.items.len() as u32).collect(),
            candidates: anchors.items.iter().map(|&item| self.candidate(item).get()).collect(),
            weights: (0..anchors.items.len()).map(|i| anchors.share(i)).collect(),
        };
        let candidates = Candidates::Sampled {
            shift: self.shift.clone(),
            excluded_offsets,
            excluded,
            certain_ranges: anchors.tokens.iter().flat_map(|&token| self.certain.range(token)).collect(),
            certain: as_u32s(&self.certain.candidates).to_vec(),
        };
        (anchors.tokens.clone(), targets, candidates)
    }
}
