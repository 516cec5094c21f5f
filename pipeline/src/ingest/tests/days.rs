//! One id on several dates.

use super::*;

/// A line for each `(id, seconds)`.
fn log(events: &[(&str, i64)]) -> String {
    let lines = events.iter().map(|(id, ts)| format!("{id},u,i{ts},{ts}\n"));
    "event_id,user_id,item_id,ts\n".to_owned() + &lines.collect::<String>()
}

const DAY: i64 = 86_400;

#[tokio::test]
async fn an_id_on_both_sides_of_midnight_is_one_event() {
    for (threads, memory) in [(1, "1GiB"), (3, "1GiB"), (2, "1KiB")] {
        let mut place = Place::new();
        let file = log(&[("a", DAY), ("b", 5), ("a", DAY - 1), ("b", 3 * DAY), ("c", 7), ("b", 2 * DAY)]);
        place.config.events.paths = vec![place.file("log.csv", file)];
        let memory: MemorySize = memory.parse().unwrap();
        let limits = Limits { memory, threads, ..Limits::default() };
        let report = run_within(&place.config, &place.root, limits, &Interrupt::default()).await.unwrap();
        // The first `b` is three days before the second, and the third is near both.
        assert_eq!((report.events.accepted, report.events.duplicates), (4, 2), "{threads}");
        let stored = place.events().await;
        let ids: Vec<&str> = stored.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "b", "c"], "the first of each by position: {stored:?}");
        assert!(stored[0].1.contains(&format!("i{DAY} ")), "{stored:?}");
        assert_eq!(report.files[0].counts.duplicates, 2);
    }
}

#[tokio::test]
async fn what_is_stored_within_the_days_stays() {
    let mut place = Place::new();
    place.ingest_file("one.csv", log(&[("a", DAY - 1), ("b", 0)])).await.unwrap();
    let more = log(&[("a", DAY), ("a", 10 * DAY), ("b", 2 * DAY), ("c", 3 * DAY), ("c", DAY)]);
    let report = place.ingest_file("more.csv", &more).await.unwrap();
    assert_eq!((report.events.accepted, report.events.duplicates), (2, 3));
    let again = place.ingest_file("more.csv", &more).await.unwrap();
    assert_eq!((again.events.accepted, again.events.duplicates), (0, 5));
    assert_eq!(place.events().await.len(), 4);
}

#[tokio::test]
async fn the_days_are_a_setting() {
    for (days, accepted) in [(0, 4), (1, 3), (3, 2), (4_000_000_000, 1)] {
        let mut place = Place::new();
        place.config.events.dedup_days = days;
        let report = place
            .ingest_file("log.csv", log(&[("a", 0), ("a", DAY), ("a", 3 * DAY), ("a", 6 * DAY)]))
            .await
            .unwrap();
        assert_eq!(report.events.accepted, accepted, "{days}");
    }
}

#[tokio::test]
async fn equal_content_without_an_id_has_one_date() {
    let mut place = Place::new();
    let report =
        place.ingest_file("log.csv", "user_id,item_id,ts\nu,i,86399\nu,i,86400\nu,i,86399\n").await.unwrap();
    assert_eq!((report.events.accepted, report.events.duplicates), (3, 0));
}
