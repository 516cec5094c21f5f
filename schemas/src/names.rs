//! Names of models and runs: each is one directory below the root, whoever wrote the file that it stands in.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Endings that checkpoints and their neighbours use themselves.
const RESERVED: [&str; 3] = [".previous", ".writing", ".json"];

/// Whether `name` is one plain directory name that no checkpoint uses itself.
pub fn is_plain(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    !name.is_empty()
        && plain
        && !name.starts_with('.')
        && !RESERVED.iter().any(|suffix| name.ends_with(suffix))
}

/// A name out of a file: a path such as `../..` is an error of that file. For serde's `deserialize_with`.
pub fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if is_plain(&name) {
        Ok(name)
    } else {
        Err(D::Error::custom(format!("`{name}` cannot be a model's name")))
    }
}

/// [`plain`], of a name that may be missing.
pub fn plain_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Plain(#[serde(deserialize_with = "plain")] String);
    Ok(Option::<Plain>::deserialize(deserializer)?.map(|Plain(name)| name))
}

/// [`plain`], of each name in a list or set.
pub fn plain_each<'de, D: Deserializer<'de>, C: FromIterator<String>>(
    deserializer: D,
) -> Result<C, D::Error> {
    #[derive(Deserialize)]
    struct Plain(#[serde(deserialize_with = "plain")] String);
    Ok(Vec::<Plain>::deserialize(deserializer)?.into_iter().map(|Plain(name)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_directory() {
        for name in ["base", "2026-11-22", "a_b.c", "2026-11-22-p3-e57-sft"] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "",
            "..",
            "../..",
            "/tmp",
            ".training",
            "team/base",
            "m.previous",
            "m.writing",
            "x.json",
            "a b",
            "ü",
        ] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
