//! Pre-training batches (Eq. 4): at each anchor that a row owns, every branch predicts one item from the anchor's context.

use schemas::config::MaskMode;
use schemas::history::Role;

use super::{Anchors, HistoryBatch, TrainingBatch, context_length};
use crate::data::{ItemIndex, SequencesTable};

impl TrainingBatch {
    /// Builds the pre-training batch of `rows`: at every owned anchor `t`, branch `k` predicts `i_{t+k−1}` if that position lies
    /// in the row and has the role that is trained. All branches read the context of `t`.
    ///
    /// `row_weights` holds the weight of each row's targets; `None` weighs all alike.
    pub fn pretrain(
        sequences: &SequencesTable,
        rows: &[u32],
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
        row_weights: Option<&[f32]>,
    ) -> Self {
        let mut batch = Self { branches: vec![Anchors::default(); branches], ..Self::default() };
        let mut tokens = HistoryBatch::new(mask);
        let mut anchors: Vec<(usize, usize, usize)> = Vec::new(); // (context, branch, anchor)
        for &row in rows {
            let positions = sequences.row(row as usize);
            anchors.clear();
            anchors.extend(of_row(sequences, row as usize, mask, branches));
            let all = anchors.len();
            anchors.retain(|&(context, ..)| context > 0 || loss_without_history);
            batch.without_history += all - anchors.len();
            // The sort is stable: anchors of one context keep their order.
            anchors.sort_by_key(|&(context, ..)| context);
            // Rows are causal and nothing reads beyond the longest context: the batch omits the rest.
            let Some(&(length, ..)) = anchors.last() else { continue };
            let shown = positions.start..positions.start + length;
            let first = tokens.push(
                sequences.items[shown.clone()].iter().copied(),
                &sequences.ts[shown.clone()],
                &sequences.visible[shown.start..positions.end.min(shown.end + 1)],
            );
            for &(context, k, t) in &anchors {
                let branch = &mut batch.branches[k];
                branch.tokens.push(first.behind(context));
                branch.items.push(sequences.items[t + k]);
                branch.positions.push(t as u32);
                branch.weights.push(row_weights.map_or(1.0, |weights| weights[row as usize]));
            }
        }
        (batch.items, batch.layout) = tokens.finish();
        batch
    }

    /// Iterates over the items that `row` predicts in [`pretrain`](Self::pretrain), over all branches.
    pub fn predicted(
        sequences: &SequencesTable,
        row: u32,
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
    ) -> impl Iterator<Item = ItemIndex> {
        of_row(sequences, row as usize, mask, branches)
            .filter(move |&(context, ..)| context > 0 || loss_without_history)
            .map(|(_, k, t)| sequences.items[t + k])
    }
}

/// Iterates over the context, branch (from 0) and anchor of each target of `row`: the pre-training targets of its owned anchors.
fn of_row(
    sequences: &SequencesTable,
    row: usize,
    mask: MaskMode,
    branches: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    let positions = sequences.row(row);
    let targets = move |t: usize| {
        let context = context_length(mask, t - positions.start, sequences.visible[t]);
        let within = (0..branches).take_while(move |k| t + k < positions.end);
        within.filter(move |k| sequences.roles[t + k] == Role::Pretrain).map(move |k| (context, k, t))
    };
    sequences.owned(row).flat_map(targets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequences(rows: &[(&[u32], &[u32], u32)]) -> SequencesTable {
        let mut all = SequencesTable { offsets: vec![0], ..SequencesTable::default() };
        for (visible, roles, target_from) in rows {
            let n = visible.len();
            let before = all.offsets[all.offsets.len() - 1] as u32;
            all.items.extend((1..=n as u32).map(|i| ItemIndex::new(i + before)));
            all.ts.extend(0..n as i64);
            all.visible.extend_from_slice(visible);
            all.roles.extend(roles.iter().map(|&r| Role::from_u8(r as u8).unwrap()));
            all.target_from.push(*target_from);
            all.offsets.push(all.items.len());
        }
        all
    }

    #[test]
    fn gather_reads_the_last_visible_row() {
        let data = sequences(&[(&[0, 1, 1, 2, 4], &[0, 0, 0, 2, 3], 0)]);
        let batch = TrainingBatch::pretrain(&data, &[0], MaskMode::Gather, 2, true, None);
        // The contexts of the anchors 0, 1, 2 are 0, 1, 1; branch 2 has no target at anchor 2 (position 3 is validation). Nothing
        // reads more than one item.
        assert_eq!(batch.items, [0, 1]);
        assert_eq!(batch.branches[0].tokens, [0, 1, 1]);
        assert_eq!(batch.branches[0].items, [1, 2, 3]);
        assert_eq!(batch.branches[1].tokens, [0, 1]);
        assert_eq!(batch.branches[1].items, [2, 3]);
        let batch = TrainingBatch::pretrain(&data, &[0], MaskMode::Gather, 2, false, None);
        assert_eq!((batch.targets(), batch.without_history), (3, 2));
    }

    #[test]
    fn none_reads_the_row_before_the_target() {
        let data = sequences(&[(&[0, 1, 1, 2, 4], &[4, 0, 0, 2, 3], 1)]);
        let batch = TrainingBatch::pretrain(&data, &[0], MaskMode::None, 2, true, None);
        assert_eq!(batch.items, [0, 1, 2]);
        assert_eq!(batch.branches[0].tokens, [1, 2]);
        assert_eq!(batch.branches[0].items, [2, 3]);
        assert_eq!(batch.branches[1].items, [3]);
        assert!(batch.layout.keys.is_none());
    }

    #[test]
    fn row_mode_masks_inside_attention() {
        let data = sequences(&[(&[0, 1, 1, 2, 4], &[0, 0, 0, 0, 0], 0)]);
        let batch = TrainingBatch::pretrain(&data, &[0], MaskMode::Row, 1, true, None);
        // Token i sees the start and min(i, v_{i+1}) items.
        assert_eq!(batch.layout.keys.as_deref(), Some(&[1, 2, 2, 3, 5][..]));
        assert_eq!(batch.branches[0].tokens, [0, 1, 2, 3, 4]);
    }

    proptest! {
        /// In every branch, only the row's own targets carry loss, and no held-out event does.
        #[test]
        fn only_pretraining_positions_carry_loss(
            rows in prop::collection::vec((prop::collection::vec((0u32..5, 0u32..9), 1..20), 0usize..20), 1..5),
            branches in 1usize..4,
            mask in prop::sample::select(vec![MaskMode::Gather, MaskMode::Row, MaskMode::None]),
        ) {
            let rows: Vec<(Vec<u32>, Vec<u32>, u32)> = rows.into_iter().map(|(cells, from)| {
                let from = from.min(cells.len() - 1) as u32;
                let visible = cells.iter().enumerate().map(|(t, c)| c.1.min(t as u32)).collect();
                let roles = cells.iter().enumerate().map(|(t, c)| if (t as u32) < from { 4 } else { c.0.min(3) }).collect();
                (visible, roles, from)
            }).collect();
            let borrowed: Vec<_> = rows.iter().map(|(v, r, f)| (v.as_slice(), r.as_slice(), *f)).collect();
            let data = sequences(&borrowed);
            let all: Vec<u32> = (0..rows.len() as u32).collect();
            let batch = TrainingBatch::pretrain(&data, &all, mask, branches, true, None);
            let mut expected = 0;
            for (k, branch) in batch.branches.iter().enumerate() {
                for ((&token, &item), &t) in branch.tokens.iter().zip(&branch.items).zip(&branch.positions) {
                    let target = t as usize + k;
                    prop_assert_eq!(data.roles[target], Role::Pretrain);
                    prop_assert_eq!(data.items[target], item);
                    let row = data.offsets.partition_point(|&o| o <= t as usize) - 1;
                    prop_assert!(data.owned(row).contains(&(t as usize)) && data.row(row).contains(&target));
                    // The token represents exactly the context's last item.
                    let context = context_length(mask, t as usize - data.offsets[row], data.visible[t as usize]);
                    let shown = if context == 0 { ItemIndex::NO_ITEM } else { data.items[data.offsets[row] + context - 1] };
                    prop_assert_eq!(batch.items[token.index()], shown);
                }
                prop_assert!(branch.tokens.is_sorted());
            }
            for row in 0..data.rows() {
                for t in data.owned(row) {
                    expected += (0..branches).filter(|k| t + k < data.row(row).end && data.roles[t + k] == Role::Pretrain).count();
                }
            }
            prop_assert_eq!(batch.targets(), expected);
        }
    }
}
