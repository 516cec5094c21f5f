//! Random damage to a CSV file: which records it costs, and that blocks and threads do not change the result.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A field as text: with commas, quotes and line ends, but no line of it is a record, and one of several lines begins
/// with neither a comma nor a line end.
fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{1,6}",
        1 => "[,\"]{0,3}[a-z][a-z,\" ]{0,5}",
        1 => Just("\"".to_owned()),
        1 => "[a-z]{1,3}[,\"]{0,2}(\n|\r\n)[a-z\"]{0,4}",
        1 => "[a-z]{1,3}\n\n[a-z]{1,3}",
    ]
}

fn quoted(text: &str, always: bool) -> String {
    if always || text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// `user item` of each record; the time is its number.
type Rows = Vec<(String, String, bool)>;

fn records(rows: &Rows) -> Vec<Vec<u8>> {
    let line = |(n, (user, item, always)): (usize, &(String, String, bool))| {
        format!("{},{},{n}", quoted(user, *always), quoted(item, *always)).into_bytes()
    };
    rows.iter().enumerate().map(line).collect()
}

fn joined(records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"user_id,item_id,ts\n".to_vec();
    for record in records {
        bytes.extend_from_slice(record);
        bytes.push(b'\n');
    }
    bytes
}

/// Positions and bytes of rejected records.
type Rejections = Vec<(u64, Vec<u8>)>;

/// The accepted events, the counts, and the rejected records, read block by block without writing a table.
fn events(bytes: &[u8], threads: usize, block_bytes: usize) -> (BTreeSet<String>, RecordCounts, Rejections) {
    let mut place = Place::new();
    place.config.events.max_record_bytes = 400;
    let paths = [place.file("log.csv", bytes)];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let files = runtime.block_on(resolve(&paths, None, &place.config.events.csv)).unwrap();
    let mapping = Mapping::new(&place.config.events);
    let reading = ReadOptions {
        max_record_bytes: 400,
        block_bytes,
        unpacking: Unpacking { limit: MemorySize::bytes(1), directory: place.dir.path().into() },
        check_times: false,
    };
    let count = ByteCount::default();
    let log = LogReader { files: &files, mapping: &mapping, reading, threads, count: &count };
    let (mut found, mut counts, mut dead) = (BTreeSet::new(), RecordCounts::default(), Vec::new());
    let read: Result<(), SourceError> = log.read(|delivered| {
        if let Delivered::Block { walked, batch, .. } = delivered {
            let rows = StagedRows(&batch.rows);
            for row in 0..batch.rows.num_rows() {
                let event = rows.event(row);
                found.insert(format!("{}|{}|{}", event.user_id, event.item_id, event.ts / 1_000));
            }
            for rejected in walked.counted.rejected {
                let Raw::Bytes(bytes) = rejected.raw else { panic!("text is not read again") };
                dead.push((counts.read + rejected.at.place, bytes));
            }
            counts.add(walked.counted.counts);
        }
        Ok(())
    });
    read.unwrap();
    assert!(counts.is_complete(), "{counts:?}");
    (found, counts, dead)
}

const WHOLE: usize = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Damaging any bytes of one record costs that record and no other.
    #[test]
    fn a_damage_costs_its_own_record(
        rows in prop::collection::vec((content(), content(), prop::bool::weighted(0.2)), 2..12),
        at in any::<prop::sample::Index>(),
        from in any::<prop::sample::Index>(),
        len in 0usize..4,
        by in "[a-z,\"\n\r;ü]{0,4}",
        threads in 1usize..4,
        block_bytes in 1usize..200,
    ) {
        let mut damaged = records(&rows);
        let at = at.index(rows.len());
        let from = from.index(damaged[at].len());
        let end = (from + len).min(damaged[at].len());
        damaged[at].splice(from..end, by.bytes());
        let bytes = joined(&damaged);
        let (found, counts, dead) = events(&bytes, 1, WHOLE);
        for (n, (user, item, _)) in rows.iter().enumerate().filter(|(n, _)| *n != at) {
            let event = format!("{user}|{item}|{n}");
            prop_assert!(found.contains(&event), "{event:?} is lost: {:?}", String::from_utf8_lossy(&bytes));
        }
        prop_assert_eq!(events(&bytes, threads, block_bytes), (found, counts, dead));
    }
}

#[test]
fn every_well_formed_record_is_read_exactly() {
    let texts = ["a", ",", "\"", "\n", "a\nu,i,5\n", "\"\",", " x ", "a\r\nb", "\n,\n\"", "ü\"ü"];
    let rows: Rows = texts
        .iter()
        .flat_map(|a| texts.iter().map(move |b| (format!("x{a}"), format!("{b}x"), true)))
        .collect();
    let (found, counts, _) = events(&joined(&records(&rows)), 1, WHOLE);
    let expected: BTreeSet<String> =
        rows.iter().enumerate().map(|(n, (user, item, _))| format!("{user}|{item}|{n}")).collect();
    assert_eq!((found, counts.dead_letters), (expected, 0));
}

#[test]
fn a_quote_that_is_not_closed_swallows_no_good_line() {
    let log = "user_id,item_id,ts\nu1,a,1\nu2,\"b c,2\nu3,c,3\nu4,\"x y\",4\nu5,\"x\"y,5\nu6,5\" pipe,6\nu7,\",x\",7\nu8,e,8\n";
    let (found, counts, dead) = events(log.as_bytes(), 1, WHOLE);
    let expected = ["u1|a|1", "u3|c|3", "u4|x y|4", "u6|5\" pipe|6", "u7|,x|7", "u8|e|8"];
    assert_eq!(found, expected.map(str::to_owned).into());
    assert_eq!((counts.read, dead.len()), (8, 2));
    let values: Vec<_> = dead.iter().map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect();
    assert_eq!(values, ["u2,\"b c,2", "u5,\"x\"y,5"]);
}
