#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| climber::run_json(bytes));
