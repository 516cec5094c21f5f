#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trainer::learn::records::fuzzing::tfrecord(bytes));
