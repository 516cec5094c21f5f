//! The conditions that a model knows, and which items carry them (`C(item)` of Eq. 5).

use std::collections::BTreeMap;
use std::ops::Range;

use ragged::Bags;
use schemas::condition::{Condition, nearest};
use schemas::config::Age;
use serde::{Deserialize, Serialize};

use crate::data::Catalogue;
use crate::data::attribute::AttributeVocabulary;
use crate::data::{ConditionRow, ItemIndex};

/// The conditions that a model was taught, each with a row; kept with every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KnownConditions(Vec<AttributeVocabulary>);

/// Rows behind each other: those of the values of one attribute, or of all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionRows(Range<u32>);

impl ConditionRows {
    /// Whether `row` is one of them.
    pub fn contains(&self, row: ConditionRow) -> bool {
        self.0.contains(&row.get())
    }

    /// The rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ConditionRow> + use<> {
        self.0.clone().map(ConditionRow::new)
    }
}

/// A condition that a model does not know. The user's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCondition {
    /// It was taught none.
    #[error("the model follows no instructions; `trainer sft` teaches it some")]
    None,
    /// Not an attribute or derived condition of the model.
    #[error("the model follows no instructions about `{name}`; it knows {known}")]
    Attribute {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not a value of the attribute.
    #[error("`{attribute}` has no value `{value}` that the model knows; the nearest: {nearest}")]
    Value {
        /// The attribute.
        attribute: String,
        /// What was asked for.
        value: String,
        /// The values that were most likely meant.
        nearest: String,
    },
}

impl KnownConditions {
    /// All values that `catalogue` has of the attributes among `names`; a derived condition is its own only value.
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

    /// Number of conditions: rows go from 0 to before this.
    pub fn len(&self) -> usize {
        self.0.iter().map(|attribute| attribute.values.len()).sum()
    }

    /// The rows of all conditions.
    pub fn all(&self) -> ConditionRows {
        ConditionRows(0..self.len() as u32)
    }

    /// Whether the model follows no instructions.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The attributes and derived conditions.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|attribute| attribute.name.as_str())
    }

    /// The rows of an attribute's values.
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

    /// The row of a condition.
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

    /// The condition at a row.
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
    /// By item index, the rows of the attribute values that it has.
    values: Bags,
    /// The derived conditions by their rows.
    derived: Vec<(ConditionRow, Age)>,
    /// By item index.
    release_ts: Vec<Option<i64>>,
}

impl Carriers {
    /// The carriers of `conditions` in `catalogue`, which has their attributes loaded.
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

    /// Whether `item` carries the condition of `row` at the time `at` (epoch milliseconds).
    pub fn carries(&self, item: ItemIndex, row: ConditionRow, at: i64) -> bool {
        match self.derived.iter().find(|&&(derived, _)| derived == row) {
            Some((_, age)) => age.carried(self.release_ts[item.index()], at),
            None => self.values.get(item.index()).contains(&row.get()),
        }
    }

    /// The rows among `rows` that `item` carries at the time `at`, ascending.
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

    /// How many of the `active` items carry each condition at the time `at`, by row.
    pub fn pool_sizes(&self, conditions: &KnownConditions, at: i64, active: &[bool]) -> Vec<usize> {
        let mut sizes = vec![0; conditions.len()];
        let all = conditions.all();
        for item in (0..active.len() as u32).map(ItemIndex::new).filter(|item| active[item.index()]) {
            self.carried(item, &all, at).for_each(|row| sizes[row.index()] += 1);
        }
        sizes
    }

    /// Whether each item carries the condition of `row` at the time `at`, by item index.
    pub fn pool(&self, row: ConditionRow, at: i64) -> Vec<bool> {
        (0..self.values.len() as u32).map(|item| self.carries(item.into(), row, at)).collect()
    }

    /// The times around `at` at which the same items carry the condition of `row` as at `at`.
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

    /// Appends whether each token of a history (`items`, behind its start-of-sequence token) may be looked at under the
    /// condition of `row`: items that carry it, each at its own time, and the start token. That one is no item, says nothing
    /// of the user, and is what pre-training has learned to look at where nothing else matters.
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
