//! The tables of a root: names, columns and codes.
//!
//! Names and types are a public interface: other programs read the same Parquet shards.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

/// Accepted interactions, partitioned by [`EVENT_DATE`].
pub const EVENTS: &str = "events";
/// Item catalogue.
pub const ITEMS: &str = "items";
/// Rejected input records.
pub const DEAD_LETTERS: &str = "dead_letters";
/// Rejected records that were sent to a topic again.
pub const REPLAYS: &str = "replays";
/// Forgotten users, as keyed hashes; their records are not accepted again.
pub const FORGOTTEN: &str = "forgotten";
/// Windows of users' histories.
pub const SEQUENCES: &str = "sequences";
/// Windows that own a new event, for incremental refreshes of a model; columns as in [`SEQUENCES`].
pub const REFRESH: &str = "refresh";
/// Recall instructions of each user.
pub const INSTRUCTIONS: &str = "instructions";
/// Partition column of [`EVENTS`]: the UTC date of `ts`.
pub const EVENT_DATE: &str = "event_date";

/// Index that means "no item"; items count from 1.
pub const NO_ITEM: u32 = 0;

/// Type of every instant in the tables: epoch milliseconds, UTC.
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

/// Column of [`EVENTS`]: the event's place in the list of its source's record, from 0; null for a record that is one event. Events
/// of one record share its position, and stand in this order. Tables of version 0.1 have no such column.
pub const ELEMENT: &str = "element";

/// Bits of the largest [`ELEMENT`].
pub const ELEMENT_BITS: u32 = 20;

/// Columns of [`EVENTS`]. One row per accepted interaction.
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
        optional(ELEMENT, DataType::Int32),
        required(EVENT_DATE, DataType::Date32),
    ]))
});

/// Columns of [`ITEMS`]. One row per item; each name in `attributes`, the configured categorical ones, is a column of lists of
/// values.
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

/// Columns of [`items_schema`] that are not attributes.
pub const ITEM_COLUMNS: [&str; 5] = ["item_id", "item_index", "title", "release_ts", "active"];

/// Columns of [`DEAD_LETTERS`]. One row per rejected record, with its original bytes.
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

/// Columns of [`REPLAYS`]. One row per rejected record that was sent to a topic again and acknowledged; `source` and `position`
/// as in [`DEAD_LETTERS`].
pub static REPLAYS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("topic", DataType::Utf8),
        required("source", DataType::Utf8),
        required("position", DataType::Int64),
        required("replayed_at", timestamp()),
    ]))
});

/// Columns of [`FORGOTTEN`]. One row per forgotten user.
pub static FORGOTTEN_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![required("user_hash", DataType::Utf8), required("forgotten_at", timestamp())]))
});

/// Columns of [`SEQUENCES`] and [`REFRESH`]. One row per window of a user's history; the lists of a row have equal length.
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

/// Name of the table with the instruction examples of an attribute or derived condition.
pub fn sft_table(condition: &str) -> String {
    format!("sft/{condition}")
}

/// Returns true if the table holds instruction examples.
pub fn is_sft(table: &str) -> bool {
    table.strip_prefix(&sft_table("")).is_some_and(|condition| !condition.is_empty())
}

/// Columns of the `sft/` tables. One row per instruction example (Eq. 6): a target, the history before it, and a value of the
/// condition that the target carries. The lists of a row have equal length.
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

/// Columns of [`INSTRUCTIONS`]. One row per user: the conditions met most often in the window, and each one's share.
pub static INSTRUCTIONS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        required("user_id", DataType::Utf8),
        required("attributes", list(DataType::Utf8)),
        required("conditions", list(DataType::Utf8)),
        required("weights", list(DataType::Float32)),
        required("as_of", timestamp()),
    ]))
});

/// Returns the columns of a table that grows by appended shards and therefore keeps its columns; `None` for other tables.
pub fn appended_schema(table: &str) -> Option<&'static SchemaRef> {
    match table {
        EVENTS => Some(&EVENTS_SCHEMA),
        DEAD_LETTERS => Some(&DEAD_LETTERS_SCHEMA),
        REPLAYS => Some(&REPLAYS_SCHEMA),
        FORGOTTEN => Some(&FORGOTTEN_SCHEMA),
        _ => None,
    }
}

/// Returns the partition columns of a table that this module declares.
pub fn partition_columns(table: &str) -> Option<&'static [&'static str]> {
    match table {
        EVENTS => Some(&[EVENT_DATE]),
        ITEMS | DEAD_LETTERS | REPLAYS | FORGOTTEN | SEQUENCES | REFRESH | INSTRUCTIONS => Some(&[]),
        _ if table.starts_with(&sft_table("")) => Some(&[]),
        _ => None,
    }
}

/// Returns a column that this module declares, with the type in which every reader gets it, whatever type its shards have.
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

/// Reason for rejecting an input record: the codes of `dead_letters.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A required field is absent, null or empty.
    MissingField,
    /// A time does not parse in the configured unit.
    InvalidTime,
    /// A time lies outside the configured range.
    TimeOutOfRange,
    /// A field does not have its column's type, or a CSV record has another width than the header, or quotes that do not pair up.
    WrongType,
    /// The record is not JSON, or not an object.
    MalformedJson,
    /// The bytes are not UTF-8.
    InvalidUtf8,
    /// The record is longer than the configured limit.
    TooLong,
    /// The message has no value: a deletion of its key, not an interaction.
    Tombstone,
    /// The message does not decode with the Avro or Protobuf schema that it names or that is configured.
    MalformedBinary,
    /// The registry does not have the message's schema, or the schema cannot be read.
    UnknownSchema,
    /// The user was forgotten; such records are counted but never stored.
    Forgotten,
}

impl Reason {
    /// Every stored reason, in the order above.
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

    /// Returns the code in the table.
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

/// Keys of table properties that record how rows were computed; most belong to [`SEQUENCES`] and [`REFRESH`].
pub mod properties {
    /// `Δτ` in milliseconds, or `off`.
    pub const DELTA_TAU_MS: &str = "delta_tau_ms";
    /// Gap that starts a session, in milliseconds.
    pub const SESSION_GAP_MS: &str = "session_gap_ms";
    /// Gap that starts a request batch where no request is logged, in milliseconds.
    pub const BATCH_GAP_MS: &str = "batch_gap_ms";
    /// `file-order` or `shuffled`.
    pub const TIE_POLICY: &str = "tie_policy";
    /// Maximum positions per row.
    pub const MAX_LEN: &str = "max_len";
    /// Version of `events` that was read.
    pub const EVENTS_VERSION: &str = "events_version";
    /// Version of `items` that was read.
    pub const ITEMS_VERSION: &str = "items_version";
    /// Hash of the configuration that determines the rows.
    pub const CONFIG_HASH: &str = "config_hash";
    /// Days within which equal event ids are one event; in `events`, the smallest number that any writer used. Without this
    /// property, each date was deduplicated by itself.
    pub const DEDUP_DAYS: &str = "dedup_days";
    /// Event ids that several users share within [`DEDUP_DAYS`], at [`EVENTS_VERSION`]: 16 hexadecimal digits of date and hash
    /// for each, separated by spaces. Missing if the build did not look, or found too many.
    pub const SHARED_EVENT_IDS: &str = "shared_event_ids";
    /// Settings whose hash is [`CONFIG_HASH`]: `[sequences]` as TOML; for `instructions`, its own settings as JSON.
    pub const SETTINGS: &str = "settings";
    /// In `sft/<condition>`: the attribute or derived condition.
    pub const CONDITION: &str = "condition";
    /// In `sft/<condition>`: the age range of a derived condition.
    pub const AGE: &str = "age";
    /// In `refresh`: the version of `events` after which events are new.
    pub const SINCE_VERSION: &str = "since_version";
    /// Number of request intervals in the log. The three properties below exist if it is not 0.
    pub const REQUEST_INTERVALS: &str = "request_intervals";
    /// Mean request interval in milliseconds, the suggested `Δτ`.
    pub const REQUEST_INTERVAL_MEAN_MS: &str = "request_interval_mean_ms";
    /// Median request interval in milliseconds.
    pub const REQUEST_INTERVAL_MEDIAN_MS: &str = "request_interval_median_ms";
    /// 90th percentile of request intervals in milliseconds.
    pub const REQUEST_INTERVAL_P90_MS: &str = "request_interval_p90_ms";
}
