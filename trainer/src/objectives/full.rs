//! The softmax over the whole catalogue (Eq. 3), label smoothing included.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{Candidates, Targets, cross_entropy};
use schemas::config::Precision;

use super::{Asked, Objective, Plan};
use crate::batch::{Anchors, Batch};
use crate::data::ItemSet;
use crate::data::vocabulary::Vocabulary;

/// Every item of the catalogue competes with every target.
#[derive(Debug)]
pub struct FullSoftmax {
    /// Items of the catalogue.
    pub items: usize,
    /// Smoothing of the targets by the uniform distribution.
    pub label_smoothing: f64,
    /// See [`Objective::unconditional_weight`].
    pub unconditional_weight: f64,
}

impl Objective for FullSoftmax {
    fn plan(&self, vocabulary: &Vocabulary, batch: Batch, _step: u64) -> Plan {
        let items = ItemSet::new(self.items + 1, 1..=self.items as u32);
        Plan::new(vocabulary, batch, &items, None, self.unconditional_weight > 0.0, |anchors, apart| {
            let (rows, targets) = grouped(anchors, apart);
            Asked { rows, targets: Arc::new(targets), competitors: Arc::new(Candidates::All) }
        })
    }

    fn loss(
        &self,
        hidden: &Tensor,
        candidates: &Tensor,
        asked: &Asked,
        precision: Precision,
    ) -> Result<Tensor> {
        let Asked { targets, competitors, .. } = asked;
        cross_entropy(hidden, candidates, targets, competitors, self.label_smoothing, precision)
    }

    fn unconditional_weight(&self) -> f64 {
        self.unconditional_weight
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
