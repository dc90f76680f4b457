//! Whose conventions a manifest follows.
//!
//! Owns: telling models of the tools that are in use from each other and from what is no model. Does not own: what
//! single layers are (`layer`).

use std::fmt;

use crate::{
    document::Document,
    manifest::{
        A_MODEL, ARTIFACT_TYPE, CONFIG_MEDIA_TYPE, INDEX_MEDIA_TYPES, ManifestError, check_form, other_kind,
        stated_path,
    },
    text::shown,
};

const FORMER_ARTIFACT_TYPE: &str = "application/vnd.cnai.model.manifest.v1+json";
const FORMER_CONFIG_MEDIA_TYPE: &str = "application/vnd.cnai.model.config.v1+json";
const KIT_CONFIG_MEDIA_TYPE: &str = "application/vnd.kitops.modelkit.config.v1+json";
const DOCKER_CONFIG_PREFIX: &str = "application/vnd.docker.ai.model.config.";
/// The configs of container images.
const IMAGE_CONFIG_MEDIA_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const DOCKER_IMAGE_MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Whose conventions an artifact follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// The ModelPack specification, in either dialect.
    ModelPack,
    /// A `ModelKit`, as KitOps packs it.
    ModelKit,
    /// A model of Docker Model Runner.
    DockerModel,
    /// Any artifact whose layers name files, as ORAS pushes it.
    Files,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ModelPack => "ModelPack",
            Self::ModelKit => "ModelKit",
            Self::DockerModel => "Docker model",
            Self::Files => "files",
        })
    }
}

/// Judges by the artifact type, and by the config's type where that is missing or says nothing to us.
pub(super) fn of(document: &Document) -> Result<Family, ManifestError> {
    if document.media_type.as_deref() == Some(DOCKER_IMAGE_MEDIA_TYPE) && !is_named(document) {
        return Err(image());
    }
    check_form(document, A_MODEL)?;
    let config = document.config.as_ref().ok_or_else(|| other_kind("it has no config"))?;
    let config = config.media_type.as_str();
    let is_model_config = matches!(config, CONFIG_MEDIA_TYPE | FORMER_CONFIG_MEDIA_TYPE);
    let artifact_type = document.artifact_type.as_deref().filter(|stated| !stated.is_empty());
    match artifact_type {
        Some(ARTIFACT_TYPE | FORMER_ARTIFACT_TYPE) if !is_model_config => {
            return Err(other_kind(&format!("its config has the media type `{}`", shown(config))));
        }
        Some(ARTIFACT_TYPE | FORMER_ARTIFACT_TYPE) | None if is_model_config => return Ok(Family::ModelPack),
        Some(other) if is_model_config => {
            return Err(other_kind(&format!("its artifact type is `{}`", shown(other))));
        }
        _ => {}
    }
    if config == KIT_CONFIG_MEDIA_TYPE {
        return Ok(Family::ModelKit);
    }
    if config.starts_with(DOCKER_CONFIG_PREFIX) {
        return Ok(Family::DockerModel);
    }
    if is_named(document) {
        return Ok(Family::Files);
    }
    match artifact_type {
        None if IMAGE_CONFIG_MEDIA_TYPES.contains(&config) => Err(image()),
        Some(other) => {
            Err(other_kind(&format!("its artifact type is `{}`, and its layers name no files", shown(other))))
        }
        None => Err(other_kind(&format!(
            "its config has the media type `{}`, and its layers name no files",
            shown(config)
        ))),
    }
}

/// Whether the list of a manifest's media types says that it is a list of manifests.
pub(crate) fn is_index(media_type: &str) -> bool {
    INDEX_MEDIA_TYPES.contains(&media_type)
}

/// Whether an artifact type is one of a model.
pub(crate) fn is_model_type(artifact_type: &str) -> bool {
    matches!(artifact_type, ARTIFACT_TYPE | FORMER_ARTIFACT_TYPE)
        || artifact_type.starts_with("application/vnd.kitops.modelkit.")
        || artifact_type.starts_with("application/vnd.docker.ai.")
}

fn image() -> ManifestError {
    other_kind("it is a container image")
}

/// Whether any layer says what file it is. Where some do and some do not, the latter get an error of their own.
fn is_named(document: &Document) -> bool {
    document
        .layers
        .as_ref()
        .is_some_and(|layers| layers.kept.iter().any(|layer| stated_path(layer).is_some()))
}
