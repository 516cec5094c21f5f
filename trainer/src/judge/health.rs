//! Health of a model: faults that hit rates do not show, such as non-finite weights, the same few items for all users, or scores
//! on another scale than before. Memory: at most 2,000 lists of 50 items.

use std::collections::HashSet;

use candle_core::{DType, Tensor};
use schemas::config::Config;
use schemas::history::Role;
use serde::{Deserialize, Serialize};
use store::Root;
use store::boxed::Boxed;

use super::{EvaluateError, Evaluation, Protocol, asked_rows};
use crate::checkpoint;
use crate::data::Catalogue;
use crate::device;
use crate::serve::{ListFilter, ListQuery, RecommendError};

/// Places of a list that count for coverage.
const PLACES: usize = 50;
/// Maximum targets evaluated, evenly spaced over the split.
const LISTS: usize = 2_000;

/// Health of a model, measured on validation targets under the protocol `as-served`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Name of a tensor with non-finite values, or `item vectors` or `scores`; the other fields are then empty.
    pub not_finite: Option<String>,
    /// Number of lists.
    pub lists: usize,
    /// Number of distinct items in the first 50 places of all lists.
    pub listed_items: usize,
    /// Number of active items.
    pub active_items: usize,
    /// Percentiles 0, 1, …, 100 of the lists' best scores; empty without lists.
    pub best_scores: Vec<f64>,
}

impl Health {
    /// Returns the share of active items that are in some list.
    pub fn coverage(&self) -> f64 {
        self.listed_items as f64 / self.active_items.max(1) as f64
    }

    /// Returns the Kolmogorov–Smirnov distance between the best scores of both models, the largest difference of their cumulative
    /// distributions, at a resolution of 0.01; `None` if either has no scores.
    pub fn score_shift(&self, other: &Self) -> Option<f64> {
        let share =
            |scores: &[f64], at: f64| scores.partition_point(|&s| s <= at) as f64 / scores.len() as f64;
        let (ours, theirs) = (&self.best_scores, &other.best_scores);
        if ours.is_empty() || theirs.is_empty() {
            return None;
        }
        let all = ours.iter().chain(theirs);
        all.map(|&at| (share(ours, at) - share(theirs, at)).abs()).max_by(f64::total_cmp)
    }
}

/// Measures the health of `models/<name>`.
///
/// # Errors
///
/// The model or a table cannot be loaded, or a tensor operation fails. Non-finite values are a result, not an error.
pub fn health<'a>(
    config: &'a Config,
    root: &'a Root,
    name: &'a str,
) -> Boxed<'a, Result<Health, EvaluateError>> {
    Box::pin(measure_health(config, root, name))
}

async fn measure_health(config: &Config, root: &Root, name: &str) -> Result<Health, EvaluateError> {
    let backend = device::open(config)?;
    let directory = root.model_path(name);
    let catalogue = Catalogue::load(root, &checkpoint::attributes(&directory)?).await?;
    let checkpoint = checkpoint::load(&directory, &catalogue, &backend)?;
    let mut tensors: Vec<(String, Tensor)> = checkpoint.model.tensors()?.into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in tensors {
        if !is_finite(&tensor)? {
            return Ok(Health { not_finite: Some(name), ..Health::default() });
        }
    }
    let sequences = asked_rows(config, root, catalogue.items(), Role::Validation).await?;
    let evaluation = Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, Role::Validation);
    let active_items = catalogue.active.iter().skip(1).filter(|&&active| active).count();
    let mut health = Health { active_items, ..Health::default() };
    let asked = evaluation.asked(Protocol::AsServed);
    let asked: Vec<_> = asked.iter().copied().step_by(asked.len().div_ceil(LISTS).max(1)).collect();
    let model = match checkpoint.model.recommender(evaluation.serving(None)) {
        Err(RecommendError::NotFinite(_)) => {
            return Ok(Health { not_finite: Some("item vectors".into()), ..Health::default() });
        }
        model => model?,
    };
    let answers = evaluation.read(&*model, asked.iter().map(|&(target, context)| (target, context, None)))?;
    let filters = [ListFilter { allowed: &catalogue.active, seen: &[], carrying: None }];
    let questions: Vec<ListQuery<'_>> =
        (0..answers.len()).map(|answer| ListQuery { answer, filters: &filters }).collect();
    let Ok(lists) = answers.best(&questions, PLACES) else {
        return Ok(Health { not_finite: Some("scores".into()), ..Health::default() });
    };
    let mut best: Vec<f64> = lists.iter().filter_map(|list| Some(f64::from(list.first()?.score))).collect();
    best.sort_by(f64::total_cmp);
    health.lists = lists.len();
    health.listed_items = lists.iter().flatten().map(|scored| scored.item).collect::<HashSet<_>>().len();
    if let Some(last) = best.len().checked_sub(1) {
        health.best_scores = (0..=100).map(|percent| best[last * percent / 100]).collect();
    }
    Ok(health)
}

fn is_finite(tensor: &Tensor) -> Result<bool, candle_core::Error> {
    if !tensor.dtype().is_float() {
        return Ok(true);
    }
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_is_the_largest_difference_of_the_distributions() {
        let of = |scores: std::ops::Range<u32>| Health {
            best_scores: scores.map(f64::from).collect(),
            ..Health::default()
        };
        for (theirs, expected) in [(0..100, 0.0), (100..200, 1.0), (25..125, 0.25)] {
            let shift = of(0..100).score_shift(&of(theirs)).unwrap();
            assert!((shift - expected).abs() < 1e-9, "{shift} {expected}");
        }
        assert_eq!(of(0..100).score_shift(&Health::default()), None);
    }
}
