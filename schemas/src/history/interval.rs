//! Request intervals, from which `Δτ` is estimated.

/// Appends to `intervals` the gaps in milliseconds between consecutive distinct request times of one user within a session: the
/// request intervals whose mean the paper takes as `Δτ` (§3.2.2).
///
/// `session` and `request_ts` are parallel, `[events]`, in event-time order. Events without a logged request are skipped. Within
/// a session, requests are ordered by their own times, which may differ from event order.
pub fn request_intervals(session: &[u32], request_ts: &[Option<i64>], intervals: &mut Vec<i64>) {
    debug_assert_eq!(session.len(), request_ts.len());
    let mut times: Vec<i64> = Vec::new();
    let mut start = 0;
    for events in session.chunk_by(|a, b| a == b) {
        times.clear();
        times.extend(request_ts[start..start + events.len()].iter().flatten());
        times.dedup();
        times.sort_unstable();
        times.dedup();
        intervals.extend(times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])));
        start += events.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_distinct_requests_of_one_session_have_an_interval() {
        let request_ts = [Some(10), Some(10), None, Some(4), Some(30), Some(95), Some(90), None];
        let mut intervals = Vec::new();
        request_intervals(&[0, 0, 0, 0, 0, 1, 1, 1], &request_ts, &mut intervals);
        request_intervals(&[0, 1], &[Some(1), Some(2)], &mut intervals);
        request_intervals(&[], &[], &mut intervals);
        assert_eq!(intervals, [6, 20, 5]);
    }
}
