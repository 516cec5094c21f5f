//! Verifies `instructions`: each row by itself, and all rows against an independent count of the window.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType};
use schemas::condition::Condition;
use schemas::config::Config;
use schemas::tables::{EVENTS, ITEMS, properties};
use store::{Root, Snapshot};
use terminal::Progress;

use super::counted::{CarriedConditions, Recount, Weighted, slice_of};
use super::properties::{kept, number, unknown_settings, version_of};
use super::violation::{Stop, Violation};
use super::{TableProof, reader};
use crate::instructions::{AS_OF_MS, CountWindow, Rules, WINDOW_MS};
use crate::privacy::Forgotten;

const SORTED: &str = "rows are sorted by user, each user once";
const LENGTHS: &str = "the lists of a row have equal lengths";
const WEIGHTS: &str = "weights lie in (0, 1] and descend, equal ones by attribute and value";
const AS_OF: &str = "as_of is the time that the table property names";
const CONDITIONS: &str = "conditions are values of the catalogue, or derived, and each stands once";
const QUOTA: &str = "no attribute gives more than its quota, and no user has more than per_user";
const RECOUNTED: &str = "the instructions are those of the events in the window";

const COLUMNS: [&str; 5] = ["user_id", "attributes", "conditions", "weights", "as_of"];

pub(super) async fn verify(
    config: &Config,
    root: &Root,
    snapshot: &Snapshot,
    events_held_max: u64,
    proof: &mut TableProof,
) -> Result<(), Stop> {
    let as_of = number(snapshot, AS_OF_MS)? as i64;
    let window = CountWindow::ending(as_of, number(snapshot, WINDOW_MS)? as i64);
    let rules: Result<Rules, String> = match kept(snapshot, properties::SETTINGS, properties::CONFIG_HASH)? {
        Some(text) => serde_json::from_str(text).map_err(unknown_settings),
        None => match Rules::new(config) {
            Ok(rules) if snapshot.properties().get(properties::CONFIG_HASH) == Some(&rules.hash()) => {
                Ok(rules)
            }
            Ok(rules) => Err(format!(
                "the table keeps no settings and was made with others (hash here {}); run `pipeline instructions` again, or give \
                 --config and --set of the run",
                rules.hash()
            )),
            Err(error) => Err(error.to_string()),
        },
    };
    let items = version_of(root, snapshot, ITEMS, properties::ITEMS_VERSION).await?;
    let events = version_of(root, snapshot, EVENTS, properties::EVENTS_VERSION).await?;
    let carried = match (&rules, &items) {
        (Ok(rules), Ok(items)) => Ok(CarriedConditions::read(items, rules, as_of).await?),
        (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
    };

    let (mut rows, mut instructions) = (0, 0);
    let mut last: Option<String> = None;
    for shard in snapshot.shards() {
        let mut place = 0;
        for batch in reader::read(snapshot, shard, &COLUMNS).await? {
            let times = batch.column(4).as_primitive::<TimestampMillisecondType>();
            for (i, &time) in times.values().iter().enumerate() {
                let user = batch.column(0).as_string::<i32>().value(i).to_owned();
                let broken = |claim, column: &str, found: String, expected: String| {
                    let violation = Violation::new(snapshot, claim, found, expected).shard(shard);
                    Stop::from(violation.row(place).user(&user).column(column))
                };
                if last.as_ref().is_some_and(|last| *last >= user) {
                    let found = format!("after `{}`", last.unwrap_or_default());
                    return Err(broken(SORTED, "user_id", found, "a later user".into()));
                }
                if time != as_of {
                    return Err(broken(AS_OF, "as_of", format!("{time} ms"), format!("{as_of} ms")));
                }
                let list = row(&batch, i).map_err(|lengths| {
                    broken(LENGTHS, "weights", format!("{lengths:?}"), "three equal lengths".into())
                })?;
                claims(&list, rules.as_ref().ok(), carried.as_ref().ok())
                    .map_err(|(claim, column, found, expected)| broken(claim, column, found, expected))?;
                instructions += list.len() as u64;
                last = Some(user);
                place += 1;
            }
        }
        rows += place;
    }
    reader::proven(snapshot, rows, proof);
    proof.holds(SORTED, rows, "users");
    proof.holds(AS_OF, rows, "users");
    proof.holds(LENGTHS, rows, "users");
    proof.holds(WEIGHTS, instructions, "weights");
    match &rules {
        Ok(_) => proof.holds(QUOTA, rows, "users"),
        Err(reason) => proof.skip(QUOTA, reason),
    }
    let (rules, carried) = match (rules, carried) {
        (Ok(rules), Ok(carried)) => {
            proof.holds(CONDITIONS, instructions, "conditions");
            (rules, carried)
        }
        (_, Err(reason)) | (Err(reason), _) => {
            proof.skip(CONDITIONS, &reason);
            proof.skip(RECOUNTED, reason);
            return Ok(());
        }
    };
    let events = match events {
        Ok(events) => events,
        Err(reason) => {
            proof.skip(RECOUNTED, reason);
            return Ok(());
        }
    };
    let forgotten = Forgotten::load(root, &config.forget).await?;
    let recount =
        Recount { events: &events, rules: &rules, carried: &carried, window, forgotten, core: None };
    recounted(snapshot, recount, events_held_max, proof).await
}

/// Compares every row with the independent count, one slice of users at a time.
async fn recounted(
    snapshot: &Snapshot,
    mut recount: Recount<'_>,
    events_held_max: u64,
    proof: &mut TableProof,
) -> Result<(), Stop> {
    let first = recount.first_copies().await?;
    let slices = recount.rows().div_ceil(events_held_max.max(1)).max(1);
    recount.find_core(slices, &first).await?;
    let (mut users, mut progress) = (0, Progress::start("verify instructions", slices, "slices"));
    for slice in 0..slices {
        let mut expected = recount.slice(slice, slices, &first).await?;
        for shard in snapshot.shards() {
            let mut place = 0;
            for batch in snapshot.read_shard(shard, &COLUMNS).await? {
                for i in 0..batch.num_rows() {
                    let user = batch.column(0).as_string::<i32>().value(i);
                    place += 1;
                    if slice_of(user, slices) != slice {
                        continue;
                    }
                    let found = row(&batch, i).unwrap_or_else(|_| unreachable!("was read before"));
                    let counted = expected.remove(user);
                    if counted.as_ref() != Some(&found) {
                        let expected = counted.map_or_else(|| "no row".into(), |list| shown(&list));
                        let violation = Violation::new(snapshot, RECOUNTED, shown(&found), expected);
                        return Err(violation.shard(shard).row(place - 1).user(user).into());
                    }
                    users += 1;
                }
            }
        }
        if let Some((user, list)) = expected.pop_first() {
            let violation = Violation::new(snapshot, RECOUNTED, "no row", shown(&list));
            return Err(violation.user(&user).into());
        }
        progress.add(1);
    }
    proof.holds(RECOUNTED, users, "users");
    Ok(())
}

/// A row of [`COLUMNS`]; an error holds the lengths of its lists if they differ.
fn row(batch: &RecordBatch, row: usize) -> Result<Weighted, [usize; 3]> {
    let list = |column: usize| batch.column(column).as_list::<i32>().value(row);
    let (attributes, values, weights) = (list(1), list(2), list(3));
    if attributes.len() != values.len() || values.len() != weights.len() {
        return Err([attributes.len(), values.len(), weights.len()]);
    }
    let text = |list: &dyn Array, k| list.as_string::<i32>().value(k).to_owned();
    let weights = weights.as_primitive::<Float32Type>().values();
    let condition = |k| Condition { attribute: text(&attributes, k), value: text(&values, k) };
    Ok((0..weights.len()).map(|k| (condition(k), weights[k])).collect())
}

type Broken = (&'static str, &'static str, String, String);

/// Checks the claims of a row by itself; without `rules` or `carried`, only those that need neither.
fn claims(
    list: &[(Condition, f32)],
    rules: Option<&Rules>,
    carried: Option<&CarriedConditions>,
) -> Result<(), Broken> {
    if let Some((_, weight)) = list.iter().find(|(_, weight)| !(*weight > 0.0 && *weight <= 1.0)) {
        return Err((WEIGHTS, "weights", weight.to_string(), "above 0, at most 1".into()));
    }
    let ordered = list.is_sorted_by(|(a, wa), (b, wb)| wa > wb || (wa == wb && a < b));
    if !ordered {
        return Err((WEIGHTS, "weights", shown(list), "in descending order".into()));
    }
    let distinct: HashSet<&Condition> = list.iter().map(|(condition, _)| condition).collect();
    if distinct.len() < list.len() {
        return Err((CONDITIONS, "conditions", shown(list), "each condition once".into()));
    }
    if let Some(carried) = carried
        && let Some((condition, _)) =
            list.iter().find(|(condition, _)| !carried.pools.contains_key(condition))
    {
        return Err((
            CONDITIONS,
            "conditions",
            format!("`{condition}`"),
            "a condition of the catalogue".into(),
        ));
    }
    let Some(rules) = rules else { return Ok(()) };
    if list.len() > rules.per_user {
        return Err((QUOTA, "conditions", list.len().to_string(), format!("at most {}", rules.per_user)));
    }
    let mut given: BTreeMap<&str, usize> = BTreeMap::new();
    list.iter().for_each(|(condition, _)| *given.entry(&condition.attribute).or_default() += 1);
    for (attribute, count) in given {
        let quota = rules.quota.get(attribute).copied().unwrap_or_default();
        if count > quota {
            return Err((
                QUOTA,
                "attributes",
                format!("{count} of `{attribute}`"),
                format!("at most {quota}"),
            ));
        }
    }
    Ok(())
}

fn shown(list: &[(Condition, f32)]) -> String {
    let each: Vec<String> = list.iter().map(|(condition, weight)| format!("{condition} {weight}")).collect();
    format!("[{}]", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(list: &[(&str, f32)]) -> Weighted {
        let condition = |text: &str| text.parse().unwrap();
        list.iter().map(|&(c, w)| (condition(c), w)).collect()
    }

    #[test]
    fn rows_are_held_to_what_they_claim() {
        let claim = |list: &[(&str, f32)]| claims(&row(list), None, None).map_err(|broken| broken.0);
        assert_eq!(claim(&[("g=A", 0.5), ("g=B", 0.5), ("classic", 0.25)]), Ok(()));
        assert_eq!(claim(&[]), Ok(()));
        assert_eq!(claim(&[("g=A", 1.5)]), Err(WEIGHTS));
        assert_eq!(claim(&[("g=A", 0.0)]), Err(WEIGHTS));
        assert_eq!(claim(&[("g=A", f32::NAN)]), Err(WEIGHTS));
        assert_eq!(claim(&[("g=A", 0.2), ("g=B", 0.3)]), Err(WEIGHTS));
        assert_eq!(claim(&[("g=B", 0.5), ("g=A", 0.5)]), Err(WEIGHTS));
        assert_eq!(claim(&[("g=A", 0.5), ("g=A", 0.25)]), Err(CONDITIONS));
    }
}
