//! The settings that determine the rows, for given tables and a given time.

use std::collections::BTreeMap;

use schemas::config::{Age, Config, ConfigError};
use schemas::hash::hash64;
use schemas::history::LogFilters;
use serde::{Deserialize, Serialize};

use super::window::CountWindow;

/// Maximum derived conditions: those of an event are the bits of a [`u32`].
const DERIVED_MAX: usize = 32;

/// The settings, with the quota of each attribute and derived condition resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rules {
    /// `P`.
    pub per_user: usize,
    pub window_ms: i64,
    /// Attribute or derived condition → maximum instructions of a user from it.
    pub quota: BTreeMap<String, usize>,
    /// Those of `quota` that follow from an item's age.
    pub derived: BTreeMap<String, Age>,
    pub min_pool: u64,
    /// The filters of the log.
    #[serde(flatten)]
    pub filters: LogFilters,
    /// `events.dedup_days`.
    pub dedup_days: u32,
}

impl Rules {
    /// The rules of a configuration, which must ask for at least one attribute or derived condition.
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let (instructions, conditions) = (&config.instructions, &config.conditions);
        let mut quota = instructions.quota.clone();
        if quota.is_empty() {
            quota =
                config.items.attributes.keys().map(|name| (name.clone(), instructions.per_user)).collect();
        }
        let fail = |problem: String| ConfigError::Invalid { key: "instructions.quota".into(), problem };
        if quota.is_empty() {
            let derived: Vec<&str> = conditions.derived.keys().map(String::as_str).collect();
            return Err(fail(format!(
                "there is nothing to make instructions of: the catalogue has no attributes; configure \
                 [items.attributes.genre], or give a derived condition a quota ({})",
                derived.join(", ")
            )));
        }
        let derived: BTreeMap<String, Age> = conditions
            .derived
            .iter()
            .filter(|(name, _)| quota.contains_key(*name))
            .map(|(name, age)| (name.clone(), *age))
            .collect();
        if derived.len() > DERIVED_MAX {
            return Err(fail(format!("names {} derived conditions; {DERIVED_MAX} at most", derived.len())));
        }
        let mut filters = config.sequences.filters();
        filters.actions.sort();
        Ok(Self {
            per_user: instructions.per_user,
            window_ms: instructions.window.ms,
            quota,
            derived,
            min_pool: conditions.min_pool as u64,
            filters,
            dedup_days: config.events.dedup_days,
        })
    }

    /// The attributes of the catalogue among the names of `quota`.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = &str> {
        self.quota.keys().map(String::as_str).filter(|name| !self.derived.contains_key(*name))
    }

    /// The times of the events that decide on those of the window: all, if a filter needs whole histories.
    pub(crate) fn read_window(&self, window: CountWindow) -> CountWindow {
        if self.filters.needs_histories() { CountWindow::ALL } else { window }
    }

    /// Hash of all rules.
    pub(crate) fn hash(&self) -> String {
        format!("{:016x}", hash64(self.settings().as_bytes()))
    }

    /// All rules as JSON, for the table's properties.
    pub(crate) fn settings(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|e| unreachable!("rules are plain data: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overrides: &str) -> Config {
        let overrides: Vec<String> = overrides.split_whitespace().map(ToString::to_string).collect();
        Config::from_overrides(&overrides).unwrap()
    }

    #[test]
    fn without_a_quota_every_attribute_may_fill_all_places() {
        let rules =
            Rules::new(&config("items.attributes.genre={} items.attributes.mood={} instructions.per_user=3"))
                .unwrap();
        assert_eq!(rules.quota, [("genre".into(), 3), ("mood".into(), 3)].into());
        assert!(rules.derived.is_empty());
        assert_eq!(rules.attributes().collect::<Vec<_>>(), ["genre", "mood"]);
    }

    #[test]
    fn derived_conditions_count_where_they_have_a_quota() {
        let rules = Rules::new(&config("instructions.quota.classic=1")).unwrap();
        assert_eq!(rules.derived.keys().collect::<Vec<_>>(), ["classic"]);
        assert_eq!(rules.attributes().count(), 0);
        assert_ne!(rules.hash(), Rules::new(&config("instructions.quota.classic=2")).unwrap().hash());
    }

    #[test]
    fn stored_rules_have_only_the_filters_that_are_set() {
        let rules =
            Rules::new(&config("instructions.quota.classic=1 sequences.actions=[\"b\",\"a\"]")).unwrap();
        let settings = rules.settings();
        assert!(settings.ends_with(r#","actions":["a","b"],"dedup_days":2}"#), "{settings}");
        assert_eq!(serde_json::from_str::<Rules>(&settings).unwrap(), rules);
        let filtered = "instructions.quota.classic=1 sequences.min_value=3 sequences.min_item_events=2 \
                        sequences.at_most_once=last sequences.until=2020-01-01T00:00:00Z";
        let rules = Rules::new(&config(filtered)).unwrap();
        assert_eq!(serde_json::from_str::<Rules>(&rules.settings()).unwrap(), rules);
    }

    #[test]
    fn nothing_to_make_instructions_of_is_wrong_usage() {
        let message = Rules::new(&Config::default()).unwrap_err().to_string();
        assert!(message.starts_with("instructions.quota") && message.contains("new-release"), "{message}");
    }
}
