//! Verifies `sequences` and `refresh` slice by slice: each row by itself and against the recomputed history.

use std::collections::HashMap;

use schemas::config::Config;
use schemas::hash::hash128;
use schemas::history::Role;
use schemas::tables::{EVENTS, ITEMS, SEQUENCES, properties};
use store::{Root, Shard, Snapshot};
use terminal::Progress;

use super::history::{self, ProvenHistory};
use super::log::{EventLog, Slice, slice_of};
use super::properties::{PROPERTIES, number, rules, sequences, version_of};
use super::row::{self, Bounds, Broken, Row};
use super::violation::{Stop, Violation};
use super::{TableProof, reader};
use crate::privacy::Forgotten;

pub(super) const SORTED: &str = "a shard is sorted by user";
pub(super) const ONE_SHARD: &str = "a user's rows lie in one shard";
const NEW: &str = "a row of refresh has a target that is new";

/// The claims that need the recomputed histories.
const RECOMPUTED: [&str; 8] = [
    history::ONCE,
    history::CONTEXT,
    history::SESSION,
    history::REQUEST,
    history::VISIBLE,
    history::ROLE,
    history::ENOUGH,
    history::HELD_OUT,
];

pub(super) async fn verify(
    config: &Config,
    root: &Root,
    snapshot: &Snapshot,
    events_held_max: u64,
    proof: &mut TableProof,
) -> Result<(), Stop> {
    let whole = snapshot.name() == SEQUENCES;
    let items = version_of(root, snapshot, ITEMS, properties::ITEMS_VERSION).await?;
    let events = version_of(root, snapshot, EVENTS, properties::EVENTS_VERSION).await?;
    let max_len = number(snapshot, properties::MAX_LEN)? as usize;
    let last_item = items.as_ref().ok().map(|items| u32::try_from(items.rows()).unwrap_or(u32::MAX));
    let bounds = Bounds { max_len, last_item, old_targets: !whole };

    let mut held = snapshot.rows();
    let mut log = match (sequences(config, snapshot)?, events, &items) {
        (Ok(settings), Ok(events), Ok(items)) => {
            held = held.max(events.rows());
            let forgotten = Forgotten::load(root, &config.forget).await?;
            let mut log = EventLog::open(events, items, rules(&settings, snapshot)?, forgotten).await?;
            let new =
                if whole { Ok(()) } else { log.since(number(snapshot, properties::SINCE_VERSION)?).await? };
            new.map(|()| log)
        }
        (Err(reason), ..) | (_, Err(reason), _) => Err(reason),
        (_, _, Err(reason)) => Err(reason.clone()),
    };
    let slices = held.div_ceil(events_held_max.max(1)).max(1);
    if let Ok(log) = &mut log {
        log.find_core(slices).await?;
    }
    let mut pass = Pass { snapshot, bounds, whole, counts: Counts::default() };
    let label = format!("verify {}", snapshot.name());
    let mut progress = Progress::start(&label, snapshot.rows() * slices, "rows");
    for slice in 0..slices {
        pass.run(log.as_ref().ok(), slice, slices, &mut progress).await?;
    }
    drop(progress);
    pass.conclude(items.err(), log.err(), proof);
    Ok(())
}

#[derive(Default)]
struct Counts {
    rows: u64,
    positions: u64,
    users: u64,
    events: u64,
}

/// Reads the table once for each slice of the users.
struct Pass<'a> {
    snapshot: &'a Snapshot,
    bounds: Bounds,
    whole: bool,
    counts: Counts,
}

/// The user whose rows are being read.
#[derive(Default)]
struct Open {
    user: String,
    history: Option<ProvenHistory>,
    /// Shard and row of the user's latest row.
    place: (usize, u64),
}

impl Pass<'_> {
    async fn run(
        &mut self,
        log: Option<&EventLog>,
        number: u64,
        slices: u64,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let mut slice = match log {
            Some(log) => log.slice(number, slices).await?,
            None => Slice::default(),
        };
        let mut shard_of: HashMap<u128, usize> = HashMap::new();
        let mut open: Option<Open> = None;
        let snapshot = self.snapshot;
        for (s, shard) in snapshot.shards().iter().enumerate() {
            let (mut at, mut before) = (0, String::new());
            for batch in reader::read(snapshot, shard, &row::COLUMNS).await? {
                for r in 0..batch.num_rows() {
                    let row = row::row(&batch, r);
                    if row.user < before.as_str() {
                        let expected = format!("not before `{before}`, the user of the row above");
                        let violation = Violation::new(snapshot, SORTED, format!("`{}`", row.user), expected);
                        return Err(violation.shard(shard).row(at).column("user_id").into());
                    }
                    if row.user != before {
                        row.user.clone_into(&mut before);
                    }
                    if slice_of(row.user, slices) == number {
                        if open.as_ref().is_none_or(|open| open.user != row.user || open.place.0 != s) {
                            self.close(open.take())?;
                            open = Some(self.open(log, &mut slice, &mut shard_of, &row, (s, at))?);
                        }
                        if let Some(open) = &mut open {
                            open.place = (s, at);
                            let checked = self.row(&row, log.zip(open.history.as_mut()));
                            checked.map_err(|broken| broken_row(snapshot, shard, at, row.user, broken))?;
                        }
                    }
                    at += 1;
                }
                progress.add(batch.num_rows() as u64);
            }
        }
        self.close(open)?;
        self.counts.events += slice.events;
        match slice.left() {
            Some((user, events)) if self.whole => {
                let (found, expected) = ("no row", format!("rows that own {events} events"));
                Err(Violation::new(snapshot, history::ONCE, found, expected).user(user).into())
            }
            _ if self.whole => Ok(()),
            _ => match slice.left_with_new() {
                Some((user, events)) => {
                    let expected = format!("rows with {events} new events");
                    Err(Violation::new(snapshot, history::SINCE, "no row", expected).user(&user).into())
                }
                None => Ok(()),
            },
        }
    }

    /// Begins a user at the first row.
    fn open(
        &mut self,
        log: Option<&EventLog>,
        slice: &mut Slice,
        shard_of: &mut HashMap<u128, usize>,
        row: &Row<'_>,
        place: (usize, u64),
    ) -> Result<Open, Stop> {
        let shards = self.snapshot.shards();
        let at = |violation: Violation| violation.shard(&shards[place.0]).row(place.1).user(row.user);
        if let Some(other) = shard_of.insert(hash128(row.user.as_bytes()), place.0) {
            let expected = format!("in {}, with the user's other rows", shards[other].path);
            return Err(at(Violation::new(self.snapshot, ONE_SHARD, "a row here", expected)).into());
        }
        let history = log.and_then(|log| slice.take(row.user, &log.rules));
        if log.is_some() && history.is_none() {
            let (found, expected) = ("a user without events", "a user of the log");
            return Err(at(Violation::new(self.snapshot, history::ONCE, found, expected)).into());
        }
        self.counts.users += 1;
        Ok(Open { user: row.user.to_owned(), history, place })
    }

    fn row(&mut self, row: &Row<'_>, history: Option<(&EventLog, &mut ProvenHistory)>) -> Result<(), Broken> {
        row.check(self.bounds)?;
        if !self.whole && row.role.iter().all(|&role| role == Role::Context as u8) {
            return Err(Broken::new(NEW, "role", None, "4 everywhere", "another number at a new event"));
        }
        if let Some((log, history)) = history {
            history.check(row, log.rules.max_len, !self.whole)?;
        }
        self.counts.rows += 1;
        self.counts.positions += row.item.len() as u64;
        Ok(())
    }

    /// Ends a user; fails if events are missing.
    fn close(&self, open: Option<Open>) -> Result<(), Stop> {
        let Some(Open { user, history: Some(history), place: (shard, row) }) = open else { return Ok(()) };
        let (events, owned) = history.owned();
        if self.whole && owned < events {
            let found = format!("the user's last row; its rows own {owned} events");
            let expected = format!("rows that own {events} events");
            let violation = Violation::new(self.snapshot, history::ONCE, found, expected);
            return Err(violation.shard(&self.snapshot.shards()[shard]).row(row).user(&user).into());
        }
        let (new, seen) = history.new_targets();
        if !self.whole && seen < new {
            let found = format!("the user's last row; {seen} new events are targets");
            let violation = Violation::new(self.snapshot, history::SINCE, found, format!("{new} of them"));
            return Err(violation.shard(&self.snapshot.shards()[shard]).row(row).user(&user).into());
        }
        Ok(())
    }

    /// Records the claims that are proven after all rows were checked.
    fn conclude(&self, no_items: Option<String>, no_log: Option<String>, proof: &mut TableProof) {
        let Counts { rows, positions, users, events } = self.counts;
        reader::proven(self.snapshot, rows, proof);
        proof.holds(SORTED, self.snapshot.shards().len() as u64, "shards");
        proof.holds(ONE_SHARD, users, "users");
        for claim in [row::LENGTHS, row::OWNED] {
            proof.holds(claim, rows, "rows");
        }
        for claim in [row::ASCENDING, row::SESSIONS, row::ROLES, row::PREFIX] {
            proof.holds(claim, positions, "positions");
        }
        match no_items {
            None => proof.holds(row::ITEMS, positions, "positions"),
            Some(reason) => proof.skip(row::ITEMS, reason),
        }
        if !self.whole {
            proof.holds(NEW, rows, "rows");
            match &no_log {
                None => proof.holds(history::SINCE, events, "events"),
                Some(reason) => proof.skip(history::SINCE, reason.clone()),
            }
        }
        for claim in RECOMPUTED {
            match &no_log {
                Some(reason) => proof.skip(claim, reason.clone()),
                // Rows of `refresh` need not cover a history.
                None if claim == history::ONCE && self.whole => proof.holds(claim, events, "events"),
                None if claim == history::HELD_OUT && !self.whole => {
                    proof.no_claim(claim, "rows without new events are not in the table");
                }
                None => proof.holds(claim, positions, "positions"),
            }
        }
        match &no_log {
            Some(reason) => proof.skip(PROPERTIES, reason.clone()),
            None => proof.holds(PROPERTIES, self.snapshot.properties().len() as u64, "properties"),
        }
    }
}

pub(super) fn broken_row(
    snapshot: &Snapshot,
    shard: &Shard,
    at: u64,
    user: &str,
    broken: Broken,
) -> Violation {
    let violation = Violation::new(snapshot, broken.claim, broken.found, broken.expected);
    let violation = violation.shard(shard).row(at).user(user).column(broken.column);
    match broken.position {
        Some(position) => violation.position(position),
        None => violation,
    }
}
