//! Records as CSV and JSON Lines, plain or packed.

use std::fs::File;
use std::io::{self, Write};

use flate2::write::GzEncoder;
use schemas::tables::Reason;

use crate::day::LogRecord;
use crate::{Compression, OUT_OF_RANGE_MS, OVER_LONG_BYTES};

/// Approximate bytes of a write to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// The text format of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Csv,
    Jsonl,
}

/// A file of lines. Memory: its buffer, and the compressor's.
pub(crate) struct LineWriter {
    syntax: Syntax,
    buffer: Vec<u8>,
    out: Packer,
}

enum Packer {
    Plain(File),
    Gzip(GzEncoder<File>),
    Zstd(zstd::Encoder<'static, File>),
}

impl Packer {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }
}

impl LineWriter {
    pub(crate) fn create(file: File, syntax: Syntax, compression: Compression) -> io::Result<Self> {
        let out = match compression {
            Compression::None => Packer::Plain(file),
            Compression::Gzip => Packer::Gzip(GzEncoder::new(file, flate2::Compression::fast())),
            Compression::Zstd => Packer::Zstd(zstd::Encoder::new(file, 1)?),
        };
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + 2 * OVER_LONG_BYTES);
        if syntax == Syntax::Csv {
            buffer.extend_from_slice(b"event_id,user_id,item_id,ts,request_id,request_ts,action,value\n");
        }
        Ok(Self { syntax, buffer, out })
    }

    pub(crate) fn write(&mut self, record: &LogRecord) -> io::Result<()> {
        match self.syntax {
            Syntax::Csv => csv(&mut self.buffer, record),
            Syntax::Jsonl => json(&mut self.buffer, record),
        }
        if self.buffer.len() >= BUFFER_BYTES {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        match self.out {
            Packer::Plain(_) => Ok(()),
            Packer::Gzip(out) => out.finish().map(drop),
            Packer::Zstd(out) => out.finish().map(drop),
        }
    }
}

/// Appends a record as JSON. No value needs escaping: ids are letters and digits.
pub(crate) fn json(line: &mut Vec<u8>, LogRecord { event, flaw, .. }: &LogRecord) {
    line.extend_from_slice(b"{\"event_id\":\"");
    hexadecimal(line, event.id);
    match flaw {
        Some(Reason::MissingField) => line.extend_from_slice(b"\",\"user_id\":null,\"item_id\":\""),
        Some(Reason::TooLong) => {
            line.extend_from_slice(b"\",\"user_id\":\"");
            line.resize(line.len() + OVER_LONG_BYTES, b'u');
            line.extend_from_slice(b"\",\"item_id\":\"");
        }
        _ => {
            line.extend_from_slice(b"\",\"user_id\":\"");
            user(line, event.user);
            line.extend_from_slice(b"\",\"item_id\":\"");
        }
    }
    item(line, event.item, *flaw);
    if *flaw == Some(Reason::MalformedJson) {
        // A truncated line.
        line.extend_from_slice(b"\",\"ts\n");
        return;
    }
    line.extend_from_slice(b"\",\"ts\":");
    if *flaw == Some(Reason::InvalidTime) {
        line.extend_from_slice(b"\"yesterday\"");
    } else {
        time(line, event.ts, *flaw);
    }
    match event.request {
        None => line.extend_from_slice(b",\"request_id\":null,\"request_ts\":null"),
        Some(request) => {
            line.extend_from_slice(b",\"request_id\":\"");
            hexadecimal(line, request.id);
            line.extend_from_slice(b"\",\"request_ts\":");
            decimal(line, request.ts.unsigned_abs());
        }
    }
    line.extend_from_slice(b",\"action\":\"");
    line.extend_from_slice(event.action.name().as_bytes());
    line.extend_from_slice(b"\",\"value\":");
    match (flaw, event.listened) {
        (Some(Reason::WrongType), _) => line.extend_from_slice(b"\"loud\""),
        (_, None) => line.extend_from_slice(b"null"),
        (_, Some(tenths)) => seconds(line, tenths),
    }
    line.extend_from_slice(b"}\n");
}

fn csv(line: &mut Vec<u8>, LogRecord { event, flaw, .. }: &LogRecord) {
    hexadecimal(line, event.id);
    line.push(b',');
    match flaw {
        Some(Reason::MissingField) => {}
        Some(Reason::TooLong) => line.resize(line.len() + OVER_LONG_BYTES, b'u'),
        _ => user(line, event.user),
    }
    line.push(b',');
    item(line, event.item, *flaw);
    line.push(b',');
    if *flaw == Some(Reason::InvalidTime) {
        line.extend_from_slice(b"yesterday");
    } else {
        time(line, event.ts, *flaw);
    }
    line.push(b',');
    if let Some(request) = event.request {
        hexadecimal(line, request.id);
        line.push(b',');
        decimal(line, request.ts.unsigned_abs());
    } else {
        line.push(b',');
    }
    line.push(b',');
    line.extend_from_slice(event.action.name().as_bytes());
    line.push(b',');
    match (flaw, event.listened) {
        (Some(Reason::WrongType), _) => line.extend_from_slice(b"loud"),
        (_, None) => {}
        (_, Some(tenths)) => seconds(line, tenths),
    }
    line.push(b'\n');
}

pub(crate) fn user(line: &mut Vec<u8>, user: u32) {
    line.push(b'u');
    decimal(line, user.into());
}

fn item(line: &mut Vec<u8>, item: u32, flaw: Option<Reason>) {
    line.push(if flaw == Some(Reason::InvalidUtf8) { 0xff } else { b't' });
    decimal(line, item.into());
}

fn time(line: &mut Vec<u8>, ts: i64, flaw: Option<Reason>) {
    // Never negative: the settings allow no time before 1970.
    let late = if flaw == Some(Reason::TimeOutOfRange) { OUT_OF_RANGE_MS } else { 0 };
    decimal(line, (ts + late).unsigned_abs());
}

fn seconds(line: &mut Vec<u8>, tenths: u32) {
    decimal(line, (tenths / 10).into());
    line.push(b'.');
    line.push(b'0' + (tenths % 10) as u8);
}

fn decimal(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[at..]);
}

/// Appends a number as 16 hexadecimal digits.
pub(crate) fn hexadecimal(line: &mut Vec<u8>, number: u64) {
    line.extend((0..16).rev().map(|digit| b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_written_as_the_standard_library_does(number: u64, tenths: u32) {
            let written = |write: &dyn Fn(&mut Vec<u8>)| {
                let mut line = Vec::new();
                write(&mut line);
                String::from_utf8(line).unwrap()
            };
            prop_assert_eq!(written(&|line| decimal(line, number)), number.to_string());
            prop_assert_eq!(written(&|line| hexadecimal(line, number)), format!("{number:016x}"));
            let seconds: f64 = written(&|line| seconds(line, tenths)).parse().unwrap();
            prop_assert_eq!(seconds, f64::from(tenths) / 10.0);
        }
    }
}
