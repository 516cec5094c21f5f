//! One user's lists side by side, as in Figure 4: the user's latest events, the list without a condition, and one list per
//! condition.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use terminal::shown::Shown;

use super::retriever::ListRequest;
use crate::checkpoint::Checkpoint;
use crate::data::{Catalogue, ItemIndex};
use crate::serve::List;

/// Visible items shown.
const LAST: usize = 8;
/// Items shown per list.
const SHOWN: usize = 10;
/// Width of a column, in characters.
const WIDTH: usize = 34;

/// One user's history and lists.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UserCase {
    /// User id.
    pub user_id: String,
    /// Number of visible events.
    pub visible: usize,
    /// Items of the newest visible events, oldest first.
    pub last: Vec<Item>,
    /// The list without a condition, then one list per condition.
    pub lists: Vec<Column>,
}

/// An item with its title and attribute values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Item id.
    pub item_id: String,
    /// Title, if the catalogue has one.
    pub title: Option<String>,
    /// Values of the model's attributes, then of the attributes that only conditions use.
    pub values: Vec<String>,
}

/// One list as a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    /// Condition of the list.
    pub condition: Option<String>,
    /// Origin of the list, `model` or `popular`.
    pub origin: &'static str,
    /// Best items, at most 10.
    pub items: Vec<Item>,
    /// Number of `items` that the list without a condition also shows.
    pub overlap: usize,
}

impl UserCase {
    /// Builds the case from `lists`, the first of which has no condition.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        catalogue: &Catalogue,
        request: ListRequest,
        lists: &[List],
    ) -> Self {
        let conditions = checkpoint.model.vocabulary().conditions();
        let mut names: Vec<&str> = checkpoint.config.model.attributes.iter().map(String::as_str).collect();
        let also = conditions
            .attributes()
            .filter(|name| !checkpoint.config.model.attributes.iter().any(|a| a == name));
        names.extend(also);
        let attributes: HashMap<&str, Vec<String>> =
            names.iter().map(|&name| (name, catalogue.attribute_values(name))).collect();
        let bags: Vec<_> = names.iter().map(|&n| (n, catalogue.attribute_bags(n, &attributes[n]))).collect();
        let item = |item: ItemIndex| Item {
            item_id: catalogue.item_ids[item.index()].clone(),
            title: catalogue.title(item).map(str::to_owned),
            values: bags
                .iter()
                .flat_map(|(name, bags)| {
                    bags.get(item.index()).iter().map(|&value| attributes[name][value as usize].clone())
                })
                .collect(),
        };
        let plain: Vec<ItemIndex> =
            lists.iter().take(1).flat_map(|list| list.items.iter().take(SHOWN).map(|s| s.item)).collect();
        let column = |list: &List| {
            let shown: Vec<ItemIndex> = list.items.iter().take(SHOWN).map(|scored| scored.item).collect();
            Column {
                condition: list.condition.and_then(|row| conditions.get(row)).map(|c| c.to_string()),
                origin: list.origin.name(),
                overlap: shown.iter().filter(|item| plain.contains(item)).count(),
                items: shown.into_iter().map(item).collect(),
            }
        };
        Self {
            visible: request.history.items.len(),
            last: request.history.newest(LAST).items.iter().map(|&known| item(known)).collect(),
            lists: lists.iter().map(column).collect(),
            user_id: request.user_id,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(self.title.as_deref().unwrap_or(&self.item_id)))?;
        if self.values.is_empty() { Ok(()) } else { write!(f, " [{}]", Shown(&self.values.join(", "))) }
    }
}

/// Pads or truncates `text` to exactly `WIDTH` characters.
fn cell(text: &str) -> String {
    let text = Shown(text).to_string();
    let n = text.chars().count();
    if n <= WIDTH {
        return format!("{text}{}", " ".repeat(WIDTH - n));
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn line(f: &mut fmt::Formatter<'_>, cells: impl Iterator<Item = String>) -> fmt::Result {
    writeln!(f, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())
}

impl fmt::Display for UserCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "user {}: {} visible events, the last of them", Shown(&self.user_id), self.visible)?;
        for item in &self.last {
            writeln!(f, "  {item}")?;
        }
        writeln!(f)?;
        let name = |column: &Column| {
            let name = column.condition.as_deref().unwrap_or("no condition");
            if column.origin == "popular" { format!("{name} (popular items)") } else { name.to_owned() }
        };
        line(f, std::iter::once("  ".into()).chain(self.lists.iter().map(|column| cell(&name(column)))))?;
        let plain = self.lists.first().map_or(&[][..], |column| &column.items);
        for rank in 0..self.lists.iter().map(|column| column.items.len()).max().unwrap_or(0) {
            let cells = self.lists.iter().enumerate().map(|(c, column)| {
                let Some(item) = column.items.get(rank) else { return cell("") };
                let mark = if c > 0 && plain.contains(item) { "* " } else { "" };
                cell(&format!("{mark}{item}"))
            });
            line(f, std::iter::once(format!("{:>2}", rank + 1)).chain(cells))?;
        }
        if self.lists.len() > 1 {
            let overlap = |(c, column): (usize, &Column)| match c {
                0 => cell("* also without a condition:"),
                _ => cell(&format!("{} of {}", column.overlap, column.items.len())),
            };
            line(f, std::iter::once("  ".into()).chain(self.lists.iter().enumerate().map(overlap)))?;
        }
        Ok(())
    }
}
