//! The configuration: one TOML file that all three programs read.
//!
//! Unknown keys are errors, every cross-field rule is checked once, here, and the resolved configuration can
//! be printed back ([`Config::to_toml`]); each checkpoint keeps it.

mod conditions;
mod data;
mod device;
mod duration;
mod file_access;
mod forget;
mod jobs;
mod kafka;
mod memory;
mod model;
mod refresh;
mod sft;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use conditions::{Age, Conditions, Instructions};
pub use data::{
    Attribute, DeltaTauSetting, EventColumns, Events, Format, ItemColumns, Items, Sequences, SplitKind, Ties,
    TimeUnit,
};
pub use device::{DeviceSetting, Precision};
pub use duration::Span;
pub use file_access::FileAccess;
pub use forget::Forget;
pub use jobs::{Daily, Gate, NearRealTime, Retention, Unmeasured};
pub use kafka::{GroupProtocol, Kafka, MessageFormat, Recreated, Start};
pub use memory::Memory;
pub use model::{Architecture, Evaluate, Loss, MaskMode, Model, Pretrain, Schedule, Selection};
pub use refresh::Refresh;
pub use sft::{Paradigm, Sft};

use crate::hash::hash64;
use crate::secret::{self, HIDDEN, shown_setting};

/// Everything a run depends on but its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory of the tables and models. Relative paths in the file are relative to the file.
    pub root: String,
    /// Where the trainer computes: `cpu`, or `cuda:N` in a build with CUDA. A model trained on one can be used and
    /// trained further on the other.
    pub device: DeviceSetting,
    /// The numbers of matrix products and attention: `f32` or, on a GPU, `bf16`.
    pub precision: Precision,
    /// Seed of everything random in training and of the order of equal scores.
    pub seed: u64,
    /// Who may read the files and directories that the programs make.
    pub file_access: FileAccess,
    /// The directory for temporary files: what does not fit into memory, and packed Parquet files on their way. It must be there
    /// and should lie on a disk with room for the log; what a killed command leaves in it may be deleted. Default: the system's,
    /// which TMPDIR names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<String>,
    /// How the jobs of one machine share its memory.
    pub memory: Memory,
    /// The interaction log.
    pub events: Events,
    /// The topic that brings more of it.
    pub kafka: Kafka,
    /// Who was forgotten.
    pub forget: Forget,
    /// The catalogue.
    pub items: Items,
    /// How events become rows.
    pub sequences: Sequences,
    /// What recommendations may be conditioned on, and which examples of it are worth learning.
    pub conditions: Conditions,
    /// Each user's own recall instructions.
    pub instructions: Instructions,
    /// The architecture.
    pub model: Model,
    /// Pre-training.
    pub pretrain: Pretrain,
    /// Going on learning, from new events.
    pub refresh: Refresh,
    /// Learning to follow instructions.
    pub sft: Sft,
    /// Evaluation.
    pub evaluate: Evaluate,
    /// The scheduled job.
    pub daily: Daily,
    /// Its sister, which follows the log.
    pub near_real_time: NearRealTime,
    /// What may be published.
    pub gate: Gate,
    /// What `climber daily` deletes.
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

/// A configuration that cannot be used. The user's to mend; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of another type.
    #[error("{path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what; without the line itself where it may hold a secret.
        problem: String,
    },
    /// A `--set` that does not fit.
    #[error("--set {setting}: {problem}")]
    Override {
        /// The argument.
        setting: String,
        /// The mistake.
        problem: String,
    },
    /// A value that breaks a rule.
    #[error("{key}: {problem}")]
    Invalid {
        /// The dotted key.
        key: String,
        /// The rule.
        problem: String,
    },
}

fn invalid<T>(key: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key: key.into(), problem: problem.into() })
}

impl Config {
    /// Within how many days of its time a message that is sent again is looked for: `events.dedup_days`, or its earlier
    /// name in `[kafka]`.
    pub fn consumer_dedup_days(&self) -> u32 {
        self.kafka.dedup_days.unwrap_or(self.events.dedup_days)
    }

    /// Reads `path`, applies `overrides` (each `key=value`, the value in TOML or a bare word) in order, and
    /// checks the result.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path, overrides)
    }

    /// [`load`](Self::load) of a text that stands in `path`.
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let parse = |error| ConfigError::Parse { path: path.into(), problem: parse_problem(text, &error) };
        // Once for an error with line and column, once as the table that overrides are applied to.
        let config = toml::from_str::<Self>(text).map_err(parse)?;
        let mut table: toml::Table = toml::from_str(text).map_err(parse)?;
        check_sections(&table, &config)
            .map_err(|problem| ConfigError::Parse { path: path.into(), problem })?;
        rebase(&mut table, path.parent().unwrap_or(Path::new("")));
        Self::resolve(table, overrides)
    }

    /// The defaults with `overrides` applied, for commands that are run without a file.
    pub fn from_overrides(overrides: &[String]) -> Result<Self, ConfigError> {
        Self::resolve(toml::Table::new(), overrides)
    }

    fn resolve(mut table: toml::Table, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut config = deserialize(&table)
            .map_err(|problem| ConfigError::Invalid { key: "configuration".into(), problem })?;
        for setting in overrides {
            let fail = |problem: String| {
                let shown = shown_setting(setting);
                // The problem quotes what was given.
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

    /// Refuses what is neither an attribute of the catalogue nor a derived condition; `key` is where it was asked for.
    pub fn check_condition(&self, key: &str, name: &str) -> Result<(), ConfigError> {
        conditions::check(key, name, &self.items, &self.conditions)
    }

    /// Refuses addresses with a password inside, wherever they stand: each model keeps its configuration.
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

    /// The resolved configuration as TOML, defaults included.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("every configuration is a TOML document: {e}"))
    }
}

impl Sequences {
    /// Whether a table with settings of this hash holds out the same events for ever: by date or by user, not each user's newest
    /// ones. False where these are other settings, whose split is not known.
    pub fn holds_out_for_ever(&self, hash: &str) -> bool {
        matches!(self.split, SplitKind::Temporal | SplitKind::None) && self.hash() == hash
    }

    /// Hash of the settings that decide the rows of `sequences` for given events.
    pub fn hash(&self) -> String {
        format!("{:016x}", hash64(self.to_toml().as_bytes()))
    }

    /// The resolved section as TOML, defaults included: what a table keeps of it.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("every section is a TOML document: {e}"))
    }

    /// A section that a table kept.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let section: Self = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            key: "sequences".into(),
            problem: error.message().trim().into(),
        })?;
        section.validate()?;
        Ok(section)
    }
}

/// A mistake in TOML, in its parser's words, unless the place may hold a secret. Then neither the line nor its
/// value is quoted.
fn parse_problem(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return unquoted(error.message().trim().to_owned()) };
    let at = (0..=span.start.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let (before, after) = text.split_at(at);
    let end = after.find('\n').map_or(text.len(), |end| at + end);
    // A value may be of several lines: all from the section's head on.
    let section = before.rfind("\n[").map_or(0, |head| head + 1);
    if !text[section..end.max(span.end.min(text.len()))].lines().any(secret::may_hold) {
        return error.to_string();
    }
    let (line, begin) = (before.matches('\n').count() + 1, before.rfind('\n').map_or(0, |end| end + 1));
    let column = before[begin..].chars().count() + 1;
    let problem = unquoted(error.message().trim().to_owned());
    format!("line {line}, column {column}: {problem} (the line is not shown: it may hold a secret)")
}

/// A problem without the value that it quotes.
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

/// Refuses a list in place of a section: its values would be taken for those of the section's keys, in their order.
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

/// Makes the file's relative paths relative to the file.
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
            if let toml::Value::String(path) = path {
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

/// Sets one dotted key.
fn apply(table: &mut toml::Table, setting: &str) -> Result<(), String> {
    let (key, text) = setting.split_once('=').ok_or("write it as key=value, such as pretrain.epochs=5")?;
    let key = key.trim();
    if let Some(property) = key.strip_prefix("kafka.properties.") {
        // librdkafka's names have dots, and its values are all text.
        let text = toml::Value::String(unquote(text).to_owned());
        return insert(table, &["kafka", "properties"], unquote(property), text);
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let value = match parsed.and_then(|mut t| t.remove("value")) {
        // Dates are text in the configuration, as they are in JSON.
        Some(toml::Value::Datetime(date)) => toml::Value::String(date.to_string()),
        // A secret is text, so that no error about its type quotes it.
        Some(other) if !secret::is_secret(key) => other,
        _ => toml::Value::String(unquote(text).to_owned()),
    };
    let mut path: Vec<&str> = key.split('.').collect();
    let last = path.pop().filter(|name| !name.is_empty()).ok_or("the key is empty")?;
    insert(table, &path, last, value)
}

/// Text without the quotes around it, if there are any.
fn unquote(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// Sets `name` in the section that `path` leads to.
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

/// Gives any bytes to the parser: a file, and behind a zero byte `--set` arguments.
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

/// What [`fuzz`] begins with.
#[doc(hidden)]
pub const FUZZ_SEEDS: [&[u8]; 3] = [
    b"root = \"here\"\n[events]\npaths = [\"x.csv\"]\n[kafka.properties]\n\"sasl.password\" = \"env:A\"\n\0seed=2\0model.d=128",
    b"[sequences]\nsplit = \"temporal\"\nvalidation_from = \"2019-01-01T00:00:00Z\"\ntest_from = \"2019-02-01T00:00:00Z\"\n",
    b"[items.attributes.genre]\nseparator = \"|\"\n[conditions]\nmin_pool = 5\n[pretrain]\nlearning_rate = 1e-2\n\0kafka={a=1}",
];
/// Pieces of configurations.
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
