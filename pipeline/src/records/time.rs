//! Converts times of any format to epoch milliseconds, rounded down.

use std::borrow::Cow;

use chrono::format::Parsed;
use chrono::{DateTime, FixedOffset, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
use chrono_tz::Tz;
use schemas::config::{Pattern, TimeFormat, TimeUnit, Zone};
use schemas::tables::Reason;

use super::value::{Rejection, Value};

/// The form in which a time was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// A number of this unit since 1970.
    Epoch(TimeUnit),
    /// Text in ISO 8601, with or without an offset.
    Iso,
    /// Text in the configured format.
    Configured,
    /// A column whose type is that of times.
    Typed,
}

impl Form {
    const ALL: [Self; 7] = [
        Self::Epoch(TimeUnit::S),
        Self::Epoch(TimeUnit::Ms),
        Self::Epoch(TimeUnit::Us),
        Self::Epoch(TimeUnit::Ns),
        Self::Iso,
        Self::Configured,
        Self::Typed,
    ];

    /// What the form is called in messages.
    fn title(self) -> &'static str {
        match self {
            Self::Epoch(TimeUnit::S) => "seconds since 1970",
            Self::Epoch(TimeUnit::Ms) => "milliseconds since 1970",
            Self::Epoch(TimeUnit::Us) => "microseconds since 1970",
            Self::Epoch(TimeUnit::Ns) => "nanoseconds since 1970",
            Self::Iso => "ISO 8601",
            Self::Configured => "text as configured",
            Self::Typed => "a column of times",
        }
    }
}

/// How many times were written in each form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Forms([u64; Form::ALL.len()]);

impl Forms {
    pub(super) fn add(&mut self, form: Form) {
        self.add_many(form, 1);
    }

    pub(super) fn add_many(&mut self, form: Form, times: u64) {
        for (count, other) in self.0.iter_mut().zip(Form::ALL) {
            *count += if form == other { times } else { 0 };
        }
    }

    pub(crate) fn merge(&mut self, others: &Self) {
        self.0.iter_mut().zip(others.0).for_each(|(count, other)| *count += other);
    }

    fn found(&self) -> impl Iterator<Item = (Form, u64)> {
        Form::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// The one form that all times have.
    pub(crate) fn only(&self) -> Option<&'static str> {
        let mut found = self.found();
        found.next().filter(|_| found.next().is_none()).map(|(form, _)| form.title())
    }

    /// The forms with their counts, if there are several.
    pub(crate) fn mixed(&self) -> Option<String> {
        let each: Vec<String> =
            self.found().map(|(form, count)| format!("{count} as {}", form.title())).collect();
        (each.len() > 1).then(|| each.join(", "))
    }
}

/// Reads times as one section of the configuration says.
#[derive(Debug, Clone)]
pub(crate) struct TimeReader {
    format: TimeFormat,
    zone: Option<Tz>,
}

impl TimeReader {
    pub(crate) fn new(format: &TimeFormat, zone: Option<Zone>) -> Self {
        Self { format: format.clone(), zone: zone.map(|zone| zone.0) }
    }

    /// The instant in `value`, and how it is written; `None` if there is no value. `what` names the field in messages.
    pub(crate) fn read(&self, value: &Value<'_>, what: &str) -> Result<Option<(i64, Form)>, Rejection> {
        let reject = |reason, problem: &str| Err(Rejection::new(reason, format!("{what}{problem}")));
        match value {
            Value::Absent | Value::Null => Ok(None),
            // A typed column has a unit of its own.
            Value::Instant(ms) => Ok(Some((*ms, Form::Typed))),
            Value::OutOfRange => {
                reject(Reason::TimeOutOfRange, ": further from 1970 than 64-bit milliseconds reach")
            }
            Value::NotUtf8 => reject(Reason::InvalidUtf8, " is not UTF-8"),
            Value::Text(text) => self.text(text.trim(), what),
            Value::Int(_) | Value::Float(_) | Value::Single(_) | Value::Decimal(_) => match self.unit() {
                Some(unit) => number(value, unit, what),
                None => {
                    let problem = format!(": a number where the configured ts_format is {}", self.format);
                    reject(Reason::InvalidTime, &problem)
                }
            },
            other => reject(Reason::WrongType, &format!(" is {}, not a time", other.kind())),
        }
    }

    /// How numbers are read, if they are times.
    fn unit(&self) -> Option<Option<TimeUnit>> {
        match self.format {
            TimeFormat::Auto => Some(None),
            TimeFormat::Epoch(unit) => Some(Some(unit)),
            TimeFormat::Rfc3339 | TimeFormat::Iso | TimeFormat::Pattern(_) => None,
        }
    }

    fn text(&self, text: &str, what: &str) -> Result<Option<(i64, Form)>, Rejection> {
        let invalid = |expected: &str| {
            let message = format!("{what}: `{}` is not {expected}", shortened(text));
            Err(Rejection::new(Reason::InvalidTime, message))
        };
        if let Some(unit) = self.unit() {
            let value = match text.parse::<i64>() {
                Ok(ticks) => Some(Value::Int(ticks)),
                Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    Some(Value::Decimal(Cow::Borrowed(text)))
                }
                Err(_) => text.parse().ok().filter(|ticks: &f64| ticks.is_finite()).map(Value::Float),
            };
            if let Some(value) = value {
                return number(&value, unit, what);
            }
        }
        let local = match &self.format {
            TimeFormat::Epoch(_) => return invalid("a number"),
            TimeFormat::Rfc3339 => {
                return match DateTime::parse_from_rfc3339(text) {
                    Ok(time) => Ok(Some((time.timestamp_millis(), Form::Configured))),
                    Err(e) => invalid(&format!("an RFC 3339 time: {e}")),
                };
            }
            TimeFormat::Auto => match iso(text) {
                Some(local) => (local, Form::Iso),
                None => return invalid("a number or an ISO 8601 time; ts_format takes a pattern"),
            },
            TimeFormat::Iso => match iso(text) {
                Some(local) => (local, Form::Configured),
                None => return invalid("an ISO 8601 time"),
            },
            TimeFormat::Pattern(pattern) => match by_pattern(text, pattern) {
                Ok(local) => (local, Form::Configured),
                Err(e) => return invalid(&format!("a time of the form `{}`: {e}", self.format)),
            },
        };
        match local {
            (Local::At(ms), form) => Ok(Some((ms, form))),
            (Local::Naive(time), form) => Ok(Some((self.in_zone(time, what)?, form))),
        }
    }

    /// The instant at which the zone's clocks show `time`: of two, the earlier.
    fn in_zone(&self, time: NaiveDateTime, what: &str) -> Result<i64, Rejection> {
        let Some(zone) = self.zone else { return Ok(time.and_utc().timestamp_millis()) };
        match zone.from_local_datetime(&time) {
            LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Ok(time.timestamp_millis()),
            LocalResult::None => {
                let message = format!("{what}: clocks in {zone} skip {time}");
                Err(Rejection::new(Reason::InvalidTime, message))
            }
        }
    }
}

/// A date and, in a column of its own, the time of that day, as one time.
pub(crate) fn join<'a>(date: Value<'a>, time_of_day: Value<'_>, what: &str) -> Result<Value<'a>, Rejection> {
    match (date, time_of_day) {
        (date @ (Value::Absent | Value::Null), _) => Ok(date),
        (_, Value::Absent | Value::Null) => Ok(Value::Null),
        (Value::Text(date), Value::Text(time)) => {
            Ok(Value::Text(Cow::Owned(format!("{} {}", date.trim(), time.trim()))))
        }
        (date, time) => {
            let message = format!("{what}: {} and {} instead of two texts", date.kind(), time.kind());
            Err(Rejection::new(Reason::WrongType, message))
        }
    }
}

/// A time as text says it.
enum Local {
    /// Epoch milliseconds: the text names an offset.
    At(i64),
    Naive(NaiveDateTime),
}

impl Local {
    fn new(time: NaiveDateTime, offset: Option<FixedOffset>) -> Option<Self> {
        match offset {
            None => Some(Self::Naive(time)),
            Some(offset) => Some(Self::At(time.and_local_timezone(offset).single()?.timestamp_millis())),
        }
    }
}

/// A date, or a date and a time of day, with or without an offset.
fn iso(text: &str) -> Option<Local> {
    let (date, rest) = text.split_at_checked(10)?;
    if date.as_bytes()[4] != b'-' {
        return None;
    }
    let date: NaiveDate = date.parse().ok()?;
    let Some(rest) = rest.strip_prefix(['T', 't', ' ']) else {
        return rest.is_empty().then(|| Local::Naive(date.and_time(NaiveTime::MIN)));
    };
    let end = rest.find(|c: char| !matches!(c, '0'..='9' | ':' | '.')).unwrap_or(rest.len());
    let (time, offset) = rest.split_at(end);
    let time = NaiveTime::parse_from_str(time, "%H:%M:%S%.f")
        .or_else(|_| NaiveTime::parse_from_str(time, "%H:%M"))
        .ok()?;
    let offset = match offset.trim_start() {
        "" => None,
        "Z" | "z" | "UTC" => FixedOffset::east_opt(0),
        offset => Some(hours_and_minutes(offset)?),
    };
    Local::new(date.and_time(time), offset)
}

/// An offset such as `+01:00`, `+0100` or `+01`.
fn hours_and_minutes(text: &str) -> Option<FixedOffset> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (hours, minutes) = match digits.len() {
        2 => (digits, "0"),
        4 => digits.split_at_checked(2)?,
        _ => digits.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2)?,
    };
    let number = |digits: &str| digits.parse::<u8>().ok().map(i32::from);
    let (hours, minutes) = (number(hours)?, number(minutes).filter(|minutes| *minutes < 60)?);
    FixedOffset::east_opt(sign * (hours * 3_600 + minutes * 60))
}

fn by_pattern(text: &str, pattern: &Pattern) -> Result<Local, chrono::ParseError> {
    let mut parsed = Parsed::new();
    chrono::format::parse(&mut parsed, text, pattern.items().iter())?;
    let offset = parsed.to_fixed_offset().ok();
    // `%s` tells the instant.
    if parsed.timestamp().is_some() {
        return Ok(Local::At(parsed.to_naive_datetime_with_offset(0)?.and_utc().timestamp_millis()));
    }
    let date = parsed.to_naive_date()?;
    let has_hour = parsed.hour_div_12().is_some() || parsed.hour_mod_12().is_some();
    let time = if has_hour { parsed.to_naive_time()? } else { NaiveTime::MIN };
    Local::new(date.and_time(time), offset).map_or_else(
        // Fails: the error is that of a time that its offset puts out of range.
        || parsed.to_datetime().map(|time| Local::At(time.timestamp_millis())),
        Ok,
    )
}

/// A number since 1970, in `unit` or in the one that puts it where times are expected.
fn number(value: &Value<'_>, unit: Option<TimeUnit>, what: &str) -> Result<Option<(i64, Form)>, Rejection> {
    let unit_of = |ticks: f64| unit.unwrap_or_else(|| expected_unit(ticks));
    let (ticks, unit) = match value {
        Value::Int(ticks) => {
            let unit = unit_of(*ticks as f64);
            return Ok(Some((scaled(*ticks, unit, what)?, Form::Epoch(unit))));
        }
        Value::Decimal(digits) => {
            let unit = unit_of(digits.parse().unwrap_or(f64::INFINITY));
            return Ok(Some((decimal(digits, unit, what)?, Form::Epoch(unit))));
        }
        Value::Float(ticks) => (*ticks, unit_of(*ticks)),
        Value::Single(ticks) => (f64::from(*ticks), unit_of(f64::from(*ticks))),
        _ => return Ok(None),
    };
    // Data frames write a missing number as NaN.
    if ticks.is_nan() {
        return Ok(None);
    }
    let ms = match unit {
        TimeUnit::S => ticks * 1e3,
        TimeUnit::Ms => ticks,
        TimeUnit::Us => ticks / 1e3,
        TimeUnit::Ns => ticks / 1e6,
    };
    // A fraction such as 0.29 s is 289.99… ms in binary; a small addition before rounding down corrects this.
    let ms = (ms + 1e-3).floor();
    if ms.abs() < 9e18 {
        Ok(Some((ms as i64, Form::Epoch(unit))))
    } else {
        Err(Rejection::new(Reason::TimeOutOfRange, format!("{what}: {ticks} is out of range")))
    }
}

/// The unit in which a number lies between 1990 and 2100, which is never more than one; milliseconds if there is none.
fn expected_unit(ticks: f64) -> TimeUnit {
    /// The first seconds of 1990 and of 2100.
    const EXPECTED: std::ops::Range<f64> = 631_152_000.0..4_102_444_800.0;
    const PER_SECOND: [(TimeUnit, f64); 4] =
        [(TimeUnit::S, 1.0), (TimeUnit::Ms, 1e3), (TimeUnit::Us, 1e6), (TimeUnit::Ns, 1e9)];
    let unit = PER_SECOND.into_iter().find(|(_, per_second)| EXPECTED.contains(&(ticks / per_second)));
    unit.map_or(TimeUnit::Ms, |(unit, _)| unit)
}

fn scaled(ticks: i64, unit: TimeUnit, what: &str) -> Result<i64, Rejection> {
    let ms = match unit {
        TimeUnit::S => ticks.checked_mul(1_000),
        TimeUnit::Ms => Some(ticks),
        TimeUnit::Us => Some(ticks.div_euclid(1_000)),
        TimeUnit::Ns => Some(ticks.div_euclid(1_000_000)),
    };
    ms.ok_or_else(|| Rejection::new(Reason::TimeOutOfRange, format!("{what}: {ticks} is out of range")))
}

/// The time in a decimal number of any length.
fn decimal(digits: &str, unit: TimeUnit, what: &str) -> Result<i64, Rejection> {
    let out_of_range = || {
        let message = format!("{what}: {} is out of range", shortened(digits));
        Rejection::new(Reason::TimeOutOfRange, message)
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let places = match unit {
        TimeUnit::S => 3,
        TimeUnit::Ms => 0,
        TimeUnit::Us => -3,
        TimeUnit::Ns => -6,
    };
    let ticks: i128 = format!("{whole}{fraction}").parse().map_err(|_| out_of_range())?;
    let behind = places - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let power = 10i128.checked_pow(behind.unsigned_abs());
    let ms = match power {
        Some(power) if behind >= 0 => ticks.checked_mul(power),
        Some(power) => Some(ticks.div_euclid(power)),
        // More digits after the point than 128 bits can hold.
        None => Some(if ticks < 0 { -1 } else { 0 }),
    };
    ms.and_then(|ms| i64::try_from(ms).ok()).ok_or_else(out_of_range)
}

/// The beginning of a text, for messages.
pub(crate) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn read(value: &Value<'_>, format: impl Into<TimeFormat>) -> Result<Option<i64>, Reason> {
        let read = TimeReader::new(&format.into(), None).read(value, "ts");
        read.map(|read| read.map(|(ms, _)| ms)).map_err(|rejection| rejection.reason)
    }

    fn text(text: &str, format: impl Into<TimeFormat>) -> Result<Option<i64>, Reason> {
        read(&Value::Text(Cow::Borrowed(text)), format)
    }

    fn pattern(text: &str) -> TimeFormat {
        TimeFormat::try_from(text.to_owned()).unwrap()
    }

    const UTC_MS: i64 = 1_573_438_486_000;

    #[test]
    fn every_unit_comes_to_milliseconds_rounded_down() {
        assert_eq!(text("964982703", TimeUnit::S), Ok(Some(964_982_703_000)));
        assert_eq!(text(" 964982703.29 ", TimeUnit::S), Ok(Some(964_982_703_290)));
        assert_eq!(text("1.3e9", TimeUnit::S), Ok(Some(1_300_000_000_000)));
        assert_eq!(text("-1", TimeUnit::Us), Ok(Some(-1)));
        assert_eq!(text("1999999", TimeUnit::Ns), Ok(Some(1)));
        assert_eq!(text("1970-01-01T01:00:00.0019+01:00", TimeFormat::Rfc3339), Ok(Some(1)));
        assert_eq!(read(&Value::Float(2.0), TimeUnit::S), Ok(Some(2_000)));
        assert_eq!(read(&Value::Float(f64::NAN), TimeUnit::S), Ok(None));
        assert_eq!(read(&Value::Instant(5), TimeUnit::S), Ok(Some(5)));
        assert_eq!(read(&Value::Null, TimeUnit::S), Ok(None));
        assert_eq!(read(&Value::Single(2.5), TimeUnit::S), Ok(Some(2_500)));
    }

    #[test]
    fn decimals_are_read_to_the_last_digit() {
        let decimal = |text: &str, unit: TimeUnit| read(&Value::Decimal(text.into()), unit);
        assert_eq!(decimal("1700000000.999999", TimeUnit::S), Ok(Some(1_700_000_000_999)));
        assert_eq!(decimal("-0.0001", TimeUnit::S), Ok(Some(-1)));
        assert_eq!(decimal("1700000000123", TimeUnit::Ms), Ok(Some(1_700_000_000_123)));
        assert_eq!(decimal("10000000000000999999", TimeUnit::Ns), Ok(Some(10_000_000_000_000)));
        assert_eq!(decimal(&format!("0.{:0>60}", 1), TimeUnit::S), Ok(Some(0)));
        assert_eq!(decimal(&"9".repeat(60), TimeUnit::Ns), Err(Reason::TimeOutOfRange));
        assert_eq!(decimal("99999999999999999999", TimeUnit::S), Err(Reason::TimeOutOfRange));
        // A number that needs all 64 bits, unsigned.
        assert_eq!(text("10000000000000999999", TimeUnit::Ns), Ok(Some(10_000_000_000_000)));
        assert_eq!(read(&Value::OutOfRange, TimeUnit::S), Err(Reason::TimeOutOfRange));
    }

    #[test]
    fn what_is_no_time_has_a_reason() {
        assert_eq!(text("soon", TimeUnit::S), Err(Reason::InvalidTime));
        assert_eq!(text("inf", TimeUnit::S), Err(Reason::InvalidTime));
        assert_eq!(text("12:00", TimeFormat::Rfc3339), Err(Reason::InvalidTime));
        assert_eq!(text("9223372036854775807", TimeUnit::S), Err(Reason::TimeOutOfRange));
        assert_eq!(text("1e300", TimeUnit::Ms), Err(Reason::TimeOutOfRange));
        let reason = |value| read(&value, TimeUnit::Ms);
        assert_eq!(reason(Value::Bool(true)), Err(Reason::WrongType));
        assert_eq!(reason(Value::List(vec![])), Err(Reason::WrongType));
        assert_eq!(reason(Value::NotUtf8), Err(Reason::InvalidUtf8));
    }

    #[test]
    fn numbers_are_read_in_the_unit_that_puts_them_where_times_are() {
        let auto = |text: &str| {
            let reader = TimeReader::new(&TimeFormat::Auto, None);
            reader.read(&Value::Text(Cow::Borrowed(text)), "ts").map(Option::unwrap).map_err(|r| r.reason)
        };
        assert_eq!(auto("1573438486"), Ok((UTC_MS, Form::Epoch(TimeUnit::S))));
        assert_eq!(auto("1573438486.5"), Ok((UTC_MS + 500, Form::Epoch(TimeUnit::S))));
        assert_eq!(auto("8.7e8"), Ok((870_000_000_000, Form::Epoch(TimeUnit::S))));
        assert_eq!(auto("1573438486000"), Ok((UTC_MS, Form::Epoch(TimeUnit::Ms))));
        assert_eq!(auto("1573438486000999"), Ok((UTC_MS, Form::Epoch(TimeUnit::Us))));
        assert_eq!(auto("1573438486000999999"), Ok((UTC_MS, Form::Epoch(TimeUnit::Ns))));
        assert_eq!(auto("7"), Ok((7, Form::Epoch(TimeUnit::Ms))));
        assert_eq!(auto("-1573438486"), Ok((-1_573_438_486, Form::Epoch(TimeUnit::Ms))));
        assert_eq!(auto("2019-11-11 02:14:46"), Ok((UTC_MS, Form::Iso)));
        assert_eq!(auto("11/11/2019 2:14:46 AM"), Err(Reason::InvalidTime));
        assert_eq!(read(&Value::Decimal("1573438486.25".into()), TimeFormat::Auto), Ok(Some(UTC_MS + 250)));
    }

    #[test]
    fn iso_times_are_dates_with_or_without_a_time_and_an_offset() {
        let iso = |written: &str| text(written, TimeFormat::Iso);
        for same in [
            "2019-11-11T02:14:46Z",
            "2019-11-11 02:14:46",
            "2019-11-11t02:14:46.0009",
            "2019-11-11 02:14:46 UTC",
            "2019-11-11 03:14:46+01",
            "2019-11-11 03:14:46 +0100",
            "2019-11-10T21:44:46-04:30",
            " 2019-11-11T02:14:46.000 ",
        ] {
            assert_eq!(iso(same), Ok(Some(UTC_MS)), "{same}");
        }
        assert_eq!(iso("2019-11-11"), Ok(Some(UTC_MS - 8_086_000)));
        assert_eq!(iso("2019-11-11 02:14"), Ok(Some(UTC_MS - 46_000)));
        for wrong in [
            "2019-11-11 02",
            "2019-11-31",
            "11.11.2019",
            "2019-11-11 25:00",
            "2019-11-11 02:14:46 CET",
            "2019-11-11 02:14:46+1",
            "2019-11-11 02:14:46+01:60",
            "20191111",
            "1573438486",
            "",
            "２０１９-11",
        ] {
            assert_eq!(iso(wrong), Err(Reason::InvalidTime), "{wrong}");
        }
    }

    #[test]
    fn patterns_read_what_they_write() {
        assert_eq!(text("11/11/2019 2:14:46 AM", pattern("%m/%d/%Y %I:%M:%S %p")), Ok(Some(UTC_MS)));
        assert_eq!(text("11.11.19", pattern("%d.%m.%y")), Ok(Some(UTC_MS - 8_086_000)));
        assert_eq!(text("2019-11-11 03:14:46 +0100", pattern("%F %T %z")), Ok(Some(UTC_MS)));
        assert_eq!(text("@1573438486", pattern("@%s")), Ok(Some(UTC_MS)));
        assert_eq!(text("20191111021446", pattern("%Y%m%d%H%M%S")), Ok(Some(UTC_MS)));
        assert_eq!(text("13/13/2019", pattern("%m/%d/%Y")), Err(Reason::InvalidTime));
        assert_eq!(text("1573438486", pattern("%m/%d/%Y")), Err(Reason::InvalidTime));
        assert_eq!(read(&Value::Int(5), pattern("%m/%d/%Y")), Err(Reason::InvalidTime));
    }

    #[test]
    fn a_zone_repeats_and_skips_hours() {
        let zone = Zone::try_from("Europe/Berlin".to_owned()).unwrap();
        let reader = TimeReader::new(&TimeFormat::Auto, Some(zone));
        let at = |written: &str| {
            let read = reader.read(&Value::Text(Cow::Borrowed(written)), "ts");
            read.map(|read| read.unwrap().0).map_err(|r| r.message)
        };
        let utc = |written: &str| DateTime::parse_from_rfc3339(written).unwrap().timestamp_millis();
        assert_eq!(at("2026-07-01 12:00"), Ok(utc("2026-07-01T10:00:00Z")));
        assert_eq!(at("2026-01-01"), Ok(utc("2025-12-31T23:00:00Z")));
        // Of the repeated hour the first, in summer time.
        assert_eq!(at("2026-10-25 02:30"), Ok(utc("2026-10-25T00:30:00Z")));
        assert_eq!(
            at("2026-03-29 02:30"),
            Err("ts: clocks in Europe/Berlin skip 2026-03-29 02:30:00".into())
        );
        // An offset, and a number, are instants already.
        assert_eq!(at("2026-07-01 12:00Z"), Ok(utc("2026-07-01T12:00:00Z")));
        assert_eq!(at("1782907200"), Ok(utc("2026-07-01T12:00:00Z")));
    }

    #[test]
    fn a_date_and_a_time_of_day_are_one_time() {
        let text = |text: &'static str| Value::Text(Cow::Borrowed(text));
        assert_eq!(join(text("2019-11-11"), text(" 02:14:46"), "ts"), Ok(text("2019-11-11 02:14:46")));
        assert_eq!(join(text("2019-11-11"), Value::Null, "ts"), Ok(Value::Null));
        assert_eq!(join(Value::Null, text("02:14"), "ts"), Ok(Value::Null));
        assert!(join(Value::Int(5), text("02:14"), "ts").is_err());
    }
}
