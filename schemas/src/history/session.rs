//! Sessions of a history.

/// Returns the session ordinal of each event: 0 for the first, one more after every gap **longer** than `session_gap_ms`.
///
/// `ts` is sorted, in epoch milliseconds.
pub fn session_ordinals(ts: &[i64], session_gap_ms: i64) -> Vec<u32> {
    let mut session = 0;
    ts.iter()
        .enumerate()
        .map(|(t, &now)| {
            if t > 0 && now.saturating_sub(ts[t - 1]) > session_gap_ms {
                session += 1;
            }
            session
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_longer_gap_starts_a_session() {
        assert_eq!(session_ordinals(&[0, 10, 21, 21, 100], 10), [0, 0, 1, 1, 2]);
        assert_eq!(session_ordinals(&[], 10), [0; 0]);
    }
}
