//! See `perch::fuzz::config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::config(bytes));
