//! The batches of an epoch, assembled in the background: while the model learns from one, the next ones are made.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use super::Batch;

/// Batches that wait for their step, at most.
const AHEAD: usize = 2;

/// The batches of an epoch that visits rows (or histories) in `order`, `size` at a time, from batch number `first` on. They
/// come in that order, made by `assemble` on a thread of `scope`, which ends when the receiver is dropped.
pub fn batches<'scope>(
    scope: &'scope Scope<'scope, '_>,
    order: Vec<u32>,
    (size, first): (usize, usize),
    assemble: impl Fn(&[u32]) -> Batch + Send + 'scope,
) -> Receiver<Batch> {
    let (sender, receiver) = sync_channel(AHEAD);
    scope.spawn(move || {
        for rows in order.chunks(size).skip(first) {
            if sender.send(assemble(rows)).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_order_from_any_one_on() {
        let assemble = |rows: &[u32]| Batch { items: rows.to_vec(), ..Batch::default() };
        let order = vec![4, 0, 6, 2, 5, 1, 3];
        for first in 0..=3 {
            let expected: Vec<Vec<u32>> = order.chunks(3).skip(first).map(<[u32]>::to_vec).collect();
            let items: Vec<Vec<u32>> = std::thread::scope(|scope| {
                batches(scope, order.clone(), (3, first), assemble).iter().map(|b| b.items).collect()
            });
            assert_eq!(items, expected);
        }
        // Whoever stops early does not wait for the rest.
        std::thread::scope(|scope| drop(batches(scope, order, (3, 0), assemble)));
    }
}
