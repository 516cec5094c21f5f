//! A training step's rows as one ragged batch, and what each branch is to predict from where.

use std::sync::Arc;

use schemas::config::MaskMode;
use schemas::history::Role;

use super::{Examples, Sequences};
use crate::model::Reads;
use crate::ops::AttentionLayout;

/// What one branch is to predict: `items[i]` from the hidden state at token `tokens[i]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Anchors {
    /// Token of the batch, ascending.
    pub tokens: Vec<u32>,
    /// Item index of the target.
    pub items: Vec<u32>,
    /// Anchor position in the flat lists of [`Sequences`], or the number of the example; all branches share anchors.
    pub positions: Vec<u32>,
    /// Weight of each target's loss; 1 on average over all rows.
    pub weights: Vec<f32>,
    /// Under which conditions the tokens are read, where they are (Eq. 6).
    pub reads: Option<Reads>,
}

impl Anchors {
    /// The share of target `i` in the branch's mean loss.
    pub fn share(&self, i: usize) -> f32 {
        self.weights[i] / self.items.len() as f32
    }
}

/// Rows of `sequences` as a ragged batch. Every row's tokens begin with the start-of-sequence token.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Item index of each token; 0 is the start-of-sequence token.
    pub items: Vec<u32>,
    /// Boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
    /// For each branch, its targets.
    pub branches: Vec<Anchors>,
    /// Targets with nothing visible that carry no loss, over all branches.
    pub without_history: usize,
}

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

impl Batch {
    /// The pre-training batch of `rows`: at every owned anchor `t`, branch `k` predicts `i_{t+k−1}` where that
    /// position lies in the row and has the role being trained. All branches read the context of `t`.
    ///
    /// `row_weights` holds the weight of each target by row; `None` weighs all alike.
    pub fn pretrain(
        sequences: &Sequences,
        rows: &[u32],
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
        row_weights: Option<&[f32]>,
    ) -> Self {
        let mut batch = Self { branches: vec![Anchors::default(); branches], ..Self::default() };
        let mut layout = AttentionLayout { offsets: vec![0], ..AttentionLayout::default() };
        let mut keys = Vec::new();
        let mut anchors: Vec<(usize, usize, usize)> = Vec::new(); // (context, branch, anchor)
        for &row in rows {
            let positions = sequences.row(row as usize);
            let first_token = batch.items.len();
            anchors.clear();
            anchors.extend(of_row(sequences, row as usize, mask, branches));
            let all = anchors.len();
            anchors.retain(|&(context, ..)| context > 0 || loss_without_history);
            batch.without_history += all - anchors.len();
            // Stable: anchors of one context keep their order.
            anchors.sort_by_key(|&(context, ..)| context);
            // Nothing reads beyond the longest context, and rows are causal: the rest need not be computed.
            let length = anchors.last().map_or(0, |&(context, ..)| context);
            for &(context, k, t) in &anchors {
                let branch = &mut batch.branches[k];
                branch.tokens.push((first_token + context) as u32);
                branch.items.push(sequences.items[t + k]);
                branch.positions.push(t as u32);
                branch.weights.push(row_weights.map_or(1.0, |weights| weights[row as usize]));
            }
            if anchors.is_empty() {
                continue;
            }
            let shown = positions.start..positions.start + length;
            push_sequence(
                &mut batch.items,
                &mut layout,
                &sequences.items[shown.clone()],
                &sequences.ts[shown.clone()],
            );
            if mask == MaskMode::Row {
                keys.push(1);
                keys.extend((1..=length).map(|i| {
                    let next = positions.start + i;
                    row_mask_keys(i, (next < positions.end).then(|| sequences.visible[next]))
                }));
            }
        }
        if mask == MaskMode::Row {
            layout.keys = Some(keys);
        }
        batch.layout = Arc::new(layout);
        batch
    }

    /// The items that [`pretrain`](Self::pretrain) has `row` predict, over all branches.
    pub fn predicted(
        sequences: &Sequences,
        row: u32,
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
    ) -> impl Iterator<Item = u32> {
        of_row(sequences, row as usize, mask, branches)
            .filter(move |&(context, ..)| context > 0 || loss_without_history)
            .map(|(_, k, t)| sequences.items[t + k])
    }

    /// The fine-tuning batch of the examples of `histories` (Eq. 6): under the example's condition, branch `k` predicts the
    /// one target from the visible history without its last `k − 1` items. Each history is one sequence, whatever the number
    /// of its examples.
    pub fn instructed(
        examples: &Examples,
        histories: &[u32],
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
    ) -> Self {
        let branch = Anchors { reads: Some(Reads::default()), ..Anchors::default() };
        let mut batch = Self { branches: vec![branch; branches], ..Self::default() };
        let mut layout = AttentionLayout { offsets: vec![0], ..AttentionLayout::default() };
        let mut anchors: Vec<(usize, u32)> = Vec::new(); // (context, example)
        for &history in histories {
            anchors.clear();
            anchors.extend(of_history(examples, history as usize, mask));
            let history = &examples.histories[history as usize];
            let all = anchors.len();
            anchors.retain(|&(context, _)| context > 0 || loss_without_history);
            batch.without_history += branches * (all - anchors.len());
            // Stable: examples of one context keep their order.
            anchors.sort_by_key(|&(context, _)| context);
            let Some(&(length, _)) = anchors.last() else { continue };
            let first_token = batch.items.len() as u32;
            for (k, branch) in batch.branches.iter_mut().enumerate() {
                for &(context, example) in &anchors {
                    let e = example as usize;
                    let row = context.saturating_sub(k);
                    branch.tokens.push(first_token + row as u32);
                    branch.items.push(examples.targets[e]);
                    branch.positions.push(example);
                    branch.weights.push(examples.weights[e]);
                    if let Some(reads) = &mut branch.reads {
                        reads.tokens.push(first_token + row as u32);
                        reads.conditions.push(examples.conditions[e]);
                        // The start-of-sequence token is no item: as in `Carriers::push_matches`.
                        reads.matches.push(true);
                        reads.matches.extend_from_slice(&examples.matches[examples.flags(e)][..row]);
                    }
                }
            }
            push_sequence(&mut batch.items, &mut layout, &history.items[..length], &history.ts[..length]);
        }
        batch.layout = Arc::new(layout);
        batch
    }

    /// The items that [`instructed`](Self::instructed) has `history` predict in each branch.
    pub fn instructed_items(
        examples: &Examples,
        history: u32,
        mask: MaskMode,
        loss_without_history: bool,
    ) -> impl Iterator<Item = u32> {
        of_history(examples, history as usize, mask)
            .filter(move |&(context, _)| context > 0 || loss_without_history)
            .map(|(_, example)| examples.targets[example as usize])
    }

    /// Rows of the batch.
    pub fn sequences(&self) -> usize {
        self.layout.offsets.len() - 1
    }

    /// Targets of all branches.
    pub fn targets(&self) -> usize {
        self.branches.iter().map(|b| b.items.len()).sum()
    }
}

/// The context, branch (from 0) and anchor of everything that `row` may predict: the pre-training targets of its owned anchors.
fn of_row(
    sequences: &Sequences,
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

/// The context and number of every example of `history`.
fn of_history(examples: &Examples, history: usize, mask: MaskMode) -> impl Iterator<Item = (usize, u32)> {
    examples.histories[history].examples.iter().map(move |&example| {
        let before = examples.flags(example as usize).len();
        (context_length(mask, before, examples.visible[example as usize]), example)
    })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::examples::History;
    use super::*;

    fn sequences(rows: &[(&[u32], &[u32], u32)]) -> Sequences {
        let mut all = Sequences { offsets: vec![0], ..Sequences::default() };
        for (visible, roles, target_from) in rows {
            let n = visible.len();
            all.items.extend((1..=n as u32).map(|i| i + all.offsets[all.offsets.len() - 1] as u32));
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
        let batch = Batch::pretrain(&data, &[0], MaskMode::Gather, 2, true, None);
        // Contexts of the anchors 0, 1, 2 are 0, 1, 1; branch 2 has no target at anchor 2 (position 3 is
        // validation). Nothing reads more than one item.
        assert_eq!(batch.items, [0, 1]);
        assert_eq!(batch.branches[0].tokens, [0, 1, 1]);
        assert_eq!(batch.branches[0].items, [1, 2, 3]);
        assert_eq!(batch.branches[1].tokens, [0, 1]);
        assert_eq!(batch.branches[1].items, [2, 3]);
        let batch = Batch::pretrain(&data, &[0], MaskMode::Gather, 2, false, None);
        assert_eq!((batch.targets(), batch.without_history), (3, 2));
    }

    #[test]
    fn none_reads_the_row_before_the_target() {
        let data = sequences(&[(&[0, 1, 1, 2, 4], &[4, 0, 0, 2, 3], 1)]);
        let batch = Batch::pretrain(&data, &[0], MaskMode::None, 2, true, None);
        assert_eq!(batch.items, [0, 1, 2]);
        assert_eq!(batch.branches[0].tokens, [1, 2]);
        assert_eq!(batch.branches[0].items, [2, 3]);
        assert_eq!(batch.branches[1].items, [3]);
        assert!(batch.layout.keys.is_none());
    }

    #[test]
    fn row_mode_masks_inside_attention() {
        let data = sequences(&[(&[0, 1, 1, 2, 4], &[0, 0, 0, 0, 0], 0)]);
        let batch = Batch::pretrain(&data, &[0], MaskMode::Row, 1, true, None);
        // Token i sees the start and min(i, v_{i+1}) items.
        assert_eq!(batch.layout.keys.as_deref(), Some(&[1, 2, 2, 3, 5][..]));
        assert_eq!(batch.branches[0].tokens, [0, 1, 2, 3, 4]);
    }

    /// A history of four items with two examples, of which the first, whose target has two values, sees three and the second
    /// nothing but the start; and an example without history.
    fn examples() -> Examples {
        Examples {
            histories: vec![
                History { items: vec![5, 6, 7, 8], ts: vec![10, 20, 30, 40], examples: vec![2, 0, 3] },
                History { examples: vec![1], ..History::default() },
            ],
            history: vec![0, 1, 0, 0],
            offsets: vec![0, 4, 4, 5, 9],
            matches: vec![true, false, true, true, false, false, true, false, false],
            visible: vec![3, 0, 0, 3],
            targets: vec![9, 1, 6, 9],
            conditions: vec![2, 0, 4, 3],
            weights: vec![0.5, 1.5, 1.0, 0.5],
            sources: Vec::new(),
        }
    }

    #[test]
    fn branches_read_ever_shorter_histories_of_one_target() {
        let batch = Batch::instructed(&examples(), &[0], MaskMode::Gather, 5, true);
        // Nothing reads the fourth item; the three examples share the other three.
        assert_eq!(batch.items, [0, 5, 6, 7]);
        assert_eq!(batch.layout.times, [10, 10, 20, 30]);
        // Eq. 6: row max(v − k + 1, 0), one target, one condition.
        let rows: Vec<&[u32]> = batch.branches.iter().map(|branch| &branch.tokens[..]).collect();
        assert_eq!(rows, [[0, 3, 3], [0, 2, 2], [0, 1, 1], [0, 0, 0], [0, 0, 0]]);
        let all = [[true, true, false, true], [true, false, true, false]];
        for branch in &batch.branches {
            let reads = branch.reads.as_ref().unwrap();
            assert_eq!((&branch.items[..], &reads.conditions[..]), (&[6, 9, 9][..], &[4, 2, 3][..]));
            assert_eq!(reads.tokens, branch.tokens);
            let own = |i: usize| &all[i][..=branch.tokens[i + 1] as usize];
            assert_eq!(reads.matches, [&[true], own(0), own(1)].concat());
        }
        assert_eq!(batch.targets(), 15);
        let examples = examples();
        let predicted = Batch::instructed_items(&examples, 0, MaskMode::Gather, false);
        assert_eq!(predicted.collect::<Vec<_>>(), [9, 9]);
    }

    #[test]
    fn without_a_mask_an_example_shows_everything_before_its_target() {
        let batch = Batch::instructed(&examples(), &[1, 0], MaskMode::None, 1, true);
        assert_eq!(batch.items, [0, 0, 5, 6, 7, 8]);
        assert_eq!(batch.branches[0].tokens, [0, 2, 5, 5]);
        assert_eq!(batch.branches[0].weights, [1.5, 1.0, 0.5, 0.5]);
        assert_eq!(batch.layout.offsets, [0, 1, 6]);
        let batch = Batch::instructed(&examples(), &[1, 0], MaskMode::Gather, 2, false);
        assert_eq!((batch.targets(), batch.without_history), (4, 4));
        assert_eq!(batch.layout.offsets, [0, 4]);
    }

    proptest! {
        /// No held-out event carries loss in any branch, nor does one outside the row's own targets.
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
            let batch = Batch::pretrain(&data, &all, mask, branches, true, None);
            let mut expected = 0;
            for (k, branch) in batch.branches.iter().enumerate() {
                for ((&token, &item), &t) in branch.tokens.iter().zip(&branch.items).zip(&branch.positions) {
                    let target = t as usize + k;
                    prop_assert_eq!(data.roles[target], Role::Pretrain);
                    prop_assert_eq!(data.items[target], item);
                    let row = data.offsets.partition_point(|&o| o <= t as usize) - 1;
                    prop_assert!(data.owned(row).contains(&(t as usize)) && data.row(row).contains(&target));
                    // The token stands for exactly the context's last item.
                    let context = context_length(mask, t as usize - data.offsets[row], data.visible[t as usize]);
                    let shown = if context == 0 { 0 } else { data.items[data.offsets[row] + context - 1] };
                    prop_assert_eq!(batch.items[token as usize], shown);
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
