//! Tests of `wire` against its public face.

mod convert;
mod generated;
mod local;
