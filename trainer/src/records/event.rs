//! Protobuf messages of TensorBoard's event files, limited to scalars (`event.proto` and `summary.proto` of TensorFlow):
//!
//! ```text
//! Event    { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
//! Summary  { repeated Value value = 1; }
//! Value    { string tag = 1; float simple_value = 2; }
//! ```

/// Version string in the first event of every file.
const FILE_VERSION: &str = "brain.Event:2";

/// The scalars of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScalarEvent {
    /// Wall time, seconds since the epoch.
    pub wall_time: f64,
    /// Number of finished training steps.
    pub step: u64,
    /// Tags and values; empty in the first event of a file.
    pub scalars: Vec<(String, f32)>,
}

/// Wire types of protobuf, the encodings of a field's value.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED_32: u8 = 5;

impl ScalarEvent {
    /// Encodes the message; without scalars, it is the first event of a file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut event = vec![1 << 3 | FIXED_64];
        event.extend(self.wall_time.to_le_bytes());
        event.push(2 << 3 | VARINT);
        put_varint(&mut event, self.step);
        if self.scalars.is_empty() {
            put_bytes(&mut event, 3, FILE_VERSION.as_bytes());
        } else {
            let mut summary = Vec::new();
            for (tag, scalar) in &self.scalars {
                let mut value = Vec::new();
                put_bytes(&mut value, 1, tag.as_bytes());
                value.push(2 << 3 | FIXED_32);
                value.extend(scalar.to_le_bytes());
                put_bytes(&mut summary, 1, &value);
            }
            put_bytes(&mut event, 5, &summary);
        }
        event
    }

    /// Decodes a message and skips unknown fields; `None` if it is malformed.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let mut event = Self::default();
        for (number, field) in fields(message)? {
            match (number, field) {
                (1, Field::Fixed64(bytes)) => event.wall_time = f64::from_le_bytes(bytes),
                (2, Field::Varint(step)) => event.step = step,
                (5, Field::Bytes(summary)) => {
                    for (number, field) in fields(summary)? {
                        let (1, Field::Bytes(value)) = (number, field) else { continue };
                        let (mut tag, mut scalar) = (String::new(), 0.0);
                        for (number, field) in fields(value)? {
                            match (number, field) {
                                (1, Field::Bytes(text)) => tag = String::from_utf8(text.to_vec()).ok()?,
                                (2, Field::Fixed32(bytes)) => scalar = f32::from_le_bytes(bytes),
                                _ => {}
                            }
                        }
                        event.scalars.push((tag, scalar));
                    }
                }
                _ => {}
            }
        }
        Some(event)
    }
}

fn put_bytes(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | LENGTH);
    put_varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// Appends a varint: seven bits per byte, lowest first; the top bit marks that more bytes follow.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let field = match (key & 7) as u8 {
            VARINT => Field::Varint(take_varint(&mut bytes)?),
            FIXED_64 => {
                let (&value, rest) = bytes.split_first_chunk::<8>()?;
                bytes = rest;
                Field::Fixed64(value)
            }
            LENGTH => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(value)
            }
            FIXED_32 => {
                let (&value, rest) = bytes.split_first_chunk::<4>()?;
                bytes = rest;
                Field::Fixed32(value)
            }
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_bytes_that_protobuf_specifies() {
        let event = ScalarEvent { wall_time: 1.5, step: 300, scalars: vec![("loss".into(), 2.0)] };
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f][..], // 1: double 1.5
            &[0x10, 0xac, 0x02],                       // 2: varint 300
            &[0x2a, 13, 0x0a, 11],                     // 5: a summary with one value
            &[0x0a, 4, b'l', b'o', b's', b's'],        // 1: tag
            &[0x15, 0, 0, 0, 0x40],                    // 2: float 2.0
        ]
        .concat();
        assert_eq!(event.encode(), expected);
        let first = ScalarEvent::default().encode();
        assert_eq!(&first[first.len() - 15..], b"\x1a\x0dbrain.Event:2");
    }

    #[test]
    fn events_read_back() {
        for step in [0, 1, 127, 128, u64::from(u32::MAX), i64::MAX as u64] {
            let scalars = (0..40).map(|i| (format!("epoch/{i}"), step as f32 / (i + 1) as f32)).collect();
            let event = ScalarEvent { wall_time: 1.8e9, step, scalars };
            assert_eq!(ScalarEvent::decode(&event.encode()), Some(event));
        }
        assert_eq!(ScalarEvent::decode(&ScalarEvent::default().encode()), Some(ScalarEvent::default()));
        let whole = ScalarEvent { wall_time: 1.0, step: 1, scalars: vec![("t".into(), 1.0)] }.encode();
        assert_eq!(ScalarEvent::decode(&whole[..whole.len() - 1]), None);
    }
}
