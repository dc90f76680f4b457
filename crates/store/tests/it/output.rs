//! Output directories: what may be filled, what appears, and what a crash or an attacker leaves behind.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use ::store::{
    FsKind, LinkMode, LinkUsed, Occupied, OpenedOutput, OutputDir, StoreError, filesystem_of, verify_record,
};
use modelpack::{
    layout::{BlobIndex, BlobPiece, PieceIndex},
    piece_tree::Landed,
};

use crate::support::{Artifact, Mount, snapshot};

fn reason(artifact: &Artifact, dir: &Path) -> Occupied {
    match OutputDir::open(dir, artifact.contents.clone()) {
        Err(StoreError::Occupied { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn publish(artifact: &Artifact, dir: &Path) -> ::store::Published {
    let output = artifact.open(dir);
    let landing = output.landing();
    landing.preallocate().unwrap();
    artifact.commit_all(&landing);
    output.publish(artifact.proofs(&landing)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn an_absent_directory_appears_whole() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let dir = top.path().join("deep/model");
    let output = artifact.open(&dir);
    let landing = output.landing();
    artifact.commit_all(&landing);
    assert!(!dir.exists(), "nothing has its final name before it is proved");
    let proofs = artifact.proofs(&landing);
    let published = output.publish(proofs).unwrap();
    artifact.assert_published(&dir);
    assert_eq!(mode(&dir.join("tools/run.sh")), 0o755);
    assert_eq!(mode(&dir.join("config.json")), 0o644);
    let first = fs::metadata(dir.join("config.json")).unwrap().ino();
    assert_ne!(
        first,
        fs::metadata(dir.join("model.safetensors.index.json")).unwrap().ino(),
        "each path is a file"
    );
    let beside: Vec<_> =
        fs::read_dir(top.path().join("deep")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["model"], "staging is gone");
    verify_record(&dir, &published.record).unwrap();
    // The landing still serves what it published.
    let mut buf = vec![0; artifact.piece(PieceIndex(1)).len()];
    landing.read(PieceIndex(1), &mut buf).unwrap();
    assert_eq!(buf, artifact.piece(PieceIndex(1)));
    landing.commit(PieceIndex(1), &artifact.verified(PieceIndex(1))).unwrap();
    assert!(matches!(landing.forget_blob(BlobIndex(0)), Err(StoreError::Sealed { .. })));
}

#[test]
fn a_second_run_finds_it_complete_until_a_file_changes() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let published = publish(&artifact, &dir);
    match OutputDir::open(&dir, artifact.contents.clone()).unwrap() {
        OpenedOutput::Complete(record) => assert_eq!(record, published.record),
        OpenedOutput::Fresh(_) => panic!("it is complete"),
    }
    let other = Artifact::new(vec![vec![1]], &[("a", 0)]);
    assert_eq!(reason(&other, &dir), Occupied::OtherArtifact(artifact.contents.digest));
    fs::write(dir.join("config.json"), b"edited").unwrap();
    assert_eq!(reason(&artifact, &dir), Occupied::Changed("config.json".into()));
}

#[test]
fn an_empty_directory_is_filled_in_place() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    fs::create_dir(top.path().join("lost+found")).unwrap();
    let inode = fs::metadata(top.path()).unwrap().ino();
    publish(&artifact, top.path());
    artifact.assert_published(top.path());
    assert_eq!(fs::metadata(top.path()).unwrap().ino(), inode);
    assert!(!top.path().join(".modelctl/staging").exists());
}

#[test]
fn a_mount_point_is_filled_in_place() {
    let Some(mount) = Mount::tmpfs("size=16m") else { return };
    assert_eq!(filesystem_of(mount.dir.path()).unwrap(), FsKind::Tmpfs);
    let artifact = Artifact::small();
    publish(&artifact, mount.dir.path());
    artifact.assert_published(mount.dir.path());
}

#[test]
fn a_directory_without_space_is_left_as_it_was() {
    let Some(mount) = Mount::tmpfs("size=64k") else { return };
    let artifact = Artifact::small();
    let output = artifact.open(mount.dir.path());
    assert!(matches!(output.landing().preallocate(), Err(StoreError::NoSpace { .. })));
    drop(output);
    assert_eq!(snapshot(mount.dir.path()), []);
}

#[test]
fn an_occupied_directory_is_not_touched() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes.txt"), b"mine").unwrap();
    let before = snapshot(top.path());
    assert_eq!(reason(&artifact, &dir), Occupied::Foreign("notes.txt".into()));
    assert_eq!(reason(&artifact, &dir.join("notes.txt")), Occupied::NotADirectory);
    assert_eq!(snapshot(top.path()), before);
}

#[test]
fn a_run_that_died_is_resumed() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    for dir in [top.path().join("absent"), top.path().join("empty")] {
        if dir.ends_with("empty") {
            fs::create_dir(&dir).unwrap();
        }
        {
            let output = artifact.open(&dir);
            output.landing().commit(PieceIndex(0), &artifact.verified(PieceIndex(0))).unwrap();
        }
        let output = artifact.open(&dir);
        let landing = output.landing();
        assert_eq!(artifact.resume(&landing), 1);
        assert!(matches!(OutputDir::open(&dir, artifact.contents.clone()), Err(StoreError::Busy { .. })));
        artifact.commit_all(&landing);
        output.publish(artifact.proofs(&landing)).unwrap();
        artifact.assert_published(&dir);
    }
}

#[test]
fn begun_staging_of_another_artifact_is_refused() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let other = Artifact::new(vec![vec![1]], &[("a", 0)]);
    for dir in [top.path().join("absent"), top.path().to_path_buf()] {
        drop(other.open(&dir));
        assert_eq!(reason(&artifact, &dir), Occupied::OtherArtifact(other.contents.digest));
        fs::remove_dir_all(top.path().join(".absent.modelctl")).ok();
    }
}

#[test]
fn a_publication_cut_off_half_way_is_taken_back_and_done_again() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let output = artifact.open(top.path());
    let landing = output.landing();
    artifact.commit_all(&landing);
    // Somebody takes the name of the file that is renamed last, so that publishing stops after all the others.
    let last = top.path().join("model.safetensors.index.json");
    fs::write(&last, b"mine").unwrap();
    assert!(matches!(output.publish(artifact.proofs(&landing)), Err(StoreError::Occupied { .. })));
    assert_eq!(fs::read(&last).unwrap(), b"mine");
    assert!(top.path().join("model-1.safetensors").exists());
    drop(landing);
    assert_eq!(reason(&artifact, top.path()), Occupied::Foreign("model.safetensors.index.json".into()));
    assert_eq!(fs::read(&last).unwrap(), b"mine", "what is not ours is not taken back");
    fs::remove_file(&last).unwrap();
    let output = artifact.open(top.path());
    assert!(!top.path().join("model-1.safetensors").exists());
    assert!(!top.path().join("tools").exists());
    let landing = output.landing();
    assert_eq!(artifact.resume(&landing), artifact.contents.layout.piece_count(), "no byte is fetched again");
    output.publish(artifact.proofs(&landing)).unwrap();
    artifact.assert_published(top.path());
}

#[test]
fn a_directory_that_appeared_meanwhile_is_not_replaced() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let output = artifact.open(&dir);
    let landing = output.landing();
    artifact.commit_all(&landing);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes.txt"), b"mine").unwrap();
    assert!(matches!(output.publish(artifact.proofs(&landing)), Err(StoreError::Occupied { .. })));
    drop(landing);
    assert_eq!(snapshot(&dir), [(dir.join("notes.txt"), Some(b"mine".to_vec()))]);
    fs::remove_dir_all(&dir).unwrap();
    let output = artifact.open(&dir);
    let landing = output.landing();
    assert_eq!(artifact.resume(&landing), artifact.contents.layout.piece_count());
    output.publish(artifact.proofs(&landing)).unwrap();
    artifact.assert_published(&dir);
}

#[test]
fn publishing_needs_a_proof_of_this_landing_for_every_blob() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let elsewhere = artifact.open(&top.path().join("elsewhere"));
    artifact.commit_all(&elsewhere.landing());
    let dir = top.path().join("model");
    let unproved = |proofs| {
        let output = artifact.open(&dir);
        assert!(matches!(output.publish(proofs), Err(StoreError::Unproved { .. })));
        assert!(!dir.exists());
    };
    unproved(Vec::new());
    unproved(artifact.proofs(&elsewhere.landing()));
    let output = artifact.open(&dir);
    let landing = output.landing();
    artifact.commit_all(&landing);
    let proofs = artifact.proofs(&landing);
    landing.forget_blob(BlobIndex(1)).unwrap();
    assert!(matches!(output.publish(proofs), Err(StoreError::Unproved { blob: BlobIndex(1), .. })));
    assert!(!dir.exists());
}

#[test]
fn bytes_that_land_after_the_proof_void_it() {
    let (mut artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    artifact.contents.blobs[1].root = None;
    let dir = top.path().join("model");
    let output = artifact.open(&dir);
    let landing = output.landing();
    artifact.commit_all(&landing);
    landing.forget_blob(BlobIndex(1)).unwrap();
    let piece = artifact.contents.layout.pieces_of(BlobIndex(1)).start;
    let land = |bytes: &[u8]| landing.land(piece, &Landed::new(BlobPiece(0), bytes)).unwrap();
    land(artifact.piece(piece));
    let digest = artifact.contents.blobs[1].digest;
    let proofs = [0, 2].map(|blob| landing.prove_verified(BlobIndex(blob)).unwrap());
    let early = landing.prove_sha256(BlobIndex(1), &digest).unwrap();
    land(&vec![0; artifact.bytes[1].len()]);
    let found = output.publish(proofs.into_iter().chain([early]));
    assert!(matches!(found, Err(StoreError::Unproved { blob: BlobIndex(1), .. })), "{found:?}");
    assert!(!dir.exists());
}

#[test]
fn a_planted_symbolic_link_is_an_error_and_leads_nowhere() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let (dir, outside) = (top.path().join("model"), top.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let refused = |plant: &dyn Fn()| {
        fs::remove_dir_all(&dir).ok();
        fs::create_dir(&dir).unwrap();
        plant();
        let found = OutputDir::open(&dir, artifact.contents.clone());
        assert!(matches!(found, Err(StoreError::Io { .. })), "{found:?}");
        assert_eq!(snapshot(&outside), []);
    };
    refused(&|| symlink(&outside, dir.join(".modelctl")).unwrap());
    refused(&|| {
        fs::create_dir(dir.join(".modelctl")).unwrap();
        symlink(&outside, dir.join(".modelctl/staging")).unwrap();
    });
    refused(&|| {
        fs::create_dir_all(dir.join(".modelctl/staging/blobs")).unwrap();
        symlink(outside.join("file"), dir.join(".modelctl/staging/blobs/0")).unwrap();
    });
    refused(&|| {
        fs::create_dir_all(dir.join(".modelctl/staging")).unwrap();
        symlink(outside.join("file"), dir.join(".modelctl/staging/journal")).unwrap();
    });
}

#[test]
fn a_link_planted_where_a_file_goes_is_not_followed() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let (dir, outside) = (top.path().join("model"), top.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&dir).unwrap();
    let output = artifact.open(&dir);
    let landing = output.landing();
    artifact.commit_all(&landing);
    symlink(&outside, dir.join("tools")).unwrap();
    assert!(output.publish(artifact.proofs(&landing)).is_err());
    assert_eq!(snapshot(&outside), []);
}

#[test]
fn hostile_paths_are_refused_before_anything_is_made() {
    let top = tempfile::tempdir().unwrap();
    for path in
        ["../a", "/a", "a/../b", "a//b", "", ".", "a/", ".modelctl/complete.json", ".ModelCtl/x", "a\0b"]
    {
        let artifact = Artifact::new(vec![vec![1]], &[(path, 0)]);
        let found = OutputDir::open(&top.path().join("model"), artifact.contents);
        assert!(matches!(found, Err(StoreError::UnsafePath(_))), "{path:?}: {found:?}");
    }
    assert_eq!(snapshot(top.path()), []);
}

#[test]
fn blobs_of_the_local_peer_are_linked_where_that_is_safe_and_else_copied() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let (dir, blobs) = (top.path().join("model"), top.path().join("blobs"));
    fs::create_dir(&blobs).unwrap();
    let handed = |blob: usize| {
        let path = blobs.join(blob.to_string());
        if !path.exists() {
            fs::write(&path, &artifact.bytes[blob]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        }
        File::open(path).unwrap()
    };
    let output = artifact.open(&dir);
    let place = |blob: u32, mode| output.place_from(BlobIndex(blob), &handed(blob as usize), mode);
    assert!(place(0, LinkMode::Copy).unwrap() == LinkUsed::Copy);
    let used = place(1, LinkMode::Auto).unwrap();
    assert_ne!(place(2, LinkMode::Auto).unwrap(), LinkUsed::Hard, "an executable needs a mode of its own");
    if place(0, LinkMode::Reflink).is_err() {
        // No reflinks here: the kernel lets the owner and root link.
        assert_eq!(used, LinkUsed::Hard);
    }
    let short = File::open("/dev/null").unwrap();
    assert!(output.place_from(BlobIndex(0), &short, LinkMode::Copy).is_err());
    let published = output.publish(Vec::new()).unwrap();
    artifact.assert_published(&dir);
    assert_eq!(mode(&dir.join("tools/run.sh")), 0o755);
    if used == LinkUsed::Hard {
        assert_eq!(mode(&blobs.join("1")), 0o444, "the store's own file keeps its mode");
        assert_eq!(published.copied, 2);
    }
}

#[test]
fn what_cannot_be_linked_is_copied() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let output = artifact.open(&dir);
    for (blob, bytes) in (0..).zip(&artifact.bytes) {
        // No file system links what has no name any more, as none links from another.
        let mut nameless = tempfile::NamedTempFile::new_in(top.path()).unwrap();
        nameless.write_all(bytes).unwrap();
        let file = nameless.reopen().unwrap();
        nameless.close().unwrap();
        assert_ne!(output.place_from(BlobIndex(blob), &file, LinkMode::Auto).unwrap(), LinkUsed::Hard);
    }
    output.publish(Vec::new()).unwrap();
    artifact.assert_published(&dir);
}

#[test]
fn a_placed_blob_that_is_forgotten_leaves_the_peers_file_alone() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let peers = top.path().join("peers");
    fs::write(&peers, vec![0; artifact.bytes[1].len()]).unwrap();
    let dir = top.path().join("model");
    let piece = artifact.contents.layout.pieces_of(BlobIndex(1)).start;
    let output = artifact.open(&dir);
    output.place_from(BlobIndex(1), &File::open(&peers).unwrap(), LinkMode::Hard).unwrap();
    let landing = output.landing();
    assert!(landing.commit(piece, &artifact.verified(piece)).is_err(), "it is not ours to write");
    landing.forget_blob(BlobIndex(1)).unwrap();
    artifact.commit_all(&landing);
    output.publish(artifact.proofs(&landing)).unwrap();
    artifact.assert_published(&dir);
    assert_eq!(fs::read(&peers).unwrap(), vec![0; artifact.bytes[1].len()]);
}

#[test]
fn a_resumed_landing_does_not_write_through_a_hard_link() {
    let (artifact, top) = (Artifact::small(), tempfile::tempdir().unwrap());
    let peers = top.path().join("peers");
    fs::write(&peers, vec![0; artifact.bytes[1].len()]).unwrap();
    let dir = top.path().join("model");
    {
        let output = artifact.open(&dir);
        output.place_from(BlobIndex(1), &File::open(&peers).unwrap(), LinkMode::Hard).unwrap();
    }
    let output = artifact.open(&dir);
    artifact.commit_all(&output.landing());
    assert_eq!(fs::read(&peers).unwrap(), vec![0; artifact.bytes[1].len()]);
}
