//! Writes a proposal as a commented configuration.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use schemas::config::{Dialect, TimeFormat};

use super::catalogue::CatalogueRoles;
use super::log::LogRoles;
use super::sampled::{SampledFile, called, is_filled};

/// Files of one kind, the first of them described.
pub(super) struct Part<'a, R> {
    pub(super) file: &'a SampledFile,
    /// Of all files, relative to the configuration.
    pub(super) paths: Vec<String>,
    pub(super) rows_estimate: u64,
    pub(super) roles: R,
}

/// Text as TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// The configuration of a log and perhaps a catalogue.
pub(super) fn text(
    name: &str,
    log: &Part<'_, LogRoles>,
    catalogue: Option<&Part<'_, CatalogueRoles>>,
    check_times: bool,
) -> String {
    let mut text = format!(
        "# Written by `pipeline init`; `pipeline ingest --check` shows what it makes of the files. Paths are relative to this file.\n\
         root = {}\n\n[events]\n",
        quoted(&format!("runs/{name}"))
    );
    files(&mut text, log.file, &log.paths);
    events(&mut text, log, check_times);
    if let Some(part) = catalogue {
        text.push_str("\n[items]\n");
        files(&mut text, part.file, &part.paths);
        items(&mut text, &part.roles);
    }
    learning(&mut text, log, catalogue);
    text
}

/// Paths, format and dialect, as far as the names of the files do not say them.
fn files(text: &mut String, file: &SampledFile, paths: &[String]) {
    let _ = writeln!(text, "paths = {}", list(paths));
    if file.named_format != Some(file.input.format) {
        let format =
            toml::Value::try_from(file.input.format).map(|value| value.to_string()).unwrap_or_default();
        let _ = writeln!(text, "format = {format}");
    }
    let (dialect, named) = (&file.input.dialect, &file.named_dialect);
    let mut keys = Vec::new();
    let delimiter = |dialect: &Dialect| dialect.delimiter.clone().unwrap_or_else(|| ",".into());
    if delimiter(dialect) != delimiter(named) {
        keys.push(format!("delimiter = {}", quoted(&delimiter(dialect))));
    }
    if let Some(quote) = &dialect.quote {
        keys.push(format!("quote = {}", quoted(quote)));
    }
    if let Some(comment) = &dialect.comment {
        keys.push(format!("comment = {}", quoted(comment)));
    }
    if !dialect.names.is_empty() {
        keys.push(format!("names = {}", list(&dialect.names)));
    }
    if dialect.names.is_empty()
        && dialect.typed_header.unwrap_or(false) != named.typed_header.unwrap_or(false)
    {
        keys.push(format!("typed_header = {}", dialect.typed_header.unwrap_or(false)));
    }
    if !keys.is_empty() {
        let mut why = vec![called(&delimiter(dialect))];
        why.extend(dialect.quote.as_ref().map(|_| "quotes are characters like others".into()));
        why.extend((!dialect.names.is_empty()).then(|| "no header".into()));
        let _ = writeln!(text, "csv = {{ {} }} # {}", keys.join(", "), why.join("; "));
    }
}

fn events(text: &mut String, log: &Part<'_, LogRoles>, check_times: bool) {
    let roles = &log.roles;
    let optional = [
        ("time_of_day", &roles.time_of_day),
        ("event_id", &roles.event_id),
        ("request_id", &roles.request),
        ("request_ts", &roles.request_ts),
        ("action", &roles.action),
        ("value", &roles.value),
    ];
    let required = [("user_id", &roles.user), ("item_id", &roles.item), ("ts", &roles.time)];
    let named = optional.into_iter().filter_map(|(key, column)| Some((key, column.as_ref()?)));
    let columns: Vec<String> = required
        .into_iter()
        .chain(named)
        .map(|(key, column)| format!("{key} = {}", quoted(column)))
        .collect();
    let _ = writeln!(text, "columns = {{ {} }}", columns.join(", "));
    if let Some(action) = &roles.constant_action {
        let _ = writeln!(text, "constants = {{ action = {} }}", quoted(action));
    }
    map(text, "action_names", &roles.action_names);
    if roles.clock.format != TimeFormat::Auto {
        let _ = writeln!(text, "ts_format = {}", quoted(&roles.clock.format.to_string()));
    }
    if !check_times {
        text.push_str("check_times = false # such old or regular times are meant\n");
    }
    if roles.clock.is_local {
        text.push_str(
            "# ts_zone = \"Europe/Berlin\" # the times name no zone; without this line they are UTC\n",
        );
    }
    let explode = &roles.explode;
    if !explode.is_on() {
        return;
    }
    text.push_str("\n# A record holds several events.\n[events.explode]\n");
    let _ = writeln!(text, "columns = {}", list(&explode.columns));
    if let Some(separator) = &explode.separator {
        let _ = writeln!(text, "separator = {}", quoted(separator));
    }
    if let Some(after) = &explode.action_after {
        let _ = writeln!(text, "action_after = {} # item, this, action", quoted(after));
    }
    if let Some(chosen) = &explode.chosen {
        let _ = writeln!(
            text,
            "chosen = {{ column = {}, action = {}, others = {} }}",
            quoted(&chosen.column),
            quoted(&chosen.action),
            quoted(&chosen.others)
        );
    }
}

fn map(text: &mut String, key: &str, values: &BTreeMap<String, String>) {
    if !values.is_empty() {
        let values: Vec<String> =
            values.iter().map(|(from, to)| format!("{} = {}", quoted(from), quoted(to))).collect();
        let _ = writeln!(text, "{key} = {{ {} }}", values.join(", "));
    }
}

fn items(text: &mut String, roles: &CatalogueRoles) {
    let release = roles.release.as_ref().map(|(column, _)| column);
    let optional =
        [("title", roles.title.as_ref()), ("release_ts", release), ("active", roles.active.as_ref())];
    let mut columns = vec![format!("item_id = {}", quoted(&roles.item))];
    columns.extend(
        optional.into_iter().filter_map(|(key, column)| Some(format!("{key} = {}", quoted(column?)))),
    );
    let _ = writeln!(text, "columns = {{ {} }}", columns.join(", "));
    if let Some((_, format)) = roles.release.as_ref().filter(|(_, format)| *format != TimeFormat::Auto) {
        let _ = writeln!(text, "ts_format = {}", quoted(&format.to_string()));
    }
    for (name, attribute) in &roles.attributes {
        let _ = writeln!(text, "\n[items.attributes.{name}]");
        if let Some(column) = attribute.column.as_ref().filter(|column| *column != name) {
            let _ = writeln!(text, "column = {}", quoted(column));
        }
        if let Some(separator) = &attribute.separator {
            let _ = writeln!(text, "separator = {}", quoted(separator));
        }
        if !attribute.none.is_empty() {
            let _ = writeln!(text, "none = {}", list(&attribute.none));
        }
    }
}

/// Sections for sequences, model and training, by the size of the log.
fn learning(text: &mut String, log: &Part<'_, LogRoles>, catalogue: Option<&Part<'_, CatalogueRoles>>) {
    let (file, roles, events) = (log.file, &log.roles, log.rows_estimate);
    text.push_str("\n[sequences]\n");
    if !roles.actions.is_empty() {
        let _ = writeln!(
            text,
            "actions = {} # what is predicted; other events are stored only",
            list(&roles.actions)
        );
    }
    text.push_str(match roles.clock.whole_days {
        true => "delta_tau = \"off\" # times are whole days\n",
        false => "delta_tau = \"15m\" # what a model in service has not seen yet\n",
    });
    let users = file.column(&roles.user).map_or(0, |column| column.facts.distinct).max(1);
    let is_short = file.is_whole && file.rows / users < 20;
    let _ = writeln!(text, "max_len = {}", if is_short { 50 } else { 200 });
    text.push_str("split = \"leave-one-out\"\n");
    let ties = ties(file, roles);
    if ties > 0.05 {
        let _ = writeln!(
            text,
            "ties = \"shuffled\" # {:.0} % of the sample share their time with another event of their user",
            100.0 * ties
        );
    }
    let shards = (events / 500_000).clamp(8, 256);
    if shards > 8 {
        let _ = writeln!(text, "shards = {shards}");
    }
    let attributes =
        catalogue.map(|part| part.roles.attributes.keys().collect::<Vec<_>>()).unwrap_or_default();
    text.push_str("\n[model]\nd = 64\nlayers = 3\nbranches = 2\nmask = \"gather\"\n");
    if events < 1_000_000 {
        text.push_str("dropout = 0.4 # a small log is soon learned by heart\n");
    }
    if !attributes.is_empty() {
        let _ = writeln!(text, "attributes = {}", list(attributes));
    }
    let (epochs, batch, rate) = match events {
        0..300_000 => (14, 32, "3e-3"),
        300_000..3_000_000 => (8, 64, "2e-3"),
        _ => (3, 256, "1e-3"),
    };
    let _ = writeln!(text, "\n[pretrain] # for some {events} records");
    let _ = writeln!(
        text,
        "epochs = {epochs}\nbatch_size = {batch}\nlearning_rate = {rate}\nschedule = \"linear\""
    );
    let items = file.column(&roles.item).map_or(0, |column| column.facts.distinct as u64);
    let items = catalogue.map_or(if file.is_whole { items } else { events / 100 }, |part| part.rows_estimate);
    if items > 20_000 {
        let negatives = (items / 4).clamp(512, 8_192);
        let _ = writeln!(
            text,
            "loss = \"sampled\" # a full softmax over many items dominates the cost\nuniform_negatives = {negatives}"
        );
    } else {
        text.push_str("loss = \"full\"\n");
    }
    text.push_str("select_by = \"hr-as-served\"\n");
}

/// Share of the sample's records whose user has another at the same time.
fn ties(file: &SampledFile, roles: &LogRoles) -> f64 {
    let (Some(users), Some(times)) = (file.column(&roles.user), file.column(&roles.time)) else { return 0.0 };
    if roles.explode.is_on() || roles.time_of_day.is_some() {
        return 0.0;
    }
    let pairs =
        users.values.iter().zip(&times.values).filter(|(user, time)| is_filled(user) && is_filled(time));
    let (mut seen, mut n) = (HashSet::new(), 0);
    for (user, time) in pairs {
        n += 1;
        seen.insert((user.shown(), time.shown()));
    }
    (n - seen.len()) as f64 / n.max(1) as f64
}

/// The paths of files as a configuration in `directory` names them: one pattern for many of a kind.
pub(super) fn paths(files: &[&SampledFile], directory: &Path) -> Vec<String> {
    const NAMED_MAX: usize = 4;
    let sources: Vec<&Path> = files.iter().map(|file| Path::new(&file.input.source)).collect();
    if sources.len() > NAMED_MAX
        && let Some(pattern) = pattern(&sources)
    {
        return vec![relative(&pattern, directory)];
    }
    sources.iter().map(|source| relative(source, directory)).collect()
}

/// A pattern that matches these files and no other.
fn pattern(sources: &[&Path]) -> Option<PathBuf> {
    let folder = sources[0].parent()?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let first = name(sources[0])?;
    let ending = &first[first.find('.')?..];
    let is_plain = !folder.to_string_lossy().contains(['*', '?', '[']) && !ending.contains(['*', '?', '[']);
    let all = sources
        .iter()
        .all(|path| path.parent() == Some(folder) && name(path).is_some_and(|n| n.ends_with(ending)));
    let there = std::fs::read_dir(folder).ok()?.flatten();
    let there = there.filter(|entry| entry.file_name().to_string_lossy().ends_with(ending)).count();
    (is_plain && all && there == sources.len()).then(|| folder.join(format!("*{ending}")))
}

/// `path` as seen from `directory`; both are absolute.
pub(super) fn relative(path: &Path, directory: &Path) -> String {
    let (path, directory): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (path.components().collect(), directory.components().collect());
    let common = path.iter().zip(&directory).take_while(|(a, b)| a == b).count();
    // Two paths that share only `/` are shorter as they are.
    if common <= 1 {
        return path.iter().collect::<PathBuf>().to_string_lossy().into_owned();
    }
    let up = std::iter::repeat_n("..", directory.len() - common).map(PathBuf::from);
    let rest = path[common..].iter().map(|component| PathBuf::from(component.as_os_str()));
    up.chain(rest).collect::<PathBuf>().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_configuration() {
        for (path, directory, expected) in [
            ("/a/b/c.csv", "/a/b", "c.csv"),
            ("/a/b/c.csv", "/a/d/e", "../../b/c.csv"),
            ("/a/c.csv", "/b", "/a/c.csv"),
        ] {
            assert_eq!(relative(Path::new(path), Path::new(directory)), expected);
        }
        assert_eq!(quoted("a\"b\\c\t"), "'a\"b\\c\t'");
    }
}
