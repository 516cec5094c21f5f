//! Relative layout of the tokens: the causal mask, and the bias column of each pair of tokens.

use ragged::{TIME_BUCKETS, time_bucket};

use super::Serving;
use crate::export::graph::Value;

/// Inputs of attention that all layers share, for `N = n + 1` tokens.
pub(super) struct Layout {
    /// Column indexes, `[1, N]`.
    pub(super) column: Value,
    /// Index of the last row, a scalar.
    pub(super) last: Value,
    /// Whether a column comes after a row, `[N, N]`.
    pub(super) future: Value,
    /// Columns of a layer's bias for each row and column: those of `b_pos` and, if the model has it, of `b_time`; `[N, N]` each.
    pub(super) biases: Vec<Value>,
}

/// Returns, for each bucket of `b_time`, the shortest time (milliseconds) in it or a higher bucket. Bucket 0 belongs to the start
/// token; times at or before the earlier event fall into bucket 1.
pub(in crate::export) fn time_thresholds() -> [i64; TIME_BUCKETS] {
    std::array::from_fn(|bucket| {
        let (mut from, mut to) = (0, i64::MAX);
        while from < to {
            let middle = from + (to - from) / 2;
            if usize::from(time_bucket(middle, 0)) < bucket {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        if bucket < 2 { i64::MIN } else { from }
    })
}

impl Serving<'_> {
    pub(super) fn layout(&mut self, history: &str, times: &str) -> Layout {
        let max_distance = self.settings.max_distance as i64;
        let b = &mut self.builder;
        b.enter("layout");
        let (zero, one) = (b.integer(0), b.integer(1));
        let last = b.node("Size", &[history]);
        let end = b.node("Add", &[&last, &one]);
        let tokens = b.node("Range", &[&zero, &end, &one]);
        let (row, column) = (b.unsqueeze(&tokens, &[1]), b.unsqueeze(&tokens, &[0]));
        let future = b.node("Greater", &[&column, &row]);
        let distance = b.node("Sub", &[&row, &column]);
        let farthest = b.integer(max_distance - 1);
        let mut biases = vec![b.node("Clip", &[&distance, &zero, &farthest])];
        if self.settings.time_bias {
            // The start token has no time; its column always has bucket 0.
            let no_time = b.list(&[0]);
            let times = b.concat(&[&no_time, times], 0);
            let (later, earlier) = (b.unsqueeze(&times, &[1]), b.unsqueeze(&times, &[0]));
            let since = b.node("Sub", &[&later, &earlier]);
            let bucket = self.time_buckets(&since);
            let b = &mut self.builder;
            let start = b.node("Equal", &[&column, &zero]);
            let bucket = b.node("Where", &[&start, &zero, &bucket]);
            let first = b.integer(max_distance);
            biases.push(b.node("Add", &[&bucket, &first]));
        }
        Layout { column, last, future, biases }
    }

    /// Computes [`time_bucket`] of times in milliseconds by an unrolled binary search over the thresholds.
    fn time_buckets(&mut self, since: &str) -> Value {
        let b = &mut self.builder;
        let thresholds = b.integers("time_thresholds", &[TIME_BUCKETS], &time_thresholds());
        let mut bucket = b.integer(0);
        let mut step = TIME_BUCKETS as i64 / 2;
        while step > 0 {
            let width = b.integer(step);
            let next = b.node("Add", &[&bucket, &width]);
            let threshold = b.gather(&thresholds, &next, 0);
            let reached = b.node("GreaterOrEqual", &[since, &threshold]);
            bucket = b.node("Where", &[&reached, &next, &bucket]);
            step /= 2;
        }
        bucket
    }
}
