//! The time-aware mask (Eq. 1): the number of earlier events that a target may see.

use super::RequestBatches;

/// The safe margin `Δτ` of the time-aware mask (§3.2.2), in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaTau {
    /// No mask: a target sees every earlier event (the usual benchmark protocol).
    Off,
    /// Events in the closed interval `[τ_t − Δτ, τ_t]` are hidden. Zero still hides equal times.
    Margin(i64),
}

/// Returns the visible length `v_t` of every position as a target (Eq. 1): `v_t = #{ j < t : τ_j < τ_t − Δτ }`.
///
/// Since `ts` is sorted, the visible events are always a prefix, and one number per target replaces the paper's `n×n` mask. With
/// logged requests, the prefix also ends before the first event of the target's own request. `ts` is in epoch milliseconds and
/// parallel to `requests`.
pub fn visible_lengths(ts: &[i64], requests: &RequestBatches, delta_tau: DeltaTau) -> Vec<u32> {
    debug_assert!(ts.is_sorted());
    let DeltaTau::Margin(margin_ms) = delta_tau else {
        return (0..ts.len() as u32).collect();
    };
    let mut visible = 0;
    ts.iter()
        .zip(&requests.start)
        .map(|(&now, &request_start)| {
            let horizon = now.saturating_sub(margin_ms);
            while ts[visible] < horizon {
                visible += 1;
            }
            (visible as u32).min(request_start)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request_batches;
    use super::*;

    fn unlogged(ts: &[i64]) -> RequestBatches {
        request_batches(ts, &vec![None::<&str>; ts.len()], 0)
    }

    #[test]
    fn the_closed_interval_is_hidden() {
        let ts = [0, 5, 10, 10, 11];
        assert_eq!(visible_lengths(&ts, &unlogged(&ts), DeltaTau::Margin(5)), [0, 0, 1, 1, 2]);
        assert_eq!(visible_lengths(&ts, &unlogged(&ts), DeltaTau::Margin(0)), [0, 1, 2, 2, 4]);
        assert_eq!(visible_lengths(&ts, &unlogged(&ts), DeltaTau::Off), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_target_never_sees_its_own_request() {
        let ts = [0, 100, 200, 300];
        let requests = request_batches(&ts, &[Some("a"), Some("b"), Some("a"), Some("c")], 0);
        assert_eq!(visible_lengths(&ts, &requests, DeltaTau::Margin(0)), [0, 1, 0, 3]);
    }

    proptest! {
        #[test]
        fn equals_the_definition(mut ts in prop::collection::vec(-50i64..50, 0..40), margin in 0i64..30) {
            ts.sort_unstable();
            let expected: Vec<u32> = (0..ts.len())
                .map(|t| (0..t).filter(|&j| ts[j] < ts[t] - margin).count() as u32)
                .collect();
            prop_assert_eq!(visible_lengths(&ts, &unlogged(&ts), DeltaTau::Margin(margin)), expected);
        }
    }
}
