//! Tests of `wire` against its public face.

mod generated;
