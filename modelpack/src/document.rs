//! The JSON of an OCI image manifest, as it is read and as it is written.
//!
//! Source: OCI image specification 1.1, "Image Manifest Specification" and "Content Descriptors". Owns: the form.
//! Does not own: what the values mean or which are allowed.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use crate::digest::Sha256Digest;

/// Annotations in the order of their keys, so that the same ones always give the same bytes.
pub(crate) type Annotations = BTreeMap<String, String>;

/// A manifest as somebody wrote it. Everything is optional, so that what is missing gets a better message than a
/// JSON parser has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) schema_version: Option<u64>,
    pub(crate) media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Option<DocumentDescriptor>,
    pub(crate) layers: Option<Layers>,
    pub(crate) subject: Option<DocumentDescriptor>,
    /// Only an image index has it.
    pub(crate) manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DocumentDescriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) annotations: Option<Annotations>,
}

impl DocumentDescriptor {
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// The layers of a manifest. Of those beyond the limit only their number is kept.
pub(crate) struct Layers {
    pub(crate) kept: Vec<DocumentDescriptor>,
    pub(crate) count: usize,
}

/// Most layers of a manifest.
pub(crate) const LAYERS_MAX: usize = 8192;

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LayersVisitor)
    }
}

struct LayersVisitor;

impl<'de> Visitor<'de> for LayersVisitor {
    type Value = Layers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of layers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < LAYERS_MAX {
            match list.next_element()? {
                Some(layer) => kept.push(layer),
                None => return Ok(Layers { count: kept.len(), kept }),
            }
        }
        let mut count = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Layers { kept, count })
    }
}

/// A manifest to be written. The order of the fields is the order of the bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewDocument {
    pub(crate) schema_version: u64,
    pub(crate) media_type: &'static str,
    pub(crate) artifact_type: &'static str,
    pub(crate) config: NewDescriptor,
    pub(crate) layers: Vec<NewDescriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<NewDescriptor>,
    #[serde(skip_serializing_if = "Annotations::is_empty")]
    pub(crate) annotations: Annotations,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewDescriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "Annotations::is_empty")]
    pub(crate) annotations: Annotations,
}

impl NewDescriptor {
    /// Of a blob whose bytes are at hand.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Sha256Digest::of(bytes).to_string(),
            size: bytes.len() as u64,
            annotations: Annotations::new(),
        }
    }
}

/// The bytes of a document or of a part of one.
pub(crate) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs with string keys, written to memory")
}
