//! Feeds `checks::config`.
#![no_main]

#[allow(dead_code, reason = "each target has one of its own")]
#[path = "../checks/format.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::config(data));
