//! Made-up files and manifests.

use std::error::Error;

use modelpack::{
    build::SourceFile,
    digest::Sha256Digest,
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{PieceTree, Provisional, TreeBuilder},
};
use serde_json::{Value, json};

/// `len` bytes that depend on `seed`, cheaply.
pub(crate) fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// The tree of `bytes`, computed piece by piece.
pub(crate) fn tree(bytes: &[u8]) -> PieceTree<Provisional> {
    let mut builder = TreeBuilder::new(bytes.len() as u64);
    for (piece, bytes) in (0..).zip(bytes.chunks(usize::try_from(PIECE_BYTES).unwrap())) {
        builder.add(BlobPiece(piece), bytes);
    }
    builder.finish().unwrap()
}

/// A file as whoever hashed it hands it over.
pub(crate) fn source(path: &str, bytes: &[u8]) -> SourceFile {
    let tree = tree(bytes);
    SourceFile {
        path: path.into(),
        size: bytes.len() as u64,
        digest: Sha256Digest::of(bytes),
        root: Some(tree.root()),
        tree: tree.serialise(),
        is_executable: false,
        safetensors: None,
    }
}

/// A layer of one file, as any tool would write it.
pub(crate) fn layer(path: &str, content: &str) -> Value {
    json!({
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "digest": Sha256Digest::of(content.as_bytes()).to_string(),
        "size": content.len(),
        "annotations": { "org.cncf.model.filepath": path },
    })
}

/// A good manifest of these layers.
pub(crate) fn manifest(layers: Vec<Value>) -> Value {
    let mut json = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": Sha256Digest::of(b"{}").to_string(),
            "size": 2,
        },
    });
    json["layers"] = Value::Array(layers);
    json
}

/// An error as the user sees it: with its causes, one a line.
pub(crate) fn shown(error: &dyn Error) -> String {
    let mut lines = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        lines.push(error.to_string());
        cause = error.source();
    }
    lines.join("\n")
}
