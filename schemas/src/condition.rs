//! Retrieval conditions `c` (§3.3.1) and their text form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One retrieval condition: a value of a catalogue attribute, or a derived condition, whose value equals its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Condition {
    /// Attribute, such as `genre`, or name of a derived condition, such as `new-release`.
    pub attribute: String,
    /// Value, such as `Rock`.
    pub value: String,
}

impl Condition {
    /// Returns the derived condition of this name.
    pub fn derived(name: &str) -> Self {
        Self { attribute: name.into(), value: name.into() }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attribute == self.value {
            return f.write_str(&self.attribute);
        }
        write!(f, "{}={}", self.attribute, self.value)
    }
}

/// Error for text that is not a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a condition; write attribute=value, such as genre=Rock, or the name of a derived one")]
pub struct NotACondition(String);

impl FromStr for Condition {
    type Err = NotACondition;

    fn from_str(text: &str) -> Result<Self, NotACondition> {
        match text.split_once('=') {
            Some((attribute, value)) if !attribute.is_empty() && !value.is_empty() => {
                Ok(Self { attribute: attribute.into(), value: value.into() })
            }
            None if !text.is_empty() => Ok(Self::derived(text)),
            _ => Err(NotACondition(text.into())),
        }
    }
}

/// Returns up to three of the names in `known` that are closest to `name`, closest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let mut by_distance: Vec<(usize, &str)> =
        known.into_iter().map(|known| (edit_distance(&wanted, &known.to_lowercase()), known)).collect();
    by_distance.sort_unstable();
    by_distance.dedup();
    by_distance.into_iter().take(3).map(|(_, known)| known).collect()
}

/// Levenshtein distance: insertions, deletions and replacements of characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_back_as_they_print() {
        for text in ["genre=Rock", "new-release", "a=b=c"] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        for wrong in ["", "=Rock", "genre="] {
            assert!(wrong.parse::<Condition>().unwrap_err().to_string().contains("genre=Rock"));
        }
    }

    #[test]
    fn the_nearest_names_come_first() {
        let known = ["Rock", "Pop", "Jazz", "Hip-Hop"];
        assert_eq!(nearest("rokc", known)[0], "Rock");
        assert_eq!(nearest("hiphop", known)[0], "Hip-Hop");
        assert_eq!(nearest("x", ["only"]), ["only"]);
    }

    #[test]
    fn the_distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
