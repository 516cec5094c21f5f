//! The list of forgotten users: keyed hashes instead of ids.
//!
//! Records of a forgotten user may arrive again (a file is read again, a topic is read from its beginning), so they must
//! be recognized. The list keeps a hash under a secret key that is stored apart from the root ([`super::keys`]): without
//! the key, ids cannot be tested against the hashes. With both, one can only test a known id, as ingestion does.
//!
//! Memory: a hash of 16 bytes for each forgotten user.

use std::collections::HashSet;

use arrow::array::AsArray;
use schemas::config::Forget;
use schemas::tables::FORGOTTEN;
use store::{Root, Snapshot};

use super::error::ForgetError;
use super::keys::{Key, known_key};
use super::named::{UserColumn, names};

/// The key and the hashes of forgotten users.
#[derive(Debug, Clone)]
pub(crate) struct Forgotten {
    key: Key,
    hashes: HashSet<u128>,
}

impl Forgotten {
    /// The newest version of table `forgotten`, from the names in its directory; `None` if no user was forgotten.
    pub(crate) fn version(root: &Root) -> Result<Option<u64>, ForgetError> {
        Ok(root.newest_version(FORGOTTEN)?)
    }

    /// Reads the newest version of table `forgotten`; `None` if no user was forgotten.
    pub(crate) async fn load(root: &Root, settings: &Forget) -> Result<Option<Self>, ForgetError> {
        let Some(snapshot) = root.snapshot(FORGOTTEN).await? else { return Ok(None) };
        let key = known_key(&snapshot, root, settings)?;
        Ok(Some(Self { key, hashes: stored(&snapshot).await? }))
    }

    /// Number of forgotten users.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether this user was forgotten.
    pub(crate) fn has(&self, user: &str) -> bool {
        self.is_one(user.as_bytes())
    }

    /// Whether these bytes are the id of a forgotten user.
    pub(super) fn is_one(&self, word: &[u8]) -> bool {
        self.hashes.contains(&self.key.hash(word))
    }

    /// Whether a rejected record names a forgotten user.
    pub(crate) fn is_named_in(
        &self,
        user_field: &str,
        column: UserColumn,
        key: Option<&[u8]>,
        value: &[u8],
    ) -> bool {
        names(user_field, column, key, value, |id| self.is_one(id))
    }
}

/// The hashes in the table.
pub(super) async fn stored(snapshot: &Snapshot) -> Result<HashSet<u128>, ForgetError> {
    let mut hashes = HashSet::new();
    for batch in snapshot.read(&["user_hash"]).await? {
        let texts = batch.column(0).as_string::<i32>().iter().flatten();
        hashes.extend(texts.filter_map(|text| u128::from_str_radix(text, 16).ok()));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_record_is_known_by_its_words() {
        let key = Key::of_bytes([3; 16]);
        let forgotten = Forgotten { hashes: HashSet::from([key.hash(b"u-7")]), key };
        assert!(forgotten.has("u-7") && !forgotten.has("u-70"));
        let named = |key, value: &[u8]| forgotten.is_named_in("user", UserColumn::Unknown, key, value);
        assert!(named(None, br#"{"user":"u-7","item":"#));
        assert!(named(None, b"u-7,i1,not a time"));
        assert!(named(Some(b"u-7"), b"\xff\xfe"));
        assert!(!named(Some(b"u-70"), br#"{"user":"u-70","item":"#));
    }
}
