//! Tells which columns of a log hold user, item, time and the rest, by names and by values.

use std::collections::BTreeMap;

use schemas::config::{Chosen, Explode, TimeFormat};

use super::clock::{self, Clock, KnownClock};
use super::sampled::{ColumnProfile, SampledFile, is_filled};
use super::vocabulary::{FLAGS, Role, is_chosen, is_past, is_plural, is_shown, plain};
use super::{Finding, InitAnswers, InitQuestion};
use crate::records::{TimeReader, Value, shortened};

/// The columns of a log.
#[derive(Debug, Clone)]
pub(super) struct LogRoles {
    pub(super) user: String,
    pub(super) item: String,
    pub(super) time: String,
    pub(super) time_of_day: Option<String>,
    pub(super) request: Option<String>,
    pub(super) request_ts: Option<String>,
    pub(super) event_id: Option<String>,
    pub(super) action: Option<String>,
    pub(super) action_names: BTreeMap<String, String>,
    pub(super) constant_action: Option<String>,
    pub(super) value: Option<String>,
    pub(super) explode: Explode,
    pub(super) clock: KnownClock,
    /// Actions that become items of sequences; all if empty.
    pub(super) actions: Vec<String>,
}

/// What was found out about a log or a catalogue so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) findings: Vec<Finding>,
    pub(super) unsure: Vec<String>,
    pub(super) questions: Vec<InitQuestion>,
}

impl Notes {
    pub(super) fn found(&mut self, what: &'static str, is: impl Into<String>, because: impl Into<String>) {
        self.findings.push(Finding { what, is: is.into(), because: because.into() });
    }

    pub(super) fn ask(&mut self, option: &str, question: impl Into<String>) {
        self.questions.push(InitQuestion { option: option.into(), question: question.into() });
    }
}

/// A column that was chosen for a role, and why; or the ones that are left.
enum Pick {
    One(String, String),
    None,
    Several(Vec<String>),
}

/// The columns whose name has the role and whose values `fit`: the surest names only.
fn pick(file: &SampledFile, role: Role, fit: impl Fn(&ColumnProfile) -> bool) -> Pick {
    let ranked = file.columns.iter().filter_map(|column| Some((role.rank(&column.name)?, column)));
    let ranked: Vec<_> = ranked.filter(|(_, column)| fit(column)).collect();
    let Some(best) = ranked.iter().map(|(rank, _)| *rank).min() else { return Pick::None };
    let mut best: Vec<&ColumnProfile> =
        ranked.into_iter().filter(|(rank, _)| *rank == best).map(|(_, column)| column).collect();
    match best.as_slice() {
        [one] => Pick::One(one.name.clone(), format!("its name; {}", facts(one))),
        _ => Pick::Several(best.drain(..).map(|column| column.name.clone()).collect()),
    }
}

fn facts(column: &ColumnProfile) -> String {
    format!("{} different values in {} records", column.facts.distinct, column.facts.filled)
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Columns that may hold ids, described, for a question.
fn candidates(file: &SampledFile) -> String {
    let all = file.columns.iter().filter(|column| column.may_be_id() || column.facts.lists > 0);
    let all: Vec<String> = all.map(ColumnProfile::described).collect();
    if all.is_empty() { "no column that may hold ids".into() } else { all.join(", ") }
}

/// Tells the columns of a log. Asks in `notes` for what it cannot tell; none if anything is missing.
pub(super) fn roles(file: &SampledFile, answers: &InitAnswers, notes: &mut Notes) -> Option<LogRoles> {
    if !file.is_named {
        let columns: Vec<String> = file.columns.iter().map(ColumnProfile::described).collect();
        let question = format!(
            "{} has no header; name its {} columns in order, such as user_id,item_id,timestamp: {}",
            file.path,
            columns.len(),
            columns.join(", ")
        );
        notes.ask("--names", question);
        return None;
    }
    if !file.duplicates.is_empty() {
        let names = quoted(&file.duplicates);
        notes.unsure.push(format!("{}: several columns are named {names}; none of them is used", file.path));
    }
    let user = user(file, answers, notes);
    let item = item(file, answers, notes);
    let exploding = item.as_ref().is_some_and(|item| item.explode.is_on());
    let time = time(file, answers, exploding, notes);
    let (user, mut item, time) = (user?, item?, time?);
    if user == item.column || user == time.column || item.column == time.column {
        notes.ask("--user", format!("{}: user, item and time need three columns", file.path));
        return None;
    }
    let is_list = |name: &str| file.column(name).is_some_and(|column| column.facts.lists > 0);
    if is_list(&time.column) {
        add_parallel(file, &mut item, &time.column, "times", notes)?;
    }
    let request = optional(file, Role::Request, &answers.request, "--request", "request", notes)?;
    let is_record_time = time.time_of_day.is_none() && !item.explode.columns.contains(&time.column);
    let request_ts = match pick(file, Role::RequestTime, |column| reads(column, &time.clock.format)) {
        Pick::One(name, because) => {
            notes.found("request time", &name, because);
            Some(name)
        }
        Pick::None if item.explode.is_on() && request.is_some() && is_record_time => {
            notes.found("request time", &time.column, "a record is a request, and this is its one time");
            Some(time.column.clone())
        }
        Pick::None | Pick::Several(_) => None,
    };
    let event_id = match pick(file, Role::EventId, ColumnProfile::may_be_id) {
        Pick::One(name, because) => {
            let is_unique = file.column(&name).is_some_and(|c| c.facts.distinct == c.facts.filled)
                || item.explode.is_on();
            if is_unique {
                notes.found("event id", &name, because);
            } else {
                notes.unsure.push(format!("`{name}` is not used as the events' id: it repeats"));
            }
            is_unique.then_some(name)
        }
        Pick::None | Pick::Several(_) => None,
    };
    let value = value(file, answers, &mut item, notes)?;
    let action = action(file, answers, &item, value.as_deref(), notes)?;
    Some(LogRoles {
        user,
        time: time.column,
        time_of_day: time.time_of_day,
        clock: time.clock,
        request,
        request_ts,
        event_id,
        action: action.column,
        action_names: action.names,
        constant_action: action.constant,
        actions: action.learned,
        value,
        item: item.column,
        explode: item.explode,
    })
}

/// The column that the caller names; a question if there is none.
fn asked<'f>(
    file: &'f SampledFile,
    name: &str,
    option: &'static str,
    notes: &mut Notes,
) -> Option<&'f ColumnProfile> {
    let found = file.column(name);
    if found.is_none() {
        let names: Vec<String> = file.columns.iter().map(|column| column.name.clone()).collect();
        let is_twice = if file.duplicates.iter().any(|twice| twice == name) { " once" } else { "" };
        notes.ask(
            option,
            format!("{} does not have `{name}`{is_twice}; it has {}", file.path, quoted(&names)),
        );
    }
    found
}

fn user(file: &SampledFile, answers: &InitAnswers, notes: &mut Notes) -> Option<String> {
    if let Some(name) = &answers.user {
        let column = asked(file, name, "--user", notes)?;
        if !column.may_be_id() {
            notes.ask("--user", format!("{}: {} cannot hold users' ids", file.path, column.described()));
            return None;
        }
        notes.found("user", name, format!("as asked for; {}", facts(column)));
        return Some(name.clone());
    }
    match pick(file, Role::User, ColumnProfile::may_be_id) {
        Pick::One(name, because) => {
            if Role::User.rank(&name) == Some(1) {
                notes.unsure.push(format!("`{name}` stands for the user, as no column is named like one"));
            }
            notes.found("user", &name, because);
            Some(name)
        }
        Pick::None => {
            notes.ask(
                "--user",
                format!("{}: no column is named like a user; {}", file.path, candidates(file)),
            );
            None
        }
        Pick::Several(names) => {
            notes.ask("--user", format!("{}: {} may each be the user", file.path, quoted(&names)));
            None
        }
    }
}

/// The column of items, and how records are taken apart.
struct ItemColumn {
    column: String,
    explode: Explode,
}

impl ItemColumn {
    fn plain(column: String) -> Self {
        Self { column, explode: Explode::default() }
    }
}

fn item(file: &SampledFile, answers: &InitAnswers, notes: &mut Notes) -> Option<ItemColumn> {
    if let Some(name) = &answers.item {
        let column = asked(file, name, "--item", notes)?;
        if let Some(item) = item_list(file, column, notes) {
            return Some(item);
        }
        if !column.may_be_id() {
            notes.ask("--item", format!("{}: {} cannot hold items' ids", file.path, column.described()));
            return None;
        }
        notes.found("item", name, format!("as asked for; {}", facts(column)));
        return Some(ItemColumn::plain(name.clone()));
    }
    // Shown items with labels, or with a list of chosen ones, say more than a single item.
    let shown: Vec<&ColumnProfile> = file
        .columns
        .iter()
        .filter(|column| is_shown(&column.name) && !is_past(&column.name))
        .filter(|column| labels(column).is_some() || chosen_of(file, column).is_some())
        .collect();
    if let [column] = shown.as_slice() {
        if let Pick::One(other, _) = pick(file, Role::Item, ColumnProfile::may_be_id)
            && other != column.name
        {
            notes
                .unsure
                .push(format!("`{other}` is not used: the items are those shown in `{}`", column.name));
        }
        return item_list(file, column, notes);
    }
    let list = |column: &ColumnProfile| {
        !is_past(&column.name)
            && !is_chosen(&column.name)
            && (column.is_list() || text_list(column).is_some())
    };
    let single = pick(file, Role::Item, |column| column.may_be_id() && !list(column));
    let several = pick(file, Role::Item, list);
    match (single, several) {
        (Pick::One(name, because), Pick::None) => {
            notes.found("item", &name, because);
            Some(ItemColumn::plain(name))
        }
        (Pick::None, Pick::One(name, _)) => {
            file.column(&name).and_then(|column| item_list(file, column, notes))
        }
        (Pick::None, Pick::None) => {
            notes.ask(
                "--item",
                format!("{}: no column is named like an item; {}", file.path, candidates(file)),
            );
            None
        }
        (single, several) => {
            let names = |pick| match pick {
                Pick::One(name, _) => vec![name],
                Pick::None => Vec::new(),
                Pick::Several(names) => names,
            };
            let mut all = names(single);
            all.extend(names(several));
            notes.ask("--item", format!("{}: {} may each be the item", file.path, quoted(&all)));
            None
        }
    }
}

/// Items of a column that holds several in a record; none if it holds one.
fn item_list(file: &SampledFile, column: &ColumnProfile, notes: &mut Notes) -> Option<ItemColumn> {
    let mut explode = Explode { columns: vec![column.name.clone()], ..Explode::default() };
    if let Some((after, n)) = labels(column) {
        explode.separator = Some(" ".into());
        explode.action_after = Some(after);
        let because = format!("all {n} values are items with a label, such as `{}`", example(column));
        notes.found("items", &column.name, because);
    } else if column.facts.lists > 0 {
        notes.found(
            "items",
            &column.name,
            format!("lists in all {} records that have one", column.facts.lists),
        );
    } else {
        let (separator, evidence) = text_list(column)?;
        notes.found("items", &column.name, evidence);
        explode.separator = Some(separator);
    }
    if explode.action_after.is_none()
        && let Some((chosen, evidence)) = chosen_of(file, column)
    {
        notes.found("chosen items", &chosen, evidence);
        let (action, others) = ("click".into(), "impression".into());
        explode.chosen = Some(Chosen { column: chosen, action, others });
    }
    Some(ItemColumn { column: column.name.clone(), explode })
}

fn example(column: &ColumnProfile) -> String {
    column.facts.example.as_deref().map(shortened).unwrap_or_default()
}

/// The text before the label of items such as `N1-0 N2-1`, and the number of records, if all values are such.
fn labels(column: &ColumnProfile) -> Option<(String, usize)> {
    let is_labelled = |part: &str| {
        part.strip_suffix("-0").or_else(|| part.strip_suffix("-1")).is_some_and(|i| !i.is_empty())
    };
    let n = column.texts().count();
    let all = n > 0
        && n == column.facts.filled
        && column.texts().all(|text| text.split_whitespace().all(is_labelled));
    all.then(|| ("-".to_owned(), n))
}

/// The text between the elements of a column of lists that are written as text, and the evidence.
fn text_list(column: &ColumnProfile) -> Option<(String, String)> {
    let n = column.texts().count();
    if n == 0 || n < column.facts.filled {
        return None;
    }
    let inside = |text: &str| text.starts_with('[') && text.ends_with(']');
    if column.texts().all(inside) {
        let separator = if column.texts().any(|text| text.contains(',')) { "," } else { " " };
        return Some((
            separator.into(),
            format!("all {n} values are lists in brackets, such as `{}`", example(column)),
        ));
    }
    let is_sequence = column.kind.as_deref().is_some_and(|kind| kind.ends_with("_seq"));
    if is_sequence {
        return Some((" ".into(), "its header says so: a sequence".into()));
    }
    if !is_plural(&column.name) {
        return None;
    }
    [" ", ",", "|", ";"].into_iter().find_map(|separator| {
        let with = column.texts().filter(|text| text.contains(separator)).count();
        let is_id = |part: &str| !part.trim().is_empty() && !part.trim().contains([' ', ',', '|', ';']);
        let all = column.texts().all(|text| text.split(separator).all(is_id));
        (all && with * 5 >= n).then(|| {
            let evidence = format!("{with} of {n} values have several ids, such as `{}`", example(column));
            (separator.to_owned(), evidence)
        })
    })
}

/// The list of chosen items that belongs to a list of shown ones, and the evidence.
fn chosen_of(file: &SampledFile, shown: &ColumnProfile) -> Option<(String, String)> {
    if shown.facts.lists == 0 || !is_shown(&shown.name) {
        return None;
    }
    let elements = |value: &Value<'static>| match value {
        Value::List(elements) => elements.iter().map(Value::shown).collect(),
        _ => Vec::new(),
    };
    file.columns
        .iter()
        .filter(|column| is_chosen(&column.name) && column.facts.lists > 0 && !is_past(&column.name))
        .find_map(|chosen| {
            let (mut with, mut inside) = (0, 0);
            for (shown, chosen) in
                shown.values.iter().zip(&chosen.values).filter(|(_, chosen)| is_filled(chosen))
            {
                let shown: Vec<String> = elements(shown);
                with += 1;
                inside += usize::from(elements(chosen).iter().all(|item| shown.contains(item)));
            }
            let is_subset = with > 0 && inside * 100 >= with * 95;
            is_subset.then(|| {
                (
                    chosen.name.clone(),
                    format!("in {inside} of {with} records its items are among `{}`", shown.name),
                )
            })
        })
}

/// Adds a list that runs parallel to the list of items; a question if it does not.
fn add_parallel(
    file: &SampledFile,
    item: &mut ItemColumn,
    name: &str,
    what: &str,
    notes: &mut Notes,
) -> Option<()> {
    if !item.explode.is_on() || !is_parallel(file, &item.column, name) {
        notes.ask(
            "--item",
            format!(
                "{}: `{name}` holds lists of {what} that do not belong to the items in `{}`",
                file.path, item.column
            ),
        );
        return None;
    }
    item.explode.columns.push(name.to_owned());
    Some(())
}

/// Whether two columns have lists of equal lengths in every record.
fn is_parallel(file: &SampledFile, a: &str, b: &str) -> bool {
    let (Some(a), Some(b)) = (file.column(a), file.column(b)) else { return false };
    let len = |value: &Value<'static>| match value {
        Value::List(elements) => Some(elements.len()),
        Value::Absent | Value::Null => Some(0),
        _ => None,
    };
    a.values.iter().zip(&b.values).all(|(a, b)| len(a).is_some() && len(a) == len(b))
}

/// The column of times, and how they are written.
struct TimeColumn {
    column: String,
    time_of_day: Option<String>,
    clock: KnownClock,
}

fn time(file: &SampledFile, answers: &InitAnswers, exploding: bool, notes: &mut Notes) -> Option<TimeColumn> {
    let configured = match answers.ts_format.as_ref().map(|text| TimeFormat::try_from(text.clone())) {
        Some(Err(problem)) => {
            notes.ask("--ts-format", problem);
            return None;
        }
        Some(Ok(format)) => Some(format),
        None => None,
    };
    let clock_of = |column: &ColumnProfile| clock::recognize(column.values.iter(), configured.as_ref());
    let column = match &answers.time {
        Some(name) => asked(file, name, "--time", notes)?,
        None => time_column(file, exploding, &clock_of, notes)?,
    };
    let (time_of_day, clock) = match time_of_day(file, column, configured.as_ref()) {
        Some((time_of_day, clock)) => (Some(time_of_day), clock),
        None => (None, clock_of(column)),
    };
    match clock {
        Clock::Known(clock) => {
            let name = match &time_of_day {
                Some(time_of_day) => format!("{} and {time_of_day}", column.name),
                None => column.name.clone(),
            };
            notes.found("time", name, format!("{}: {}", clock.format, clock.evidence));
            if clock.is_local {
                notes.unsure.push(format!(
                    "times in `{}` name no zone and are read as UTC; ts_zone says otherwise",
                    column.name
                ));
            }
            if clock.share < 1.0 {
                notes.unsure.push(format!("some times in `{}` are not read: dead letters", column.name));
            }
            Some(TimeColumn { column: column.name.clone(), time_of_day, clock })
        }
        Clock::Ambiguous { formats, example } => {
            let question = format!(
                "{}: `{}` writes `{example}`, which is {}",
                file.path,
                column.name,
                formats.join(" or ")
            );
            notes.ask("--ts-format", question);
            None
        }
        Clock::Unknown(problem) => {
            let option = if answers.time.is_none() && column.is_numeric() { "--time" } else { "--ts-format" };
            notes.ask(
                option,
                format!("{}: `{}` is named like the time, but {problem}", file.path, column.name),
            );
            None
        }
    }
}

/// The column of times by its name, or else by its values.
fn time_column<'f>(
    file: &'f SampledFile,
    exploding: bool,
    clock_of: &dyn Fn(&ColumnProfile) -> Clock,
    notes: &mut Notes,
) -> Option<&'f ColumnProfile> {
    let may_be = |column: &&ColumnProfile| column.facts.filled > 0 && (exploding || column.facts.lists == 0);
    let named: Vec<(u8, &ColumnProfile)> = file
        .columns
        .iter()
        .filter(may_be)
        .filter_map(|column| Some((Role::Time.rank(&column.name)?, column)))
        .collect();
    let readable: Vec<(u8, &ColumnProfile, Clock)> = named
        .iter()
        .map(|(rank, column)| (*rank, *column, clock_of(column)))
        .filter(|(_, _, clock)| !matches!(clock, Clock::Unknown(_)))
        .collect();
    if readable.is_empty()
        && let Some((_, column)) = named.iter().min_by_key(|(rank, _)| *rank)
    {
        return Some(column);
    }
    if let Some(best) = readable.iter().map(|(rank, ..)| *rank).min() {
        let others: Vec<&str> = readable
            .iter()
            .filter(|(rank, ..)| *rank > best)
            .map(|(_, column, _)| column.name.as_str())
            .collect();
        let best: Vec<_> = readable.iter().filter(|(rank, ..)| *rank == best).collect();
        let unused = |notes: &mut Notes, names: &[&str], of: &str| {
            names
                .iter()
                .for_each(|name| notes.unsure.push(format!("`{name}` holds times too; `{of}` is used")));
        };
        if let [(_, column, _)] = best.as_slice() {
            if !is_day_of(file, column, &others) {
                unused(notes, &others, &column.name);
            }
            return Some(column);
        }
        // The same times written twice: the finer ones count.
        let finest = best.iter().find(|(_, column, clock)| {
            matches!(clock, Clock::Known(known) if !known.whole_days)
                && best.iter().all(|(_, other, others)| same_times(column, clock, other, others))
        });
        let finest = finest.or_else(|| {
            best.iter().find(|(_, column, clock)| {
                column.is_numeric()
                    && best.iter().all(|(_, other, others)| same_times(column, clock, other, others))
            })
        });
        return match finest {
            Some((_, column, _)) => {
                let others: Vec<&str> = best
                    .iter()
                    .map(|(_, other, _)| other.name.as_str())
                    .filter(|n| *n != column.name)
                    .collect();
                unused(notes, &others, &column.name);
                Some(column)
            }
            None => {
                let names: Vec<String> = best.iter().map(|(_, column, _)| column.name.clone()).collect();
                notes.ask("--time", format!("{}: {} may each be the time", file.path, quoted(&names)));
                None
            }
        };
    }
    by_values(file, &may_be, clock_of, notes)
}

/// Whether the others are the time of day that belongs to a column of dates.
fn is_day_of(file: &SampledFile, column: &ColumnProfile, others: &[&str]) -> bool {
    time_of_day(file, column, None).is_some_and(|(time, _)| others == [time.as_str()])
}

/// The only column whose values are times, if no name says so.
fn by_values<'f>(
    file: &'f SampledFile,
    may_be: &dyn Fn(&&ColumnProfile) -> bool,
    clock_of: &dyn Fn(&ColumnProfile) -> Clock,
    notes: &mut Notes,
) -> Option<&'f ColumnProfile> {
    // Times of the item or of the user are not those of the event.
    let is_other = |column: &ColumnProfile| {
        let name = plain(&column.name);
        Role::Release.rank(&column.name).is_some()
            || ["birth", "update", "modif", "expir", "regist", "signup", "release", "publish"]
                .iter()
                .any(|w| name.contains(w))
    };
    let says_time = |column: &ColumnProfile| {
        let name = plain(&column.name);
        ["time", "date", "stamp"].iter().any(|word| name.contains(word))
    };
    let found: Vec<&ColumnProfile> = file
        .columns
        .iter()
        .filter(may_be)
        .filter(|column| !column.is_numeric() || says_time(column))
        .filter(|column| !is_other(column) && !matches!(clock_of(column), Clock::Unknown(_)))
        .collect();
    match found.as_slice() {
        [column] => {
            notes.unsure.push(format!(
                "`{}` is taken for the time: the only column whose values are times",
                column.name
            ));
            Some(column)
        }
        [] => {
            let what = "no column holds times of events, which order them";
            let names: Vec<String> = file.columns.iter().map(ColumnProfile::described).collect();
            notes.ask("--time", format!("{}: {what}; it has {}", file.path, names.join(", ")));
            None
        }
        several => {
            let names: Vec<String> = several.iter().map(|column| column.name.clone()).collect();
            notes.ask("--time", format!("{}: {} may each be the time", file.path, quoted(&names)));
            None
        }
    }
}

/// Whether two columns say the same instants, or the second their days.
fn same_times(a: &ColumnProfile, a_clock: &Clock, b: &ColumnProfile, b_clock: &Clock) -> bool {
    const DAY_MS: i64 = 86_400_000;
    let (Clock::Known(a_clock), Clock::Known(b_clock)) = (a_clock, b_clock) else { return false };
    let read = |clock: &KnownClock, value: &Value<'static>| {
        TimeReader::new(&clock.format, None).read(value, "").ok().flatten().map(|(ms, _)| ms)
    };
    a.values.iter().zip(&b.values).take(1_000).all(|(a, b)| match (read(a_clock, a), read(b_clock, b)) {
        (Some(a), Some(b)) => a == b || (b_clock.whole_days && a.div_euclid(DAY_MS) == b.div_euclid(DAY_MS)),
        _ => false,
    })
}

/// The column with the time of day that belongs to a column of dates, and how both together are written.
fn time_of_day(
    file: &SampledFile,
    date: &ColumnProfile,
    configured: Option<&TimeFormat>,
) -> Option<(String, Clock)> {
    if date.texts().count() < date.facts.filled || date.texts().any(|text| text.contains(':')) {
        return None;
    }
    let is_clock = |text: &str| {
        let mut parts = text.split([':', ' ']).filter(|part| !part.is_empty());
        text.contains(':')
            && text.len() <= 16
            && parts.all(|p| {
                p.bytes().all(|b| b.is_ascii_digit() || b == b'.') || matches!(p, "AM" | "PM" | "am" | "pm")
            })
    };
    let mut found = file.columns.iter().filter(|column| {
        let names = ["time", "timeofday", "hour", "eventtime", "clock", "starttime"];
        names.contains(&plain(&column.name).as_str())
            && column.facts.filled > 0
            && column.texts().count() == column.facts.filled
            && column.texts().all(is_clock)
    });
    let (Some(time), None) = (found.next(), found.next()) else { return None };
    let joined: Vec<Value<'static>> = date
        .values
        .iter()
        .zip(&time.values)
        .filter_map(|(date, time)| match (date, time) {
            (Value::Text(date), Value::Text(time)) => {
                Some(Value::Text(format!("{} {}", date.trim(), time.trim()).into()))
            }
            _ => None,
        })
        .collect();
    match clock::recognize(joined.iter(), configured) {
        Clock::Unknown(_) => None,
        clock => Some((time.name.clone(), clock)),
    }
}

/// Whether the format reads nearly all values of the column.
fn reads(column: &ColumnProfile, format: &TimeFormat) -> bool {
    let reader = TimeReader::new(format, None);
    let read = column.values.iter().filter(|value| matches!(reader.read(value, ""), Ok(Some(_)))).count();
    column.facts.filled > 0 && read * 100 >= column.facts.filled * 99
}

/// An optional column of ids: `Some(None)` if there is none; none if the caller names one that is not there.
fn optional(
    file: &SampledFile,
    role: Role,
    answer: &Option<String>,
    option: &'static str,
    what: &'static str,
    notes: &mut Notes,
) -> Option<Option<String>> {
    if let Some(name) = answer {
        asked(file, name, option, notes)?;
        notes.found(what, name, "as asked for");
        return Some(Some(name.clone()));
    }
    Some(match pick(file, role, ColumnProfile::may_be_id) {
        Pick::One(name, because) => {
            notes.found(what, &name, because);
            Some(name)
        }
        Pick::None => None,
        Pick::Several(names) => {
            notes
                .unsure
                .push(format!("{} may each be the {what}; none is used, {option} names one", quoted(&names)));
            None
        }
    })
}

fn value(
    file: &SampledFile,
    answers: &InitAnswers,
    item: &mut ItemColumn,
    notes: &mut Notes,
) -> Option<Option<String>> {
    let parallel = |column: &ColumnProfile| {
        item.explode.is_on() && column.facts.lists > 0 && is_parallel(file, &item.column, &column.name)
    };
    let name = if let Some(name) = &answers.value {
        let column = asked(file, name, "--value", notes)?;
        if !column.is_numeric() && !parallel(column) {
            notes.ask("--value", format!("{}: {} is not all numbers", file.path, column.described()));
            return None;
        }
        notes.found("value", name, "as asked for");
        name.clone()
    } else {
        // A number of the whole record says nothing of the items that were merely shown.
        let is_shown = item.explode.action_after.is_some() || item.explode.chosen.is_some();
        match pick(file, Role::Value, |column| column.is_numeric() || parallel(column)) {
            Pick::One(name, _) if is_shown && !file.column(&name).is_some_and(&parallel) => {
                notes.unsure.push(format!(
                    "`{name}` is not used: it is one value for all items shown; --value names it"
                ));
                return Some(None);
            }
            Pick::One(name, because) => {
                notes.found("value", &name, because);
                name
            }
            Pick::None => return Some(None),
            Pick::Several(names) => {
                notes.unsure.push(format!(
                    "{} may each be the value; none is used, --value names one",
                    quoted(&names)
                ));
                return Some(None);
            }
        }
    };
    if file.column(&name).is_some_and(&parallel) {
        item.explode.columns.push(name.clone());
    }
    Some(Some(name))
}

/// What tells the action.
#[derive(Default)]
struct ActionColumn {
    column: Option<String>,
    names: BTreeMap<String, String>,
    constant: Option<String>,
    learned: Vec<String>,
}

/// Actions that only say that an item was shown.
const SHOWN: [&str; 6] = ["impression", "exposure", "show", "shown", "expose", "display"];
const ACTIONS_MAX: usize = 50;

fn action(
    file: &SampledFile,
    answers: &InitAnswers,
    item: &ItemColumn,
    value: Option<&str>,
    notes: &mut Notes,
) -> Option<ActionColumn> {
    let names = |zero: &str, one: &str, action: &str| {
        BTreeMap::from([(zero.to_owned(), "impression".to_owned()), (one.to_owned(), action.to_owned())])
    };
    let learned = vec!["click".to_owned()];
    if item.explode.action_after.is_some() {
        return Some(ActionColumn { names: names("0", "1", "click"), learned, ..ActionColumn::default() });
    }
    if item.explode.chosen.is_some() {
        return Some(ActionColumn { learned, ..ActionColumn::default() });
    }
    let may_be = |column: &ColumnProfile| {
        let facts = &column.facts;
        column.may_be_id() && facts.distinct <= ACTIONS_MAX && facts.distinct * 2 <= facts.filled.max(2)
    };
    let column = if let Some(name) = &answers.action {
        let column = asked(file, name, "--action", notes)?;
        if !column.may_be_id() {
            notes.ask("--action", format!("{}: {} cannot hold actions", file.path, column.described()));
            return None;
        }
        notes.found("action", name, "as asked for");
        Some(column)
    } else {
        match pick(file, Role::Action, may_be) {
            Pick::One(name, because) if Some(name.as_str()) != value => {
                notes.found("action", &name, because);
                file.column(&name)
            }
            Pick::Several(names) => {
                notes.ask("--action", format!("{}: {} may each be the action", file.path, quoted(&names)));
                return None;
            }
            _ => {
                let flag = FLAGS.iter().find_map(|flag| {
                    file.columns
                        .iter()
                        .find(|column| plain(&column.name) == *flag && flag_values(column).is_some())
                });
                if let Some(flag) = flag {
                    notes.found("action", &flag.name, "a flag of 0 and 1 by its name and values");
                }
                flag
            }
        }
    };
    let Some(column) = column else {
        let by_value = |value: &str| match plain(value).as_str() {
            "rating" | "star" | "starrating" | "score" => Some("rating".to_owned()),
            "overall" => Some("review".to_owned()),
            _ => None,
        };
        return Some(ActionColumn { constant: value.and_then(by_value), ..ActionColumn::default() });
    };
    let mut found = ActionColumn { column: Some(column.name.clone()), ..ActionColumn::default() };
    if let (true, Some((zero, one))) = (FLAGS.contains(&plain(&column.name).as_str()), flag_values(column)) {
        let action = if plain(&column.name) == "purchased" { "purchase" } else { "click" };
        found.names = names(&zero, &one, action);
        found.learned = vec![action.to_owned()];
        let others =
            file.columns.iter().filter(|c| c.name != column.name && plain(&c.name).starts_with("is"));
        let others: Vec<String> = others.map(|c| c.name.clone()).collect();
        if !others.is_empty() {
            notes.unsure.push(format!("{} are not used: an event has one action", quoted(&others)));
        }
        return Some(found);
    }
    let mut actions: Vec<String> =
        column.values.iter().filter(|value| is_filled(value)).map(Value::shown).collect();
    actions.sort_unstable();
    actions.dedup();
    if actions.iter().any(|action| SHOWN.contains(&action.to_lowercase().as_str())) {
        found.learned = actions
            .iter()
            .filter(|action| !SHOWN.contains(&action.to_lowercase().as_str()))
            .cloned()
            .collect();
    }
    if actions.iter().all(|action| action.parse::<i64>().is_ok()) {
        notes
            .unsure
            .push(format!("actions are the numbers {}; events.action_names names them", actions.join(", ")));
    } else {
        notes.unsure.push(format!(
            "all of these actions count alike: {}; sequences.actions chooses",
            actions.join(", ")
        ));
    }
    Some(found)
}

/// How a flag writes 0 and 1, if all its values are either.
fn flag_values(column: &ColumnProfile) -> Option<(String, String)> {
    let (mut zero, mut one) = (None, None);
    for value in column.values.iter().filter(|value| is_filled(value)) {
        let shown = value.shown();
        let place = match shown.parse::<f64>() {
            Ok(0.0) => &mut zero,
            Ok(1.0) => &mut one,
            _ => return None,
        };
        match place {
            Some(other) if *other != shown => return None,
            _ => *place = Some(shown),
        }
    }
    Some((zero.unwrap_or_else(|| "0".into()), one.unwrap_or_else(|| "1".into())))
}
