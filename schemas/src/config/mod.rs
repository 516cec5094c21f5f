//! The configuration: one TOML file that all three programs read.
//!
//! Unknown keys are errors, and every rule across fields is checked here. The resolved configuration can be printed
//! ([`Config::to_toml`]); each checkpoint keeps it.

mod conditions;
mod data;
mod device;
mod dialect;
mod duration;
mod explode;
mod file_access;
mod forget;
mod jobs;
mod kafka;
mod memory;
mod model;
mod refresh;
mod sft;
mod times;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use conditions::{Age, Conditions, Instructions};
pub use data::{
    Attribute, DeltaTauSetting, EventColumns, Events, Format, ItemColumns, Items, Sequences, SplitKind, Ties,
};
pub use device::{DeviceSetting, Precision};
pub use dialect::Dialect;
pub use duration::Span;
pub use explode::{Chosen, Explode};
pub use file_access::FileAccess;
pub use forget::Forget;
pub use jobs::{Daily, Gate, NearRealTime, Retention, Unmeasured};
pub use kafka::{GroupProtocol, Kafka, MessageFormat, Recreated, Start};
pub use memory::Memory;
pub use model::{Architecture, Evaluate, Loss, MaskMode, Model, Pretrain, Schedule, Selection};
pub use refresh::Refresh;
pub use sft::{Paradigm, Sft};
pub use times::{Pattern, TimeFormat, TimeUnit, Zone};

use crate::hash::hash64;
use crate::secret::{self, HIDDEN, shown_setting};

/// All inputs of a run except its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of tables and models. Relative paths in the file are relative to the file.
    pub root: String,
    /// Device of the trainer: `cpu`, or `cuda:N` in a build with CUDA. A model can be used and trained further on either.
    pub device: DeviceSetting,
    /// Number format of matrix products and attention: `f32` or, on a GPU, `bf16`.
    pub precision: Precision,
    /// Seed of all randomness in training, and of the order of equal scores.
    pub seed: u64,
    /// Permissions of the files and directories that the programs create.
    pub file_access: FileAccess,
    /// Existing directory for temporary files: spilled data, and compressed Parquet files while they are unpacked. It should have
    /// room for the log; leftovers of a killed command may be deleted. Default: the system's (TMPDIR).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<String>,
    /// Memory budgets of the jobs.
    pub memory: Memory,
    /// Interaction log.
    pub events: Events,
    /// Topic with more of the log.
    pub kafka: Kafka,
    /// Erasure of users.
    pub forget: Forget,
    /// Item catalogue.
    pub items: Items,
    /// How events become rows.
    pub sequences: Sequences,
    /// Conditions of recommendations, and their examples for training.
    pub conditions: Conditions,
    /// Recall instructions of each user.
    pub instructions: Instructions,
    /// Architecture of the model.
    pub model: Model,
    /// Pre-training.
    pub pretrain: Pretrain,
    /// Further training on new events.
    pub refresh: Refresh,
    /// Fine-tuning on instructions.
    pub sft: Sft,
    /// Evaluation.
    pub evaluate: Evaluate,
    /// The daily job.
    pub daily: Daily,
    /// The near-real-time job, which follows the log.
    pub near_real_time: NearRealTime,
    /// Conditions for publishing.
    pub gate: Gate,
    /// What the daily job deletes.
    pub retention: Retention,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "runs".into(),
            device: DeviceSetting::Cpu,
            precision: Precision::F32,
            seed: 1,
            file_access: FileAccess::Umask,
            scratch: None,
            memory: Memory::default(),
            events: Events::default(),
            kafka: Kafka::default(),
            forget: Forget::default(),
            items: Items::default(),
            sequences: Sequences::default(),
            conditions: Conditions::default(),
            instructions: Instructions::default(),
            model: Model::default(),
            pretrain: Pretrain::default(),
            refresh: Refresh::default(),
            sft: Sft::default(),
            evaluate: Evaluate::default(),
            daily: Daily::default(),
            near_real_time: NearRealTime::default(),
            gate: Gate::default(),
            retention: Retention::default(),
        }
    }
}

/// A configuration that cannot be used; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Position and mistake, without the line's text if it may hold a secret.
        problem: String,
    },
    /// A `--set` argument is invalid.
    #[error("--set {setting}: {problem}")]
    Override {
        /// The argument, without secrets.
        setting: String,
        /// The mistake, without secrets.
        problem: String,
    },
    /// A value breaks a rule.
    #[error("{key}: {problem}")]
    Invalid {
        /// Dotted key.
        key: String,
        /// The rule that it breaks.
        problem: String,
    },
}

fn invalid<T>(key: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key: key.into(), problem: problem.into() })
}

impl Config {
    /// Returns the days within which `pipeline consume` deduplicates events: `kafka.dedup_days`, the former name, if set, else
    /// `events.dedup_days`.
    pub fn consumer_dedup_days(&self) -> u32 {
        self.kafka.dedup_days.unwrap_or(self.events.dedup_days)
    }

    /// Reads `path`, applies `overrides` in order (each `key=value`, the value in TOML or a bare word), and validates the result.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: the file cannot be read or parsed, or an override or value is invalid.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path, overrides)
    }

    /// Like [`load`](Self::load), of a text read from `path`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], except [`ConfigError::Read`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let parse = |error| ConfigError::Parse { path: path.into(), problem: parse_problem(text, &error) };
        // Parse twice: into the configuration for errors with line and column, and into the table that overrides change.
        let config = toml::from_str::<Self>(text).map_err(parse)?;
        let mut table: toml::Table = toml::from_str(text).map_err(parse)?;
        check_sections(&table, &config)
            .map_err(|problem| ConfigError::Parse { path: path.into(), problem })?;
        rebase(&mut table, path.parent().unwrap_or(Path::new("")));
        Self::resolve(table, overrides)
    }

    /// Returns the defaults with `overrides` applied, for commands without a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: an override or value is invalid.
    pub fn from_overrides(overrides: &[String]) -> Result<Self, ConfigError> {
        Self::resolve(toml::Table::new(), overrides)
    }

    fn resolve(mut table: toml::Table, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut config = deserialize(&table)
            .map_err(|problem| ConfigError::Invalid { key: "configuration".into(), problem })?;
        for setting in overrides {
            let fail = |problem: String| {
                let shown = shown_setting(setting);
                // The problem quotes the argument, so hide it too.
                let problem = if shown == *setting { problem } else { unquoted(problem) };
                ConfigError::Override { setting: shown, problem }
            };
            apply(&mut table, setting).map_err(fail)?;
            config = deserialize(&table).map_err(fail)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks the rules that types cannot express.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] names the first key that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.root.is_empty() {
            return invalid("root", "must name a directory");
        }
        if self.precision != Precision::F32 && self.device == DeviceSetting::Cpu {
            return invalid(
                "precision",
                "the CPU computes in 32-bit floats: set precision = \"f32\", or device = \"cuda:0\"",
            );
        }
        self.refuse_userinfo()?;
        self.memory.validate()?;
        self.events.validate()?;
        self.kafka.validate()?;
        self.items.validate()?;
        self.sequences.validate()?;
        let attributes: Vec<_> = self.items.attributes.keys().map(String::as_str).collect();
        self.model.validate(&attributes, self.sequences.max_len)?;
        self.conditions.validate(&self.items)?;
        self.instructions.validate(&self.items, &self.conditions)?;
        self.pretrain.validate()?;
        self.refresh.validate()?;
        self.daily.validate()?;
        self.near_real_time.validate()?;
        self.gate.validate()?;
        self.retention.validate()?;
        self.sft.validate(&self.items, &self.conditions)?;
        self.evaluate.validate()
    }

    /// Refuses a name that is neither a catalogue attribute nor a derived condition; `key` names where it was given.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`], with the closest known name.
    pub fn check_condition(&self, key: &str, name: &str) -> Result<(), ConfigError> {
        conditions::check(key, name, &self.items, &self.conditions)
    }

    /// Refuses addresses with a user or password anywhere, since each model keeps its configuration.
    fn refuse_userinfo(&self) -> Result<(), ConfigError> {
        fn find(key: &str, value: &toml::Value) -> Option<String> {
            match value {
                toml::Value::String(text) => secret::has_userinfo(text).then(|| key.to_owned()),
                toml::Value::Array(values) => values.iter().find_map(|value| find(key, value)),
                toml::Value::Table(table) => table.iter().find_map(|(name, value)| {
                    let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                    if secret::has_userinfo(name) {
                        Some(key.replace(name, HIDDEN))
                    } else {
                        find(&key, value)
                    }
                }),
                _ => None,
            }
        }
        let table = toml::Value::try_from(self)
            .unwrap_or_else(|e| unreachable!("every configuration is a TOML document: {e}"));
        match find("", &table) {
            Some(key) if key == "kafka.schema_registry" => kafka::refuse_registry_userinfo(),
            Some(key) => {
                invalid(key, "is an address with a user or a password in it, which each model would keep")
            }
            None => Ok(()),
        }
    }

    /// Returns the resolved configuration as TOML, defaults included.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("every configuration is a TOML document: {e}"))
    }
}

impl Sequences {
    /// Returns true if a table whose settings have this hash holds out the same events permanently: by date or by user, not each
    /// user's newest. False if its settings differ, since their split is unknown.
    pub fn holds_out_for_ever(&self, hash: &str) -> bool {
        matches!(self.split, SplitKind::Temporal | SplitKind::None) && self.hash() == hash
    }

    /// Returns the hash of the settings that determine the rows of `sequences` for given events: 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        format!("{:016x}", hash64(self.to_toml().as_bytes()))
    }

    /// Returns the resolved section as TOML, defaults included, as a table's property stores it.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("every section is a TOML document: {e}"))
    }

    /// Reads and validates a section that a table's property stores.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`]: the text does not parse, or a value breaks a rule.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let section: Self = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            key: "sequences".into(),
            problem: error.message().trim().into(),
        })?;
        section.validate()?;
        Ok(section)
    }
}

/// Formats a TOML error in the parser's words, or without line and value if the place may hold a secret.
fn parse_problem(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return unquoted(error.message().trim().to_owned()) };
    let at = (0..=span.start.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let (before, after) = text.split_at(at);
    let end = after.find('\n').map_or(text.len(), |end| at + end);
    // A value may span lines: check everything from the section's head on.
    let section = before.rfind("\n[").map_or(0, |head| head + 1);
    if !text[section..end.max(span.end.min(text.len()))].lines().any(secret::may_hold) {
        return error.to_string();
    }
    let (line, begin) = (before.matches('\n').count() + 1, before.rfind('\n').map_or(0, |end| end + 1));
    let column = before[begin..].chars().count() + 1;
    let problem = unquoted(error.message().trim().to_owned());
    format!("line {line}, column {column}: {problem} (the line is not shown: it may hold a secret)")
}

/// Returns the problem without the value that it quotes.
fn unquoted(problem: String) -> String {
    let quotes = ["invalid type", "invalid value", "unknown variant", "unknown field", "duplicate"];
    match quotes.into_iter().find(|begin| problem.starts_with(begin)) {
        Some("unknown field") | None => {
            if problem.contains('"') {
                "cannot be read".into()
            } else {
                problem
            }
        }
        Some(begin) => match problem.rfind(", expected ") {
            Some(expected) => format!("{begin}{}", &problem[expected..]),
            None => begin.into(),
        },
    }
}

fn deserialize(table: &toml::Table) -> Result<Config, String> {
    let config = Config::deserialize(table.clone()).map_err(|e| e.message().trim().to_owned())?;
    check_sections(table, &config)?;
    Ok(config)
}

/// Refuses a list in place of a section: serde would assign its values to the section's keys by position.
fn check_sections(given: &toml::Table, config: &Config) -> Result<(), String> {
    fn check(path: &str, given: &toml::Table, resolved: &toml::Table) -> Result<(), String> {
        for (name, given) in given {
            let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match (given, resolved.get(name)) {
                (toml::Value::Table(given), Some(toml::Value::Table(resolved))) => {
                    check(&key, given, resolved)?
                }
                (toml::Value::Array(_), Some(toml::Value::Table(_))) => {
                    return Err(format!("`{key}` is a section, not a list"));
                }
                _ => {}
            }
        }
        Ok(())
    }
    let resolved = toml::Table::try_from(config)
        .unwrap_or_else(|e| unreachable!("every configuration is a TOML document: {e}"));
    check("", given, &resolved)
}

/// Makes relative paths in the file relative to the file's directory.
fn rebase(table: &mut toml::Table, directory: &Path) {
    let rebased = |path: &str| {
        if path.contains("://") || Path::new(path).is_absolute() {
            path.to_owned()
        } else {
            directory.join(path).to_string_lossy().into_owned()
        }
    };
    for key in ["root", "scratch"] {
        if let Some(toml::Value::String(path)) = table.get_mut(key) {
            *path = rebased(path);
        }
    }
    for section in ["events", "items"] {
        let paths =
            table.get_mut(section).and_then(|s| s.get_mut("paths")).and_then(toml::Value::as_array_mut);
        for path in paths.into_iter().flatten() {
            // `-` is standard input.
            if let toml::Value::String(path) = path
                && path != "-"
            {
                *path = rebased(path);
            }
        }
    }
    for (section, file) in [("kafka", "schema_file"), ("forget", "key_file")] {
        let path = table.get_mut(section).and_then(|section| section.get_mut(file));
        if let Some(toml::Value::String(path)) = path {
            *path = rebased(path);
        }
    }
}

/// Sets one dotted key from a `key=value` argument.
fn apply(table: &mut toml::Table, setting: &str) -> Result<(), String> {
    let (key, text) = setting.split_once('=').ok_or("write it as key=value, such as pretrain.epochs=5")?;
    let key = key.trim();
    if let Some(property) = key.strip_prefix("kafka.properties.") {
        // Names of librdkafka's properties contain dots, and all values are text.
        let text = toml::Value::String(unquote(text).to_owned());
        return insert(table, &["kafka", "properties"], unquote(property), text);
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let value = match parsed.and_then(|mut t| t.remove("value")) {
        // Dates are text in the configuration, as in JSON.
        Some(toml::Value::Datetime(date)) => toml::Value::String(date.to_string()),
        // A secret is always text, so that no type error quotes it.
        Some(other) if !secret::is_secret(key) => other,
        _ => toml::Value::String(unquote(text).to_owned()),
    };
    let mut path: Vec<&str> = key.split('.').collect();
    let last = path.pop().filter(|name| !name.is_empty()).ok_or("the key is empty")?;
    insert(table, &path, last, value)
}

/// Returns the text without enclosing quotes.
fn unquote(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// Sets `name` in the section at `path`, creating sections as needed.
fn insert(table: &mut toml::Table, path: &[&str], name: &str, value: toml::Value) -> Result<(), String> {
    let mut table = table;
    for &name in path {
        table = table
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`{name}` is a value, not a section"))?;
    }
    table.insert(name.to_owned(), value);
    Ok(())
}

/// Parses arbitrary bytes: a file, then `--set` arguments, separated by zero bytes.
///
/// # Panics
///
/// If a valid configuration does not survive a round trip through TOML.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let mut texts = bytes.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
    let file = texts.next().unwrap_or_default();
    let overrides: Vec<String> = texts.collect();
    match Config::parse(&file, Path::new("c.toml"), &overrides) {
        Ok(config) => {
            let text = config.to_toml();
            let again = toml::from_str::<Config>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(again, config);
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Seed inputs of [`fuzz`].
#[doc(hidden)]
pub const FUZZ_SEEDS: [&[u8]; 3] = [
    b"root = \"here\"\n[events]\npaths = [\"x.csv\"]\n[kafka.properties]\n\"sasl.password\" = \"env:A\"\n\0seed=2\0model.d=128",
    b"[sequences]\nsplit = \"temporal\"\nvalidation_from = \"2019-01-01T00:00:00Z\"\ntest_from = \"2019-02-01T00:00:00Z\"\n",
    b"[items.attributes.genre]\nseparator = \"|\"\n[conditions]\nmin_pool = 5\n[pretrain]\nlearning_rate = 1e-2\n\0kafka={a=1}",
];
/// Fragments that [`fuzz`] inputs are built from.
#[doc(hidden)]
pub const FUZZ_TOKENS: [&[u8]; 16] = [
    b"\n[",
    b"]\n",
    b" = ",
    b"\"",
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"9223372036854775807",
    b"\0",
    b"{",
    b"\"\"\"",
    b"'",
    b"password",
    b"://a@b",
    b"\xff",
];

#[cfg(test)]
mod tests;
