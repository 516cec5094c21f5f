//! Tests of valid and refused configurations.

use super::*;

fn load(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path, &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
}

#[test]
fn an_empty_file_is_the_default_and_prints_back() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.model, Model::default());
    assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
}

#[test]
fn any_text_is_a_configuration_or_an_error() {
    let shipped: Vec<Vec<u8>> = std::fs::read_dir("../config")
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    let mut seeds: Vec<&[u8]> = shipped.iter().map(|text| &text[..text.len().min(400)]).collect();
    seeds.extend(FUZZ_SEEDS);
    testkit::drive("configuration", &seeds, &FUZZ_TOKENS, fuzz);
}

#[test]
fn the_shipped_configurations_are_valid() {
    let mut loaded = 0;
    // Tests run in their crate's directory; a path fixed at build time would be wrong for a clone that shares the build.
    for entry in std::fs::read_dir("../config").unwrap() {
        let path = entry.unwrap().path();
        Config::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        loaded += 1;
    }
    assert!(loaded >= 3);
}

#[test]
fn settings_of_librdkafka_are_overridden_by_their_names() {
    let config = |set: &str| load("[kafka.properties]\n\"client.rack\" = \"a\"", &[set]);
    for name in ["sasl.mechanism", "\"sasl.mechanism\"", "'sasl.mechanism'"] {
        let properties = config(&format!("kafka.properties.{name}=PLAIN")).unwrap().kafka.properties;
        assert_eq!(properties["sasl.mechanism"], "PLAIN");
        assert_eq!(properties["client.rack"], "a");
    }
    let properties = config("kafka.properties.fetch.min.bytes = 5").unwrap().kafka.properties;
    assert_eq!(properties["fetch.min.bytes"], "5");
    for secret in ["kafka.properties.sasl.password", "kafka.schema_registry_auth"] {
        for value in ["hunter2", "'hunter2", "[hunter2", "{a=\"hunter2\"}", "72"] {
            let message = config(&format!("{secret}={value}")).unwrap_err().to_string();
            assert!(message.contains("env:NAME") || message.contains("***"), "{message}");
            assert!(!message.contains("hunter2") && !message.contains("72"), "{message}");
        }
    }
}

#[test]
fn a_date_may_be_overridden_without_quotes() {
    let dates =
        ["sequences.validation_from=2020-01-01T00:00:00Z", "sequences.test_from=2020-02-01T00:00:00Z"];
    let config = load("", &[&["sequences.split=none", "sequences.guard_share=0"][..]].concat());
    assert!(config.is_ok(), "{config:?}");
    let text = "[sequences]\nsplit = \"temporal\"\nvalidation_from = \"2019-01-01T00:00:00Z\"\ntest_from = \"2019-02-01T00:00:00Z\"\n";
    let config = load(text, &[dates[1], dates[0]]).unwrap();
    assert_eq!(config.sequences.validation_from.unwrap().timestamp(), 1_577_836_800);
}

#[test]
fn an_unknown_key_names_file_line_and_key() {
    let message = load("seed = 1\n[model]\nlayer = 3\n", &[]).unwrap_err().to_string();
    assert!(
        message.contains("c.toml") && message.contains("line 3") && message.contains("`layer`"),
        "{message}"
    );
}

#[test]
fn architectures_go_by_their_names() {
    for architecture in [Architecture::ClimberPilot, Architecture::Sasrec, Architecture::Hstu] {
        let name = format!("model.architecture={}", architecture.name());
        let config = load("", &["model.branches=1", &name]).unwrap();
        assert_eq!(config.model.architecture, architecture);
        assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
    }
}

#[test]
fn every_format_is_among_all() {
    // An unknown name is answered with all that there are.
    let error = load("", &["events.format=\"none\""]).unwrap_err().to_string();
    let named = error.matches('`').count() / 2 - 1;
    assert_eq!(named, Format::ALL.len(), "{error}");
}

#[test]
fn overrides_are_typed() {
    let config = load("", &["model.d=128", "sequences.delta_tau=1h", "events.paths=[\"a\", \"b\"]"]).unwrap();
    assert_eq!(config.model.d, 128);
    assert_eq!(String::from(config.sequences.delta_tau), "1h");
    assert_eq!(config.events.paths, ["a", "b"]);
    assert!(load("kafka = [\"host\"]\n", &[]).unwrap_err().to_string().contains("`kafka` is a section"));
    for wrong in ["model=[128]", "model.depth=1", "model.d=wide", "model", "seed.x=1", "=1"] {
        let message = load("", &[wrong]).unwrap_err().to_string();
        assert!(message.contains(&format!("--set {wrong}")), "{message}");
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = load(
        "root = \"here\"\nscratch = \"tmp\"\n[events]\npaths = [\"x.csv\", \"/abs.csv\", \"-\"]\n[forget]\nkey_file = \"key\"\n",
        &["items.paths=[\"y.csv\"]"],
    )
    .unwrap();
    assert!(config.root.ends_with("/here") && Path::new(&config.root).is_absolute());
    assert!(config.forget.key_file.unwrap().ends_with("/key"));
    assert!(config.scratch.unwrap().ends_with("/tmp"));
    assert!(config.events.paths[0].ends_with("/x.csv") && config.events.paths[1] == "/abs.csv");
    assert_eq!(config.events.paths[2], "-", "standard input has no directory");
    assert_eq!(config.items.paths, ["y.csv"]);
}

#[test]
fn filters_are_kept_with_the_settings() {
    use crate::history::AtMostOnce;

    let plain = load("", &[]).unwrap().sequences;
    let written = ["min_value", "from", "until", "at_most_once", "events =", "filters"];
    assert!(written.iter().all(|key| !plain.to_toml().contains(key)), "{}", plain.to_toml());
    let overrides = [
        "sequences.min_value=4",
        "sequences.from=2020-01-01T00:00:00Z",
        "sequences.until=2021-01-01T00:00:00Z",
        "sequences.at_most_once=last",
        "sequences.min_user_events=5",
        "sequences.min_item_events=2",
    ];
    let sequences = load("", &overrides).unwrap().sequences;
    assert_eq!(Sequences::from_toml(&sequences.to_toml()).unwrap(), sequences);
    assert_ne!(sequences.hash(), plain.hash());
    let filters = sequences.filters();
    assert_eq!((filters.min_value, filters.from_ms), (Some(4.0), Some(1_577_836_800_000)));
    assert_eq!((filters.min_user_events, filters.min_item_events), (Some(5), Some(2)));
    let once = |value: &str| {
        load(&format!("[sequences]\nat_most_once = {value}\n"), &[]).map(|c| c.sequences.at_most_once)
    };
    assert_eq!(once("true").unwrap(), Some(AtMostOnce::First));
    assert_eq!(once("\"first\"").unwrap(), Some(AtMostOnce::First));
    assert_eq!(once("\"last\"").unwrap(), Some(AtMostOnce::Last));
    assert_eq!(once("false").unwrap(), None);
    assert!(once("\"second\"").unwrap_err().to_string().contains("\"first\", \"last\""));
}

#[test]
fn broken_rules_name_the_key() {
    for (text, key) in [
        ("[model]\nheads = 3\n", "model.heads"),
        ("[model]\narchitecture = \"sasrec\"\n", "model.branches"),
        ("[model]\narchitecture = \"hstu\"\nbranches = 3\n", "model.branches"),
        ("[model]\narchitecture = \"sasrec\"\nbranches = 1\nmax_positions = 199\n", "model.max_positions"),
        ("[model]\nattributes = [\"genre\"]\n", "model.attributes"),
        ("[sequences]\nsplit = \"last-n\"\n", "sequences.last_n"),
        ("[sequences]\nguard_share = 0.1\n", "sequences.guard_share"),
        ("[sequences]\nmin_value = inf\n", "sequences.min_value"),
        ("[sequences]\nmin_user_events = 0\n", "sequences.min_user_events"),
        ("[sequences]\nmin_item_events = 0\n", "sequences.min_item_events"),
        (
            "[sequences]\nfrom = \"2020-01-01T00:00:00Z\"\nuntil = \"2020-01-01T00:00:00Z\"\n",
            "sequences.from",
        ),
        (
            "[sequences]\nsplit = \"temporal\"\nvalidation_from = \"2019-01-01T00:00:00Z\"\ntest_from = \
             \"2019-02-01T00:00:00Z\"\nuntil = \"2019-02-01T00:00:00Z\"\n",
            "sequences.until",
        ),
        ("[items.attributes.title]\n", "items.attributes.title"),
        ("[conditions.derived.old]\n", "conditions.derived.old"),
        ("[items.attributes.classic]\n", "conditions.derived.classic"),
        ("[instructions.quota]\ngenre = 1\n", "instructions.quota.genre"),
        ("[sft]\nconditions = [\"clasic\"]\n", "sft.conditions"),
        ("[events.constants]\nuser_id = \"1\"\n", "events.constants.user_id"),
    ] {
        let message = load(text, &[]).unwrap_err().to_string();
        assert!(message.starts_with(key), "{message}");
    }
    let message = load("[sequences]\ndelta_tau = \"15\"\n", &[]).unwrap_err().to_string();
    assert!(message.contains("15m"), "{message}");
}

#[test]
fn the_device_is_a_word_that_is_known() {
    assert_eq!(load("device = \"cpu\"\n", &["device=cuda:1"]).unwrap().device, DeviceSetting::Cuda(1));
    assert_eq!(load("precision = \"bf16\"\ndevice = \"cuda:0\"\n", &[]).unwrap().precision, Precision::Bf16);
    assert!(load("", &["precision=bf16"]).unwrap_err().to_string().contains("32-bit floats"));
    let message = load("device = \"gpu\"\n", &[]).unwrap_err().to_string();
    assert!(message.contains("device = \"gpu\"") && message.contains("cuda:0"), "{message}");
    let message = load("", &["device=gpu"]).unwrap_err().to_string();
    assert!(message.starts_with("--set device=gpu") && message.contains("cuda:0"), "{message}");
}
