//! Fuzz target for TensorBoard's files: any bytes decode to events, or end the file.

use super::event::ScalarEvent;
use super::tfrecord;

/// Reads frames and events from any bytes and checks that they encode back to the same.
pub fn tfrecord(bytes: &[u8]) {
    let mut left = bytes;
    while let Some((data, length)) = tfrecord::unframe(left) {
        assert_eq!(tfrecord::frame(data), left[..length]);
        left = &left[length..];
        message(data);
    }
    // Random bytes rarely have valid checksums, so they are also decoded without a frame.
    message(bytes);
    let framed = tfrecord::frame(bytes);
    assert_eq!(tfrecord::unframe(&framed), Some((bytes, framed.len())));
}

fn message(bytes: &[u8]) {
    if let Some(event) = ScalarEvent::decode(bytes) {
        let again = ScalarEvent::decode(&event.encode());
        let equal = |a: &ScalarEvent, b: &ScalarEvent| {
            let bits = |event: &ScalarEvent| {
                let scalars = event.scalars.iter().map(|(tag, scalar)| (tag.clone(), scalar.to_bits()));
                (event.wall_time.to_bits(), event.step, scalars.collect::<Vec<_>>())
            };
            bits(a) == bits(b)
        };
        assert!(again.is_some_and(|again| equal(&again, &event)), "{event:?}");
    }
}

/// Returns whole files as seeds.
pub fn seeds() -> Vec<Vec<u8>> {
    let event = ScalarEvent {
        wall_time: 1.5,
        step: 300,
        scalars: vec![("loss".into(), 0.5), ("hr".into(), f32::NAN)],
    };
    let first = tfrecord::frame(&ScalarEvent::default().encode());
    vec![[&first[..], &tfrecord::frame(&event.encode())].concat(), event.encode(), first]
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_bytes_are_events_or_their_end() {
        let seeds = super::seeds();
        let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
        let tokens: [&[u8]; 4] = [b"\xff\xff\xff\xff\x0f", b"\x80", b"\x2a", b"\x0a"];
        testkit::drive("tfrecord", &seeds, &tokens, super::tfrecord);
    }
}
