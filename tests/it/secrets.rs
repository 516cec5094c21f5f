//! A secret is planted wherever one can be: no file and no output of any program contains it.

use std::process::{Command, Output};

use crate::jobs::{self, faults};
use crate::programs::{Workspace, files, json, stderr};

const CANARY: &str = "correct-horse-battery-canary";

/// Asserts that neither stream contains the secret.
fn untold(output: &Output, what: &str) {
    for written in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(written);
        assert!(!text.contains(CANARY) && !text.contains("panicked"), "{what}: {text}");
    }
}

/// Asserts that no file of the workspace contains it, except those that the test planted.
fn unstored(workspace: &Workspace) {
    for (name, bytes) in files(&workspace.path("")) {
        let planted = ["config.toml", "secret"].contains(&name.as_str());
        let found = bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes());
        assert!(planted || !found, "{name} has the secret");
    }
}

/// Commands of each program.
const COMMANDS: [(&str, &[&str]); 5] = [
    ("pipeline", &["ingest"]),
    ("pipeline", &["consume", "--once"]),
    ("trainer", &["pretrain", "--name", "m"]),
    ("climber", &["daily"]),
    ("climber", &["status", "--json"]),
];

/// Keys of settings that are or hold a credential.
const SETTINGS: [&str; 14] = [
    "kafka.properties.sasl.password",
    "kafka.properties.sasl.passwrod",
    "kafka.properties.ssl.key.password",
    "kafka.properties.ssl.key.pem",
    "kafka.properties.ssl_key",
    "kafka.properties.ssl.keystore.password",
    "kafka.properties.sasl.oauthbearer.config",
    "kafka.properties.sasl.oauthbearer.client.secret",
    "kafka.properties.sasl.oauthbearer.client.credentials.client.secret",
    "kafka.properties.sasl.oauthbearer.assertion.private.key.passphrase",
    "kafka.properties.sasl.oauthbearer.assertion.private.key.pem",
    "kafka.schema_registry_auth",
    "kafka",
    "kafka.properties",
];

/// Keys of settings that may be addresses.
const ADDRESSES: [&str; 6] = [
    "kafka.schema_registry",
    "kafka.brokers",
    "kafka.properties.sasl.oauthbearer.token.endpoint.url",
    "root",
    "forget.key_file",
    "kafka.schema_file",
];

#[test]
fn a_secret_on_the_command_line_is_refused_untold() {
    let workspace = Workspace::new();
    let refused = |setting: &str| {
        for (program, args) in COMMANDS {
            let output = workspace.command(program, args).args(["--set", setting]).output().unwrap();
            untold(&output, setting);
            assert_eq!(output.status.code(), Some(2), "{program} {setting}: {}", stderr(&output));
        }
    };
    for key in SETTINGS {
        for value in [CANARY.to_owned(), format!("[\"{CANARY}\"]"), format!("{{a = {{b = \"{CANARY}\"}}}}")] {
            refused(&format!("{key}={value}"));
        }
    }
    for key in ADDRESSES {
        refused(&format!("{key}=https://me:{CANARY}@host:1/path"));
    }
    refused(&format!("events.paths=[\"https://me:{CANARY}@host/log.csv\"]"));
    refused(&format!("kafka={{properties={{\"sasl.password\"=\"{CANARY}\"}}}}"));
    refused(&format!("kafka.properties.sasl.password {CANARY}"));
    unstored(&workspace);
}

#[test]
fn a_secret_in_the_file_is_refused_untold() {
    let workspace = Workspace::new();
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let refused = |kafka: &str| {
        workspace.write("config.toml", format!("{config}\n[kafka]\n{kafka}\n"));
        for (program, args) in COMMANDS {
            let output = workspace.command(program, args).output().unwrap();
            untold(&output, kafka);
            assert_eq!(output.status.code(), Some(2), "{program} {kafka}: {}", stderr(&output));
            assert!(stderr(&output).contains("kafka") || stderr(&output).contains("line"), "{kafka}");
        }
    };
    // Written against the rules, and unreadable: parsers quote what they do not understand.
    let property = "properties.\"sasl.password\"";
    for kafka in [
        format!("{property} = \"{CANARY}\""),
        format!("{property} = {CANARY}"),
        format!("{property} = \"{CANARY}"),
        format!("{property} = [\"{CANARY}\"]"),
        format!("properties = \"password {CANARY}\""),
        format!("properties = {{ \"ssl.key.password\" = {CANARY} }}"),
        format!("properties.\"ssl.key.pem\" = \"\"\"\nBEGIN\n{CANARY}\\q\n\"\"\""),
        format!("schema_registry_auth = \"me:{CANARY}\""),
        format!("schema_registry_auth = [\"me:{CANARY}\"]"),
        format!("format = \"avro\"\nschema_registry = \"https://me:{CANARY}@host\""),
        format!("schema_registry = [\"https://me:{CANARY}@host\"]"),
        format!("brokers = \"me:{CANARY}@host:9092\""),
    ] {
        refused(&kafka);
    }
    unstored(&workspace);
}

/// A whole day with secrets where they belong, and what a second run and `status` say of the first.
#[test]
fn secrets_that_are_used_are_neither_stored_nor_told() {
    let workspace = jobs::service(1);
    workspace.write("secret", CANARY);
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let secret = workspace.path("secret");
    let kafka = format!(
        "[kafka]\nformat = \"avro\"\nbrokers = \"127.0.0.1:1\"\npatience = \"200ms\"\nschema_registry = \"http://127.0.0.1:1\"\n\
         schema_registry_auth = \"env:CANARY\"\nproperties.\"sasl.password\" = \"env:CANARY\"\n\
         properties.\"sasl.username\" = \"env:CANARY\"\nproperties.\"ssl.key.password\" = \"file:{}\"\n",
        secret.display()
    );
    workspace.write("config.toml", format!("{config}\n{kafka}"));
    let run = |program: &str, args: &[&str]| -> Output {
        let mut command: Command = workspace.command(program, args);
        let output = command.env("CANARY", CANARY).output().unwrap();
        untold(&output, &args.join(" "));
        output
    };
    let setting = "kafka.properties.ssl.keystore.password=env:CANARY";
    let day = ["daily", "--date", "2026-01-01", "--set", setting];
    let paused = faults::paused(&workspace, &day, "step:sequences");
    let lock = std::fs::read_to_string(workspace.root().join("jobs/daily.lock")).unwrap();
    assert!(lock.contains("kafka.properties.ssl.keystore.password=***"), "{lock}");
    let status = json(&run("climber", &["status", "--json"]));
    assert!(status["running"][0]["command"].as_str().unwrap().contains("=***"), "{status}");
    run("climber", &day);
    faults::kill(paused);
    let succeed = |program: &str, args: &[&str]| {
        let output = run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {}", stderr(&output));
    };
    succeed("climber", &[&day[..], &["--json"]].concat());
    succeed("climber", &["status", "--json"]);
    succeed("climber", &["history", "--json"]);
    succeed("climber", &["refresh", "--once", "--json"]);
    succeed("pipeline", &["inspect", "--json", "--html", "page.html"]);
    succeed("pipeline", &["inspect", "--verify"]);
    succeed("pipeline", &["forget", "--user", "u1"]);
    succeed("trainer", &["retrieve", "--out", "rows.parquet", "--json"]);
    succeed("trainer", &["export", "--out", "export", "--json"]);
    // There is no broker: the client's messages about it must not contain a secret either.
    run("pipeline", &["consume", "--once"]);
    run("pipeline", &["consume", "--once", "--log", "json"]);
    unstored(&workspace);
}
