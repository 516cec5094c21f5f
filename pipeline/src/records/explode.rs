//! Takes a record that holds several events apart: `[events.explode]`.
//!
//! Element n of the record's lists is shown as a record of its own: the fields that are lists have their element n, all others
//! the value of the whole record. Memory: the lists of one record.

use std::borrow::Cow;
use std::collections::HashSet;

use schemas::config::Explode;
use schemas::tables::{ELEMENT_BITS, Reason};

use super::mapping::{ACTION, EVENT_ID, ITEM_ID, identity};
use super::time::shortened;
use super::value::{Fields, Rejection, Value, Wanted};

/// The configuration `[events.explode]` as slots of a record.
pub(crate) struct Exploding {
    /// Slots that hold lists, each with the name of its column.
    lists: Vec<(usize, String)>,
    separator: Option<String>,
    action_after: Option<String>,
    chosen: Option<Chosen>,
}

/// The slot with the chosen items, and the actions of those and of the others.
struct Chosen {
    slot: usize,
    column: String,
    action: String,
    others: String,
}

impl Exploding {
    /// Returns none if records are events. `chosen` is the slot of the column with the chosen items.
    pub(super) fn new(explode: &Explode, wanted: &[Wanted], chosen: usize) -> Option<Self> {
        let lists = wanted
            .iter()
            .enumerate()
            .filter(|(slot, wanted)| *slot != chosen && explode.columns.contains(&wanted.column));
        explode.is_on().then(|| Self {
            lists: lists.map(|(slot, wanted)| (slot, wanted.column.clone())).collect(),
            separator: explode.separator.clone(),
            action_after: explode.action_after.clone(),
            chosen: explode.chosen.as_ref().map(|configured| Chosen {
                slot: chosen,
                column: configured.column.clone(),
                action: configured.action.clone(),
                others: configured.others.clone(),
            }),
        })
    }

    /// The elements of a record. A record whose lists are missing or empty has none.
    ///
    /// # Errors
    ///
    /// Rejects the whole record if what should be a list is none, or if lists differ in length.
    pub(crate) fn elements<'r, R: Fields>(
        &'r self,
        record: &'r R,
    ) -> Result<RecordElements<'r, R>, Rejection> {
        let mut lists = Vec::with_capacity(self.lists.len());
        for (slot, column) in &self.lists {
            lists.push((*slot, self.list(record.value(*slot), column)?));
        }
        let len = lists.first().map_or(0, |(_, list)| list.len());
        if let Some(at) = lists.iter().position(|(_, list)| list.len() != len) {
            let message = format!(
                "`{}` has {len} elements and `{}` has {}",
                self.lists[0].1,
                self.lists[at].1,
                lists[at].1.len()
            );
            return Err(Rejection::new(Reason::WrongType, message));
        }
        let mut chosen = Vec::new();
        if let Some(Chosen { slot, column, .. }) = &self.chosen {
            for item in self.list(record.value(*slot), column)? {
                if let Some(item) = identity(item, column)? {
                    chosen.push(item.into_owned());
                }
            }
        }
        if len >> ELEMENT_BITS > 0 {
            let message = format!("{len} elements, more than {} in one record", 1 << ELEMENT_BITS);
            return Err(Rejection::new(Reason::TooLong, message));
        }
        let mut elements = RecordElements { exploding: self, record, lists, len, chosen, strays: Vec::new() };
        elements.strays = elements.strays();
        Ok(elements)
    }

    fn list<'r>(&self, value: Value<'r>, column: &str) -> Result<Vec<Value<'r>>, Rejection> {
        let wrong = |problem: &str| Err(Rejection::new(Reason::WrongType, format!("{column} is {problem}")));
        match (value, &self.separator) {
            (Value::Absent | Value::Null, _) => Ok(Vec::new()),
            (Value::List(elements), _) => Ok(elements),
            (Value::Text(text), Some(separator)) => Ok(split(text, separator)),
            (Value::Text(_), None) => wrong("text, not a list; events.explode.separator cuts it"),
            (Value::NotUtf8, _) => Err(Rejection::new(Reason::InvalidUtf8, format!("{column} is not UTF-8"))),
            (other, _) => wrong(&format!("{}, not a list", other.kind())),
        }
    }
}

/// The elements of a list that is written as text.
fn split<'r>(text: Cow<'r, str>, separator: &str) -> Vec<Value<'r>> {
    match text {
        Cow::Borrowed(text) => parts(text, separator).map(Value::from).collect(),
        Cow::Owned(text) => {
            parts(&text, separator).map(|part| Value::Text(Cow::Owned(part.to_owned()))).collect()
        }
    }
}

fn parts<'t, 's>(text: &'t str, separator: &'s str) -> impl Iterator<Item = &'t str> + use<'t, 's> {
    let text = text.trim();
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).trim();
    // Several blanks are one separator, and no text has no elements.
    let skips_empty = separator.trim().is_empty() || text.is_empty();
    text.split(separator).map(unquoted).filter(move |part| !(skips_empty && part.is_empty()))
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inside('\'').or_else(|| inside('"')).unwrap_or(text)
}

/// The elements of one record.
pub(crate) struct RecordElements<'r, R> {
    exploding: &'r Exploding,
    record: &'r R,
    /// Slot and elements of each list.
    lists: Vec<(usize, Vec<Value<'r>>)>,
    len: usize,
    chosen: Vec<String>,
    /// Chosen items that are not among the record's items.
    strays: Vec<String>,
}

impl<'r, R: Fields> RecordElements<'r, R> {
    /// The number of elements. A chosen item that is not among the record's items counts as one, and is rejected.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.len + self.strays.len()).unwrap_or(u32::MAX)
    }

    fn strays(&self) -> Vec<String> {
        if self.chosen.is_empty() {
            return Vec::new();
        }
        let items = (0..self.len).filter_map(|at| self.item(at).ok().flatten());
        let items: HashSet<String> = items.map(Cow::into_owned).collect();
        self.chosen.iter().filter(|item| !items.contains(*item)).cloned().collect()
    }

    /// The item of an element.
    fn item(&self, at: usize) -> Result<Option<Cow<'_, str>>, Rejection> {
        let (_, items) = self.lists.iter().find(|(slot, _)| *slot == ITEM_ID).unwrap_or(&self.lists[0]);
        identity(items[at].borrowed(), "")
    }

    /// Element `at` as a record.
    ///
    /// # Errors
    ///
    /// Rejects an element whose action cannot be told.
    pub(crate) fn get(&self, at: usize) -> Result<RecordElement<'_, R>, Rejection> {
        let Exploding { action_after, chosen, .. } = self.exploding;
        if let Some(stray) = at.checked_sub(self.len).and_then(|at| self.strays.get(at)) {
            let column = chosen.as_ref().map_or("", |chosen| chosen.column.as_str());
            let message = format!("`{}` of {column} is not among the record's items", shortened(stray));
            return Err(Rejection::new(Reason::WrongType, message));
        }
        let mut element = RecordElement { elements: self, at, item: None, action: None };
        let item = self.item(at);
        if let (Some(after), Ok(Some(item))) = (action_after, &item) {
            let Some((item, action)) = item.rsplit_once(after.as_str()) else {
                let message = format!("`{}` has no `{after}` before an action", shortened(item));
                return Err(Rejection::new(Reason::WrongType, message));
            };
            (element.item, element.action) = (Some(item.to_owned()), Some(action.to_owned()));
        }
        if let Some(Chosen { action, others, .. }) = chosen {
            let is_chosen =
                item.ok().flatten().is_some_and(|item| self.chosen.iter().any(|one| **one == *item));
            element.action = Some(if is_chosen { action.clone() } else { others.clone() });
        }
        Ok(element)
    }
}

/// One element of a record's lists, as a record.
pub(crate) struct RecordElement<'e, R> {
    elements: &'e RecordElements<'e, R>,
    at: usize,
    /// Item and action, where the record writes them otherwise.
    item: Option<String>,
    action: Option<String>,
}

impl<R: Fields> Fields for RecordElement<'_, R> {
    fn value(&self, slot: usize) -> Value<'_> {
        let own = match slot {
            ITEM_ID => &self.item,
            ACTION => &self.action,
            _ => &None,
        };
        if let Some(text) = own {
            return Value::from(text.as_str());
        }
        if let Some((_, list)) = self.elements.lists.iter().find(|(of, _)| *of == slot) {
            return list[self.at].borrowed();
        }
        let value = self.elements.record.value(slot);
        if slot != EVENT_ID {
            return value;
        }
        // The record has one id, and each of its events needs one.
        let id = identity(value.borrowed(), "").ok().flatten().map(|id| format!("{id}#{}", self.at));
        id.map_or(value, |id| Value::Text(Cow::Owned(id)))
    }
}
