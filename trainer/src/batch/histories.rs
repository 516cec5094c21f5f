//! From histories to tokens: builds everything that models read, in training, in evaluation and for requests.
//!
//! ```text
//! history          i_1      i_2      …  i_n
//! tokens  [start]  i_1      i_2      …  i_n           row p of H represents the first p items, row 0 none
//! keys    1        1+v_2    1+v_3    …                mode `row` only: what each token may attend to, at most itself
//! ```

use std::sync::Arc;

use ragged::AttentionLayout;
use schemas::config::MaskMode;
use schemas::tables::NO_ITEM;

use crate::data::{Id, Token, VectorRow};
use crate::models::Tokens;

/// Returns how many of a row's positions the prediction at anchor `t` may use, which is also the row of `H` that it reads.
/// `visible` is `v_t` inside the row.
pub fn context_length(mask: MaskMode, t: usize, visible: u32) -> usize {
    match mask {
        MaskMode::Gather => visible as usize,
        MaskMode::Row | MaskMode::None => t,
    }
}

/// Histories as one ragged batch. Items are numbered by the catalogue ([`ItemIndex`](crate::data::ItemIndex)) or by a step
/// ([`VectorRow`]); in both, 0 is the start.
#[derive(Debug)]
pub struct HistoryBatch<T> {
    items: Vec<T>,
    layout: AttentionLayout,
}

impl<T: Id> HistoryBatch<T> {
    /// Creates an empty batch for models with this mask.
    pub fn new(mask: MaskMode) -> Self {
        let keys = (mask == MaskMode::Row).then(Vec::new);
        Self { items: Vec::new(), layout: AttentionLayout { offsets: vec![0], times: Vec::new(), keys } }
    }

    /// Appends a history of `items` at times `ts` (epoch milliseconds, ascending) and returns its first token, the start. Item
    /// `i`, from 1, is the `i`-th token after it ([`Token::behind`]).
    ///
    /// `visible` holds `v_t` of each item, counted inside the history, and optionally that of the event after the last. Only mode
    /// `row` reads it: the token of item `i` attends to the start and to `min(i, v_{i+1})` items, or to all `i` if `v_{i+1}` is
    /// absent.
    pub fn push(&mut self, items: impl IntoIterator<Item = T>, ts: &[i64], visible: &[u32]) -> Token {
        let first = self.items.len();
        self.items.push(T::from(NO_ITEM));
        self.items.extend(items);
        debug_assert_eq!(self.items.len() - first, 1 + ts.len(), "an item without a time");
        let Self { items, layout } = self;
        layout.times.push(ts.first().copied().unwrap_or(0));
        layout.times.extend_from_slice(ts);
        layout.offsets.push(items.len());
        if let Some(keys) = &mut layout.keys {
            keys.push(1);
            keys.extend((1..=ts.len() as u32).map(|i| 1 + visible.get(i as usize).map_or(i, |&v| v.min(i))));
        }
        Token::new(first as u32)
    }

    /// Returns the item of each token, 0 for a start, and the layout.
    pub fn finish(self) -> (Vec<T>, Arc<AttentionLayout>) {
        (self.items, Arc::new(self.layout))
    }
}

impl HistoryBatch<VectorRow> {
    /// Returns the batch as a model's input.
    pub fn into_tokens(self) -> Tokens {
        let (embedding, layout) = self.finish();
        Tokens { embedding, layout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ItemIndex, ids};

    #[test]
    fn each_history_begins_with_the_start() {
        let mut batch = HistoryBatch::new(MaskMode::Gather);
        assert_eq!(batch.push(ids::<ItemIndex>(&[7, 8]), &[50, 60], &[0, 1]), 0);
        assert_eq!(batch.push([], &[], &[]), 3);
        assert_eq!(batch.push(ids(&[9]), &[70], &[0]), 4);
        let (items, layout) = batch.finish();
        assert_eq!(items, [0, 7, 8, 0, 0, 9]);
        assert_eq!(
            (&layout.offsets[..], &layout.times[..]),
            (&[0, 3, 4, 6][..], &[50, 50, 60, 0, 70, 70][..])
        );
        assert_eq!(layout.keys, None);
    }

    #[test]
    fn a_token_attends_to_what_its_next_event_saw() {
        let mut batch = HistoryBatch::new(MaskMode::Row);
        batch.push(ids::<ItemIndex>(&[5, 6, 7]), &[1, 2, 3], &[0, 0, 1, 2]);
        // The last token, without a next event, sees all.
        batch.push(ids(&[5, 6, 7]), &[1, 2, 3], &[0, 0, 1]);
        assert_eq!(batch.finish().1.keys.as_deref(), Some(&[1, 1, 2, 3, 1, 1, 2, 4][..]));
    }
}
