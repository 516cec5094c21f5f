//! `config.toml` of a checkpoint, including those of earlier versions, whose keys may since be renamed or removed.
//!
//! The first line holds the format number in a comment, so the file remains a plain configuration; without it, the format is 1.

use std::path::Path;

use schemas::config::Config;
use serde::Deserialize;

use super::{CheckpointError, damaged};

/// Format that this version writes; increased when a key is renamed or removed.
const FORMAT: u32 = 2;

/// Prefix of the first line.
const MARK: &str = "# checkpoint format ";

/// Renamed keys: the last format with the old name, the old name, the new name.
const RENAMED: [(u32, &str, &str); 1] = [(1, "model.temperature", "model.score_temperature")];

/// Returns the text of a checkpoint's `config.toml`.
pub(super) fn to_text(config: &Config) -> String {
    format!("{MARK}{FORMAT}\n{}", config.to_toml())
}

/// Parses the configuration in `text`, read from `path`. Also returns a warning if it was converted from an earlier format.
///
/// # Errors
///
/// A later version wrote it, or it is not a configuration. Unknown keys are dropped in earlier formats and errors in this one.
pub(super) fn parse(path: &Path, text: &str) -> Result<(Config, Option<String>), CheckpointError> {
    let format = match text.lines().next().and_then(|line| line.strip_prefix(MARK)) {
        None => 1,
        Some(number) => number.trim().parse().map_err(|e| damaged(path, e))?,
    };
    if format > FORMAT {
        return Err(CheckpointError::Newer { path: path.to_owned(), format, known: FORMAT });
    }
    let mut table: toml::Table = toml::from_str(text).map_err(|e| damaged(path, e))?;
    let mut changes = Vec::new();
    for (last, old, new) in RENAMED {
        if format <= last && rename(&mut table, old, new) {
            changes.push(format!("`{old}` is `{new}` now"));
        }
    }
    if format < FORMAT {
        let mut gone = Vec::new();
        prune(&mut table, &mut Vec::new(), &mut gone);
        changes.extend(gone.into_iter().map(|key| format!("`{key}` is not known any more and left out")));
    }
    let config = Config::deserialize(table).map_err(|e| damaged(path, e))?;
    let said = format!("{} was written by an earlier version: {}", path.display(), changes.join("; "));
    Ok((config, (!changes.is_empty()).then_some(said)))
}

/// Moves the value at the dotted key `old` to `new`; returns false if `old` is absent or `new` is taken.
fn rename(table: &mut toml::Table, old: &str, new: &str) -> bool {
    let split = |key: &str| key.rsplit_once('.').map(|(section, name)| (section.to_owned(), name.to_owned()));
    let (Some((from, old)), Some((to, new))) = (split(old), split(new)) else { return false };
    let Some(value) = section(table, &from).and_then(|section| section.remove(&old)) else { return false };
    match section(table, &to) {
        Some(section) if !section.contains_key(&new) => section.insert(new, value).is_none(),
        _ => false,
    }
}

fn section<'a>(table: &'a mut toml::Table, path: &str) -> Option<&'a mut toml::Table> {
    path.split('.').try_fold(table, |table, name| table.get_mut(name)?.as_table_mut())
}

/// Removes unknown keys from `table`, the section at `path`, and appends their dotted names to `gone`.
fn prune(table: &mut toml::Table, path: &mut Vec<String>, gone: &mut Vec<String>) {
    let names: Vec<String> = table.keys().cloned().collect();
    for name in names {
        path.push(name.clone());
        let alone = |value: toml::Value| {
            let nested = path
                .iter()
                .rev()
                .fold(value, |value, name| toml::Table::from_iter([(name.clone(), value)]).into());
            let toml::Value::Table(table) = nested else { return None };
            Config::deserialize(table).err().map(|e| e.message().to_owned())
        };
        let unknown =
            |problem: &Option<String>| problem.as_deref().is_some_and(|p| p.starts_with("unknown field"));
        if let Some(value) = table.get_mut(&name) {
            let whole = unknown(&alone(value.clone()));
            match value {
                // A section is known if an empty one deserializes.
                toml::Value::Table(inner) if whole && !unknown(&alone(toml::Table::new().into())) => {
                    prune(inner, path, gone);
                }
                _ if whole => {
                    gone.push(path.join("."));
                    table.remove(&name);
                }
                _ => {}
            }
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Config, Option<String>), String> {
        parse(Path::new("config.toml"), text).map_err(|e| terminal::with_causes(&e))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut config = Config::default();
        config.model.score_temperature = 0.07;
        assert_eq!(read(&to_text(&config)).unwrap(), (config, None));
    }

    #[test]
    fn renamed_and_dropped_keys_of_an_earlier_version_are_understood() {
        // No format line; removed sections, a nested key and a renamed key.
        let mut expected = Config::default();
        (expected.model.d, expected.model.score_temperature) = (32, 0.05);
        expected.pretrain.epochs = 7;
        let text =
            expected.to_toml().replace("score_temperature = 0.05", "temperature = 0.05\nrotary = true");
        let text = text.replace("[pretrain]", "[pretrain]\nmomentum = { start = 0.5, end = 0.9 }");
        let text = format!("{text}\n[cluster]\nworkers = 4\n[cluster.retry]\ntimes = 3\n");
        assert!(toml::from_str::<Config>(&text).is_err());
        let (config, said) = read(&text).unwrap();
        assert_eq!(config, expected);
        let said = said.unwrap();
        for part in [
            "`model.temperature` is `model.score_temperature` now",
            "`model.rotary`",
            "`pretrain.momentum`",
            "`cluster`",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("workers"), "{said}");
    }

    #[test]
    fn what_no_version_wrote_is_an_error() {
        let text = to_text(&Config::default());
        let wrong = text.replace("[model]", "[model]\nrotary = true");
        assert!(read(&wrong).unwrap_err().contains("unknown field `rotary`"), "{:?}", read(&wrong));
        let value = Config::default().to_toml().replace("batch_size = 256", "batch_size = \"many\"");
        assert!(read(&value).unwrap_err().contains("config.toml is damaged"), "{:?}", read(&value));
        let newer = text.replace(&format!("{MARK}{FORMAT}"), &format!("{MARK}{}", FORMAT + 1));
        let error = read(&newer).unwrap_err();
        assert!(error.contains("by a newer version") && error.contains("format 3"), "{error}");
        assert!(read("# checkpoint format x").unwrap_err().contains("damaged"));
    }
}
