//! Simulations that go to a topic.

use std::collections::BTreeMap;

use schemas::config::Config;
use simulate::{Rates, run};

use super::*;
use crate::kafka::producer::tests::{Received, broker, receive, receive_some};

/// Few users, so that days have few events, and high rates of bad records.
fn settings() -> Settings {
    let rates = Rates { late: 0.1, duplicate: 0.05, bad: 0.05 };
    Settings { users: 60, days: 6, items: 300, rates, ..Settings::new(12_000) }
}

/// The fields of a message, if it is JSON.
fn fields(message: &Received) -> Option<serde_json::Value> {
    serde_json::from_slice(message.2.as_deref().unwrap()).ok()
}

#[test]
fn a_topic_gets_what_the_files_hold() {
    let settings = Settings { threads: 1, ..settings() };
    let (_cluster, kafka) = broker(3);
    let dir = tempfile::tempdir().unwrap();
    let to = TopicSettings { kafka, pace: Pace::default() };
    let report = send(&settings, &to, Some(&dir.path().join("topic")), &Interrupt::default()).unwrap();
    let files = run(&settings, &dir.path().join("files"), &Interrupt::default()).unwrap();
    assert_eq!(report.counts, files.counts);
    let messages = receive(&to.kafka, 3, report.counts.records as usize);

    // User → lines, in their order.
    let mut sent: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut partitions: BTreeMap<Vec<u8>, i32> = BTreeMap::new();
    for (partition, key, value) in messages {
        let key = key.unwrap();
        assert_eq!(*partitions.entry(key.clone()).or_insert(partition), partition);
        sent.entry(key).or_default().push(value.unwrap());
    }
    let mut lines = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path().join("files/events"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for path in files {
        let bytes = std::fs::read(path).unwrap();
        lines.extend(bytes.split(|&c| c == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
    }
    let user = |line: &[u8]| -> Option<Vec<u8>> {
        let fields: serde_json::Value = serde_json::from_slice(line).ok()?;
        Some(fields["user_id"].as_str().filter(|user| user.len() < 20)?.as_bytes().to_vec())
    };
    let mut written: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for line in &lines {
        written.entry(user(line).unwrap_or_default()).or_default().push(line.clone());
    }
    let nobody = written.remove(&Vec::new()).unwrap();
    for (user, lines) in written {
        let of_user: Vec<_> = sent[&user].iter().filter(|line| !nobody.contains(line)).collect();
        assert_eq!(of_user, lines.iter().collect::<Vec<_>>());
    }
    assert_eq!(sent.values().map(Vec::len).sum::<usize>(), lines.len());

    let config = Config::load(&report.config.unwrap(), &[]).unwrap();
    assert_eq!((config.kafka.brokers, config.kafka.topic), (to.kafka.brokers, to.kafka.topic));
    assert!(config.events.paths.is_empty());
}

#[test]
fn a_live_log_happens_when_it_is_sent() {
    let rates = Rates { late: 0.1, duplicate: 0.0, bad: 0.0 };
    let settings = Settings { rates, days: 1, users: 20, items: 100, ..Settings::new(100) };
    let (_cluster, kafka) = broker(1);
    let to = TopicSettings { kafka, pace: Pace { rate: Some(2_000.0), now: true } };
    let before = chrono::Utc::now().timestamp_millis();
    let report = send(&settings, &to, None, &Interrupt::default()).unwrap();
    let after = chrono::Utc::now().timestamp_millis();
    assert_eq!((report.counts.late, report.config.is_none()), (0, true));
    let mut last = before;
    for message in receive(&to.kafka, 1, report.counts.records as usize) {
        let fields = fields(&message).unwrap();
        let ts = fields["ts"].as_i64().unwrap();
        assert!((last..=after).contains(&ts), "{last} {ts} {after}");
        assert!(fields["request_ts"].as_i64().is_none_or(|request| request <= ts));
        last = ts;
    }
}

#[test]
fn a_stopped_log_ends_with_what_was_acknowledged() {
    let (_cluster, kafka) = broker(1);
    let to = TopicSettings { kafka, pace: Pace { rate: Some(100.0), now: false } };
    let interrupt = Interrupt::default();
    let handle = interrupt.clone();
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| send(&settings(), &to, None, &interrupt));
        // Stop when the topic has messages, not after a fixed time.
        receive_some(&to.kafka);
        handle.request();
        run.join().unwrap().unwrap()
    });
    assert!(report.interrupted && report.counts.records > 0);
    assert!(report.counts.records < 12_000);
    receive(&to.kafka, 1, report.counts.records as usize);
}
