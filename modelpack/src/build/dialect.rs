//! The two families of names that ModelPack artifacts have.
//!
//! Source: ModelPack specification 0.0.7, and the drafts before it. Owns: which names are written. Does not own: reading
//! either, which `manifest` does.

use crate::manifest::{ARTIFACT_TYPE, CONFIG_MEDIA_TYPE};

/// Which names a new artifact has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Those of the specification: `vnd.cncf`, `org.cncf`.
    #[default]
    Cncf,
    /// Those of its drafts, `vnd.cnai` and `org.cnai`: some registries know models by them only.
    Cnai,
}

impl Dialect {
    /// A name of the specification in this dialect.
    pub(super) fn spell(self, name: &str) -> String {
        match self {
            Self::Cncf => name.to_owned(),
            Self::Cnai => name.replacen(".cncf.", ".cnai.", 1),
        }
    }

    pub(super) const fn artifact_type(self) -> &'static str {
        match self {
            Self::Cncf => ARTIFACT_TYPE,
            Self::Cnai => "application/vnd.cnai.model.manifest.v1+json",
        }
    }

    pub(super) const fn config_media_type(self) -> &'static str {
        match self {
            Self::Cncf => CONFIG_MEDIA_TYPE,
            Self::Cnai => "application/vnd.cnai.model.config.v1+json",
        }
    }
}
