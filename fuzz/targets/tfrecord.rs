#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trainer::records::fuzzing::tfrecord(bytes));
