//! Prepares the batches of an epoch on background threads while the model trains. Memory: at most three prepared batches per
//! thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Scope, available_parallelism};

/// Maximum batches that one thread queues.
const AHEAD: usize = 2;
/// Maximum preparing threads: a GPU takes a step in less time than one thread needs to prepare it.
const THREADS: usize = 4;
/// One preparing thread per this many cores.
const PROCESSORS: usize = 4;

/// First batch and batch size of the rest of an epoch.
#[derive(Debug, Clone, Copy)]
pub struct BatchesFrom {
    /// Number of the first batch.
    pub first: usize,
    /// Rows (or histories) per batch.
    pub size: usize,
}

/// Iterator over batches in the order of their numbers.
pub struct Ahead<B> {
    /// One queue per thread; with `n` threads, each prepares every `n`-th batch.
    threads: Vec<Receiver<B>>,
    next: usize,
}

impl<B> Iterator for Ahead<B> {
    type Item = B;

    fn next(&mut self) -> Option<B> {
        let batch = self.threads[self.next].recv().ok()?;
        self.next = (self.next + 1) % self.threads.len();
        Some(batch)
    }
}

/// Starts to prepare the batches of an epoch that visits rows (or histories) in `order`, and returns them in that order.
/// `prepare` makes a batch from its number and rows, on threads of `scope` that end when the result is dropped.
pub fn ahead<'scope, B: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    order: Vec<u32>,
    BatchesFrom { first, size }: BatchesFrom,
    prepare: impl Fn(usize, &[u32]) -> B + Send + Sync + 'scope,
) -> Ahead<B> {
    let count = available_parallelism().map_or(1, |n| n.get().div_ceil(PROCESSORS).min(THREADS));
    ahead_by(count, scope, order, BatchesFrom { first, size }, prepare)
}

/// Prepares the batches on `count` threads.
fn ahead_by<'scope, B: Send + 'scope>(
    count: usize,
    scope: &'scope Scope<'scope, '_>,
    order: Vec<u32>,
    BatchesFrom { first, size }: BatchesFrom,
    prepare: impl Fn(usize, &[u32]) -> B + Send + Sync + 'scope,
) -> Ahead<B> {
    let shared = Arc::new((order, prepare));
    let threads = (0..count).map(|thread| {
        let (sender, receiver) = sync_channel(AHEAD);
        let shared = shared.clone();
        scope.spawn(move || {
            let (order, prepare) = &*shared;
            for (number, rows) in order.chunks(size).enumerate().skip(first + thread).step_by(count) {
                if sender.send(prepare(number, rows)).is_err() {
                    return;
                }
            }
        });
        receiver
    });
    Ahead { threads: threads.collect(), next: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_order_from_any_one_on() {
        let prepare = |number: usize, rows: &[u32]| (number, rows.to_vec());
        let order = vec![4, 0, 6, 2, 5, 1, 3];
        for (first, threads) in (0..=3).flat_map(|first| (1..=5).map(move |threads| (first, threads))) {
            let expected: Vec<_> =
                order.chunks(3).enumerate().map(|(i, rows)| (i, rows.to_vec())).skip(first).collect();
            let found: Vec<_> = std::thread::scope(|scope| {
                ahead_by(threads, scope, order.clone(), BatchesFrom { first, size: 3 }, prepare).collect()
            });
            assert_eq!(found, expected, "{threads} threads from batch {first}");
        }
        // Dropping the iterator early does not wait for the remaining batches.
        std::thread::scope(|scope| {
            drop(ahead_by(2, scope, vec![0; 1_000], BatchesFrom { first: 0, size: 3 }, prepare))
        });
    }
}
