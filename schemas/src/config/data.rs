//! `[events]`, `[items]` and `[sequences]`: the pipeline's inputs, and how it cuts histories into rows.

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
    /// Format of the files; needed if their names do not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Column of the source for each field; defaults to the names of the `events` table.
    pub columns: EventColumns,
    /// Values for fields that the source or a record lacks, such as `action = "rating"`. An action with neither column nor
    /// constant is `event`.
    pub constants: BTreeMap<String, String>,
    /// Unit of numeric times, or `rfc3339` for text.
    pub ts_unit: TimeUnit,
    /// First plausible instant; earlier events are dead letters.
    pub earliest: DateTime<Utc>,
    /// First instant that is too late; events from then on are dead letters.
    pub latest: DateTime<Utc>,
    /// Whether implausible times stop the run with a question before anything is committed: all times of a file lie before 2000
    /// (seconds read as milliseconds), or in steps of 128 s (times that were 32-bit floats). Set to `false` for a log that
    /// is meant so. `pipeline consume` checks the first events after its start.
    pub check_times: bool,
    /// Longest record in bytes, of events and catalogue. A longer one is a dead letter, cut to this length.
    pub max_record_bytes: usize,
    /// Largest size to which a compressed Parquet file (`.parquet.gz`, `.parquet.zst`) of events or catalogue is unpacked in the
    /// directory for temporary files; a larger one stops the run.
    pub max_unpacked_bytes: MemorySize,
    /// Events with equal `event_id` whose dates are at most this many days apart are one event; 0: on the same date only. The
    /// first in a run, by file and row or by offset, is stored if none is stored yet; later ones are duplicates. A message resent
    /// more than this many days after its time is stored again, but builds count it once by the same rule.
    pub dedup_days: u32,
    /// Largest share of dead letters among a run's records of the log, or of the catalogue; above it the run stops and commits
    /// nothing.
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
    /// One JSON object per line.
    Jsonl,
    /// Parquet.
    Parquet,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Csv, Self::Jsonl, Self::Parquet];

    /// Returns the extensions of its files.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Csv => &["csv"],
            Self::Jsonl => &["jsonl", "ndjson"],
            Self::Parquet => &["parquet"],
        }
    }

    /// Returns the first bytes of every file of the format, if they are fixed.
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

/// Unit of times in a source.
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

/// `[events.columns]`: the source's column for each field of the `events` table.
///
/// Required fields default to the table's names. An optional field that is not set is read from the column of its own name, if
/// the source has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventColumns {
    /// User.
    pub user_id: String,
    /// Item.
    pub item_id: String,
    /// Time of the event, in `ts_unit`.
    pub ts: String,
    /// Producer's id of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Id of the retrieval request that exposed the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Time at which that request was served, in `ts_unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_ts: Option<String>,
    /// Action: `play`, `click`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Value: a rating, seconds listened, …
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
    /// Fields that `constants` may set.
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
    /// Format of the files; needed if their names do not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Column of the source for each field.
    pub columns: ItemColumns,
    /// Unit of `release_ts`, or `rfc3339` for text.
    pub ts_unit: TimeUnit,
    /// Categorical attributes: each becomes a list column of the `items` table.
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

/// `[items.columns]`: the source's column for each field of the `items` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ItemColumns {
    /// Item id.
    pub item_id: String,
    /// Name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Release time, in `items.ts_unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_ts: Option<String>,
    /// `false` for delisted items.
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
    /// Column of the source; defaults to the attribute's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Separator between several values in one text, such as `|`.
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
    /// Actions that become sequence items; all if empty.
    pub actions: Vec<String>,
    /// Gap between two events beyond which a new session starts.
    pub session_gap: Span,
    /// Largest gap between events of one request batch, where no request is logged.
    pub batch_gap: Span,
    /// Safe margin `Δτ` of the time-aware mask: a duration, `"off"`, or `"auto"` for the mean logged request interval.
    pub delta_tau: DeltaTauSetting,
    /// Longest row, in positions.
    pub max_len: usize,
    /// Order of events at the same time.
    pub ties: Ties,
    /// Seed of the `shuffled` order.
    pub tie_seed: u64,
    /// Rule that holds out events.
    pub split: SplitKind,
    /// `last-n`: number of test events per user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_n: Option<usize>,
    /// `temporal`: first instant of the validation period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_from: Option<DateTime<Utc>>,
    /// `temporal`: first instant of the test period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_from: Option<DateTime<Utc>>,
    /// `none`: share of users whose events are never trained on and guard the published model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_share: Option<f64>,
    /// Share of events that are targets of instruction tuning and never of pre-training.
    pub sft_share: f64,
    /// Number of shards; a hash assigns users.
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

/// Order of events at the same time; printed with every result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ties {
    /// As in their source.
    FileOrder,
    /// By a seeded hash of the event id.
    Shuffled,
}

impl Ties {
    /// Returns the name as configured and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::FileOrder => "file-order",
            Self::Shuffled => "shuffled",
        }
    }
}

/// Name of a split; [`Sequences::split`] returns the split with its numbers.
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
    /// The mean logged request interval, measured by every build; an error if the log has too few.
    Auto,
    /// A configured margin, or off.
    Fixed(DeltaTau),
}

impl DeltaTauSetting {
    /// Returns the margin unless it has to be measured.
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
    /// Returns the configured split with its numbers.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] names a missing number; a validated configuration has them all.
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
