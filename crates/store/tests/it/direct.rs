//! Direct landing: pieces that a transport wrote to their final offsets, beside pieces that were written there.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ::store::{FsKind, Landing, StoreError, filesystem_of};
use memory::{Filled, Lease};
use modelpack::{
    layout::{BlobIndex, PieceIndex},
    piece_tree::{Landed, Verified},
};
use proptest::prelude::*;

use crate::support::{Artifact, Mount, TWO_PIECES, pattern, skip};

const LONG: Duration = Duration::from_secs(30);

/// A directory in memory.
fn in_memory() -> Option<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    if !filesystem_of(shm).is_ok_and(|kind| kind == FsKind::Tmpfs) {
        skip("`/dev/shm` is not a tmpfs");
        return None;
    }
    Some(tempfile::tempdir_in(shm).unwrap())
}

fn open(artifact: &Artifact, dir: &Path) -> Landing {
    let until = Instant::now() + LONG;
    // A process that another test of this one is about to start holds every lock until it runs.
    let landing = loop {
        match Landing::open(dir, &artifact.contents.layout, &artifact.contents.digest) {
            Err(StoreError::Busy { .. }) if Instant::now() < until => thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    landing.preallocate().unwrap();
    landing
}

/// The right to write a piece where it belongs.
fn lease(artifact: &Artifact, landing: &Landing, piece: PieceIndex) -> Option<Lease> {
    let span = artifact.contents.layout.span(piece);
    let start = usize::try_from(span.offset).unwrap();
    let range = start..start + span.len as usize;
    landing.region(span.blob, range.clone()).unwrap().unwrap().lease(range)
}

fn filled(mut lease: Lease, bytes: &[u8]) -> Filled {
    lease.as_mut_slice().copy_from_slice(bytes);
    lease.filled()
}

/// A piece that a transport brought, if it is what it should be.
fn verify(artifact: &Artifact, piece: PieceIndex, bytes: Filled) -> Option<Verified<Filled>> {
    let span = artifact.contents.layout.span(piece);
    artifact.trees[span.blob.0 as usize].verify(Landed::new(span.in_blob, bytes)).ok()
}

fn land_directly(artifact: &Artifact, landing: &Landing, piece: PieceIndex) {
    let lease = lease(artifact, landing, piece).expect("nobody has the range");
    let verified = verify(artifact, piece, filled(lease, artifact.piece(piece))).unwrap();
    landing.commit_in_place(piece, verified).unwrap();
}

fn is_right(artifact: &Artifact, landing: &Landing, piece: PieceIndex) -> bool {
    let mut found = vec![0; artifact.piece(piece).len()];
    landing.read(piece, &mut found).unwrap();
    found == artifact.piece(piece)
}

#[test]
fn what_arrived_at_its_offset_is_proved_and_published_without_being_written() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    let target = dir.path().join("model");
    let output = artifact.open(&target);
    let landing = output.landing();
    landing.preallocate().unwrap();
    for piece in artifact.contents.layout.all().pieces() {
        land_directly(&artifact, &landing, piece);
        assert!(lease(&artifact, &landing, piece).is_none(), "it is never lent again");
    }
    let regions: Vec<_> =
        (0..3).map(|blob| landing.region(BlobIndex(blob), 0..1).unwrap().unwrap()).collect();
    let proofs = artifact.proofs(&landing);
    output.publish(proofs).unwrap();
    artifact.assert_published(&target);
    assert!(landing.region(BlobIndex(0), 0..1).unwrap().is_none(), "what is published is not to be written");
    assert!(regions.iter().all(|region| region.is_sealed()));
    let mut tail = [0; 10];
    regions[0].read_at(TWO_PIECES - 10, &mut tail);
    assert_eq!(tail, artifact.bytes[0][TWO_PIECES - 10..], "whoever holds it may still read it");
}

#[test]
fn only_files_in_memory_that_have_their_size_and_are_to_be_written_are_mapped() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::new(vec![pattern(1, 5000), Vec::new()], &[("a", 0), ("b", 1)]);
    let landing = Landing::open(dir.path(), &artifact.contents.layout, &artifact.contents.digest).unwrap();
    assert!(landing.region(BlobIndex(0), 0..1).unwrap().is_none(), "a page beyond the end cannot be written");
    landing.preallocate().unwrap();
    assert_eq!(landing.region(BlobIndex(0), 0..1).unwrap().unwrap().len(), 5000);
    assert!(landing.region(BlobIndex(1), 0..1).unwrap().is_none(), "nothing to map");

    let disk = tempfile::tempdir().unwrap();
    if filesystem_of(disk.path()).unwrap() == FsKind::Tmpfs {
        return skip("the directory of temporary files is in memory");
    }
    let landing = open(&artifact, disk.path());
    assert!(landing.region(BlobIndex(0), 0..1).unwrap().is_none());
    assert!(!landing.filesystem().lands_direct());
}

#[test]
fn a_range_without_space_is_refused_before_it_can_be_written() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let artifact = Artifact::new(vec![pattern(1, 3 << 20)], &[("a", 0)]);
    let landing = open(&artifact, &mount.dir.path().join("landing"));
    land_directly(&artifact, &landing, PieceIndex(0));
    // Somebody else was faster.
    std::fs::write(mount.dir.path().join("other"), vec![1; 2 << 20]).unwrap();
    let error = landing.region(BlobIndex(0), 1 << 20..3 << 20).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("free some space")), "{error}");
    let piece = PieceIndex(2);
    let verified = artifact.trees[0]
        .verify(Landed::new(artifact.contents.layout.span(piece).in_blob, artifact.piece(piece)));
    assert!(landing.commit(piece, &verified.unwrap()).is_err());
    std::fs::remove_file(mount.dir.path().join("other")).unwrap();
    land_directly(&artifact, &landing, PieceIndex(1));
    assert!(is_right(&artifact, &landing, PieceIndex(0)));
}

#[test]
fn memory_is_taken_as_bytes_come() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::new(vec![pattern(1, 8 << 20)], &[("a", 0)]);
    let landing = open(&artifact, dir.path());
    let taken = || landing_blocks(dir.path()) * 512;
    assert!(taken() < 1 << 20, "to find pages for all of a model first takes as long as landing it");
    land_directly(&artifact, &landing, PieceIndex(3));
    assert!((1 << 20..3 << 20).contains(&taken()), "{} bytes for one piece", taken());
}

fn landing_blocks(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let blobs = std::fs::read_dir(dir.join("blobs")).unwrap();
    blobs.map(|blob| blob.unwrap().metadata().unwrap().blocks()).sum()
}

#[test]
fn what_a_killed_process_landed_is_hashed_again_and_what_it_did_not_journal_costs_time() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    {
        let landing = open(&artifact, dir.path());
        land_directly(&artifact, &landing, PieceIndex(0));
        land_directly(&artifact, &landing, PieceIndex(2));
        // It died between the last byte and the journal.
        let lease = lease(&artifact, &landing, PieceIndex(1)).unwrap();
        let _ = filled(lease, artifact.piece(PieceIndex(1)));
    }
    // And somebody else wrote to what it had proved.
    let blob = std::fs::OpenOptions::new().write(true).open(dir.path().join("blobs/1")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&blob, b"!", 7).unwrap();
    let landing = open(&artifact, dir.path());
    assert_eq!(landing.claims().iter().map(|claim| claim.piece.0).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(artifact.resume(&landing), 1, "one of both claims is true");
    assert!(lease(&artifact, &landing, PieceIndex(0)).is_none(), "it is proved");
    for piece in 1..4 {
        land_directly(&artifact, &landing, PieceIndex(piece));
    }
    assert_eq!(artifact.proofs(&landing).len(), 3);
}

#[test]
fn a_claim_that_is_looked_at_while_the_blob_is_mapped_is_sealed_or_void() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    artifact.commit_all(&open(&artifact, dir.path()));
    let landing = open(&artifact, dir.path());
    let out = lease(&artifact, &landing, PieceIndex(1)).expect("a claim alone counts for nothing");
    assert_eq!(artifact.resume(&landing), 3, "one is being written");
    drop(out);
    assert!(lease(&artifact, &landing, PieceIndex(0)).is_none());
    assert!(lease(&artifact, &landing, PieceIndex(1)).is_some());
}

#[test]
fn a_write_waits_for_a_range_that_is_out() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    let landing = open(&artifact, dir.path());
    let piece = PieceIndex(0);
    for is_right in [true, false] {
        let out = lease(&artifact, &landing, piece).unwrap();
        thread::scope(|scope| {
            let (done, written) = mpsc::channel();
            let (landing, artifact) = (&landing, &artifact);
            scope.spawn(move || done.send(landing.commit(piece, &artifact.verified(piece))));
            let early = written.recv_timeout(Duration::from_millis(20));
            assert!(early.is_err(), "the transport may still write there");
            let mut bytes = artifact.piece(piece).to_vec();
            bytes[5] ^= u8::from(!is_right);
            match verify(artifact, piece, filled(out, &bytes)) {
                Some(verified) => landing.commit_in_place(piece, verified).unwrap(),
                None => assert!(!is_right),
            }
            written.recv_timeout(LONG).expect("in time").unwrap();
        });
        assert!(self::is_right(&artifact, &landing, piece));
        assert!(lease(&artifact, &landing, piece).is_none(), "sealed by either");
        landing.forget_blob(BlobIndex(0)).unwrap();
    }
}

#[test]
fn a_forgotten_blob_is_landed_again_in_the_same_region() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    let landing = open(&artifact, dir.path());
    let region = landing.region(BlobIndex(0), 0..1).unwrap().unwrap();
    land_directly(&artifact, &landing, PieceIndex(0));
    let out = lease(&artifact, &landing, PieceIndex(1)).unwrap();
    landing.forget_blob(BlobIndex(0)).unwrap();
    assert!(std::sync::Arc::ptr_eq(&region, &landing.region(BlobIndex(0), 0..1).unwrap().unwrap()));
    assert!(lease(&artifact, &landing, PieceIndex(1)).is_none(), "a read of the round before is still out");
    drop(out);
    for piece in 0..2 {
        land_directly(&artifact, &landing, PieceIndex(piece));
    }
    assert!(landing.prove_verified(BlobIndex(0)).is_some());
}

#[test]
fn pieces_that_only_the_whole_digest_proves_land_directly_too() {
    let Some(dir) = in_memory() else { return };
    let artifact = Artifact::small();
    let landing = open(&artifact, dir.path());
    let digest = artifact.contents.blobs[0].digest;
    let arrived = |piece: PieceIndex, bytes: &[u8]| {
        let lease = lease(&artifact, &landing, piece).expect("free");
        Landed::new(artifact.contents.layout.span(piece).in_blob, filled(lease, bytes))
    };
    let bytes = artifact.piece(PieceIndex(0));
    landing.land_in_place(PieceIndex(0), arrived(PieceIndex(0), bytes)).unwrap();
    let wrong = vec![7; artifact.piece(PieceIndex(1)).len()];
    let relayed = arrived(PieceIndex(1), &wrong);
    let value = relayed.value();
    // What is on the move proves nothing, whatever it happens to be.
    let error = landing.prove_sha256(BlobIndex(0), &digest).unwrap_err();
    assert!(matches!(error, StoreError::Unproved { .. }), "{error}");
    landing.land_relayed_in_place(PieceIndex(1), relayed.compare(&value).unwrap()).unwrap();
    assert!(landing.prove_sha256(BlobIndex(0), &digest).is_err(), "it is not the blob");

    landing.forget_blob(BlobIndex(0)).unwrap();
    for piece in [PieceIndex(0), PieceIndex(1)] {
        let landed = arrived(piece, artifact.piece(piece));
        landing.land_in_place(piece, landed).unwrap();
    }
    landing.prove_sha256(BlobIndex(0), &digest).unwrap();
    // Nothing has proved the piece, so that it may be replaced, as without a mapping.
    let in_blob = artifact.contents.layout.span(PieceIndex(1)).in_blob;
    landing.land(PieceIndex(1), &Landed::new(in_blob, wrong)).unwrap();
    assert!(landing.prove_sha256(BlobIndex(0), &digest).is_err());
}

/// What may happen to a piece.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A direct read begins.
    Begin,
    /// It has brought the right bytes.
    Right,
    /// It has brought others, and says that all is well.
    Lie,
    /// It fails after some bytes.
    Fail,
    /// Right bytes come through a buffer, as from the origin or over TCP.
    Stage,
    /// The blob is fetched once more.
    Forget,
    /// The process is killed, and another goes on.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Begin),
        4 => Just(Step::Right),
        3 => Just(Step::Lie),
        2 => Just(Step::Fail),
        4 => Just(Step::Stage),
        1 => Just(Step::Forget),
        1 => Just(Step::Kill),
    ]
}

struct Play<'a> {
    artifact: &'a Artifact,
    dir: &'a Path,
    landing: Landing,
    out: BTreeMap<PieceIndex, Lease>,
}

impl Play<'_> {
    fn step(&mut self, piece: PieceIndex, step: Step) {
        let (artifact, landing) = (self.artifact, &self.landing);
        match step {
            Step::Begin => {
                let lease = lease(artifact, landing, piece);
                assert_eq!(
                    lease.is_some(),
                    !landing.verified().contains(piece) && !self.out.contains_key(&piece)
                );
                self.out.extend(lease.map(|lease| (piece, lease)));
            }
            Step::Right | Step::Lie => {
                let Some(lease) = self.out.remove(&piece) else { return };
                let mut bytes = artifact.piece(piece).to_vec();
                bytes[0] ^= u8::from(matches!(step, Step::Lie));
                let verified = verify(artifact, piece, filled(lease, &bytes));
                assert_eq!(verified.is_some(), matches!(step, Step::Right));
                if let Some(verified) = verified {
                    landing.commit_in_place(piece, verified).unwrap();
                }
            }
            Step::Fail => {
                let Some(mut lease) = self.out.remove(&piece) else { return };
                lease.as_mut_slice()[0] = 0xee;
            }
            Step::Stage => {
                let out = self.out.remove(&piece);
                thread::scope(|scope| {
                    let writing = scope.spawn(|| landing.commit(piece, &artifact.verified(piece)));
                    // Up to the moment when its link is closed, a direct read writes what it likes.
                    if let Some(mut lease) = out {
                        lease.as_mut_slice().fill(0xdd);
                    }
                    writing.join().unwrap().unwrap();
                });
                assert!(landing.verified().contains(piece));
            }
            Step::Forget => landing.forget_blob(artifact.contents.layout.span(piece).blob).unwrap(),
            Step::Kill => self.restart(),
        }
    }

    fn restart(&mut self) {
        self.out.clear();
        let verified = self.landing.verified();
        let spare = tempfile::tempdir().unwrap();
        // The lock is free before the other asks for it.
        let elsewhere =
            Landing::open(spare.path(), &self.artifact.contents.layout, &self.artifact.contents.digest);
        drop(std::mem::replace(&mut self.landing, elsewhere.unwrap()));
        self.landing = open(self.artifact, self.dir);
        self.artifact.resume(&self.landing);
        assert_eq!(self.landing.verified(), verified, "nothing that was journalled is lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_readers_do_no_verified_byte_changes(
        steps in prop::collection::vec((0..5_u32, step()), 1..60),
    ) {
        let Some(dir) = in_memory() else { return Ok(()) };
        let bytes = vec![pattern(1, TWO_PIECES), pattern(2, 300), pattern(3, 4096), pattern(4, 5000)];
        let artifact = Artifact::new(bytes, &[("a", 0), ("b", 1), ("c", 2), ("d", 3)]);
        let landing = open(&artifact, dir.path());
        let mut play = Play { artifact: &artifact, dir: dir.path(), landing, out: BTreeMap::new() };
        for (piece, step) in steps {
            play.step(PieceIndex(piece), step);
            for piece in play.landing.verified().iter() {
                prop_assert!(is_right(&artifact, &play.landing, piece), "{piece} changed at {step:?}");
            }
        }
    }
}
