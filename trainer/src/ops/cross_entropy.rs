//! Softmax cross-entropy over a catalogue (Eq. 3) without the matrix of logits.
//!
//! Rows are worked through in groups of [`ROWS`]: the group's logits against all candidates are the only
//! ones in memory. Gradients are computed on the way, while the logits are there:
//!
//! ```text
//! for each group of rows                                     shared out to threads by
//!   logits = H Eᵀ                                            candidate columns
//!   loss, softmax − targets (in place), dH = (…) E           rows
//!   dE += (…)ᵀ H                                             candidate columns
//! ```

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matrix::ColumnBlocks;
use super::{Mat, cpu_tensor, f32_slice, fused, gemm, reference, vector};

const ROWS: usize = 256;
const ROWS_A_TASK: usize = 16;
const COLUMNS_A_TASK: usize = 512;

/// What each row is to predict: any number of weighted targets, each a candidate.
///
/// Several targets in a row are several losses with the same hidden state, whose normaliser is computed
/// once: with the time-aware mask many targets share the same visible prefix.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// Where each row's targets begin, and the end of the last.
    pub offsets: Vec<u32>,
    /// Candidate of each target.
    pub candidates: Vec<u32>,
    /// Weight of each target's loss.
    pub weights: Vec<f32>,
}

impl Targets {
    /// The targets of a row with their weights.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        self.candidates[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }
}

/// What a target competes with.
#[derive(Debug, Clone, Default)]
pub enum Candidates {
    /// The whole catalogue.
    #[default]
    All,
    /// Sampled softmax: the negatives, shared by all rows. Each row has one target.
    Sampled {
        /// Added to a negative's logit: `−log Q`, or 0, or −∞ for a candidate that is no negative. A
        /// target's own logit is never shifted.
        shift: Vec<f32>,
        /// For each row, candidates that are no negatives of it: all items that the row's position
        /// predicts. Offsets into `excluded`.
        excluded_offsets: Vec<u32>,
        /// Candidates.
        excluded: Vec<u32>,
    },
}

impl Candidates {
    /// What is added to the logits of `rows` (`[rows, columns]`, flat) so that each row's compete with its target:
    /// nothing where the whole catalogue competes, or where a row has no target.
    pub(super) fn shifts(&self, rows: Range<usize>, columns: usize, targets: &Targets) -> Option<Vec<f32>> {
        let Self::Sampled { shift, excluded_offsets, excluded } = self else { return None };
        let mut shifts = vec![0f32; rows.len() * columns];
        for (row, shifts) in rows.zip(shifts.chunks_exact_mut(columns)) {
            let Some((target, _)) = targets.row(row).next() else { continue };
            shifts.copy_from_slice(shift);
            for &candidate in &excluded[excluded_offsets[row] as usize..excluded_offsets[row + 1] as usize] {
                shifts[candidate as usize] = f32::NEG_INFINITY;
            }
            shifts[target as usize] = 0.0;
        }
        Some(shifts)
    }

    /// Turns the logits of `row` into those that compete with `target`.
    fn apply(&self, row: usize, logits: &mut [f32], target: Option<u32>) {
        let (Self::Sampled { shift, excluded_offsets, excluded }, Some(target)) = (self, target) else {
            return;
        };
        let own = logits[target as usize];
        vector::add_scaled(logits, 1.0, shift);
        for &candidate in &excluded[excluded_offsets[row] as usize..excluded_offsets[row + 1] as usize] {
            logits[candidate as usize] = f32::NEG_INFINITY;
        }
        logits[target as usize] = own;
    }
}

/// The weighted sum of `−log softmax` of every target: a scalar.
///
/// `hidden` is `[N, d]`, `items` the candidates' vectors `[C, d]`. `label_smoothing` mixes that share of the
/// uniform distribution into each target; it belongs to [`Candidates::All`].
pub fn cross_entropy(
    hidden: &Tensor,
    items: &Tensor,
    targets: &Arc<Targets>,
    candidates: &Arc<Candidates>,
    label_smoothing: f64,
) -> Result<Tensor> {
    let (rows, d) = hidden.dims2()?;
    let (columns, width) = items.dims2()?;
    if d != width || targets.offsets.len() != rows + 1 {
        candle_core::bail!("cross_entropy: {rows}×{d} hidden states, {columns}×{width} items");
    }
    if let Some(target) = targets.candidates.iter().find(|&&t| t as usize >= columns) {
        candle_core::bail!("cross_entropy: target {target} of {columns} candidates");
    }
    if let Candidates::Sampled { shift, excluded_offsets, .. } = &**candidates {
        let one_each = targets.offsets.windows(2).all(|ends| ends[1] - ends[0] <= 1);
        if label_smoothing > 0.0 || shift.len() != columns || excluded_offsets.len() != rows + 1 || !one_each
        {
            candle_core::bail!("cross_entropy: the sampled candidates do not fit the rows");
        }
    }
    if !fused(hidden) {
        return reference::cross_entropy(hidden, items, targets, candidates, label_smoothing);
    }
    let op = CrossEntropy {
        targets: targets.clone(),
        candidates: candidates.clone(),
        label_smoothing: label_smoothing as f32,
        gradients: OnceLock::new(),
    };
    hidden.contiguous()?.apply_op2(&items.contiguous()?, op)
}

struct CrossEntropy {
    targets: Arc<Targets>,
    candidates: Arc<Candidates>,
    label_smoothing: f32,
    /// Gradients of the hidden states and the items, for a loss gradient of 1.
    gradients: OnceLock<(Tensor, Tensor)>,
}

impl CrossEntropy {
    fn compute(&self, hidden: &[f32], items: &[f32], d: usize) -> (f64, Vec<f32>, Vec<f32>) {
        let (rows, columns) = (hidden.len() / d, items.len() / d);
        let mut dhidden = vec![0f32; hidden.len()];
        let mut ditems = vec![0f32; items.len()];
        let mut logits = vec![0f32; ROWS.min(rows) * columns];
        let items_of = |task: usize| {
            let from = task * COLUMNS_A_TASK;
            (from, (from + COLUMNS_A_TASK).min(columns))
        };
        let mut loss = 0f64;
        for (group, (hidden, dhidden)) in
            hidden.chunks(ROWS * d).zip(dhidden.chunks_mut(ROWS * d)).enumerate()
        {
            let n = hidden.len() / d;
            let h = Mat::new(hidden, n, d, d);
            let logits = &mut logits[..n * columns];
            // Threads own columns here: disjoint, though not contiguous in memory.
            let block = ColumnBlocks::new(logits, columns);
            (0..columns.div_ceil(COLUMNS_A_TASK)).into_par_iter().for_each(|task| {
                let (from, to) = items_of(task);
                let e = Mat::new(&items[from * d..to * d], to - from, d, d);
                // SAFETY: the tasks' column ranges are disjoint.
                unsafe { block.product(from, h, e.t()) };
            });
            let losses: Vec<f64> = logits
                .par_chunks_mut(ROWS_A_TASK * columns)
                .zip(dhidden.par_chunks_mut(ROWS_A_TASK * d))
                .enumerate()
                .map(|(task, (logits, dhidden))| {
                    let first = group * ROWS + task * ROWS_A_TASK;
                    let loss = logits
                        .chunks_exact_mut(columns)
                        .enumerate()
                        .map(|(i, logits)| self.row(first + i, logits))
                        .sum();
                    let dlogits = Mat::new(logits, logits.len() / columns, columns, columns);
                    gemm(dhidden, d, false, dlogits, Mat::new(items, columns, d, d));
                    loss
                })
                .collect();
            loss += losses.iter().sum::<f64>();
            let dlogits = &*logits;
            ditems.par_chunks_mut(COLUMNS_A_TASK * d).enumerate().for_each(|(task, ditems)| {
                let (from, to) = items_of(task);
                gemm(ditems, d, true, Mat::new(&dlogits[from..], n, to - from, columns).t(), h);
            });
        }
        (loss, dhidden, ditems)
    }

    /// The loss of one row; its logits become their gradients.
    fn row(&self, row: usize, logits: &mut [f32]) -> f64 {
        let weight: f32 = self.targets.row(row).map(|(_, weight)| weight).sum();
        if weight == 0.0 {
            logits.fill(0.0);
            return 0.0;
        }
        self.candidates.apply(row, logits, self.targets.row(row).next().map(|(target, _)| target));
        let smoothing = self.label_smoothing;
        let max = vector::max(logits);
        let mut hit = 0f64;
        for (target, weight) in self.targets.row(row) {
            hit += f64::from(weight) * f64::from(logits[target as usize]);
        }
        let mut expected = f64::from(1.0 - smoothing) * hit;
        if smoothing > 0.0 {
            let mean = f64::from(vector::sum(logits)) / logits.len() as f64;
            expected += f64::from(smoothing * weight) * mean;
        }
        vector::exp_shifted(logits, max);
        let sum = vector::sum(logits);
        let scale = weight / sum;
        let uniform = smoothing * weight / logits.len() as f32;
        for p in logits.iter_mut() {
            *p = p.mul_add(scale, -uniform);
        }
        for (target, weight) in self.targets.row(row) {
            logits[target as usize] -= weight * (1.0 - smoothing);
        }
        f64::from(weight) * f64::from(max + sum.ln()) - expected
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (hidden, items) = (f32_slice(s1, l1)?, f32_slice(s2, l2)?);
        let d = l1.shape().dims2()?.1;
        let (loss, dhidden, ditems) = self.compute(hidden, items, d);
        let _ = self.gradients.set((cpu_tensor(dhidden, l1.shape())?, cpu_tensor(ditems, l2.shape())?));
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        _hidden: &Tensor,
        _items: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some((dhidden, ditems)) = self.gradients.get() else {
            candle_core::bail!("cross_entropy: backward before forward");
        };
        let scale = f64::from(dloss.to_scalar::<f32>()?);
        if scale == 1.0 {
            return Ok((Some(dhidden.clone()), Some(ditems.clone())));
        }
        Ok((Some((dhidden * scale)?), Some((ditems * scale)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn grouped() -> Arc<Targets> {
        Arc::new(Targets {
            offsets: vec![0, 2, 2, 3, 6],
            candidates: vec![0, 4, 2, 1, 1, 5],
            weights: vec![1.0, 0.5, 2.0, 1.0, 1.0, 0.25],
        })
    }

    fn single() -> (Arc<Targets>, Arc<Candidates>) {
        let targets =
            Targets { offsets: vec![0, 1, 2, 2, 3], candidates: vec![0, 4, 2], weights: vec![1.0, 0.5, 2.0] };
        let candidates = Candidates::Sampled {
            shift: vec![0.5, f32::NEG_INFINITY, 1.0, -0.5, 0.2, 0.0, 0.3],
            excluded_offsets: vec![0, 2, 3, 3, 4],
            excluded: vec![0, 3, 4, 2],
        };
        (Arc::new(targets), Arc::new(candidates))
    }

    #[test]
    fn full_softmax() {
        let inputs = [check::random((4, 5), 1), check::random((7, 5), 2)];
        let all = Arc::new(Candidates::All);
        for smoothing in [0.0, 0.1] {
            let fused = cross_entropy(&inputs[0], &inputs[1], &grouped(), &all, smoothing).unwrap();
            let stock =
                reference::cross_entropy(&inputs[0], &inputs[1], &grouped(), &all, smoothing).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-5);
            check::gradients(&inputs, |t| cross_entropy(&t[0], &t[1], &grouped(), &all, smoothing)? * 1.5);
        }
    }

    #[test]
    fn sampled_softmax() {
        let inputs = [check::random((4, 5), 1), check::random((7, 5), 2)];
        let (targets, candidates) = single();
        let fused = cross_entropy(&inputs[0], &inputs[1], &targets, &candidates, 0.0).unwrap();
        let stock = reference::cross_entropy(&inputs[0], &inputs[1], &targets, &candidates, 0.0).unwrap();
        assert!(check::distance(&fused, &stock) < 1e-5);
        check::gradients(&inputs, |t| cross_entropy(&t[0], &t[1], &targets, &candidates, 0.0));
    }

    #[test]
    fn more_rows_and_columns_than_a_task() {
        let (n, c) = (2 * ROWS + 19, COLUMNS_A_TASK + 77);
        let inputs = [check::random((n, 8), 1), check::random((c, 8), 2)]
            .map(|t| candle_core::Var::from_tensor(&t).unwrap());
        let targets = Arc::new(Targets {
            offsets: (0..=n as u32).collect(),
            candidates: (0..n as u32).map(|i| i * 7 % c as u32).collect(),
            weights: vec![1.0; n],
        });
        let all = Arc::new(Candidates::All);
        let fused = cross_entropy(&inputs[0], &inputs[1], &targets, &all, 0.0).unwrap();
        let stock = reference::cross_entropy(&inputs[0], &inputs[1], &targets, &all, 0.0).unwrap();
        assert!(check::distance(&fused, &stock) < 1e-1, "{fused} {stock}");
        let (fused, stock) = (fused.backward().unwrap(), stock.backward().unwrap());
        for input in &inputs {
            assert!(check::distance(fused.get(input).unwrap(), stock.get(input).unwrap()) < 1e-3);
        }
    }
}
