//! What operations are given, whichever version of them runs: fused, stock or on a GPU.

use std::ops::Range;

/// Added to the variance.
pub const NORM_EPSILON: f32 = 1e-5;

/// Added to the square of a row's length.
pub const UNIT_EPSILON: f32 = 1e-12;

/// A ragged list of table rows for each output: bag `b` is `rows[offsets[b]..offsets[b + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bags {
    /// Where each bag begins, and the end of the last.
    pub offsets: Vec<u32>,
    /// Table rows.
    pub rows: Vec<u32>,
}

impl Default for Bags {
    fn default() -> Self {
        Self { offsets: vec![0], rows: Vec::new() }
    }
}

impl Bags {
    /// Adds one bag.
    pub fn push(&mut self, rows: impl IntoIterator<Item = u32>) {
        self.rows.extend(rows);
        self.offsets.push(self.rows.len() as u32);
    }

    /// The rows of bag `b`.
    pub fn get(&self, b: usize) -> &[u32] {
        &self.rows[self.offsets[b] as usize..self.offsets[b + 1] as usize]
    }

    /// Number of bags.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no bag.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a training step drops. Which elements are dropped follows from the seed and their places alone, so
/// that a resumed run drops the same and the backward pass needs no stored mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of the elements that are zeroed; the others are scaled by `1 / (1 − p)`.
    pub p: f64,
    /// Seed of this use.
    pub seed: u64,
}

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
        /// Added to the logits of the first candidates, which are the negatives: `−log Q`, or 0. Those behind them
        /// are targets only. A target's own logit is never shifted.
        shift: Vec<f32>,
        /// For each row, candidates that are no negatives of it: all items that the row's position
        /// predicts. Offsets into `excluded`.
        excluded_offsets: Vec<u32>,
        /// Candidates.
        excluded: Vec<u32>,
        /// For each row, begin and end in `certain` of the candidates whose logits this row does not shift. Rows may share them.
        certain_ranges: Vec<u32>,
        /// Candidates; among those of one row each once.
        certain: Vec<u32>,
    },
}

impl Candidates {
    /// Shifts of the logits of `rows` (`[rows, columns]`, flat) so that each row's compete with its target:
    /// nothing where the whole catalogue competes, or where a row has no target.
    pub(crate) fn shifts(&self, rows: Range<usize>, columns: usize, targets: &Targets) -> Option<Vec<f32>> {
        let Self::Sampled { shift, .. } = self else { return None };
        let mut shifts = vec![0f32; rows.len() * columns];
        for (row, shifts) in rows.zip(shifts.chunks_exact_mut(columns)) {
            let Some((target, _)) = targets.row(row).next() else { continue };
            let (negatives, targets_only) = shifts.split_at_mut(shift.len());
            negatives.copy_from_slice(shift);
            for &candidate in self.certain(row) {
                if let Some(shift) = negatives.get_mut(candidate as usize) {
                    *shift = 0.0;
                }
            }
            targets_only.fill(f32::NEG_INFINITY);
            for &candidate in self.excluded(row) {
                shifts[candidate as usize] = f32::NEG_INFINITY;
            }
            shifts[target as usize] = 0.0;
        }
        Some(shifts)
    }

    /// Candidates that are no negatives of `row`.
    pub(crate) fn excluded(&self, row: usize) -> &[u32] {
        match self {
            Self::All => &[],
            Self::Sampled { excluded_offsets, excluded, .. } => {
                &excluded[excluded_offsets[row] as usize..excluded_offsets[row + 1] as usize]
            }
        }
    }

    /// Candidates whose logits `row` does not shift.
    pub(crate) fn certain(&self, row: usize) -> &[u32] {
        match self {
            Self::All => &[],
            Self::Sampled { certain_ranges, certain, .. } => {
                &certain[certain_ranges[2 * row] as usize..certain_ranges[2 * row + 1] as usize]
            }
        }
    }

    /// How many of the `candidates`, from the first on, compete with the targets.
    pub fn competing(&self, candidates: usize) -> usize {
        match self {
            Self::All => candidates,
            Self::Sampled { shift, .. } => shift.len(),
        }
    }
}
