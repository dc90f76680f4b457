//! Archives that are unpacked while they land: when, and what of it counts.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ::store::{BlobProof, Landing, Output, StoreError};
use modelpack::{
    layout::{BlobIndex, PieceIndex},
    manifest::Packing,
    piece_tree::Landed,
};
use tar::{Builder, EntryType, Header};

use crate::support::{Artifact, Mount, pattern};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Two files, the first of them small and early, the other longer than the decoders' and readers' buffers.
fn packed(packing: Packing) -> Artifact {
    let mut builder = Builder::new(Vec::new());
    for (path, bytes) in [("config.json", &b"{}"[..]), ("model.safetensors", &noise(5 << 20))] {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let bytes = match packing {
        Packing::Tar => tar,
        Packing::TarGzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&tar).unwrap();
            encoder.finish().unwrap()
        }
        Packing::TarZstd => zstd::encode_all(&tar[..], 1).unwrap(),
    };
    Artifact::new(vec![bytes, pattern(3, 100)], &[("README.md", 1)]).with_archives(&[(0, packing)])
}

/// What no packing makes shorter.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// A pull into a directory that unpacks while bytes land.
fn begun(artifact: &Artifact, dir: &Path) -> (Output, Arc<Landing>) {
    let output = artifact.open(dir);
    let landing = output.landing();
    landing.preallocate().unwrap();
    output.unpack_ahead();
    (output, landing)
}

/// Lands a piece of which nothing is known, as of an artifact without trees.
fn land(artifact: &Artifact, landing: &Landing, piece: PieceIndex, change: impl FnOnce(&mut [u8])) {
    let mut bytes = artifact.piece(piece).to_vec();
    change(&mut bytes);
    let span = artifact.contents.layout.span(piece);
    landing.land(piece, &Landed::new(span.in_blob, bytes)).unwrap();
}

fn land_all(artifact: &Artifact, landing: &Landing, blob: BlobIndex) {
    for piece in artifact.contents.layout.pieces_of(blob).pieces() {
        land(artifact, landing, piece, |_| {});
    }
}

fn proofs(artifact: &Artifact, landing: &Landing) -> Vec<BlobProof> {
    let prove = |blob: BlobIndex| {
        landing.prove_sha256(blob, &artifact.contents.blobs[blob.0 as usize].digest).unwrap()
    };
    artifact.contents.layout.blobs().map(prove).collect()
}

/// Waits until a file lies in the directory of unpacked ones with that many bytes or more; gives its inode.
fn unpacked(top: &Path, name: &str, bytes: u64) -> u64 {
    let path = unpacked_path(top, name);
    let start = Instant::now();
    loop {
        if let Ok(meta) = fs::metadata(&path)
            && meta.len() >= bytes
        {
            return meta.ino();
        }
        assert!(start.elapsed() < PATIENCE, "{} is not unpacked", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

fn unpacked_path(top: &Path, name: &str) -> PathBuf {
    top.join(".model.modelctl/unpacked").join(name)
}

fn assert_published(dir: &Path) {
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == noise(5 << 20));
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{}");
    assert_eq!(fs::read(dir.join("README.md")).unwrap(), pattern(3, 100));
    assert!(!dir.with_file_name(".model.modelctl").exists(), "staging is gone");
}

#[test]
fn an_archive_is_unpacked_while_it_lands_and_nothing_of_it_is_shown() {
    for packing in [Packing::Tar, Packing::TarGzip, Packing::TarZstd] {
        let (artifact, top) = (packed(packing), tempfile::tempdir().unwrap());
        let dir = top.path().join("model");
        let (output, landing) = begun(&artifact, &dir);
        let pieces: Vec<_> = artifact.contents.layout.pieces_of(BlobIndex(0)).pieces().collect();
        assert!(pieces.len() > 4);
        // The last one first: what is not in order is waited for.
        land(&artifact, &landing, pieces[pieces.len() - 1], |_| {});
        for piece in &pieces[..4] {
            land(&artifact, &landing, *piece, |_| {});
        }
        let small = unpacked(top.path(), "0-0", 2);
        // Nearly all that is here: decoders hold some back.
        unpacked(top.path(), "0-1", 2 << 20);
        assert!(!dir.exists());
        // In any order, also when all of it has come.
        for piece in pieces[4..pieces.len() - 1].iter().rev() {
            land(&artifact, &landing, *piece, |_| {});
        }
        let large = fs::metadata(unpacked_path(top.path(), "0-1")).unwrap().ino();
        land_all(&artifact, &landing, BlobIndex(1));
        let published = output.publish(proofs(&artifact, &landing)).unwrap();
        assert_published(&dir);
        let inodes =
            ["config.json", "model.safetensors"].map(|path| fs::metadata(dir.join(path)).unwrap().ino());
        assert_eq!(inodes, [small, large], "{packing}: these are the files that were unpacked early");
        assert_eq!(published.record.files.len(), 3);
    }
}

#[test]
fn what_was_unpacked_of_wrong_bytes_does_not_count() {
    let (artifact, top) = (packed(Packing::Tar), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let (output, landing) = begun(&artifact, &dir);
    let pieces: Vec<_> = artifact.contents.layout.pieces_of(BlobIndex(0)).pieces().collect();
    let (last, others) = pieces.split_last().unwrap();
    for (number, piece) in others.iter().enumerate() {
        // In the middle of the weights: no parser would notice.
        land(&artifact, &landing, *piece, |bytes| bytes[500] ^= u8::from(number == 2));
    }
    unpacked(top.path(), "0-1", 4 << 20);
    land(&artifact, &landing, *last, |_| {});
    landing.prove_sha256(BlobIndex(0), &artifact.contents.blobs[0].digest).unwrap_err();
    landing.forget_blob(BlobIndex(0)).unwrap();
    for blob in [0, 1] {
        land_all(&artifact, &landing, BlobIndex(blob));
    }
    output.publish(proofs(&artifact, &landing)).unwrap();
    assert_published(&dir);
}

#[test]
fn bytes_that_are_replaced_after_they_were_read_do_not_count_though_the_blob_is_proved() {
    let (artifact, top) = (packed(Packing::Tar), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let (output, landing) = begun(&artifact, &dir);
    let pieces: Vec<_> = artifact.contents.layout.pieces_of(BlobIndex(0)).pieces().collect();
    let (last, others) = pieces.split_last().unwrap();
    for piece in others {
        land(&artifact, &landing, *piece, |bytes| bytes[700] ^= u8::from(piece.0 == 1));
    }
    unpacked(top.path(), "0-1", 4 << 20);
    // The right piece comes from somebody else, in place of the wrong one.
    land(&artifact, &landing, PieceIndex(1), |_| {});
    land(&artifact, &landing, *last, |_| {});
    land_all(&artifact, &landing, BlobIndex(1));
    output.publish(proofs(&artifact, &landing)).unwrap();
    assert_published(&dir);
}

#[test]
fn a_pull_that_is_given_up_unpacks_no_more_and_the_next_one_begins_anew() {
    let (artifact, top) = (packed(Packing::TarZstd), tempfile::tempdir().unwrap());
    let dir = top.path().join("model");
    let pieces: Vec<_> = artifact.contents.layout.pieces_of(BlobIndex(0)).pieces().collect();
    {
        let output = artifact.open(&dir);
        output.unpack_ahead();
        for piece in &pieces[..3] {
            land(&artifact, &output.landing(), *piece, |_| {});
        }
        unpacked(top.path(), "0-0", 2);
    }
    // Nobody holds the directory any more, though an archive was waited for.
    let (output, landing) = begun(&artifact, &dir);
    for claim in landing.claims() {
        let ::store::ClaimKind::Landed { value } = claim.kind else { panic!("{claim:?}") };
        let mut buffer = vec![0; artifact.contents.layout.span(claim.piece).len as usize];
        assert!(landing.recheck_landed(claim.piece, &value, &mut buffer).unwrap());
    }
    for piece in &pieces[3..] {
        land(&artifact, &landing, *piece, |_| {});
    }
    let resumed = unpacked(top.path(), "0-1", 5 << 20);
    land_all(&artifact, &landing, BlobIndex(1));
    output.publish(proofs(&artifact, &landing)).unwrap();
    assert_published(&dir);
    assert_eq!(
        fs::metadata(dir.join("model.safetensors")).unwrap().ino(),
        resumed,
        "what was here is followed, too"
    );
}

#[test]
fn an_archive_that_cannot_be_unpacked_is_refused_at_the_end_and_leaves_nothing() {
    let top = tempfile::tempdir().unwrap();
    let artifact = Artifact::new(vec![noise(2 << 20)], &[]).with_archives(&[(0, Packing::TarGzip)]);
    let dir = top.path().join("model");
    let (output, landing) = begun(&artifact, &dir);
    land_all(&artifact, &landing, BlobIndex(0));
    let error = output.publish(proofs(&artifact, &landing)).unwrap_err();
    assert!(matches!(error, ::store::StoreError::Archive { .. }), "{error:?}");
    assert!(!dir.exists() && !top.path().join(".model.modelctl/unpacked").exists());
}

#[test]
fn what_is_unpacked_leaves_blobs_the_space_that_they_need() {
    // Room for the blobs, and for one of the two archives' files; the second one begins when the first is there.
    let Some(mount) = Mount::tmpfs("size=18m") else { return };
    let archive = packed(Packing::Tar).bytes[0].clone();
    let blobs = vec![archive, pattern(5, 6 << 20)];
    let artifact = Artifact::new(blobs, &[("other.bin", 1)]).with_archives(&[(0, Packing::Tar)]);
    let dir = mount.dir.path().join("model");
    let output = artifact.open(&dir);
    let landing = output.landing();
    landing.preallocate().unwrap();
    // Somebody else takes what is left beside the blobs.
    fs::write(mount.dir.path().join("other"), vec![1; 5 << 20]).unwrap();
    output.unpack_ahead();
    land_all(&artifact, &landing, BlobIndex(0));
    land_all(&artifact, &landing, BlobIndex(1));
    let proofs = proofs(&artifact, &landing);
    let error = output.publish(proofs).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
}
