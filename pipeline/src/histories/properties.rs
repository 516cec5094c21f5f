//! Table properties that record the settings and the versions from which a table's lists were computed.

use std::collections::BTreeMap;

use schemas::config::Config;
use schemas::history::DeltaTau;
use schemas::tables::properties;
use store::Snapshot;

use super::intervals::RequestIntervals;

/// `Δτ` as a property: milliseconds such as `900000`, or `off`.
pub(crate) fn delta_tau_ms(delta_tau: DeltaTau) -> String {
    match delta_tau {
        DeltaTau::Off => "off".to_owned(),
        DeltaTau::Margin(ms) => ms.to_string(),
    }
}

/// The table properties that describe the rows, as far as they are known before the log is read.
pub(crate) fn described(
    config: &Config,
    events: &Snapshot,
    items_version: u64,
    since: Option<u64>,
) -> BTreeMap<String, String> {
    let sequences = &config.sequences;
    let mut described: BTreeMap<String, String> = [
        (properties::SESSION_GAP_MS, sequences.session_gap.ms.to_string()),
        (properties::BATCH_GAP_MS, sequences.batch_gap.ms.to_string()),
        (properties::TIE_POLICY, sequences.ties.name().to_owned()),
        (properties::MAX_LEN, sequences.max_len.to_string()),
        (properties::EVENTS_VERSION, events.version().to_string()),
        (properties::ITEMS_VERSION, items_version.to_string()),
        (properties::CONFIG_HASH, sequences.hash()),
        (properties::DEDUP_DAYS, config.events.dedup_days.to_string()),
        (properties::SETTINGS, sequences.to_toml()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(since) = since {
        described.insert(properties::SINCE_VERSION.into(), since.to_string());
    }
    if let Some(delta_tau) = sequences.delta_tau.fixed() {
        described.insert(properties::DELTA_TAU_MS.into(), delta_tau_ms(delta_tau));
    }
    described
}

/// The measured request intervals as table properties.
pub(crate) fn measured(intervals: Option<&RequestIntervals>) -> BTreeMap<String, String> {
    let count = intervals.map_or(0, |intervals| intervals.count);
    let mut measured = BTreeMap::from([(properties::REQUEST_INTERVALS.to_owned(), count.to_string())]);
    if let Some(intervals) = intervals {
        measured.insert(properties::REQUEST_INTERVAL_MEAN_MS.into(), format!("{:.3}", intervals.mean_ms));
        measured.insert(properties::REQUEST_INTERVAL_MEDIAN_MS.into(), intervals.median_ms.to_string());
        measured.insert(properties::REQUEST_INTERVAL_P90_MS.into(), intervals.p90_ms.to_string());
    }
    measured
}

/// The measured request intervals in a table's properties.
pub(crate) fn stored_intervals(table: &Snapshot) -> Option<RequestIntervals> {
    fn number<T: std::str::FromStr>(table: &Snapshot, key: &str) -> Option<T> {
        table.properties().get(key)?.parse().ok()
    }
    Some(RequestIntervals {
        count: number(table, properties::REQUEST_INTERVALS)?,
        mean_ms: number(table, properties::REQUEST_INTERVAL_MEAN_MS)?,
        median_ms: number(table, properties::REQUEST_INTERVAL_MEDIAN_MS)?,
        p90_ms: number(table, properties::REQUEST_INTERVAL_P90_MS)?,
    })
}
