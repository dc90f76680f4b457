//! Tests of `transport` against its public face.

mod memory;
mod tcp;
