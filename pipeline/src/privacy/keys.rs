//! The secret key of forgotten users' hashes, and its file.
//!
//! Without `forget.key_file`, the key is in the owner's state directory (`$XDG_STATE_HOME`, or `~/.local/state`), in a file named
//! after [`Key::check`], so the root can be moved. Earlier versions kept the key in the root, where it is still read, with a
//! warning.

use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use schemas::config::Forget;
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use store::files;
use store::{Root, Snapshot};

use super::error::ForgetError;

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

/// The default directory of keys; `None` for a user without a home directory.
fn apart() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("climber-pilot/erasure-keys"))
}

/// The path at which earlier versions kept the key.
fn beside(root: &Root) -> PathBuf {
    root.path().join("forgotten.key")
}

/// The path of the key with this check.
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

/// Warns that the key lies in the root, so a copy of the root includes it.
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

    /// The key of a root without forgotten users: that of a run that died before its first commit, or a new one.
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

    #[cfg(test)]
    pub(super) fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn random() -> Self {
        let bytes = uuid::Uuid::new_v4().into_bytes();
        // A UUID has 122 random bits; combining two shifted ones makes all 128 bits random.
        let other = uuid::Uuid::new_v4().into_bytes();
        Self(std::array::from_fn(|i| bytes[i] ^ other[(i + 7) % 16]))
    }

    /// Writes the key to `path`, readable by its owner only; atomically.
    fn store(&self, path: &Path) -> Result<(), ForgetError> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = path.parent().map_or(Ok(()), files::create_private_directories);
        directory
            .and_then(|()| files::create_private(path, text.as_bytes()))
            .map_err(|source| ForgetError::Key { path: path.into(), source })
    }

    /// A table property that identifies this key and reveals nothing about it.
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

/// The key of an existing table; a key with another check is refused, because its hashes would differ.
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
}
