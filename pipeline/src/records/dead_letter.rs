//! The identity of a rejected record.

use schemas::hash::hash128;

/// Hash of a rejected record's source, position and bytes. The bytes are included because a file may be replaced under
/// its name, and then has another record at the position.
pub(crate) fn dead_letter_key(source: &str, position: i64, key: Option<&[u8]>, value: &[u8]) -> u128 {
    let mut bytes = Vec::with_capacity(source.len() + value.len() + key.map_or(0, <[u8]>::len) + 32);
    for part in [Some(source.as_bytes()), key] {
        match part {
            Some(part) => {
                bytes.extend_from_slice(&(part.len() as u64 + 1).to_le_bytes());
                bytes.extend_from_slice(part);
            }
            None => bytes.extend_from_slice(&0u64.to_le_bytes()),
        }
    }
    bytes.extend_from_slice(&position.to_le_bytes());
    bytes.extend_from_slice(value);
    hash128(&bytes)
}
