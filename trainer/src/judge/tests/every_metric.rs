//! Each row of [`METRICS`] has its own value in every output of evaluation, training and comparison.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::stored;
use super::super::stored::instructed::{
    InstructedTarget, instructed_path, read_instructed, write_instructed,
};
use super::*;
use crate::compare::{self, Group, Options};
use crate::data::SequencesSource;
use crate::records::{self, EpochMetrics, RunRecords, Validation};

/// Returns a distinct value per metric.
fn value(key: Key) -> f64 {
    (1.0 + key.index() as f64) / 1_024.0
}

/// Returns a report with one line without a condition and one under a condition.
fn report() -> EvaluateReport {
    let line = |condition: Option<&str>| Metrics {
        condition: condition.map(str::to_owned),
        condition_from: condition.map(|_| "target".into()),
        targets: 1,
        means: match condition {
            Some(_) => PerMetric::from_fn(|key| Some(value(key))),
            None => PerMetric::<_, OF_RANKS>::from_fn(|key| Some(value(key))).without_condition(),
        },
        ..Metrics::of("m", "test", Protocol::Standard, true)
    };
    EvaluateReport {
        results: vec![line(None), line(Some("genre"))],
        hides_nothing: false,
        horizon: Vec::new(),
        by_condition: Vec::new(),
        diversity: Vec::new(),
        tied: None,
        source: SequencesSource::default(),
        trained_on: None,
        learned_events: None,
    }
}

/// Returns the values by label of each table in `text`: a line with `HR@10` gives the labels, the next line the values.
fn tables(text: &str) -> Vec<BTreeMap<String, String>> {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let tables = lines.windows(2).filter(|pair| pair[0].iter().any(|word| word.starts_with("HR@10")));
    let table = |pair: &[Vec<&str>]| {
        let columns = pair[0].iter().rev().zip(pair[1].iter().rev());
        columns.map(|(label, number)| ((*label).to_owned(), (*number).to_owned())).collect()
    };
    tables.map(table).collect()
}

#[test]
fn every_metric_is_in_a_report() {
    let report = report();
    let json = serde_json::to_value(&report).unwrap();
    let text = report.to_string();
    let tables = tables(&text);
    assert_eq!(tables.len(), 2, "{text}");
    let keys: Vec<Key> = PerMetric::<Key, ALL>::from_fn(|key| key).values().to_vec();
    for (line, (table, metrics)) in tables.iter().zip([OF_RANKS, ALL]).enumerate() {
        for &key in &keys[..metrics] {
            let metric = key.metric();
            assert_eq!(json["results"][line][metric.name], value(key), "{json}");
            assert_eq!(table[&metric.label()], format!("{:.4}", value(key)), "{text}");
        }
        let named = json["results"][line].as_object().unwrap().keys().filter(|name| name.contains('@'));
        assert_eq!(named.count(), metrics, "{json}");
    }
}

#[test]
fn every_metric_is_recorded_and_compared() {
    let directory = std::env::temp_dir().join(format!("every-metric-{}", std::process::id()));
    let root = Root::new(directory.to_str().unwrap()).unwrap();
    let report = report();
    let rank_of_b = Some(3);
    // One run misses and the other hits, so each metric differs.
    for (name, rank) in [("a", None), ("b", rank_of_b)] {
        let model = root.model_path(name);
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("model.safetensors"), "").unwrap();
        let ranks = [Some(Ranks { all: rank, unseen: rank }); Protocol::ALL.len()];
        let (user_id, item_id) = ("u".to_owned(), "i".to_owned());
        let row = TargetRank { user_id, position: 0, ts: 0, item_id, horizon: 1, ranks };
        stored::store(&model, "test", &report, &[row], &[]).unwrap();
        let under = InstructedTarget {
            user_id: "u".into(),
            position: 0,
            ts: 0,
            item_id: "i".into(),
            protocol: Protocol::Standard,
            filter_seen: true,
            condition_filter: false,
            numbers: PerMetric::from_fn(|key| if name == "a" { 0.0 } else { value(key) }),
        };
        let path = instructed_path(&model, "test", "genre");
        write_instructed(&path, std::slice::from_ref(&under)).unwrap();
        assert_eq!(read_instructed(&path).unwrap().unwrap(), [under]);
        let mut records = RunRecords::create(&model, name).unwrap();
        records
            .epoch(&EpochMetrics {
                epoch: 1,
                step: 1,
                loss: 0.0,
                learning_rate: 0.0,
                gradient_norm: 0.0,
                targets: 1,
                seconds: 1.0,
                targets_per_s: 1.0,
                validation: Validation::new(&report.results[0]),
            })
            .unwrap();
    }
    let groups: Vec<Group> = ["a", "b"].iter().map(|name| name.parse().unwrap()).collect();
    let options = Options { split: "test", resamples: 10, seed: 1 };
    let compared = compare::run(&root, &groups, options).unwrap();
    let instructed = compare::instructed(&root, &groups, "genre", options).unwrap();
    let scalars = std::fs::read_dir(root.model_path("a").join(records::TENSORBOARD)).unwrap().next();
    let scalars = records::read_events(&scalars.unwrap().unwrap().path()).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();

    let (text, json) = (compared.to_string(), serde_json::to_value(&compared).unwrap());
    for metric in &METRICS[..OF_RANKS] {
        let (key, column) = (Key::of(metric.name), metric.column());
        assert!(text.contains(&metric.label()), "{text}");
        let [first, second] = [0, 1].map(|run| json["results"][run]["metrics"][&column]["mean"].clone());
        let gain = gains(rank_of_b)[key];
        assert_eq!([first, second], [0.0, gain].map(Value::from), "{json}");
        assert_eq!(json["results"][1]["difference"][&column]["value"], gain, "{json}");
        let recorded = json["learning"][0]["epochs"][0]["validation"][&column].as_f64();
        assert_eq!(recorded, Some(value(key)), "{json}");
        let scalar = (format!("validation/{column}"), value(key) as f32);
        assert!(scalars.iter().any(|event| event.scalars.contains(&scalar)), "{scalars:?}");
    }
    let (text, json) = (instructed.to_string(), serde_json::to_value(&instructed).unwrap());
    for (i, metric) in METRICS.iter().enumerate() {
        assert!(text.contains(&metric.label()), "{text}");
        let (group, value) = (&json["results"][1], value(Key::of(metric.name)));
        assert_eq!(group["names"][i], metric.column(), "{json}");
        assert_eq!(group["metrics"][i]["mean"], value, "{json}");
        assert_eq!(group["difference"][i]["value"], value, "{json}");
    }
}
