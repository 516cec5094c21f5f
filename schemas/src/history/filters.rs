//! Filters of the log: which events become positions of histories.
//!
//! The order is fixed:
//!
//! ```text
//! actions ─► min_value ─► from, until │ ─► at_most_once ─► min_user_events, min_item_events
//!   each event by itself              │    a user's history    the k-core, in rounds
//! ```
//!
//! The last two steps count events that passed all steps before them, each event once.

use serde::{Deserialize, Serialize};

/// Which of a user's events with one item is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtMostOnce {
    /// The earliest in the order of the history.
    First,
    /// The latest in the order of the history.
    Last,
}

/// The filters of `[sequences]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogFilters {
    /// Actions that are kept; all if empty.
    pub actions: Vec<String>,
    /// Smallest value that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_value: Option<f64>,
    /// First instant that is kept, in epoch milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<i64>,
    /// First instant after `from_ms` that is not kept, in epoch milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// Whether one event of each user and item is kept, and which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most_once: Option<AtMostOnce>,
    /// Minimum events of a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_user_events: Option<u32>,
    /// Minimum events of an item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_item_events: Option<u32>,
}

/// The filter that takes out an event by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventFilter {
    /// `actions`.
    Action,
    /// `min_value`.
    Value,
    /// `from`, `until`.
    Time,
}

impl LogFilters {
    /// Returns the first filter that takes out an event by itself; `None` if it passes. An event without a value does not reach
    /// a configured smallest value.
    pub fn taken_by(&self, action: &str, value: Option<f64>, ts: i64) -> Option<EventFilter> {
        if !self.actions.is_empty() && !self.actions.iter().any(|known| known == action) {
            return Some(EventFilter::Action);
        }
        if self.min_value.is_some_and(|min| !value.is_some_and(|value| value >= min)) {
            return Some(EventFilter::Value);
        }
        let inside =
            self.from_ms.is_none_or(|from| ts >= from) && self.until_ms.is_none_or(|until| ts < until);
        (!inside).then_some(EventFilter::Time)
    }

    /// Returns true if filters other than `actions` are set.
    pub fn beyond_actions(&self) -> bool {
        *self != Self { actions: self.actions.clone(), ..Self::default() }
    }

    /// Returns true if an event can be taken out because of other events.
    pub fn needs_histories(&self) -> bool {
        self.at_most_once.is_some() || self.has_core()
    }

    /// Returns true if a k-core is configured.
    pub fn has_core(&self) -> bool {
        self.min_user_events.is_some() || self.min_item_events.is_some()
    }

    /// Minimum events of a user in the k-core.
    pub fn core_user_events(&self) -> u64 {
        self.min_user_events.map_or(1, |min| u64::from(min.max(1)))
    }

    /// Minimum events of an item in the k-core.
    pub fn core_item_events(&self) -> u64 {
        self.min_item_events.map_or(1, |min| u64::from(min.max(1)))
    }

    /// The time of the newest event that may be kept, given that of the newest event of the log, in epoch milliseconds.
    pub fn newest(&self, newest: i64) -> i64 {
        self.until_ms.map_or(newest, |until| newest.min(until - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_taken_by_the_first_filter_that_it_fails() {
        let filters = LogFilters {
            actions: vec!["play".into()],
            min_value: Some(3.0),
            from_ms: Some(10),
            until_ms: Some(20),
            ..LogFilters::default()
        };
        let taken = |action, value, ts| filters.taken_by(action, value, ts);
        assert_eq!(taken("skip", None, 0), Some(EventFilter::Action));
        assert_eq!(taken("play", None, 0), Some(EventFilter::Value));
        assert_eq!(taken("play", Some(f64::NAN), 10), Some(EventFilter::Value));
        assert_eq!(taken("play", Some(2.9), 10), Some(EventFilter::Value));
        assert_eq!(taken("play", Some(3.0), 9), Some(EventFilter::Time));
        assert_eq!(taken("play", Some(3.0), 20), Some(EventFilter::Time));
        assert_eq!(taken("play", Some(3.0), 10), None);
        assert_eq!(LogFilters::default().taken_by("", None, i64::MIN), None);
        assert_eq!((filters.newest(50), filters.newest(5)), (19, 5));
    }

    #[test]
    fn without_other_filters_the_stored_form_is_that_of_the_actions() {
        let actions = LogFilters { actions: vec!["play".into()], ..LogFilters::default() };
        assert!(!actions.beyond_actions() && !actions.needs_histories());
        assert_eq!(serde_json::to_string(&actions).unwrap(), r#"{"actions":["play"]}"#);
        let once = LogFilters { at_most_once: Some(AtMostOnce::Last), ..LogFilters::default() };
        assert!(once.beyond_actions() && once.needs_histories() && !once.has_core());
        assert_eq!(serde_json::from_str::<LogFilters>(r#"{"at_most_once":"last"}"#).unwrap(), once);
    }
}
