//! What `bench` measures beside modelctl, tried alone. Does not own: the unit tests of `bench`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod rdma_accept;
mod systems;
