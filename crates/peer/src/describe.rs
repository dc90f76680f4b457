//! What a manifest digest stands for, as this peer tells others.
//!
//! Owns: the form that it has on the way. Does not own: asking for it and proving what is said (`lookup`).

use modelpack::layout::BlobIndex;
use wire::control::{BlobTree, DescribeReply};

/// What an artifact is, in bytes that prove themselves against its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// The manifest.
    pub(crate) manifest: Vec<u8>,
    /// The config blob.
    pub(crate) config: Vec<u8>,
    /// The trees of blobs of more than one piece, where they are known: each 32 bytes a piece.
    pub(crate) trees: Vec<(BlobIndex, Vec<u8>)>,
}

impl From<&Description> for DescribeReply {
    fn from(description: &Description) -> Self {
        let tree = |(blob, values): &(BlobIndex, Vec<u8>)| BlobTree {
            blob: blob.0,
            chaining_values: values.clone(),
        };
        Self {
            manifest: description.manifest.clone(),
            config: description.config.clone(),
            trees: description.trees.iter().map(tree).collect(),
            hub: None,
        }
    }
}
