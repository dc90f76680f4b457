//! What a layer says of its file besides bytes and path.
//!
//! Source: ModelPack specification 0.0.7, docs/annotations.md (`file.metadata+json`). Owns: reading it, leniently. Does
//! not own: owners and groups, which nobody restores.

use std::time::{Duration, UNIX_EPOCH};

use crate::{
    document::DocumentDescriptor,
    manifest::{METADATA_ANNOTATION, ManifestError},
};

const FORMER_METADATA_ANNOTATION: &str = "org.cnai.model.file.metadata+json";

/// 9999-12-31T23:59:59Z: the last time that RFC 3339 can write.
pub(crate) const UNIX_SECONDS_MAX: u64 = 253_402_300_799;

/// The mode of a file of which nothing is said.
const MODE: u32 = 0o644;

/// When a file was last modified, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Modified {
    /// Whole seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

impl Modified {
    /// `None` for a time that only says that there is none: 1970, as reproducible builds write it, and before.
    pub fn new(seconds: i64, nanoseconds: u32) -> Option<Self> {
        (seconds > 0 && nanoseconds < 1_000_000_000).then_some(Self { seconds, nanoseconds })
    }

    /// As RFC 3339, in UTC; the last time that can be written for any later one.
    pub(crate) fn to_rfc3339(self) -> String {
        let seconds = u64::try_from(self.seconds).unwrap_or_default().min(UNIX_SECONDS_MAX);
        let time = UNIX_EPOCH + Duration::new(seconds, self.nanoseconds);
        humantime::format_rfc3339_nanos(time).to_string()
    }

    /// Reads RFC 3339, with any offset.
    fn parse(text: &str) -> Option<Self> {
        let (utc, offset_seconds) = without_offset(text)?;
        let since = humantime::parse_rfc3339(&utc).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let seconds = i64::try_from(Duration::as_secs(&since)).ok()?.checked_sub(offset_seconds)?;
        Self::new(seconds, since.subsec_nanos())
    }
}

/// The time of day as it is written, and by how many seconds it is ahead of UTC.
fn without_offset(text: &str) -> Option<(String, i64)> {
    if text.ends_with('Z') {
        return Some((text.to_owned(), 0));
    }
    let at = text.len().checked_sub(6)?;
    let (local, offset) = (text.get(..at)?, text.get(at..)?);
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    let sign = match offset.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    Some((format!("{local}Z"), sign * seconds))
}

pub(super) struct Metadata {
    /// As it is stated.
    pub(super) mode: u32,
    pub(super) modified: Option<Modified>,
}

/// What we need of the annotation. Other tools' odd values are no reason to refuse a model, so only a file type that is
/// clearly not a regular file is.
pub(super) fn of(layer: usize, descriptor: &DocumentDescriptor) -> Result<Metadata, ManifestError> {
    let metadata: serde_json::Value = [METADATA_ANNOTATION, FORMER_METADATA_ANNOTATION]
        .iter()
        .find_map(|key| descriptor.annotation(key))
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    // The type flags of tar: 0 and the character `0` are regular files.
    match metadata.get("typeflag").and_then(serde_json::Value::as_u64) {
        None | Some(0 | 48) => {}
        Some(other) => {
            let problem = format!("is not a regular file, but of the type {other}");
            return Err(ManifestError::Annotation { layer, problem });
        }
    }
    let mode = metadata.get("mode").and_then(serde_json::Value::as_u64);
    let modified = metadata.get("mtime").and_then(serde_json::Value::as_str).and_then(Modified::parse);
    Ok(Metadata { mode: mode.map_or(MODE, |mode| u32::try_from(mode & 0o7777).unwrap_or(MODE)), modified })
}

/// The permissions that a file gets of those that are stated for it: its owner may read and write it, group and others
/// may not write it, it changes nobody's identity, and what somebody may execute its owner may.
pub fn published_mode(stated: u32) -> u32 {
    let owner = if stated & 0o111 == 0 { 0o600 } else { 0o700 };
    (stated & 0o755) | owner
}
