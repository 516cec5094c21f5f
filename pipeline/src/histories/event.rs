//! The packed form of an event between the scan and its history: moving it is one copy.

use schemas::hash::hash64;

/// An event without its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedEvent {
    pub ts: i64,
    /// Place in the source.
    pub place: i64,
    /// Hash of the event's id.
    pub event: u64,
    /// [`NO_REQUEST`], or the hash of the request's id.
    pub request: u64,
    /// [`NO_TIME`], or when the request was made.
    pub request_ts: i64,
    /// The item's index, or a code for it while the log is read.
    pub item: u32,
    /// The source and the marks ([`PackedEvent::sourced`], [`PackedEvent::fit`]).
    pub marked_source: u32,
}

/// Stands for "no request time"; no log may contain this instant.
pub(super) const NO_TIME: i64 = i64::MIN;

/// Stands for "no request id".
pub(super) const NO_REQUEST: u64 = 0;

/// The bit of `marked_source` that a fresh event has; there are always fewer sources than this.
const FRESH: u32 = 1 << 31;

/// The bit of `marked_source` that an event has which is fit to be learned under a condition.
const FIT: u32 = 1 << 30;

/// The hash of a request's id. The hashes of two requests collide with a probability of 2⁻⁶⁴.
pub(super) fn request_hash(id: Option<&str>) -> u64 {
    id.map_or(NO_REQUEST, |id| hash64(id.as_bytes()).max(1))
}

impl PackedEvent {
    /// Bytes of a packed event.
    pub(super) const BYTES: usize = 48;

    /// Sets the code or rank of the source and the fresh mark; keeps the fit mark.
    pub(super) fn sourced(self, source: u32, fresh: bool) -> Self {
        let fit = self.marked_source & FIT;
        Self { marked_source: source | fit | if fresh { FRESH } else { 0 }, ..self }
    }

    /// Sets or clears the mark "fit to be learned under a condition".
    pub(super) fn fit(self, fit: bool) -> Self {
        Self { marked_source: self.marked_source & !FIT | if fit { FIT } else { 0 }, ..self }
    }

    /// The source's code or rank.
    pub(super) fn source(&self) -> u32 {
        self.marked_source & !(FRESH | FIT)
    }

    /// Whether the event was appended after the version that a refresh starts from.
    pub(super) fn is_fresh(&self) -> bool {
        self.marked_source & FRESH != 0
    }

    /// Whether it is fit to be learned under a condition.
    pub(super) fn is_fit(&self) -> bool {
        self.marked_source & FIT != 0
    }

    pub(super) fn packed(&self) -> [u8; Self::BYTES] {
        let Self { ts, place, event, request, request_ts, item, marked_source } = *self;
        let last = u64::from(item) << 32 | u64::from(marked_source);
        let words = [ts as u64, place as u64, event, request, request_ts as u64, last];
        let mut bytes = [0; Self::BYTES];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    pub(super) fn unpacked(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |n: usize| u64::from_le_bytes(bytes.as_chunks().0[n]);
        let last = word(5);
        Self {
            ts: word(0) as i64,
            place: word(1) as i64,
            event: word(2),
            request: word(3),
            request_ts: word(4) as i64,
            item: (last >> 32) as u32,
            marked_source: last as u32,
        }
    }
}

/// All fields zero, to be overwritten.
impl Default for PackedEvent {
    fn default() -> Self {
        Self::unpacked(&[0; Self::BYTES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let event = PackedEvent {
            ts: -5,
            place: 7,
            event: u64::MAX,
            request: 1,
            request_ts: NO_TIME,
            item: u32::MAX - 3,
            ..PackedEvent::default()
        };
        for (fresh, fit) in [(false, false), (false, true), (true, false), (true, true)] {
            let event = event.fit(fit).sourced(9, fresh);
            let back = PackedEvent::unpacked(&event.packed());
            assert_eq!(back, event);
            assert_eq!((back.source(), back.is_fresh(), back.is_fit()), (9, fresh, fit));
            assert!(!back.fit(false).is_fit());
        }
    }
}
