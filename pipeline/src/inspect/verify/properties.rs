//! What the properties of `sequences` and `refresh` say, held against the tables and the configuration.

use schemas::config::{Config, Ties};
use schemas::delta::{Root, Snapshot};
use schemas::history::DeltaTau;
use schemas::tables::properties;

use super::history::Rules;
use super::violation::{Stop, Violation};

pub(super) const PROPERTIES: &str = "the properties say how the lists were computed";

/// The table at the version that a property names; `None` where the root has no such table.
pub(super) async fn version_of(
    root: &Root,
    snapshot: &Snapshot,
    table: &str,
    property: &str,
) -> Result<Option<Snapshot>, Stop> {
    let version = number(snapshot, property)?;
    let Some(newest) = root.snapshot(table).await? else { return Ok(None) };
    if version > newest.version() {
        let expected = format!("at most {}, the newest version of `{table}`", newest.version());
        return Err(Violation::new(snapshot, PROPERTIES, version, expected).column(property).into());
    }
    Ok(root.snapshot_at(table, version).await?)
}

fn property<'a>(snapshot: &'a Snapshot, key: &str) -> Result<&'a str, Stop> {
    snapshot.properties().get(key).map(String::as_str).ok_or_else(|| {
        Violation::new(snapshot, PROPERTIES, "absent", "a property of the table").column(key).into()
    })
}

pub(super) fn number(snapshot: &Snapshot, key: &str) -> Result<u64, Stop> {
    let text = property(snapshot, key)?;
    let wrong = |_| Violation::new(snapshot, PROPERTIES, format!("`{text}`"), "a whole number").column(key);
    Ok(text.parse().map_err(wrong)?)
}

/// Within how many days the table's build took equal ids for one event.
fn dedup_days(snapshot: &Snapshot) -> Result<u32, Stop> {
    match snapshot.properties().contains_key(properties::DEDUP_DAYS) {
        true => Ok(u32::try_from(number(snapshot, properties::DEDUP_DAYS)?).unwrap_or(u32::MAX)),
        false => Ok(0),
    }
}

/// How the histories were computed, or why that cannot be known.
pub(super) fn rules(config: &Config, snapshot: &Snapshot) -> Result<Result<Rules, String>, Stop> {
    let sequences = &config.sequences;
    let hash = property(snapshot, properties::CONFIG_HASH)?;
    if hash != sequences.hash() {
        return Ok(Err(format!(
            "the table was built with another [sequences] (hash {hash}, here {}); give --config and --set of the build",
            sequences.hash()
        )));
    }
    // With the configuration of the build, the properties must be its settings; `auto` is resolved by the build.
    let settings = [
        (properties::SESSION_GAP_MS, sequences.session_gap.ms.to_string()),
        (properties::BATCH_GAP_MS, sequences.batch_gap.ms.to_string()),
        (properties::TIE_POLICY, sequences.ties.name().to_owned()),
        (properties::MAX_LEN, sequences.max_len.to_string()),
    ];
    for (key, configured) in settings {
        let found = property(snapshot, key)?;
        if found != configured {
            let expected = format!("`{configured}`, as configured");
            return Err(Violation::new(snapshot, PROPERTIES, format!("`{found}`"), expected)
                .column(key)
                .into());
        }
    }
    let delta_tau = match property(snapshot, properties::DELTA_TAU_MS)? {
        "off" => DeltaTau::Off,
        _ => DeltaTau::Margin(number(snapshot, properties::DELTA_TAU_MS)? as i64),
    };
    Ok(Ok(Rules {
        dedup_days: dedup_days(snapshot)?,
        actions: sequences.actions.clone(),
        shuffle: (sequences.ties == Ties::Shuffled).then_some(sequences.tie_seed),
        session_gap_ms: sequences.session_gap.ms,
        batch_gap_ms: sequences.batch_gap.ms,
        delta_tau,
        max_len: sequences.max_len,
        split: sequences.split()?,
        sft_share: sequences.sft_share,
        learned: None,
    }))
}
