//! Landings: resume, the journal, the lock, space and proofs.

use std::{io::Write as _, os::unix::fs::FileExt as _, process::Command};

use ::store::{ClaimKind, ErrorClass, Landing, Occupied, StoreError};
use modelpack::{
    digest::{Sha256Digest, Sha256Hasher},
    layout::{BlobIndex, PIECE_BYTES, PieceIndex, PieceLayout},
    piece_tree::Landed,
};

use crate::support::{Artifact, Mount, snapshot};

fn open(artifact: &Artifact, dir: &std::path::Path) -> Result<Landing, StoreError> {
    Landing::open(dir, &artifact.contents.layout, &artifact.contents.digest)
}

#[test]
fn what_was_committed_is_claimed_again_and_rechecked_from_disk() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let path = dir.path().join("landing");
    {
        let landing = open(&artifact, &path).unwrap();
        landing.preallocate().unwrap();
        artifact.commit_all(&landing);
    }
    // A bit flips while nobody looks.
    let blob = std::fs::OpenOptions::new().write(true).open(path.join("blobs/0")).unwrap();
    blob.write_all_at(b"!", PIECE_BYTES + 7).unwrap();
    let landing = open(&artifact, &path).unwrap();
    assert_eq!(landing.claims().len(), 4);
    assert!(landing.verified().is_empty(), "a claim alone counts for nothing");
    assert_eq!(artifact.resume(&landing), 3);
    assert!(landing.prove_verified(BlobIndex(0)).is_none());
    assert!(landing.prove_verified(BlobIndex(1)).is_some());
    assert_eq!(landing.claims().len(), 3);
    landing.commit(PieceIndex(1), &artifact.verified(PieceIndex(1))).unwrap();
    assert!(landing.prove_verified(BlobIndex(0)).is_some());
    let mut buf = vec![0; artifact.piece(PieceIndex(1)).len()];
    landing.read(PieceIndex(1), &mut buf).unwrap();
    assert_eq!(buf, artifact.piece(PieceIndex(1)));
}

#[test]
fn garbage_and_a_torn_tail_in_the_journal_are_ignored_and_do_not_shift_what_follows() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    {
        let landing = open(&artifact, dir.path()).unwrap();
        landing.commit(PieceIndex(0), &artifact.verified(PieceIndex(0))).unwrap();
    }
    let mut journal = std::fs::OpenOptions::new().append(true).open(dir.path().join("journal")).unwrap();
    // One whole record of garbage, then a torn one: records have 48 bytes.
    journal.write_all(&[0xa5; 48 + 17]).unwrap();
    {
        let landing = open(&artifact, dir.path()).unwrap();
        landing.commit(PieceIndex(2), &artifact.verified(PieceIndex(2))).unwrap();
    }
    let claims = open(&artifact, dir.path()).unwrap().claims();
    assert_eq!(claims.iter().map(|claim| claim.piece.0).collect::<Vec<_>>(), [0, 2]);
    assert!(claims.iter().all(::store::Claim::is_verified));
}

#[test]
fn a_journal_that_cannot_be_read_costs_only_time() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    artifact.commit_all(&open(&artifact, dir.path()).unwrap());
    for bytes in [&b""[..], b"MCJR", &[7; 100]] {
        std::fs::write(dir.path().join("journal"), bytes).unwrap();
        assert!(open(&artifact, dir.path()).unwrap().claims().is_empty());
    }
}

#[test]
fn a_directory_has_one_user_and_one_artifact() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let lock_held = || {
        let taken =
            Command::new("flock").arg("-n").arg(dir.path().join("lock")).arg("true").status().unwrap();
        !taken.success()
    };
    let landing = open(&artifact, dir.path()).unwrap();
    let error = open(&artifact, dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::Busy { dir: busy } if busy == dir.path()), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(lock_held(), "another process is kept out too");
    drop(landing);
    assert!(!lock_held());
    let other = Sha256Digest::of(b"another manifest");
    let error = Landing::open(dir.path(), &artifact.contents.layout, &other).unwrap_err();
    let reason = Occupied::OtherArtifact(artifact.contents.digest);
    assert!(matches!(error, StoreError::Occupied { reason: found, .. } if found == reason));
}

#[test]
fn a_forgotten_blob_has_no_claim_and_no_proof() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let landing = open(&artifact, dir.path()).unwrap();
    artifact.commit_all(&landing);
    landing.forget_blob(BlobIndex(0)).unwrap();
    assert!(landing.prove_verified(BlobIndex(0)).is_none());
    assert_eq!(landing.claims().len(), 2);
    drop(landing);
    assert_eq!(open(&artifact, dir.path()).unwrap().claims().len(), 2, "the tombstone is journalled");
}

#[test]
fn without_roots_the_journal_keeps_a_hint_and_the_whole_digest_decides() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let land = |landing: &Landing, piece: PieceIndex, bytes: &[u8]| {
        let in_blob = artifact.contents.layout.span(piece).in_blob;
        landing.land(piece, &Landed::new(in_blob, bytes.to_vec())).unwrap();
    };
    let digest = artifact.contents.blobs[0].digest;
    {
        let landing = open(&artifact, dir.path()).unwrap();
        land(&landing, PieceIndex(0), artifact.piece(PieceIndex(0)));
        let wrong = vec![0; artifact.piece(PieceIndex(1)).len()];
        land(&landing, PieceIndex(1), &wrong);
        let error = landing.prove_sha256(BlobIndex(0), &digest).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Integrity);
        land(&landing, PieceIndex(1), artifact.piece(PieceIndex(1)));
    }
    let landing = open(&artifact, dir.path()).unwrap();
    for claim in landing.claims() {
        let ClaimKind::Landed { value } = claim.kind else { panic!("nothing was proved") };
        let mut buf = vec![0; artifact.piece(claim.piece).len()];
        assert!(landing.recheck_landed(claim.piece, &value, &mut buf).unwrap());
        assert!(!landing.recheck_landed(claim.piece, &[9; 32], &mut buf).unwrap());
    }
    assert!(landing.prove_verified(BlobIndex(0)).is_none(), "landed is not verified");
    landing.prove_sha256(BlobIndex(0), &digest).unwrap();
    landing.prove_root(BlobIndex(0), &artifact.trees[0].root()).unwrap();
    assert!(landing.prove_root(BlobIndex(0), &artifact.trees[1].root()).is_err());
    let mut streamed = Sha256Hasher::default();
    streamed.update(&artifact.bytes[0]);
    landing.prove_streamed(BlobIndex(0), streamed.clone(), &digest).unwrap();
    streamed.update(b"more");
    assert!(landing.prove_streamed(BlobIndex(0), streamed, &digest).is_err());
}

#[test]
fn too_little_space_is_said_at_once_and_leaves_nothing() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let layout = PieceLayout::new(vec![3 << 20, 3 << 20]).unwrap();
    let dir = mount.dir.path().join("a/b");
    let landing = Landing::open(&dir, &layout, &Sha256Digest::of(b"m")).unwrap();
    let error = landing.preallocate().unwrap_err();
    assert!(
        matches!(error, StoreError::NoSpace { need, free, .. } if need == 6 << 20 && free <= 4 << 20),
        "{error}"
    );
    assert!(error.hint().is_some());
    assert_eq!(snapshot(mount.dir.path()), [], "what was not there before is gone again");
}

#[test]
fn too_little_space_on_resume_keeps_what_was_there() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let (layout, digest) = (PieceLayout::new(vec![6 << 20]).unwrap(), Sha256Digest::of(b"m"));
    let dir = mount.dir.path().join("landing");
    drop(Landing::open(&dir, &layout, &digest).unwrap());
    let before = snapshot(&dir);
    assert!(Landing::open(&dir, &layout, &digest).unwrap().preallocate().is_err());
    assert_eq!(snapshot(&dir), before);
}

#[test]
fn a_read_only_file_system_is_an_error_with_a_hint() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    mount.remount("ro");
    let error = open(&Artifact::small(), &mount.dir.path().join("landing")).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("read-only")), "{error:?}");
}

#[test]
fn preallocation_gives_every_blob_its_size() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let landing = open(&artifact, dir.path()).unwrap();
    landing.preallocate().unwrap();
    for (blob, bytes) in artifact.contents.layout.blobs().zip(&artifact.bytes) {
        assert_eq!(landing.file(blob).metadata().unwrap().len(), bytes.len() as u64);
        landing.sync_blob(blob).unwrap();
    }
}

#[test]
fn a_piece_that_shares_blocks_is_proved_where_it_lies() {
    let (artifact, dir) = (Artifact::small(), tempfile::tempdir().unwrap());
    let landing = open(&artifact, &dir.path().join("landing")).unwrap();
    landing.preallocate().unwrap();
    let (right, wrong) = (PieceIndex(0), PieceIndex(1));
    let mut source = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("old"))
        .unwrap();
    source.write_all(&vec![7; 4096]).unwrap();
    source.write_all(artifact.piece(right)).unwrap();
    let tree = &artifact.trees[0];
    let share = |piece: PieceIndex, from: u64| {
        let mut buf = vec![0; artifact.piece(piece).len()];
        landing.share(piece, (&source, from), tree, &mut buf).unwrap()
    };
    assert_eq!(share(right, 4096), Some(true));
    assert_eq!(share(right, 0), None, "what is proved is written no more");
    assert_eq!(share(wrong, 0), Some(false));
    assert_eq!(share(wrong, 4096 + PIECE_BYTES), None, "the source has ended");
    assert!(landing.verified().contains(right) && !landing.verified().contains(wrong));
    assert!(landing.prove_verified(BlobIndex(0)).is_none());
    landing.commit(wrong, &artifact.verified(wrong)).unwrap();
    assert!(landing.prove_verified(BlobIndex(0)).is_some());
    let mut buf = vec![0; artifact.piece(right).len()];
    landing.read(right, &mut buf).unwrap();
    assert_eq!(buf, artifact.piece(right));
}
