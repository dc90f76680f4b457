//! Why a manifest is refused.

use crate::{
    config::CONFIG_BYTES_MAX,
    digest::{DigestError, Sha256Digest},
    layout::TooManyPieces,
    manifest::{LAYERS_MAX, MANIFEST_BYTES_MAX},
    path::PathError,
};

/// A manifest that Modelcast does not accept. Layers are numbered from 0, as in the manifest's list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is longer than registries store.
    #[error("the manifest has {0} bytes, over the limit of {MANIFEST_BYTES_MAX}")]
    TooLong(usize),
    /// It is not JSON, or a value has the wrong type or is out of range.
    #[error("the manifest is not the JSON of an OCI image manifest")]
    Json(#[source] serde_json::Error),
    /// It is a manifest of something else.
    #[error("the manifest is not {expected}: {found}")]
    OtherKind {
        /// What was needed, with its article.
        expected: &'static str,
        /// What it is instead.
        found: String,
    },
    /// The list of layers is empty.
    #[error("the manifest has no layers, so the artifact has no files")]
    NoFiles,
    /// The list of layers is too long.
    #[error("the manifest has {0} layers, over the limit of {LAYERS_MAX}")]
    TooManyLayers(usize),
    /// A digest cannot be read or checked.
    #[error("{of} of the manifest has an unusable digest")]
    Digest {
        /// Of what, such as `layer 3`.
        of: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// A layer's content or packing is not supported.
    #[error("layer {layer} has the media type `{media_type}`, which is not supported")]
    Unsupported {
        /// Which layer.
        layer: usize,
        /// Its media type.
        media_type: String,
    },
    /// A layer's annotation is missing or says something that cannot be done.
    #[error("layer {layer} {problem}")]
    Annotation {
        /// Which layer.
        layer: usize,
        /// What is wrong, as the end of a sentence.
        problem: String,
    },
    /// A path is dangerous, or two paths cannot exist together.
    #[error("the artifact has a path that no file may have")]
    Path(#[from] PathError),
    /// Two statements about one blob cannot both be true.
    #[error("the manifest contradicts itself about {digest}: {problem}")]
    Contradiction {
        /// The blob.
        digest: Sha256Digest,
        /// Which statements.
        problem: &'static str,
    },
    /// The artifact's sizes are beyond what the protocol numbers.
    #[error("the artifact is too large")]
    Size(#[from] TooManyPieces),
    /// An index lists several manifests that may be meant.
    #[error("the index lists {count} artifacts that may be meant: {candidates}")]
    SeveralModels {
        /// How many.
        count: usize,
        /// Their digests and what is said of them, as text.
        candidates: String,
    },
    /// An index lists nothing that may be meant.
    #[error("the index lists no model{found}")]
    NoModel {
        /// What it lists instead, as the end of a sentence.
        found: &'static str,
    },
    /// The config's stated size is beyond any real one.
    #[error("the config is said to have {0} bytes, over the limit of {CONFIG_BYTES_MAX}")]
    ConfigSize(u64),
}

impl ManifestError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::SeveralModels { .. } => Some("name one of them by its digest, as HOST/REPO@DIGEST".into()),
            Self::OtherKind { found, .. } if found.contains("index") => {
                Some("name one of the manifests that the index lists by its digest".into())
            }
            Self::OtherKind { .. } | Self::NoModel { .. } => Some(
                "check the reference: what can be read are models and artifacts of named files, no images"
                    .into(),
            ),
            Self::Unsupported { .. } => Some("build the artifact again with `modelctl build`".into()),
            Self::TooManyLayers(_) | Self::TooLong(_) | Self::Size(_) => {
                Some("split the model into several artifacts".into())
            }
            Self::Path(PathError::Collision(..) | PathError::FileAndDirectory(..)) => {
                Some("rename one of the two files and build the artifact again".into())
            }
            Self::Digest { source: DigestError::Algorithm(..), .. } => {
                Some("build the artifact again with a tool that uses `sha256`".into())
            }
            Self::NoFiles => None,
            _ => Some("do not use this artifact before you know who made it, and why it is like this".into()),
        }
    }
}
