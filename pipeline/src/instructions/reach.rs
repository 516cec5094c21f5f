//! Determines the users whose rows must be computed again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use schemas::tables::{EVENTS, properties};
use store::{Root, Snapshot};

use super::Rules;
use super::log::{LogQueries, RepeatedIds, UserHashes};
use super::window::CountWindow;
use super::{AS_OF_MS, CATALOGUE_HASH, InstructionsError};

/// The users that a run computes.
pub(super) enum Reach {
    /// Every user.
    All {
        /// Why.
        why: String,
    },
    /// Users whose row may differ from the table's.
    Users(Arc<UserHashes>),
}

impl Reach {
    /// Compares the wanted rows, given by their properties `described`, with the properties of the table.
    pub(super) async fn find(
        root: &Root,
        log: &LogQueries<'_>,
        rules: &Rules,
        present: Option<&Snapshot>,
        described: &BTreeMap<String, String>,
        window: CountWindow,
        repeated: &Arc<RepeatedIds>,
    ) -> Result<Self, InstructionsError> {
        let all = |why: String| Ok(Self::All { why });
        let Some(present) = present else { return all("the table is new".into()) };
        if rules.filters.needs_histories() {
            return all("at_most_once and the k-core depend on whole histories".into());
        }
        let same = |key| present.properties().get(key) == described.get(key);
        if !same(properties::CONFIG_HASH) {
            return all("the settings differ from the table's".into());
        }
        if !same(CATALOGUE_HASH) {
            return all("the catalogue differs from the table's".into());
        }
        if !present.is_whole().await {
            return all("a shard of the table is missing or damaged".into());
        }
        let number = |key| present.properties().get(key).and_then(|text| text.parse::<i64>().ok());
        let (Some(version), Some(as_of)) = (number(properties::EVENTS_VERSION), number(AS_OF_MS)) else {
            return all("the table does not say what it was made of".into());
        };
        // The version no longer exists, or never did, so its shards are unknown.
        let Ok(Some(then)) = root.snapshot_at(EVENTS, version.unsigned_abs()).await else {
            return all(format!("events version {version} cannot be read any more"));
        };
        let now = log.events();
        let kept: HashSet<&str> = now.shards().iter().map(|shard| shard.path.as_str()).collect();
        let mut added = kept.clone();
        for shard in then.shards() {
            if !kept.contains(shard.path.as_str()) {
                return all(format!("events has lost shards since version {version}"));
            }
            added.remove(shard.path.as_str());
        }
        let before = CountWindow::ending(as_of, window.to - window.from);
        Ok(Self::Users(Arc::new(log.affected(&added, window, before, repeated).await?)))
    }
}
