//! Fine-tuning batches (Eq. 6): under an example's condition, every branch predicts the example's one target.

use schemas::config::MaskMode;

use super::{Anchors, HistoryBatch, TrainingBatch, context_length};
use crate::data::{Examples, ItemIndex};
use crate::models::Reads;

impl TrainingBatch {
    /// Builds the fine-tuning batch of the examples of `histories` (Eq. 6): under the example's condition, branch `k` predicts
    /// its target from the visible history without its last `k − 1` items. Each history is one sequence, however many examples
    /// share it.
    pub fn instructed(
        examples: &Examples,
        histories: &[u32],
        mask: MaskMode,
        branches: usize,
        loss_without_history: bool,
    ) -> Self {
        let branch = Anchors { reads: Some(Reads::default()), ..Anchors::default() };
        let mut batch = Self { branches: vec![branch; branches], ..Self::default() };
        let mut tokens = HistoryBatch::new(mask);
        let mut anchors: Vec<(usize, u32)> = Vec::new(); // (context, example)
        for &history in histories {
            anchors.clear();
            anchors.extend(of_history(examples, history as usize, mask));
            let history = &examples.histories[history as usize];
            let all = anchors.len();
            anchors.retain(|&(context, _)| context > 0 || loss_without_history);
            batch.without_history += branches * (all - anchors.len());
            // The sort is stable: examples of one context keep their order.
            anchors.sort_by_key(|&(context, _)| context);
            let Some(&(length, _)) = anchors.last() else { continue };
            // The configuration excludes mode `row`: examples lack the visible length of each event.
            let first = tokens.push(history.items[..length].iter().copied(), &history.ts[..length], &[]);
            for (k, branch) in batch.branches.iter_mut().enumerate() {
                for &(context, example) in &anchors {
                    let e = example as usize;
                    let row = context.saturating_sub(k);
                    branch.tokens.push(first.behind(row));
                    branch.items.push(examples.targets[e]);
                    branch.positions.push(example);
                    branch.weights.push(examples.weights[e]);
                    if let Some(reads) = &mut branch.reads {
                        reads.tokens.push(first.behind(row));
                        reads.conditions.push(examples.conditions[e]);
                        // The start token matches every condition, as in `Carriers::push_matches`.
                        reads.matches.push(true);
                        reads.matches.extend_from_slice(&examples.matches[examples.flags(e)][..row]);
                    }
                }
            }
        }
        (batch.items, batch.layout) = tokens.finish();
        batch
    }

    /// Iterates over the items that each branch predicts in [`instructed`](Self::instructed) for `history`.
    pub fn instructed_items(
        examples: &Examples,
        history: u32,
        mask: MaskMode,
        loss_without_history: bool,
    ) -> impl Iterator<Item = ItemIndex> {
        of_history(examples, history as usize, mask)
            .filter(move |&(context, _)| context > 0 || loss_without_history)
            .map(|(_, example)| examples.targets[example as usize])
    }
}

/// Iterates over the context and number of every example of `history`.
fn of_history(examples: &Examples, history: usize, mask: MaskMode) -> impl Iterator<Item = (usize, u32)> {
    examples.histories[history].examples.iter().map(move |&example| {
        let before = examples.flags(example as usize).len();
        (context_length(mask, before, examples.visible[example as usize]), example)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ExampleHistory, Token, ids};

    /// Examples 0 and 3, one target with two conditions, see three of a history's four items; example 2 sees only the start;
    /// example 1 has no history.
    fn examples() -> Examples {
        Examples {
            histories: vec![
                ExampleHistory {
                    items: ids(&[5, 6, 7, 8]),
                    ts: vec![10, 20, 30, 40],
                    examples: vec![2, 0, 3],
                },
                ExampleHistory { examples: vec![1], ..ExampleHistory::default() },
            ],
            history: vec![0, 1, 0, 0],
            offsets: vec![0, 4, 4, 5, 9],
            matches: vec![true, false, true, true, false, false, true, false, false],
            visible: vec![3, 0, 0, 3],
            targets: ids(&[9, 1, 6, 9]),
            conditions: ids(&[2, 0, 4, 3]),
            weights: vec![0.5, 1.5, 1.0, 0.5],
            sources: Vec::new(),
        }
    }

    #[test]
    fn branches_read_ever_shorter_histories_of_one_target() {
        let batch = TrainingBatch::instructed(&examples(), &[0], MaskMode::Gather, 5, true);
        // Nothing reads the fourth item; the three examples share the other three.
        assert_eq!(batch.items, [0, 5, 6, 7]);
        assert_eq!(batch.layout.times, [10, 10, 20, 30]);
        // Eq. 6: row max(v − k + 1, 0), one target, one condition.
        let rows: Vec<&[Token]> = batch.branches.iter().map(|branch| &branch.tokens[..]).collect();
        assert_eq!(rows, [[0, 3, 3], [0, 2, 2], [0, 1, 1], [0, 0, 0], [0, 0, 0]]);
        let all = [[true, true, false, true], [true, false, true, false]];
        for branch in &batch.branches {
            let reads = branch.reads.as_ref().unwrap();
            assert_eq!(branch.items, [6, 9, 9]);
            assert_eq!(reads.conditions, [4, 2, 3]);
            assert_eq!(reads.tokens, branch.tokens);
            let own = |i: usize| &all[i][..=branch.tokens[i + 1].index()];
            assert_eq!(reads.matches, [&[true], own(0), own(1)].concat());
        }
        assert_eq!(batch.targets(), 15);
        let examples = examples();
        let predicted = TrainingBatch::instructed_items(&examples, 0, MaskMode::Gather, false);
        assert_eq!(predicted.collect::<Vec<_>>(), [9, 9]);
    }

    #[test]
    fn without_a_mask_an_example_shows_everything_before_its_target() {
        let batch = TrainingBatch::instructed(&examples(), &[1, 0], MaskMode::None, 1, true);
        assert_eq!(batch.items, [0, 0, 5, 6, 7, 8]);
        assert_eq!(batch.branches[0].tokens, [0, 2, 5, 5]);
        assert_eq!(batch.branches[0].weights, [1.5, 1.0, 0.5, 0.5]);
        assert_eq!(batch.layout.offsets, [0, 1, 6]);
        let batch = TrainingBatch::instructed(&examples(), &[1, 0], MaskMode::Gather, 2, false);
        assert_eq!((batch.targets(), batch.without_history), (4, 4));
        assert_eq!(batch.layout.offsets, [0, 4]);
    }
}
