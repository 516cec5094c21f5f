//! Arguments of the operations, common to the fused, stock and GPU versions.

use std::ops::Range;

/// Added to the variance in layer norm.
pub const NORM_EPSILON: f32 = 1e-5;

/// Added to the squared length of a row before the root.
pub const UNIT_EPSILON: f32 = 1e-12;

/// Ragged lists of table rows, one for each output: bag `b` is `rows[offsets[b]..offsets[b + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bags {
    /// Start of each bag in `rows`, and the end of the last: `[bags + 1]`.
    pub offsets: Vec<u32>,
    /// Table rows of all bags, concatenated.
    pub rows: Vec<u32>,
}

impl Default for Bags {
    fn default() -> Self {
        Self { offsets: vec![0], rows: Vec::new() }
    }
}

impl Bags {
    /// Appends a bag.
    pub fn push(&mut self, rows: impl IntoIterator<Item = u32>) {
        self.rows.extend(rows);
        self.offsets.push(self.rows.len() as u32);
    }

    /// Returns the rows of bag `b`.
    pub fn get(&self, b: usize) -> &[u32] {
        &self.rows[self.offsets[b] as usize..self.offsets[b + 1] as usize]
    }

    /// Returns the number of bags.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no bags.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Dropout of a training step. The seed and an element's index alone decide whether the element is dropped: a resumed run drops
/// the same elements, and the backward pass needs no stored mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of the elements that become 0; the others are scaled by `1 / (1 − p)`.
    pub p: f64,
    /// Seed of this use.
    pub seed: u64,
}

/// Prediction targets of each row: any number of weighted candidates.
///
/// Several targets in a row are several losses with the same hidden state, whose normaliser is computed once: with the time-aware
/// mask, many targets share one visible prefix.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// Start of each row's targets, and the end of the last: `[rows + 1]`.
    pub offsets: Vec<u32>,
    /// Candidate of each target.
    pub candidates: Vec<u32>,
    /// Weight of each target's loss.
    pub weights: Vec<f32>,
}

impl Targets {
    /// Returns the targets of `row` with their weights.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        self.candidates[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }
}

/// Competitors of a target in the softmax.
#[derive(Debug, Clone, Default)]
pub enum Candidates {
    /// The whole catalogue.
    #[default]
    All,
    /// Sampled softmax: negatives shared by all rows. Each row has at most one target.
    Sampled {
        /// Shifts of the negatives' logits: `−log Q`, or 0. The negatives are the first candidates; later ones are targets only.
        /// A target's own logit is never shifted.
        shift: Vec<f32>,
        /// Start of each row's list in `excluded`, and the end of the last: `[rows + 1]`.
        excluded_offsets: Vec<u32>,
        /// Candidates that are not negatives of a row: all items that the row's position predicts.
        excluded: Vec<u32>,
        /// Start and end of each row's list in `certain`, `[2 rows]`. Rows may share a list.
        certain_ranges: Vec<u32>,
        /// Candidates whose logits a row does not shift; distinct within a list.
        certain: Vec<u32>,
    },
}

impl Candidates {
    /// Returns the shifts of the logits of `rows`, `[rows, columns]`, after which each row's competitors are its target and its
    /// negatives. `None` if the whole catalogue competes; zeros for a row without a target.
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

    /// Returns the candidates that are not negatives of `row`.
    pub(crate) fn excluded(&self, row: usize) -> &[u32] {
        match self {
            Self::All => &[],
            Self::Sampled { excluded_offsets, excluded, .. } => {
                &excluded[excluded_offsets[row] as usize..excluded_offsets[row + 1] as usize]
            }
        }
    }

    /// Returns the candidates whose logits `row` does not shift.
    pub(crate) fn certain(&self, row: usize) -> &[u32] {
        match self {
            Self::All => &[],
            Self::Sampled { certain_ranges, certain, .. } => {
                &certain[certain_ranges[2 * row] as usize..certain_ranges[2 * row + 1] as usize]
            }
        }
    }

    /// Returns how many of the `candidates` compete with the targets; they are the first ones.
    pub fn competing(&self, candidates: usize) -> usize {
        match self {
            Self::All => candidates,
            Self::Sampled { shift, .. } => shift.len(),
        }
    }
}
