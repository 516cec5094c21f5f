//! `[events]`, `[items]` and `[sequences]`: the pipeline's inputs, and how it cuts histories into rows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, Dialect, Explode, Span, TimeFormat, Zone, invalid};
use crate::history::{AtMostOnce, DeltaTau, LogFilters, Split};
use crate::memory::MemorySize;
use crate::tables::ITEM_COLUMNS;

/// `[events]`: the interaction log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Files, directories or glob patterns (`**` for any directories); `-` for standard input, which needs `format`. Files are
    /// `.csv`, `.tsv`, `.inter`, `.item`, `.jsonl`, `.ndjson`, `.parquet`, `.arrow`, `.feather`, `.ipc` or `.arrows`, each also with
    /// `.gz`, `.zst`, `.bz2` or `.xz`. A directory means all files in it and in its directories whose names say their format (or
    /// all, if `format` is set), but none that is hidden or begins with `_`; a directory with a `_delta_log` means the Delta
    /// table's files at its newest version, `TABLE@7` those at version 7. Directories `key=value` below the given one, or
    /// below a pattern's part without wildcards, are columns of the files in them, and hide columns of the same names.
    pub paths: Vec<String>,
    /// Format of the files; needed if their names do not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How files of delimited text are written.
    #[serde(skip_serializing_if = "Dialect::is_default")]
    pub csv: Dialect,
    /// Column of the source for each field; defaults to the names of the `events` table.
    pub columns: EventColumns,
    /// How records that hold several events are taken apart.
    #[serde(skip_serializing_if = "Explode::is_default")]
    pub explode: Explode,
    /// Names of actions by what the source writes, such as `{ "0" = "impression", "1" = "click" }`; others stay as they are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub action_names: BTreeMap<String, String>,
    /// Values for fields that the source or a record lacks, such as `action = "rating"`. An action with neither column nor
    /// constant is `event`.
    pub constants: BTreeMap<String, String>,
    /// How times are written: `auto`, a unit for numbers (`s`, `ms`, `us`, `ns`), `iso`, `rfc3339`, or a pattern of `strftime`
    /// such as `%m/%d/%Y %I:%M:%S %p`. Earlier name: `ts_unit`.
    #[serde(alias = "ts_unit")]
    pub ts_format: TimeFormat,
    /// Zone of times that name none, such as `Europe/Berlin`; default UTC. Of an hour that clocks repeat, the earlier one is
    /// meant; a time in an hour that they skip is a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ts_zone: Option<Zone>,
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
    /// Largest size to which a compressed Parquet file (such as `.parquet.gz`), or one from standard input, is unpacked in the
    /// directory for temporary files, of events and catalogue; a larger one stops the run.
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
            csv: Dialect::default(),
            columns: EventColumns::default(),
            explode: Explode::default(),
            action_names: BTreeMap::new(),
            constants: BTreeMap::new(),
            ts_format: TimeFormat::Auto,
            ts_zone: None,
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
    /// Delimited text: comma-separated values with a header, or another [`Dialect`].
    Csv,
    /// One JSON object per line.
    Jsonl,
    /// Parquet.
    Parquet,
    /// Arrow IPC, as a stream or a file (Feather, version 2).
    Arrow,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Csv, Self::Jsonl, Self::Parquet, Self::Arrow];

    /// Returns the extensions of its files.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Csv => &["csv", "tsv", "inter", "item"],
            Self::Jsonl => &["jsonl", "ndjson"],
            Self::Parquet => &["parquet"],
            Self::Arrow => &["arrow", "feather", "ipc", "arrows"],
        }
    }

    /// Returns the first bytes by which a file of the format is recognized; an Arrow stream has none.
    pub fn magic(self) -> Option<&'static [u8]> {
        match self {
            Self::Csv | Self::Jsonl => None,
            Self::Parquet => Some(b"PAR1"),
            Self::Arrow => Some(b"ARROW1"),
        }
    }

    /// The name in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Csv => "CSV",
            Self::Jsonl => "JSON Lines",
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
        }
    }
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
    /// Time of the event, written as `ts_format` says; or its date, if `time_of_day` names another column.
    pub ts: String,
    /// Time of day of the event. It is put behind the date, with a blank between, and both are read as one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_of_day: Option<String>,
    /// Producer's id of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Id of the retrieval request that exposed the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Time at which that request was served, written as `ts_format` says.
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
            time_of_day: None,
            event_id: None,
            request_id: None,
            request_ts: None,
            action: None,
            value: None,
        }
    }
}

impl EventColumns {
    /// Returns the columns that fields are read from, where a source has them.
    pub(super) fn in_use(&self) -> Vec<&str> {
        let Self { user_id, item_id, ts, time_of_day, event_id, request_id, request_ts, action, value } =
            self;
        let optional = [
            ("event_id", event_id),
            ("request_id", request_id),
            ("request_ts", request_ts),
            ("action", action),
            ("value", value),
        ];
        let named = optional.into_iter().map(|(name, column)| column.as_deref().unwrap_or(name));
        let required = [user_id, item_id, ts].into_iter().map(String::as_str);
        required.chain(time_of_day.as_deref()).chain(named).collect()
    }
}

impl Events {
    /// Fields that `constants` may set.
    const CONSTANT_FIELDS: [&str; 2] = ["action", "value"];

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.csv.validate("events")?;
        self.explode.validate(self)?;
        if let Some((written, _)) = self.action_names.iter().find(|(_, name)| name.trim().is_empty()) {
            return invalid(format!("events.action_names.{written}"), "is no name");
        }
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
    /// Files, directories or glob patterns, as for events.
    pub paths: Vec<String>,
    /// Format of the files; needed if their names do not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How files of delimited text are written.
    #[serde(skip_serializing_if = "Dialect::is_default")]
    pub csv: Dialect,
    /// Column of the source for each field.
    pub columns: ItemColumns,
    /// How `release_ts` is written, as in `events.ts_format`.
    #[serde(alias = "ts_unit")]
    pub ts_format: TimeFormat,
    /// Zone of release times that name none, as in `events.ts_zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ts_zone: Option<Zone>,
    /// Categorical attributes: each becomes a list column of the `items` table.
    pub attributes: BTreeMap<String, Attribute>,
}

impl Default for Items {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            format: None,
            csv: Dialect::default(),
            columns: ItemColumns::default(),
            ts_format: TimeFormat::Auto,
            ts_zone: None,
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
    /// Release time.
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
        self.csv.validate("items")?;
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
    /// Actions that become sequence items; all if empty. The first of the filters, which follow each other in this order:
    /// `actions`, `min_value`, `from` and `until`, `at_most_once`, `min_user_events` and `min_item_events`. The tables `events`
    /// and `items` keep what the filters take out.
    pub actions: Vec<String>,
    /// Smallest value of an event; an event without a value does not reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_value: Option<f64>,
    /// First instant of the events that are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<DateTime<Utc>>,
    /// First instant after them; must lie after `from`, and after `test_from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// One event of each user and item: the `"first"` (or `true`) or the `"last"` in the order of the history.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "at_most_once")]
    pub at_most_once: Option<AtMostOnce>,
    /// Minimum events of a user, counted after all filters before. With `min_item_events`: the k-core, in rounds until every user
    /// and every item that is left has its minimum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_user_events: Option<u32>,
    /// Minimum events of an item, counted after all filters before. `build-sequences --since` then reads the whole log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_item_events: Option<u32>,
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
            min_value: None,
            from: None,
            until: None,
            at_most_once: None,
            min_user_events: None,
            min_item_events: None,
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

/// Reads `at_most_once`: a name, or `true` for the first and `false` for no such filter.
fn at_most_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AtMostOnce>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Flag(bool),
        Name(String),
    }
    match Written::deserialize(deserializer) {
        Ok(Written::Flag(flag)) => Ok(flag.then_some(AtMostOnce::First)),
        Ok(Written::Name(name)) if name == "first" => Ok(Some(AtMostOnce::First)),
        Ok(Written::Name(name)) if name == "last" => Ok(Some(AtMostOnce::Last)),
        _ => Err(D::Error::custom("at_most_once is \"first\", \"last\", true or false")),
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

    /// Returns the configured filters.
    pub fn filters(&self) -> LogFilters {
        let ms = |time: Option<DateTime<Utc>>| time.map(|time| time.timestamp_millis());
        LogFilters {
            actions: self.actions.clone(),
            min_value: self.min_value,
            from_ms: ms(self.from),
            until_ms: ms(self.until),
            at_most_once: self.at_most_once,
            min_user_events: self.min_user_events,
            min_item_events: self.min_item_events,
        }
    }

    fn validate_filters(&self) -> Result<(), ConfigError> {
        if self.min_value.is_some_and(|min| !min.is_finite()) {
            return invalid("sequences.min_value", "must be a finite number");
        }
        if let (Some(from), Some(until)) = (self.from, self.until)
            && from >= until
        {
            return invalid("sequences.from", "must lie before sequences.until");
        }
        if let (Some(test_from), Some(until)) = (self.test_from, self.until)
            && test_from >= until
        {
            return invalid("sequences.until", "must lie after sequences.test_from, or no event is tested");
        }
        for (key, min) in
            [("min_user_events", self.min_user_events), ("min_item_events", self.min_item_events)]
        {
            if min == Some(0) {
                return invalid(
                    format!("sequences.{key}"),
                    "must be at least 1; leave it out for no minimum",
                );
            }
        }
        Ok(())
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.validate_filters()?;
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
