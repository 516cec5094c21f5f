//! Writes a row as JSON with all its content; rejected rows are kept in this form.
//!
//! | type | written as |
//! |---|---|
//! | numbers, booleans | themselves; `"NaN"`, `"inf"` and `"-inf"`, which JSON does not have, as text |
//! | decimals | text with all digits; in columns that events are made of as events have them: 7.00 is `7` |
//! | text | text, with its bytes as they came even where they are not UTF-8 |
//! | other bytes | text where they are UTF-8, otherwise `{"hex": "…"}` |
//! | times, dates, UUIDs | text in ISO 8601, with every digit; text in hexadecimal |
//! | lists, structs | arrays, objects |
//! | maps | objects where the keys are text, otherwise arrays of `{"key": …, "value": …}` |
//!
//! Memory: no more of a row than a record may have.

use std::fmt::{Arguments, Write as _};

use chrono::{DateTime, NaiveTime};

use super::cells::{Cells, Leaf, MS_PER_DAY, decimal};
use super::meaning::{Meaning, Ticks};

/// A JSON text of at most a given length.
pub(in crate::source::formats) struct JsonWriter {
    bytes: Vec<u8>,
    limit: usize,
    /// Whether decimals are written as events have them.
    as_read: bool,
}

impl std::fmt::Write for JsonWriter {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

impl JsonWriter {
    /// The row as an object, truncated to `limit` bytes. `wanted` columns write decimals as events do, so that an id has the same
    /// text in both; other columns write all digits.
    pub(in crate::source::formats) fn row(
        names: &[String],
        wanted: &[bool],
        columns: &[Cells],
        row: usize,
        limit: usize,
    ) -> Vec<u8> {
        let mut json = Self { bytes: Vec::new(), limit, as_read: false };
        let fields = names.iter().zip(wanted).zip(columns);
        json.fields(fields.map(|((name, &wanted), cells)| (name.as_bytes(), cells, wanted)), row);
        json.bytes
    }

    fn put(&mut self, bytes: &[u8]) {
        let room = self.limit - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn print(&mut self, text: Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.write_fmt(text);
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= self.limit
    }

    fn object<'a>(&mut self, fields: impl Iterator<Item = (&'a [u8], &'a Cells)>, row: usize) {
        let as_read = self.as_read;
        self.fields(fields.map(|(name, cells)| (name, cells, as_read)), row);
    }

    fn fields<'a>(&mut self, fields: impl Iterator<Item = (&'a [u8], &'a Cells, bool)>, row: usize) {
        self.put(b"{");
        for (at, (name, cells, as_read)) in fields.enumerate() {
            if self.is_full() {
                return;
            }
            self.put(if at > 0 { b"," } else { b"" });
            self.text(name);
            self.put(b":");
            self.as_read = as_read;
            self.cell(cells, row);
        }
        self.put(b"}");
    }

    fn cell(&mut self, cells: &Cells, row: usize) {
        if cells.is_null(row) {
            return self.put(b"null");
        }
        match cells {
            Cells::Leaf(meaning, leaf) => self.leaf(meaning, leaf, row),
            Cells::List(lists, elements) => {
                let range = Cells::range(lists.value_offsets(), row);
                self.array(range, |json, at| json.cell(elements, at));
            }
            Cells::Struct(_, fields) => {
                self.object(fields.iter().map(|(name, field)| (name.as_bytes(), field)), row);
            }
            Cells::Map(maps, of) => {
                let range = Cells::range(maps.value_offsets(), row);
                match &of.0 {
                    Cells::Leaf(Meaning::Text, keys) => {
                        self.put(b"{");
                        for (at, entry) in range.enumerate() {
                            if self.is_full() {
                                return;
                            }
                            self.put(if at > 0 { b"," } else { b"" });
                            self.text(keys.bytes(entry).unwrap_or_default());
                            self.put(b":");
                            self.cell(&of.1, entry);
                        }
                        self.put(b"}");
                    }
                    keys => self.array(range, |json, at| {
                        json.object([(&b"key"[..], keys), (&b"value"[..], &of.1)].into_iter(), at);
                    }),
                }
            }
        }
    }

    fn array(&mut self, range: std::ops::Range<usize>, mut element: impl FnMut(&mut Self, usize)) {
        self.put(b"[");
        for (at, row) in range.enumerate() {
            if self.is_full() {
                return;
            }
            self.put(if at > 0 { b"," } else { b"" });
            element(self, row);
        }
        self.put(b"]");
    }

    fn leaf(&mut self, meaning: &Meaning, leaf: &Leaf, row: usize) {
        let done = match meaning {
            Meaning::Decimal(scale) => leaf
                .digits(row)
                .map(|digits| self.print(format_args!("\"{}\"", decimal(&digits, *scale, self.as_read)))),
            Meaning::Unsigned => leaf.unsigned(row).map(|number| self.print(format_args!("{number}"))),
            Meaning::Half => {
                leaf.half(row).map(|number| self.float(f64::from(number), format_args!("{number:?}")))
            }
            Meaning::Text => leaf.bytes(row).map(|bytes| self.text(bytes)),
            Meaning::Uuid => leaf.uuid(row).map(|uuid| self.print(format_args!("\"{uuid}\""))),
            Meaning::Date => leaf.int(row).map(|days| self.date(days)),
            Meaning::Instant(ticks, utc) => {
                leaf.int(row).map(|value| self.instant(i128::from(value), *ticks, *utc))
            }
            Meaning::Int96 => leaf.int96(row).map(|nanos| self.instant(nanos, Ticks::Nano, false)),
            Meaning::TimeOfDay(ticks) => leaf.int(row).map(|value| self.time_of_day(value, *ticks)),
            Meaning::Duration(ticks) => {
                leaf.int(row).map(|value| self.print(format_args!("\"{value} {}\"", ticks.name())))
            }
            Meaning::Interval => leaf.bytes(row).and_then(|bytes| self.interval(bytes)),
            Meaning::Boolean | Meaning::Signed | Meaning::Float | Meaning::Bytes | Meaning::Unknown => None,
        };
        if done.is_none() {
            self.physical(leaf, row);
        }
    }

    /// A value by its physical type.
    fn physical(&mut self, leaf: &Leaf, row: usize) {
        match leaf {
            Leaf::Bool(array) => self.print(format_args!("{}", array.value(row))),
            Leaf::F32(array) => {
                let number = array.value(row);
                self.float(f64::from(number), format_args!("{number:?}"));
            }
            Leaf::F64(array) => self.float(array.value(row), format_args!("{:?}", array.value(row))),
            Leaf::I32(array) => self.print(format_args!("{}", array.value(row))),
            Leaf::I64(array) => self.print(format_args!("{}", array.value(row))),
            Leaf::Bytes(_) | Leaf::Fixed(_) => {
                let bytes = leaf.bytes(row).unwrap_or_default();
                if std::str::from_utf8(bytes).is_ok() {
                    return self.text(bytes);
                }
                self.put(b"{\"hex\":\"");
                for byte in bytes {
                    if self.is_full() {
                        return;
                    }
                    self.print(format_args!("{byte:02x}"));
                }
                self.put(b"\"}");
            }
        }
    }

    /// A number as `written`, or as text if JSON cannot express it.
    fn float(&mut self, number: f64, written: Arguments<'_>) {
        if number.is_finite() { self.print(written) } else { self.print(format_args!("\"{number}\"")) }
    }

    /// Text in quotes; bytes that are not UTF-8 are kept as they are.
    fn text(&mut self, bytes: &[u8]) {
        self.put(b"\"");
        let mut from = 0;
        let room = (self.limit - self.bytes.len()).min(bytes.len());
        for (at, &byte) in bytes[..room].iter().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            self.put(&bytes[from..at]);
            from = at + 1;
            match byte {
                b'"' => self.put(b"\\\""),
                b'\\' => self.put(b"\\\\"),
                b'\n' => self.put(b"\\n"),
                b'\r' => self.put(b"\\r"),
                b'\t' => self.put(b"\\t"),
                byte => self.print(format_args!("\\u{byte:04x}")),
            }
        }
        self.put(&bytes[from..]);
        self.put(b"\"");
    }

    fn date(&mut self, days: i64) {
        let date = i32::try_from(days).ok().and_then(chrono::NaiveDate::from_epoch_days);
        match date {
            Some(date) => self.print(format_args!("\"{date}\"")),
            None => self.print(format_args!("\"{days} days since 1970-01-01\"")),
        }
    }

    fn instant(&mut self, value: i128, ticks: Ticks, utc: bool) {
        let per_second = i128::from(ticks.per_second());
        let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
        let time = i64::try_from(value.div_euclid(per_second))
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?));
        match time {
            Some(time) => {
                let zone = if utc { "Z" } else { "" };
                self.print(format_args!("\"{}{zone}\"", time.naive_utc().format("%Y-%m-%dT%H:%M:%S%.f")));
            }
            None => self.print(format_args!("\"{value} {} since 1970-01-01\"", ticks.name())),
        }
    }

    fn time_of_day(&mut self, value: i64, ticks: Ticks) {
        let nanos = i128::from(value) * i128::from(1_000_000_000 / ticks.per_second());
        let seconds = u32::try_from(nanos.div_euclid(1_000_000_000)).ok();
        let nanos = nanos.rem_euclid(1_000_000_000) as u32;
        match seconds.and_then(|seconds| NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos)) {
            Some(time) if i64::from(seconds.unwrap_or(u32::MAX)) < MS_PER_DAY / 1_000 => {
                self.print(format_args!("\"{}\"", time.format("%H:%M:%S%.f")));
            }
            _ => self.print(format_args!("\"{value} {} since midnight\"", ticks.name())),
        }
    }

    fn interval(&mut self, bytes: &[u8]) -> Option<()> {
        let (parts, _) = bytes.as_chunks::<4>();
        let [months, days, ms] = parts else { return None };
        let [months, days, ms] = [months, days, ms].map(|part| u32::from_le_bytes(*part));
        self.print(format_args!("{{\"months\":{months},\"days\":{days},\"ms\":{ms}}}"));
        Some(())
    }
}
