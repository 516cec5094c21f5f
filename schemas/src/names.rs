//! Names of models and runs. Each is one directory below the root, so names read from files are checked.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Suffixes that checkpoints use for their own files.
const RESERVED: [&str; 3] = [".previous", ".writing", ".json"];

/// Returns true if `name` is a single directory name (ASCII letters, digits, `_`, `-`, `.`) that no checkpoint uses itself.
pub fn is_plain(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    !name.is_empty()
        && plain
        && !name.starts_with('.')
        && !RESERVED.iter().any(|suffix| name.ends_with(suffix))
}

/// Deserializes a name, for serde's `deserialize_with`.
///
/// # Errors
///
/// Any other text, such as the path `../..`.
pub fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if is_plain(&name) {
        Ok(name)
    } else {
        Err(D::Error::custom(format!("`{name}` cannot be a model's name")))
    }
}

/// [`plain`] for an optional name.
pub fn plain_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Plain(#[serde(deserialize_with = "plain")] String);
    Ok(Option::<Plain>::deserialize(deserializer)?.map(|Plain(name)| name))
}

/// [`plain`] for each name in a list or set.
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
