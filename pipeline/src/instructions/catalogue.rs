//! The conditions that every item carries, and those with enough items to be instructions.
//!
//! Events are grouped by the conditions that their item carries rather than by item: among millions of items, many carry
//! the same values. A set of values is a *class*; a class and a bit for each derived condition form the code of an event.
//!
//! Memory: some 40 bytes for each item that carries anything, and the distinct values and classes.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMillisecondType;
use schemas::condition::Condition;
use schemas::config::Age;
use schemas::hash::{hash64, hash128};
use schemas::tables::ITEM_COLUMNS;
use store::Snapshot;

use super::InstructionsError;
use super::rules::Rules;

/// The number of a condition, and how many values of its attribute the item has.
type Share = (u32, u32);

/// A condition that some item carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownCondition {
    pub condition: Condition,
    /// Active items that carry the condition; for a derived one, at the end of the window.
    pub pool: u64,
    /// Whether the pool is large enough.
    pub is_retrievable: bool,
}

/// The catalogue, reduced to what counting events needs.
#[derive(Debug)]
pub(super) struct Catalogue {
    items: HashMap<u128, Item, foldhash::fast::FixedState>,
    /// The values of each class; class 0 has none.
    classes: Vec<Vec<Share>>,
    conditions: Vec<KnownCondition>,
    /// The derived conditions' numbers, in the order of an event's bits.
    derived: Vec<(u32, Age)>,
    fingerprint: u64,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    class: u32,
    release_ts: Option<i64>,
}

impl Catalogue {
    /// Reads the attributes that the rules name; the pools of derived conditions are those at `as_of`.
    pub(super) async fn read(items: &Snapshot, rules: &Rules, as_of: i64) -> Result<Self, InstructionsError> {
        let schema = items.stored_schema()?;
        let attributes: Vec<&str> = rules.attributes().collect();
        if let Some(attribute) = attributes.iter().find(|name| schema.index_of(name).is_err()) {
            let known = schema.fields().iter().map(|field| field.name().clone());
            let known = known.filter(|name| !ITEM_COLUMNS.contains(&name.as_str())).collect();
            return Err(InstructionsError::Attribute { attribute: (*attribute).into(), known });
        }
        let mut columns = vec!["item_id", "active", "release_ts"];
        columns.extend(&attributes);
        let mut reader = Reader::new(rules);
        for shard in items.shards() {
            for batch in items.read_shard(shard, &columns).await? {
                let ids = batch.column(0).as_string::<i32>();
                let active = batch.column(1).as_boolean();
                let releases = batch.column(2).as_primitive::<TimestampMillisecondType>();
                for row in 0..batch.num_rows() {
                    let mut values = Vec::with_capacity(attributes.len());
                    for (attribute, column) in attributes.iter().zip(&batch.columns()[3..]) {
                        let list = column.as_list::<i32>().value(row);
                        let texts = list.as_string::<i32>().iter().flatten().map(ToOwned::to_owned);
                        values.push((*attribute, texts.collect()));
                    }
                    let release_ts = releases.is_valid(row).then(|| releases.value(row));
                    reader.item(ids.value(row), active.value(row), release_ts, values, as_of);
                }
            }
        }
        Ok(reader.finish(rules.min_pool))
    }

    /// The code of an event: its item's class, and a bit for each derived condition carried at `ts`.
    pub(super) fn code(&self, item_id: &str, ts: i64) -> u64 {
        let Some(item) = self.items.get(&hash128(item_id.as_bytes())) else { return 0 };
        let bits = self.derived.iter().enumerate();
        let bits = bits.map(|(bit, (_, age))| u64::from(age.carried(item.release_ts, ts)) << bit);
        (u64::from(item.class) << 32) | bits.sum::<u64>()
    }

    /// The conditions that events of the code carry.
    pub(super) fn shares(&self, code: u64) -> impl Iterator<Item = Share> {
        let class = self.classes.get((code >> 32) as usize).into_iter().flatten().copied();
        let carried = self.derived.iter().enumerate().filter(move |(bit, _)| code >> bit & 1 == 1);
        class.chain(carried.map(|(_, &(number, _))| (number, 1)))
    }

    /// The condition with this number.
    pub(super) fn known(&self, number: u32) -> &KnownCondition {
        &self.conditions[number as usize]
    }

    /// Hash of everything in the catalogue that decides rows: the items' conditions, and which of these are retrievable.
    pub(super) fn fingerprint(&self) -> String {
        format!("{:016x}", self.fingerprint)
    }
}

struct Reader {
    catalogue: Catalogue,
    numbers: HashMap<Condition, u32>,
    classes: HashMap<Vec<Share>, u32>,
}

impl Reader {
    fn new(rules: &Rules) -> Self {
        let mut catalogue = Catalogue {
            items: HashMap::default(),
            classes: vec![Vec::new()],
            conditions: Vec::new(),
            derived: Vec::new(),
            fingerprint: 0,
        };
        for (name, &age) in &rules.derived {
            catalogue.derived.push((catalogue.conditions.len() as u32, age));
            let condition = Condition::derived(name);
            catalogue.conditions.push(KnownCondition { condition, pool: 0, is_retrievable: false });
        }
        Self { catalogue, numbers: HashMap::new(), classes: [(Vec::new(), 0)].into() }
    }

    fn item(
        &mut self,
        id: &str,
        active: bool,
        release_ts: Option<i64>,
        values: Vec<(&str, Vec<String>)>,
        as_of: i64,
    ) {
        let release_ts = release_ts.filter(|_| !self.catalogue.derived.is_empty());
        let mut text = format!("{}:{id}{release_ts:?}", id.len());
        let mut class = Vec::new();
        for (attribute, mut values) in values {
            values.sort_unstable();
            values.dedup();
            let of = values.len() as u32;
            for value in values {
                text.push_str(&format!("|{attribute}={}:{value}", value.len()));
                let number = self.number(Condition { attribute: attribute.into(), value });
                class.push((number, of));
                self.catalogue.conditions[number as usize].pool += u64::from(active);
            }
        }
        for &(number, age) in &self.catalogue.derived {
            let carried = active && age.carried(release_ts, as_of);
            self.catalogue.conditions[number as usize].pool += u64::from(carried);
        }
        if class.is_empty() && release_ts.is_none() {
            return;
        }
        // A sum does not depend on the order of the rows.
        self.catalogue.fingerprint = self.catalogue.fingerprint.wrapping_add(hash64(text.as_bytes()));
        let class = *self.classes.entry(class).or_insert_with_key(|class| {
            self.catalogue.classes.push(class.clone());
            self.catalogue.classes.len() as u32 - 1
        });
        self.catalogue.items.insert(hash128(id.as_bytes()), Item { class, release_ts });
    }

    fn number(&mut self, condition: Condition) -> u32 {
        let conditions = &mut self.catalogue.conditions;
        *self.numbers.entry(condition).or_insert_with_key(|condition| {
            conditions.push(KnownCondition { condition: condition.clone(), pool: 0, is_retrievable: false });
            conditions.len() as u32 - 1
        })
    }

    fn finish(mut self, min_pool: u64) -> Catalogue {
        let mut retrievable = Vec::new();
        for known in &mut self.catalogue.conditions {
            known.is_retrievable = known.pool >= min_pool;
            if known.is_retrievable {
                retrievable.push(known.condition.clone());
            }
        }
        retrievable.sort();
        let text = format!("{retrievable:?}");
        self.catalogue.fingerprint = self.catalogue.fingerprint.wrapping_add(hash64(text.as_bytes()));
        self.catalogue
    }
}

#[cfg(test)]
pub(super) mod tests {
    use schemas::config::Config;

    use super::*;

    pub(in super::super) fn rules(overrides: &[&str]) -> Rules {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Rules::new(&Config::from_overrides(&overrides).unwrap()).unwrap()
    }

    fn genre(values: &[&str]) -> Vec<(&'static str, Vec<String>)> {
        vec![("genre", values.iter().map(ToString::to_string).collect())]
    }

    #[test]
    fn codes_tell_what_items_carry() {
        let rules = rules(&[
            "items.attributes.genre={}",
            "conditions.derived.fresh.max_age=10ms",
            "instructions.quota.genre=2",
            "instructions.quota.fresh=1",
            "conditions.min_pool=2",
        ]);
        let mut reader = Reader::new(&rules);
        reader.item("a", true, Some(100), genre(&["Rock", "Pop", "Rock"]), 105);
        reader.item("b", false, None, genre(&["Rock"]), 105);
        reader.item("c", true, None, genre(&["Pop"]), 105);
        reader.item("d", true, None, genre(&[]), 105);
        let catalogue = reader.finish(rules.min_pool);
        let carried = |item: &str, ts| -> Vec<(String, u32)> {
            let shares = catalogue.shares(catalogue.code(item, ts));
            let mut named: Vec<_> =
                shares.map(|(n, of)| (catalogue.known(n).condition.to_string(), of)).collect();
            named.sort();
            named
        };
        let both = [("genre=Pop".to_owned(), 2), ("genre=Rock".to_owned(), 2)];
        assert_eq!(carried("a", 109), [&[("fresh".to_owned(), 1)][..], &both].concat());
        assert_eq!(carried("a", 110), both);
        assert_eq!(carried("d", 0), carried("nobody", 0));
        // Events of delisted items count, but delisted items are in no pool.
        assert_eq!(carried("b", 0), [("genre=Rock".to_owned(), 1)]);
        let pools: Vec<_> =
            catalogue.conditions.iter().map(|known| (known.pool, known.is_retrievable)).collect();
        assert_eq!(pools, [(1, false), (2, true), (1, false)]);
    }

    #[test]
    fn the_fingerprint_knows_no_order_and_sees_what_matters() {
        let rules = rules(&["items.attributes.genre={}", "conditions.min_pool=1"]);
        let read = |items: &[(&str, bool, &str)]| {
            let mut reader = Reader::new(&rules);
            items.iter().for_each(|&(id, active, value)| reader.item(id, active, None, genre(&[value]), 0));
            // An item that carries nothing does not change the hash.
            reader.item("new", true, Some(5), genre(&[]), 0);
            reader.finish(rules.min_pool).fingerprint()
        };
        let one = read(&[("a", true, "Rock"), ("b", true, "Rock")]);
        assert_eq!(one, read(&[("b", true, "Rock"), ("a", false, "Rock")]));
        assert_ne!(one, read(&[("a", true, "Rock"), ("b", true, "Pop")]));
        assert_ne!(one, read(&[("a", false, "Rock"), ("b", false, "Rock")]));
    }
}
