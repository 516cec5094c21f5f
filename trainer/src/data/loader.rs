//! The batches of an epoch, prepared in the background: while the model learns from one, the next ones are made.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

/// Batches that wait for their step, at most.
const AHEAD: usize = 2;

/// The batches of an epoch that visits rows (or histories) in `order`, `size` at a time, from batch number `first` on. They
/// come in that order, made by `prepare` from their number and rows on a thread of `scope`, which ends when the receiver is
/// dropped.
pub fn ahead<'scope, B: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    order: Vec<u32>,
    (size, first): (usize, usize),
    prepare: impl Fn(usize, &[u32]) -> B + Send + 'scope,
) -> Receiver<B> {
    let (sender, receiver) = sync_channel(AHEAD);
    scope.spawn(move || {
        for (number, rows) in order.chunks(size).enumerate().skip(first) {
            if sender.send(prepare(number, rows)).is_err() {
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
        let prepare = |number: usize, rows: &[u32]| (number, rows.to_vec());
        let order = vec![4, 0, 6, 2, 5, 1, 3];
        for first in 0..=3 {
            let expected: Vec<_> =
                order.chunks(3).enumerate().map(|(i, rows)| (i, rows.to_vec())).skip(first).collect();
            let found: Vec<_> =
                std::thread::scope(|scope| ahead(scope, order.clone(), (3, first), prepare).iter().collect());
            assert_eq!(found, expected);
        }
        // Whoever stops early does not wait for the rest.
        std::thread::scope(|scope| drop(ahead(scope, order, (3, 0), prepare)));
    }
}
