//! `[events.explode]`: records that hold several events each, such as requests with a list of impressions.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Events, invalid};

/// How a record is taken apart into events. Off unless `columns` names a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Explode {
    /// Columns that hold a list; `events.columns.item_id` is one of them. Element n of each belongs to the record's event n, so
    /// the lists of a record are equally long. All other columns hold for every event of the record.
    pub columns: Vec<String>,
    /// Text between the elements of a list that is written as text, such as `" "`. Brackets around the list, and blanks and quotes
    /// around its elements, do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Text between item and action within an element, such as `"-"` in `N1-0`; the last one in the element counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_after: Option<String>,
    /// A second list that tells the action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
}

/// `[events.explode.chosen]`: the items of a record that the user chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Column with the list of chosen items; each of them is in the list of items, too.
    pub column: String,
    /// Action of the events with these items.
    #[serde(default = "Chosen::default_action")]
    pub action: String,
    /// Action of the record's other events.
    #[serde(default = "Chosen::default_others")]
    pub others: String,
}

impl Chosen {
    fn default_action() -> String {
        "click".into()
    }

    fn default_others() -> String {
        "impression".into()
    }
}

impl Explode {
    /// True if records are taken apart.
    pub fn is_on(&self) -> bool {
        !self.columns.is_empty()
    }

    /// True if nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self, events: &Events) -> Result<(), ConfigError> {
        let Self { columns, separator, action_after, chosen } = self;
        if !self.is_on() {
            return match self.is_default() {
                true => Ok(()),
                false => invalid("events.explode.columns", "must name the columns that hold lists"),
            };
        }
        if !columns.contains(&events.columns.item_id) {
            let problem = format!("must contain the column of items, `{}`", events.columns.item_id);
            return invalid("events.explode.columns", problem);
        }
        let fields = events.columns.in_use();
        if let Some(unused) = columns.iter().find(|column| !fields.contains(&column.as_str())) {
            let problem = format!("`{unused}` is not the column of any field in events.columns");
            return invalid("events.explode.columns", problem);
        }
        for (key, text) in [("separator", separator), ("action_after", action_after)] {
            if text.as_deref() == Some("") {
                return invalid(
                    format!("events.explode.{key}"),
                    "an empty text separates nothing; leave it out",
                );
            }
        }
        let action_is_list = events.columns.action.as_ref().is_some_and(|action| columns.contains(action));
        if [action_is_list, action_after.is_some(), chosen.is_some()].into_iter().filter(|set| *set).count()
            > 1
        {
            let problem =
                "an action is told by a list of actions, by action_after, or by chosen: not by two of them";
            return invalid("events.explode", problem);
        }
        match chosen {
            Some(chosen) if columns.contains(&chosen.column) => {
                invalid("events.explode.chosen.column", "must not be one of events.explode.columns")
            }
            _ => Ok(()),
        }
    }
}
