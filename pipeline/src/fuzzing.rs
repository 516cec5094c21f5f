//! Entry points for fuzzers of everything that reads outside bytes: each function takes any input and panics if a
//! guarantee is broken.

use schemas::config::Format;

pub use crate::kafka::decode::fuzzing::{avro, avro_schema, json, protobuf};

/// The records of a CSV file.
pub fn csv(bytes: &[u8]) {
    crate::source::fuzzing::file(Format::Csv, bytes);
}

/// The records of a file of JSON Lines.
pub fn jsonl(bytes: &[u8]) {
    crate::source::fuzzing::file(Format::Jsonl, bytes);
}

/// The records of an Arrow stream or file.
pub fn arrow(bytes: &[u8]) {
    crate::source::fuzzing::file(Format::Arrow, bytes);
}

/// Beginnings for each function, and what its inputs are made of.
pub mod seeds {
    pub use crate::kafka::decode::fuzzing::{avro_records, protobuf_messages};

    /// CSV.
    pub const CSV: [&[u8]; 4] = [
        b"user_id,item_id,ts\nu1,i1,100\nu2,\"i,2\",1600000000000\n",
        b"user_id,item_id,ts,event_id,value\r\n\"u\"\"1\",i1,2020-09-13T12:26:40Z,e,1.5\r\n\"torn,i1,5\r\nu,i,7,e,1\r\n",
        b"\xef\xbb\xbfts,user_id,item_id,request_id,request_ts,action\n5,\"a\nb\",c,r,6,view\n\n,,,,,\n",
        b"user_id,item_id,ts\n",
    ];
    /// Pieces of CSV.
    pub const CSV_TOKENS: [&[u8]; 10] =
        [b"\"", b",", b"\n", b"\r\n", b"\r", b"\"\"", b"u1,i1,100\n", b"\xff", b"\xc3", b"1600000000000"];

    /// JSON Lines.
    pub const JSONL: [&[u8]; 5] = [
        b"{\"user_id\": \"u\", \"item_id\": 3, \"ts\": 1}\n{\"ts\":2,\"user_id\":\"\\u00fc\\n\",\"item_id\":\"i\"}\n",
        b"{\"user_id\":\"u\",\"item_id\":\"i\",\"ts\":\"2020-09-13T12:26:40Z\",\"value\":1e3,\"x\":[{},[1,null]]}\r\n\n{}\n[",
        b"{\"user_id\":12345678901234567890,\"item_id\":-1.0,\"ts\":1600000000.5,\"event_id\":null,\"action\":\"view\"}\n",
        b"null\n7\n{\"user_id\":{\"a\":1},\"item_id\":[],\"ts\":true}\n",
        // Longer than a record may be: what is kept of the line must not pass for one.
        b"{\"user_id\":\"u\",\"item_id\":\"i\",\"ts\":1}\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\rx\n",
    ];
    /// Pieces of JSON.
    pub const JSON_TOKENS: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b":",
        b",",
        b"\n",
        b"\\u",
        b"\\ud800",
        b"\"user_id\":",
        b"1e999",
        b"null",
        b"\xff",
    ];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use testkit::drive;

    use super::*;

    #[test]
    fn csv_reads_anything() {
        drive("csv", &seeds::CSV, &seeds::CSV_TOKENS, csv);
    }

    #[test]
    fn json_lines_read_anything() {
        drive("jsonl", &seeds::JSONL, &seeds::JSON_TOKENS, jsonl);
    }

    #[test]
    fn messages_read_anything() {
        drive("json", &seeds::JSONL, &seeds::JSON_TOKENS, json);
        let (records, messages) = (seeds::avro_records(), seeds::protobuf_messages());
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let tokens: [&[u8]; 4] = [b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80", b"\x01", b"\x00"];
        drive("avro", &records, &tokens, avro);
        drive("protobuf", &messages, &tokens, protobuf);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
            for parse in [csv, jsonl, json, avro, protobuf, avro_schema] {
                parse(&bytes);
                parse(text.as_bytes());
            }
        }
    }
}
