//! Softmax cross-entropy over a catalogue (Eq. 3) without the matrix of all logits.
//!
//! Rows are processed in groups: only one group's logits, at most 32 MiB or one row, are in memory. Gradients are computed in the
//! same pass:
//!
//! ```text
//! for each group of rows                                     split over threads by
//!   Z = H Eᵀ                                                 candidate columns
//!   P = exp(Z − max) in place, loss, dH = s (P E)            rows
//!   dE += Pᵀ (s H)                                           candidate columns
//! ```
//!
//! `s` is each row's weight over its sum of `P`; the softmax itself is never written. The targets' part of the gradient is added
//! to `dH` and `dE` row by row.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use schemas::config::Precision;

use super::arguments::{Candidates, Targets};
use super::matrix::ColumnBlocks;
use super::{Mat, cpu_tensor, f32_slice, fused, gemm, reference, vector};

/// Maximum rows of a group, and its maximum logits (one row if the catalogue is larger): the more candidates, the fewer rows.
const ROWS: usize = 512;
const LOGITS: usize = 1 << 23;
const ROWS_A_TASK: usize = 64;
const COLUMNS_A_TASK: usize = 512;

thread_local! {
    /// Logits of a group, kept between steps: newly allocated memory would be cleared in each.
    static KEPT: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) };
}

/// Returns the weighted sum of `−log softmax` over all targets, a scalar.
///
/// `hidden` is `[N, d]`, `items` the candidates' vectors `[C, d]`. `label_smoothing` mixes that share of the uniform distribution
/// into each target; it must be 0 for sampled candidates. On a GPU, `precision` is the number format of the products.
///
/// # Errors
///
/// Tensors, targets and candidates that do not fit each other; label smoothing or several targets in a row with sampled
/// candidates.
#[cfg_attr(
    not(any(feature = "cuda", feature = "emulator")),
    expect(unused_variables, reason = "there are no kernels that `precision` is for")
)]
pub fn cross_entropy(
    hidden: &Tensor,
    items: &Tensor,
    targets: &Arc<Targets>,
    candidates: &Arc<Candidates>,
    label_smoothing: f64,
    precision: Precision,
) -> Result<Tensor> {
    let (rows, d) = hidden.dims2()?;
    let (columns, width) = items.dims2()?;
    if d != width || targets.offsets.len() != rows + 1 {
        candle_core::bail!("cross_entropy: {rows}×{d} hidden states, {columns}×{width} items");
    }
    if let Some(target) = targets.candidates.iter().find(|&&t| t as usize >= columns) {
        candle_core::bail!("cross_entropy: target {target} of {columns} candidates");
    }
    if let Candidates::Sampled { shift, excluded_offsets, certain_ranges, .. } = &**candidates {
        let one_each = targets.offsets.windows(2).all(|ends| ends[1] - ends[0] <= 1);
        let for_rows = excluded_offsets.len() == rows + 1 && certain_ranges.len() == 2 * rows;
        if label_smoothing > 0.0 || shift.len() > columns || !for_rows || !one_each {
            candle_core::bail!("cross_entropy: the sampled candidates do not fit the rows");
        }
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(hidden) {
        return super::kernels::cross_entropy(hidden, items, targets, candidates, label_smoothing, precision);
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

/// Inputs shared by all rows.
struct Shared<'a> {
    d: usize,
    items: &'a [f32],
    /// Number of competing candidates.
    columns: usize,
    /// Mean item vector, for label smoothing.
    mean: Vec<f32>,
}

impl CrossEntropy {
    fn compute(&self, hidden: &[f32], items: &[f32], d: usize) -> (f64, Vec<f32>, Vec<f32>) {
        let rows = hidden.len() / d;
        let columns = self.candidates.competing(items.len() / d);
        let shared = Shared { d, items, columns, mean: self.mean(items, d) };
        // Without competitors a row has no logits, but needs a stride.
        let stride = columns.max(1);
        let mut dhidden = vec![0f32; hidden.len()];
        let mut ditems = vec![0f32; items.len()];
        let in_group = (LOGITS / stride).clamp(1, ROWS);
        let mut logits = KEPT.take();
        logits.resize(in_group.min(rows) * stride, 0.0);
        let mut scaled = vec![0f32; in_group.min(rows) * d];
        let items_of = |task: usize| {
            let from = task * COLUMNS_A_TASK;
            (from, (from + COLUMNS_A_TASK).min(columns))
        };
        let mut loss = 0f64;
        // Each target's part of the gradient of its own logit.
        let mut own: Vec<f32> = Vec::with_capacity(self.targets.candidates.len());
        for (group, (hidden, dhidden)) in
            hidden.chunks(in_group * d).zip(dhidden.chunks_mut(in_group * d)).enumerate()
        {
            let n = hidden.len() / d;
            let logits = &mut logits[..n * stride];
            let scaled = &mut scaled[..n * d];
            // Each thread writes its own columns: disjoint, but not contiguous in memory.
            let block = ColumnBlocks::new(logits, stride);
            (0..columns.div_ceil(COLUMNS_A_TASK)).into_par_iter().for_each(|task| {
                let (from, to) = items_of(task);
                let e = Mat::new(&items[from * d..to * d], to - from, d, d);
                // SAFETY: the tasks' column ranges are disjoint.
                unsafe { block.product(from, Mat::new(hidden, n, d, d), e.t()) };
            });
            let tasks: Vec<(f64, Vec<f32>)> = (logits.par_chunks_mut(ROWS_A_TASK * stride))
                .zip(hidden.par_chunks(ROWS_A_TASK * d))
                .zip(dhidden.par_chunks_mut(ROWS_A_TASK * d))
                .zip(scaled.par_chunks_mut(ROWS_A_TASK * d))
                .enumerate()
                .map(|(task, (((logits, hidden), dhidden), scaled))| {
                    let first = group * in_group + task * ROWS_A_TASK;
                    self.rows(first, &shared, logits, hidden, dhidden, scaled)
                })
                .collect();
            for (part, targets) in tasks {
                loss += part;
                own.extend(targets);
            }
            let (exponentials, scaled) = (&*logits, &*scaled);
            ditems[..columns * d].par_chunks_mut(COLUMNS_A_TASK * d).enumerate().for_each(
                |(task, ditems)| {
                    let (from, to) = items_of(task);
                    let p = Mat::new(&exponentials[from..], n, to - from, stride);
                    gemm(ditems, d, true, p.t(), Mat::new(scaled, n, d, d));
                },
            );
        }
        KEPT.set(logits);
        self.add_own(hidden, &own, &mut ditems, d);
        (loss, dhidden, ditems)
    }

    /// Returns the mean item vector, `[d]`; zeros without label smoothing.
    fn mean(&self, items: &[f32], d: usize) -> Vec<f32> {
        let mut mean = vec![0f32; d];
        if self.label_smoothing > 0.0 {
            items.chunks_exact(d).for_each(|item| vector::add_scaled(&mut mean, 1.0, item));
            vector::scale(&mut mean, d as f32 / items.len() as f32);
        }
        mean
    }

    /// Processes the rows from `first` on: logits become exponentials, `dhidden` receives the whole gradient, and `scaled` the
    /// hidden states times the factor that turns exponentials into gradients of the logits. Returns the loss, and each target's
    /// part of the gradient of its own logit.
    fn rows(
        &self,
        first: usize,
        shared: &Shared<'_>,
        logits: &mut [f32],
        hidden: &[f32],
        dhidden: &mut [f32],
        scaled: &mut [f32],
    ) -> (f64, Vec<f32>) {
        let &Shared { d, items, columns, ref mean } = shared;
        let n = hidden.len() / d;
        let stride = logits.len() / n;
        let (mut loss, mut own, mut scales) = (0f64, Vec::new(), Vec::with_capacity(n));
        for (i, (logits, hidden)) in logits.chunks_exact_mut(stride).zip(hidden.chunks_exact(d)).enumerate() {
            let (part, scale) = self.row(first + i, shared, &mut logits[..columns], hidden, &mut own);
            loss += part;
            scales.push(scale);
        }
        let e = Mat::new(items, columns, d, d);
        gemm(dhidden, d, false, Mat::new(logits, n, columns, stride), e);
        let mut target = 0;
        for (i, &scale) in scales.iter().enumerate() {
            let of_row = i * d..(i + 1) * d;
            let dhidden = &mut dhidden[of_row.clone()];
            vector::scale(dhidden, scale);
            let mut weight = 0.0;
            for (candidate, w) in self.targets.row(first + i) {
                vector::add_scaled(dhidden, own[target], &items[candidate as usize * d..][..d]);
                weight += w;
                target += 1;
            }
            if self.label_smoothing > 0.0 {
                vector::add_scaled(dhidden, -weight * self.label_smoothing, mean);
            }
            let scaled = &mut scaled[of_row.clone()];
            scaled.copy_from_slice(&hidden[of_row]);
            vector::scale(scaled, scale);
        }
        (loss, own)
    }

    /// Processes one row: logits become exponentials, and each target's part of the gradient of its own logit is appended to
    /// `own`. Returns the loss and the factor that turns the exponentials into the rest of the gradient.
    fn row(
        &self,
        row: usize,
        shared: &Shared<'_>,
        logits: &mut [f32],
        hidden: &[f32],
        own: &mut Vec<f32>,
    ) -> (f64, f32) {
        let weight: f32 = self.targets.row(row).map(|(_, weight)| weight).sum();
        if weight == 0.0 {
            logits.fill(0.0);
            own.extend(self.targets.row(row).map(|_| 0.0));
            return (0.0, 0.0);
        }
        let smoothing = self.label_smoothing;
        let item = |candidate: u32| &shared.items[candidate as usize * shared.d..][..shared.d];
        // Logit of a target that is not a competitor.
        let mut apart = None;
        if let Candidates::Sampled { shift, .. } = &*self.candidates
            && let Some((target, _)) = self.targets.row(row).next()
        {
            let logit = logits.get(target as usize).copied();
            vector::widest(|| vector::add_scaled(logits, 1.0, shift));
            for &candidate in self.candidates.certain(row) {
                if let Some(logit) = logits.get_mut(candidate as usize) {
                    *logit -= shift[candidate as usize];
                }
            }
            for &candidate in self.candidates.excluded(row) {
                if let Some(logit) = logits.get_mut(candidate as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            match logit {
                Some(logit) => logits[target as usize] = logit,
                None => apart = Some(vector::dot(hidden, item(target))),
            }
        }
        let mut expected = 0f64;
        for (target, weight) in self.targets.row(row) {
            let logit = apart.unwrap_or_else(|| logits[target as usize]);
            expected += f64::from((1.0 - smoothing) * weight) * f64::from(logit);
        }
        if smoothing > 0.0 {
            expected += f64::from(smoothing * weight) * f64::from(vector::dot(hidden, &shared.mean));
        }
        let (max, mut sum) = vector::widest(
            #[inline(always)]
            || {
                let max = vector::max(logits).max(apart.unwrap_or(f32::NEG_INFINITY));
                (max, vector::exp_shifted(logits, max))
            },
        );
        let apart = apart.map_or(0.0, |logit| vector::exp(logit - max));
        sum += apart;
        let scale = weight / sum;
        own.extend(self.targets.row(row).map(|(_, weight)| apart * scale - weight * (1.0 - smoothing)));
        (f64::from(weight) * f64::from(max + sum.ln()) - expected, scale)
    }

    /// Adds the part of the targets' own logits and of label smoothing to the items' gradient.
    fn add_own(&self, hidden: &[f32], own: &[f32], ditems: &mut [f32], d: usize) {
        let mut uniform = vec![0f32; d];
        for (row, hidden) in hidden.chunks_exact(d).enumerate() {
            let first = self.targets.offsets[row] as usize;
            for ((target, weight), own) in self.targets.row(row).zip(&own[first..]) {
                vector::add_scaled(&mut ditems[target as usize * d..][..d], *own, hidden);
                if self.label_smoothing > 0.0 {
                    vector::add_scaled(&mut uniform, weight, hidden);
                }
            }
        }
        if self.label_smoothing > 0.0 {
            let share = -self.label_smoothing * d as f32 / ditems.len() as f32;
            ditems.par_chunks_mut(COLUMNS_A_TASK * d).for_each(|ditems| {
                ditems.chunks_exact_mut(d).for_each(|ditem| vector::add_scaled(ditem, share, &uniform));
            });
        }
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

    fn single(shift: &[f32]) -> (Arc<Targets>, Arc<Candidates>) {
        let targets =
            Targets { offsets: vec![0, 1, 2, 2, 3], candidates: vec![0, 4, 2], weights: vec![1.0, 0.5, 2.0] };
        let candidates = Candidates::Sampled {
            shift: shift.to_vec(),
            excluded_offsets: vec![0, 2, 3, 3, 4],
            excluded: vec![0, 3, 4, 2],
            // One candidate of a row is also excluded, one is not a negative; two rows share a list.
            certain_ranges: vec![0, 3, 3, 3, 0, 0, 0, 3],
            certain: vec![1, 3, 6],
        };
        (Arc::new(targets), Arc::new(candidates))
    }

    #[test]
    fn full_softmax() {
        let inputs = [check::random((4, 5), 1), check::random((7, 5), 2)];
        let all = Arc::new(Candidates::All);
        for smoothing in [0.0, 0.1] {
            let fused =
                cross_entropy(&inputs[0], &inputs[1], &grouped(), &all, smoothing, Precision::F32).unwrap();
            let stock =
                reference::cross_entropy(&inputs[0], &inputs[1], &grouped(), &all, smoothing).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-5);
            check::gradients(&inputs, |t| {
                cross_entropy(&t[0], &t[1], &grouped(), &all, smoothing, Precision::F32)? * 1.5
            });
        }
    }

    #[test]
    fn sampled_softmax() {
        let inputs = [check::random((4, 5), 1), check::random((7, 5), 2)];
        // All candidates are negatives; some are targets only; there are no negatives.
        for shift in [&[0.5, 0.1, 1.0, -0.5, 0.2, 0.0, 0.3][..], &[0.5, 0.1, 1.0, -0.5], &[]] {
            let (targets, candidates) = single(shift);
            let fused =
                cross_entropy(&inputs[0], &inputs[1], &targets, &candidates, 0.0, Precision::F32).unwrap();
            let stock = reference::cross_entropy(&inputs[0], &inputs[1], &targets, &candidates, 0.0).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-5);
            check::gradients(&inputs, |t| {
                cross_entropy(&t[0], &t[1], &targets, &candidates, 0.0, Precision::F32)
            });
        }
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
        let fused = || cross_entropy(&inputs[0], &inputs[1], &targets, &all, 0.0, Precision::F32);
        let stock = || reference::cross_entropy(&inputs[0], &inputs[1], &targets, &all, 0.0);
        assert!(check::distance(&fused().unwrap(), &stock().unwrap()) < 1e-1);
        let (fused, stock) = (check::of(fused), check::of(stock));
        for input in &inputs {
            assert!(check::distance(fused.get(input).unwrap(), stock.get(input).unwrap()) < 1e-3);
        }
    }
}
