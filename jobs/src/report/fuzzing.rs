//! Fuzz target for `run.json`: any bytes are an error, or a record with a page.

use store::sealed;

use crate::record::Record;

/// Reads `bytes` as a `run.json`.
///
/// # Panics
///
/// If a record that can be read has no page, or is not written back as it was read.
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    not(feature = "fuzzing"),
    expect(unreachable_pub, reason = "`fuzz` takes this crate as a library")
)]
pub fn run_json(bytes: &[u8]) {
    let Ok(record) = sealed::read::<Record>(bytes) else { return };
    let _ = (record.outcome(), record.seconds(), record.served(), record.tuned_name());
    let page = super::page::page(&record, std::slice::from_ref(&record), &[]);
    assert!(page.starts_with("<!DOCTYPE html>"));
    let text = sealed::write(&record).unwrap_or_else(|error| panic!("{error}"));
    let again = sealed::read::<Record>(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sealed::write(&again).ok(), Some(text));
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_bytes_are_a_record_or_an_error() {
        let seeds: [&[u8]; 2] =
            [include_bytes!("../../fixtures/run.json"), b"{\"name\":\"d\",\"date\":\"2026-01-01\"}"];
        assert!(serde_json::from_slice::<super::Record>(seeds[0]).is_ok(), "a record of today's form");
        let tokens: [&[u8]; 10] = [
            b"null",
            b"{}",
            b"[]",
            b"\"\"",
            b"-1",
            b"1e999",
            b"18446744073709551616",
            b"\"model\":",
            b",",
            b"\xff",
        ];
        testkit::drive("run.json", &seeds, &tokens, super::run_json);
    }
}
