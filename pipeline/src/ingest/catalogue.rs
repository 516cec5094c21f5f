//! Maps a catalogue's record to an item.

use std::borrow::Cow;

use schemas::config;
use schemas::tables::Reason;

use super::items::Item;

use crate::records::{Fields, Need, Rejection, TimeReader, Value, Wanted, identity, missing, shortened};

/// The configuration `[items]` as slots of a record and rules for its values.
pub(super) struct ItemMapping<'a> {
    pub(super) wanted: Vec<Wanted>,
    items: &'a config::Items,
    times: TimeReader,
    max_record_bytes: usize,
}

const ITEM_ID: usize = 0;
const TITLE: usize = 1;
const RELEASE_TS: usize = 2;
const ACTIVE: usize = 3;
const FIRST_ATTRIBUTE: usize = 4;

impl<'a> ItemMapping<'a> {
    /// `max_record_bytes` is the longest record that is not rejected.
    pub(super) fn new(items: &'a config::Items, max_record_bytes: usize) -> Self {
        let columns = &items.columns;
        let optional = |key: &str, column: &Option<String>| Wanted {
            key: format!("items.columns.{key}"),
            column: column.clone().unwrap_or_else(|| key.into()),
            need: if column.is_some() { Need::Named } else { Need::IfPresent },
        };
        let mut wanted = vec![
            Wanted {
                key: "items.columns.item_id".into(),
                column: columns.item_id.clone(),
                need: Need::Required,
            },
            optional("title", &columns.title),
            optional("release_ts", &columns.release_ts),
            optional("active", &columns.active),
        ];
        wanted.extend(items.attributes.iter().map(|(name, attribute)| Wanted {
            key: format!("items.attributes.{name}"),
            column: attribute.column.clone().unwrap_or_else(|| name.clone()),
            need: Need::Named,
        }));
        let times = TimeReader::new(&items.ts_format, items.ts_zone);
        Self { wanted, items, times, max_record_bytes }
    }

    /// The item in the current record. `stored` finds the stored item: a title, release time or activity that
    /// the catalogue has no column for keeps its stored value, and so do attributes that are no longer
    /// configured.
    pub(super) fn item<'r>(
        &self,
        record: &'r impl Fields,
        stored: impl Fn(&str) -> Option<Item>,
    ) -> Result<(Cow<'r, str>, Item), Rejection> {
        let name = |slot: usize| self.wanted[slot].column.as_str();
        let id = identity(record.value(ITEM_ID), name(ITEM_ID))?.ok_or_else(|| missing(name(ITEM_ID)))?;
        let mut item = stored(&id).unwrap_or_default();
        match record.value(TITLE) {
            Value::Absent => {}
            value => item.title = identity(value, name(TITLE))?.map(Cow::into_owned),
        }
        match record.value(RELEASE_TS) {
            Value::Absent => {}
            value => item.release_ts = self.times.read(&value, name(RELEASE_TS))?.map(|(ms, _)| ms),
        }
        match record.value(ACTIVE) {
            Value::Absent => {}
            value => item.active = boolean(value, name(ACTIVE))?.unwrap_or(true),
        }
        for (at, (attribute, rules)) in self.items.attributes.iter().enumerate() {
            let slot = FIRST_ATTRIBUTE + at;
            let values = values(record.value(slot), rules, name(slot))?;
            if values.is_empty() {
                item.attributes.remove(attribute);
            } else {
                item.attributes.insert(attribute.clone(), values);
            }
        }
        // The length of a line is limited while it is read; a row of a Parquet file needs a limit of its own.
        let values = item.attributes.values().flatten().map(String::len).sum::<usize>();
        if id.len() + item.title.as_ref().map_or(0, String::len) + values > self.max_record_bytes {
            let message = format!("the record is longer than {} bytes", self.max_record_bytes);
            return Err(Rejection::new(Reason::TooLong, message));
        }
        Ok((id, item))
    }
}

/// The values of an attribute: trimmed, without duplicates, in their order, without values that mean "none".
fn values(value: Value<'_>, rules: &config::Attribute, name: &str) -> Result<Vec<String>, Rejection> {
    let texts: Vec<Cow<'_, str>> = match value {
        Value::Absent | Value::Null => Vec::new(),
        Value::List(elements) => {
            let mut texts = Vec::with_capacity(elements.len());
            for element in elements {
                match element.into_text() {
                    Ok(text) => texts.extend(text),
                    Err(list) => return identity(list, name).map(|_| Vec::new()),
                }
            }
            texts
        }
        Value::Bool(value) => vec![Cow::Owned(value.to_string())],
        other => identity(other, name)?.into_iter().collect(),
    };
    let mut values: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        let text = text.trim();
        let none = text.is_empty() || rules.none.iter().any(|none| none == text);
        if !none && !values.iter().any(|value| value == text) {
            values.push(text.to_owned());
        }
    };
    for text in &texts {
        match &rules.separator {
            Some(separator) => text.split(separator.as_str()).for_each(&mut add),
            None => add(text),
        }
    }
    Ok(values)
}

fn boolean(value: Value<'_>, name: &str) -> Result<Option<bool>, Rejection> {
    let wrong = |what: &str| {
        Err(Rejection::new(Reason::WrongType, format!("{name}: {what} is not true, false, 1 or 0")))
    };
    match value {
        Value::Absent | Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(value)),
        Value::Int(value @ (0 | 1)) => Ok(Some(value == 1)),
        Value::Float(0.0) => Ok(Some(false)),
        Value::Float(1.0) => Ok(Some(true)),
        Value::Single(0.0) => Ok(Some(false)),
        Value::Single(1.0) => Ok(Some(true)),
        Value::Text(text) | Value::Decimal(text) => match text.trim().to_ascii_lowercase().as_str() {
            "" => Ok(None),
            "true" | "t" | "yes" | "y" | "1" => Ok(Some(true)),
            "false" | "f" | "no" | "n" | "0" => Ok(Some(false)),
            _ => wrong(&format!("`{}`", shortened(&text))),
        },
        other => wrong(other.kind()),
    }
}
