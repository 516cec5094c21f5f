//! The builder and the second opinion agree, whatever the log and the settings.

use std::collections::BTreeMap;

use schemas::config::{Config, DeltaTauSetting, SplitKind, Ties};
use schemas::hash::mix64;
use schemas::history::DeltaTau;
use schemas::tables::{EVENT_DATE, EVENTS, EVENTS_SCHEMA, SEQUENCES};
use store::Root;
use store::commit::{Change, CommitMode, commit};

use crate::common::{DAY_MS, Event, append};
use pipeline::sequences::build;
use pipeline::verify::{verify, verify_within};

/// A log with bursts, ties, interleaved requests, several actions and, every so often, a copy of an event.
fn log(seed: u64, n: u64) -> Vec<Event> {
    let mut now = vec![20_000 * DAY_MS; 30];
    let mut events: Vec<Event> = Vec::new();
    for i in 0..n {
        let r = mix64(seed, i);
        let user = (r % 30).min(r / 30 % 30) as usize;
        now[user] += [0, 0, 400, 5_000, 60_000, 1_000_000, 40_000_000][(r / 1_000 % 7) as usize];
        let event = Event {
            event_id: format!("e{i}"),
            user: format!("user{user}"),
            item: format!("item{}", r / 10_000 % 12),
            ts: now[user],
            request: (!r.is_multiple_of(3)).then(|| format!("request{}-{}", user, i / 40 + r / 100_000 % 2)),
            request_ts: None,
            action: ["play", "play", "skip"][(r / 1_000_000 % 3) as usize].into(),
            value: None,
            source: format!("file{}", r / 10_000_000 % 3),
            position: (i % 50) as i64,
        };
        events.push(event.clone());
        match i % 40 {
            // The same record twice, the same id elsewhere, the same id for another user.
            13 => events.push(event),
            26 => events.push(Event { source: "file0".into(), ..event }),
            39 => events.push(Event { user: "user1".into(), source: "file9".into(), ..event }),
            // On the next date, the one before and one that is farther away.
            3 => events.push(Event { ts: event.ts + DAY_MS, source: "file0".into(), ..event }),
            19 => events.push(Event { ts: event.ts - DAY_MS, source: "file9".into(), ..event }),
            33 => events.push(Event { ts: event.ts + 3 * DAY_MS, position: 99, ..event }),
            _ => {}
        }
    }
    events
}

#[tokio::test]
async fn what_is_built_verifies() {
    let margins = [DeltaTau::Off, DeltaTau::Margin(0), DeltaTau::Margin(900_000), DeltaTau::Margin(30_000)];
    for (seed, margin) in (0..).zip(margins) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        for part in log(seed, 1_500).chunks(700) {
            append(&root, part).await;
        }
        let mut config = Config::default();
        config.sequences.delta_tau = DeltaTauSetting::Fixed(margin);
        config.sequences.max_len = [200, 8, 20, 30][seed as usize];
        config.sequences.sft_share = 0.2;
        config.sequences.shards = 3;
        config.events.dedup_days = [2, 0, 1, 3][seed as usize];
        for (ties, actions, split) in [
            (Ties::FileOrder, vec![], SplitKind::LeaveOneOut),
            (Ties::Shuffled, vec!["play".to_owned()], SplitKind::None),
        ] {
            config.sequences.ties = ties;
            config.sequences.tie_seed = 7;
            config.sequences.actions = actions;
            config.sequences.split = split;
            config.sequences.guard_share = (split == SplitKind::None).then_some(0.2);
            build(&config, &root).await.unwrap();
            let found = verify_within(&config, &root, Some(SEQUENCES), 400).await.unwrap();
            assert_eq!(found.violation, None, "seed {seed}, {ties:?}");
            assert!(found.tables[0].skipped.is_empty(), "{found}");
            assert_eq!(found, verify(&config, &root, Some(SEQUENCES)).await.unwrap());
        }
        // The copies are a violation of `events`, not of what was made from it.
        let found = verify(&config, &root, Some(EVENTS)).await.unwrap();
        assert!(found.violation.unwrap().to_string().contains("unique within its event_date"));
    }
}

/// Two events with one id, two days apart.
#[tokio::test]
async fn an_id_stands_once_within_the_days_that_its_table_was_written_under() {
    let event = |day: i64, (source, position): (&str, i64)| Event {
        event_id: "a".into(),
        ts: day * DAY_MS,
        position,
        source: source.into(),
        ..log(1, 1).remove(0)
    };
    let (file, other) = (("log.csv", 1), ("more.csv", 2));
    let (message, same) = (("clicks-0", 3), ("clicks-0", 3));
    let (again, anew, elsewhere) = (("clicks-0", 4), ("clicks-0#1", 3), ("other-0", 3));
    let cases = [
        // Whether it is a violation, and what is not claimed.
        (Some(2), [file, other], true, None),
        (Some(2), [message, same], true, None),
        (Some(2), [file, elsewhere], true, None),
        (
            Some(2),
            [message, again],
            false,
            Some("1 events have the id of another one, and one of the two is a message"),
        ),
        (Some(2), [message, anew], false, Some("is a message")),
        (Some(2), [file, message], false, Some("is a message")),
        (Some(1), [file, other], false, Some("within 1 days, and the configuration has 2; 1 events have")),
        (None, [file, other], false, Some("within 0 days, and the configuration has 2; 1 events have")),
    ];
    for (days, [one, two], is_violation, no_claim) in cases {
        for topic_from in ["configuration", "table"] {
            let directory = tempfile::tempdir().unwrap();
            let root = Root::new(directory.path().to_str().unwrap()).unwrap();
            append(&root, &[event(5, one), event(7, two)]).await;
            let mut config = Config::default();
            let mut properties = BTreeMap::new();
            properties.extend(days.map(|days: u32| ("dedup_days".to_owned(), days.to_string())));
            match topic_from {
                "table" => {
                    _ = properties.insert("climberPilot.kafka.clicks.0".into(), "cluster=c topic=t".into())
                }
                _ => config.kafka.topic = "clicks".into(),
            }
            let change = Change {
                table: EVENTS,
                schema: &EVENTS_SCHEMA,
                partition_by: &[EVENT_DATE],
                mode: CommitMode::Append,
                shards: &[],
                properties,
                read_version: Some(0),
                transactions: BTreeMap::new(),
            };
            commit(&root, change).await.unwrap();
            let found = verify(&config, &root, Some(EVENTS)).await.unwrap();
            let case = format!("{days:?} {one:?} {two:?} {topic_from}: {found}");
            let violation = found.violation.as_ref().map(ToString::to_string);
            assert_eq!(
                violation.is_some_and(|text| text.contains("unique within 2 days")),
                is_violation,
                "{case}"
            );
            let notes = &found.tables[0].not_claimed;
            let noted = |words: &str| notes.iter().any(|note| note.reason.contains(words));
            assert!(no_claim.is_none_or(noted), "{case}");
        }
    }
}

#[tokio::test]
async fn an_event_on_both_sides_of_midnight_counts_once() {
    let event = |id: &str, day: i64, position: i64| Event {
        event_id: id.into(),
        ts: day * DAY_MS,
        position,
        source: "file".into(),
        action: "play".into(),
        user: "user".into(),
        ..log(1, 1).remove(0)
    };
    let log = [event("a", 5, 3), event("a", 6, 2), event("b", 5, 0), event("b", 9, 1), event("c", 9, 4)];
    for (days, expected) in [(0, 5), (1, 4), (4, 3)] {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        append(&root, &log[..2]).await;
        append(&root, &log[2..]).await;
        let mut config = Config::default();
        config.events.dedup_days = days;
        let report = build(&config, &root).await.unwrap();
        let counts = report.counts.unwrap();
        assert_eq!(counts.events - counts.duplicates, expected, "{days}");
        let rows = crate::common::rows(&root).await;
        let times: Vec<i64> =
            rows.into_values().flatten().flat_map(|row| row.ts).map(|ts| ts / DAY_MS).collect();
        let kept: &[i64] = match days {
            0 => &[5, 5, 6, 9, 9],
            1 => &[5, 6, 9, 9],
            _ => &[5, 6, 9],
        };
        assert_eq!(times, kept, "{days}");
        let found = verify(&config, &root, Some(SEQUENCES)).await.unwrap();
        assert!(found.violation.is_none() && found.tables[0].skipped.is_empty(), "{found}");
    }
}

#[tokio::test]
async fn what_a_producer_sent_again_much_later_is_no_violation() {
    let event = |source: &str, position: i64| Event {
        source: source.into(),
        position,
        event_id: "e".into(),
        ..log(1, 1).remove(0)
    };
    let mut config = Config::default();
    config.kafka.topic = "clicks".into();
    for (first, others, fine) in [
        ("clicks-0", vec![event("clicks-0", 2)], true),
        ("clicks-0", vec![event("clicks-1", 1)], true),
        ("clicks-0", vec![event("clicks-0", 2), event("clicks-0", 3)], true),
        ("clicks-0", vec![event("file.csv", 2)], true),
        ("file.csv", vec![event("clicks-0", 1)], true),
        ("clicks-0", vec![event("clicks-0", 1)], false),
        ("clicks-0", vec![event("clicks-0", 2), event("clicks-0", 2)], false),
        ("clicks-old", vec![event("clicks-old", 2)], false),
        ("file.csv", vec![event("other-0", 1)], false),
        ("file.csv", vec![event("file.csv", 2)], false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        append(&root, &[event(first, 1)]).await;
        append(&root, &others).await;
        let found = verify(&config, &root, Some(EVENTS)).await.unwrap();
        assert_eq!(found.violation.is_none(), fine, "{found}");
        assert_eq!(found.to_string().contains("sent again"), fine, "{found}");
    }
}
