//! Finds the user that a rejected record names; the record may be torn, binary, or of the wrong shape.
//!
//! ```text
//!   the message's key                                      is the user's id: theirs
//!   "user_id": "…" (JSON, torn or whole, with its escapes) names the user: theirs, or another user's
//!   the n-th field of a CSV line with as many as the header says so too
//!   otherwise: any run of words, field, quoted text, or text after its length (Avro, Protobuf) that is the id
//! ```
//!
//! An id is compared as a whole, never as a part of a longer word or number. In a record that does not name its user, an
//! id as short as `1` also matches by chance.

use std::borrow::Cow;

/// Separators of words. An id may contain any of them.
const MARKS: &[u8] = b"\",;:|'{}[]()<>=\\";
/// Maximum words of an id.
const WORDS_MAX: usize = 8;
/// Maximum bytes of an id in a record that does not delimit it.
const ID_BYTES_MAX: usize = 512;
/// Minimum bytes of a number that counts as an id in a binary record; shorter numbers occur by chance.
const NUMBER_BYTES_MIN: usize = 4;

/// The position of the user in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UserColumn {
    /// A field of a CSV line.
    At {
        /// Index of the field, from 0.
        column: usize,
        /// Number of fields of the header. A line with another number may have lost fields, so its user is unknown.
        of: usize,
    },
    /// Not known.
    Unknown,
}

/// Whether the record belongs to one of the users, by its key or its user field; without these, whether it contains an id of
/// one.
pub(crate) fn names(
    user_field: &str,
    column: UserColumn,
    key: Option<&[u8]>,
    value: &[u8],
    is_one: impl Fn(&[u8]) -> bool,
) -> bool {
    if key.is_some_and(|key| is_one(key) || literals(key).any(|text| is_one(&text)) || framed(key, &is_one)) {
        return true;
    }
    let fields = json_fields(value, user_field);
    let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(value).ok();
    match object.as_ref().and_then(|object| object.get(user_field)) {
        Some(serde_json::Value::String(user)) => return is_one(user.as_bytes()),
        Some(serde_json::Value::Number(_)) => return fields.iter().any(|id| is_one(id)),
        _ if fields.iter().any(|id| is_one(id)) => return true,
        _ => {}
    }
    let one_line = !value.trim_ascii().contains(&b'\n');
    if !fields.is_empty() && one_line {
        return false;
    }
    if let UserColumn::At { column, of } = column {
        let mut whole = one_line;
        for line in value.split(|&byte| byte == b'\n') {
            let cells = cells(line);
            if cells.get(column).is_some_and(|cell| is_one(cell)) {
                return true;
            }
            let closed = line.iter().filter(|&&byte| byte == b'"').count() % 2 == 0;
            whole &= closed && cells.len() == of;
        }
        if whole {
            return false;
        }
    }
    anywhere(value, &is_one)
}

/// Whether the record contains an id anywhere, as a whole.
fn anywhere(value: &[u8], is_one: &impl Fn(&[u8]) -> bool) -> bool {
    let unescaped = unescaped(value);
    spans(value).any(&is_one)
        || (matches!(unescaped, Cow::Owned(_)) && spans(&unescaped).any(is_one))
        || literals(value).any(|text| is_one(&text))
        || b",;\t|".iter().any(|&mark| {
            value
                .split(|&byte| byte == mark || byte == b'\n')
                .any(|cell| is_one(cell.trim_ascii()) || is_one(cell))
        })
        || (is_binary(value) && framed(value, is_one))
}

/// Every run of words, including the separators between them.
fn spans(record: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_mark = |byte: u8| byte.is_ascii_whitespace() || byte.is_ascii_control() || MARKS.contains(&byte);
    let mut words: Vec<(usize, usize)> = Vec::new();
    let mut start = None;
    for (at, &byte) in record.iter().enumerate() {
        match (is_mark(byte), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                words.push((from, at));
                start = None;
            }
            _ => {}
        }
    }
    words.extend(start.map(|from| (from, record.len())));
    let count = words.len();
    (0..count).flat_map(move |first| {
        let (from, _) = words[first];
        let ends: Vec<usize> =
            words[first..count.min(first + WORDS_MAX)].iter().map(|&(_, end)| end).collect();
        ends.into_iter().map(move |end| &record[from..end]).filter(|span| span.len() <= ID_BYTES_MAX)
    })
}

/// The fields of a CSV line, without their quotes.
pub(super) fn cells(line: &[u8]) -> Vec<Cow<'_, [u8]>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (mut cells, mut from, mut quoted) = (Vec::new(), 0, false);
    for (at, &byte) in line.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                cells.push(unquoted(&line[from..at]));
                from = at + 1;
            }
            _ => {}
        }
    }
    cells.push(unquoted(&line[from..]));
    cells
}

fn unquoted(cell: &[u8]) -> Cow<'_, [u8]> {
    let inside = cell.strip_prefix(b"\"").map(|cell| cell.strip_suffix(b"\"").unwrap_or(cell));
    match inside {
        None => Cow::Borrowed(cell),
        Some(inside) if !inside.contains(&b'"') => Cow::Borrowed(inside),
        Some(inside) => {
            let mut text = Vec::with_capacity(inside.len());
            let mut bytes = inside.iter().peekable();
            while let Some(&byte) = bytes.next() {
                text.push(byte);
                if byte == b'"' && bytes.peek() == Some(&&b'"') {
                    bytes.next();
                }
            }
            Cow::Owned(text)
        }
    }
}

/// The texts that any quote may open, read as in JSON and as in CSV.
fn literals(record: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let opened = memchr::memchr_iter(b'"', record).map(|at| &record[at + 1..]);
    opened.flat_map(|rest| {
        let rest = &rest[..rest.len().min(2 * ID_BYTES_MAX)];
        let json = closed(rest).map(|end| unescaped(&rest[..end]));
        json.into_iter().chain(doubled(rest).map(Cow::Owned))
    })
}

/// The text of a CSV field after its opening quote, if it has doubled quotes.
fn doubled(rest: &[u8]) -> Option<Vec<u8>> {
    let (mut text, mut at, mut any) = (Vec::new(), 0, false);
    while let Some(&byte) = rest.get(at) {
        match (byte, rest.get(at + 1)) {
            (b'"', Some(b'"')) => {
                any = true;
                at += 1;
            }
            (b'"', _) => return any.then_some(text),
            _ => {}
        }
        text.push(byte);
        at += 1;
    }
    None
}

/// The end of a JSON text after its opening quote.
fn closed(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// The values of `"field": …` in a text that need not be JSON as a whole.
fn json_fields<'a>(record: &'a [u8], field: &str) -> Vec<Cow<'a, [u8]>> {
    let mut found = Vec::new();
    for at in memchr::memchr_iter(b'"', record) {
        let rest = &record[at + 1..];
        let longest = rest.len().min(6 * field.len() + 1);
        let Some(end) = closed(&rest[..longest]) else { continue };
        if *unescaped(&rest[..end]) != *field.as_bytes() {
            continue;
        }
        let Some(value) = rest[end + 1..].trim_ascii_start().strip_prefix(b":") else { continue };
        let value = value.trim_ascii_start();
        if let Some(text) = value.strip_prefix(b"\"") {
            found.extend(closed(text).map(|end| unescaped(&text[..end])));
        } else {
            let end =
                value.iter().position(|&byte| !(byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)));
            let number = &value[..end.unwrap_or(value.len())];
            let Some(text) = std::str::from_utf8(number).ok().filter(|text| text.parse::<f64>().is_ok())
            else {
                continue;
            };
            found.push(Cow::Borrowed(number));
            // Data frames write user `7` as `7.0`.
            let whole = text.parse().ok().filter(|number: &f64| number.fract() == 0.0);
            found.extend(whole.map(|whole| Cow::Owned((whole as i64).to_string().into_bytes())));
        }
    }
    found
}

/// The text with JSON escapes resolved; invalid escapes stay unchanged.
fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let hex = |at: usize| {
        let digits = std::str::from_utf8(text.get(at..at + 4)?).ok()?;
        u16::from_str_radix(digits, 16).ok()
    };
    let (mut plain, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        let escape = match (byte, text.get(at)) {
            (b'\\', Some(&escape)) => escape,
            _ => {
                plain.push(byte);
                continue;
            }
        };
        at += 1;
        match escape {
            b'u' => {
                let high = hex(at);
                let low = (text.get(at + 4..at + 6) == Some(b"\\u")).then(|| hex(at + 6)).flatten();
                let units = match (high, low) {
                    (Some(high), Some(low)) if (0xd800..0xdc00).contains(&high) => vec![high, low],
                    (Some(unit), _) => vec![unit],
                    (None, _) => Vec::new(),
                };
                match String::from_utf16(&units) {
                    Ok(decoded) if !units.is_empty() => {
                        plain.extend(decoded.as_bytes());
                        at += 6 * units.len() - 2;
                    }
                    _ => plain.extend(b"\\u"),
                }
            }
            b'n' => plain.push(b'\n'),
            b't' => plain.push(b'\t'),
            b'r' => plain.push(b'\r'),
            b'b' => plain.push(8),
            b'f' => plain.push(12),
            b'"' | b'\\' | b'/' => plain.push(escape),
            other => plain.extend([b'\\', other]),
        }
    }
    Cow::Owned(plain)
}

fn is_binary(record: &[u8]) -> bool {
    record.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
        || std::str::from_utf8(record).is_err()
}

/// Whether a binary record has the id after its length, as Avro and Protobuf write texts, or as a number.
fn framed(record: &[u8], is_one: &impl Fn(&[u8]) -> bool) -> bool {
    (0..record.len()).any(|at| {
        // Do not read a number from its middle.
        if at > 0 && record[at - 1] >= 0x80 {
            return false;
        }
        let Some((number, bytes)) = varint(&record[at..]) else { return false };
        let zigzag = (number >> 1) as i64 ^ -((number & 1) as i64);
        let text = |length: i64| {
            let length =
                usize::try_from(length).ok().filter(|&length| length > 0 && length <= ID_BYTES_MAX)?;
            record.get(at + bytes..at + bytes + length)
        };
        let texts = [text(number as i64), text(zigzag)];
        texts.into_iter().flatten().any(&is_one)
            || (bytes >= NUMBER_BYTES_MIN
                && (is_one(number.to_string().as_bytes()) || is_one(zigzag.to_string().as_bytes())))
    })
}

/// A number in groups of seven bits (LEB128), and the bytes that it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (n, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(7 * n as u32)?;
        if byte < 0x80 {
            return Some((number, n + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(id: &str, column: UserColumn, value: impl AsRef<[u8]>) -> bool {
        names("user_id", column, None, value.as_ref(), |word| word == id.as_bytes())
    }

    /// A header of three fields, with the user in the first or the second.
    const AT_0: UserColumn = UserColumn::At { column: 0, of: 3 };
    const AT_1: UserColumn = UserColumn::At { column: 1, of: 3 };

    const IDS: [&str; 12] = [
        "auth0|65aa",
        "a:b",
        "x=1",
        "anna b",
        "anna  b c",
        "urn:li:person:7",
        "a\"b",
        "back\\slash",
        "<7>",
        "é|ü",
        "a,b",
        "\u{1f600} x",
    ];

    #[test]
    fn torn_records_name_ids_with_any_marks_in_them() {
        for id in IDS {
            let json = serde_json::to_string(id).unwrap();
            let escaped: String = id.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            let csv = format!("\"{}\"", id.replace('"', "\"\""));
            for record in [
                format!("{{\"user_id\":{json},\"item_id\":"),
                format!("{{\"item_id\":\"i\", \"user_id\" : {json}"),
                format!("{{\"user_id\":\"{escaped}\",\"it"),
                format!("{{\"\\u0075ser_id\":{json},\"it"),
                format!("tem\":\"i\",\"user\":{json},\"ts\":"),
                format!("{csv},i1,never,too,many"),
                format!("i1,{csv}"),
            ] {
                assert!(named(id, UserColumn::Unknown, &record), "{id} in {record}");
                let other = record.replace("65aa", "65ab").replace("user_id", "item_id");
                assert!(!named("nobody", UserColumn::Unknown, &other), "{other}");
            }
            assert!(named(id, AT_1, format!("i1,{csv},never")), "{id}");
            assert!(!named(id, AT_0, format!("i1,{csv},never")), "{id}");
        }
        assert!(named("auth0|65aa", UserColumn::Unknown, "auth0|65aa,i2,1700000060000,one-too-many"));
        assert!(named("auth0|65aa", AT_0, "auth0|65aa,i2,1700000060000,one-too-many"));
        assert!(named("auth0|65aa", AT_0, "u1,\"i1,never\nauth0|65aa,i2"));
    }

    #[test]
    fn a_part_of_a_longer_word_is_nobody() {
        for record in [
            "u9,i1,1123456000",
            "{\"user_id\":\"u9\",\"ts\":123456",
            "{\"user_id\":\"u9\",\"item_id\":\"123456\"}",
            "{\"user_id\":9,\"value\":123456}",
            "u9,i123456",
        ] {
            assert!(!named("123456", UserColumn::Unknown, record), "{record}");
        }
        assert!(!named("123456", AT_0, "u9,123456,never"));
        // A field is missing, perhaps the user's.
        assert!(named("123456", AT_0, "u9,123456"));
        assert!(named("123456", UserColumn::Unknown, "u9,123456,never"));
        assert!(named("123456", UserColumn::Unknown, "{\"user_id\":123456.0,\"ts\":"));
        assert!(named("123456", UserColumn::Unknown, "{\"user_id\":123456"));
    }

    #[test]
    fn binary_records_name_texts_and_numbers() {
        let id = "auth0|65aa";
        // Avro: a text behind twice its length; Protobuf: field 1, behind its length.
        let avro = [&[0, 0, 0, 0, 7, 20][..], id.as_bytes(), b"\x04i1"].concat();
        let protobuf = [&[0x0a, 10][..], id.as_bytes(), b"\x12\x02i1"].concat();
        for record in [&avro, &protobuf] {
            assert!(named(id, UserColumn::Unknown, record));
            assert!(!named("auth0|65a", UserColumn::Unknown, record));
        }
        // 1,234,567,890 as a number of Protobuf, and of Avro.
        assert!(named("1234567890", UserColumn::Unknown, [0x08, 0xd2, 0x85, 0xd8, 0xcc, 0x04, 0xff]));
        assert!(named("1234567890", UserColumn::Unknown, [0xa4, 0x8b, 0xb0, 0x99, 0x09, 0xff]));
        assert!(names("user_id", UserColumn::Unknown, Some(&avro[5..]), b"", |word| word == id.as_bytes()));
        assert!(names("user_id", UserColumn::Unknown, Some(b"\"a|b\""), b"", |word| word == b"a|b"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            names("user_id", AT_1, Some(&bytes), &bytes, |_| false);
            names("user_id", UserColumn::Unknown, None, &bytes, |word| word == b"no such user");
        }

        #[test]
        fn an_id_is_found_in_whatever_record_it_is_quoted(id in "\\PC{1,40}", before in "[a-z,{:]{0,20}", after in "[a-z,}:]{0,20}") {
            let quoted = serde_json::to_string(&id).unwrap();
            let record = format!("{before}{quoted}{after}");
            prop_assert!(named(&id, UserColumn::Unknown, &record), "{record}");
        }
    }
}
