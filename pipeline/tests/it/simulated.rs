//! Simulated logs: `ingest` finds the numbers that the simulation reports.

use std::collections::BTreeSet;

use schemas::config::Config;
use simulate::{Compression, LogCounts, LogFormat, Rates, Settings, flaws, run};
use store::Root;
use terminal::Interrupt;

/// Few users, so that days have few events, and high rates of bad records.
fn settings() -> Settings {
    let rates = Rates { late: 0.1, duplicate: 0.05, bad: 0.05 };
    Settings { users: 60, days: 6, items: 300, rates, ..Settings::new(12_000) }
}

/// Simulates and ingests; asserts that ingestion finds the written numbers.
async fn ingest(settings: &Settings) {
    let dir = tempfile::tempdir().unwrap();
    let report = run(settings, dir.path(), &Interrupt::default()).unwrap();
    let config = Config::load(&dir.path().join("simulated.toml"), &[]).unwrap();
    let root = Root::new(&config.root).unwrap();
    let found = pipeline::ingest::run(&config, &root, &Interrupt::default()).await.unwrap();

    let LogCounts { records, events, late, duplicates, bad } = &report.counts;
    assert_eq!(*records, events + duplicates + bad.values().sum::<u64>());
    assert_eq!(found.events.read, *records);
    assert_eq!(found.events.accepted, *events);
    assert_eq!(found.events.duplicates, *duplicates);
    assert_eq!(&found.dead_letters, bad);
    let expected: BTreeSet<_> = flaws(settings.format).iter().map(|reason| reason.code()).collect();
    assert_eq!(bad.keys().copied().collect::<BTreeSet<_>>(), expected, "every kind of bad record is there");
    assert!(*late > 0 && *duplicates > 0);
    assert!(events.abs_diff(settings.events) < settings.events / 5, "{events}");
    let items = found.catalogue;
    assert_eq!(
        (items.added, items.from_events),
        (settings.items.into(), 0),
        "every item is in the catalogue"
    );
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);

    let built = pipeline::sequences::build(&config, &root).await.unwrap();
    assert!(built.to_string().contains("rows"), "{built}");
}

#[tokio::test]
async fn json_lines_hold_what_the_report_says() {
    ingest(&settings()).await;
    ingest(&Settings { compression: Compression::Gzip, files_per_day: 3, ..settings() }).await;
}

#[tokio::test]
async fn csv_holds_what_the_report_says() {
    ingest(&Settings { format: LogFormat::Csv, ..settings() }).await;
    ingest(&Settings { format: LogFormat::Csv, compression: Compression::Zstd, ..settings() }).await;
}

#[tokio::test]
async fn parquet_holds_what_the_report_says() {
    ingest(&Settings { format: LogFormat::Parquet, ..settings() }).await;
    ingest(&Settings { format: LogFormat::Parquet, compression: Compression::Zstd, ..settings() }).await;
}
