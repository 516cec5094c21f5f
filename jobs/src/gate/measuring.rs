//! Tests of [`measure`](super::measure) on small trained models.

use std::collections::BTreeSet;

use chrono::{NaiveDate, Utc};
use pipeline::{ingest, sequences};
use store::publication::Kind;
use tempfile::TempDir;
use terminal::Interrupt;
use trainer::judge::{METRICS, OF_RANKS};
use trainer::learn::{TrainOptions, pretrain};

use super::*;

struct Service {
    directory: TempDir,
    config: Config,
    root: Root,
}

impl Service {
    /// Ingests users who walk through a catalogue of 20 items, holds a third of them out, and trains `models`, each with its
    /// seed.
    async fn new(models: &[(&str, u64)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut log = String::from("user,item,time\n");
        for user in 0..30u32 {
            for i in 0..12u32 {
                let item = 1 + (user * 7 + i * (1 + user % 3)) % 20;
                log += &format!("u{user},i{item},{}\n", 1_600_000_000 + user * 100_000 + i * 3_600);
            }
        }
        std::fs::write(directory.path().join("log.csv"), log).unwrap();
        let settings = [
            "events.columns.user_id=user",
            "events.columns.item_id=item",
            "events.columns.ts=time",
            "events.ts_format=s",
            "sequences.max_len=12",
            "sequences.shards=1",
            "sequences.split=none",
            "sequences.guard_share=0.34",
            "model.d=8",
            "model.layers=1",
            "model.heads=2",
            "model.feed_forward=2",
            "model.max_distance=8",
            "pretrain.epochs=1",
            "pretrain.batch_size=16",
            "gate.resamples=100",
        ];
        let mut config = Config::from_overrides(&settings.map(str::to_owned)).unwrap();
        config.root = directory.path().join("root").display().to_string();
        config.events.paths = vec![directory.path().join("log.csv").display().to_string()];
        let root = Root::new(&config.root).unwrap();
        let interrupt = Interrupt::default();
        ingest::run_within(&config, &root, ingest::Limits::default(), &interrupt).await.unwrap();
        sequences::build(&config, &root).await.unwrap();
        for &(name, seed) in models {
            let config = Config { seed, ..config.clone() };
            let options =
                TrainOptions { name, fresh: false, interrupt: &interrupt, stop_after: None, job: None };
            pretrain::run(&config, &root, options).await.unwrap();
        }
        Self { directory, config, root }
    }
}

fn published(root: &Root, number: u64, model: &str) -> Publication {
    let hash = checkpoint::hash(&root.model_path(model)).unwrap();
    Publication {
        number,
        parent: None,
        kind: Kind::Daily,
        run: model.into(),
        published_at: Utc::now(),
        base: model.into(),
        base_hash: hash.clone(),
        served: model.into(),
        served_hash: hash,
        daily: number,
        learned_events: 0,
        full_training: NaiveDate::default(),
        full_events: 0,
        tables: BTreeMap::new(),
        metrics: BTreeMap::new(),
        restores: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_measured_beside_those_that_are_served() {
    let service = Service::new(&[("old", 1), ("new", 2), ("twin", 1)]).await;
    let Service { config, root, directory: _directory } = &service;
    let old = published(root, 1, "old");
    let measured = measure(config, root, "new", vec![&old], Some(&old)).await.unwrap();
    // The guard's hit rates, recomputed from the stored ranks.
    let rates = |model: &str| {
        let path = root.model_path(model).join("ranks-validation.parquet");
        let rows = judge::stored::read_ranks(&path).unwrap().unwrap();
        let as_served = Protocol::ALL.iter().position(|&protocol| protocol == Protocol::AsServed).unwrap();
        let ranks: Vec<Option<u32>> = rows
            .iter()
            .filter(|row| row.horizon == 1)
            .filter_map(|row| row.ranks[as_served])
            .map(|ranks| ranks.unseen)
            .collect();
        let hits = ranks.iter().flatten().filter(|&&rank| rank <= 10).count();
        (ranks.len(), hits as f64 / ranks.len() as f64)
    };
    let ((targets, ours), (_, theirs)) = (rates("new"), rates("old"));
    assert!(targets > 50, "{targets}");
    assert_eq!((measured.model.as_deref(), measured.guard_targets), (Some("new"), targets));
    assert!((measured.guard["hr@10"] - ours).abs() < 1e-12, "{measured:?}");
    let [served] = &measured.published[..] else { panic!("{measured:?}") };
    assert_eq!((served.number, served.model.as_str()), (1, "old"));
    assert!((served.guard["hr@10"] - theirs).abs() < 1e-12, "{served:?}");
    let Difference { value, low, high } = served.differences["hr@10"];
    assert!((value - (ours - theirs)).abs() < 1e-12 && low <= value && value <= high, "{served:?}");
    // Every metric of ranks is a figure.
    let names: BTreeSet<&str> = METRICS[..OF_RANKS].iter().map(|metric| metric.name).collect();
    assert!(names.iter().eq(served.differences.keys()), "{served:?}");
    assert!(names.iter().eq(served.guard.keys()) && names.iter().eq(measured.guard.keys()), "{measured:?}");
    assert!(measured.health.coverage() > 0.0 && served.health.coverage() > 0.0);
    // The best model is the served one: it is measured once.
    assert_eq!((&measured.best, &measured.not_compared), (&None, &None));

    // Equal weights differ in nothing, and the best model is compared if it is another one.
    let same = measure(config, root, "twin", vec![&old], Some(&published(root, 2, "new"))).await.unwrap();
    assert!(same.published[0].differences.values().all(|d| *d == Difference::default()), "{same:?}");
    assert_eq!(same.best.as_ref().map(|best| (best.number, best.model.as_str())), Some((2, "new")));

    // Replaced weights are not compared.
    let other = Publication { served_hash: "0".repeat(32), ..old.clone() };
    let measured = measure(config, root, "new", vec![&other], Some(&other)).await.unwrap();
    assert!(measured.published.is_empty() && measured.best.is_none(), "{measured:?}");
    assert!(measured.not_compared.unwrap().contains("are not those that were published"));
    assert!(!measured.guard.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_nothing_is_compared() {
    let Service { config, root, directory: _directory } = &mut Service::new(&[("old", 1)]).await;
    config.sequences.guard_share = Some(0.0);
    sequences::build(config, root).await.unwrap();
    let interrupt = Interrupt::default();
    let options =
        TrainOptions { name: "new", fresh: false, interrupt: &interrupt, stop_after: None, job: None };
    pretrain::run(config, root, options).await.unwrap();
    let old = published(root, 1, "old");
    let measured = measure(config, root, "new", vec![&old], Some(&old)).await.unwrap();
    assert_eq!((measured.guard_targets, measured.guard.is_empty()), (0, true), "{measured:?}");
    assert!(measured.published.is_empty() && measured.best.is_none());
    assert!(!judge(&config.gate, &measured, true).publish);
}
