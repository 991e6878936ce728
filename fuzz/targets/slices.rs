//! See `perch::fuzz::slices`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perch::fuzz::slices(bytes));
