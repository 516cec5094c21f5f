//! Verifies `sft/<condition>` slice by slice: each example by itself, against the catalogue, against the recomputed history,
//! and against the pre-training targets in `sequences`.

use std::collections::{HashMap, HashSet};

use arrow::array::AsArray;
use arrow::datatypes::TimestampMillisecondType;
use schemas::config::{Conditions, Config};
use schemas::hash::hash128;
use schemas::history::Role;
use schemas::tables::{EVENTS, ITEMS, SEQUENCES, properties, sft_table};
use store::{Root, Snapshot};
use terminal::Progress;

use super::carried::Carried;
use super::example::{self, ExampleRow, ExampleRules, Expected, example};
use super::history::HistoryRules;
use super::log::{EventLog, Slice, slice_of};
use super::properties::{PROPERTIES, kept, number, rules, sequences, unknown_settings, version_of};
use super::row::{self, Broken};
use super::sequences::{ONE_SHARD, SORTED, broken_row};
use super::violation::{Stop, Violation};
use super::{TableProof, reader};
use crate::privacy::Forgotten;
use crate::sft::{CONDITIONS_HASH, CONDITIONS_SETTINGS, conditions_hash};

const STORED: &str = "no target of an example is a pre-training target of `sequences`";

/// The claims that need the recomputed histories.
const RECOMPUTED: [&str; 6] =
    [example::TARGET, example::DISJOINT, example::ROLE, example::HISTORY, example::VISIBLE, example::ONCE];

pub(super) async fn verify(
    config: &Config,
    root: &Root,
    snapshot: &Snapshot,
    events_held_max: u64,
    proof: &mut TableProof,
) -> Result<(), Stop> {
    let items = version_of(root, snapshot, ITEMS, properties::ITEMS_VERSION).await?;
    let events = version_of(root, snapshot, EVENTS, properties::EVENTS_VERSION).await?;
    let max_len = number(snapshot, properties::MAX_LEN)? as usize;
    let condition = condition(snapshot)?;
    let kept_conditions: Result<Conditions, String> = match kept(
        snapshot,
        CONDITIONS_SETTINGS,
        CONDITIONS_HASH,
    )? {
        Some(text) => serde_json::from_str(text).map_err(unknown_settings),
        None => {
            let hash = snapshot.properties().get(CONDITIONS_HASH).map_or("none", String::as_str);
            let here = conditions_hash(config, &condition);
            if hash == here {
                Ok(config.conditions.clone())
            } else {
                Err(format!(
                    "the table keeps no settings and was built with another [conditions] (hash {hash}, here {here}); build it \
                     again, or give --config and --set of the build"
                ))
            }
        }
    };
    // Everything below uses the settings of the build.
    let mut of_build = config.clone();
    if let Ok(conditions) = &kept_conditions {
        of_build.conditions = conditions.clone();
    }
    let config = &of_build;

    // An attribute's values are in the catalogue; the age of a derived condition is in the settings only.
    let derived = snapshot.properties().contains_key(properties::AGE);
    let carried = match (&items, &kept_conditions) {
        (Err(reason), _) => Err(reason.clone()),
        (Ok(_), Err(reason)) if derived => Err(reason.clone()),
        (Ok(items), _) => Ok(Carried::read(config, items, &condition).await?),
    };
    let last_item = items.as_ref().ok().map(|items| u32::try_from(items.rows()).unwrap_or(u32::MAX));
    let held = events.as_ref().map_or(0, Snapshot::rows);
    let mut log = match (sequences(config, snapshot)?, kept_conditions, events, &items) {
        (Ok(settings), Ok(conditions), Ok(events), Ok(items)) => {
            let rules = HistoryRules { learned: Some(conditions), ..rules(&settings, snapshot)? };
            let forgotten = Forgotten::load(root, &config.forget).await?;
            Ok(EventLog::open(events, items, rules, forgotten).await?)
        }
        (Err(reason), ..) | (_, Err(reason), ..) | (_, _, Err(reason), _) => Err(reason),
        (.., Err(reason)) => Err(reason.clone()),
    };
    let slices = held.div_ceil(events_held_max.max(1)).max(1);
    if let Ok(log) = &mut log {
        log.find_core(slices).await?;
    }
    let mut wanted = match (&log, &carried) {
        (Ok(log), Ok(carried)) => {
            let newest = log.rules.filters.newest(newest(&log.events).await?);
            let (rules, limits) = (&log.rules, &config.conditions);
            Some(ExampleRules { rules, carried, limits, pools: HashMap::new(), newest })
        }
        _ => None,
    };
    let pretraining = root.snapshot(SEQUENCES).await?;
    let mut pass = Pass {
        snapshot,
        max_len,
        last_item,
        carried: carried.as_ref().ok(),
        // A later table may learn events that were held out before, but never those reserved for instructions.
        same_log: pretraining.as_ref().is_some_and(|sequences| {
            let of = |table: &Snapshot| table.properties().get(properties::EVENTS_VERSION).cloned();
            of(sequences) == of(snapshot)
        }),
        counts: Counts::default(),
    };
    let label = format!("verify {}", snapshot.name());
    let mut progress = Progress::start(&label, snapshot.rows() * slices, "examples");
    for number in 0..slices {
        let mut of_slice = Of { number, slices, log: None, pretrained: None };
        if let (Ok(log), Some(wanted)) = (&log, &mut wanted) {
            of_slice.log = Some((log.slice(number, slices).await?, wanted));
            if let Some(sequences) = &pretraining {
                of_slice.pretrained = Some(pretrained(sequences, number, slices).await?);
            }
        }
        pass.run(of_slice, &mut progress).await?;
    }
    drop(progress);
    pass.conclude(carried.as_ref().err(), log.as_ref().err(), pretraining.is_some(), proof);
    Ok(())
}

/// The condition of the table.
fn condition(snapshot: &Snapshot) -> Result<String, Stop> {
    let condition = snapshot.properties().get(properties::CONDITION).cloned().unwrap_or_default();
    if sft_table(&condition) == snapshot.name() {
        return Ok(condition);
    }
    let expected = format!("that of table `{}`", snapshot.name());
    let violation = Violation::new(snapshot, PROPERTIES, format!("`{condition}`"), expected);
    Err(violation.column(properties::CONDITION).into())
}

/// The time of the newest event.
async fn newest(events: &Snapshot) -> Result<i64, Stop> {
    let mut newest = i64::MIN;
    for shard in events.shards() {
        for batch in reader::read(events, shard, &["ts"]).await? {
            let times = batch.column(0).as_primitive::<TimestampMillisecondType>();
            newest = newest.max(arrow::compute::max(times).unwrap_or(i64::MIN));
        }
    }
    Ok(newest)
}

/// Hash of an event's fields that both tables have.
fn identity(user: &str, ts: i64, item: u32) -> u128 {
    let mut bytes = user.as_bytes().to_vec();
    bytes.extend(ts.to_le_bytes());
    bytes.extend(item.to_le_bytes());
    hash128(&bytes)
}

/// The pre-training targets of a slice's users.
async fn pretrained(sequences: &Snapshot, number: u64, slices: u64) -> Result<HashSet<u128>, Stop> {
    let mut targets = HashSet::new();
    for shard in sequences.shards() {
        for batch in reader::read(sequences, shard, &row::COLUMNS).await? {
            for row in (0..batch.num_rows()).map(|r| row::row(&batch, r)) {
                let n = row.item.len().min(row.ts.len()).min(row.role.len());
                if slice_of(row.user, slices) == number {
                    let mine = (row.target_from..n).filter(|&k| row.role[k] == Role::Pretrain as u8);
                    targets.extend(mine.map(|k| identity(row.user, row.ts[k], row.item[k])));
                }
            }
        }
    }
    Ok(targets)
}

#[derive(Default)]
struct Counts {
    examples: u64,
    users: u64,
    compared: u64,
}

/// One slice of the users.
struct Of<'a, 'b> {
    number: u64,
    slices: u64,
    log: Option<(Slice, &'a mut ExampleRules<'b>)>,
    pretrained: Option<HashSet<u128>>,
}

/// Reads the table once for each slice of the users.
struct Pass<'a> {
    snapshot: &'a Snapshot,
    max_len: usize,
    last_item: Option<u32>,
    carried: Option<&'a Carried>,
    /// Whether `sequences` was built from the same version of `events`.
    same_log: bool,
    counts: Counts,
}

/// The user whose examples are being read, and the position of the latest one.
struct Open {
    user: String,
    expected: Option<Expected>,
    place: (usize, u64),
}

impl Pass<'_> {
    async fn run(&mut self, mut of: Of<'_, '_>, progress: &mut Progress) -> Result<(), Stop> {
        let mut shard_of: HashMap<u128, usize> = HashMap::new();
        let mut open: Option<Open> = None;
        let snapshot = self.snapshot;
        for (s, shard) in snapshot.shards().iter().enumerate() {
            let (mut at, mut before) = (0, String::new());
            for batch in reader::read(snapshot, shard, &example::COLUMNS).await? {
                for r in 0..batch.num_rows() {
                    let example = example(&batch, r);
                    if example.user < before.as_str() {
                        let expected = format!("not before `{before}`, the user of the row above");
                        let found = format!("`{}`", example.user);
                        let violation = Violation::new(snapshot, SORTED, found, expected);
                        return Err(violation.shard(shard).row(at).column("user_id").into());
                    }
                    if example.user != before {
                        example.user.clone_into(&mut before);
                    }
                    if slice_of(example.user, of.slices) == of.number {
                        if open.as_ref().is_none_or(|open| open.user != example.user || open.place.0 != s) {
                            self.close(open.take())?;
                            open = Some(self.open(&mut of, &mut shard_of, &example, (s, at))?);
                        }
                        if let Some(open) = &mut open {
                            open.place = (s, at);
                            let checked =
                                self.example(&example, open.expected.as_mut(), of.pretrained.as_ref());
                            checked
                                .map_err(|broken| broken_row(snapshot, shard, at, example.user, broken))?;
                        }
                    }
                    at += 1;
                }
                progress.add(batch.num_rows() as u64);
            }
        }
        self.close(open)?;
        self.left(of)
    }

    /// Begins a user at the first example.
    fn open(
        &mut self,
        of: &mut Of<'_, '_>,
        shard_of: &mut HashMap<u128, usize>,
        example: &ExampleRow<'_>,
        place: (usize, u64),
    ) -> Result<Open, Stop> {
        let shards = self.snapshot.shards();
        let at = |violation: Violation| violation.shard(&shards[place.0]).row(place.1).user(example.user);
        if let Some(other) = shard_of.insert(hash128(example.user.as_bytes()), place.0) {
            let expected = format!("in {}, with the user's other rows", shards[other].path);
            return Err(at(Violation::new(self.snapshot, ONE_SHARD, "a row here", expected)).into());
        }
        let mut expected = None;
        if let Some((slice, wanted)) = &mut of.log {
            let Some(history) = slice.take(example.user, wanted.rules) else {
                let (found, expected) = ("a user without events", "a user of the log");
                return Err(at(Violation::new(self.snapshot, example::TARGET, found, expected)).into());
            };
            expected = Some(wanted.examples(history));
        }
        self.counts.users += 1;
        Ok(Open { user: example.user.to_owned(), expected, place })
    }

    fn example(
        &mut self,
        example: &ExampleRow<'_>,
        expected: Option<&mut Expected>,
        pretrained: Option<&HashSet<u128>>,
    ) -> Result<(), Broken> {
        example.check(self.max_len, self.last_item)?;
        if let Some(carried) = self.carried {
            example.check_condition(carried)?;
        }
        if let Some(expected) = expected {
            expected.check(example)?;
            let compared = self.same_log || example.role == Role::Sft as u8;
            if let Some(pretrained) = pretrained.filter(|_| compared) {
                let identity = identity(example.user, example.target_ts, example.target_item);
                // Events with equal item and time differ only in their ids, which no row has.
                if pretrained.contains(&identity) && expected.is_alone(example) {
                    let found =
                        format!("item {} at {} ms, of role 0 there", example.target_item, example.target_ts);
                    return Err(Broken::new(
                        STORED,
                        "target_item",
                        None,
                        found,
                        "a target that it does not learn",
                    ));
                }
                self.counts.compared += 1;
            }
        }
        self.counts.examples += 1;
        Ok(())
    }

    /// Ends a user; fails if an example is missing.
    fn close(&self, open: Option<Open>) -> Result<(), Stop> {
        let Some(Open { user, expected: Some(expected), place: (shard, row) }) = open else { return Ok(()) };
        if expected.is_done() {
            return Ok(());
        }
        let violation =
            Violation::new(self.snapshot, example::ONCE, "the user's last example", expected.expected());
        Err(violation.shard(&self.snapshot.shards()[shard]).row(row).user(&user).into())
    }

    /// Checks the users of the slice that have no example at all.
    fn left(&self, of: Of<'_, '_>) -> Result<(), Stop> {
        let Some((mut slice, wanted)) = of.log else { return Ok(()) };
        for user in slice.users_left() {
            let Some(history) = slice.take(&user, wanted.rules) else { continue };
            let expected = wanted.examples(history);
            if !expected.is_done() {
                let violation =
                    Violation::new(self.snapshot, example::ONCE, "no example", expected.expected());
                return Err(violation.user(&user).into());
            }
        }
        Ok(())
    }

    /// Records the claims that are proven after all examples were checked.
    fn conclude(
        &self,
        no_catalogue: Option<&String>,
        no_log: Option<&String>,
        sequences_known: bool,
        proof: &mut TableProof,
    ) {
        let Counts { examples, users, compared } = self.counts;
        reader::proven(self.snapshot, examples, proof);
        proof.holds(SORTED, self.snapshot.shards().len() as u64, "shards");
        proof.holds(ONE_SHARD, users, "users");
        for claim in [example::LENGTHS, example::ITEMS, example::ASCENDING, example::PREFIX, example::ROLES] {
            proof.holds(claim, examples, "examples");
        }
        for claim in [example::VALUE, example::MATCHES, example::WEIGHT] {
            match no_catalogue {
                Some(reason) => proof.skip(claim, reason),
                None => proof.holds(claim, examples, "examples"),
            }
        }
        for claim in RECOMPUTED {
            match no_log {
                Some(reason) => proof.skip(claim, reason),
                None => proof.holds(claim, examples, "examples"),
            }
        }
        match no_log {
            Some(reason) => proof.skip(STORED, reason),
            None if sequences_known => proof.holds(STORED, compared, "examples"),
            None => proof.skip(STORED, "the root has no sequences"),
        }
        match no_log {
            Some(reason) => proof.skip(PROPERTIES, reason),
            None => proof.holds(PROPERTIES, self.snapshot.properties().len() as u64, "properties"),
        }
    }
}
