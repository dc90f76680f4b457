//! What holds for any input to the parsers of the format.
//!
//! Owns: the properties. Does not own: where inputs come from: a fuzzer, or the corpora that ordinary tests replay.

use modelpack::{
    config::ModelConfig,
    digest::Sha256Digest,
    index::sole_manifest,
    manifest::Manifest,
    modelfile::{Modelfile, without_time},
    piece_trees::TreesManifest,
    reference::Reference,
    safetensors,
};
use serde_json::{Value, json};

/// A manifest, an index or a list of piece trees.
pub(crate) fn manifest(data: &[u8]) {
    // What is refused is refused in words.
    let _ = sole_manifest(data).map_err(|error| error.to_string());
    let _ = TreesManifest::parse(data).map_err(|error| error.to_string());
    match Manifest::parse(data) {
        Ok(manifest) => whole(&manifest),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Whatever is accepted is in itself whole, and no path of it leads out of its directory.
fn whole(manifest: &Manifest) {
    let layout = manifest.layout();
    assert_eq!(manifest.blobs().len(), layout.blob_count() as usize);
    let bytes: u64 = layout.all().pieces().take(4096).map(|piece| layout.piece_bytes(piece)).sum();
    assert!(bytes <= layout.total_bytes());
    let mut paths = Vec::new();
    for file in manifest.files() {
        assert!((file.blob.0 as usize) < manifest.blobs().len());
        plain(&file.path);
        assert_eq!(file.mode & !0o777, 0, "no special bits");
        paths.push(&file.path);
    }
    for archive in manifest.archives() {
        assert!((archive.blob.0 as usize) < manifest.blobs().len());
    }
    paths.sort();
    assert!(paths.windows(2).all(|two| two[0] != two[1]), "no path twice");
}

fn plain(path: &str) {
    assert!(!path.starts_with('/') && !path.contains('\0'), "{path:?}");
    assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..")), "{path:?}");
}

/// The config of a model.
pub(crate) fn config(data: &[u8]) {
    if let Err(error) = ModelConfig::parse(data) {
        assert!(!error.to_string().is_empty());
    }
}

/// A Modelfile. What was read is what is read again from how it is written.
pub(crate) fn modelfile(data: &[u8]) {
    let Ok(read) = Modelfile::parse(data) else { return };
    let text = read.text();
    let mut again = Modelfile::parse(text.as_bytes()).expect("what was written can be read");
    assert_eq!(again.facts, read.facts);
    let mut kinds: Vec<_> = read.choices.iter().map(|choice| (choice.kind, choice.pattern.clone())).collect();
    let mut kinds_again: Vec<_> =
        again.choices.drain(..).map(|choice| (choice.kind, choice.pattern)).collect();
    kinds.dedup();
    kinds_again.dedup();
    assert_eq!(kinds_again, kinds);
    let paths = ["config.json", "model.safetensors", "a/b/c", "[x]*?", "\\"];
    let _ = read.select(&paths);
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(without_time(text).len() <= text.len());
    }
}

/// What stands in the annotations of a layer: media type, title, path, metadata and root, a line each.
pub(crate) fn annotations(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (media_type, size) = (next(), next());
    let named = [
        ("org.opencontainers.image.title", next()),
        ("org.cncf.model.filepath", next()),
        ("org.cncf.model.file.metadata+json", next()),
        ("org.modelcast.blake3", next()),
        ("org.cnai.model.filepath", next()),
        ("org.cnai.model.file.metadata+json", next()),
    ];
    let annotations: serde_json::Map<String, Value> = named
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    let digest = Sha256Digest::of(b"x").to_string();
    let raw = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": digest, "size": 2},
        "layers": [{
            "mediaType": media_type,
            "digest": digest,
            "size": size.parse().unwrap_or(1_u64),
            "annotations": annotations,
        }],
    });
    manifest(raw.to_string().as_bytes());
}

/// The header of a safetensors file, after eight bytes that say how long the file is.
pub(crate) fn safetensors(data: &[u8]) {
    let Some((length, header)) = data.split_first_chunk() else { return };
    let _ = safetensors::header_bytes(*length);
    // A file of any size, or the one that the header describes.
    let start = 8 + header.len() as u64;
    for file_bytes in [u64::from_le_bytes(*length), start, start + u64::from(length[0])] {
        let Ok(tensors) = safetensors::tensors(header, file_bytes) else { continue };
        let mut at = start;
        for tensor in &tensors {
            assert!(tensor.bytes == 0 || tensor.offset == at, "no gap and nothing twice");
            at = at.max(tensor.offset + tensor.bytes);
        }
        assert_eq!(at, file_bytes, "all of the file");
        let _ = safetensors::Summary::of(&tensors);
    }
}

/// A reference. What is read is what is read again from how it is shown.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let shown = reference.to_string();
            assert_eq!(shown.parse::<Reference>().ok().as_ref(), Some(&reference), "{shown:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
