//! Tests of `scheduler` over real sockets.

mod fleet;
mod sessions;
