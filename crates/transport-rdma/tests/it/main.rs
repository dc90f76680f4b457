//! Tests of `transport-rdma` against its public face, on the fake fabric.

mod ends;
mod laws;
