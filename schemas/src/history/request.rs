//! Request batches: the events whose items one request exposed together.

use std::collections::HashMap;
use std::hash::Hash;

/// Request batches of one history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestBatches {
    /// Batch ordinal of each event, `[events]`, numbered from 0 by first appearance.
    pub ordinal: Vec<u32>,
    /// For an event of a *logged* request, the position of that request's first event; for any other event its own position;
    /// `[events]`. Items of one request have no causal order (§3.2.2), so a target sees nothing from this position on.
    pub start: Vec<u32>,
}

/// Groups a history into the batches in which its items were exposed.
///
/// Events with equal request ids form one batch, wherever they are. An event without an id joins the event before it if that one
/// has no id either and is at most `batch_gap_ms` older. `ts` is sorted, in epoch milliseconds, and parallel to `request_ids`; an
/// id only needs to distinguish the requests of one user.
pub fn request_batches<Id: Eq + Hash>(
    ts: &[i64],
    request_ids: &[Option<Id>],
    batch_gap_ms: i64,
) -> RequestBatches {
    debug_assert_eq!(ts.len(), request_ids.len());
    let mut batches =
        RequestBatches { ordinal: Vec::with_capacity(ts.len()), start: Vec::with_capacity(ts.len()) };
    let mut logged: HashMap<&Id, (u32, u32)> = HashMap::new();
    let mut next = 0;
    for (t, id) in request_ids.iter().enumerate() {
        let position = t as u32;
        let (ordinal, start) = match id {
            // Fast path: items of a request are mostly adjacent.
            Some(_) if t > 0 && request_ids[t - 1] == *id => (batches.ordinal[t - 1], batches.start[t - 1]),
            Some(id) => *logged.entry(id).or_insert_with(|| {
                next += 1;
                (next - 1, position)
            }),
            None => {
                let joins =
                    t > 0 && request_ids[t - 1].is_none() && ts[t].saturating_sub(ts[t - 1]) <= batch_gap_ms;
                if joins {
                    (batches.ordinal[t - 1], position)
                } else {
                    next += 1;
                    (next - 1, position)
                }
            }
        };
        batches.ordinal.push(ordinal);
        batches.start.push(start);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_requests_group_by_id_and_the_rest_by_gap() {
        let ids = [Some("a"), Some("b"), Some("a"), None, None, None, Some("b")];
        let batches = request_batches(&[0, 1, 2, 3, 4, 50, 51], &ids, 10);
        assert_eq!(batches.ordinal, [0, 1, 0, 2, 2, 3, 1]);
        assert_eq!(batches.start, [0, 1, 0, 3, 4, 5, 1]);
    }
}
