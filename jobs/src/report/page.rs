//! The HTML of a day's page, from records alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use pipeline::html::chart::{Bar, Frame, lying, upright};
use pipeline::html::lines::{Line, lines};
use pipeline::html::page::{facts, page as whole, table};
use pipeline::html::{Escaped, number};

use chrono::NaiveDate;

use crate::record::{DayOutcome, DayStep, Epoch, Record};

/// Days in the charts.
const DAYS: usize = 30;

/// Returns the page of `record`. `history`: earlier runs, oldest first; `problems`: messages about unreadable records.
pub(crate) fn page(record: &Record, history: &[Record], problems: &[String]) -> String {
    let mut body = heading(record);
    for problem in problems {
        let _ = writeln!(body, "<p class=\"soft\">left out: {}</p>", Escaped(problem));
    }
    for (date, reason) in skipped(history) {
        let text = format!("{date} was left out: {reason} (`climber daily --date {date}` runs it)");
        let _ = writeln!(body, "<p><span class=\"bad\">{}</span></p>", Escaped(&text));
    }
    if let Some(problem) = record.steps.prequential.as_ref().and_then(|done| done.output.problem.as_ref()) {
        let _ = writeln!(body, "<p><span class=\"bad\">prequential: {}</span></p>", Escaped(problem));
    }
    body.push_str(&facts(&headline(record)));
    let shown: Vec<&Record> =
        history.iter().skip((history.len() + 1).saturating_sub(DAYS)).chain([record]).collect();
    section(&mut body, "Quality", "", &[quality(&shown), following(&shown), learning(record)]);
    gate(&mut body, record);
    section(&mut body, "Data", "", &[accepted(&shown), dead_letters(&shown), reasons(record)]);
    let yesterday = history.iter().rev().find(|other| other.steps.report.is_some());
    let note = yesterday.map_or_else(
        || "There is no earlier run to compare with.".to_owned(),
        |other| format!("Beside those of `{}`.", other.name),
    );
    section(&mut body, "Distributions", &note, &distributions(record, yesterday));
    section(&mut body, "Time", "", &[timings(record), totals(&shown)]);
    versions(&mut body, record);
    whole(&format!("{}: daily job", record.name), &body)
}

fn heading(record: &Record) -> String {
    let mut html = format!("<h1>Daily job of {}</h1>\n", record.date);
    if record.name != record.date.to_string() {
        let _ = writeln!(html, "<p class=\"soft\">run {}</p>", Escaped(&record.name));
    }
    let (class, text) = match (&record.failure, record.outcome()) {
        (_, DayOutcome::Skipped) => {
            let reason = record.skipped.as_ref().map_or("", |skipped| &skipped.reason);
            ("bad", format!("left out: {reason}"))
        }
        (Some(failure), _) => (if failure.stopped { "soft" } else { "bad" }, failure.to_string()),
        // The page is written in the last step, before the run is over.
        (None, _) if published(record).is_some() => {
            ("good", format!("published, as publication {}", published(record).unwrap_or_default()))
        }
        (None, DayOutcome::Refused | DayOutcome::Unfinished) if refused(record) => {
            let objections = record.steps.gate.as_ref().map(|gate| gate.output.objections());
            ("bad", format!("not published: {}", objections.unwrap_or_default()))
        }
        _ if record.experiment && record.base().is_some() => {
            ("good", "an experiment: its model is kept, and not served".into())
        }
        _ => ("good", "nothing new: what is served stays".into()),
    };
    let _ = writeln!(html, "<p><span class=\"{class}\">{}</span></p>", Escaped(&text));
    if let Some(plan) = &record.plan {
        let text = format!("{}, because {}", plan.training.name(), plan.reason);
        let _ = writeln!(html, "<p class=\"soft\">{}</p>", Escaped(&text));
    }
    html
}

/// Returns the date and reason of each skipped day among the last runs.
fn skipped(history: &[Record]) -> impl Iterator<Item = (NaiveDate, &str)> {
    let last = history.iter().skip(history.len().saturating_sub(DAYS));
    last.filter_map(|other| Some((other.date, other.skipped.as_ref()?.reason.as_str())))
}

fn published(record: &Record) -> Option<u64> {
    record.steps.publish.as_ref()?.output.number
}

fn refused(record: &Record) -> bool {
    record.base().is_some() && record.steps.gate.as_ref().is_some_and(|gate| !gate.output.publish)
}

fn headline(record: &Record) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(done) = &record.steps.ingest {
        facts.push(("events accepted", number(done.output.accepted)));
        facts.push(("duplicates", number(done.output.duplicates)));
        facts.push(("dead letters", number(done.output.dead_letters)));
        facts.push(("items", number(done.output.items)));
    }
    let rate = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
    facts.push(("prequential HR@10", rate(prequential(record))));
    facts.push(("guard HR@10", rate(guard(record))));
    let served = record.steps.evaluate.as_ref().and_then(|done| done.output.published.first());
    facts.push(("of the one before", rate(served.and_then(|p| p.guard.get("hr@10").copied()))));
    facts.push(("seconds", format!("{:.1}", record.seconds())));
    facts
}

fn section(body: &mut String, title: &str, note: &str, charts: &[String]) {
    if charts.iter().all(String::is_empty) {
        return;
    }
    let _ = writeln!(body, "<h2>{}</h2>", Escaped(title));
    if !note.is_empty() {
        let _ = writeln!(body, "<p class=\"soft\">{}</p>", Escaped(note));
    }
    let _ = writeln!(body, "<div class=\"charts\">{}</div>", charts.concat());
}

fn prequential(record: &Record) -> Option<f64> {
    record.steps.prequential.as_ref()?.output.metrics.get("hr@10").copied()
}

fn guard(record: &Record) -> Option<f64> {
    let evaluated = &record.steps.evaluate.as_ref()?.output;
    evaluated.guard.get("hr@10").or_else(|| evaluated.test.get("hr@10")).copied()
}

/// Returns axis labels: month and day for a run named after its day, otherwise its name.
fn places(shown: &[&Record]) -> Vec<String> {
    let place = |record: &&Record| match record.date.to_string() {
        day if day == record.name => day[5..].to_owned(),
        _ => record.name.clone(),
    };
    shown.iter().map(place).collect()
}

fn rate(value: f64) -> String {
    format!("{value:.3}")
}

fn quality(shown: &[&Record]) -> String {
    let of = |f: fn(&Record) -> Option<f64>| shown.iter().map(|record| f(record)).collect();
    let frame = Frame {
        title: "HR@10",
        note: "As served, seen items filtered. Prequential: each day's events, predicted by the model that was served before \
               them. Guard: users that no model ever learns of."
            .into(),
        x: "day",
        y: "HR@10",
        wide: true,
    };
    let series =
        [Line { name: "prequential", values: of(prequential) }, Line { name: "guard", values: of(guard) }];
    lines(&frame, &places(shown), &series, true, rate)
}

fn following(shown: &[&Record]) -> String {
    let metrics = |record: &Record| record.steps.evaluate.as_ref().map(|done| done.output.guard.clone());
    let names: BTreeSet<String> = shown
        .iter()
        .filter_map(|record| metrics(record))
        .flat_map(|metrics| metrics.into_keys())
        .filter(|name| name.starts_with("cc@10 "))
        .collect();
    let series: Vec<Line<'_>> = names
        .iter()
        .take(4)
        .map(|name| Line {
            name: name.trim_start_matches("cc@10 "),
            values: shown.iter().map(|record| metrics(record)?.get(name).copied()).collect(),
        })
        .collect();
    let frame = Frame {
        title: "CC@10, by condition",
        note: "The share of a list that carries the condition that was asked for, without a filter behind the model.".into(),
        x: "day",
        y: "CC@10",
        wide: false,
    };
    lines(&frame, &places(shown), &series, true, rate)
}

fn learning(record: &Record) -> String {
    let curve = |title: &str, epochs: &[Epoch]| {
        let places: Vec<String> = epochs.iter().map(|epoch| epoch.epoch.to_string()).collect();
        let frame = |y| Frame { title, note: String::new(), x: "epoch", y, wide: false };
        let loss = Line { name: "loss", values: epochs.iter().map(|epoch| Some(epoch.loss)).collect() };
        let validation =
            Line { name: "validation", values: epochs.iter().map(|epoch| epoch.validation).collect() };
        lines(&frame("loss"), &places, &[loss], false, |v| format!("{v:.2}"))
            + &lines(&frame("selecting number"), &places, &[validation], false, rate)
    };
    let base =
        record.steps.train.as_ref().map(|done| curve("Learning curve of the base", &done.output.epochs));
    let tuned = record.steps.sft.as_ref().map(|done| curve("Learning curve of SFT", &done.output.epochs));
    base.unwrap_or_default() + &tuned.unwrap_or_default()
}

fn gate(body: &mut String, record: &Record) {
    let Some(done) = record.steps.gate.as_ref().filter(|done| !done.output.checks.is_empty()) else { return };
    let rows = done.output.checks.iter().map(|check| {
        let passed = if check.passed { "passed" } else { "failed" };
        vec![check.name.clone(), passed.into(), check.finding.clone()]
    });
    body.push_str("<h2>Gate</h2>\n");
    body.push_str(&table(&["=check", "=", "finding"], rows));
}

fn accepted(shown: &[&Record]) -> String {
    by_day(shown, "Accepted events", "events", |record| Some(record.steps.ingest.as_ref()?.output.accepted))
}

fn dead_letters(shown: &[&Record]) -> String {
    by_day(shown, "Dead letters", "records", |record| Some(record.steps.ingest.as_ref()?.output.dead_letters))
}

fn by_day(shown: &[&Record], title: &str, y: &str, count: impl Fn(&Record) -> Option<u64>) -> String {
    let every = shown.len().div_ceil(8).max(1);
    let bars: Vec<Bar> = places(shown)
        .into_iter()
        .zip(shown)
        .enumerate()
        .map(|(i, (place, record))| {
            let count = count(record);
            Bar {
                label: if i.is_multiple_of(every) { place.clone() } else { String::new() },
                name: place,
                height: count.unwrap_or(0) as f64,
                value: count.map_or_else(|| "not read".into(), number),
            }
        })
        .collect();
    upright(&Frame { title, note: String::new(), x: "day", y, wide: false }, &bars)
}

fn reasons(record: &Record) -> String {
    let Some(done) = record.steps.ingest.as_ref().filter(|done| !done.output.reasons.is_empty()) else {
        return String::new();
    };
    let total = done.output.reasons.values().sum();
    let bars: Vec<Bar> = done
        .output
        .reasons
        .iter()
        .map(|(reason, &count)| Bar::share(reason.as_str(), count, total))
        .collect();
    let note = "Records of today's log and catalogue that were rejected.".into();
    lying(&Frame { title: "Dead letters by reason", note, x: "records", y: "", wide: false }, &bars)
}

fn distributions(record: &Record, yesterday: Option<&Record>) -> Vec<String> {
    let mut charts = Vec::new();
    let of = |record: &Record| record.steps.report.as_ref().map(|done| done.output.distributions.clone());
    let before = yesterday.and_then(of).unwrap_or_default();
    for (title, bins) in of(record).unwrap_or_default() {
        let then = before.get(&title);
        let all: BTreeMap<u64, &String> = bins
            .iter()
            .chain(then.into_iter().flatten())
            .map(|(name, _)| (first_number(name), name))
            .collect();
        let places: Vec<String> = all.into_values().cloned().collect();
        let shares = |bins: &[(String, u64)]| -> Vec<Option<f64>> {
            let total = bins.iter().map(|bin| bin.1).sum::<u64>().max(1) as f64;
            let share = |place: &String| {
                bins.iter().find(|bin| bin.0 == *place).map_or(0, |bin| bin.1) as f64 / total
            };
            places.iter().map(|place| Some(share(place))).collect()
        };
        let mut series = vec![Line { name: "now", values: shares(&bins) }];
        series.extend(then.map(|then| Line { name: "before", values: shares(then) }));
        let frame = Frame { title: &title, note: String::new(), x: "", y: "share", wide: false };
        charts.push(lines(&frame, &places, &series, true, |v| format!("{:.0}%", 100.0 * v)));
    }
    if let Some(measured) = record.steps.evaluate.as_ref().map(|done| &done.output) {
        let values = |scores: &[f64]| scores.iter().copied().step_by(5).map(Some).collect::<Vec<_>>();
        let mut series = vec![Line { name: "new model", values: values(&measured.health.best_scores) }];
        if let Some(published) = measured.published.first() {
            series.push(Line { name: "served before", values: values(&published.health.best_scores) });
        }
        let places: Vec<String> = (0..=100).step_by(5).map(|percent| percent.to_string()).collect();
        let frame = Frame {
            title: "Best score of each list",
            note: "Percentiles over the guard's lists.".into(),
            x: "percentile",
            y: "score",
            wide: false,
        };
        charts.push(lines(&frame, &places, &series, false, |v| format!("{v:.2}")));
    }
    charts
}

/// Returns the smallest number of a bin, from its name: `1,025–2,048`.
fn first_number(name: &str) -> u64 {
    let digits = name.split('–').next().unwrap_or_default().chars().filter(char::is_ascii_digit);
    digits.collect::<String>().parse().unwrap_or(0)
}

fn timings(record: &Record) -> String {
    let bars: Vec<Bar> = DayStep::ALL
        .into_iter()
        .filter_map(|step| {
            let seconds = record.steps.seconds(step)?;
            let value = format!("{seconds:.1} s");
            Some(Bar { label: step.name().into(), name: step.name().into(), height: seconds, value })
        })
        .collect();
    lying(&Frame { title: "Seconds by step", note: String::new(), x: "seconds", y: "", wide: false }, &bars)
}

fn totals(shown: &[&Record]) -> String {
    let seconds = shown.iter().map(|record| Some(record.seconds())).collect();
    let training = shown.iter().map(|record| record.steps.seconds(DayStep::Train)).collect();
    let frame = Frame { title: "Seconds by day", note: String::new(), x: "day", y: "seconds", wide: false };
    let series = [Line { name: "all steps", values: seconds }, Line { name: "train", values: training }];
    lines(&frame, &places(shown), &series, true, |v| format!("{v:.1}"))
}

fn versions(body: &mut String, record: &Record) {
    let Some(tables) = record.steps.sequences.as_ref().map(|done| &done.output) else { return };
    let mut rows = vec![
        vec!["events".to_owned(), tables.events_version.to_string()],
        vec!["items".to_owned(), tables.items_version.to_string()],
        vec!["sequences".to_owned(), tables.sequences_version.to_string()],
    ];
    rows.extend(tables.refresh_version.map(|version| vec!["refresh".to_owned(), version.to_string()]));
    if let Some(sets) = &record.steps.sft_sets {
        rows.extend(
            sets.output.versions.iter().map(|(table, version)| vec![table.clone(), version.to_string()]),
        );
    }
    body.push_str("<h2>Versions</h2>\n");
    body.push_str(&table(&["=table", "#version"], rows));
    let models = [("base", record.base()), ("served", record.served())];
    let named = models.into_iter().filter_map(|(what, name)| Some(vec![what.to_owned(), name?.to_owned()]));
    body.push_str(&table(&["=model", "name"], named));
}
