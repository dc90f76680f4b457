//! The commands of `simulator`, one a module. Owns what they share of reading a command line.

use std::fmt::Display;
use std::str::FromStr;

pub(crate) mod failover;
pub(crate) mod fuzz;
pub(crate) mod policies;
pub(crate) mod rerun;
pub(crate) mod sweep;

pub(crate) fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("`{text}`: {error}"))
}
