//! A sidecar from outside: versions that a stand-in brings, beside servers that stand-ins play.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

mod engines;
mod keeping;
mod standin;
mod support;
mod triton;
