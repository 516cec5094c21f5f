//! The conditions that a model knows, and the items that carry them (`C(item)` of Eq. 5).
//!
//! Memory: per item 20 bytes, and 4 per condition that it carries.

use std::collections::BTreeMap;
use std::ops::Range;

use ragged::Bags;
use schemas::condition::{Condition, nearest};
use schemas::config::Age;
use serde::{Deserialize, Serialize};

use crate::data::Catalogue;
use crate::data::attribute::AttributeVocabulary;
use crate::data::{ConditionRow, ItemIndex};

/// Conditions that a model follows, each with a row; stored in every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KnownConditions(Vec<AttributeVocabulary>);

/// Consecutive rows: those of one attribute's values, or of all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionRows(Range<u32>);

impl ConditionRows {
    /// True if the range contains `row`.
    pub fn contains(&self, row: ConditionRow) -> bool {
        self.0.contains(&row.get())
    }

    /// Iterates over the rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ConditionRow> + use<> {
        self.0.clone().map(ConditionRow::new)
    }
}

/// A request for a condition that the model does not know; the user can correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCondition {
    /// The model follows no instructions.
    #[error("the model follows no instructions; `trainer sft` teaches it some")]
    None,
    /// The name is neither an attribute nor a derived condition of the model.
    #[error("the model follows no instructions about `{name}`; it knows {known}")]
    Attribute {
        /// Requested name.
        name: String,
        /// Names that the model knows.
        known: String,
    },
    /// The attribute has no such value.
    #[error("`{attribute}` has no value `{value}` that the model knows; the nearest: {nearest}")]
    Value {
        /// Name of the attribute.
        attribute: String,
        /// Requested value.
        value: String,
        /// Known values closest to the requested one.
        nearest: String,
    },
}

impl KnownConditions {
    /// Collects the values that `catalogue` has of the attributes in `names`; a derived condition is its own only value.
    pub fn new(names: &[String], derived: &BTreeMap<String, Age>, catalogue: &Catalogue) -> Self {
        let values = |name: &String| match derived.get(name) {
            Some(_) => vec![name.clone()],
            None => catalogue.attribute_values(name),
        };
        Self(
            names
                .iter()
                .map(|name| AttributeVocabulary { name: name.clone(), values: values(name) })
                .collect(),
        )
    }

    /// Returns the number of conditions; rows run from 0 to one less.
    pub fn len(&self) -> usize {
        self.0.iter().map(|attribute| attribute.values.len()).sum()
    }

    /// Returns the rows of all conditions.
    pub fn all(&self) -> ConditionRows {
        ConditionRows(0..self.len() as u32)
    }

    /// True if the model follows no instructions.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the names of the attributes and derived conditions.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|attribute| attribute.name.as_str())
    }

    /// Returns the rows of an attribute's values.
    ///
    /// # Errors
    ///
    /// The model does not know the attribute.
    pub fn rows(&self, attribute: &str) -> Result<ConditionRows, UnknownCondition> {
        let mut first = 0;
        for known in &self.0 {
            let rows = first..first + known.values.len() as u32;
            if known.name == attribute {
                return Ok(ConditionRows(rows));
            }
            first = rows.end;
        }
        if self.is_empty() {
            return Err(UnknownCondition::None);
        }
        let known = self.attributes().collect::<Vec<_>>().join(", ");
        Err(UnknownCondition::Attribute { name: attribute.into(), known })
    }

    /// Returns the row of a condition.
    ///
    /// # Errors
    ///
    /// The model does not know the attribute, or not this value of it.
    pub fn row(&self, condition: &Condition) -> Result<ConditionRow, UnknownCondition> {
        let Condition { attribute, value } = condition;
        let rows = self.rows(attribute)?;
        let values =
            self.0.iter().find(|known| known.name == *attribute).map_or(&[][..], |known| &known.values);
        match values.iter().position(|known| known == value) {
            Some(place) => Ok(ConditionRow::new(rows.0.start + place as u32)),
            None => Err(UnknownCondition::Value {
                attribute: attribute.clone(),
                value: value.clone(),
                nearest: nearest(value, values.iter().map(String::as_str)).join(", "),
            }),
        }
    }

    /// Returns the condition at a row; `None` past the last row.
    pub fn get(&self, row: ConditionRow) -> Option<Condition> {
        let mut row = row.index();
        for AttributeVocabulary { name, values } in &self.0 {
            match values.get(row) {
                Some(value) => return Some(Condition { attribute: name.clone(), value: value.clone() }),
                None => row -= values.len(),
            }
        }
        None
    }
}

/// Which items carry which of a model's conditions.
#[derive(Debug, Clone, Default)]
pub struct Carriers {
    /// Condition rows of each item's attribute values, by item index.
    values: Bags,
    /// Rows and age ranges of the derived conditions.
    derived: Vec<(ConditionRow, Age)>,
    /// Release time of each item in epoch milliseconds, by item index.
    release_ts: Vec<Option<i64>>,
}

impl Carriers {
    /// Finds the carriers of `conditions` in `catalogue`, which must have loaded their attributes.
    pub fn new(conditions: &KnownConditions, derived: &BTreeMap<String, Age>, catalogue: &Catalogue) -> Self {
        let mut ages = Vec::new();
        let mut of_items = vec![Vec::new(); catalogue.items() + 1];
        let mut first = 0;
        for AttributeVocabulary { name, values } in &conditions.0 {
            match derived.get(name) {
                Some(&age) => ages.push((ConditionRow::new(first), age)),
                None => {
                    let bags = catalogue.attribute_bags(name, values);
                    for (item, rows) in of_items.iter_mut().enumerate() {
                        rows.extend(bags.get(item).iter().map(|row| first + row));
                    }
                }
            }
            first += values.len() as u32;
        }
        let mut bags = Bags::default();
        of_items.into_iter().for_each(|rows| bags.push(rows));
        Self { values: bags, derived: ages, release_ts: catalogue.release_ts.clone() }
    }

    /// True if `item` carries the condition of `row` at the time `at` (epoch milliseconds).
    pub fn carries(&self, item: ItemIndex, row: ConditionRow, at: i64) -> bool {
        match self.derived.iter().find(|&&(derived, _)| derived == row) {
            Some((_, age)) => age.carried(self.release_ts[item.index()], at),
            None => self.values.get(item.index()).contains(&row.get()),
        }
    }

    /// Iterates over the rows among `rows` that `item` carries at the time `at` (epoch milliseconds), ascending.
    pub fn carried(
        &self,
        item: ItemIndex,
        rows: &ConditionRows,
        at: i64,
    ) -> impl Iterator<Item = ConditionRow> {
        let derived =
            self.derived.iter().filter(move |(_, age)| age.carried(self.release_ts[item.index()], at));
        let values = self.values.get(item.index()).iter().copied().map(ConditionRow::new);
        let mut carried: Vec<ConditionRow> =
            derived.map(|&(row, _)| row).chain(values).filter(|&row| rows.contains(row)).collect();
        carried.sort_unstable();
        carried.into_iter()
    }

    /// Counts the `active` items that carry each condition at the time `at` (epoch milliseconds), by row.
    pub fn pool_sizes(&self, conditions: &KnownConditions, at: i64, active: &[bool]) -> Vec<usize> {
        let mut sizes = vec![0; conditions.len()];
        let all = conditions.all();
        for item in (0..active.len() as u32).map(ItemIndex::new).filter(|item| active[item.index()]) {
            self.carried(item, &all, at).for_each(|row| sizes[row.index()] += 1);
        }
        sizes
    }

    /// Returns whether each item carries the condition of `row` at the time `at` (epoch milliseconds), by item index.
    pub fn pool(&self, row: ConditionRow, at: i64) -> Vec<bool> {
        (0..self.values.len() as u32).map(|item| self.carries(item.into(), row, at)).collect()
    }

    /// Returns the interval around `at`, in epoch milliseconds, in which the same items carry the condition of `row`.
    pub fn unchanged(&self, row: ConditionRow, at: i64) -> Range<i64> {
        let mut times = i64::MIN..i64::MAX;
        if let Some((_, age)) = self.derived.iter().find(|&&(derived, _)| derived == row) {
            let ages = || [age.min_age, age.max_age].into_iter().flatten();
            for release in self.release_ts.iter().flatten() {
                for change in ages().map(|age| release.saturating_add(age.ms)) {
                    match change <= at {
                        true => times.start = times.start.max(change),
                        false => times.end = times.end.min(change),
                    }
                }
            }
        }
        times
    }

    /// Appends one flag per token of a history, the start token and `items` with their `times`: true if queries under the
    /// condition of `row` may attend to it.
    ///
    /// An item matches if it carries the condition at its own time. The start token always matches: it reveals nothing about the
    /// user, and pre-training has learned to attend to it when nothing else matters.
    pub fn push_matches(
        &self,
        matches: &mut Vec<bool>,
        row: ConditionRow,
        items: &[ItemIndex],
        times: &[i64],
    ) {
        matches.push(true);
        matches.extend(items.iter().zip(times).map(|(&item, &at)| self.carries(item, row, at)));
    }
}

#[cfg(test)]
mod tests {
    use schemas::config::Conditions as Settings;

    use super::*;
    use crate::data::from_u32s;

    fn known() -> (KnownConditions, Carriers) {
        let mut catalogue = Catalogue::example(&[("a", &["Rock"]), ("b", &[]), ("c", &["Pop", "Rock"])]);
        catalogue.release_ts[1] = Some(1_000_000);
        let derived = Settings::default().derived;
        let names = ["new-release".to_owned(), "genre".to_owned()];
        let conditions = KnownConditions::new(&names, &derived, &catalogue);
        let carriers = Carriers::new(&conditions, &derived, &catalogue);
        (conditions, carriers)
    }

    #[test]
    fn rows_and_conditions_belong_together() {
        let (conditions, _) = known();
        assert_eq!(conditions.len(), 3);
        for row in conditions.all().iter() {
            assert_eq!(conditions.row(&conditions.get(row).unwrap()), Ok(row));
        }
        assert_eq!(conditions.get(ConditionRow::new(3)), None);
        assert_eq!(conditions.rows("genre"), Ok(ConditionRows(1..3)));
        let error = |text: &str| conditions.row(&text.parse().unwrap()).unwrap_err().to_string();
        assert!(error("genre=rok").contains("nearest: Rock"), "{}", error("genre=rok"));
        assert!(error("language=English").contains("new-release, genre"));
        let none = KnownConditions::default().row(&Condition::derived("genre")).unwrap_err();
        assert!(none.to_string().contains("trainer sft"));
    }

    #[test]
    fn items_carry_their_values_and_derived_conditions_their_time() {
        let (conditions, carriers) = known();
        let [new, rock, pop] =
            ["new-release", "genre=Rock", "genre=Pop"].map(|c| conditions.row(&c.parse().unwrap()).unwrap());
        assert_eq!(carriers.pool(rock, 0), [false, true, false, true]);
        assert_eq!(carriers.pool(new, 2_000_000), [false, true, false, false]);
        assert_eq!(carriers.pool(new, i64::MAX), [false; 4]);
        let age = Settings::default().derived["new-release"].max_age.unwrap().ms;
        assert_eq!(carriers.unchanged(rock, 0), i64::MIN..i64::MAX);
        assert_eq!(carriers.unchanged(new, 2_000_000), i64::MIN..1_000_000 + age);
        assert_eq!(carriers.unchanged(new, 1_000_000 + age), 1_000_000 + age..i64::MAX);
        assert_ne!(carriers.pool(new, 1_000_000 + age - 1), carriers.pool(new, 1_000_000 + age));
        assert_eq!(
            carriers.carried(3.into(), &conditions.all(), 0).collect::<Vec<_>>(),
            [rock.min(pop), rock.max(pop)]
        );
        let mut matches = Vec::new();
        carriers.push_matches(&mut matches, new, from_u32s(&[1, 1, 2]), &[0, i64::MAX, 0]);
        assert_eq!(matches, [true, true, false, false]);
    }
}
