//! Histories as one ragged batch.

use schemas::config::MaskMode;

use crate::ops::AttentionLayout;

/// How many of a row's positions the prediction at anchor `t` of the row may build on: the row of `H` that it
/// reads. `visible` is `v_t` inside the row.
pub fn context_length(mask: MaskMode, t: usize, visible: u32) -> usize {
    match mask {
        MaskMode::Gather => visible as usize,
        MaskMode::Row | MaskMode::None => t,
    }
}

/// How many keys the token of the `i`-th item (from 1; 0 is the start) may attend to in mode `row`: the start,
/// and `j ≤ i ∧ j ≤ v_{i+1}`. `next_visible` is `v_{i+1}`, absent for the last item of the row.
pub(crate) fn row_mask_keys(i: usize, next_visible: Option<u32>) -> u32 {
    1 + next_visible.map_or(i as u32, |v| v.min(i as u32))
}

/// Appends one sequence, with its start-of-sequence token, to a ragged batch.
pub(crate) fn push_sequence(
    tokens: &mut Vec<u32>,
    layout: &mut AttentionLayout,
    items: &[u32],
    times: &[i64],
) {
    tokens.push(schemas::tables::NO_ITEM);
    tokens.extend_from_slice(items);
    layout.times.push(times.first().copied().unwrap_or(0));
    layout.times.extend_from_slice(times);
    layout.offsets.push(tokens.len());
}
