//! `[events]`, `[items]` and `[sequences]`: what the pipeline reads and how it cuts histories.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ConfigError, Span, invalid};
use crate::history::{DeltaTau, Split};
use crate::memory::MemorySize;
use crate::tables::ITEM_COLUMNS;

/// `[events]`: the interaction log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Files or glob patterns; `.csv`, `.jsonl`/`.ndjson`, `.parquet`, each also with `.gz` or `.zst`.
    pub paths: Vec<String>,
    /// The files' format, where their names do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Which column of the source holds what. Defaults to the names of the `events` table.
    pub columns: EventColumns,
    /// Values for fields that the source has no column for (or no value in a record), such as
    /// `action = "rating"`. Where there is neither a column nor a constant, every action is `event`.
    pub constants: BTreeMap<String, String>,
    /// Unit of numeric times, or `rfc3339` for text.
    pub ts_unit: TimeUnit,
    /// The first instant that is believable; an earlier event is a dead letter.
    pub earliest: DateTime<Utc>,
    /// The first instant that is not believable any more; that and every later event is a dead letter.
    pub latest: DateTime<Utc>,
    /// Whether times that cannot be meant stop the run with a question, before anything is committed: all times of a
    /// file lie before 2000 (seconds read as milliseconds), or in steps of 128 s (times that were 32-bit floats). Set it
    /// to `false` for a log that is meant so. `pipeline consume` looks at the first events after its start.
    pub check_times: bool,
    /// Longest record accepted, in bytes; a longer one is a dead letter with its first so many bytes. Also
    /// that of the catalogue.
    pub max_record_bytes: usize,
    /// Largest size to which a packed Parquet file (`.parquet.gz`, `.parquet.zst`) is unpacked, in the directory for
    /// temporary files; a larger one stops the run. Also that of the catalogue's files.
    pub max_unpacked_bytes: MemorySize,
    /// Events with one `event_id` whose dates lie at most so many days apart are one event: the first of a run by file and
    /// row, or offset, is stored, if none is stored yet; a later one is a duplicate. What got past it (a message that was
    /// sent again more than so many days after its time is not looked for), builds count once by the same rule. 0: on one date only.
    pub dedup_days: u32,
    /// A run in which a larger share of the log's records are dead letters, or of the catalogue's, stops and
    /// commits nothing.
    pub max_dead_letter_rate: f64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            format: None,
            columns: EventColumns::default(),
            constants: BTreeMap::new(),
            ts_unit: TimeUnit::Ms,
            earliest: DateTime::UNIX_EPOCH,
            latest: DateTime::from_timestamp(4_102_444_800, 0).unwrap_or(DateTime::<Utc>::MAX_UTC),
            check_times: true,
            max_record_bytes: 1 << 20,
            max_unpacked_bytes: MemorySize::bytes(16 << 30),
            dedup_days: 2,
            max_dead_letter_rate: 0.01,
        }
    }
}

/// Formats of input files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// Parquet.
    Parquet,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Csv, Self::Jsonl, Self::Parquet];

    /// What names of its files end with.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Csv => &["csv"],
            Self::Jsonl => &["jsonl", "ndjson"],
            Self::Parquet => &["parquet"],
        }
    }

    /// The bytes that every one of its files begins with; `None` where there are none such.
    pub fn magic(self) -> Option<&'static [u8]> {
        match self {
            Self::Csv | Self::Jsonl => None,
            Self::Parquet => Some(b"PAR1"),
        }
    }

    /// The name in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Csv => "CSV",
            Self::Jsonl => "JSON Lines",
            Self::Parquet => "Parquet",
        }
    }
}

/// Units of times in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Seconds since the epoch.
    S,
    /// Milliseconds since the epoch.
    Ms,
    /// Microseconds since the epoch.
    Us,
    /// Nanoseconds since the epoch.
    Ns,
    /// Text such as `2026-11-22T08:30:00Z`.
    Rfc3339,
}

/// `[events.columns]`: the source's name for each field of the `events` table.
///
/// Required fields default to the table's own names. An optional field that is not set is read from the
/// column of its own name where the source has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventColumns {
    /// Who.
    pub user_id: String,
    /// What.
    pub item_id: String,
    /// When, in `ts_unit`.
    pub ts: String,
    /// The producer's identity of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The retrieval request that exposed the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When that request was served, in `ts_unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_ts: Option<String>,
    /// `play`, `click`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Rating, seconds listened, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Default for EventColumns {
    fn default() -> Self {
        Self {
            user_id: "user_id".into(),
            item_id: "item_id".into(),
            ts: "ts".into(),
            event_id: None,
            request_id: None,
            request_ts: None,
            action: None,
            value: None,
        }
    }
}

impl Events {
    /// Fields that `constants` may give.
    const CONSTANT_FIELDS: [&str; 2] = ["action", "value"];

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if let Some(name) = self.constants.keys().find(|k| !Self::CONSTANT_FIELDS.contains(&k.as_str())) {
            return invalid(
                format!("events.constants.{name}"),
                format!("only {} can be constants", Self::CONSTANT_FIELDS.join(" and ")),
            );
        }
        if let Some(value) = self.constants.get("value")
            && value.parse::<f64>().is_err()
        {
            return invalid("events.constants.value", format!("`{value}` is not a number"));
        }
        if self.earliest >= self.latest {
            return invalid("events.earliest", "must lie before events.latest");
        }
        if !(0.0..=1.0).contains(&self.max_dead_letter_rate) {
            return invalid("events.max_dead_letter_rate", "must lie between 0 and 1");
        }
        if self.max_record_bytes == 0 {
            return invalid("events.max_record_bytes", "must be positive");
        }
        Ok(())
    }
}

/// `[items]`: the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Items {
    /// Files or glob patterns, as for events.
    pub paths: Vec<String>,
    /// The files' format, where their names do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Which column of the source holds what.
    pub columns: ItemColumns,
    /// Unit of `release_ts`, or `rfc3339` for text.
    pub ts_unit: TimeUnit,
    /// The categorical attributes: each becomes a list column of the `items` table.
    pub attributes: BTreeMap<String, Attribute>,
}

impl Default for Items {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            format: None,
            columns: ItemColumns::default(),
            ts_unit: TimeUnit::Ms,
            attributes: BTreeMap::new(),
        }
    }
}

/// `[items.columns]`: the source's name for each field of the `items` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ItemColumns {
    /// Which item.
    pub item_id: String,
    /// Its name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// When it was released, in `items.ts_unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_ts: Option<String>,
    /// `false` for a delisted item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
}

impl Default for ItemColumns {
    fn default() -> Self {
        Self { item_id: "item_id".into(), title: None, release_ts: None, active: None }
    }
}

/// `[items.attributes.NAME]`: one categorical attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attribute {
    /// The source's column; the attribute's own name where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What separates several values inside one text, such as `|`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Values that mean "none", such as `(no genres listed)`.
    pub none: Vec<String>,
}

impl Items {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (name, attribute) in &self.attributes {
            let key = || format!("items.attributes.{name}");
            if ITEM_COLUMNS.contains(&name.as_str()) {
                return invalid(key(), "is the name of a column that every items table has; choose another");
            }
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
                return invalid(key(), "attribute names are letters, digits, `_` and `-`");
            }
            if attribute.separator.as_deref() == Some("") {
                return invalid(key(), "an empty separator separates nothing; leave it out");
            }
        }
        Ok(())
    }
}

/// `[sequences]`: how events become rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sequences {
    /// Actions that become sequence items; all of them where the list is empty.
    pub actions: Vec<String>,
    /// A longer gap between two events starts a new session.
    pub session_gap: Span,
    /// Where no request is logged, events no further apart than this form one request batch.
    pub batch_gap: Span,
    /// The safe margin of the time-aware mask: a duration, `"off"`, or `"auto"`: the mean of the logged
    /// request intervals.
    pub delta_tau: DeltaTauSetting,
    /// Longest row, in positions.
    pub max_len: usize,
    /// The order of events at the same time.
    pub ties: Ties,
    /// Seed of the `shuffled` order.
    pub tie_seed: u64,
    /// Which events are held out.
    pub split: SplitKind,
    /// `last-n`: how many events are the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_n: Option<usize>,
    /// `temporal`: first instant of the validation period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_from: Option<DateTime<Utc>>,
    /// `temporal`: first instant of the test period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_from: Option<DateTime<Utc>>,
    /// `none`: share of the users whose events are never learned and guard the published model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_share: Option<f64>,
    /// Share of the events that are instruction-tuning targets and never pre-training ones.
    pub sft_share: f64,
    /// Number of shards; users are assigned by hash.
    pub shards: usize,
}

impl Default for Sequences {
    fn default() -> Self {
        Self {
            actions: Vec::new(),
            session_gap: Span::minutes(30),
            batch_gap: Span::seconds(1),
            delta_tau: DeltaTauSetting::Fixed(DeltaTau::Margin(Span::minutes(15).ms)),
            max_len: 200,
            ties: Ties::FileOrder,
            tie_seed: 0,
            split: SplitKind::LeaveOneOut,
            last_n: None,
            validation_from: None,
            test_from: None,
            guard_share: None,
            sft_share: 0.0,
            shards: 8,
        }
    }
}

/// The order of events at the same time; it is printed with every result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ties {
    /// As they stand in their source.
    FileOrder,
    /// By a seeded hash of the event id.
    Shuffled,
}

impl Ties {
    /// The name as configured and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::FileOrder => "file-order",
            Self::Shuffled => "shuffled",
        }
    }
}

/// Names of the splits; [`Sequences::split`] gives the split with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitKind {
    /// [`Split::LeaveOneOut`].
    LeaveOneOut,
    /// [`Split::LastN`].
    LastN,
    /// [`Split::Temporal`].
    Temporal,
    /// [`Split::None`].
    None,
}

/// [`DeltaTau`] as configured: `"15m"`, `"off"`, or `"auto"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeltaTauSetting {
    /// The mean of the logged request intervals, measured by every build. An error where the log has too few.
    Auto,
    /// As given.
    Fixed(DeltaTau),
}

impl DeltaTauSetting {
    /// The margin that needs no measuring.
    pub fn fixed(self) -> Option<DeltaTau> {
        match self {
            Self::Auto => None,
            Self::Fixed(delta_tau) => Some(delta_tau),
        }
    }
}

impl TryFrom<String> for DeltaTauSetting {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Fixed(DeltaTau::Off)),
            "auto" => Ok(Self::Auto),
            _ => match Span::try_from(text) {
                Ok(span) => Ok(Self::Fixed(DeltaTau::Margin(span.ms))),
                Err(problem) => Err(format!("{problem}; or `off`, or `auto`")),
            },
        }
    }
}

impl From<DeltaTauSetting> for String {
    fn from(setting: DeltaTauSetting) -> Self {
        match setting {
            DeltaTauSetting::Auto => "auto".into(),
            DeltaTauSetting::Fixed(DeltaTau::Off) => "off".into(),
            DeltaTauSetting::Fixed(DeltaTau::Margin(ms)) => Span { ms }.to_string(),
        }
    }
}

impl Sequences {
    /// The configured split with its numbers.
    ///
    /// Validated configurations have them all; a missing one is an error naming the key.
    pub fn split(&self) -> Result<Split, ConfigError> {
        let missing = |key: &str| ConfigError::Invalid {
            key: format!("sequences.{key}"),
            problem: "is needed by the configured sequences.split".into(),
        };
        Ok(match self.split {
            SplitKind::LeaveOneOut => Split::LeaveOneOut,
            SplitKind::LastN => Split::LastN(self.last_n.ok_or_else(|| missing("last_n"))?),
            SplitKind::Temporal => Split::Temporal {
                validation_from: self
                    .validation_from
                    .ok_or_else(|| missing("validation_from"))?
                    .timestamp_millis(),
                test_from: self.test_from.ok_or_else(|| missing("test_from"))?.timestamp_millis(),
            },
            SplitKind::None => {
                Split::None { guard_share: self.guard_share.ok_or_else(|| missing("guard_share"))? }
            }
        })
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.max_len < 4 {
            return invalid("sequences.max_len", "must be at least 4");
        }
        if !(0.0..=1.0).contains(&self.sft_share) {
            return invalid("sequences.sft_share", "must lie between 0 and 1");
        }
        if self.shards == 0 || self.shards > 4096 {
            return invalid("sequences.shards", "must lie between 1 and 4096");
        }
        let wanted = |kind, key: &str, set: bool| {
            if set && self.split != kind {
                return invalid(
                    format!("sequences.{key}"),
                    "does not belong to the configured sequences.split",
                );
            }
            Ok(())
        };
        wanted(SplitKind::LastN, "last_n", self.last_n.is_some())?;
        wanted(SplitKind::Temporal, "validation_from", self.validation_from.is_some())?;
        wanted(SplitKind::Temporal, "test_from", self.test_from.is_some())?;
        wanted(SplitKind::None, "guard_share", self.guard_share.is_some())?;
        match self.split()? {
            Split::LastN(n) if n == 0 || n + 1 > self.max_len / 2 => invalid(
                "sequences.last_n",
                format!("must lie between 1 and max_len / 2 - 1, which is {}", self.max_len / 2 - 1),
            ),
            Split::Temporal { validation_from, test_from } if validation_from >= test_from => {
                invalid("sequences.validation_from", "must lie before sequences.test_from")
            }
            Split::None { guard_share } if !(0.0..1.0).contains(&guard_share) => {
                invalid("sequences.guard_share", "must be at least 0 and below 1")
            }
            _ => Ok(()),
        }
    }
}
