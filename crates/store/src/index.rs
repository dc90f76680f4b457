//! `index.json` and `oci-layout` of an OCI image layout (OCI image specification 1.1, "Image Layout").
//!
//! Owns: reading and rewriting the list of manifests. Does not own: blobs, or who may write at the same time.

use modelpack::digest::Sha256Digest;
use serde_json::{Map, Value, json};

use crate::{error::StoreError, files::Dir};

pub(crate) const INDEX_NAME: &str = "index.json";
pub(crate) const LAYOUT_NAME: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Most bytes of an index: some ten thousand manifests.
const INDEX_BYTES_MAX: u64 = 8 << 20;

/// One manifest of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) media_type: String,
    pub(crate) digest: Sha256Digest,
    pub(crate) size: u64,
    pub(crate) tag: Option<String>,
    pub(crate) artifact_type: Option<String>,
}

impl Entry {
    fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("mediaType".into(), self.media_type.clone().into());
        json.insert("digest".into(), self.digest.to_string().into());
        json.insert("size".into(), self.size.into());
        if let Some(artifact_type) = &self.artifact_type {
            json.insert("artifactType".into(), artifact_type.clone().into());
        }
        if let Some(tag) = &self.tag {
            json.insert("annotations".into(), json!({ REF_NAME: tag }));
        }
        Value::Object(json)
    }

    /// `None` for a descriptor that is none of ours to understand, such as one of another digest algorithm.
    fn from_json(json: &Value) -> Option<Self> {
        let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            media_type: text("mediaType").unwrap_or_default(),
            digest: text("digest")?.parse().ok()?,
            size: json.get("size")?.as_u64()?,
            tag: json
                .get("annotations")
                .and_then(|a| a.get(REF_NAME))
                .and_then(Value::as_str)
                .map(str::to_owned),
            artifact_type: text("artifactType"),
        })
    }
}

/// The content of an `index.json`. Fields and descriptors of others are kept as they are.
#[derive(Debug)]
pub(crate) struct Index {
    json: Map<String, Value>,
}

impl Index {
    /// Reads the index of a layout; empty if there is none.
    pub(crate) fn load(dir: &Dir) -> Result<Self, StoreError> {
        let Some(bytes) = dir.read_small(INDEX_NAME, INDEX_BYTES_MAX)? else {
            let json = json!({ "schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": [] });
            return match json {
                Value::Object(json) => Ok(Self { json }),
                _ => unreachable!("written as an object above"),
            };
        };
        let malformed = |reason: String| StoreError::Malformed { path: dir.path().join(INDEX_NAME), reason };
        let json: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if !json.get("manifests").is_some_and(Value::is_array) {
            return Err(malformed("it lists no manifests".into()));
        }
        Ok(Self { json })
    }

    pub(crate) fn save(&self, dir: &Dir) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(&self.json).expect("JSON values always serialise");
        dir.write_atomic(INDEX_NAME, &bytes)
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.manifests().iter().filter_map(Entry::from_json).collect()
    }

    /// Adds a manifest. Its tag moves here from whatever had it; without a tag it is listed once.
    pub(crate) fn put(&mut self, entry: &Entry) {
        let mut kept = Vec::new();
        for json in self.manifests() {
            let Some(other) = Entry::from_json(json) else {
                kept.push(json.clone());
                continue;
            };
            let is_replaced = match &entry.tag {
                // An untagged listing of the same manifest is the same manifest before it had a name.
                Some(_) => other.tag == entry.tag || (other.tag.is_none() && other.digest == entry.digest),
                None => other.digest == entry.digest,
            };
            if entry.tag.is_none() && is_replaced && other.tag.is_some() {
                return;
            }
            if !is_replaced {
                kept.push(json.clone());
            }
        }
        kept.push(entry.to_json());
        self.json.insert("manifests".into(), Value::Array(kept));
    }

    /// Takes a manifest out, under all its tags.
    pub(crate) fn remove(&mut self, digest: &Sha256Digest) {
        let is_other = |json: &&Value| Entry::from_json(json).is_none_or(|entry| entry.digest != *digest);
        let kept = self.manifests().iter().filter(is_other).cloned().collect();
        self.json.insert("manifests".into(), Value::Array(kept));
    }

    /// Takes a name from the manifest that has it, which stays listed; says whose it was.
    pub(crate) fn unname(&mut self, name: &str) -> Option<Sha256Digest> {
        let entries = self.entries();
        let named = entries.iter().find(|entry| entry.tag.as_deref() == Some(name))?.clone();
        let is_other =
            |json: &&Value| Entry::from_json(json).is_none_or(|entry| entry.tag.as_deref() != Some(name));
        let kept = self.manifests().iter().filter(is_other).cloned().collect();
        self.json.insert("manifests".into(), Value::Array(kept));
        let digest = named.digest;
        if !self.entries().iter().any(|entry| entry.digest == digest) {
            self.put(&Entry { tag: None, ..named });
        }
        Some(digest)
    }

    fn manifests(&self) -> &[Value] {
        self.json.get("manifests").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// Makes `dir` an OCI image layout, if it is none yet.
pub(crate) fn make_layout(dir: &Dir) -> Result<(), StoreError> {
    if dir.stat(LAYOUT_NAME)?.is_none() {
        dir.write_atomic(LAYOUT_NAME, LAYOUT)?;
    }
    if dir.stat(INDEX_NAME)?.is_none() {
        Index::load(dir)?.save(dir)?;
    }
    Ok(())
}

/// The media type and artifact type that a manifest gives itself.
pub(crate) fn types_of(raw: &[u8]) -> Result<(String, Option<String>), serde_json::Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Types {
        #[serde(default = "image_manifest")]
        media_type: String,
        artifact_type: Option<String>,
    }
    fn image_manifest() -> String {
        "application/vnd.oci.image.manifest.v1+json".into()
    }
    serde_json::from_slice::<Types>(raw).map(|types| (types.media_type, types.artifact_type))
}
