//! One binary for all integration tests of the crate.

mod pool;
mod region;
