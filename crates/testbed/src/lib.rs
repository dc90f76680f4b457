//! What tries the product from outside: real processes on shaped networks of this one machine.
//!
//! Owns: network namespaces, processes and their output, a model to move, a directory that goes away, and cleaning up
//! however the program ends. Does not own: what is tried, or how it is judged.

pub mod artifact;
pub mod maker;
pub mod model;
pub mod netns;
pub mod process;
pub mod program;
pub mod registry;
pub mod scratch;
pub mod stage;
