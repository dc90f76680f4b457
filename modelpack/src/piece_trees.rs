//! The referrer that carries an artifact's piece trees through a registry.
//!
//! Its `subject` is the model's manifest; each layer is one blob's tree, [`crate::piece_tree::PieceTree::serialise`].
//! Owns: reading it, and its names. Does not own: proof. A tree counts only once `PieceTree::anchor` accepted it,
//! so a referrer that lies costs time and nothing else.

use std::collections::BTreeSet;

use crate::{
    digest::Sha256Digest,
    layout::{PIECE_BYTES, PIECES_MAX},
    manifest::{self, ManifestError},
    text::shown,
};

/// The artifact type of the referrer.
pub const ARTIFACT_TYPE: &str = "application/vnd.modelcast.pieces.v1";

/// The media type of each of its layers.
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.modelcast.pieces.v1.tree";

/// The annotation on a layer that names the blob whose tree it is, as `sha256:HEX`.
pub const BLOB_ANNOTATION: &str = "org.modelcast.blob";

/// The media type and the bytes of a config that says nothing (OCI image specification 1.1, "Guidance for an Empty
/// Descriptor").
pub(crate) const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const EMPTY_BYTES: &[u8] = b"{}";

const TREES: &str = "a list of piece trees";

/// How many bytes the serialised tree of a blob of `blob_bytes` bytes has: none if the blob is at most one piece.
pub fn tree_bytes(blob_bytes: u64) -> u64 {
    if blob_bytes <= PIECE_BYTES { 0 } else { blob_bytes.div_ceil(PIECE_BYTES) * 32 }
}

/// The tag under which a registry without a referrers API lists the referrers of `subject` (OCI distribution
/// specification 1.1, "Referrers Tag Schema").
pub fn fallback_tag(subject: &Sha256Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// A referrer that carries piece trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreesManifest {
    /// The manifest whose blobs' trees they are.
    pub subject: Sha256Digest,
    /// The trees, at most one a blob.
    pub layers: Vec<TreeLayer>,
}

/// Where one blob's tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLayer {
    /// The blob whose tree it is.
    pub blob: Sha256Digest,
    /// The digest of the serialised tree.
    pub digest: Sha256Digest,
    /// Its size in bytes: useful only if it equals [`tree_bytes`] of the blob's size.
    pub size: u64,
}

impl TreesManifest {
    /// Reads a referrer, whoever wrote it.
    pub fn parse(raw: &[u8]) -> Result<Self, ManifestError> {
        let document = manifest::read(raw)?;
        manifest::check_form(&document, TREES)?;
        let refuse = |found: String| ManifestError::OtherKind { expected: TREES, found };
        match document.artifact_type.as_deref() {
            Some(ARTIFACT_TYPE) => {}
            Some(other) => return Err(refuse(format!("its artifact type is `{}`", shown(other)))),
            None => return Err(refuse("it states no artifact type".into())),
        }
        let subject = document.subject.as_ref().ok_or_else(|| refuse("it has no subject".into()))?;
        let subject = manifest::descriptor("the subject", subject)?.digest;
        let found = document.layers.map_or_else(Vec::new, |layers| layers.kept);
        let mut layers = Vec::with_capacity(found.len());
        let mut blobs = BTreeSet::new();
        for (index, layer) in found.iter().enumerate() {
            let refuse = |problem: String| ManifestError::Annotation { layer: index, problem };
            if layer.media_type != LAYER_MEDIA_TYPE {
                let media_type = shown(&layer.media_type);
                return Err(ManifestError::Unsupported { layer: index, media_type });
            }
            let blob = layer
                .annotation(BLOB_ANNOTATION)
                .ok_or_else(|| refuse(format!("lacks the annotation `{BLOB_ANNOTATION}`")))?;
            let blob: Sha256Digest = blob.parse().map_err(|_| {
                refuse(format!("has the malformed annotation `{BLOB_ANNOTATION}`: `{}`", shown(blob)))
            })?;
            if !blobs.insert(blob) {
                return Err(refuse(format!("is the second tree of {blob}")));
            }
            let manifest::Descriptor { digest, size, .. } =
                manifest::descriptor(&format!("layer {index}"), layer)?;
            if size % 32 != 0 || size > PIECES_MAX * 32 {
                return Err(refuse(format!("has {size} bytes, which no piece tree has")));
            }
            layers.push(TreeLayer { blob, digest, size });
        }
        Ok(Self { subject, layers })
    }
}
