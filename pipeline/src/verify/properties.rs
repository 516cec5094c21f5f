//! Compares the properties of `sequences` and `refresh` with the tables and the configuration.

use schemas::config::{Config, Sequences, Ties};
use schemas::history::DeltaTau;
use schemas::tables::properties;
use store::{Root, Snapshot, TableError};

use super::history::HistoryRules;
use super::violation::{Stop, Violation};
use crate::sft::settings_hash;

pub(super) const PROPERTIES: &str = "the properties say how the lists were computed";

/// The table at the version that a property names; the inner error is the reason why it can no longer be read.
pub(super) async fn version_of(
    root: &Root,
    snapshot: &Snapshot,
    table: &str,
    property: &str,
) -> Result<Result<Snapshot, String>, Stop> {
    let version = number(snapshot, property)?;
    let Some(newest) = root.snapshot(table).await? else {
        return Ok(Err(format!("the root has no {table}")));
    };
    if version > newest.version() {
        let expected = format!("at most {}, the newest version of `{table}`", newest.version());
        return Err(Violation::new(snapshot, PROPERTIES, version, expected).column(property).into());
    }
    if version == newest.version() {
        return Ok(Ok(newest));
    }
    let gone = |what: &str| {
        let name = snapshot.name();
        Ok(Err(format!(
            "version {version} of `{table}` cannot be read any more: {what}; build `{name}` again"
        )))
    };
    match root.snapshot_at(table, version).await {
        Ok(Some(then)) if then.is_whole().await => Ok(Ok(then)),
        Ok(Some(_)) => gone("its shards were deleted"),
        Ok(None) | Err(TableError::Log { .. }) => gone("its log entry was cleaned up"),
        Err(error) => Err(error.into()),
    }
}

/// The settings in the table's properties, if their hash is that of property `hash`; `None` if it has none, as tables of
/// earlier versions of this program.
pub(super) fn kept<'a>(snapshot: &'a Snapshot, settings: &str, hash: &str) -> Result<Option<&'a str>, Stop> {
    let Some(text) = snapshot.properties().get(settings) else { return Ok(None) };
    let (found, expected) = (settings_hash(text), property(snapshot, hash)?);
    if found == expected {
        return Ok(Some(text));
    }
    let violation = Violation::new(snapshot, PROPERTIES, format!("settings of hash {found}"), expected);
    Err(violation.column(settings).into())
}

/// Settings that cannot be read.
pub(super) fn unknown_settings(error: impl std::fmt::Display) -> String {
    format!("the table's settings are of another version of this program ({error}); build it again")
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

/// The number of days within which the table's writers took equal ids for one event.
pub(super) fn dedup_days(snapshot: &Snapshot) -> Result<u32, Stop> {
    match snapshot.properties().contains_key(properties::DEDUP_DAYS) {
        true => Ok(u32::try_from(number(snapshot, properties::DEDUP_DAYS)?).unwrap_or(u32::MAX)),
        false => Ok(0),
    }
}

/// The settings of `[sequences]` that the table was built with; the inner error is the reason why they are unknown.
pub(super) fn sequences(config: &Config, snapshot: &Snapshot) -> Result<Result<Sequences, String>, Stop> {
    if let Some(text) = kept(snapshot, properties::SETTINGS, properties::CONFIG_HASH)? {
        return Ok(Sequences::from_toml(text).map_err(unknown_settings));
    }
    let (hash, here) = (property(snapshot, properties::CONFIG_HASH)?, config.sequences.hash());
    Ok(if hash == here {
        Ok(config.sequences.clone())
    } else {
        Err(format!(
            "the table keeps no settings and was built with another [sequences] (hash {hash}, here {here}); build it again, or \
             give --config and --set of the build"
        ))
    })
}

/// The rules by which the histories were computed.
pub(super) fn rules(sequences: &Sequences, snapshot: &Snapshot) -> Result<HistoryRules, Stop> {
    // The properties must be the settings; `auto` is resolved by the build.
    let settings = [
        (properties::SESSION_GAP_MS, sequences.session_gap.ms.to_string()),
        (properties::BATCH_GAP_MS, sequences.batch_gap.ms.to_string()),
        (properties::TIE_POLICY, sequences.ties.name().to_owned()),
        (properties::MAX_LEN, sequences.max_len.to_string()),
    ];
    for (key, configured) in settings {
        let found = property(snapshot, key)?;
        if found != configured {
            let expected = format!("`{configured}`, as the settings have it");
            return Err(Violation::new(snapshot, PROPERTIES, format!("`{found}`"), expected)
                .column(key)
                .into());
        }
    }
    let delta_tau = match property(snapshot, properties::DELTA_TAU_MS)? {
        "off" => DeltaTau::Off,
        _ => DeltaTau::Margin(number(snapshot, properties::DELTA_TAU_MS)? as i64),
    };
    Ok(HistoryRules {
        dedup_days: dedup_days(snapshot)?,
        filters: sequences.filters(),
        shuffle: (sequences.ties == Ties::Shuffled).then_some(sequences.tie_seed),
        session_gap_ms: sequences.session_gap.ms,
        batch_gap_ms: sequences.batch_gap.ms,
        delta_tau,
        max_len: sequences.max_len,
        split: sequences.split()?,
        sft_share: sequences.sft_share,
        learned: None,
    })
}
