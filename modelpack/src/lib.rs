//! The ModelPack format and the proofs over it, pure: no files, no sockets, no clock.
//!
//! Owns: digests, references, manifests and configs, path rules, piece geometry, piece maps, piece trees, guesses where
//! equal bytes lie, and the types that tell landed from proved bytes. Does not own: where bytes come from or go to.

mod document;
mod text;

pub mod build;
pub mod config;
pub mod delta;
pub mod digest;
pub mod hub;
pub mod index;
pub mod layout;
pub mod manifest;
pub mod modelfile;
pub mod path;
pub mod piece_map;
pub mod piece_tree;
pub mod piece_trees;
pub mod quantity;
pub mod reference;
pub mod safetensors;
pub mod selection;
