//! Tells which columns of a catalogue hold the item, its title, its release and its attributes.

use std::collections::{BTreeMap, BTreeSet};

use schemas::config::{Attribute, TimeFormat};
use schemas::tables::ITEM_COLUMNS;

use super::InitAnswers;
use super::clock::{self, Clock};
use super::log::{LogRoles, Notes};
use super::sampled::{ColumnProfile, SampledFile, is_filled};
use super::vocabulary::{GROUPS, Role, plain};
use crate::records::Value;

/// The columns of a catalogue.
#[derive(Debug, Clone)]
pub(super) struct CatalogueRoles {
    pub(super) item: String,
    pub(super) title: Option<String>,
    pub(super) release: Option<(String, TimeFormat)>,
    pub(super) active: Option<String>,
    pub(super) attributes: BTreeMap<String, Attribute>,
}

/// Attributes that are written to a configuration.
const ATTRIBUTES_MAX: usize = 4;
/// Characters of the longest value of an attribute.
const VALUE_CHARS_MAX: usize = 60;

/// The ids of the items in the sample of a log.
pub(super) fn items_of(file: &SampledFile, roles: &LogRoles) -> BTreeSet<String> {
    let Some(column) = file.column(&roles.item) else { return BTreeSet::new() };
    let explode = &roles.explode;
    let mut items = BTreeSet::new();
    let mut add = |text: &str| {
        let text = text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '[' | ']'));
        let item = match &explode.action_after {
            Some(after) => text.rsplit_once(after.as_str()).map_or(text, |(item, _)| item),
            None => text,
        };
        if !item.is_empty() {
            items.insert(item.to_owned());
        }
    };
    for value in column.values.iter().filter(|value| is_filled(value)) {
        match (value, &explode.separator) {
            (Value::List(elements), _) => elements.iter().for_each(|element| add(&element.shown())),
            (value, Some(separator)) => value.shown().split(separator.as_str()).for_each(&mut add),
            (value, None) => add(&value.shown()),
        }
    }
    items
}

/// How many of the log's items a column has.
pub(super) fn overlap(column: &ColumnProfile, items: &BTreeSet<String>) -> usize {
    let ids: BTreeSet<String> =
        column.values.iter().filter(|value| is_filled(value)).map(Value::shown).collect();
    items.iter().filter(|item| ids.contains(item.as_str())).count()
}

/// Tells the columns of a catalogue beside a log with these items. Asks in `notes` for what it cannot tell.
pub(super) fn roles(
    file: &SampledFile,
    items: &BTreeSet<String>,
    answers: &InitAnswers,
    notes: &mut Notes,
) -> Option<CatalogueRoles> {
    let item = item(file, items, answers, notes)?;
    let named = |role: Role, fits: &dyn Fn(&ColumnProfile) -> bool| {
        let columns = file.columns.iter().filter(|column| column.name != item && fits(column));
        let ranked = columns.filter_map(|column| Some((role.rank(&column.name)?, column)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, column)| column)
    };
    let is_text =
        |column: &ColumnProfile| column.facts.filled > 0 && column.texts().count() == column.facts.filled;
    let title = named(Role::Title, &is_text).map(|column| column.name.clone());
    if let Some(title) = &title {
        notes.found("title", title, "its name");
    }
    let mut release = None;
    if let Some(column) = named(Role::Release, &|column| column.facts.filled > 0) {
        match clock::recognize(column.values.iter(), None) {
            Clock::Known(known) => {
                notes.found("release time", &column.name, format!("{}: {}", known.format, known.evidence));
                release = Some((column.name.clone(), known.format));
            }
            Clock::Ambiguous { formats, example } => notes.unsure.push(format!(
                "`{}` is not used as the release time: it writes `{example}`, which is {}; items.ts_format says which",
                column.name,
                formats.join(" or ")
            )),
            Clock::Unknown(problem) => {
                notes.unsure.push(format!("`{}` is not used as the release time: {problem}", column.name));
            }
        }
    }
    let is_flag = |column: &ColumnProfile| {
        let known = ["true", "false", "t", "f", "yes", "no", "y", "n", "0", "1"];
        column
            .values
            .iter()
            .filter(|v| is_filled(v))
            .all(|v| known.contains(&v.shown().to_lowercase().as_str()))
    };
    let active = named(Role::Active, &is_flag).map(|column| column.name.clone());
    let used = [Some(&item), title.as_ref(), release.as_ref().map(|(name, _)| name), active.as_ref()];
    let attributes = attributes(file, &used, notes);
    Some(CatalogueRoles { item, title, release, active, attributes })
}

fn item(
    file: &SampledFile,
    items: &BTreeSet<String>,
    answers: &InitAnswers,
    notes: &mut Notes,
) -> Option<String> {
    let names = || file.columns.iter().map(|c| format!("`{}`", c.name)).collect::<Vec<_>>().join(", ");
    let shared = |column: &ColumnProfile| overlap(column, items);
    let evidence = |column: &ColumnProfile| match items.len() {
        0 => "its name".to_owned(),
        n => format!("has {} of the {n} items in the log's sample", shared(column)),
    };
    let column = if let Some(name) = &answers.catalogue_item {
        match file.column(name) {
            Some(column) => column,
            None => {
                notes.ask(
                    "--catalogue-item",
                    format!("{} does not have `{name}`; it has {}", file.path, names()),
                );
                return None;
            }
        }
    } else {
        let is_named = |column: &ColumnProfile| {
            Role::Item.rank(&column.name) == Some(0)
                || plain(&column.name) == "id"
                || answers.item.as_ref() == Some(&column.name)
        };
        let mut found: Vec<&ColumnProfile> =
            file.columns.iter().filter(|column| column.may_be_id() && is_named(column)).collect();
        if found.is_empty() {
            let holds = |column: &&ColumnProfile| shared(column) * 2 > items.len() && !items.is_empty();
            found = file.columns.iter().filter(|column| column.may_be_id()).filter(holds).collect();
        }
        if found.len() > 1 {
            // The column that has the log's items is the one; ids that merely look alike are shared by chance.
            let most = found.iter().map(|column| shared(column)).max().unwrap_or(0);
            let close = |column: &&&ColumnProfile| most > 0 && shared(column) * 2 >= most;
            let best: Vec<&ColumnProfile> = found.iter().filter(close).copied().collect();
            if best.len() == 1 {
                found = best;
            }
        }
        match found.as_slice() {
            &[one] => one,
            [] => {
                notes.ask(
                    "--catalogue-item",
                    format!("{}: no column is named like an item; it has {}", file.path, names()),
                );
                return None;
            }
            several => {
                let each: Vec<String> =
                    several.iter().map(|c| format!("`{}` ({})", c.name, evidence(c))).collect();
                notes.ask(
                    "--catalogue-item",
                    format!("{}: which is the item: {}?", file.path, each.join(", ")),
                );
                return None;
            }
        }
    };
    if !items.is_empty() && shared(column) == 0 {
        let none = format!("none of the {} items in the log's sample is in `{}`", items.len(), column.name);
        if file.is_whole && answers.catalogue_item.is_none() {
            notes.ask("--catalogue-item", format!("{}: {none}; it has {}", file.path, names()));
            return None;
        }
        notes.unsure.push(format!("{}: {none}", file.path));
    }
    if column.facts.distinct < column.facts.filled {
        notes
            .unsure
            .push(format!("`{}` repeats in {}: the last record of an item counts", column.name, file.path));
    }
    notes.found("item of the catalogue", &column.name, evidence(column));
    Some(column.name.clone())
}

/// The columns that group items, best first.
fn attributes(
    file: &SampledFile,
    used: &[Option<&String>],
    notes: &mut Notes,
) -> BTreeMap<String, Attribute> {
    let mut found: Vec<(usize, String, Attribute, String)> = Vec::new();
    for column in &file.columns {
        if used.contains(&Some(&column.name)) || plain(&column.name).ends_with("url") {
            continue;
        }
        let place = GROUPS.iter().position(|name| *name == plain(&column.name));
        if let Some((attribute, evidence)) = attribute(column, place.is_some()) {
            let name = attribute_name(&column.name);
            if !ITEM_COLUMNS.contains(&name.as_str()) && !found.iter().any(|(_, other, ..)| *other == name) {
                found.push((place.unwrap_or(GROUPS.len()), name, attribute, evidence));
            }
        }
    }
    found.sort_by_key(|(place, ..)| *place);
    if found.len() > ATTRIBUTES_MAX {
        let others: Vec<String> =
            found.drain(ATTRIBUTES_MAX..).map(|(_, name, ..)| format!("`{name}`")).collect();
        notes
            .unsure
            .push(format!("{} may be attributes too; items.attributes takes them", others.join(", ")));
    }
    found
        .into_iter()
        .map(|(_, name, attribute, evidence)| {
            notes.found("attribute", &name, evidence);
            (name, attribute)
        })
        .collect()
}

/// The name of an attribute: `Genres` is `genre`.
fn attribute_name(column: &str) -> String {
    let singular = plain(column);
    let name: String = column
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    let name = name.trim_matches('_').to_owned();
    // Only the plural of a single word is dropped.
    let name = if GROUPS.contains(&singular.as_str()) && !name.contains('_') && name.is_ascii() {
        singular
    } else {
        name
    };
    if name.is_empty() { "attribute".into() } else { name }
}

/// The attribute that a column holds, and the evidence; none if it does not group items.
fn attribute(column: &ColumnProfile, is_named: bool) -> Option<(Attribute, String)> {
    let facts = &column.facts;
    let is_number = column.is_numeric();
    if facts.filled < 2
        || facts.instants + facts.others > 0
        || (is_number && (!is_named || facts.wholes < facts.filled))
    {
        return None;
    }
    let is_list = facts.lists > 0;
    let mut texts: Vec<String> = Vec::new();
    for value in column.values.iter().filter(|value| is_filled(value)) {
        match value {
            Value::List(elements) => {
                if elements.iter().any(|e| matches!(e, Value::List(_) | Value::Other(_) | Value::Instant(_)))
                {
                    return None;
                }
                texts.extend(elements.iter().map(Value::shown));
            }
            value => texts.push(value.shown()),
        }
    }
    // Lists that are written as text in brackets cannot be taken apart.
    if texts.iter().any(|text| text.starts_with(['[', '{'])) {
        return None;
    }
    let separator = match (&column.kind, is_list) {
        (Some(kind), _) if kind == "token_seq" => Some(" ".to_owned()),
        (_, true) => None,
        _ => separator(&texts),
    };
    let elements: Vec<&str> = match &separator {
        Some(separator) => {
            texts.iter().flat_map(|text| text.split(separator.as_str())).map(str::trim).collect()
        }
        None => texts.iter().map(String::as_str).collect(),
    };
    let none: BTreeSet<&str> = elements.iter().copied().filter(|element| is_none(element)).collect();
    let elements: Vec<&str> =
        elements.into_iter().filter(|element| !element.is_empty() && !is_none(element)).collect();
    let distinct: BTreeSet<&str> = elements.iter().copied().collect();
    let is_long = distinct.iter().any(|element| element.chars().count() > VALUE_CHARS_MAX);
    if distinct.len() < 2
        || is_long
        || (distinct.len() * 2 > elements.len() && !(is_named && elements.len() < 20))
    {
        return None;
    }
    let mut evidence = format!("{} different values in {} items", distinct.len(), facts.filled);
    if let Some(separator) = &separator {
        evidence.push_str(&format!(", between `{separator}`"));
    }
    if !none.is_empty() {
        evidence.push_str(&format!(
            "; {} are none",
            none.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
        ));
    }
    let none = none.into_iter().map(str::to_owned).collect();
    Some((Attribute { column: Some(column.name.clone()), separator, none }, evidence))
}

/// Whether a value says that there is none.
fn is_none(text: &str) -> bool {
    let lower = text.to_lowercase();
    (lower.starts_with("(no ") && lower.ends_with(')'))
        || ["n/a", "na", "null", "none", "nan", "unknown", "-", "\\n", "undefined", "(none)", "not available"]
            .contains(&lower.as_str())
}

/// The text between several values: one that makes them few, because the same elements occur in many values.
fn separator(texts: &[String]) -> Option<String> {
    let before: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
    for separator in ["|", "; ", ";", ", ", ","] {
        let with = texts.iter().filter(|text| text.contains(separator)).count();
        if with * 50 < texts.len() || with == 0 {
            continue;
        }
        let elements: BTreeSet<&str> = texts
            .iter()
            .flat_map(|text| text.split(separator))
            .map(str::trim)
            .filter(|e| !e.is_empty())
            .collect();
        let recurs = |element: &&&str| {
            before
                .iter()
                .filter(|text| text.split(separator).any(|other| other.trim() == **element))
                .nth(1)
                .is_some()
        };
        let inside: BTreeSet<&str> = before
            .iter()
            .filter(|text| text.contains(separator))
            .flat_map(|text| text.split(separator))
            .map(str::trim)
            .collect();
        // Elements that are looked at.
        const ELEMENTS_MAX: usize = 50;
        let looked_at = inside.len().min(ELEMENTS_MAX);
        let recurring = inside.iter().take(ELEMENTS_MAX).filter(recurs).count();
        // `|` is no mark of plain text; a comma must make far fewer values, of which most occur in several texts.
        let is_list = elements.len() * 10 <= before.len() * 7 && recurring * 2 >= looked_at;
        if separator == "|" || is_list || recurring * 10 >= looked_at * 8 {
            return Some(separator.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, values: &[&'static str]) -> Option<Attribute> {
        let values = values.iter().map(|text| Value::from(*text)).collect();
        attribute(&ColumnProfile::new(name.into(), None, values), true).map(|(attribute, _)| attribute)
    }

    #[test]
    fn attributes_have_separators_and_values_for_none() {
        let genres =
            of("genres", &["Action|Comedy", "Comedy", "(no genres listed)", "Action|War", "War"]).unwrap();
        assert_eq!(
            (genres.separator.as_deref(), genres.none.as_slice()),
            (Some("|"), &["(no genres listed)".to_owned()][..])
        );
        let tags = of("tags", &["rock, pop", "pop", "rock", "rock, jazz", "jazz, pop"]).unwrap();
        assert_eq!(tags.separator.as_deref(), Some(", "));
        let brands =
            of("brand", &["Books & Co., Inc.", "Sony", "Sony", "Acme", "Acme", "Books & Co., Inc."]).unwrap();
        assert_eq!(brands.separator, None);
        assert_eq!(of("tags", &["['a', 'b']", "['a']"]), None);
        assert_eq!(attribute_name("Genres"), "genre");
        assert_eq!(attribute_name("category_str"), "category_str");
    }
}
