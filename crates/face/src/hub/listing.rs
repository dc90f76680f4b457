//! A model as the hub describes it, in JSON.
//!
//! Owns: the fields that `huggingface_hub` reads, and what an artifact of a registry is as a model of a hub. Does not own:
//! what the model is (`modelpack`).

use std::collections::BTreeSet;

use modelpack::manifest::{Manifest, ModelFile};
use serde_json::{Value, json};

use crate::seam::{HubFile, HubModel};

/// Hexadecimal digits of a commit, which clients tell from a branch by their number.
const COMMIT_DIGITS: usize = 40;

/// The hub's dates say when something was uploaded, which no manifest does.
const NO_DATE: &str = "1970-01-01T00:00:00.000Z";

/// An artifact as a model of a hub. What stands for a commit are the first digits of the manifest's digest, which names
/// every byte of it.
pub(super) fn of_artifact(manifest: &Manifest) -> HubModel {
    let digits = |hex: String| hex[..COMMIT_DIGITS].to_owned();
    let file = |file: &ModelFile| {
        let blob = &manifest.blobs()[file.blob.0 as usize];
        let git = digits(blob.digest.hex());
        HubFile { path: file.path.clone(), size: blob.size, digest: blob.digest, git, is_large: true }
    };
    HubModel { commit: digits(manifest.digest().hex()), files: manifest.files().iter().map(file).collect() }
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_DIGITS && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What the hub says of a model.
pub(super) fn info(id: &str, model: &HubModel) -> Value {
    let sibling = |file: &HubFile| {
        let mut sibling = json!({ "rfilename": file.path, "size": file.size, "blobId": file.tag() });
        if file.is_large {
            sibling["lfs"] = lfs(file);
        }
        sibling
    };
    json!({
        "_id": model.commit,
        "id": id,
        "modelId": id,
        "author": id.split_once('/').map(|(organisation, _)| organisation),
        "sha": model.commit,
        "createdAt": NO_DATE,
        "lastModified": NO_DATE,
        "private": false,
        "gated": false,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": model.files.iter().map(sibling).collect::<Vec<_>>(),
    })
}

/// What is below a directory, in the order in which it is fetched; `None` if there is no such directory.
pub(super) fn tree(model: &HubModel, dir: Option<&str>, is_recursive: bool) -> Option<Value> {
    let prefix = dir.map(|dir| format!("{}/", dir.trim_end_matches('/'))).unwrap_or_default();
    let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
    for file in &model.files {
        let Some(rest) = file.path.strip_prefix(&prefix) else { continue };
        for (at, _) in rest.match_indices('/') {
            let path = format!("{prefix}{}", &rest[..at]);
            if seen.insert(path.clone()) {
                entries.push(json!({ "type": "directory", "oid": model.commit, "size": 0, "path": path }));
            }
            if !is_recursive {
                break;
            }
        }
        if is_recursive || !rest.contains('/') {
            let mut entry = json!({ "type": "file", "oid": file.git, "size": file.size, "path": file.path });
            if file.is_large {
                entry["lfs"] = lfs(file);
            }
            entries.push(entry);
        }
    }
    (dir.is_none() || !entries.is_empty()).then_some(Value::Array(entries))
}

fn lfs(file: &HubFile) -> Value {
    let hex = file.digest.hex();
    json!({ "oid": hex, "sha256": hex, "size": file.size, "pointerSize": 0 })
}
