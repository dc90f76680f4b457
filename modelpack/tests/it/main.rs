//! The format and its proofs, through the public interface only.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

mod build;
mod config;
mod corpora;
mod families;
mod hostile;
mod hub;
mod manifest;
mod modelfile;
mod piece_map;
mod piece_tree;
mod piece_trees;
mod reference;
mod safetensors;
mod selection;
mod support;
