//! Checks whether the times of a log are plausible.
//!
//! Times in a wrong unit parse without an error: seconds read as milliseconds lie in January 1970. So do times that
//! passed through a 32-bit float, which rounds them to multiples of 128 s.

use chrono::{DateTime, Utc};
use schemas::config::{TimeFormat, TimeUnit};

/// 1 January 2000.
const FIRST_MS: i64 = 946_684_800_000;
/// Distance of neighbouring 32-bit floats at today's time, for times in seconds and in milliseconds.
const STEPS_MS: [i64; 2] = [128_000, 131_072];
/// A third of a day. Whole days and thirds of days are multiples of 128 s, too, and plausible.
const THIRD_OF_DAY_MS: i64 = 28_800_000;
/// This many different times are not all multiples of a step by chance.
const DIFFERENT_TIMES: usize = 8;
/// At least this many events within at most this span are remarkable.
const DENSE_EVENTS: u64 = 1_000;
const DENSE_MS: i64 = 10_000;

/// The range and number of the times so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times {
    count: u64,
    first: i64,
    min: i64,
    max: i64,
    /// Whether all times are the first one plus a multiple of each step.
    stepped: [bool; 2],
    in_thirds_of_days: bool,
    /// Up to [`DIFFERENT_TIMES`] different times.
    different: Vec<i64>,
}

impl Times {
    /// Adds times, in epoch milliseconds.
    pub(crate) fn add(&mut self, times: &[i64]) {
        let Some((&first, _)) = times.split_first() else { return };
        if self.count == 0 {
            (self.first, self.min, self.max) = (first, first, first);
            (self.stepped, self.in_thirds_of_days) = ([true; 2], true);
        }
        self.count += times.len() as u64;
        for &ms in times {
            (self.min, self.max) = (self.min.min(ms), self.max.max(ms));
        }
        if self.stepped == [false; 2] {
            return;
        }
        for &ms in times {
            let after = ms - self.first;
            for (stepped, step) in self.stepped.iter_mut().zip(STEPS_MS) {
                *stepped &= after % step == 0;
            }
            self.in_thirds_of_days &= after % THIRD_OF_DAY_MS == 0;
            if self.different.len() < DIFFERENT_TIMES && !self.different.contains(&ms) {
                self.different.push(ms);
            }
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The suspicion, as a question, that keeps these times from being stored; `None` if they are plausible.
    pub(crate) fn question(&self, format: &TimeFormat) -> Option<String> {
        let Self { count, min, max, .. } = *self;
        if count == 0 {
            return None;
        }
        let span = format!("all {count} times lie between {} and {}", text(min), text(max));
        if max < FIRST_MS {
            return Some(match intended(min, max) {
                Some((factor, shift)) => {
                    // Numbers that no unit puts where times are expected are read as milliseconds.
                    let unit = match format {
                        TimeFormat::Epoch(unit) => *unit,
                        _ => TimeUnit::Ms,
                    };
                    let are = match (unit, shift) {
                        (TimeUnit::Ms, 1) | (TimeUnit::Us, 2) | (TimeUnit::Ns, 3) => "seconds",
                        (TimeUnit::Us, 1) | (TimeUnit::Ns, 2) => "milliseconds",
                        (TimeUnit::Ns, 1) => "microseconds",
                        _ => "of another unit",
                    };
                    format!(
                        "{span}; are these {are}? times {factor} they lie between {} and {}",
                        text(min.saturating_mul(factor)),
                        text(max.saturating_mul(factor)),
                    )
                }
                None => format!("{span}, before the year 2000; is that meant?"),
            });
        }
        let stepped = self.stepped.iter().any(|&stepped| stepped) && !self.in_thirds_of_days;
        (stepped && self.different.len() >= DIFFERENT_TIMES).then(|| {
            format!("{span}, in steps of 128 s; were they 32-bit floats, which cannot hold a time of today?")
        })
    }

    /// A warning about remarkable times that do not stop the run.
    pub(crate) fn remark(&self) -> Option<String> {
        let span_ms = self.max.saturating_sub(self.min);
        (self.count >= DENSE_EVENTS && span_ms < DENSE_MS).then(|| {
            format!(
                "all {} times lie within {:.3} s, from {} on; is the unit of time right?",
                self.count,
                span_ms as f64 / 1e3,
                text(self.min)
            )
        })
    }
}

/// The power of a thousand that moves the times between 2000 and a year from now.
fn intended(min: i64, max: i64) -> Option<(i64, u32)> {
    let latest = Utc::now().timestamp_millis().saturating_add(366 * 86_400_000);
    let fits = |factor: i64| {
        min.checked_mul(factor).is_some_and(|min| min >= FIRST_MS)
            && max.checked_mul(factor).is_some_and(|max| max <= latest)
    };
    [(1_000, 1), (1_000_000, 2), (1_000_000_000, 3)].into_iter().find(|(factor, _)| fits(*factor))
}

fn text(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |time| time.format("%Y-%m-%dT%H:%M:%S%.fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(times: impl IntoIterator<Item = i64>) -> Option<String> {
        let times: Vec<i64> = times.into_iter().collect();
        let mut known = Times::default();
        times.chunks(3).for_each(|times| known.add(times));
        assert_eq!(known.count(), times.len() as u64);
        known.question(&TimeUnit::Ms.into())
    }

    const S: i64 = 1_700_000_000;

    #[test]
    fn times_of_another_unit_raise_a_question() {
        let asked = question([S, S + 86_400, S + 172_800]).unwrap();
        for part in ["all 3 times", "1970-01-20T16:13:20Z", "are these seconds?", "2023-11-14", "2023-11-16"]
        {
            assert!(asked.contains(part), "{part}: {asked}");
        }
        assert!(question([0, 5]).unwrap().contains("before the year 2000"));
        assert!(question([-5]).is_some());
        // One plausible later time suffices.
        assert_eq!(question([S, S * 1_000]), None);
        assert_eq!(question([]), None);
        let mut micros = Times::default();
        micros.add(&[S]);
        assert!(micros.question(&TimeUnit::Us.into()).unwrap().contains("are these milliseconds?"));
    }

    #[test]
    fn steps_of_a_32_bit_float_raise_a_question() {
        let every = |step: i64, n: i64| (0..n).map(move |n| (S + n * step) * 1_000);
        let single = |n: i64| i64::from(((S + 61 * n) as f32) as i32) * 1_000;
        assert!(question((0..100).map(single)).unwrap().contains("32-bit floats"));
        let single_ms = |n: i64| ((S * 1_000 + 61_000 * n) as f32) as i64;
        assert!(question((0..100).map(single_ms)).unwrap().contains("32-bit floats"));
        // Too few times, whole days, and other steps.
        assert_eq!(question(every(128, 7)), None);
        assert_eq!(question(every(86_400, 100)), None);
        assert_eq!(question(every(28_800, 100)), None);
        assert_eq!(question(every(60, 100)), None);
        assert_eq!(question(every(0, 100)), None);
    }

    #[test]
    fn many_events_in_seconds_are_remarked_on() {
        let mut times = Times::default();
        times.add(&(0..2_000).map(|n| S * 1_000 + n).collect::<Vec<_>>());
        assert!(
            times.question(&TimeUnit::Ms.into()).is_none()
                && times.remark().unwrap().contains("within 1.999 s")
        );
        times.add(&[S * 1_000 + 60_000]);
        assert_eq!(times.remark(), None);
    }
}
