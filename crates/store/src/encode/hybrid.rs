//! Parquet's hybrid of run lengths and bit-packed numbers.

/// Minimum equal numbers that become a run.
const RUN_MIN: usize = 16;

/// The number of bits that numbers below `count` need.
pub(super) fn width(count: usize) -> u8 {
    (usize::BITS - count.saturating_sub(1).leading_zeros()) as u8
}

/// Appends `numbers` of up to `width` bits to `to`.
pub(super) fn encode(numbers: &[u32], width: u8, to: &mut Vec<u8>) {
    // Bit-packed numbers come in groups of 8; only the last group of a page may be filled up.
    let (mut packed, mut at) = (0, 0);
    while at < numbers.len() {
        let run = numbers[at..].iter().take_while(|number| **number == numbers[at]).count();
        if run < RUN_MIN {
            at = (at + 8).min(numbers.len());
            continue;
        }
        pack(&numbers[packed..at], width, to);
        header((run as u64) << 1, to);
        to.extend_from_slice(&numbers[at].to_le_bytes()[..usize::from(width).div_ceil(8)]);
        at += run;
        packed = at;
    }
    pack(&numbers[packed..], width, to);
}

fn pack(numbers: &[u32], width: u8, to: &mut Vec<u8>) {
    if numbers.is_empty() {
        return;
    }
    let groups = numbers.len().div_ceil(8);
    header((groups as u64) << 1 | 1, to);
    let end = to.len() + groups * usize::from(width);
    let (mut bits, mut filled) = (0u64, 0);
    for &number in numbers {
        bits |= u64::from(number) << filled;
        filled += width;
        while filled >= 32 {
            to.extend_from_slice(&(bits as u32).to_le_bytes());
            bits >>= 32;
            filled -= 32;
        }
    }
    to.extend_from_slice(&bits.to_le_bytes());
    to.resize(end, 0);
}

/// A number in 7 bits a byte, the lowest first.
fn header(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        let widths = [0, 1, 2, 3, 4, 5, 256, 257, 1 << 20].map(width);
        assert_eq!(widths, [0, 0, 1, 2, 2, 3, 8, 9, 20]);
    }

    #[test]
    fn runs_and_packed_groups() {
        let mut bytes = Vec::new();
        encode(&[1; 20], 1, &mut bytes);
        assert_eq!(bytes, [20 << 1, 1]);
        bytes.clear();
        // The example of the format's specification.
        encode(&[0, 1, 2, 3, 4, 5, 6, 7], 3, &mut bytes);
        assert_eq!(bytes, [1 << 1 | 1, 0b1000_1000, 0b1100_0110, 0b1111_1010]);
        bytes.clear();
        encode(&[7; 3], 0, &mut bytes);
        assert_eq!(bytes, [1 << 1 | 1]);
    }
}
