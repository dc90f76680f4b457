//! Tests of `wire` against its public face.

mod connection;
mod convert;
mod generated;
mod local;
mod measured;
mod plan_status;
mod rdma;
mod status;
