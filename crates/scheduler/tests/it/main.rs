//! Tests of `scheduler` over real sockets.

mod fleet;
mod schedulers;
mod sessions;
mod status;
