//! Ids that look like one that is to be forgotten, and are another: whoever asks must say whether they are the same person.
//!
//! `é` is one character or two (NFC and NFD), a blank stands before or after an id or does not, and some characters have no
//! width at all. The tables keep ids as the log has them, and an id is forgotten just as it is given.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use icu_normalizer::ComposingNormalizer;

/// Named at most so many.
const NAMED_MAX: usize = 20;

/// The ids that are looked for, and the look-alikes that were found.
pub(super) struct LookAlikes {
    looks: HashSet<String>,
    found: Mutex<BTreeSet<String>>,
}

impl LookAlikes {
    pub(super) fn of<'a>(users: impl Iterator<Item = &'a str>) -> Self {
        Self { looks: users.map(|user| look(user).into_owned()).collect(), found: Mutex::default() }
    }

    /// Takes note of a user who is not one of those given.
    pub(super) fn see(&self, user: &str) {
        if self.looks.contains(&*look(user)) {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() < NAMED_MAX {
                found.insert(user.to_owned());
            }
        }
    }

    pub(super) fn found(self) -> Vec<String> {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
    }
}

/// What a reader sees of an id.
fn look(user: &str) -> Cow<'_, str> {
    if user.is_ascii() {
        return Cow::Borrowed(user.trim());
    }
    let has_width = |c: &char| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}');
    let visible: String = user.chars().filter(has_width).collect();
    Cow::Owned(ComposingNormalizer::new_nfc().normalize(&visible).trim().to_owned())
}

/// An id as it is printed: so that two that look alike do not.
pub(super) fn shown(user: &str) -> String {
    format!("\"{}\"", user.escape_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_look_alike_are_known() {
        let alike = LookAlikes::of(["caf\u{e9}", "u1"].into_iter());
        for user in ["cafe\u{301}", " caf\u{e9}", "caf\u{e9}\u{200b}", "u1 ", "\u{a0}u1", "u2", "cafe"] {
            alike.see(user);
        }
        let found = alike.found();
        assert_eq!(found, [" caf\u{e9}", "cafe\u{301}", "caf\u{e9}\u{200b}", "u1 ", "\u{a0}u1"]);
        assert_eq!(shown(&found[1]), "\"cafe\\u{301}\"");
    }
}
