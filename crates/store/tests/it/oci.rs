//! `oci:` layouts: written twice, read by us and by skopeo.

use std::{fs::File, io::Read as _, path::Path, process::Command};

use ::store::{ErrorClass, LayoutReader, LayoutWriter, StoreError};
use modelpack::digest::Sha256Digest;

use crate::support::{pattern, skip, snapshot};

const PIECES: &str = "application/vnd.modelcast.pieces.v1";

fn source(dir: &Path, bytes: &[u8]) -> File {
    let path = dir.join("source");
    std::fs::write(&path, bytes).unwrap();
    File::open(path).unwrap()
}

fn manifest(
    layer: &Sha256Digest,
    size: usize,
    config: &Sha256Digest,
    subject: Option<&Sha256Digest>,
) -> Vec<u8> {
    let subject = subject
        .map(|digest| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            format!(r#","subject":{{"mediaType":"{media_type}","digest":"{digest}","size":1}}"#)
        })
        .unwrap_or_default();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.cncf.model.config.v1+json","digest":"{config}","size":2}},
        "layers":[{{"mediaType":"application/vnd.cncf.model.weight.v1.raw","digest":"{layer}","size":{size}}}]{subject}}}"#
    )
    .into_bytes()
}

/// Writes one artifact and its referrer; says the two manifests.
fn write(dir: &Path, layer: &[u8], tag: &str) -> (Vec<u8>, Vec<u8>) {
    let temporary = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::open(dir).unwrap();
    let digest = Sha256Digest::of(layer);
    writer.write_blob(&digest, layer.len() as u64, &source(temporary.path(), layer)).unwrap();
    let config = writer.write_bytes(b"{}").unwrap();
    let raw = manifest(&digest, layer.len(), &config, None);
    let subject = writer.put_manifest(&raw, Some(tag)).unwrap();
    let referrer = manifest(&digest, layer.len(), &config, Some(&subject));
    writer.put_referrer(&referrer, PIECES).unwrap();
    (raw, referrer)
}

#[test]
fn what_was_written_is_read_back_and_writing_again_changes_nothing() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("layout");
    let layer = pattern(1, 5000);
    let (raw, referrer) = write(&dir, &layer, "v1");
    let before = snapshot(&dir);
    write(&dir, &layer, "v1");
    assert_eq!(snapshot(&dir), before);
    let reader = LayoutReader::open(&dir).unwrap();
    let found = reader.resolve(Some("v1")).unwrap();
    assert_eq!(found, reader.resolve(None).unwrap(), "the referrer is not mistaken for the artifact");
    assert_eq!(reader.manifest(&found.digest).unwrap(), raw);
    assert_eq!(found.size, raw.len() as u64);
    let mut blob = reader.blob(&Sha256Digest::of(&layer), layer.len() as u64).unwrap();
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, layer);
    assert!(reader.blob(&Sha256Digest::of(&layer), 1).is_err(), "a size that is not the blob's");
    let referrers = reader.referrers(&found.digest, PIECES).unwrap();
    assert_eq!(referrers.len(), 1);
    assert_eq!(reader.manifest(&referrers[0].digest).unwrap(), referrer);
    assert!(reader.referrers(&found.digest, "application/other").unwrap().is_empty());
    assert!(matches!(reader.resolve(Some("v2")), Err(StoreError::Missing { .. })));
}

#[test]
fn a_tag_moves_to_the_manifest_that_was_written_last() {
    let top = tempfile::tempdir().unwrap();
    write(top.path(), &pattern(1, 10), "v1");
    write(top.path(), &pattern(1, 10), "stable");
    let (second, _) = write(top.path(), &pattern(2, 10), "v1");
    let reader = LayoutReader::open(top.path()).unwrap();
    assert_eq!(reader.resolve(Some("v1")).unwrap().digest, Sha256Digest::of(&second));
    assert_ne!(reader.resolve(Some("stable")).unwrap().digest, Sha256Digest::of(&second));
    assert!(reader.resolve(None).is_err(), "there are two");
}

#[test]
fn a_source_that_changed_since_it_was_hashed_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("layout");
    let writer = LayoutWriter::open(&dir).unwrap();
    let before = snapshot(&dir);
    let digest = Sha256Digest::of(b"as it was");
    let error = writer.write_blob(&digest, 9, &source(top.path(), b"as it is!")).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Integrity);
    assert_eq!(snapshot(&dir), before);
}

#[test]
fn a_damaged_manifest_is_an_integrity_error() {
    let top = tempfile::tempdir().unwrap();
    let (raw, _) = write(top.path(), &pattern(1, 10), "v1");
    let digest = Sha256Digest::of(&raw);
    std::fs::write(top.path().join("blobs/sha256").join(digest.hex()), b"{}").unwrap();
    let reader = LayoutReader::open(top.path()).unwrap();
    assert_eq!(reader.manifest(&digest).unwrap_err().class(), ErrorClass::Integrity);
}

#[test]
fn a_directory_with_other_things_in_it_does_not_become_a_layout() {
    let top = tempfile::tempdir().unwrap();
    std::fs::write(top.path().join("notes.txt"), b"mine").unwrap();
    let before = snapshot(top.path());
    assert!(matches!(LayoutWriter::open(top.path()), Err(StoreError::Occupied { .. })));
    assert_eq!(snapshot(top.path()), before);
    assert!(matches!(LayoutReader::open(top.path()), Err(StoreError::Missing { .. })));
}

#[test]
fn skopeo_reads_the_manifest() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("layout");
    let (raw, _) = write(&dir, &pattern(1, 5000), "v1");
    let reference = format!("oci:{}:v1", dir.display());
    match Command::new("skopeo").args(["inspect", "--raw", &reference]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.stdout, raw);
        }
        Err(error) => skip(&format!("skopeo does not run here: {error}")),
    }
}
