//! Random bytes: every record is accounted for, nothing panics, and a second run adds nothing.

use proptest::prelude::*;

use super::*;

/// Syntax fragments, which exercise the parsers more than random bytes do.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(b"u1,i1,100\n".to_vec()),
        4 => Just(b"{\"user_id\": \"u\", \"item_id\": 3, \"ts\": 1}\n".to_vec()),
        2 => Just(b"\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        2 => Just(b"\"".to_vec()),
        2 => Just(b",".to_vec()),
        1 => Just(b"{\"ts\": ".to_vec()),
        1 => Just(b"\xff\xfe".to_vec()),
        1 => Just("ü".as_bytes().to_vec()),
        1 => Just("ü".as_bytes()[..1].to_vec()),
        1 => Just(vec![b'z'; 90]),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        2 => "[u0-9,\"\\n]{0,30}".prop_map(String::into_bytes),
    ]
}

fn check(name: &str, bytes: &[u8], block_bytes: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut place = Place::new();
        place.config.events.max_dead_letter_rate = 1.0;
        place.config.events.max_record_bytes = 64;
        match place.ingest_file(name, bytes).await {
            Ok(first) => {
                assert!(first.events.is_complete());
                assert_eq!(place.events().await.len() as u64, first.events.accepted);
                let dead = place.dead_letters().await;
                assert_eq!(dead.len() as u64, first.events.dead_letters);
                assert!(dead.iter().all(|(_, _, raw)| raw.len() <= 64));
                // Every stored byte is one of the file's.
                assert!(
                    dead.iter()
                        .all(|(_, _, raw)| raw.is_empty() || bytes.windows(raw.len()).any(|w| w == raw))
                );
                // The block boundaries do not change the result.
                let mut other = Place::new();
                other.config.events = place.config.events.clone();
                other.config.events.paths = vec![other.file(name, bytes)];
                let limits = Limits { block_bytes, ..Limits::default() };
                let cut =
                    run_within(&other.config, &other.root, limits, &Interrupt::default()).await.unwrap();
                assert_eq!((cut.events, cut.dead_letters), (first.events, first.dead_letters));
                assert_eq!(other.events().await, place.events().await);
                assert_eq!(other.dead_letters().await, dead);
                let again = place.ingest().await.unwrap();
                assert_eq!((again.events.accepted, again.versions), (0, first.versions));
            }
            Err(
                IngestError::Empty { .. }
                | IngestError::Source(SourceError::NotTheFormat { .. } | SourceError::NoSuchColumn { .. }),
            ) => {}
            Err(error) => panic!("{error}"),
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn csv(pieces in prop::collection::vec(piece(), 0..60), block_bytes in 1usize..200) {
        let mut bytes = b"user_id,item_id,ts\n".to_vec();
        bytes.extend(pieces.concat());
        check("log.csv", &bytes, block_bytes);
    }

    #[test]
    fn json_lines(pieces in prop::collection::vec(piece(), 0..60), block_bytes in 1usize..200) {
        check("log.jsonl", &pieces.concat(), block_bytes);
    }

    #[test]
    fn any_bytes_under_any_name(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        name in prop::sample::select(vec!["a.csv", "a.jsonl"]),
    ) {
        check(name, &bytes, 7);
    }
}
