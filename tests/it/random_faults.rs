//! Kills at any moment and damage to any byte: nothing is lost or doubled, nothing panics, and nothing wrong is reported as
//! right.
//!
//! Every test run does a few; `CLIMBER_PILOT_KILLS=1000` and `CLIMBER_PILOT_DAMAGES=1000` set how many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrow::util::display::array_value_to_string;
use store::Root;

use crate::jobs;
use crate::kafka::produce::Random;
use crate::kafka::stream::{PARTITIONS, Stream};
use crate::kafka::tally::Sent;
use crate::kafka::{Cluster, Producer, tables};
use crate::programs::{Workspace, copy, files, json, stderr};

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Starts the command and kills it after `life`, unless it has ended by then. Returns whether it was killed; a command that ends
/// by itself must succeed.
fn killed(mut command: Command, said: &Path, life: Duration) -> bool {
    let log = std::fs::File::create(said).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let began = Instant::now();
    loop {
        let ended = child.try_wait().unwrap();
        let text = || std::fs::read_to_string(said).unwrap_or_default();
        if let Some(status) = ended {
            assert!(status.success() && !text().contains("panicked"), "{status}: {}", text());
            return false;
        }
        if began.elapsed() >= life {
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!text().contains("panicked"), "{}", text());
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a random time from 0 to somewhat more than `whole`.
fn life(random: &mut Random, whole: Duration) -> Duration {
    whole.mul_f64(random.below(1_200) as f64 / 1_000.0)
}

/// Returns table → its rows as text, sorted, without times of this run.
pub(crate) fn contents(root: &Path, names: &[&'static str]) -> BTreeMap<&'static str, Vec<String>> {
    let root = Root::new(root.to_str().unwrap()).unwrap();
    let read = async {
        let mut tables = BTreeMap::new();
        for &table in names {
            let Some(snapshot) = root.snapshot(table).await.unwrap() else { continue };
            let schema = snapshot.delta().snapshot().unwrap().snapshot().arrow_schema();
            let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let columns: Vec<&str> =
                columns.into_iter().filter(|name| !["rejected_at", "event_date"].contains(name)).collect();
            let mut rows = Vec::new();
            for batch in snapshot.read(&columns).await.unwrap() {
                for row in 0..batch.num_rows() {
                    let values = batch.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
                    rows.push(values.collect::<Vec<_>>().join(" | "));
                }
            }
            rows.sort();
            tables.insert(table, rows);
        }
        tables
    };
    tokio::runtime::Runtime::new().unwrap().block_on(read)
}

const TABLES: [&str; 5] = ["events", "items", "dead_letters", "sequences", "sft/genre"];

/// Returns a service of two days with bad records on each, and a copy of the root before the second day.
fn service() -> (Workspace, PathBuf) {
    let workspace = jobs::service(2);
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    workspace.write("config.toml", config.replace("[events]", "[events]\nmax_dead_letter_rate = 0.5"));
    for day in ["2026-01-01", "2026-01-02"] {
        let name = format!("events/{day}.csv");
        let log = std::fs::read_to_string(workspace.path(&name)).unwrap();
        workspace.write(&name, format!("{log}u1,i1,never\nu2,\"i\nu3\n"));
    }
    workspace.succeed("climber", &["daily", "--date", "2026-01-01"]);
    let before = workspace.path("before");
    copy(&workspace.root(), &before);
    (workspace, before)
}

fn renew(workspace: &Workspace, before: &Path) {
    std::fs::remove_dir_all(workspace.root()).unwrap();
    copy(before, &workspace.root());
}

/// Returns the weights of the served model.
fn weights(root: &Path) -> Vec<u8> {
    let published = std::fs::read(root.join("models/published.json")).unwrap();
    let published: serde_json::Value = serde_json::from_slice(&published).unwrap();
    let model = root.join("models").join(published["served"].as_str().unwrap());
    std::fs::read(model.join("model.safetensors")).unwrap()
}

#[test]
fn a_day_is_killed_at_any_moment() {
    let kills = asked("CLIMBER_PILOT_KILLS", 8);
    let (workspace, before) = service();
    let day = ["daily", "--date", "2026-01-02"];
    let began = Instant::now();
    workspace.succeed("climber", &day);
    let whole = began.elapsed();
    let expected = contents(&workspace.root(), &TABLES);
    let (weights_before, weights_after) = (weights(&before), weights(&workspace.root()));
    let (mut random, mut done, mut rounds) = (Random::new(), 0, 0);
    while done < kills {
        renew(&workspace, &before);
        while killed(workspace.command("climber", &day), &workspace.path("said"), life(&mut random, whole)) {
            done += 1;
            let served = weights(&workspace.root());
            assert!(served == weights_before || served == weights_after, "another model is served");
        }
        rounds += 1;
        let found = contents(&workspace.root(), &TABLES);
        for (table, rows) in &expected {
            let lost = rows.iter().find(|row| !found[table].contains(row));
            let doubled = found[table].iter().find(|row| !rows.contains(row));
            assert_eq!(rows, &found[table], "{table}: {lost:?} is lost, {doubled:?} is new or doubled");
        }
        assert!(weights(&workspace.root()) == weights_after, "other weights");
        let status = json(&workspace.succeed("climber", &["status", "--json"]));
        assert_eq!(status["intact"], true, "{status}");
        if rounds % 10 == 1 {
            workspace.succeed("pipeline", &["inspect", "--verify"]);
        }
    }
    println!("{done} kills of climber daily in {rounds} days");
}

#[test]
fn an_ingest_is_killed_at_any_moment() {
    let kills = asked("CLIMBER_PILOT_KILLS", 8);
    let (workspace, before) = service();
    let ingest = ["ingest", "--events", "events/2026-01-02.csv", "--items", "items/2026-01-02.jsonl"];
    let began = Instant::now();
    workspace.succeed("pipeline", &ingest);
    let whole = began.elapsed();
    let tables = ["events", "items", "dead_letters"];
    let expected = contents(&workspace.root(), &tables);
    let (mut random, mut done, mut rounds) = (Random::new(), 0, 0);
    while done < kills {
        renew(&workspace, &before);
        while killed(
            workspace.command("pipeline", &ingest),
            &workspace.path("said"),
            life(&mut random, whole),
        ) {
            done += 1;
        }
        rounds += 1;
        assert_eq!(contents(&workspace.root(), &tables), expected);
        let again =
            json(&workspace.succeed("pipeline", &[&ingest[..], &["--json"]].concat()))["events"].clone();
        let count = |name: &str| again[name].as_u64().unwrap();
        assert_eq!(count("accepted"), 0, "{again}");
        assert_eq!(
            count("read"),
            count("duplicates") + count("dead_letters") + count("forgotten"),
            "{again}"
        );
    }
    println!("{done} kills of ingest in {rounds} rounds");
}

/// Runs against librdkafka's imitation of a broker. Each consumer has its own group: offsets are in the tables, and a group would
/// wait for a killed member.
#[test]
fn a_consumer_is_killed_at_any_moment() {
    let kills = asked("CLIMBER_PILOT_KILLS", 4);
    let cluster = Cluster::mock();
    let (mut random, mut done, mut rounds, mut whole) = (Random::new(), 0, 0, Duration::from_secs(4));
    while done < kills {
        let (workspace, topic) = (Workspace::new(), cluster.create_topic("killed", PARTITIONS));
        let config = format!(
            "root = \"root\"\n[events]\ncolumns = {{ user_id = \"user\", item_id = \"item\", ts = \"time\", event_id = \"id\" }}\n\
             ts_format = \"ms\"\nmax_dead_letter_rate = 0.5\n[kafka]\nbrokers = \"{}\"\ntopic = \"{topic}\"\n\
             batch_rows = 200\nbatch_interval = \"100ms\"\n",
            cluster.address()
        );
        workspace.write("config.toml", config);
        let producer = Producer::new(&cluster.address());
        let (mut stream, mut sent) = (Stream::new(), Vec::new());
        let (messages, fates) = stream.take(2_000);
        let positions = producer.send(&topic, &messages);
        sent.extend(positions.into_iter().zip(fates).map(|(position, fate)| Sent { position, fate }));
        let mut consumers = 0;
        loop {
            consumers += 1;
            let group = format!("kafka.group={topic}-{consumers}");
            let command = workspace.command("pipeline", &["consume", "--once", "--set", &group]);
            let began = Instant::now();
            if !killed(command, &workspace.path("said"), life(&mut random, whole)) {
                whole = began.elapsed();
                break;
            }
            done += 1;
            // A consumer that is always killed too early would never finish.
            whole = whole.mul_f64(1.2);
        }
        rounds += 1;
        tables::check(&workspace.root(), &topic, &sent);
        workspace.succeed("pipeline", &["inspect", "--verify", "events"]);
    }
    println!("{done} kills of consume in {rounds} topics");
}

/// Damages a file at random; returns a description.
fn damage(path: &Path, random: &mut Random) -> String {
    let mut bytes = std::fs::read(path).unwrap();
    let at = random.below(bytes.len().max(1) as u64) as usize;
    let done = match random.below(5) {
        0 if !bytes.is_empty() => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit of byte {at} flipped")
        }
        1 if !bytes.is_empty() => {
            bytes.truncate(at);
            format!("cut to {at} bytes")
        }
        2 if !bytes.is_empty() => {
            let end = bytes.len().min(at + 1 + random.below(64) as usize);
            bytes[at..end].fill(0);
            format!("zeros at {at}..{end}")
        }
        3 => {
            bytes.extend_from_slice(&[0xa5; 7]);
            "7 bytes longer".into()
        }
        _ => {
            std::fs::remove_file(path).unwrap();
            return "deleted".into();
        }
    };
    std::fs::write(path, bytes).unwrap();
    done
}

/// Returns a command's stdout if it succeeds; asserts that it neither panics nor exits with an unknown code.
fn answer(workspace: &Workspace, program: &str, args: &[&str], what: &str) -> Option<String> {
    let output = workspace.command(program, args).output().unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{what}: {program} {args:?}: {text}");
    let code = output.status.code();
    assert!(matches!(code, Some(0..=4)), "{what}: {program} {args:?}: {code:?}: {text}");
    (code == Some(0)).then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn any_byte_is_damaged() {
    let damages = asked("CLIMBER_PILOT_DAMAGES", 15);
    let (workspace, _) = service();
    workspace.succeed("climber", &["daily", "--date", "2026-01-02"]);
    let whole = workspace.path("whole");
    copy(&workspace.root(), &whole);
    let names: Vec<String> = files(&whole).into_iter().map(|(name, _)| name).collect();
    // Indexes of the commands that prove: tables, served model, records.
    const PROOFS: [usize; 3] = [0, 1, 3];
    let commands: [(&str, &[&str]); 4] = [
        ("pipeline", &["inspect", "--verify"]),
        ("climber", &["status", "--json"]),
        ("trainer", &["retrieve", "--k", "5"]),
        ("climber", &["history", "--json"]),
    ];
    let right: Vec<Option<String>> =
        commands.iter().map(|(program, args)| answer(&workspace, program, args, "nothing")).collect();
    assert!(right.iter().all(Option::is_some), "{right:?}");
    let expected = contents(&whole, &TABLES);
    let (mut random, mut refused, mut harmless, mut silent) = (Random::new(), 0, 0, Vec::new());
    for _ in 0..damages {
        renew(&workspace, &whole);
        let name = &names[random.below(names.len() as u64) as usize];
        let done = damage(&workspace.root().join(name), &mut random);
        let what = format!("{name}: {done}");
        let answers: Vec<Option<String>> =
            commands.iter().map(|(program, args)| answer(&workspace, program, args, &what)).collect();
        // Either the damage is reported, or nothing has changed: rows, lists, records.
        let is_told = PROOFS.iter().any(|&proof| answers[proof].is_none());
        if !is_told {
            let root = workspace.root();
            let found = std::panic::catch_unwind(|| contents(&root, &TABLES));
            if found.is_err() || found.is_ok_and(|found| found != expected) {
                silent.push(format!("{what}: other rows"));
            }
            let others = answers.iter().zip(&right).zip(commands);
            let others = others.filter(|((answer, right), _)| answer.is_some() && answer != right);
            silent.extend(others.map(|(_, command)| format!("{what}: {command:?}")));
        }
        if answers == right {
            harmless += 1
        } else {
            refused += 1
        }
        // The next day either succeeds or says why not; the served model can be queried afterwards.
        if random.below(8) == 0 {
            answer(&workspace, "climber", &["daily", "--date", "2026-01-02", "--force", "ingest"], &what);
            answer(&workspace, "climber", &["refresh", "--once"], &what);
            answer(&workspace, "climber", &["status"], &what);
        }
    }
    println!(
        "{damages} damages: {refused} noticed, {harmless} without effect, {} silently wrong",
        silent.len()
    );
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}
