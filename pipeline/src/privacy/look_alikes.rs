//! Other ids that look like one to be forgotten; the caller must decide whether they are the same person.
//!
//! `é` may be one character or two (NFC and NFD), an id may have a blank before or after it, and some characters have no
//! width. The tables keep ids as they are in the log, and only the id exactly as given is forgotten.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use icu_normalizer::ComposingNormalizer;

/// Maximum look-alikes that are reported.
const NAMED_MAX: usize = 20;

/// The appearances of the given ids, and the look-alikes found.
pub(super) struct LookAlikes {
    looks: HashSet<String>,
    found: Mutex<BTreeSet<String>>,
}

impl LookAlikes {
    pub(super) fn of<'a>(users: impl Iterator<Item = &'a str>) -> Self {
        Self { looks: users.map(|user| look(user).into_owned()).collect(), found: Mutex::default() }
    }

    /// Checks a user who is not one of the given ones.
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

/// The appearance of an id.
fn look(user: &str) -> Cow<'_, str> {
    if user.is_ascii() {
        return Cow::Borrowed(user.trim());
    }
    let has_width = |c: &char| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}');
    let visible: String = user.chars().filter(has_width).collect();
    Cow::Owned(ComposingNormalizer::new_nfc().normalize(&visible).trim().to_owned())
}

/// An id as it is printed, escaped so that look-alikes differ.
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
