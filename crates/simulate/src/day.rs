//! Generates one day's records in the order in which they arrive.
//!
//! ```text
//!   sessions that begin today ──────────────────┐
//!   sessions of yesterday evening, the rest ────┤   plan, by time   quarter of an hour by quarter:
//!   sessions of the last days, uploaded today ──┴─▶ ────────────▶   play, sort by arrival, hand over
//! ```
//!
//! A session is a function of its user, day and number, so sessions of other days are computed again
//! instead of carried over, and days are independent of each other.
//!
//! Memory: 8 bytes for each session that arrives on the day, and the records of a quarter of an hour with
//! the rest of the sessions that began in it.

use schemas::tables::Reason;

use crate::listener::Listeners;
use crate::random::{Purpose, Random, key, unit};
use crate::session::{SESSION_MS_MAX, SessionId, SimulatedEvent, Stage};
use crate::{DAY_MS, HOUR_MS, Rates};

/// A record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogRecord {
    pub(crate) event: SimulatedEvent,
    /// The reason for which it must be rejected, if it is bad.
    pub(crate) flaw: Option<Reason>,
    /// Whether it is the second copy of its event.
    pub(crate) duplicate: bool,
}

/// Maximum days after which an offline device uploads a session.
const LATE_DAYS_MAX: u32 = 3;
/// Time of late uploads, in milliseconds of the day: after sessions that began yesterday are over, and early
/// enough for duplicates to arrive on the same day.
const UPLOAD_MS: (i64, i64) = (3 * HOUR_MS, 20 * HOUR_MS);
/// A duplicate comes after its event by less than this.
const DUPLICATE_MS_MAX: i64 = HOUR_MS;
/// Sessions that begin later may reach into the next day with an event or a duplicate.
const TAIL_FROM_MS: i64 = DAY_MS - SESSION_MS_MAX - DUPLICATE_MS_MAX;
const SLOT_MS: i64 = HOUR_MS / 4;
/// Sessions between two checks for a requested stop.
const SESSIONS_PER_LOOK: usize = 4_096;
/// Users between two such checks.
const USERS_PER_LOOK: u32 = 1 << 16;

/// The reason why a session is in the plan of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// It begins today.
    Live,
    /// It began this many days ago and is uploaded today.
    Late(u32),
    /// It began yesterday, and some of its records may arrive today.
    Tail,
}

/// An entry of the plan as a number that sorts by the second of the day: 17 bits for the second, 32 for the user,
/// 6 for the session's ordinal, 3 for the arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Planned(u64);

impl Planned {
    fn new(second: i64, user: u32, ordinal: u32, arrival: Arrival) -> Self {
        let arrival = match arrival {
            Arrival::Live => 0,
            Arrival::Late(days) => days,
            Arrival::Tail => LATE_DAYS_MAX + 1,
        };
        Self((second as u64) << 41 | u64::from(user) << 9 | u64::from(ordinal) << 3 | u64::from(arrival))
    }

    fn second(self) -> i64 {
        (self.0 >> 41) as i64
    }

    fn user(self) -> u32 {
        (self.0 >> 9) as u32
    }

    fn ordinal(self) -> u32 {
        (self.0 >> 3) as u32 & 0x3f
    }

    fn arrival(self) -> Arrival {
        match self.0 as u32 & 7 {
            0 => Arrival::Live,
            tail if tail > LATE_DAYS_MAX => Arrival::Tail,
            days => Arrival::Late(days),
        }
    }
}

/// Generates the records of any day.
#[derive(Debug)]
pub(crate) struct Days<'a> {
    stage: Stage<'a>,
    users: u32,
    start_ms: i64,
    rates: Rates,
    /// The reasons for which a record of the chosen format can be bad.
    flaws: &'static [Reason],
    late_key: u64,
    bad_key: u64,
    duplicate_key: u64,
}

/// The run was stopped.
#[derive(Debug)]
pub(crate) struct StoppedEarly;

impl<'a> Days<'a> {
    pub(crate) fn new(
        seed: u64,
        stage: Stage<'a>,
        users: u32,
        start_ms: i64,
        rates: Rates,
        flaws: &'static [Reason],
    ) -> Self {
        Self {
            stage,
            users,
            start_ms,
            rates,
            flaws,
            late_key: key(seed, Purpose::Late),
            bad_key: key(seed, Purpose::Bad),
            duplicate_key: key(seed, Purpose::Duplicate),
        }
    }

    fn listeners(&self) -> &Listeners {
        self.stage.listeners
    }

    /// Passes every record that arrives on `day` to `take`, in order of arrival, with its time of arrival in
    /// milliseconds of the day. Calls `stopped` from time to time.
    pub(crate) fn records<E: From<StoppedEarly>>(
        &self,
        day: u32,
        stopped: impl Fn() -> bool,
        mut take: impl FnMut(i64, &LogRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut plan = self.plan(day, &stopped)?.into_iter().enumerate().peekable();
        let mut slot = Slot::default();
        for slot_end in (1..=DAY_MS / SLOT_MS).map(|slot| slot * SLOT_MS) {
            while let Some((nth, planned)) = plan.next_if(|(_, planned)| planned.second() * 1_000 < slot_end)
            {
                if nth.is_multiple_of(SESSIONS_PER_LOOK) && stopped() {
                    return Err(StoppedEarly.into());
                }
                self.play(day, planned, &mut slot);
            }
            slot.hand_over(slot_end, &mut take)?;
        }
        Ok(())
    }

    /// All sessions with a record that arrives on `day`, sorted by the earliest possible arrival.
    fn plan(&self, day: u32, stopped: impl Fn() -> bool) -> Result<Vec<Planned>, StoppedEarly> {
        let mut plan = Vec::new();
        let earliest =
            if self.rates.late > 0.0 { day.saturating_sub(LATE_DAYS_MAX) } else { day.saturating_sub(1) };
        for user in 0..self.users {
            if user.is_multiple_of(USERS_PER_LOOK) && stopped() {
                return Err(StoppedEarly);
            }
            let activity = self.listeners().activity(user);
            for began in earliest..=day {
                let sessions = self.listeners().sessions(user, activity, began);
                if sessions.count == 0 {
                    continue;
                }
                for (ordinal, start) in (0..).zip(sessions.starts_ms()) {
                    let id = SessionId { user, day: began, ordinal };
                    let planned = match self.late(id) {
                        Some((days, upload)) if began + days == day => Some((upload, Arrival::Late(days))),
                        None if began == day => Some((start, Arrival::Live)),
                        None if began + 1 == day && start >= TAIL_FROM_MS => Some((0, Arrival::Tail)),
                        _ => None,
                    };
                    plan.extend(
                        planned.map(|(ms, arrival)| Planned::new(ms / 1_000, user, ordinal, arrival)),
                    );
                }
            }
        }
        plan.sort_unstable();
        Ok(plan)
    }

    /// For a session that is uploaded late: after how many days, and the time of that day.
    fn late(&self, id: SessionId) -> Option<(u32, i64)> {
        let mut random = Random::at(self.late_key, id.place(0));
        random.chance(self.rates.late).then(|| {
            let days = 1 + random.between(0, LATE_DAYS_MAX.into()) as u32;
            (days, random.between(UPLOAD_MS.0, UPLOAD_MS.1))
        })
    }

    /// Adds the records of a session that arrive on `day` to the slot.
    fn play(&self, day: u32, planned: Planned, slot: &mut Slot) {
        let (user, ordinal) = (planned.user(), planned.ordinal());
        let began = match planned.arrival() {
            Arrival::Live => day,
            Arrival::Late(days) => day - days,
            Arrival::Tail => day - 1,
        };
        let sessions = self.listeners().sessions(user, self.listeners().activity(user), began);
        let Some(start) = sessions.starts_ms().nth(ordinal as usize) else { return };
        let midnight = |day: u32| self.start_ms + i64::from(day) * DAY_MS;
        slot.events.clear();
        self.stage.play(SessionId { user, day: began, ordinal }, midnight(began) + start, &mut slot.events);
        for (nth, &event) in (0..).zip(&slot.events) {
            let arrival = match planned.arrival() {
                // The whole session comes at once.
                Arrival::Late(_) => planned.second() * 1_000 + nth,
                Arrival::Live | Arrival::Tail => event.ts - midnight(day),
            };
            let flaw = self.flaw(&event);
            let copy = if flaw.is_none() { self.duplicate_after(&event) } else { None };
            let record = LogRecord { event, flaw, duplicate: false };
            let arrivals = [
                (Some(arrival), record),
                (copy.map(|after| arrival + after), LogRecord { duplicate: true, ..record }),
            ];
            for (arrival, record) in arrivals {
                if let Some(arrival) = arrival.filter(|ms| (0..DAY_MS).contains(ms)) {
                    slot.records.push((arrival, record));
                }
            }
        }
    }

    fn flaw(&self, event: &SimulatedEvent) -> Option<Reason> {
        let bits = schemas::hash::mix64(self.bad_key, event.id);
        let bad = unit(bits) < self.rates.bad;
        bad.then(|| self.flaws[(schemas::hash::mix64(bits, 0) % self.flaws.len() as u64) as usize])
    }

    fn duplicate_after(&self, event: &SimulatedEvent) -> Option<i64> {
        let bits = schemas::hash::mix64(self.duplicate_key, event.id);
        let twice = unit(bits) < self.rates.duplicate;
        twice.then(|| 1 + (schemas::hash::mix64(bits, 0) % (DUPLICATE_MS_MAX as u64 - 1)) as i64)
    }
}

/// Records that wait for their time of arrival.
#[derive(Debug, Default)]
struct Slot {
    /// With their arrivals, in milliseconds of the day.
    records: Vec<(i64, LogRecord)>,
    waiting: Vec<(i64, LogRecord)>,
    /// Arrival and index in `records`, as one number.
    order: Vec<u64>,
    /// The current session.
    events: Vec<SimulatedEvent>,
}

impl Slot {
    /// Passes on the records that arrive before `end`, in order.
    fn hand_over<E>(
        &mut self,
        end: i64,
        mut take: impl FnMut(i64, &LogRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        self.order.clear();
        self.waiting.clear();
        for (place, &(arrival, record)) in (0u64..).zip(&self.records) {
            if arrival < end {
                self.order.push((arrival as u64) << 32 | place);
            } else {
                self.waiting.push((arrival, record));
            }
        }
        self.order.sort_unstable();
        for &key in &self.order {
            let (arrival, record) = &self.records[(key & 0xffff_ffff) as usize];
            take(*arrival, record)?;
        }
        std::mem::swap(&mut self.records, &mut self.waiting);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_planned_session_is_what_was_planned(second in 0i64..86_400, user: u32, ordinal in 0u32..64, kind in 0u32..5) {
            let arrival = match kind {
                0 => Arrival::Live,
                4 => Arrival::Tail,
                days => Arrival::Late(days),
            };
            let planned = Planned::new(second, user, ordinal, arrival);
            prop_assert_eq!((planned.second(), planned.user()), (second, user));
            prop_assert_eq!((planned.ordinal(), planned.arrival()), (ordinal, arrival));
            prop_assert!(second == 0 || Planned::new(second - 1, u32::MAX, 63, Arrival::Tail) < planned);
        }
    }
}
