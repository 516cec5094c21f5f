//! Memory and threads change nothing in the tables.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

/// `id user item ts`, from ranges so small that everything repeats.
type Row = (Option<u8>, u8, u8, i64);

const DAY: i64 = 86_400;

fn row() -> impl Strategy<Value = Row> {
    let ts = (0..6i64, 0..2i64).prop_map(|(day, second)| day * DAY + second);
    (prop::option::weighted(0.3, 0..40u8), 0..3u8, 0..4u8, ts)
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from("event_id,user_id,item_id,ts\n");
    for (id, user, item, ts) in rows {
        let id = id.map_or_else(String::new, |id| format!("e{id}"));
        text.push_str(&format!("{id},u{user},i{item},{ts}\n"));
    }
    text
}

/// The events to be stored: a direct implementation of the contract's rule.
fn expected(files: &[Vec<Row>], stored: &mut HashSet<(i64, String)>) -> Vec<(usize, usize)> {
    let mut accepted = Vec::new();
    for (file, rows) in files.iter().enumerate() {
        let mut seen: BTreeMap<&Row, u32> = BTreeMap::new();
        for (position, row) in rows.iter().enumerate() {
            let before = seen.entry(row).or_insert(0);
            let id = match row.0 {
                Some(id) => format!("e{id}"),
                None => format!("{row:?} {before}"),
            };
            *before += 1;
            let (day, days) = (row.3 / DAY, if row.0.is_some() { 2 } else { 0 });
            if (day - days..=day + days).all(|near| !stored.contains(&(near, id.clone()))) {
                stored.insert((day, id));
                accepted.push((file, position));
            }
        }
    }
    accepted
}

async fn ingest(place: &mut Place, files: &[Vec<Row>], limits: Limits) -> IngestReport {
    place.config.events.paths =
        files.iter().enumerate().map(|(n, rows)| place.file(&format!("{n}.csv"), csv(rows))).collect();
    let report = run_within(&place.config, &place.root, limits, &Interrupt::default()).await.unwrap();
    assert_eq!(report.events.read as usize, files.iter().map(Vec::len).sum::<usize>());
    report
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_run_that_spills_gives_the_same_tables(
        first in prop::collection::vec(prop::collection::vec(row(), 1..40), 1..3),
        second in prop::collection::vec(prop::collection::vec(row(), 1..80), 1..4),
        kib in 1u64..16,
        threads in 1usize..4,
        block_bytes in 1usize..300,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let roomy = Limits { memory: MemorySize::bytes(1 << 30), threads: 1, block_bytes: 1 << 20 };
            let tight = Limits { memory: MemorySize::bytes(kib << 10), threads, block_bytes };
            let (mut one, mut other) = (Place::new(), Place::new());
            let mut stored = HashSet::new();
            for files in [&first, &second] {
                let accepted = expected(files, &mut stored);
                let roomy = ingest(&mut one, files, roomy).await;
                let tight = ingest(&mut other, files, tight).await;
                assert_eq!(roomy.events.accepted as usize, accepted.len());
                assert_eq!((roomy.events, roomy.catalogue), (tight.events, tight.catalogue));
                for (one, other) in roomy.files.iter().zip(&tight.files) {
                    assert_eq!(one.counts, other.counts);
                }
                assert_eq!(one.events().await, other.events().await);
                assert_eq!(one.items(&[]).await, other.items(&[]).await);
            }
        });
    }
}

#[tokio::test]
async fn shards_keep_the_order_of_the_files() {
    let rows: Vec<Row> = (0..200).map(|n| (None, (n % 7) as u8, (n % 5) as u8, n % 3 * DAY + n)).collect();
    let files: Vec<Vec<Row>> = rows.chunks(60).map(<[Row]>::to_vec).collect();
    for memory in [1 << 30, 1 << 14] {
        let mut place = Place::new();
        ingest(
            &mut place,
            &files,
            Limits { memory: MemorySize::bytes(memory), threads: 2, block_bytes: 100 },
        )
        .await;
        let table = place.table(EVENTS).await;
        for shard in table.shards() {
            let mut places = Vec::new();
            for batch in table.read_shard(shard, &["source", "position"]).await.unwrap() {
                let positions = batch.column(1).as_primitive::<Int64Type>().values();
                let sources = batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned);
                places.extend(sources.zip(positions.iter().copied()));
            }
            assert!(places.is_sorted() && places.len() > 60, "{places:?}");
        }
    }
}
