//! TFRecord, the framing of TensorBoard's event files:
//!
//! ```text
//! u64 length │ u32 masked CRC of the length │ data │ u32 masked CRC of the data      all little-endian
//! ```
//!
//! The CRC is CRC32C (Castagnoli; RFC 3720, appendix B.4), masked because the CRC of data that contains CRCs is weak.

/// Bytes of a frame besides its data.
const OVERHEAD: usize = 8 + 4 + 4;

/// Returns `data` as one frame.
pub(super) fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(data.len() + OVERHEAD);
    frame.extend(length);
    frame.extend(masked(crc32c(&length)).to_le_bytes());
    frame.extend(data);
    frame.extend(masked(crc32c(data)).to_le_bytes());
    frame
}

/// Returns the data of the frame at the start of `bytes` and the length of the frame; `None` if there is no complete, undamaged
/// frame.
pub(super) fn unframe(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*length_crc) != masked(crc32c(length)) {
        return None;
    }
    let (data, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let data_crc = rest.first_chunk::<4>()?;
    (u32::from_le_bytes(*data_crc) == masked(crc32c(data))).then_some((data, data.len() + OVERHEAD))
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns the CRC32C of `data`, by one table lookup per byte.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(!0u32, |crc, &byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

const fn table() -> [u32; 256] {
    /// The polynomial, lowest power first.
    const CASTAGNOLI: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ CASTAGNOLI } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_gives_the_published_values() {
        // RFC 3720, appendix B.4, and the check value of CRC catalogues.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (data, crc) in [
            (&b"123456789"[..], 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (&[], 0),
        ] {
            assert_eq!(crc32c(data), crc, "{data:?}");
        }
    }

    #[test]
    fn frames_read_back_and_damage_is_seen() {
        let mut bytes = frame(b"first");
        let first = bytes.len();
        bytes.extend(frame(b""));
        assert_eq!(unframe(&bytes), Some((&b"first"[..], first)));
        assert_eq!(unframe(&bytes[first..]), Some((&b""[..], OVERHEAD)));
        for cut in 0..first {
            assert_eq!(unframe(&bytes[..cut]), None, "torn at {cut}");
        }
        for at in 0..first {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(unframe(&damaged), None, "damaged at {at}");
        }
    }
}
