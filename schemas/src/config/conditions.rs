//! `[conditions]` and `[instructions]`: the conditions of recommendations, and each user's own recall instructions.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Items, Span, invalid};
use crate::condition::nearest;

/// `[conditions]`: derived conditions, and the examples of a condition worth training on. Quality limits apply to training only;
/// evaluation keeps every target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Conditions {
    /// Actions whose events are examples; if empty, all that are sequence items.
    pub actions: Vec<String>,
    /// Smallest value (rating, seconds listened, …) of an example; an event without a value is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_value: Option<f64>,
    /// Fewest visible items in the history that carry the condition.
    pub min_matching_history: usize,
    /// Fewest active items that carry the condition; serving refuses smaller pools too.
    pub min_pool: usize,
    /// Conditions derived from an item's age at the time of an event.
    pub derived: BTreeMap<String, Age>,
}

impl Default for Conditions {
    fn default() -> Self {
        let days = |days: i64| Some(Span::minutes(days * 24 * 60));
        Self {
            actions: Vec::new(),
            min_value: None,
            min_matching_history: 0,
            min_pool: 20,
            derived: BTreeMap::from([
                ("classic".into(), Age { min_age: days(3_650), max_age: None }),
                ("new-release".into(), Age { min_age: None, max_age: days(30) }),
            ]),
        }
    }
}

/// `[conditions.derived.NAME]`: a half-open range of ages since an item's `release_ts`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Age {
    /// Youngest age that carries the condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age: Option<Span>,
    /// Age from which on an item no longer carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
}

impl fmt::Display for Age {
    /// Formats the half-open range, such as `0s..30d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", self.min_age.unwrap_or(Span { ms: 0 }))?;
        self.max_age.map_or(Ok(()), |max| write!(f, "{max}"))
    }
}

impl Age {
    /// Returns true if an item released at `release_ts` carries the condition at `at` (both epoch milliseconds). An item of
    /// unknown release never does; one not released yet has a negative age.
    pub fn carried(self, release_ts: Option<i64>, at: i64) -> bool {
        release_ts.is_some_and(|release| {
            let age = at.saturating_sub(release);
            self.min_age.is_none_or(|min| age >= min.ms) && self.max_age.is_none_or(|max| age < max.ms)
        })
    }
}

impl Conditions {
    pub(super) fn validate(&self, items: &Items) -> Result<(), ConfigError> {
        for (name, age) in &self.derived {
            let key = format!("conditions.derived.{name}");
            if !is_name(name) {
                return invalid(key, "names of conditions are letters, digits, `_` and `-`");
            }
            if items.attributes.contains_key(name) {
                return invalid(key, "is the name of an attribute of the catalogue; choose another");
            }
            match (age.min_age, age.max_age) {
                (None, None) => return invalid(key, "needs min_age or max_age, such as max_age = \"30d\""),
                (Some(min), Some(max)) if min >= max => return invalid(key, "min_age must be below max_age"),
                _ => {}
            }
        }
        if self.min_value.is_some_and(|value| !value.is_finite()) {
            return invalid("conditions.min_value", "must be a number");
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Refuses a name that is neither a catalogue attribute nor a derived condition.
pub(super) fn check(
    key: &str,
    name: &str,
    items: &Items,
    conditions: &Conditions,
) -> Result<(), ConfigError> {
    let known = || items.attributes.keys().chain(conditions.derived.keys()).map(String::as_str);
    if known().any(|known| known == name) {
        return Ok(());
    }
    invalid(
        key,
        format!(
            "`{name}` is neither an attribute of the catalogue nor a derived condition; did you mean {}? There are: {}",
            nearest(name, known()).first().unwrap_or(&"another"),
            known().collect::<Vec<_>>().join(", ")
        ),
    )
}

/// `[instructions]`: each user's recall instructions (§3.4.1), the conditions met most often in a sliding window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instructions {
    /// `P`: most instructions per user.
    pub per_user: usize,
    /// Length of the window, back from the table's newest event or the requested time.
    pub window: Span,
    /// Attribute or derived condition → most instructions of a user that it may provide.
    pub quota: BTreeMap<String, usize>,
}

impl Default for Instructions {
    fn default() -> Self {
        Self { per_user: 8, window: Span::minutes(90 * 24 * 60), quota: BTreeMap::new() }
    }
}

impl Instructions {
    pub(super) fn validate(&self, items: &Items, conditions: &Conditions) -> Result<(), ConfigError> {
        if self.per_user == 0 {
            return invalid("instructions.per_user", "must be at least 1");
        }
        if self.window.ms <= 0 {
            return invalid("instructions.window", "must be longer than nothing");
        }
        for (name, &quota) in &self.quota {
            let key = format!("instructions.quota.{name}");
            check(&key, name, items, conditions)?;
            if quota == 0 {
                return invalid(key, "a quota of 0 asks for nothing; leave it out");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_half_open_ranges() {
        let days = |n: i64| n * 86_400_000;
        let new = Conditions::default().derived["new-release"];
        assert!(new.carried(Some(days(10)), days(39)) && !new.carried(Some(days(10)), days(40)));
        assert!(new.carried(Some(days(10)), days(5)) && !new.carried(None, 0));
        assert_eq!(new.to_string(), "0s..30d");
        let classic = Conditions::default().derived["classic"];
        assert!(classic.carried(Some(0), days(3_650)) && !classic.carried(Some(0), days(3_650) - 1));
        assert!(!classic.carried(Some(days(10)), 0));
    }
}
