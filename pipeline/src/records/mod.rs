//! Turns a record of a file or of a topic into an event with an identity, or into the reason for its rejection.

mod columns;
mod date;
mod dead_letter;
mod explode;
mod identity;
mod mapping;
mod object;
mod ordinary;
mod plausible;
mod slots;
mod time;
mod value;

pub(crate) use columns::{Columns, EventBatch, Place, STAGED_SCHEMA, StagedRows};
pub(crate) use date::{date_days, date_of, date_text, dates_around, shard_date};
pub(crate) use dead_letter::dead_letter_key;
pub(crate) use explode::Exploding;
pub(crate) use identity::{Content, KeyMap, KeySet, dedup_property, id_key, id_of, key_hash, slice_of};
pub(crate) use mapping::{Event, Mapping, identity, missing};
pub(crate) use object::{JsonKey, Object};
pub(crate) use ordinary::{OrdinaryRows, Vector};
pub(crate) use plausible::Times;
pub(crate) use slots::Slots;
pub(crate) use time::{Forms, TimeReader, shortened};
pub(crate) use value::{Fields, Need, Rejection, Value, Wanted};
