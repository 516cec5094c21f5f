//! Facts about an event that are known only after the scan: ranks, indexes, copies.

use schemas::config::{Sequences, Ties};
use schemas::hash::{hash64, mix64};

use super::codes::ResolvedItems;
use super::duplicates::{CopyKey, RepeatedEvents};
use super::event::PackedEvent;
use super::survivors::Survivors;

/// Ranks and indexes for the scan's codes, which events are copies of others, and
/// which survive the filters.
#[derive(Debug)]
pub(super) struct Resolution {
    /// Code of a source → its rank.
    pub ranks: Vec<u32>,
    pub items: ResolvedItems,
    pub repeated: RepeatedEvents,
    /// The seed of the `shuffled` order.
    pub shuffle: Option<u64>,
    /// The filters that need whole histories.
    pub survivors: Survivors,
}

/// Key by which a user's events are ordered (`keys.rs`): time, tie, source's rank, position, id's hash.
pub(super) type SortKey = (i64, u64, u32, i64, u64);

impl Resolution {
    /// The seed of the configured tie policy.
    pub(super) fn shuffle(config: &Sequences) -> Option<u64> {
        (config.ties == Ties::Shuffled).then_some(config.tie_seed)
    }

    /// Whether the event is a copy that does not count, because another copy does.
    pub(super) fn is_later_copy(&self, user: &str, event: &PackedEvent) -> bool {
        if self.repeated.is_empty() {
            return false;
        }
        self.repeated.is_later_copy(&CopyKey {
            event: event.event,
            ts: event.ts,
            source: event.source(),
            place: event.place,
            item: event.item,
            request: event.request,
            user: hash64(user.as_bytes()),
        })
    }

    /// The event with its codes replaced by rank and index.
    pub(super) fn resolved(&self, event: PackedEvent) -> PackedEvent {
        // The scan gave these codes, so each has a rank and an index.
        let rank = self.ranks[event.source() as usize];
        let fresh = event.is_fresh() && !self.repeated.is_stale(event.event, event.ts);
        PackedEvent { item: self.items.index(event.item), ..event }.sourced(rank, fresh)
    }

    /// The sort key of a resolved event.
    pub(super) fn key(&self, event: &PackedEvent) -> SortKey {
        let tie = self.shuffle.map_or(0, |seed| mix64(seed, event.event));
        (event.ts, tie, event.source(), event.place, event.event)
    }
}
