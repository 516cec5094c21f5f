//! JSON records that carry a hash of themselves, so that damage is noticed.
//!
//! The last member of the object, `hash`, is [`hash128`] of the record without it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use schemas::hash::hash128;

use crate::snapshot::hash_text;

const BEGIN: &str = ",\n  \"hash\": \"";
const END: &str = "\"\n}";
const DIGITS: usize = 32;

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Not JSON, or JSON of another shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The contents do not match the hash.
    #[error("its hash is that of other contents than it has")]
    Hash,
}

/// Returns the record as indented JSON with its hash. A record that is not an object with members gets no hash.
///
/// # Errors
///
/// The record cannot be represented in JSON.
pub fn write(record: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec_pretty(record)?;
    let hash = hash_text(hash128(&text));
    let Some(contents) = text.strip_suffix(b"\n}") else { return Ok(text) };
    text.truncate(contents.len());
    text.extend_from_slice(format!("{BEGIN}{hash}{END}").as_bytes());
    Ok(text)
}

/// Reads a record that [`write`] wrote, or one of an earlier version without a hash.
///
/// # Errors
///
/// [`SealedError`].
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, SealedError> {
    if let Some((contents, hash)) = parts(text) {
        let contents = [contents, b"\n}"].concat();
        if hash_text(hash128(&contents)).as_bytes() != hash {
            // A JSON error names the position of the damage.
            serde_json::from_slice::<serde::de::IgnoredAny>(text)?;
            return Err(SealedError::Hash);
        }
    }
    Ok(serde_json::from_slice(text)?)
}

/// Splits a record into the text before its hash and the hash; `None` if it has no hash.
fn parts(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_end().strip_suffix(END.as_bytes())?;
    let (text, hash) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
    Some((text.strip_suffix(BEGIN.as_bytes())?, hash))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn any_bit_is_noticed_or_has_no_effect() {
        let record = BTreeMap::from([("a".to_owned(), 1.5), ("hash of b".to_owned(), 2e300)]);
        let text = write(&record).unwrap();
        let opened = |text: &[u8]| {
            let mut read: BTreeMap<String, serde_json::Value> = read(text).ok()?;
            read.retain(|key, _| record.contains_key(key));
            Some(read)
        };
        let right = opened(&text);
        assert_eq!(right.as_ref().unwrap()["a"], 1.5);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                let found = opened(&damaged);
                assert!(found.is_none() || found == right, "bit {bit} of byte {at}: {found:?}");
            }
            assert_eq!(opened(&text[..at]), None, "cut to {at} bytes");
        }
        let earlier = serde_json::to_vec_pretty(&record).unwrap();
        assert_eq!(read::<BTreeMap<String, f64>>(&earlier).unwrap(), record);
        let other = String::from_utf8(text).unwrap().replace("1.5", "1.6");
        assert!(matches!(read::<BTreeMap<String, f64>>(other.as_bytes()), Err(SealedError::Hash)));
    }
}
