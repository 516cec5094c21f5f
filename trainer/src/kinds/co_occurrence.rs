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
        && saved.has(PAIRS)
    {
        let items = 1..=items(&vocabulary) as u32;
        for pair in saved.get(PAIRS)?.to_vec2::<u32>()? {
            let &[last, item, times] = pair.as_slice() else {
                candle_core::bail!("`{PAIRS}` has {} columns, not 3", pair.len());
            };
            if !items.contains(&last) || !items.contains(&item) {
                candle_core::bail!("`{PAIRS}` names an item that the vocabulary does not have");
            }
            followers.add(last.into(), item.into(), times);
        }
    }
    Ok(Box::new(Counted { vocabulary, followers: followers.into() }))
}

/// Co-occurrence counts of a vocabulary's items.
#[derive(Debug, Clone)]
struct Counted {
    vocabulary: Arc<Vocabulary>,
    followers: Arc<Followers>,
}

/// Returns the number of items that the vocabulary counts.
fn items(vocabulary: &Vocabulary) -> usize {
    // Row 0 of the counts is no item.
    vocabulary.counts().map_or(0, |counts| counts.len().saturating_sub(1))
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
        let items = items(&self.model.vocabulary).max(1) as f64;
        let followers = Arc::make_mut(&mut self.model.followers);
        let (mut loss, mut targets) = (0.0, 0u32);
        if let Some(anchors) = plan.batch.branches.first() {
            for (&token, &item) in anchors.tokens.iter().zip(&anchors.items) {
                let last = plan.batch.items[token.index()];
                if last != ItemIndex::NO_ITEM {
                    let (n, of) = followers.count(last, item);
                    loss -= ((f64::from(n) + 1.0) / (of as f64 + items)).ln();
                    followers.add(last, item, 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Backend;
    use crate::models::SavedValues;
    use crate::models::tests::{ITEMS, catalogue};

    fn opened(pairs: Tensor) -> Result<Box<dyn TrainedModel>> {
        let config = Config::default();
        let vocabulary = Vocabulary::new(&config.model, &catalogue(), &[1; ITEMS as usize + 1]).into();
        let saved = SavedValues::from(HashMap::from([(PAIRS.to_owned(), pairs)]));
        new(New {
            config: &config,
            vocabulary,
            values: Values::Saved(Arc::new(saved)),
            backend: &Backend::CPU,
        })
    }

    #[test]
    fn pairs_of_another_shape_or_of_unknown_items_are_errors() {
        let tensor = |values: &[u32], columns: usize| {
            Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
        };
        let model = opened(tensor(&[1, 2, 3, ITEMS, 1, 1], 3)).unwrap();
        assert_eq!(model.tensors().unwrap()[PAIRS].to_vec2::<u32>().unwrap(), [[1, 2, 3], [ITEMS, 1, 1]]);
        for (wrong, columns) in [(vec![1, 2], 2), (vec![0, 1, 1], 3), (vec![1, ITEMS + 1, 1], 3)] {
            assert!(opened(tensor(&wrong, columns)).is_err(), "{wrong:?}");
        }
        assert!(opened(Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap()).is_err());
    }
}
