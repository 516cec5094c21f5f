//! The softmax over the whole catalogue (Eq. 3), with label smoothing.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{Candidates, Targets, cross_entropy};
use schemas::config::Precision;

use super::{BranchTargets, Objective, Plan};
use crate::batch::{Anchors, TrainingBatch};
use crate::data::vocabulary::Vocabulary;
use crate::data::{Candidate, IdSet, ItemIndex, Token};

/// Softmax in which every item of the catalogue competes with every target.
#[derive(Debug)]
pub struct FullSoftmax {
    /// Number of items in the catalogue.
    pub items: usize,
    /// Share of each target's probability that is spread uniformly over the catalogue.
    pub label_smoothing: f64,
    /// See [`Objective::unconditional_weight`].
    pub unconditional_weight: f64,
}

impl Objective for FullSoftmax {
    fn plan(&self, vocabulary: &Vocabulary, batch: TrainingBatch, _step: u64) -> Plan {
        let items = IdSet::new(self.items + 1, ItemIndex::all(self.items));
        Plan::new(vocabulary, batch, &items, None, self.unconditional_weight > 0.0, |anchors, apart| {
            let (rows, targets) = grouped(anchors, apart);
            BranchTargets { rows, targets: Arc::new(targets), competitors: Arc::new(Candidates::All) }
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
        cross_entropy(hidden, candidates, targets, competitors, self.label_smoothing, precision)
    }

    fn unconditional_weight(&self) -> f64 {
        self.unconditional_weight
    }
}

/// Groups targets into one row per distinct token, since targets of one context share its normaliser. With `apart`, each target
/// has its own row: a token may be read under several conditions.
fn grouped(anchors: &Anchors, apart: bool) -> (Vec<Token>, Targets) {
    let mut rows: Vec<Token> = Vec::new();
    let mut targets = Targets { offsets: vec![0], ..Targets::default() };
    for (i, (&token, &item)) in anchors.tokens.iter().zip(&anchors.items).enumerate() {
        if apart || rows.last() != Some(&token) {
            rows.push(token);
            targets.offsets.push(targets.candidates.len() as u32);
        }
        // All items compete, in the order of their indexes.
        targets.candidates.push(Candidate::new(item.get() - 1).get());
        targets.weights.push(anchors.share(i));
        if let Some(end) = targets.offsets.last_mut() {
            *end = targets.candidates.len() as u32;
        }
    }
    (rows, targets)
}
