//! The users: their activity, times of listening and tastes, each a function of the user and the day.

use crate::catalogue::{Cell, GENRES, genre_at, language, ring_position};
use crate::random::{Purpose, Random, key};
use crate::{DAY_MS, HOUR_MS};

/// Standard deviation of the logarithm of the users' activity.
const ACTIVITY_SIGMA: f64 = 1.1;
/// Maximum sessions of a user on one day.
pub(crate) const SESSIONS_MAX: u32 = 63;
/// Relative frequency of sessions by the hour of the day (UTC) in which they begin.
const HOURS: [f64; 24] = [
    1.5, 1.0, 0.6, 0.5, 0.5, 0.8, 1.8, 3.5, 5.0, 4.5, 4.0, 4.0, 4.5, 4.5, 4.2, 4.5, 5.0, 6.0, 7.0, 7.5, 7.0,
    6.0, 4.5, 3.0,
];
/// Relative activity by weekday, from Monday on; higher at the end of the week.
const WEEKDAYS: [f64; 7] = [0.92, 0.92, 0.94, 0.96, 1.06, 1.14, 1.06];

/// Standard deviation of a listener's drift, in genres a day.
const DRIFT_GENRES_A_DAY: f64 = 0.15;
/// Width of a taste, in genres.
const TASTE_WIDTH: f64 = 0.8;
/// Share of the listeners who switch to their second language during the log.
const SWITCH_SHARE: f64 = 0.3;

/// All users of a log.
#[derive(Debug)]
pub(crate) struct Listeners {
    activity_key: u64,
    taste_key: u64,
    plan_key: u64,
    days: u32,
    /// Weekday of day 0, counted from Monday.
    first_weekday: u32,
    /// Sessions a day of a user with activity 1 on a day with weight 1.
    sessions_a_day: f64,
}

/// The sessions of one user that begin on one day.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) count: u32,
    random: Random,
}

impl Sessions {
    /// The beginnings of the sessions, in milliseconds of the day: spread over the day, with gaps between them.
    pub(crate) fn starts_ms(mut self) -> impl Iterator<Item = i64> {
        let phase = self.random.unit();
        (0..self.count).map(move |ordinal| {
            let jitter = 0.5 * self.random.unit();
            time_of_day((phase + (f64::from(ordinal) + jitter) / f64::from(self.count)).fract())
        })
    }
}

/// The time of day by which `share` of the listening has begun, in milliseconds.
fn time_of_day(share: f64) -> i64 {
    let mut rest = share * HOURS.iter().sum::<f64>();
    for (hour, &weight) in HOURS.iter().enumerate() {
        if rest < weight {
            return hour as i64 * HOUR_MS + (rest / weight * HOUR_MS as f64) as i64;
        }
        rest -= weight;
    }
    DAY_MS - 1
}

impl Listeners {
    /// Users who together begin about `sessions` sessions in `days` days.
    pub(crate) fn new(seed: u64, users: u32, days: u32, first_weekday: u32, sessions: f64) -> Self {
        let mut listeners = Self {
            activity_key: key(seed, Purpose::Activity),
            taste_key: key(seed, Purpose::Taste),
            plan_key: key(seed, Purpose::Plan),
            days,
            first_weekday,
            sessions_a_day: 1.0,
        };
        let activity: f64 = (0..users).map(|user| listeners.activity(user)).sum();
        let weights: f64 = (0..days).map(|day| listeners.weekday(day)).sum();
        listeners.sessions_a_day = sessions / (activity * weights);
        listeners
    }

    /// The user's activity, log-normally distributed.
    pub(crate) fn activity(&self, user: u32) -> f64 {
        (ACTIVITY_SIGMA * Random::at(self.activity_key, user.into()).bell()).exp()
    }

    fn weekday(&self, day: u32) -> f64 {
        WEEKDAYS[((self.first_weekday + day) % 7) as usize]
    }

    /// The sessions of a user whose [`activity`](Self::activity) is known.
    pub(crate) fn sessions(&self, user: u32, activity: f64, day: u32) -> Sessions {
        let mut random = Random::at(self.plan_key, u64::from(user) << 12 | u64::from(day));
        let count = random.poisson(self.sessions_a_day * activity * self.weekday(day), SESSIONS_MAX);
        Sessions { count, random }
    }

    /// The user's taste on `day`.
    pub(crate) fn taste(&self, user: u32, day: u32) -> Taste {
        let mut random = Random::at(self.taste_key, user.into());
        let lasting = ring_position(&mut random);
        let drift = DRIFT_GENRES_A_DAY * random.bell();
        let passing = ring_position(&mut random) + drift * f64::from(day);
        let (first, second) = (language(&mut random), language(&mut random));
        let switches = random.chance(SWITCH_SHARE);
        let switched = switches && day >= (random.unit() * f64::from(self.days)) as u32;
        let (main, other) = if switched { (second, first) } else { (first, second) };
        Taste { lasting, passing, main, other }
    }
}

/// The taste of a listener on one day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Taste {
    /// Constant position on the ring of genres.
    lasting: f64,
    /// Position that wanders from day to day.
    passing: f64,
    main: usize,
    other: usize,
}

impl Taste {
    /// Draws a cell by the taste.
    pub(crate) fn cell(&self, random: &mut Random) -> Cell {
        let which = random.unit();
        let position = if which < 0.45 {
            self.lasting + TASTE_WIDTH * random.bell()
        } else if which < 0.92 {
            self.passing + TASTE_WIDTH * random.bell()
        } else {
            random.unit() * GENRES.len() as f64
        };
        let which = random.unit();
        let language = if which < 0.85 {
            self.main
        } else if which < 0.95 {
            self.other
        } else {
            language(random)
        };
        Cell { genre: genre_at(position), language }
    }

    /// The cell of the lasting taste.
    pub(crate) fn lasting_cell(&self) -> Cell {
        Cell { genre: genre_at(self.lasting), language: self.main }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_number_of_sessions_begins_apart_from_each_other() {
        let (users, days) = (3_000, 14);
        let listeners = Listeners::new(1, users, days, 3, 60_000.0);
        let mut total = 0;
        for user in 0..users {
            let activity = listeners.activity(user);
            for day in 0..days {
                let sessions = listeners.sessions(user, activity, day);
                let count = sessions.count;
                let mut starts: Vec<i64> = sessions.starts_ms().collect();
                assert!(starts.len() == count as usize && starts.iter().all(|ms| (0..DAY_MS).contains(ms)));
                starts.sort_unstable();
                if count < 4 {
                    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] > HOUR_MS), "{starts:?}");
                }
                total += count;
            }
        }
        assert!(total.abs_diff(60_000) < 2_000, "{total}");
    }

    #[test]
    fn the_day_is_covered() {
        assert_eq!(time_of_day(0.0), 0);
        assert!(time_of_day(1.0 - f64::EPSILON) < DAY_MS);
        let evening = (0..1_000).filter(|n| time_of_day(f64::from(*n) / 1_000.0) >= 17 * HOUR_MS).count();
        assert!((350..500).contains(&evening), "{evening}");
    }
}
