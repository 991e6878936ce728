//! See `perch::fuzz::host`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::host(bytes));
