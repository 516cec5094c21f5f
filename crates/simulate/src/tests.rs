//! Small whole simulations.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDate;

use super::session::Action;
use super::*;

/// Few users, so that days have few events, and high rates of bad records.
fn settings() -> Settings {
    Settings {
        users: 60,
        days: 6,
        items: 300,
        rates: Rates { late: 0.1, duplicate: 0.05, bad: 0.05 },
        ..Settings::new(12_000)
    }
}

fn simulate(settings: &Settings, directory: &Path) -> Result<Report, SimulateError> {
    run(settings, directory, &Interrupt::default())
}

/// Path inside the directory → bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for part in [directory.to_owned(), directory.join("events")] {
        for entry in std::fs::read_dir(&part).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(directory).unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn bytes_depend_on_the_seed_and_not_on_threads() {
    let formats = [
        (LogFormat::Jsonl, Compression::Gzip),
        (LogFormat::Csv, Compression::Zstd),
        (LogFormat::Parquet, Compression::None),
    ];
    for (format, compression) in formats {
        let bytes = |threads, seed| {
            let dir = tempfile::tempdir().unwrap();
            let settings = Settings { format, compression, threads, seed, files_per_day: 2, ..settings() };
            simulate(&settings, dir.path()).unwrap();
            contents(dir.path())
        };
        let one = bytes(1, 1);
        assert_eq!(one.len(), 2 * 6 + 2);
        assert!(one == bytes(2, 1), "two threads write something else");
        let other = bytes(1, 2);
        assert!(one.iter().all(|(name, bytes)| other[name] != *bytes), "another seed writes the same");
    }
}

#[test]
fn a_day_can_be_divided_into_files() {
    let whole = tempfile::tempdir().unwrap();
    let parts = tempfile::tempdir().unwrap();
    simulate(&settings(), whole.path()).unwrap();
    simulate(&Settings { files_per_day: 24, ..settings() }, parts.path()).unwrap();
    let joined: BTreeMap<String, Vec<u8>> =
        contents(parts.path()).into_iter().fold(BTreeMap::new(), |mut days, (name, bytes)| {
            if let Ok(name) = name.strip_prefix("events") {
                days.entry(name.to_str().unwrap()[..10].to_owned()).or_default().extend(bytes);
            }
            days
        });
    assert_eq!(joined.len(), 6);
    for (date, bytes) in joined {
        let day = std::fs::read(whole.path().join(format!("events/{date}.jsonl"))).unwrap();
        assert!(day == bytes, "{date}");
    }
}

/// Calls `look` with each record of a log, its day and its time of arrival.
fn each_record(settings: &Settings, mut look: impl FnMut(u32, i64, &day::LogRecord)) {
    let log = Log::new(settings).unwrap();
    let days = log.days();
    for day in 0..settings.days {
        let taken = days.records(
            day,
            || false,
            |arrival, record| {
                look(day, arrival, record);
                Ok::<_, day::StoppedEarly>(())
            },
        );
        taken.unwrap();
    }
}

#[test]
fn records_come_in_order_and_each_event_once() {
    let settings = Settings { days: 8, ..settings() };
    let start = midnight_ms(settings.start);
    let (mut ids, mut copies) = (BTreeMap::new(), Vec::new());
    let mut before = (0, 0);
    each_record(&settings, |day, arrival, record| {
        assert!(before <= (day, arrival), "{before:?} {day} {arrival}");
        before = (day, arrival);
        let event = &record.event;
        let now = start + i64::from(day) * DAY_MS + arrival;
        assert!(start <= event.ts && event.ts <= now, "nothing arrives before it happens");
        assert!(event.request.is_none_or(|request| request.ts < event.ts));
        if record.duplicate {
            copies.push((now, *event));
        } else {
            assert!(ids.insert(event.id, (now, *event)).is_none(), "{event:?} twice");
        }
    });
    for (now, copy) in copies {
        let (first, event) = ids[&copy.id];
        assert!(first < now && event == copy, "{event:?} {copy:?}");
    }
}

#[test]
fn rates_of_nothing_give_a_clean_log() {
    let rates = Rates { late: 0.0, duplicate: 0.0, bad: 0.0 };
    let settings = Settings { rates, ..settings() };
    let start = midnight_ms(settings.start);
    each_record(&settings, |day, arrival, record| {
        assert!(record.flaw.is_none() && !record.duplicate);
        assert_eq!(record.event.ts, start + i64::from(day) * DAY_MS + arrival);
    });
}

#[test]
fn the_log_has_the_structure_that_is_promised() {
    let rates = Rates { late: 0.0, duplicate: 0.0, bad: 0.0 };
    let settings = Settings { users: 1_500, days: 20, items: 2_000, rates, ..Settings::new(150_000) };
    let (mut actions, mut library) = (HashMap::new(), 0u32);
    let (mut histories, mut plays, mut requests) = (HashMap::new(), HashMap::new(), HashMap::new());
    each_record(&settings, |_, _, record| {
        let event = &record.event;
        *actions.entry(event.action.name()).or_insert(0u32) += 1;
        *histories.entry(event.user).or_insert(0u32) += 1;
        if event.action == Action::Play {
            *plays.entry(event.item).or_insert(0u32) += 1;
            match event.request {
                None => library += 1,
                Some(request) => *requests.entry(request.id).or_insert(0u32) += 1,
            }
        }
    });
    let all = f64::from(actions.values().sum::<u32>());
    let share = |n: u32| f64::from(n) / all;
    assert!((0.85..1.15).contains(&(all / 150_000.0)), "{all}");
    assert!((0.6..0.85).contains(&share(actions["play"])), "{actions:?}");
    assert!(share(actions["skip"]) > 0.1 && share(actions["like"]) > 0.02, "{actions:?}");
    assert!((0.07..0.15).contains(&(f64::from(library) / f64::from(actions["play"]))), "{library}");
    assert!(f64::from(requests.values().sum::<u32>()) / requests.len() as f64 > 2.0, "plays share requests");

    let sorted = |of: &HashMap<u32, u32>| {
        let mut counts: Vec<u32> = of.values().copied().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    };
    let (items, users) = (sorted(&plays), sorted(&histories));
    let top = f64::from(items[..20].iter().sum::<u32>()) / f64::from(items.iter().sum::<u32>());
    assert!(top > 0.05, "1 % of the items have {top} of the plays");
    let (mean, median) = (all / users.len() as f64, f64::from(users[users.len() / 2]));
    assert!(mean > 1.3 * median, "histories are skewed: mean {mean}, median {median}");
}

#[test]
fn tastes_are_found_in_the_log_and_wander() {
    let settings = Settings { users: 200, days: 60, ..Settings::new(60_000) };
    let catalogue = SimulatedCatalogue::new(1, 2_000, 60);
    let listeners = listeners(&settings, &catalogue).unwrap();
    let tastes = |day| (0..200).map(move |user| (user, day));
    let mut random = random::Random::at(1, 1);
    let (mut same, mut other) = (0u32, 0u32);
    for (user, day) in tastes(5) {
        let (mine, yours) = (listeners.taste(user, day), listeners.taste((user + 1) % 200, day));
        for _ in 0..20 {
            let cell = mine.cell(&mut random);
            same += u32::from(cell == mine.cell(&mut random));
            other += u32::from(cell == yours.cell(&mut random));
        }
    }
    assert!(same > 2 * other, "{same} {other}");
    let moved =
        tastes(59).filter(|&(user, day)| listeners.taste(user, 0) != listeners.taste(user, day)).count();
    assert!(moved > 190, "{moved}");
}

#[test]
fn a_directory_with_something_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join("events");
    std::fs::create_dir(&events).unwrap();
    for name in ["notes.txt", "events/mine.jsonl"] {
        std::fs::write(dir.path().join(name), "mine").unwrap();
    }
    let before = contents(dir.path());
    let error = simulate(&settings(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("not empty") && error.contains("--force"), "{error}");
    assert!(before == contents(dir.path()));

    simulate(&Settings { force: true, files_per_day: 2, ..settings() }, dir.path()).unwrap();
    let shorter = Settings { force: true, days: 2, format: LogFormat::Csv, events: 4_000, ..settings() };
    simulate(&shorter, dir.path()).unwrap();
    let after = contents(dir.path());
    let names: Vec<_> = after.keys().map(|path| path.to_str().unwrap()).collect();
    let ours = ["events/2026-01-01.csv", "events/2026-01-02.csv", "events/mine.jsonl", "items.jsonl"];
    assert_eq!(names, [&ours[..], &["notes.txt", "simulated.toml"]].concat());
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
}

#[test]
fn a_stopped_run_leaves_whole_files_and_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::default();
    interrupt.request();
    let error = run(&settings(), dir.path(), &interrupt).unwrap_err();
    assert!(matches!(error, SimulateError::Interrupted { files: 0, of: 6 }), "{error}");
    assert_eq!(contents(dir.path()).keys().collect::<Vec<_>>(), [Path::new("items.jsonl")]);
}

#[test]
fn settings_that_cannot_be_name_the_argument() {
    let base = settings();
    let date = |text: &str| text.parse::<NaiveDate>().unwrap();
    let cases = [
        ("--events", Settings { events: 0, ..base.clone() }),
        ("--users", Settings { users: 0, ..base.clone() }),
        ("--days", Settings { days: 5_000, ..base.clone() }),
        ("--start", Settings { start: date("1965-01-01"), ..base.clone() }),
        ("--start", Settings { start: date("2099-12-30"), ..base.clone() }),
        ("--files-per-day", Settings { files_per_day: 2_000, ..base.clone() }),
        ("--late-rate", Settings { rates: Rates { late: 0.6, ..base.rates }, ..base.clone() }),
        ("--bad-rate", Settings { rates: Rates { bad: f64::NAN, ..base.rates }, ..base.clone() }),
        ("--events", Settings { users: 1, events: 100_000, ..base }),
    ];
    for (key, settings) in cases {
        let dir = tempfile::tempdir().unwrap();
        let error = simulate(&settings, dir.path()).unwrap_err();
        assert!(
            matches!(&error, SimulateError::Setting(_)) && error.to_string().starts_with(key),
            "{key}: {error}"
        );
        assert!(is_empty(dir.path()));
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}
