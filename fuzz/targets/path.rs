//! See `perch::fuzz::path`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::path(bytes));
