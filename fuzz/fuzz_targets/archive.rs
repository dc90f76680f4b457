//! Feeds `checks::archive`.
#![no_main]

#[path = "../checks/archive.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::archive(data));
