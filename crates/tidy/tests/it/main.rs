//! The rules of the house, one test each. Every failure lists all offenders and says what to do.

mod crates;
mod docs;
mod source;
mod tree;
