//! See `perch::fuzz::proxy_header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::proxy_header(bytes));
