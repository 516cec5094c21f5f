//! Hashes that are stored or decide something permanently, and so must never change: XXH3 with seed 0.

use std::fmt;
use std::io::{self, Read, Write};

use twox_hash::{XxHash3_64, XxHash3_128};

/// 64-bit hash of a key: decides buckets, splits and hashed rows.
#[inline]
pub fn hash64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// 128-bit hash of a key, for identities: no log is large enough to expect a collision.
#[inline]
pub fn hash128(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// Computes [`hash128`] of everything in `input`, reading 1 MiB at a time.
///
/// # Errors
///
/// A read error of `input`.
pub fn hash128_of(mut input: impl Read) -> io::Result<u128> {
    let mut hasher = XxHash3_128::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish_128()),
            Ok(n) => hasher.write(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A writer that passes bytes on and computes [`hash128`] of them.
pub struct Hashed<W> {
    inner: W,
    hasher: XxHash3_128,
}

impl<W> Hashed<W> {
    /// Wraps `inner`; nothing is hashed yet.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: XxHash3_128::new() }
    }

    /// Returns the inner writer.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Returns the hash of everything written so far.
    pub fn hash(&self) -> u128 {
        self.hasher.finish_128()
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.write(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: fmt::Debug> fmt::Debug for Hashed<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hashed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Mixes two numbers into a well-distributed 64-bit number (SplitMix64's finaliser); a bijection of `value` for each `seed`.
#[inline]
pub fn mix64(seed: u64, value: u64) -> u64 {
    let mut z =
        seed.wrapping_add(value.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_hashes_never_change() {
        assert_eq!(hash64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(hash128(b""), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
        assert_ne!(mix64(0, 1), mix64(1, 0));
        for n in [0, 1, 200, 300, (1 << 20) + 7, 3 << 20] {
            let bytes: Vec<u8> = (0..n).map(|i| mix64(5, i) as u8).collect();
            assert_eq!(hash128_of(&bytes[..]).unwrap(), hash128(&bytes), "{n} bytes");
            let mut written = Hashed::new(Vec::new());
            bytes.chunks(1_000).for_each(|piece| written.write_all(piece).unwrap());
            assert_eq!((written.hash(), written.get_ref()), (hash128(&bytes), &bytes), "{n} bytes");
        }
    }
}
