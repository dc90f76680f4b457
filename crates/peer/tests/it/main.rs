//! Whole pulls and peers through the public API: real sockets, real files, origins that misbehave.

mod standalone;
mod support;
