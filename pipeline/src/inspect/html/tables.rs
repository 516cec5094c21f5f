//! The page of all tables.

use chrono::Datelike as _;
use schemas::tables::{DEAD_LETTERS, EVENTS, INSTRUCTIONS, ITEMS, SEQUENCES};

use super::super::print::{bytes, duration};
use super::super::{
    Contents, Count, DeadLettersContents, EventsContents, Inspection, InstructionsContents, ItemsContents,
    SequencesContents, SpanDistribution, TableReport,
};
use super::distribution::{charts, distribution};
use super::examples;
use super::line::log_log;
use crate::html::chart::{Bar, Frame, lying, upright};
use crate::html::page::{facts, page as whole, table};
use crate::html::{Escaped, number, percent};

pub(super) fn page(inspection: &Inspection) -> String {
    let mut body = format!("<h1>Tables</h1>\n<p class=\"soft\">{}</p>\n", Escaped(&inspection.root));
    // In the order in which the tables are built.
    let order = [EVENTS, ITEMS, DEAD_LETTERS, SEQUENCES, INSTRUCTIONS];
    let mut tables: Vec<&TableReport> = inspection.tables.iter().collect();
    tables.sort_by_key(|table| order.iter().position(|name| *name == table.table).unwrap_or(order.len()));
    let headings = ["table", "#version", "#rows", "#shards", "#size"];
    body.push_str("<div class=\"card\" style=\"margin-top:16px\">");
    body.push_str(&table(
        &headings,
        tables.iter().map(|t| {
            let (rows, shards) = (number(t.rows), number(t.shards));
            vec![t.table.clone(), t.version.to_string(), rows, shards, bytes(t.bytes)]
        }),
    ));
    body.push_str("</div>\n");
    tables.iter().for_each(|table| body.push_str(&section(table)));
    whole("Tables", &body)
}

fn section(report: &TableReport) -> String {
    let (rows, shards) = (number(report.rows), number(report.shards));
    let mut html = format!(
        "<section><h2>{}</h2>\n<p class=\"soft\">version {}, {rows} rows, {shards} shards, {}</p>\n",
        Escaped(&report.table),
        report.version,
        bytes(report.bytes)
    );
    html.push_str(&match &report.contents {
        Some(Contents::Events(contents)) => events(contents),
        Some(Contents::Items(contents)) => items(contents),
        Some(Contents::Sequences(contents)) => sequences(contents),
        Some(Contents::DeadLetters(contents)) => dead_letters(contents),
        Some(Contents::Instructions(contents)) => instructions(contents),
        Some(Contents::Sft(contents)) => examples::section(contents),
        None => String::new(),
    });
    html.push_str("<div class=\"pair\"><div><h3>Columns</h3>");
    html.push_str(&table(
        &["name", "type", "null"],
        report.columns.iter().map(|column| {
            let null = if column.nullable { "may be" } else { "never" };
            vec![column.name.clone(), column.data_type.clone(), null.to_owned()]
        }),
    ));
    html.push_str("</div><div><h3>Properties</h3>");
    if report.properties.is_empty() {
        html.push_str("<p class=\"soft\">none</p>");
    } else {
        let pairs = report.properties.iter().map(|(key, value)| vec![key.clone(), value.clone()]);
        html.push_str(&table(&["property", "value"], pairs));
    }
    html.push_str("</div></div></section>\n");
    html
}

fn events(contents: &EventsContents) -> String {
    let time = |time: Option<chrono::DateTime<chrono::Utc>>| {
        time.map_or_else(|| "–".into(), |time| time.format("%Y-%m-%d %H:%M").to_string())
    };
    let mut html = facts(&[
        ("events", number(contents.events)),
        ("users", number(contents.users)),
        ("items", number(contents.items)),
        ("with a logged request", percent(contents.with_request, contents.events)),
        ("first (UTC)", time(contents.first)),
        ("last (UTC)", time(contents.last)),
    ]);
    let popularity = &contents.popularity;
    let top = popularity.top.iter().map(|top| Bar {
        label: format!("top {}%", 100.0 * top.of_items),
        name: format!("the {} most popular items", number(top.items)),
        height: top.events as f64,
        value: format!("{} ({:.1}%)", number(top.events), 100.0 * top.of_events),
    });
    let curve: Vec<(u64, u64)> = popularity.curve.iter().map(|point| (point.rank, point.events)).collect();
    html.push_str(&charts([
        per_day(contents),
        log_log(
            &Frame {
                title: "Popularity",
                note: format!("{} items with events, the most popular first", number(popularity.items)),
                x: "rank of the item (logarithmic)",
                y: "events of the item (logarithmic)",
                wide: false,
            },
            ["rank", "events"],
            &curve,
        ),
        lying(
            &Frame {
                title: "What the most popular items take",
                note: "events of the first items by popularity, and their share of all".into(),
                x: "events",
                y: "",
                wide: false,
            },
            &top.collect::<Vec<_>>(),
        ),
        counts("Actions", "the most frequent ones", "events", &contents.actions, contents.events),
    ]));
    html
}

fn per_day(contents: &EventsContents) -> String {
    let days = contents.periods.first().map_or(1, |period| period.days);
    let years = contents.periods.first().zip(contents.periods.last());
    let years = years.map_or(0, |(first, last)| last.from.year() - first.from.year());
    // A label at the first bar of each year, or of each month if there is one year at most; of every n-th year if there are many.
    let (monthly, apart) = if years <= 1 { (true, 1) } else { (false, years / 12 + 1) };
    let mut labelled = None;
    let mut label = |from: chrono::NaiveDate| {
        let month = from.year() * 12 + from.month0() as i32;
        let unit = if monthly { month } else { from.year() };
        let new = labelled.replace(unit).is_some_and(|before| before != unit);
        let format = if monthly { "%Y-%m" } else { "%Y" };
        if new && unit % apart == 0 { from.format(format).to_string() } else { String::new() }
    };
    let bars: Vec<Bar> = contents
        .periods
        .iter()
        .map(|period| {
            let last = period.from + chrono::TimeDelta::days(i64::from(period.days) - 1);
            let mean = period.events as f64 / f64::from(period.days);
            let (name, value) = match period.days {
                1 => (period.from.to_string(), number(period.events)),
                _ => (
                    format!("{} to {last}", period.from),
                    format!("{mean:.1} a day, {} in all", number(period.events)),
                ),
            };
            Bar { label: label(period.from), name, height: mean, value }
        })
        .collect();
    let d = &contents.per_day;
    let busiest = contents.busiest_day.map_or_else(String::new, |day| format!(" on {day}"));
    let mean = if days == 1 { String::new() } else { format!(", mean of {days} days a bar") };
    upright(
        &Frame {
            title: "Events a day",
            note: format!(
                "{} days with events: median {}, mean {:.1}, most {}{busiest}",
                number(d.count),
                number(d.median),
                d.mean,
                number(d.max)
            ),
            x: "date (UTC)",
            y: &format!("events a day{mean}"),
            wide: true,
        },
        &bars,
    )
}

fn items(contents: &ItemsContents) -> String {
    let mut html = facts(&[
        ("items", number(contents.items)),
        ("active", number(contents.active)),
        ("with a title", number(contents.with_title)),
        ("with a release date", number(contents.with_release_ts)),
    ]);
    html.push_str(&charts(contents.attributes.iter().map(|attribute| {
        let (values, without) = (number(attribute.values), number(attribute.items_without));
        let note = format!("{values} values, {without} items without one; the most frequent");
        counts(&attribute.attribute, &note, "items", &attribute.top, contents.items)
    })));
    html
}

fn counts(title: &str, note: &str, x: &str, counts: &[Count], total: u64) -> String {
    let bars: Vec<Bar> = counts.iter().map(|count| Bar::share(&count.value, count.count, total)).collect();
    lying(&Frame { title, note: note.into(), x, y: "", wide: false }, &bars)
}

fn sequences(contents: &SequencesContents) -> String {
    let t = &contents.targets;
    let mut html = facts(&[
        ("users", number(contents.users)),
        ("targets", number(t.total())),
        ("hidden earlier positions", format!("{:.2}%", 100.0 * contents.hidden_share)),
        ("targets that see nothing", number(contents.nothing_visible)),
    ]);
    let roles = [
        ("pre-training", t.pretrain),
        ("instruction tuning", t.sft),
        ("validation", t.validation),
        ("test", t.test),
    ];
    let hidden = ["nothing", "up to 25%", "up to 50%", "up to 75%", "less than all", "all"];
    let with_earlier = contents.hidden.iter().sum();
    html.push_str(&charts([
        distribution("Sequence length", "events of one user", "users", &contents.history_length),
        distribution("Row length", "positions of one row", "rows", &contents.row_length),
        distribution("Session length", "events of one session", "sessions", &contents.session_length),
        distribution("Request batch size", "events of one batch", "batches", &contents.request_size),
        spans(&contents.inter_event),
        upright(
            &Frame {
                title: "Hidden by the time-aware mask",
                note: "share of a target's earlier positions in its row that it may not see".into(),
                x: "hidden share of the earlier positions",
                y: "targets",
                wide: false,
            },
            &hidden
                .iter()
                .zip(contents.hidden)
                .map(|(label, count)| Bar::share(*label, count, with_earlier))
                .collect::<Vec<_>>(),
        ),
        lying(
            &Frame {
                title: "Targets by role",
                note: "every event is the target of one row".into(),
                x: "targets",
                y: "",
                wide: false,
            },
            &roles.map(|(label, count)| Bar::share(label, count, t.total())),
        ),
    ]));
    html
}

fn instructions(contents: &InstructionsContents) -> String {
    let as_of = contents.as_of.map_or_else(|| "–".into(), |time| time.format("%Y-%m-%d %H:%M").to_string());
    let mut html = facts(&[("users", number(contents.users)), ("as of (UTC)", as_of)]);
    let total = contents.attributes.iter().map(|attribute| attribute.count).sum();
    html.push_str(&charts([
        distribution("Instructions a user", "instructions of one user", "users", &contents.per_user),
        counts("Attributes", "what the instructions are of", "instructions", &contents.attributes, total),
        counts("Conditions", "the most frequent ones", "users", &contents.top, contents.users),
    ]));
    html
}

fn spans(d: &SpanDistribution) -> String {
    let text = |ms: u64| duration(i64::try_from(ms).unwrap_or(i64::MAX));
    let bars: Vec<Bar> = d.bins.iter().map(|bin| Bar::share(&bin.label, bin.count, d.count)).collect();
    let note = format!(
        "mean {}, median {}, p90 {}, p99 {}, longest {}",
        text(d.mean_ms as u64),
        text(d.median_ms),
        text(d.p90_ms),
        text(d.p99_ms),
        text(d.max_ms)
    );
    let frame = Frame {
        title: "Time between events",
        note,
        x: "from one event of a user to the next",
        y: "pairs of events",
        wide: false,
    };
    upright(&frame, &bars)
}

fn dead_letters(contents: &DeadLettersContents) -> String {
    if contents.reasons.is_empty() {
        return "<p>No record was rejected.</p>\n".into();
    }
    let total = contents.reasons.iter().map(|reason| reason.count).sum();
    let bars: Vec<Bar> =
        contents.reasons.iter().map(|reason| Bar::share(&reason.reason, reason.count, total)).collect();
    let frame = Frame {
        title: "Rejected records by reason",
        note: "the first of each is below".into(),
        x: "records",
        y: "",
        wide: false,
    };
    let mut html = charts([lying(&frame, &bars)]);
    html.push_str(&table(
        &["reason", "#records", "source", "#position", "what is wrong", "the record"],
        contents.reasons.iter().map(|reason| {
            vec![
                reason.reason.clone(),
                number(reason.count),
                reason.source.clone(),
                reason.position.to_string(),
                reason.message.clone(),
                reason.value.clone(),
            ]
        }),
    ));
    html
}
