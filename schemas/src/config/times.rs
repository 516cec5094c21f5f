//! `ts_format` and `ts_zone`: how a source writes its times.

use std::fmt;
use std::str::FromStr;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// Unit of a number that counts from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

impl TimeUnit {
    /// Every unit.
    pub const ALL: [Self; 4] = [Self::S, Self::Ms, Self::Us, Self::Ns];

    /// Returns the name as configured.
    pub fn name(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::Ms => "ms",
            Self::Us => "us",
            Self::Ns => "ns",
        }
    }
}

/// How times are written. Columns with a type for times need none: they are read by their type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TimeFormat {
    /// Recognized value by value: a number in the unit that puts it between 1990 and 2100 (milliseconds if none does), and text
    /// as a number or as [`Self::Iso`].
    #[default]
    Auto,
    /// Numbers that count from 1970.
    Epoch(TimeUnit),
    /// Text with an offset, such as `2026-11-22T08:30:00Z`.
    Rfc3339,
    /// Text such as `2026-11-22T08:30:00`, `2026-11-22 08:30:00.5`, `2026-11-22 08:30+01:00` or `2026-11-22`.
    Iso,
    /// Text by a pattern of `strftime`.
    Pattern(Pattern),
}

/// A pattern of `strftime` that tells at least the day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    items: Vec<Item<'static>>,
}

impl Pattern {
    /// Its parts.
    pub fn items(&self) -> &[Item<'static>] {
        &self.items
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let items = StrftimeItems::new(text).parse_to_owned();
        let items = items.map_err(|_| format!("`{text}` has a `%` that strftime does not know"))?;
        // What a pattern writes it must be able to read, with the day and, if there is a time of day, the minute.
        let example = NaiveDate::from_ymd_opt(2001, 2, 3).and_then(|day| day.and_hms_opt(16, 5, 6));
        let example = example.unwrap_or_default().and_utc();
        let written = example.format_with_items(items.iter()).to_string();
        let midnight = example.with_time(NaiveTime::MIN).single().unwrap_or_default();
        let has_time = written != midnight.format_with_items(items.iter()).to_string();
        let day = NaiveDate::parse_from_str(&written, text).ok().filter(|_| !has_time);
        let time = NaiveDateTime::parse_from_str(&written, text).ok().map(|time| time.date());
        let instant = DateTime::parse_from_str(&written, text).ok().map(|time| time.date_naive());
        if ![day, time, instant].contains(&Some(example.date_naive())) {
            return Err(format!("`{text}` does not tell the day, or not the minute of an hour"));
        }
        Ok(Self { text: text.into(), items })
    }
}

impl TryFrom<String> for TimeFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "rfc3339" => Ok(Self::Rfc3339),
            "iso" => Ok(Self::Iso),
            pattern if pattern.contains('%') => pattern.parse().map(Self::Pattern),
            name => match TimeUnit::ALL.into_iter().find(|unit| unit.name() == name) {
                Some(unit) => Ok(Self::Epoch(unit)),
                None => Err(format!(
                    "`{name}` is no format of times; auto, s, ms, us, ns, iso, rfc3339, or a pattern such as `%d/%m/%Y %H:%M`"
                )),
            },
        }
    }
}

impl From<TimeUnit> for TimeFormat {
    fn from(unit: TimeUnit) -> Self {
        Self::Epoch(unit)
    }
}

impl From<TimeFormat> for String {
    fn from(format: TimeFormat) -> Self {
        format.to_string()
    }
}

impl fmt::Display for TimeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Epoch(unit) => unit.name(),
            Self::Rfc3339 => "rfc3339",
            Self::Iso => "iso",
            Self::Pattern(pattern) => &pattern.text,
        })
    }
}

/// A zone of the time-zone database, such as `Europe/Berlin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(pub Tz);

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.parse() {
            Ok(zone) => Ok(Self(zone)),
            Err(_) => Err(format!("`{name}` is no time zone; one is named like `Europe/Berlin` or `UTC`")),
        }
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0.name().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(text: &str) -> Result<TimeFormat, String> {
        TimeFormat::try_from(text.to_owned())
    }

    #[test]
    fn a_format_is_written_as_it_was_read() {
        for text in
            ["auto", "s", "ms", "us", "ns", "iso", "rfc3339", "%m/%d/%Y %I:%M:%S %p", "%s", "%d.%m.%y"]
        {
            assert_eq!(format(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_pattern_tells_the_day() {
        for text in ["%Q", "%H:%M", "%m/%d", "%Y-%m-%d %H", "hours", "%Y-%m-%d %"] {
            assert!(format(text).is_err(), "{text}");
        }
        assert!(format("%Y-%j %H:%M %z").is_ok());
        assert!(format("minutes").unwrap_err().contains("auto, s, ms"));
    }

    #[test]
    fn zones_are_named() {
        assert_eq!(String::from(Zone::try_from("Europe/Berlin".to_owned()).unwrap()), "Europe/Berlin");
        assert!(Zone::try_from("Berlin".to_owned()).is_err());
    }
}
