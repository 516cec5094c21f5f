//! The batches of an epoch, assembled in the background: while the model learns from one, the next ones are made.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use schemas::config::{Model, Pretrain};

use super::{Batch, Sequences};

/// Batches that wait for their step, at most.
const AHEAD: usize = 2;

/// What a batch is made of, besides its rows.
#[derive(Debug, Clone, Copy)]
pub struct Loader<'a> {
    /// All rows.
    pub sequences: &'a Sequences,
    /// The mask and the branches.
    pub model: &'a Model,
    /// Rows of a batch, and which targets carry loss.
    pub pretrain: &'a Pretrain,
    /// The weight of each target, by row.
    pub weights: &'a [f32],
}

impl<'a> Loader<'a> {
    /// The batch of `rows`.
    pub fn batch(&self, rows: &[u32]) -> Batch {
        let (model, without_history) = (self.model, self.pretrain.loss_without_history);
        Batch::pretrain(self.sequences, rows, model.mask, model.branches, without_history, Some(self.weights))
    }

    /// The batches of an epoch that visits rows in `order`, from batch number `first` on. They come in that order, made
    /// by a thread of `scope`, which ends when the receiver is dropped.
    pub fn batches<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        order: Vec<u32>,
        first: usize,
    ) -> Receiver<Batch>
    where
        'a: 'scope,
    {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            for rows in order.chunks(self.pretrain.batch_size).skip(first) {
                if sender.send(self.batch(rows)).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use schemas::history::Role;

    use super::*;

    #[test]
    fn batches_come_in_order_from_any_one_on() {
        let n = 7u32;
        let sequences = Sequences {
            offsets: (0..=n as usize).map(|row| 2 * row).collect(),
            items: (1..=2 * n).collect(),
            ts: (0..2 * i64::from(n)).collect(),
            visible: [0, 1].repeat(n as usize),
            roles: vec![Role::Pretrain; 2 * n as usize],
            target_from: vec![0; n as usize],
            ..Sequences::default()
        };
        let (model, weights) = (Model { branches: 1, ..Model::default() }, vec![1.0; n as usize]);
        let pretrain = Pretrain { batch_size: 3, ..Pretrain::default() };
        let loader = Loader { sequences: &sequences, model: &model, pretrain: &pretrain, weights: &weights };
        let order = vec![4, 0, 6, 2, 5, 1, 3];
        for first in 0..=3 {
            let expected: Vec<Batch> = order.chunks(3).skip(first).map(|rows| loader.batch(rows)).collect();
            let batches: Vec<Batch> =
                std::thread::scope(|scope| loader.batches(scope, order.clone(), first).iter().collect());
            let contents = |batches: &[Batch]| -> Vec<_> {
                batches
                    .iter()
                    .map(|b| (b.items.clone(), b.layout.times.clone(), b.branches.clone()))
                    .collect()
            };
            assert_eq!(contents(&batches), contents(&expected));
        }
        // Whoever stops early does not wait for the rest.
        std::thread::scope(|scope| drop(loader.batches(scope, order, 0)));
    }
}
