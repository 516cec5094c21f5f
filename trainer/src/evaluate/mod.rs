//! Evaluation (§4.1): full ranking of held-out targets over the whole catalogue, under two protocols, with
//! and without the items a user has seen.

mod baselines;
mod metrics;
mod rank;
mod report;
mod targets;

use std::sync::Arc;

use candle_core::Tensor;
use schemas::config::{Config, Evaluate, MaskMode};
use schemas::delta::Root;
use schemas::history::Role;

pub use baselines::{CoOccurrence, Popularity};
pub use metrics::{Metrics, Protocol, Ranks};
pub use rank::{NotFinite, Query, rank};
pub use report::Report;
pub use targets::{Target, targets};

use crate::checkpoint::{self, CheckpointError};
use crate::data::{Catalogue, DataError, Sequences, push_sequence, row_mask_keys};
use crate::model::{ClimberPilot, Tokens};
use crate::ops::{AttentionLayout, Mat, gemm};

/// Evaluates `models/<name>` and, where configured, the baselines, on the held-out targets of `role`, under
/// both protocols. No results where the split holds none of them out.
pub async fn run(config: &Config, root: &Root, name: &str, role: Role) -> Result<Report, EvaluateError> {
    let directory = root.model_path(name);
    let attributes = checkpoint::attributes(&directory)?;
    let catalogue = Catalogue::load(root, &attributes).await?;
    let checkpoint = checkpoint::load(&directory, &catalogue)?;
    let sequences = Sequences::load(root, catalogue.items()).await?;
    let evaluation = Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, role);
    let mut report = Report { source: sequences.source.clone(), trained_on: None, results: Vec::new() };
    if checkpoint.lineage.sequences != sequences.source {
        report.trained_on = Some(checkpoint.lineage.sequences.clone());
    }
    if evaluation.is_empty() {
        return Ok(report);
    }
    report.results =
        evaluation.model(name, &checkpoint.model, checkpoint.config.model.mask, &Protocol::ALL)?;
    if config.evaluate.baselines {
        report.results.extend(evaluation.baselines(&Protocol::ALL)?);
    }
    Ok(report)
}

/// An evaluation that failed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The held-out targets of one split, ready to be asked.
#[derive(Debug)]
pub struct Evaluation<'a> {
    sequences: &'a Sequences,
    catalogue: &'a Catalogue,
    config: &'a Evaluate,
    seed: u64,
    split: &'static str,
    targets: Vec<Target>,
}

impl<'a> Evaluation<'a> {
    /// For the targets of `role`: validation or test.
    pub fn new(
        sequences: &'a Sequences,
        catalogue: &'a Catalogue,
        config: &'a Evaluate,
        seed: u64,
        role: Role,
    ) -> Self {
        let split = if role == Role::Test { "test" } else { "validation" };
        Self { sequences, catalogue, config, seed, split, targets: targets(sequences, role) }
    }

    /// Number of held-out targets.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether the split holds nothing out.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Results of `model`, called `name`, read through branch 1, under each of `protocols`.
    pub fn model(
        &self,
        name: &str,
        model: &ClimberPilot,
        mask: MaskMode,
        protocols: &[Protocol],
    ) -> Result<Vec<Metrics>, EvaluateError> {
        let items: Vec<u32> = (1..=self.catalogue.items() as u32).collect();
        let vectors = model.item_vectors(&items)?.vectors.detach();
        let item_rows = vectors.flatten_all()?.to_vec1::<f32>()?;
        let (d, n) = (vectors.dim(1)?, items.len());
        let mut results = Vec::new();
        for &protocol in protocols {
            let asked = self.asked(protocol);
            let hidden = self.hidden(model, mask, &vectors, &asked)?;
            results.extend(self.results(name, protocol, &asked, |first, scores| {
                let rows = scores.len() / n;
                let hidden = Mat::new(&hidden[first * d..(first + rows) * d], rows, d, d);
                gemm(scores, n, false, hidden, Mat::new(&item_rows, n, d, d).t());
            })?);
        }
        Ok(results)
    }

    /// Results of the baselines, from the training events of the same rows.
    pub fn baselines(&self, protocols: &[Protocol]) -> Result<Vec<Metrics>, EvaluateError> {
        let n = self.catalogue.items();
        let counts = self.sequences.training_counts(n);
        let popularity = Popularity::new(&counts);
        let co_occurrence = CoOccurrence::new(self.sequences, &counts);
        let mut results = Vec::new();
        for &protocol in protocols {
            let asked = self.asked(protocol);
            results.extend(self.results("popularity", protocol, &asked, |_, scores| {
                scores.chunks_exact_mut(n).for_each(|scores| popularity.score(scores));
            })?);
            results.extend(self.results("co-occurrence", protocol, &asked, |first, scores| {
                for (scores, (target, context)) in scores.chunks_exact_mut(n).zip(&asked[first..]) {
                    let start = self.sequences.row(target.row).start;
                    let last = context.checked_sub(1).map(|last| self.sequences.items[start + last]);
                    co_occurrence.score(last, scores);
                }
            })?);
        }
        Ok(results)
    }

    /// The targets that take part under `protocol`, each with its context length (above 0).
    fn asked(&self, protocol: Protocol) -> Vec<(&Target, usize)> {
        self.targets
            .iter()
            .filter_map(|target| target.context(protocol).filter(|&c| c > 0).map(|c| (target, c)))
            .collect()
    }

    fn results(
        &self,
        name: &str,
        protocol: Protocol,
        asked: &[(&Target, usize)],
        score: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Vec<Metrics>, EvaluateError> {
        let queries: Vec<Query> = asked
            .iter()
            .map(|(target, _)| Query { item: target.item, seen: target.seen(self.sequences, protocol) })
            .collect();
        let ranks = rank(&queries, &self.catalogue.active, self.seed, score)?;
        let left_out = self.targets.iter().filter(|t| t.context(protocol).is_none()).count();
        Ok([true, false]
            .map(|filter_seen| {
                let ranks = ranks.iter().map(|r| if filter_seen { r.unseen } else { r.all });
                let (targets, [hr_10, hr_20, hr_50, ndcg_10]) = metrics::means(ranks);
                Metrics {
                    model: name.into(),
                    split: self.split.into(),
                    protocol,
                    filter_seen,
                    condition: None,
                    condition_from: None,
                    targets,
                    no_history: self.targets.len() - asked.len() - left_out,
                    left_out,
                    hr_10,
                    hr_20,
                    hr_50,
                    ndcg_10,
                }
            })
            .into())
    }

    /// Branch 1's state for each asked target, flat `[asked, d]`.
    fn hidden(
        &self,
        model: &ClimberPilot,
        mask: MaskMode,
        vectors: &Tensor,
        asked: &[(&Target, usize)],
    ) -> Result<Vec<f32>, EvaluateError> {
        let mut hidden = Vec::with_capacity(asked.len() * vectors.dim(1)?);
        for chunk in asked.chunks(self.config.batch_size) {
            let (tokens, reads) = self.tokens(chunk, mask);
            let backbone = model.backbone(&tokens, vectors, None)?;
            let rows = model.branch(1, &backbone, &tokens.layout, &reads, None)?.detach();
            hidden.extend(rows.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(hidden)
    }

    /// What the targets' contexts look like as a batch, and the token at which each is read.
    ///
    /// Causal modes encode a row once for all of its targets. In mode `row` the reading token sees its whole
    /// context, while others keep the mask they were trained with, so each target has a sequence of its own.
    fn tokens(&self, asked: &[(&Target, usize)], mask: MaskMode) -> (Tokens, Vec<u32>) {
        let mut items = Vec::new();
        let mut layout = AttentionLayout { offsets: vec![0], ..AttentionLayout::default() };
        let mut keys = Vec::new();
        let mut reads = Vec::with_capacity(asked.len());
        let mut at = 0;
        while at < asked.len() {
            let row = asked[at].0.row;
            let same_row = if mask == MaskMode::Row {
                1
            } else {
                asked[at..].iter().take_while(|(target, _)| target.row == row).count()
            };
            let group = &asked[at..at + same_row];
            let length = group.iter().map(|&(_, context)| context).max().unwrap_or(0);
            reads.extend(group.iter().map(|&(_, context)| (items.len() + context) as u32));
            let start = self.sequences.row(row).start;
            let shown = start..start + length;
            push_sequence(
                &mut items,
                &mut layout,
                &self.sequences.items[shown.clone()],
                &self.sequences.ts[shown.clone()],
            );
            if mask == MaskMode::Row {
                keys.push(1);
                keys.extend(
                    (1..=length)
                        .map(|i| row_mask_keys(i, (i < length).then(|| self.sequences.visible[start + i]))),
                );
            }
            at += same_row;
        }
        if mask == MaskMode::Row {
            layout.keys = Some(keys);
        }
        // All items are encoded, so an item's vector stands at its index minus 1; the start token is row 0.
        (Tokens { embedding: items, layout: Arc::new(layout) }, reads)
    }
}
