//! The tables of a root: their names, columns and codes.
//!
//! The names and types here are an interface: other programs read the same Parquet shards.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

/// Accepted interactions, partitioned by [`EVENT_DATE`].
pub const EVENTS: &str = "events";
/// The catalogue.
pub const ITEMS: &str = "items";
/// Rejected input records.
pub const DEAD_LETTERS: &str = "dead_letters";
/// Which rejected records were sent to a topic again.
pub const REPLAYS: &str = "replays";
/// Who was forgotten: keyed hashes of users, whose records do not come in again.
pub const FORGOTTEN: &str = "forgotten";
/// Windows of the users' histories.
pub const SEQUENCES: &str = "sequences";
/// Rows of [`SEQUENCES`] that own a new event, for the incremental refresh of a model.
pub const REFRESH: &str = "refresh";
/// Each user's recall instructions.
pub const INSTRUCTIONS: &str = "instructions";
/// The partition column of [`EVENTS`]: the UTC date of `ts`.
pub const EVENT_DATE: &str = "event_date";

/// "No item": item indexes count from 1.
pub const NO_ITEM: u32 = 0;

/// Epoch milliseconds, UTC: the type of every instant in the tables.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn list(of: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", of, false)))
}

fn required(name: &str, of: DataType) -> Field {
    Field::new(name, of, false)
}

fn optional(name: &str, of: DataType) -> Field {
    Field::new(name, of, true)
}

/// One row is one accepted interaction.
pub static EVENTS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("event_id", DataType::Utf8),
        required("user_id", DataType::Utf8),
        required("item_id", DataType::Utf8),
        required("ts", timestamp()),
        optional("request_id", DataType::Utf8),
        optional("request_ts", timestamp()),
        required("action", DataType::Utf8),
        optional("value", DataType::Float64),
        required("source", DataType::Utf8),
        required("position", DataType::Int64),
        required(EVENT_DATE, DataType::Date32),
    ]))
});

/// One row is one item; `attributes` are the configured categorical attributes, each a list of values.
pub fn items_schema<'a>(attributes: impl IntoIterator<Item = &'a str>) -> SchemaRef {
    let mut fields = vec![
        required("item_id", DataType::Utf8),
        required("item_index", DataType::UInt32),
        optional("title", DataType::Utf8),
        optional("release_ts", timestamp()),
        required("active", DataType::Boolean),
    ];
    fields.extend(attributes.into_iter().map(|name| required(name, list(DataType::Utf8))));
    Arc::new(Schema::new(fields))
}

/// The columns of [`items_schema`] that are not attributes.
pub const ITEM_COLUMNS: [&str; 5] = ["item_id", "item_index", "title", "release_ts", "active"];

/// One row is one rejected record, with its bytes as they came.
pub static DEAD_LETTERS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("source", DataType::Utf8),
        required("position", DataType::Int64),
        optional("key", DataType::Binary),
        required("value", DataType::Binary),
        required("reason", DataType::Utf8),
        required("message", DataType::Utf8),
        required("rejected_at", timestamp()),
    ]))
});

/// One row is one rejected record that was sent to a topic, and acknowledged; `source` and `position` are those of
/// [`DEAD_LETTERS`].
pub static REPLAYS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("topic", DataType::Utf8),
        required("source", DataType::Utf8),
        required("position", DataType::Int64),
        required("replayed_at", timestamp()),
    ]))
});

/// One row is one user who was forgotten.
pub static FORGOTTEN_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![required("user_hash", DataType::Utf8), required("forgotten_at", timestamp())]))
});

/// One row is one window of one user's history; the lists of a row have equal length.
pub static SEQUENCES_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("user_id", DataType::Utf8),
        required("item_index", list(DataType::UInt32)),
        required("ts", list(timestamp())),
        required("session", list(DataType::UInt32)),
        required("request", list(DataType::UInt32)),
        required("visible_len", list(DataType::UInt32)),
        required("role", list(DataType::UInt8)),
        required("target_from", DataType::UInt32),
    ]))
});

/// The table with the instruction examples of one attribute or derived condition.
pub fn sft_table(condition: &str) -> String {
    format!("sft/{condition}")
}

/// Whether a table has the examples of some condition.
pub fn is_sft(table: &str) -> bool {
    table.strip_prefix(&sft_table("")).is_some_and(|condition| !condition.is_empty())
}

/// One row is one instruction example (Eq. 6): a target, the history before it, and a value of the condition that the
/// target carries. The lists of a row have equal length.
pub static SFT_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("user_id", DataType::Utf8),
        required("item_index", list(DataType::UInt32)),
        required("ts", list(timestamp())),
        required("session", list(DataType::UInt32)),
        required("request", list(DataType::UInt32)),
        required("matches", list(DataType::Boolean)),
        required("target_item", DataType::UInt32),
        required("target_ts", timestamp()),
        required("visible_len", DataType::UInt32),
        required("role", DataType::UInt8),
        required("condition", DataType::Utf8),
        required("weight", DataType::Float32),
    ]))
});

/// One row is one user: the conditions met most often in the window, and their shares of what was met.
pub static INSTRUCTIONS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("user_id", DataType::Utf8),
        required("attributes", list(DataType::Utf8)),
        required("conditions", list(DataType::Utf8)),
        required("weights", list(DataType::Float32)),
        required("as_of", timestamp()),
    ]))
});

/// The columns of a table that grows by appended shards, and so must keep its columns.
pub fn appended_schema(table: &str) -> Option<&'static SchemaRef> {
    match table {
        EVENTS => Some(&EVENTS_SCHEMA),
        DEAD_LETTERS => Some(&DEAD_LETTERS_SCHEMA),
        REPLAYS => Some(&REPLAYS_SCHEMA),
        FORGOTTEN => Some(&FORGOTTEN_SCHEMA),
        _ => None,
    }
}

/// The partition columns of a table of the contract.
pub fn partition_columns(table: &str) -> Option<&'static [&'static str]> {
    match table {
        EVENTS => Some(&[EVENT_DATE]),
        ITEMS | DEAD_LETTERS | REPLAYS | FORGOTTEN | SEQUENCES | REFRESH | INSTRUCTIONS => Some(&[]),
        _ if table.starts_with(&sft_table("")) => Some(&[]),
        _ => None,
    }
}

/// A column of a table, where the contract knows it: the type in which every reader gets it, whatever its shards have.
pub fn column(table: &str, name: &str) -> Option<FieldRef> {
    let schema: &SchemaRef = match table {
        SEQUENCES | REFRESH => &SEQUENCES_SCHEMA,
        INSTRUCTIONS => &INSTRUCTIONS_SCHEMA,
        ITEMS if ITEM_COLUMNS.contains(&name) => {
            return items_schema([]).field_with_name(name).ok().cloned().map(Arc::new);
        }
        ITEMS => return Some(Arc::new(required(name, list(DataType::Utf8)))),
        _ if table.starts_with(&sft_table("")) => &SFT_SCHEMA,
        _ => appended_schema(table)?,
    };
    schema.field_with_name(name).ok().cloned().map(Arc::new)
}

/// Why an input record was rejected: the codes of `dead_letters.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A required field is absent, null or empty.
    MissingField,
    /// A time that does not parse in the configured unit.
    InvalidTime,
    /// A time outside the configured range.
    TimeOutOfRange,
    /// A field of another type than its column's, or a CSV record of another width than the header, or with
    /// quotes that do not pair up.
    WrongType,
    /// Not a JSON object, or not JSON.
    MalformedJson,
    /// Bytes that are not UTF-8.
    InvalidUtf8,
    /// A record longer than the configured limit.
    TooLong,
    /// A message without a value, which deletes its key elsewhere and says nothing of an interaction.
    Tombstone,
    /// Not Avro or Protobuf of the schema that it names, or that is configured.
    MalformedBinary,
    /// A message of a schema that the registry does not have, or that cannot be read.
    UnknownSchema,
    /// The user was forgotten: counted, and never stored.
    Forgotten,
}

impl Reason {
    /// Every reason that is stored, in the order above.
    pub const ALL: [Self; 10] = [
        Self::MissingField,
        Self::InvalidTime,
        Self::TimeOutOfRange,
        Self::WrongType,
        Self::MalformedJson,
        Self::InvalidUtf8,
        Self::TooLong,
        Self::Tombstone,
        Self::MalformedBinary,
        Self::UnknownSchema,
    ];

    /// The code as stored.
    pub fn code(self) -> &'static str {
        match self {
            Self::MissingField => "missing_field",
            Self::InvalidTime => "invalid_time",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::WrongType => "wrong_type",
            Self::MalformedJson => "malformed_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooLong => "too_long",
            Self::Tombstone => "tombstone",
            Self::MalformedBinary => "malformed_binary",
            Self::UnknownSchema => "unknown_schema",
            Self::Forgotten => "forgotten",
        }
    }
}

/// The table properties of [`SEQUENCES`] and [`REFRESH`] that say how their lists were computed.
pub mod properties {
    /// `Δτ` in milliseconds, or `off`.
    pub const DELTA_TAU_MS: &str = "delta_tau_ms";
    /// The gap that starts a session, in milliseconds.
    pub const SESSION_GAP_MS: &str = "session_gap_ms";
    /// The gap that starts a request batch where none is logged, in milliseconds.
    pub const BATCH_GAP_MS: &str = "batch_gap_ms";
    /// `file-order` or `shuffled`.
    pub const TIE_POLICY: &str = "tie_policy";
    /// The longest row.
    pub const MAX_LEN: &str = "max_len";
    /// The version of `events` that was read.
    pub const EVENTS_VERSION: &str = "events_version";
    /// The version of `items` that was read.
    pub const ITEMS_VERSION: &str = "items_version";
    /// Hash of the configuration that decided the rows.
    pub const CONFIG_HASH: &str = "config_hash";
    /// Within how many days equal ids are one event: in `events`, the fewest that a writer has looked at. A table that does not
    /// say it looked at each date by itself.
    pub const DEDUP_DAYS: &str = "dedup_days";
    /// Event ids that several users share within [`DEDUP_DAYS`], at [`EVENTS_VERSION`]. Each is 16 hexadecimal digits, of the date
    /// and the hash. A table without this property did not look, or found too many.
    pub const SHARED_EVENT_IDS: &str = "shared_event_ids";
    /// The settings that [`CONFIG_HASH`] is the hash of: `[sequences]` as TOML; in `instructions`, its own as JSON.
    pub const SETTINGS: &str = "settings";
    /// `sft/<condition>`: the attribute or derived condition.
    pub const CONDITION: &str = "condition";
    /// `sft/<condition>`: the ages of a derived condition.
    pub const AGE: &str = "age";
    /// `refresh`: events committed after this version of `events` are new.
    pub const SINCE_VERSION: &str = "since_version";
    /// How many request intervals the log has; the three below are there when it has any.
    pub const REQUEST_INTERVALS: &str = "request_intervals";
    /// Their mean in milliseconds, the `Δτ` that they suggest.
    pub const REQUEST_INTERVAL_MEAN_MS: &str = "request_interval_mean_ms";
    /// Their median in milliseconds.
    pub const REQUEST_INTERVAL_MEDIAN_MS: &str = "request_interval_median_ms";
    /// Their 90th percentile in milliseconds.
    pub const REQUEST_INTERVAL_P90_MS: &str = "request_interval_p90_ms";
}
