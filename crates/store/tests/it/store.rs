//! The content store: what may be reused, and what may not.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
};

use ::store::{BlobIdentity, ErrorClass, LayoutWriter, Store, StoreError};
use modelpack::{digest::Sha256Digest, layout::BlobIndex};

use crate::support::{Artifact, TWO_PIECES, pattern};

fn fill(store: &Store, artifact: &Artifact) {
    let (landing, _) = store.landing(artifact.contents.clone()).unwrap();
    artifact.commit_all(&landing);
    for (blob, proof) in artifact.contents.blobs.iter().zip(artifact.proofs(&landing)) {
        store.finish_blob(&landing, blob, &proof).unwrap();
    }
}

fn read(store: &Store, blob: &BlobIdentity) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    store.blob_file(blob).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn path_of(dir: &Path, algorithm: &str, hex: &str) -> std::path::PathBuf {
    dir.join("blobs").join(algorithm).join(hex)
}

#[test]
fn a_proved_blob_is_there_for_the_next_artifact() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    fill(&store, &artifact);
    let blob = artifact.contents.blobs[0];
    assert_eq!(read(&store, &blob).unwrap(), artifact.bytes[0]);
    let path = path_of(dir.path(), "blake3", &blob.root.unwrap().hex());
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o444);
    // Another artifact with one blob in common and one that is new.
    let next = Artifact::new(vec![pattern(9, 10), artifact.bytes[0].clone()], &[("new", 0), ("old", 1)]);
    let (landing, here) = store.landing(next.contents.clone()).unwrap();
    assert_eq!(here.runs(), [next.contents.layout.pieces_of(BlobIndex(1))]);
    assert!(landing.prove_verified(BlobIndex(0)).is_none());
    let proof = landing.prove_verified(BlobIndex(1)).unwrap();
    store.finish_blob(&landing, &next.contents.blobs[1], &proof).unwrap();
    assert!(matches!(landing.forget_blob(BlobIndex(1)), Err(StoreError::Sealed { .. })));
}

#[test]
fn a_proof_that_does_not_fit_finishes_nothing() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    let (landing, here) = store.landing(artifact.contents.clone()).unwrap();
    assert!(here.is_empty());
    artifact.commit_all(&landing);
    let proof = landing.prove_sha256(BlobIndex(0), &artifact.contents.blobs[0].digest).unwrap();
    let wrong = artifact.contents.blobs[1];
    assert!(matches!(store.finish_blob(&landing, &wrong, &proof), Err(StoreError::Unproved { .. })));
    let root = landing.prove_root(BlobIndex(0), &artifact.trees[0].root()).unwrap();
    let other_root = BlobIdentity { root: Some(artifact.trees[1].root()), ..artifact.contents.blobs[0] };
    for proof in [proof, root] {
        assert!(matches!(store.finish_blob(&landing, &other_root, &proof), Err(StoreError::Unproved { .. })));
    }
    assert!(store.blob_file(&artifact.contents.blobs[0]).unwrap().is_none());
}

#[test]
fn the_sha256_name_is_given_only_to_what_was_hashed_here() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    fill(&store, &artifact);
    let blob = artifact.contents.blobs[0];
    let by_sha256 = path_of(dir.path(), "sha256", &blob.digest.hex());
    assert!(!by_sha256.exists());
    let without_root = BlobIdentity { root: None, ..blob };
    assert!(store.blob_file(&without_root).unwrap().is_none(), "its SHA-256 is hearsay so far");
    let computed = store.hash_blob(&blob).unwrap();
    store.note_sha256(&blob, &computed).unwrap();
    store.note_sha256(&blob, &computed).unwrap();
    assert!(by_sha256.exists());
    assert_eq!(read(&store, &without_root).unwrap(), artifact.bytes[0]);
    assert_eq!(read(&store, &blob).unwrap(), artifact.bytes[0]);
    let other_root = BlobIdentity { root: artifact.contents.blobs[1].root, ..blob };
    assert!(store.blob_file(&other_root).unwrap().is_none());
}

#[test]
fn a_blob_is_found_also_while_it_gets_its_name() {
    let count = 128_u8;
    let bytes = (0..count).map(|seed| pattern(seed, 10)).collect();
    let names: Vec<_> = (0..count).map(|blob| format!("f{blob}")).collect();
    let files: Vec<_> = names.iter().map(String::as_str).zip(0..).collect();
    let (artifact, dir) = (Artifact::new(bytes, &files), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    fill(&store, &artifact);
    for blob in &artifact.contents.blobs {
        let computed = store.hash_blob(blob).unwrap();
        let is_there = || store.blob_file(blob).unwrap().is_some();
        std::thread::scope(|scope| {
            let naming = scope.spawn(|| store.note_sha256(blob, &computed));
            while !naming.is_finished() {
                assert!(is_there());
            }
            naming.join().unwrap().unwrap();
        });
        assert!(is_there());
    }
}

#[test]
fn a_file_is_opened_only_under_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, b"bytes").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(::store::open_file(&file).is_ok());
    assert!(matches!(::store::open_file(&link), Err(StoreError::Io { operation: "open", .. })));
}

#[test]
fn a_sha256_that_is_known_is_not_computed_again() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    fill(&store, &artifact);
    let blob = artifact.contents.blobs[0];
    store.note_sha256(&blob, &store.hash_blob(&blob).unwrap()).unwrap();
    // Other bytes behind the store's back: whoever reads them computes another hash.
    let path = path_of(dir.path(), "sha256", &blob.digest.hex());
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"other", 0).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(store.hash_blob(&blob).unwrap(), blob.digest);
}

#[test]
fn a_manifest_that_pairs_a_foreign_sha256_with_its_root_poisons_nobody() {
    let (mut liar, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let honest = Artifact::small();
    let victim = Artifact::new(vec![pattern(7, TWO_PIECES)], &[("w", 0)]);
    liar.contents.blobs[0].digest = victim.contents.blobs[0].digest;
    let store = Store::open(dir.path()).unwrap();
    // The victim's own blob is here, hashed and named; then the lie arrives.
    fill(&store, &victim);
    let owned = victim.contents.blobs[0];
    store.note_sha256(&owned, &store.hash_blob(&owned).unwrap()).unwrap();
    fill(&store, &liar);
    assert_ne!(store.hash_blob(&liar.contents.blobs[0]).unwrap(), owned.digest, "only bytes say a hash");
    fs::remove_file(path_of(dir.path(), "sha256", &owned.digest.hex())).unwrap();
    let claimed = BlobIdentity { root: None, ..victim.contents.blobs[0] };
    assert!(store.blob_file(&claimed).unwrap().is_none());
    assert!(store.blob_file(&victim.contents.blobs[0]).unwrap().is_none());
    assert!(
        store.blob_file(&honest.contents.blobs[0]).unwrap().is_none(),
        "another triple, not reused unchecked"
    );
    let lie = liar.contents.blobs[0];
    let computed = store.hash_blob(&lie).unwrap();
    assert_eq!(store.note_sha256(&lie, &computed).unwrap_err().class(), ErrorClass::Integrity);
    assert!(!path_of(dir.path(), "sha256", &lie.digest.hex()).exists());
    assert!(store.blob_file(&lie).unwrap().is_none(), "a lie that was found out is not served");
    // The honest artifact lands again and takes the place.
    fill(&store, &honest);
    assert!(store.blob_file(&honest.contents.blobs[0]).unwrap().is_some());
}

#[test]
fn without_roots_a_whole_digest_is_the_proof() {
    let (mut artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    artifact.contents.blobs[0].root = None;
    let blob = artifact.contents.blobs[0];
    let store = Store::open(dir.path()).unwrap();
    let (landing, _) = store.landing(artifact.contents.clone()).unwrap();
    artifact.commit_all(&landing);
    let pieces = landing.prove_verified(BlobIndex(0)).unwrap();
    assert!(
        store.finish_blob(&landing, &blob, &pieces).is_err(),
        "no root was stated that pieces could prove"
    );
    let proof = landing.prove_sha256(BlobIndex(0), &blob.digest).unwrap();
    store.finish_blob(&landing, &blob, &proof).unwrap();
    assert!(path_of(dir.path(), "sha256", &blob.digest.hex()).exists());
    let with_root = BlobIdentity { root: Some(artifact.trees[0].root()), ..blob };
    assert!(store.blob_file(&with_root).unwrap().is_some(), "both hashes were computed in one pass");
}

#[test]
fn a_blob_that_changed_is_not_used() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let blob = artifact.contents.blobs[0];
    {
        let store = Store::open(dir.path()).unwrap();
        fill(&store, &artifact);
    }
    let store = Store::open(dir.path()).unwrap();
    assert!(store.blob_file(&blob).unwrap().is_some(), "a restart changes nothing");
    let path = path_of(dir.path(), "blake3", &blob.root.unwrap().hex());
    fs::hard_link(&path, dir.path().join("linked")).unwrap();
    assert!(store.blob_file(&blob).unwrap().is_some(), "a second name is no change");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, pattern(200, TWO_PIECES)).unwrap();
    assert!(store.blob_file(&blob).unwrap().is_none());
}

#[test]
fn partial_blobs_are_resumed() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    {
        let store = Store::open(dir.path()).unwrap();
        let (landing, _) = store.landing(artifact.contents.clone()).unwrap();
        artifact.commit_all(&landing);
        let proof = landing.prove_verified(BlobIndex(1)).unwrap();
        store.finish_blob(&landing, &artifact.contents.blobs[1], &proof).unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let (landing, here) = store.landing(artifact.contents.clone()).unwrap();
    assert_eq!(here.runs(), [artifact.contents.layout.pieces_of(BlobIndex(1))]);
    assert_eq!(artifact.resume(&landing), 4);
    assert_eq!(artifact.proofs(&landing).len(), 3);
}

#[test]
fn manifests_are_kept_and_listed_when_all_is_there() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let raw = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let mut contents = artifact.contents.clone();
    contents.digest = Sha256Digest::of(raw);
    let digest = contents.digest;
    let store = Store::open(dir.path()).unwrap();
    let (landing, _) = store.landing(contents.clone()).unwrap();
    assert_eq!(store.put_manifest(raw).unwrap(), digest);
    assert!(matches!(store.complete(&landing, &digest), Err(StoreError::Unproved { .. })));
    artifact.commit_all(&landing);
    for (blob, proof) in contents.blobs.iter().zip(artifact.proofs(&landing)) {
        store.finish_blob(&landing, blob, &proof).unwrap();
    }
    store.complete(&landing, &digest).unwrap();
    store.complete(&landing, &digest).unwrap();
    assert_eq!(store.complete_manifests().unwrap(), [digest].into());
    assert!(!dir.path().join("partial").join(digest.hex()).exists());
    assert_eq!(store.manifest(&digest).unwrap().unwrap(), raw);
    fs::write(path_of(dir.path(), "sha256", &digest.hex()), b"{}").unwrap();
    assert!(store.manifest(&digest).unwrap().is_none(), "a damaged manifest is as good as absent");
    store.put_manifest(raw).unwrap();
    assert!(store.manifest(&digest).unwrap().is_some());
}

#[test]
fn one_process_has_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::Busy { .. }) && error.hint().is_some(), "{error}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_kept_tree_proves_itself_and_a_damaged_one_is_computed_again() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let (tree, blob) = (&artifact.trees[0], artifact.contents.blobs[0]);
    let path = dir.path().join("trees").join(tree.root().hex());
    let kept = |store: &Store| store.tree(blob.size, tree.root());
    {
        let store = Store::open(dir.path()).unwrap();
        assert!(kept(&store).is_none());
        store.put_tree(tree).unwrap();
        assert!(store.compute_tree(&blob).is_err(), "the blob is not here");
        fill(&store, &artifact);
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(kept(&store).as_ref(), Some(tree));
    let good = fs::read(&path).unwrap();
    let (mut flipped, mut longer) = (good.clone(), good.clone());
    flipped[7] ^= 1;
    longer.push(0);
    for damaged in [flipped, longer, good[..good.len() - 32].to_vec(), Vec::new()] {
        fs::write(&path, damaged).unwrap();
        assert!(kept(&store).is_none());
        assert_eq!(store.compute_tree(&blob).unwrap(), *tree);
        assert_eq!(fs::read(&path).unwrap(), good);
    }
    // A blob of one piece has no file: its root is its tree.
    let small = &artifact.trees[1];
    store.put_tree(small).unwrap();
    assert_eq!(store.tree(artifact.contents.blobs[1].size, small.root()).as_ref(), Some(small));
    assert_eq!(fs::read_dir(dir.path().join("trees")).unwrap().count(), 1);
}

#[test]
fn no_tree_is_computed_of_bytes_that_are_not_the_blobs() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    fill(&store, &artifact);
    let blob = artifact.contents.blobs[0];
    let path = path_of(dir.path(), "blake3", &blob.root.unwrap().hex());
    // As a disk may do it: neither size nor mtime tells.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"other", 0).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(store.compute_tree(&blob).unwrap_err().class(), ErrorClass::Integrity);
    assert!(store.tree(blob.size, blob.root.unwrap()).is_none());
}

#[test]
fn a_store_that_is_open_is_no_layout_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Busy { .. })));
    drop(writer);
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(LayoutWriter::open(dir.path()), Err(StoreError::Busy { .. })));
    drop(store);
    LayoutWriter::open(dir.path()).unwrap();
}
