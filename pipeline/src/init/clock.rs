//! Recognizes how a column writes its times. What two readings fit is a question, never a guess.

use std::collections::BTreeSet;

use schemas::config::{TimeFormat, TimeUnit};

use crate::records::{TimeReader, Value};

/// How a column writes its times.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Clock {
    /// One format reads them.
    Known(KnownClock),
    /// Several formats read them, as different times: the formats and an example.
    Ambiguous { formats: Vec<String>, example: String },
    /// No format reads them; the reason.
    Unknown(String),
}

/// A format that reads a column's times.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KnownClock {
    pub(super) format: TimeFormat,
    pub(super) evidence: String,
    /// Whether the times name no zone.
    pub(super) is_local: bool,
    /// Whether all times are whole days.
    pub(super) whole_days: bool,
    /// Share of the sample that the format reads.
    pub(super) share: f64,
}

/// Share of the values that a format must read: rarer failures become dead letters.
const SHARE_MIN: f64 = 0.99;
/// Different values that are looked at.
const VALUES_MAX: usize = 3_000;
/// Instants that are plausible: 1990 to 2100, in seconds.
const PLAUSIBLE_S: std::ops::Range<f64> = 631_152_000.0..4_102_444_800.0;
const DAY_MS: i64 = 86_400_000;

/// Recognizes the format of the times in `values`; `configured` is tried alone, if it is given.
pub(super) fn recognize<'v>(
    values: impl Iterator<Item = &'v Value<'static>>,
    configured: Option<&TimeFormat>,
) -> Clock {
    let values = different(values);
    if values.is_empty() {
        return Clock::Unknown("it has no value".into());
    }
    if let Some(format) = configured {
        let Reading { read, first_failure, .. } = Reading::of(&values, format);
        return match (read as f64) < SHARE_MIN * values.len() as f64 {
            true => Clock::Unknown(format!(
                "`{format}` does not read {} of {} values: {}",
                values.len() - read,
                values.len(),
                first_failure.unwrap_or_default()
            )),
            false => known(&values, format.clone(), format!("`{format}` as asked for")),
        };
    }
    if values.iter().all(|value| matches!(value, Value::Instant(_))) {
        return known(&values, TimeFormat::Auto, "the column's type says its times".into());
    }
    let numbers: Vec<f64> = values.iter().filter_map(number).collect();
    if numbers.len() as f64 >= SHARE_MIN * values.len() as f64 {
        return numeric(&values, &numbers);
    }
    for format in [TimeFormat::Iso, TimeFormat::Auto] {
        let reading = Reading::of(&values, &format);
        if reading.read as f64 >= SHARE_MIN * values.len() as f64 && reading.plausible {
            let what = if format == TimeFormat::Iso { "ISO 8601" } else { "numbers and ISO 8601" };
            return known(&values, format, format!("{} of {} values are {what}", reading.read, values.len()));
        }
    }
    by_patterns(&values)
}

/// Different values, lists taken apart.
fn different<'v>(values: impl Iterator<Item = &'v Value<'static>>) -> Vec<Value<'static>> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let mut add = |value: &Value<'static>| {
        let is_empty = matches!(value, Value::Absent | Value::Null)
            || matches!(value, Value::Text(text) if text.trim().is_empty())
            || matches!(value, Value::Float(number) if number.is_nan());
        if !is_empty && seen.insert(value.shown()) {
            found.push(value.clone());
        }
        found.len() < VALUES_MAX
    };
    for value in values {
        let goes_on = match value {
            Value::List(elements) => elements.iter().all(&mut add),
            value => add(value),
        };
        if !goes_on {
            break;
        }
    }
    found
}

fn number(value: &Value<'static>) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Single(number) => Some(f64::from(*number)),
        Value::Decimal(text) | Value::Text(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        _ => None,
    }
}

/// Times written as numbers: of one unit, or the digits of a date.
fn numeric(values: &[Value<'static>], numbers: &[f64]) -> Clock {
    for (digits, pattern) in [(8, "%Y%m%d"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")] {
        let is_date = |number: &f64| {
            let text = format!("{number:.0}");
            text.len() == digits
                && number.fract() == 0.0
                && (text.starts_with("19") || text.starts_with("20"))
        };
        if !numbers.iter().all(is_date) {
            continue;
        }
        let Ok(format) = TimeFormat::try_from(pattern.to_owned()) else { continue };
        let written: Vec<Value<'static>> =
            numbers.iter().map(|number| Value::Text(format!("{number:.0}").into())).collect();
        if Reading::of(&written, &format).read < written.len() {
            continue;
        }
        return match values.iter().all(|value| matches!(value, Value::Text(_))) {
            true => {
                known(values, format, format!("all {} values are {digits} digits of a date", values.len()))
            }
            false => Clock::Unknown(format!(
                "it writes dates as whole numbers such as {:.0}, which ts_format cannot read; write them as text",
                numbers[0]
            )),
        };
    }
    let (min, max) = range(numbers);
    for (unit, per_second) in
        [(TimeUnit::S, 1.0), (TimeUnit::Ms, 1e3), (TimeUnit::Us, 1e6), (TimeUnit::Ns, 1e9)]
    {
        let plausible =
            numbers.iter().filter(|number| PLAUSIBLE_S.contains(&(**number / per_second))).count();
        if plausible as f64 >= SHARE_MIN * numbers.len() as f64 {
            let evidence =
                format!("numbers from {min} to {max} lie between 1990 and 2100 as {}", unit.name());
            return known(values, TimeFormat::Epoch(unit), evidence);
        }
    }
    Clock::Unknown(format!("its numbers from {min} to {max} are no times since 1970 in s, ms, us or ns"))
}

fn range(numbers: &[f64]) -> (f64, f64) {
    numbers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), &n| (min.min(n), max.max(n)))
}

/// The patterns of dates and of times of day that are tried.
const DATES: [&str; 21] = [
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d.%m.%Y",
    "%m.%d.%Y",
    "%Y/%m/%d",
    "%Y-%m-%d",
    "%Y.%m.%d",
    "%Y%m%d",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y",
    "%m %d, %Y",
    "%d %b %Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%a, %d %b %Y",
    "%A, %B %d, %Y",
];
const TIMES: [&str; 12] = [
    "",
    " %H:%M:%S",
    " %H:%M",
    " %I:%M:%S %p",
    " %I:%M %p",
    "T%H:%M:%S",
    " %H:%M:%S%.f",
    ", %H:%M:%S",
    ", %I:%M:%S %p",
    " %H:%M:%S %z",
    " %I:%M%p",
    ", %I:%M %p",
];
const OTHERS: [&str; 3] = ["%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %Y"];

fn by_patterns(values: &[Value<'static>]) -> Clock {
    let few = &values[..values.len().min(100)];
    let texts = DATES.iter().flat_map(|date| TIMES.iter().map(move |time| format!("{date}{time}")));
    let formats = texts.chain(OTHERS.map(str::to_owned)).filter_map(|text| TimeFormat::try_from(text).ok());
    let fits = |reading: &Reading, len: usize| reading.read as f64 >= 0.95 * len as f64 && reading.plausible;
    let mut found: Vec<(TimeFormat, Reading)> = Vec::new();
    for format in formats {
        if fits(&Reading::of(few, &format), few.len()) {
            let reading = Reading::of(values, &format);
            if reading.read as f64 >= SHARE_MIN * values.len() as f64 && reading.plausible {
                found.push((format, reading));
            }
        }
    }
    let most = found.iter().map(|(_, reading)| reading.read).max().unwrap_or(0);
    found.retain(|(_, reading)| reading.read == most);
    let Some((format, reading)) = found.first() else {
        let example = values[0].shown();
        return Clock::Unknown(format!(
            "its values, such as `{example}`, are no numbers, ISO 8601 or common dates"
        ));
    };
    // Two orders of day and month may agree in the sample and differ in the rest.
    let others = found[1..]
        .iter()
        .filter(|(other, others)| others.instants != reading.instants || order(other) != order(format));
    let others: Vec<&TimeFormat> = others.map(|(format, _)| format).collect();
    if others.is_empty() {
        let evidence =
            format!("{most} of {} values have this form, and no other reads them otherwise", values.len());
        return known(values, format.clone(), evidence);
    }
    let formats = std::iter::once(format).chain(others).map(ToString::to_string).collect();
    Clock::Ambiguous { formats, example: values[0].shown() }
}

/// The order of year, month and day in a pattern.
fn order(format: &TimeFormat) -> String {
    let text = format.to_string();
    let letters = text.split('%').skip(1).filter_map(|part| part.chars().next());
    letters.map(|c| if matches!(c, 'b' | 'B') { 'm' } else { c }).filter(|c| "dmYy".contains(*c)).collect()
}

/// What a format makes of values.
struct Reading {
    read: usize,
    instants: Vec<Option<i64>>,
    /// Whether all instants lie between 1990 and 2100.
    plausible: bool,
    first_failure: Option<String>,
}

impl Reading {
    fn of(values: &[Value<'static>], format: &TimeFormat) -> Self {
        let reader = TimeReader::new(format, None);
        let mut first_failure = None;
        let instants: Vec<Option<i64>> = values
            .iter()
            .map(|value| match reader.read(value, "it") {
                Ok(read) => read.map(|(ms, _)| ms),
                Err(rejection) => {
                    first_failure.get_or_insert(rejection.message);
                    None
                }
            })
            .collect();
        let found = || instants.iter().flatten();
        let plausible = found().all(|&ms| PLAUSIBLE_S.contains(&(ms as f64 / 1e3)));
        Self { read: found().count(), plausible, first_failure, instants }
    }
}

fn known(values: &[Value<'static>], format: TimeFormat, evidence: String) -> Clock {
    let reading = Reading::of(values, &format);
    let names_zone = |value: &Value<'static>| match value {
        Value::Text(text) => {
            let time = text.trim().get(10..).unwrap_or("");
            time.ends_with(['Z', 'z']) || time.contains(['+', '-']) || time.contains("UTC")
        }
        _ => true,
    };
    let is_local = match &format {
        TimeFormat::Epoch(_) | TimeFormat::Rfc3339 => false,
        TimeFormat::Pattern(_) => !["%z", "%s", "%:z"].iter().any(|zone| format.to_string().contains(zone)),
        TimeFormat::Auto | TimeFormat::Iso => {
            values.iter().any(|value| number(value).is_none() && !names_zone(value))
        }
    };
    let whole_days = reading.instants.iter().flatten().all(|ms| ms % DAY_MS == 0);
    let share = reading.read as f64 / values.len() as f64;
    Clock::Known(KnownClock { format, evidence, is_local, whole_days, share })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(values: &[&'static str]) -> Clock {
        let values: Vec<Value<'static>> = values.iter().map(|text| Value::from(*text)).collect();
        recognize(values.iter(), None)
    }

    fn format(values: &[&'static str]) -> String {
        match clock(values) {
            Clock::Known(known) => known.format.to_string(),
            other => panic!("{values:?}: {other:?}"),
        }
    }

    #[test]
    fn formats_are_told_by_values() {
        assert_eq!(format(&["1700000000", "1700000001"]), "s");
        assert_eq!(format(&["1700000000000"]), "ms");
        assert_eq!(format(&["1700000000.5"]), "s");
        assert_eq!(format(&["2019-11-11 10:00:00", "2019-11-12"]), "iso");
        assert_eq!(format(&["11/13/2019 9:05:58 AM", "11/11/2019 12:05:58 PM"]), "%m/%d/%Y %I:%M:%S %p");
        assert_eq!(format(&["13.11.2019 19:05"]), "%d.%m.%Y %H:%M");
        assert_eq!(format(&["09 13, 2009", "10 2, 2011"]), "%m %d, %Y");
        assert_eq!(format(&["20220408", "20220531"]), "%Y%m%d");
        assert_eq!(format(&["Wed Oct 12 20:01:00 +0000 2016"]), "%a %b %d %H:%M:%S %z %Y");
        assert_eq!(format(&["25/12/19"]), "%d/%m/%y");
    }

    #[test]
    fn what_two_orders_fit_is_no_answer() {
        // The same day by either order, but perhaps not in the rest of the file.
        assert!(matches!(clock(&["11/11/2019"]), Clock::Ambiguous { .. }));
        match clock(&["11/12/2019", "01/02/2019"]) {
            Clock::Ambiguous { formats, .. } => assert_eq!(formats, ["%d/%m/%Y", "%m/%d/%Y"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_without_a_unit_are_no_times() {
        for values in [["5", "900000"], ["20190131", "20191399"], ["one", "two"]] {
            assert!(matches!(clock(&values), Clock::Unknown(_)), "{values:?}");
        }
        let dates = [Value::Int(20_220_408)];
        assert!(matches!(recognize(dates.iter(), None), Clock::Unknown(why) if why.contains("as text")));
    }

    #[test]
    fn zones_and_days_are_noticed() {
        let Clock::Known(days) = clock(&["1318896000", "1318982400"]) else { panic!() };
        assert!(days.whole_days && !days.is_local);
        let Clock::Known(local) = clock(&["2019-11-11 10:00:00"]) else { panic!() };
        assert!(local.is_local && !local.whole_days);
        let Clock::Known(zoned) = clock(&["2019-11-11T10:00:00Z"]) else { panic!() };
        assert!(!zoned.is_local);
    }
}
