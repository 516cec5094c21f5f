//! Converts times of any unit to epoch milliseconds, rounded down.

use chrono::DateTime;
use schemas::config::TimeUnit;
use schemas::tables::Reason;

use super::value::{Rejection, Value};

/// The instant in `value`; `None` if there is no value. `what` names the field in messages.
pub(crate) fn parse(value: &Value<'_>, unit: TimeUnit, what: &str) -> Result<Option<i64>, Rejection> {
    let invalid = |problem: String| Err(Rejection::new(Reason::InvalidTime, format!("{what}: {problem}")));
    let ticks = match (value, unit) {
        (Value::Absent | Value::Null, _) => return Ok(None),
        // A typed column has a unit of its own.
        (Value::Instant(ms), _) => return Ok(Some(*ms)),
        (Value::OutOfRange, _) => {
            let message = format!("{what}: further from 1970 than 64-bit milliseconds reach");
            return Err(Rejection::new(Reason::TimeOutOfRange, message));
        }
        (Value::NotUtf8, _) => {
            return Err(Rejection::new(Reason::InvalidUtf8, format!("{what} is not UTF-8")));
        }
        (Value::Text(text), TimeUnit::Rfc3339) => {
            return match DateTime::parse_from_rfc3339(text.trim()) {
                Ok(time) => Ok(Some(time.timestamp_millis())),
                Err(e) => invalid(format!("`{}` is not an RFC 3339 time: {e}", shortened(text))),
            };
        }
        (Value::Int(_) | Value::Float(_) | Value::Single(_) | Value::Decimal(_), TimeUnit::Rfc3339) => {
            return invalid("a number where the configured ts_unit is rfc3339".into());
        }
        (Value::Int(ticks), _) => return scaled(*ticks, unit, what).map(Some),
        (Value::Float(ticks), _) => *ticks,
        (Value::Single(ticks), _) => f64::from(*ticks),
        (Value::Decimal(digits), _) => return decimal(digits, unit, what).map(Some),
        (Value::Text(text), _) => {
            let text = text.trim();
            if let Ok(ticks) = text.parse::<i64>() {
                return scaled(ticks, unit, what).map(Some);
            }
            if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
                return decimal(text, unit, what).map(Some);
            }
            match text.parse::<f64>() {
                Ok(ticks) if ticks.is_finite() => ticks,
                _ => return invalid(format!("`{}` is not a number", shortened(text))),
            }
        }
        (other, _) => {
            let message = format!("{what} is {}, not a time", other.kind());
            return Err(Rejection::new(Reason::WrongType, message));
        }
    };
    // Data frames write a missing number as NaN.
    if ticks.is_nan() {
        return Ok(None);
    }
    let ms = match unit {
        TimeUnit::S => ticks * 1e3,
        TimeUnit::Ms | TimeUnit::Rfc3339 => ticks,
        TimeUnit::Us => ticks / 1e3,
        TimeUnit::Ns => ticks / 1e6,
    };
    // A fraction such as 0.29 s is 289.99… ms in binary; a small addition before rounding down corrects this.
    let ms = (ms + 1e-3).floor();
    if ms.abs() < 9e18 {
        Ok(Some(ms as i64))
    } else {
        Err(Rejection::new(Reason::TimeOutOfRange, format!("{what}: {ticks} is out of range")))
    }
}

fn scaled(ticks: i64, unit: TimeUnit, what: &str) -> Result<i64, Rejection> {
    let ms = match unit {
        TimeUnit::S => ticks.checked_mul(1_000),
        TimeUnit::Ms | TimeUnit::Rfc3339 => Some(ticks),
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
        TimeUnit::Ms | TimeUnit::Rfc3339 => 0,
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

    fn text(text: &str, unit: TimeUnit) -> Result<Option<i64>, Reason> {
        parse(&Value::Text(Cow::Borrowed(text)), unit, "ts").map_err(|r| r.reason)
    }

    #[test]
    fn every_unit_comes_to_milliseconds_rounded_down() {
        assert_eq!(text("964982703", TimeUnit::S), Ok(Some(964_982_703_000)));
        assert_eq!(text(" 964982703.29 ", TimeUnit::S), Ok(Some(964_982_703_290)));
        assert_eq!(text("1.3e9", TimeUnit::S), Ok(Some(1_300_000_000_000)));
        assert_eq!(text("-1", TimeUnit::Us), Ok(Some(-1)));
        assert_eq!(text("1999999", TimeUnit::Ns), Ok(Some(1)));
        assert_eq!(text("1970-01-01T01:00:00.0019+01:00", TimeUnit::Rfc3339), Ok(Some(1)));
        assert_eq!(parse(&Value::Float(2.0), TimeUnit::S, "ts"), Ok(Some(2_000)));
        assert_eq!(parse(&Value::Float(f64::NAN), TimeUnit::S, "ts"), Ok(None));
        assert_eq!(parse(&Value::Instant(5), TimeUnit::S, "ts"), Ok(Some(5)));
        assert_eq!(parse(&Value::Null, TimeUnit::S, "ts"), Ok(None));
        assert_eq!(parse(&Value::Single(2.5), TimeUnit::S, "ts"), Ok(Some(2_500)));
    }

    #[test]
    fn decimals_are_read_to_the_last_digit() {
        let decimal =
            |text: &str, unit| parse(&Value::Decimal(text.into()), unit, "ts").map_err(|r| r.reason);
        assert_eq!(decimal("1700000000.999999", TimeUnit::S), Ok(Some(1_700_000_000_999)));
        assert_eq!(decimal("-0.0001", TimeUnit::S), Ok(Some(-1)));
        assert_eq!(decimal("1700000000123", TimeUnit::Ms), Ok(Some(1_700_000_000_123)));
        assert_eq!(decimal("10000000000000999999", TimeUnit::Ns), Ok(Some(10_000_000_000_000)));
        assert_eq!(decimal(&format!("0.{:0>60}", 1), TimeUnit::S), Ok(Some(0)));
        assert_eq!(decimal(&"9".repeat(60), TimeUnit::Ns), Err(Reason::TimeOutOfRange));
        assert_eq!(decimal("99999999999999999999", TimeUnit::S), Err(Reason::TimeOutOfRange));
        // A number that needs all 64 bits, unsigned.
        assert_eq!(text("10000000000000999999", TimeUnit::Ns), Ok(Some(10_000_000_000_000)));
        assert_eq!(parse(&Value::OutOfRange, TimeUnit::S, "ts").unwrap_err().reason, Reason::TimeOutOfRange);
    }

    #[test]
    fn what_is_no_time_has_a_reason() {
        assert_eq!(text("soon", TimeUnit::S), Err(Reason::InvalidTime));
        assert_eq!(text("inf", TimeUnit::S), Err(Reason::InvalidTime));
        assert_eq!(text("12:00", TimeUnit::Rfc3339), Err(Reason::InvalidTime));
        assert_eq!(text("9223372036854775807", TimeUnit::S), Err(Reason::TimeOutOfRange));
        assert_eq!(text("1e300", TimeUnit::Ms), Err(Reason::TimeOutOfRange));
        let reason = |value| parse(&value, TimeUnit::Ms, "ts").map_err(|r| r.reason);
        assert_eq!(reason(Value::Bool(true)), Err(Reason::WrongType));
        assert_eq!(reason(Value::List(vec![])), Err(Reason::WrongType));
        assert_eq!(reason(Value::NotUtf8), Err(Reason::InvalidUtf8));
    }
}
