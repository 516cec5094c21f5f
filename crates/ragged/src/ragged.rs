//! Shared parts of attention over ragged rows: the layout of the batch, the position and time biases, and the blocks of rows that
//! one thread works through.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{Mat, gemm};

/// Buckets of `b_time`: 0 for the start-of-sequence key, then half octaves of 1 + the seconds between two events.
pub const TIME_BUCKETS: usize = 64;
/// Rows of a block of scores.
const BLOCK: usize = 64;

/// Layout of a ragged batch for attention, shared by all layers.
#[derive(Debug, Clone, Default)]
pub struct AttentionLayout {
    /// Start of each sequence's tokens, and the end of the last: `[B + 1]`.
    pub offsets: Vec<usize>,
    /// Time of each token in epoch milliseconds, `[T]`; the time of a sequence's first token, the start-of-sequence token, is
    /// ignored.
    pub times: Vec<i64>,
    /// Number of keys that each token may attend to, from the first of its sequence on, `[T]`. `None` is causal: a token attends
    /// to itself and everything before it.
    pub keys: Option<Vec<u32>>,
}

impl AttentionLayout {
    /// Returns the number of keys of row `i` of the sequence that begins at token `start`.
    #[inline(always)]
    pub(super) fn keys(&self, start: usize, i: usize) -> usize {
        self.keys.as_ref().map_or(i + 1, |keys| keys[start + i] as usize)
    }

    /// Returns the position of each token in its sequence; the start-of-sequence token is at 0.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).flat_map(|ends| 0..ends[1] - ends[0])
    }
}

/// Returns the bucket of `b_time` for an event at `later` that attends to one at `earlier` (epoch milliseconds).
#[inline]
pub fn time_bucket(later: i64, earlier: i64) -> u8 {
    let seconds = later.wrapping_sub(earlier).max(0) as f32 / 1000.0;
    // Exponent and first mantissa bit of 1 + seconds: two buckets an octave.
    let half_octaves = ((seconds + 1.0).to_bits() >> 22) - (127 << 1);
    (1 + half_octaves).min(TIME_BUCKETS as u32 - 1) as u8
}

/// Ragged batch under one attention with relative biases.
#[derive(Debug)]
pub(super) struct Ragged {
    pub(super) layout: Arc<AttentionLayout>,
    pub(super) heads: usize,
    pub(super) max_distance: usize,
    /// Whether there is a time bias.
    pub(super) time: bool,
}

impl Ragged {
    /// Checks a layout against queries, keys and values `[T, 3 d]` and `bias`, `[H, P]` or `[H, P + TIME_BUCKETS]` with
    /// `P = max_distance`.
    ///
    /// # Errors
    ///
    /// Shapes and a layout that do not fit each other; `operation` names the caller in the message.
    pub(super) fn new(
        operation: &str,
        (tokens, width): (usize, usize),
        bias: &Tensor,
        layout: &Arc<AttentionLayout>,
        max_distance: usize,
    ) -> Result<Self> {
        let (heads, columns) = bias.dims2()?;
        if width % (3 * heads) != 0 || layout.offsets.last() != Some(&tokens) || layout.times.len() != tokens
        {
            candle_core::bail!("{operation}: {heads} heads over {tokens}×{width} do not fit the layout");
        }
        if columns != max_distance && columns != max_distance + TIME_BUCKETS {
            candle_core::bail!("{operation}: a bias of {columns} columns for max_distance {max_distance}");
        }
        Ok(Self { layout: layout.clone(), heads, max_distance, time: columns > max_distance })
    }

    /// Returns the number of tokens of the batch.
    pub(super) fn tokens(&self) -> usize {
        self.layout.times.len()
    }

    /// Returns the number of columns of the bias.
    pub(super) fn columns(&self) -> usize {
        self.max_distance + if self.time { TIME_BUCKETS } else { 0 }
    }

    /// Returns the `b`-th sequence, given the `qkv` of the whole batch.
    pub(super) fn sequence<'a>(&'a self, b: usize, qkv: &'a [f32], bias: &'a [f32]) -> Sequence<'a> {
        let width = qkv.len() / self.tokens();
        let qkv = &qkv[self.layout.offsets[b] * width..self.layout.offsets[b + 1] * width];
        self.sequence_of(b, width / 3, qkv, bias)
    }

    /// Returns the `b`-th sequence, given its own queries, keys and values, `[n, 3 d]`.
    pub(super) fn sequence_of<'a>(
        &'a self,
        b: usize,
        d: usize,
        qkv: &'a [f32],
        bias: &'a [f32],
    ) -> Sequence<'a> {
        let (start, end) = (self.layout.offsets[b], self.layout.offsets[b + 1]);
        Sequence { ragged: self, start, n: end - start, width: d / self.heads, qkv, bias }
    }

    /// Splits the sequences `within` into consecutive runs of at least `tokens` tokens each; the last run may be shorter.
    pub(super) fn runs(&self, within: Range<usize>, tokens: usize) -> Vec<Range<usize>> {
        let offsets = &self.layout.offsets;
        let (mut runs, mut from) = (Vec::new(), within.start);
        for to in within.start + 1..=within.end {
            if offsets[to] - offsets[from] >= tokens || to == within.end {
                runs.push(from..to);
                from = to;
            }
        }
        runs
    }

    /// Returns the tokens of a run of sequences.
    pub(super) fn tokens_of(&self, run: &Range<usize>) -> Range<usize> {
        self.layout.offsets[run.start]..self.layout.offsets[run.end]
    }

    /// Splits a `[T, width]` slice into one piece for each run; the runs cover all sequences.
    pub(super) fn pieces_of<'a>(
        &self,
        runs: &[Range<usize>],
        mut data: &'a mut [f32],
        width: usize,
    ) -> Vec<&'a mut [f32]> {
        runs.iter()
            .map(|run| {
                let (piece, rest) = std::mem::take(&mut data).split_at_mut(self.tokens_of(run).len() * width);
                data = rest;
                piece
            })
            .collect()
    }

    /// Splits a `[T, width]` slice into one piece for each sequence.
    pub(super) fn pieces<'a>(&self, data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        self.pieces_of(&self.runs(0..self.layout.offsets.len() - 1, 0), data, width)
    }
}

/// Working memory of one thread: some blocks for the longest sequence so far. Buffers only grow; every use writes before it
/// reads.
#[derive(Default)]
pub(super) struct Scratch {
    /// Two blocks of scores, or of values computed from them.
    pub(super) scores: Vec<f32>,
    pub(super) weights: Vec<f32>,
    /// `b_pos` by key, as seen from the last row of the sequence: row `i` reads it from `n − 1 − i` on.
    pub(super) positions: Vec<f32>,
    /// Time buckets of a block.
    pub(super) buckets: Vec<u8>,
    pub(super) gradient: BiasGradient,
}

impl Scratch {
    /// Grows the buffers for a sequence of `n` tokens.
    pub(super) fn fit(&mut self, n: usize) {
        let block = BLOCK * n;
        if self.scores.len() < block {
            self.scores.resize(block, 0.0);
            self.weights.resize(block, 0.0);
            self.buckets.resize(block, 0);
        }
        if self.positions.len() < n {
            self.positions.resize(n, 0.0);
            self.gradient.positions.resize(n, 0.0);
        }
    }
}

/// Gradient of one head's biases, accumulated over the rows of a sequence.
pub(super) struct BiasGradient {
    /// By key, as seen from the last row, like [`Scratch::positions`].
    positions: Vec<f32>,
    /// Several tables: consecutive keys often share a bucket, and their additions would wait for each other.
    time: [[f32; TIME_BUCKETS]; 4],
}

impl Default for BiasGradient {
    fn default() -> Self {
        Self { positions: Vec::new(), time: [[0.0; TIME_BUCKETS]; 4] }
    }
}

impl BiasGradient {
    /// Clears the gradient for a head of a sequence of `n` tokens.
    pub(super) fn clear(&mut self, n: usize) {
        self.positions[..n].fill(0.0);
        self.time.as_flattened_mut().fill(0.0);
    }

    /// Adds the gradient of the scores of row `i` of `sequence`, over its visible keys.
    #[inline(always)]
    pub(super) fn add(&mut self, sequence: &Sequence<'_>, i: usize, dscores: &[f32], buckets: &[u8]) {
        let positions = &mut self.positions[sequence.n - 1 - i..][..dscores.len()];
        super::vector::add_scaled(positions, 1.0, dscores);
        if sequence.ragged.time {
            for (j, (&ds, &bucket)) in dscores.iter().zip(buckets).enumerate() {
                self.time[j % 4][usize::from(bucket) % TIME_BUCKETS] += ds;
            }
        }
    }

    /// Adds the accumulated gradient to one head's row of the bias's gradient.
    pub(super) fn store(&self, sequence: &Sequence<'_>, table: &mut [f32]) {
        let (n, max_distance) = (sequence.n, sequence.ragged.max_distance);
        for (m, dp) in self.positions[..n].iter().enumerate() {
            table[(n - 1 - m).min(max_distance - 1)] += dp;
        }
        for (bucket, d) in table[max_distance..].iter_mut().enumerate() {
            *d += self.time.iter().map(|t| t[bucket]).sum::<f32>();
        }
    }
}

/// One sequence of the batch, with its queries, keys and values.
pub(super) struct Sequence<'a> {
    ragged: &'a Ragged,
    /// Index of its first token in the batch.
    pub(super) start: usize,
    /// Number of its tokens.
    pub(super) n: usize,
    /// Head width `d / H`.
    pub(super) width: usize,
    qkv: &'a [f32],
    bias: &'a [f32],
}

impl Sequence<'_> {
    /// Returns the queries (0), keys (1) or values (2) of `rows` rows from `from` on, for one head: `[rows, width]`.
    pub(super) fn part(&self, which: usize, head: usize, from: usize, rows: usize) -> Mat<'_> {
        let d = self.ragged.heads * self.width;
        let data = &self.qkv[from * 3 * d + which * d + head * self.width..];
        Mat::new(data, rows, self.width, 3 * d)
    }

    /// Returns the number of columns of the bias.
    pub(super) fn columns(&self) -> usize {
        self.ragged.columns()
    }

    /// Returns the query of row `i` for one head, `[width]`.
    pub(super) fn query(&self, head: usize, i: usize) -> &[f32] {
        &self.qkv[i * 3 * self.ragged.heads * self.width + head * self.width..][..self.width]
    }

    /// Returns the number of keys that row `i` may attend to.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> usize {
        self.ragged.layout.keys(self.start, i)
    }

    /// Returns the row blocks: first row, end, and the largest number of keys of their rows.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.n).step_by(BLOCK).map(|from| {
            let to = (from + BLOCK).min(self.n);
            let keys = (from..to).map(|i| self.visible(i)).max().unwrap_or(0);
            (from, to, keys)
        })
    }

    /// Fills the time buckets of a block, with rows `keys` apart, if there is a time bias.
    pub(super) fn time_buckets(&self, buckets: &mut [u8], from: usize, to: usize, keys: usize) {
        if !self.ragged.time {
            return;
        }
        let times = &self.ragged.layout.times[self.start..self.start + self.n];
        for i in from..to {
            let row = &mut buckets[(i - from) * keys..][..keys];
            for (bucket, &earlier) in row.iter_mut().zip(&times[..keys]) {
                *bucket = time_bucket(times[i], earlier);
            }
            if let Some(first) = row.first_mut() {
                *first = 0;
            }
        }
    }

    /// Fills `positions` with `b_pos` of `head` by key, as seen from the last row.
    pub(super) fn position_biases(&self, positions: &mut [f32], head: usize) {
        let max_distance = self.ragged.max_distance;
        let table = &self.bias[head * self.ragged.columns()..][..max_distance];
        for (m, p) in positions[..self.n].iter_mut().enumerate() {
            *p = table[(self.n - 1 - m).min(max_distance - 1)];
        }
    }

    /// Returns `b_time` of `head`, if there is a time bias.
    pub(super) fn time_biases(&self, head: usize) -> Option<&[f32; TIME_BUCKETS]> {
        let columns = self.ragged.columns();
        self.bias[head * columns..(head + 1) * columns][self.ragged.max_distance..].first_chunk()
    }

    /// Writes the products `q · k` of a block to `products`, with rows `keys` apart.
    pub(super) fn products(&self, products: &mut [f32], head: usize, from: usize, to: usize, keys: usize) {
        gemm(products, keys, false, self.part(0, head, from, to - from), self.part(1, head, 0, keys).t());
    }

    /// Adds the biases to the scores of row `i`, over its visible keys.
    #[inline(always)]
    pub(super) fn add_bias(
        &self,
        row: &mut [f32],
        i: usize,
        positions: &[f32],
        time: Option<&[f32; TIME_BUCKETS]>,
        buckets: &[u8],
    ) {
        for (s, p) in row.iter_mut().zip(&positions[self.n - 1 - i..]) {
            *s += p;
        }
        if let Some(time) = time {
            for (s, &bucket) in row.iter_mut().zip(buckets) {
                *s += time[usize::from(bucket) % TIME_BUCKETS];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_buckets_are_half_octaves() {
        assert_eq!(time_bucket(0, 0), 1);
        assert_eq!(time_bucket(400, 0), 1);
        assert_eq!(time_bucket(500, 0), 2);
        assert_eq!(time_bucket(1_000, 0), 3);
        assert_eq!(time_bucket(900_000, 0), time_bucket(1_000_000, 0));
        assert!(time_bucket(i64::MAX, 0) < TIME_BUCKETS as u8);
        assert_eq!(time_bucket(0, 5), 1);
    }

    #[test]
    fn positions_begin_anew_with_each_sequence() {
        let layout = AttentionLayout { offsets: vec![0, 3, 3, 5], ..AttentionLayout::default() };
        assert_eq!(layout.positions().collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }
}
