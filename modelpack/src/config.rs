//! The ModelPack config blob: what is known of a model besides its files.
//!
//! Source: ModelPack specification 0.0.7, docs/config.md. Owns: reading it, leniently, because nothing is decided by
//! it. Does not own: writing it.

use serde_json::Value;

/// Most bytes of a config: as for a manifest; real ones have a few hundred bytes, and 71 more a layer.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// A config blob that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It is longer than any real one.
    #[error("the config has {0} bytes, over the limit of {CONFIG_BYTES_MAX}")]
    TooLong(usize),
    /// It is not JSON.
    #[error("the config is not JSON")]
    Json(#[source] serde_json::Error),
    /// It is JSON, but no object.
    #[error("the config is not a JSON object")]
    NotAnObject,
}

impl ConfigError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        Some("build the artifact again with `modelctl build`".into())
    }
}

/// What a config says of its model; each part only if it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The model's name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its family, such as `llama`.
    pub family: Option<String>,
    /// Its architecture, such as `transformer`.
    pub architecture: Option<String>,
    /// The format of its weight files, such as `safetensors`.
    pub format: Option<String>,
    /// The types of its numbers, such as `bfloat16`.
    pub precision: Option<String>,
    /// How it is quantized, such as `awq`.
    pub quantization: Option<String>,
    /// How many parameters it has, such as `6.7B`.
    pub param_size: Option<String>,
    /// The SPDX identifiers of its licences.
    pub licenses: Vec<String>,
    /// Where it comes from.
    pub source_url: Option<String>,
    /// Which revision of that it is.
    pub revision: Option<String>,
    /// When it was made, in RFC 3339.
    pub created_at: Option<String>,
}

impl ModelConfig {
    /// Reads a config. Fields that are unknown, or of an unexpected type, are skipped.
    pub fn parse(raw: &[u8]) -> Result<Self, ConfigError> {
        if raw.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong(raw.len()));
        }
        let json: Value = serde_json::from_slice(raw).map_err(ConfigError::Json)?;
        if !json.is_object() {
            return Err(ConfigError::NotAnObject);
        }
        let text = |pointer: &str| {
            json.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let licenses = json.pointer("/descriptor/licenses").and_then(Value::as_array);
        Ok(Self {
            name: text("/descriptor/name"),
            version: text("/descriptor/version"),
            family: text("/descriptor/family"),
            architecture: text("/config/architecture"),
            format: text("/config/format"),
            precision: text("/config/precision"),
            quantization: text("/config/quantization"),
            param_size: text("/config/paramSize"),
            licenses: licenses.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
            source_url: text("/descriptor/sourceURL"),
            revision: text("/descriptor/revision"),
            created_at: text("/descriptor/createdAt"),
        })
    }
}
