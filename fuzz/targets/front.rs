//! See `perch::fuzz::front`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::front(bytes));
