//! Who was forgotten, without saying who: keyed hashes of users.
//!
//! Records of a forgotten user may come again (a file that is read once more, a topic that is read from its beginning), so
//! something of the user has to be kept. It is a hash under a secret key that lies apart from the root: without the key,
//! nobody can try out who it was. Whoever has both can ask about a user whom he knows already, as ingestion does.
//!
//! Without `forget.key_file`, the key is in the owner's state directory (`$XDG_STATE_HOME`, or `~/.local/state`), in a file named by
//! [`Key::check`], so that a root may be moved. Earlier versions kept it in the root; it is still read there, with a warning.

use std::collections::HashSet;
use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use arrow::array::AsArray;
use schemas::config::Forget;
use schemas::tables::FORGOTTEN;
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use store::files;
use store::{Root, Snapshot, TableError};

use super::ForgetError;
use super::named::{UserColumn, names};

/// Table property: [`Key::check`].
pub(super) const KEY_CHECK: &str = "key_check";

/// The secret key: 128 random bits.
#[derive(Clone)]
pub(super) struct Key([u8; 16]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The directory of keys that no `forget.key_file` names; `None` for a user without a home.
fn apart() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("climber-pilot/erasure-keys"))
}

/// Where earlier versions kept the key.
fn beside(root: &Root) -> PathBuf {
    root.path().join("forgotten.key")
}

/// Where the key with this check is.
fn key_path(root: &Root, settings: &Forget, check: Option<&str>) -> PathBuf {
    if let Some(path) = &settings.key_file {
        return path.into();
    }
    let apart = apart().zip(check).map(|(directory, check)| directory.join(format!("{check}.key")));
    match apart {
        Some(apart) if apart.exists() || !beside(root).exists() => apart,
        apart => {
            warn_of_beside(root, apart.as_deref());
            beside(root)
        }
    }
}

/// Whoever copies the root gets the key with it.
fn warn_of_beside(root: &Root, apart: Option<&Path>) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        let elsewhere = apart.map_or_else(String::new, |apart| format!("move it to {}, or ", apart.display()));
        eprintln!(
            "warning: the key {} lies beside the hashes that it protects; {elsewhere}move it and set forget.key_file",
            beside(root).display()
        );
    });
}

impl Key {
    /// The key in `path`.
    pub(super) fn read(path: &Path) -> Result<Self, ForgetError> {
        let fail = |source| ForgetError::Key { path: path.into(), source };
        let text = fs::read_to_string(path).map_err(fail)?;
        let text = text.trim();
        let byte = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let bytes: Option<Vec<u8>> = (0..16).map(|i| byte(2 * i)).collect();
        bytes.filter(|_| text.len() == 32).and_then(|bytes| Some(Self(bytes.try_into().ok()?))).ok_or_else(
            || fail(io::Error::new(io::ErrorKind::InvalidData, "it is not 32 hexadecimal digits")),
        )
    }

    /// The key of a root in which nobody was forgotten yet: the one of a run that died before its first commit, or a new one.
    pub(super) fn first(root: &Root, settings: &Forget) -> Result<Self, ForgetError> {
        let path = settings.key_file.as_ref().map_or_else(|| beside(root), PathBuf::from);
        if path.exists() {
            if settings.key_file.is_none() {
                warn_of_beside(root, None);
            }
            return Self::read(&path);
        }
        let key = Self::random();
        let path = match apart() {
            Some(directory) if settings.key_file.is_none() => directory.join(format!("{}.key", key.check())),
            _ => path,
        };
        key.store(&path)?;
        eprintln!(
            "the key of table `forgotten` is {}: keep a copy of it; each machine that reads this log needs it (forget.key_file)",
            path.display()
        );
        Ok(key)
    }

    fn random() -> Self {
        let bytes = uuid::Uuid::new_v4().into_bytes();
        // A UUID has 122 random bits; two of them leave none that is known.
        let other = uuid::Uuid::new_v4().into_bytes();
        Self(std::array::from_fn(|i| bytes[i] ^ other[(i + 7) % 16]))
    }

    /// Writes the key to `path`, that only its owner can read; there as a whole or not at all.
    fn store(&self, path: &Path) -> Result<(), ForgetError> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = path.parent().map_or(Ok(()), files::create_private_directories);
        directory
            .and_then(|()| files::create_private(path, text.as_bytes()))
            .map_err(|source| ForgetError::Key { path: path.into(), source })
    }

    /// What tells this key from another, and nothing about it: a property of the table.
    pub(super) fn check(&self) -> String {
        format!("{:032x}", self.hash(b"the key of table `forgotten`"))
    }

    /// The hash of a user.
    pub(super) fn hash(&self, user: &[u8]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(user);
        hasher.finish128().as_u128()
    }
}

/// The users that were forgotten.
#[derive(Debug, Clone)]
pub(crate) struct Forgotten {
    key: Key,
    hashes: HashSet<u128>,
}

impl Forgotten {
    /// The newest version of table `forgotten`, by a look at its directory; `None` where nobody was.
    pub(crate) fn version(root: &Root) -> Result<Option<u64>, ForgetError> {
        let path = root.table_path(FORGOTTEN).join("_delta_log");
        let fail = |source| TableError::Directory { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(fail)?,
        };
        let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
        let mut newest = None;
        for entry in entries {
            newest = newest.max(number(entry.map_err(fail)?.file_name()));
        }
        Ok(newest)
    }

    /// Those of the newest version of table `forgotten`; `None` where nobody was.
    pub(crate) async fn load(root: &Root, settings: &Forget) -> Result<Option<Self>, ForgetError> {
        let Some(snapshot) = root.snapshot(FORGOTTEN).await? else { return Ok(None) };
        let key = known_key(&snapshot, root, settings)?;
        Ok(Some(Self { key, hashes: stored(&snapshot).await? }))
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether this user was forgotten.
    pub(crate) fn has(&self, user: &str) -> bool {
        self.is_one(user.as_bytes())
    }

    /// Whether these bytes are the id of somebody who was forgotten.
    pub(super) fn is_one(&self, word: &[u8]) -> bool {
        self.hashes.contains(&self.key.hash(word))
    }

    /// Whether a record that is no event is of somebody who was forgotten, as far as it says whose it is.
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

/// The key of a table that is there: no other one will do, since nobody would be known by it.
pub(super) fn known_key(snapshot: &Snapshot, root: &Root, settings: &Forget) -> Result<Key, ForgetError> {
    let check = snapshot.properties().get(KEY_CHECK).cloned();
    let path = key_path(root, settings, check.as_deref());
    let key = Key::read(&path)?;
    if check.is_some_and(|check| check != key.check()) {
        let problem = "it is another key than that of the table";
        let source = io::Error::new(io::ErrorKind::InvalidData, problem);
        return Err(ForgetError::Key { path, source });
    }
    Ok(key)
}

/// The hashes that the table holds.
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
    fn a_hash_needs_its_key() {
        let [a, b] = [Key([1; 16]), Key([2; 16])];
        assert_eq!(a.hash(b"user"), a.hash(b"user"));
        assert_ne!(a.hash(b"user"), b.hash(b"user"));
        assert_ne!(a.hash(b"user"), a.hash(b"User"));
        assert_eq!(format!("{a:?}"), "Key");
    }

    #[test]
    fn the_key_is_made_once_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forgotten.key");
        let made = Key::random();
        made.store(&path).unwrap();
        assert_eq!(Key::read(&path).unwrap().0, made.0);
        assert!(Key::random().store(&path).is_err(), "a key is never replaced");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::write(&path, "not a key").unwrap();
        assert!(Key::read(&path).unwrap_err().to_string().contains("forgotten.key"));
    }

    #[test]
    fn a_broken_record_is_known_by_its_words() {
        let key = Key([3; 16]);
        let forgotten = Forgotten { hashes: HashSet::from([key.hash(b"u-7")]), key };
        assert!(forgotten.has("u-7") && !forgotten.has("u-70"));
        let named = |key, value: &[u8]| forgotten.is_named_in("user", UserColumn::Unknown, key, value);
        assert!(named(None, br#"{"user":"u-7","item":"#));
        assert!(named(None, b"u-7,i1,not a time"));
        assert!(named(Some(b"u-7"), b"\xff\xfe"));
        assert!(!named(Some(b"u-70"), br#"{"user":"u-70","item":"#));
    }
}
