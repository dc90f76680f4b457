//! A model as the hub describes it, in JSON.
//!
//! Owns: the fields that `huggingface_hub` reads. Does not own: what the model is (`modelpack`).

use std::collections::BTreeSet;

use modelpack::manifest::{Blob, Manifest, ModelFile};
use serde_json::{Value, json};

/// Hexadecimal digits of a commit, which clients tell from a branch by their number.
const COMMIT_DIGITS: usize = 40;

/// The hub's dates say when something was uploaded, which no manifest does.
const NO_DATE: &str = "1970-01-01T00:00:00.000Z";

/// What stands for a commit: the first digits of the manifest's digest, which names every byte of it.
pub(super) fn commit(manifest: &Manifest) -> String {
    manifest.digest().hex()[..COMMIT_DIGITS].to_owned()
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_DIGITS && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn blob<'a>(manifest: &'a Manifest, file: &ModelFile) -> &'a Blob {
    &manifest.blobs()[file.blob.0 as usize]
}

/// What the hub says of a model.
pub(super) fn info(id: &str, manifest: &Manifest) -> Value {
    let sibling = |file: &ModelFile| {
        let blob = blob(manifest, file);
        json!({ "rfilename": file.path, "size": blob.size, "blobId": blob.digest.hex(), "lfs": lfs(blob) })
    };
    json!({
        "_id": commit(manifest),
        "id": id,
        "modelId": id,
        "author": id.split_once('/').map(|(organisation, _)| organisation),
        "sha": commit(manifest),
        "createdAt": NO_DATE,
        "lastModified": NO_DATE,
        "private": false,
        "gated": false,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": manifest.files().iter().map(sibling).collect::<Vec<_>>(),
    })
}

/// What is below a directory, in the order in which it is fetched; `None` if there is no such directory.
pub(super) fn tree(manifest: &Manifest, dir: Option<&str>, is_recursive: bool) -> Option<Value> {
    let prefix = dir.map(|dir| format!("{}/", dir.trim_end_matches('/'))).unwrap_or_default();
    let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
    for file in manifest.files() {
        let Some(rest) = file.path.strip_prefix(&prefix) else { continue };
        let blob = blob(manifest, file);
        for (at, _) in rest.match_indices('/') {
            let path = format!("{prefix}{}", &rest[..at]);
            if seen.insert(path.clone()) {
                entries
                    .push(json!({ "type": "directory", "oid": commit(manifest), "size": 0, "path": path }));
            }
            if !is_recursive {
                break;
            }
        }
        if is_recursive || !rest.contains('/') {
            entries.push(json!({
                "type": "file",
                "oid": &blob.digest.hex()[..COMMIT_DIGITS],
                "size": blob.size,
                "path": file.path,
                "lfs": lfs(blob),
            }));
        }
    }
    (dir.is_none() || !entries.is_empty()).then_some(Value::Array(entries))
}

fn lfs(blob: &Blob) -> Value {
    let hex = blob.digest.hex();
    json!({ "oid": hex, "sha256": hex, "size": blob.size, "pointerSize": 0 })
}
