//! `architecture = "co-occurrence"`: recommends what most often followed the last visible item, then popular items. It has no
//! gradients: a step counts the targets of its batch. Memory: one map entry per distinct pair of consecutive items.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use ragged::adam::GradientNorm;
use schemas::config::{Config, Pretrain};

use super::{Learner, ModelKind, New, SavedLearner, Taken, TrainedModel, TrainingStep};
use crate::data::ItemIndex;
use crate::data::vocabulary::Vocabulary;
use crate::models::Values;
use crate::serve::{CoOccurrence, Followers, RecommendError, Recommender, Serving};

/// The kind of last-item co-occurrence models.
pub(super) const KIND: ModelKind = ModelKind { name: NAME, new };

const NAME: &str = "co-occurrence";

/// Checkpoint tensor `[pairs, 3]` of an item, one that followed it, and how often; pairs ascend.
const PAIRS: &str = "pairs";

fn new(New { vocabulary, values, .. }: New<'_>) -> Result<Box<dyn TrainedModel>> {
    let mut followers = Followers::default();
    if let Values::Saved(saved) = values
        && let Ok(pairs) = saved.get(PAIRS)
    {
        for pair in pairs.to_vec2::<u32>()? {
            followers.add(pair[0].into(), pair[1].into(), pair[2]);
        }
    }
    Ok(Box::new(Counted { vocabulary, followers }))
}

/// Co-occurrence counts of a vocabulary's items.
#[derive(Debug, Clone)]
struct Counted {
    vocabulary: Arc<Vocabulary>,
    followers: Followers,
}

impl TrainedModel for Counted {
    fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let mut pairs: Vec<[u32; 3]> =
            self.followers.iter().map(|(last, item, n)| [last.get(), item.get(), n]).collect();
        pairs.sort_unstable();
        match pairs.is_empty() {
            true => Ok(HashMap::new()),
            false => Ok(HashMap::from([(
                PAIRS.to_owned(),
                Tensor::from_slice(pairs.as_flattened(), (pairs.len(), 3), &Device::Cpu)?,
            )])),
        }
    }

    fn recommender<'a>(
        &'a self,
        serving: Serving<'a>,
    ) -> std::result::Result<Box<dyn Recommender + 'a>, RecommendError> {
        if serving.graph.is_some() {
            return Err(RecommendError::NoVectors { architecture: NAME.into() });
        }
        let mut counts = self.vocabulary.counts().unwrap_or_default().to_vec();
        counts.resize(serving.items + 1, 0);
        Ok(Box::new(CoOccurrence::new(self.followers.clone(), &counts, serving.seed)))
    }

    fn into_learner(
        self: Box<Self>,
        _settings: &Pretrain,
        saved: Option<SavedLearner<'_>>,
    ) -> Result<Box<dyn Learner>> {
        Ok(Box::new(Counting { model: *self, steps: saved.map_or(0, |saved| saved.steps) }))
    }

    fn grown(
        &self,
        _config: &Config,
        vocabulary: Arc<Vocabulary>,
        saved: SavedLearner<'_>,
    ) -> Result<Box<dyn Learner>> {
        let model = Self { vocabulary, followers: self.followers.clone() };
        Ok(Box::new(Counting { model, steps: saved.steps }))
    }
}

struct Counting {
    model: Counted,
    steps: u64,
}

impl Learner for Counting {
    fn model(&self) -> &dyn TrainedModel {
        &self.model
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    /// Counts the targets of branch 1. The loss is that of the counts before the step, `−ln((n + 1) / (N + items))`, where
    /// the target followed the last item `n` times out of `N`.
    fn step(&mut self, TrainingStep { plan, .. }: &TrainingStep<'_>) -> Result<Taken> {
        // Row 0 of the counts is no item.
        let items = self.model.vocabulary.counts().map_or(1, |counts| counts.len().max(2) - 1) as f64;
        let (mut loss, mut targets) = (0.0, 0u32);
        if let Some(anchors) = plan.batch.branches.first() {
            for (&token, &item) in anchors.tokens.iter().zip(&anchors.items) {
                let last = plan.batch.items[token.index()];
                if last != ItemIndex::NO_ITEM {
                    let (n, of) = self.model.followers.count(last, item);
                    loss -= ((f64::from(n) + 1.0) / (of as f64 + items)).ln();
                    self.model.followers.add(last, item, 1);
                    targets += 1;
                }
            }
        }
        self.steps += 1;
        let loss = Tensor::new((loss / f64::from(targets.max(1))) as f32, &Device::Cpu)?;
        Ok(Taken { loss, gradient_norm: GradientNorm::zero()? })
    }

    fn state(&self) -> HashMap<String, Tensor> {
        HashMap::new()
    }
}
