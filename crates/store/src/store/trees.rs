//! The piece trees of the store's blobs, so that a peer that starts again can say at once what it can prove.
//!
//! Owns: one small file a tree, and computing a tree from a blob that is here. Does not own: who needs a tree, or when
//! there is time to compute one.

use modelpack::{
    digest::Blake3Root,
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{Anchored, PieceTree, TreeBuilder},
};

use super::Store;
use crate::{
    contents::BlobIdentity,
    error::{Context as _, StoreError},
};

impl Store {
    /// Keeps a tree. A blob of at most one piece needs none.
    pub fn put_tree(&self, tree: &PieceTree<Anchored>) -> Result<(), StoreError> {
        let values = tree.serialise();
        if values.is_empty() {
            return Ok(());
        }
        let hex = tree.root().hex();
        let _writing = self.writing();
        // One that is here and good is not written again for each artifact that has the blob.
        if self.tree(tree.blob_bytes(), tree.root()).is_some() {
            return Ok(());
        }
        self.trees.write_atomic(&hex, &values)?;
        self.sync(&self.trees)
    }

    /// The tree of a blob of that size and root. It proves itself against the root; one that is damaged is as good as
    /// absent, and only costs that it is computed again.
    pub fn tree(&self, blob_bytes: u64, root: Blake3Root) -> Option<PieceTree<Anchored>> {
        if let Some(tree) = PieceTree::single(blob_bytes, root) {
            return Some(tree);
        }
        let path = || self.trees.path().join(root.hex());
        match self.trees.read_small(&root.hex(), blob_bytes.div_ceil(PIECE_BYTES) * 32) {
            Ok(None) => None,
            Ok(Some(values)) => PieceTree::anchor(blob_bytes, root, &values)
                .inspect_err(
                    |error| tracing::warn!(path = %path().display(), %error, "a piece tree is not used"),
                )
                .ok(),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(path = %path().display(), error, "a piece tree cannot be read");
                None
            }
        }
    }

    /// Computes the tree of a finished blob from its bytes, and keeps it. Blocks for as long as hashing takes. A blob
    /// whose bytes are not those of its root is an integrity error.
    pub fn compute_tree(&self, blob: &BlobIdentity) -> Result<PieceTree<Anchored>, StoreError> {
        use std::os::unix::fs::FileExt as _;
        let (Some(root), Some(file)) = (blob.root, self.blob_file(blob)?) else {
            return Err(self.missing(&blob.digest));
        };
        let by_sha256 = self.sha256.path().join(blob.digest.hex());
        let path = if by_sha256.exists() { by_sha256 } else { self.blake3_path(blob) };
        let mut builder = TreeBuilder::new(blob.size);
        let mut buffer = Vec::new();
        let mut offset = 0;
        for piece in (0..).map(BlobPiece) {
            let len = PIECE_BYTES.min(blob.size - offset);
            if len == 0 {
                break;
            }
            buffer.resize(usize::try_from(len).expect("at most a piece"), 0);
            file.read_exact_at(&mut buffer, offset).context("read", &path)?;
            builder.add(piece, &buffer);
            offset += len;
        }
        let tree = builder.finish().expect("every piece was added");
        let found = tree.root();
        let tree = tree.anchored(root).map_err(|_| StoreError::Digest {
            path: path.clone(),
            expected: format!("blake3:{}", root.hex()),
            found: format!("blake3:{}", found.hex()),
        })?;
        self.put_tree(&tree)?;
        Ok(tree)
    }
}
