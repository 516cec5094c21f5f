//! Queries of single rows of a ragged batch, and the keys that each of them sees.

use std::sync::Arc;

use candle_core::Result;

use super::ragged::Ragged;

/// Query rows of a ragged batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queries {
    /// Token of each query, `[R]`, ascending; several queries may share one.
    pub tokens: Vec<u32>,
    /// Flags of a condition, concatenated over the queries: whether each token of the query's sequence matches, from the first to
    /// its own. `None` hides nothing.
    pub matches: Option<Vec<bool>>,
}

/// Checked queries of a ragged batch, with their offsets.
pub(crate) struct QueryPlan {
    pub(crate) d: usize,
    pub(crate) ragged: Ragged,
    pub(crate) queries: Arc<Queries>,
    /// Start of each query's flags in `queries.matches`, `[R]`.
    pub(crate) flags: Vec<usize>,
    /// Start of each sequence's queries, and the end of the last: `[B + 1]`.
    pub(crate) of_sequence: Vec<usize>,
}

impl QueryPlan {
    pub(crate) fn new(d: usize, ragged: Ragged, queries: Arc<Queries>) -> Result<Self> {
        let offsets = &ragged.layout.offsets;
        let begin = |&start: &usize| queries.tokens.partition_point(|&t| (t as usize) < start);
        let of_sequence: Vec<usize> = offsets.iter().map(begin).collect();
        let mut flags = Vec::with_capacity(queries.tokens.len());
        let mut end = 0;
        for (b, of) in of_sequence.windows(2).enumerate() {
            for &token in &queries.tokens[of[0]..of[1]] {
                flags.push(end);
                end += token as usize - offsets[b] + 1;
            }
        }
        if queries.matches.as_ref().is_some_and(|matches| matches.len() != end) {
            candle_core::bail!("query_attention: the conditions' masks do not fit the queries");
        }
        Ok(Self { d, ragged, queries, flags, of_sequence })
    }

    /// Writes the keys that query `r` of sequence `b` sees to `keys`: positions in the sequence, ascending.
    pub(crate) fn keys(&self, b: usize, r: usize, keys: &mut Vec<u32>) {
        let start = self.ragged.layout.offsets[b];
        let i = self.queries.tokens[r] as usize - start;
        let visible = self.ragged.layout.keys(start, i) as u32;
        keys.clear();
        match &self.queries.matches {
            None => keys.extend(0..visible),
            Some(matches) => {
                let matches = &matches[self.flags[r]..=self.flags[r] + i];
                keys.extend((0..visible.min(i as u32)).filter(|&j| matches[j as usize]));
                keys.push(i as u32);
            }
        }
    }

    /// Returns the sequence and the visible keys of each query.
    pub(crate) fn seen(&self) -> Vec<(usize, Vec<u32>)> {
        let sequences = 0..self.of_sequence.len() - 1;
        let of = |b: usize| (self.of_sequence[b]..self.of_sequence[b + 1]).map(move |r| (b, r));
        sequences
            .flat_map(of)
            .map(|(b, r)| {
                let mut keys = Vec::new();
                self.keys(b, r, &mut keys);
                (b, keys)
            })
            .collect()
    }
}
