//! Image indexes: lists of manifests, of which one may be the model that is meant.
//!
//! Source: OCI image specification 1.1, "Image Index". Owns: finding that one. Does not own: the manifest itself.

use serde::Deserialize;

use crate::{
    digest::Sha256Digest,
    manifest::{LAYERS_MAX, MANIFEST_BYTES_MAX, MEDIA_TYPE, ManifestError, is_index, is_model_type},
    text::shown,
};

/// Candidates that an error names: nobody reads more.
const NAMED_MAX: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Entry>>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    artifact_type: Option<String>,
    platform: Option<Platform>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Platform {
    os: Option<String>,
    architecture: Option<String>,
}

/// The digest of the one manifest in an index that may be a model; `None` if `raw` is no index.
///
/// Where entries say that they are models, the others do not count; where none does, all count that are neither an
/// image for some machine nor a statement about another entry.
pub fn sole_manifest(raw: &[u8]) -> Result<Option<Sha256Digest>, ManifestError> {
    if raw.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLong(raw.len()));
    }
    // What is no such document gets its error from whoever reads manifests.
    let Ok(document) = serde_json::from_slice::<Document>(raw) else { return Ok(None) };
    let is_list = document.config.is_none()
        && document.layers.is_none()
        && document.media_type.as_deref().is_none_or(is_index);
    let Some(entries) = document.manifests.filter(|_| is_list) else { return Ok(None) };
    if entries.len() > LAYERS_MAX {
        return Err(ManifestError::TooManyLayers(entries.len()));
    }
    let stated: Vec<_> = entries.iter().filter(|entry| entry.is_stated_model()).collect();
    let candidates: Vec<_> = if stated.is_empty() {
        entries.iter().filter(|entry| entry.may_be_model()).collect()
    } else {
        stated
    };
    match candidates.as_slice() {
        [] if entries.is_empty() => Err(ManifestError::NoModel { found: "" }),
        [] => Err(ManifestError::NoModel { found: ", only container images and what is said of them" }),
        [one] => {
            let of = || "the entry of the index".to_owned();
            let digest = one.digest.parse();
            digest.map(Some).map_err(|source| ManifestError::Digest { of: of(), source })
        }
        several => Err(several_models(several)),
    }
}

fn several_models(several: &[&Entry]) -> ManifestError {
    let mut named: Vec<_> = several.iter().take(NAMED_MAX).map(|entry| entry.shown()).collect();
    if several.len() > NAMED_MAX {
        named.push(format!("{} more", several.len() - NAMED_MAX));
    }
    ManifestError::SeveralModels { count: several.len(), candidates: named.join(", ") }
}

impl Entry {
    fn is_stated_model(&self) -> bool {
        self.media_type == MEDIA_TYPE && self.artifact_type.as_deref().is_some_and(is_model_type)
    }

    fn may_be_model(&self) -> bool {
        let annotation = |key: &str| self.annotations.as_ref().is_some_and(|all| all.contains_key(key));
        let is_for_machine = self.platform.as_ref().is_some_and(|platform| {
            let said = |part: &Option<String>| part.as_deref().is_some_and(|part| !part.is_empty());
            said(&platform.os) || said(&platform.architecture)
        });
        self.media_type == MEDIA_TYPE && !is_for_machine && !annotation("vnd.docker.reference.type")
    }

    /// The digest, and the name if there is one.
    fn shown(&self) -> String {
        let name = self.annotations.as_ref().and_then(|all| {
            ["org.opencontainers.image.ref.name", "org.opencontainers.image.title"]
                .iter()
                .find_map(|key| all.get(*key))
        });
        match name {
            Some(name) => format!("{} (`{}`)", shown(&self.digest), shown(name)),
            None => shown(&self.digest),
        }
    }
}
