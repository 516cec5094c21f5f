//! Where tokens stand to each other: who may look at whom, and the columns of the biases.

use ragged::{TIME_BUCKETS, time_bucket};

use super::Serving;
use crate::export::graph::Value;

/// What attention knows of the tokens, whatever the layer: `N = n + 1` rows and columns.
pub(super) struct Layout {
    /// The columns, `[1, N]`.
    pub(super) column: Value,
    /// The last row, one number.
    pub(super) last: Value,
    /// Whether a column comes after a row, `[N, N]`.
    pub(super) future: Value,
    /// For each row and column the columns of a layer's bias: of `b_pos` and, where there is one, of `b_time`.
    pub(super) biases: Vec<Value>,
}

/// For each bucket of `b_time` the shortest time in milliseconds that belongs to it or to a higher one. Bucket 0 is the
/// start token's, and whatever is not after the earlier event belongs to bucket 1.
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
            // The start token has no time, and its column no bucket but 0.
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

    /// [`time_bucket`] of times in milliseconds: a binary search among the thresholds, each step written out.
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
