//! Small artifacts for tests within the crate.

use std::sync::Arc;

use memory::{Filled, Region};
use modelpack::{
    build::{self, SourceFile},
    digest::{Blake3Root, Sha256Digest},
    layout::PIECE_BYTES,
    manifest::{Blob, Manifest},
    piece_tree::PieceTree,
};
use store::Landing;

use crate::{
    artifact::{Artifact, Check, Place},
    buffers::Buffers,
    fetch::Ground,
    progress::Counters,
    seed::{Prepared, SeedBlob},
    sinks::{LandingRule, Registrar},
    transports::Means,
    vouching::Vouching,
    workers::Workers,
};

/// A directory in which every piece of an artifact of one-piece blobs has landed.
pub(crate) struct Landed {
    dir: tempfile::TempDir,
    artifact: Arc<Artifact>,
}

impl Landed {
    pub(crate) fn of(files: u32) -> Self {
        let contents: Vec<Vec<u8>> = (0..files).map(|number| number.to_le_bytes().to_vec()).collect();
        let artifact = Arc::new(artifact(&contents));
        let dir = tempfile::tempdir().unwrap();
        let landing = open(&dir, &artifact);
        for (piece, bytes) in artifact.layout().all().pieces().zip(&contents) {
            artifact.land(&landing, piece, (filled(bytes), Place::Buffer)).unwrap();
        }
        Self { dir, artifact }
    }

    /// The same after a restart: the journal's claims are all that is known.
    pub(crate) fn reopened(&self) -> (Arc<Artifact>, Arc<Landing>) {
        (Arc::clone(&self.artifact), Arc::new(open(&self.dir, &self.artifact)))
    }
}

/// What has arrived in a buffer.
pub(crate) fn filled(bytes: &[u8]) -> Filled {
    let mut lease = Region::anonymous(bytes.len()).unwrap().lease(0..bytes.len()).unwrap();
    lease.as_mut_slice().copy_from_slice(bytes);
    lease.filled()
}

/// A seed of such an artifact.
pub(crate) fn seed(contents: &[Vec<u8>]) -> Prepared {
    let file = |bytes: &Vec<u8>| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Arc::new(SeedBlob::new(Arc::new(file), "seeded".into()).unwrap())
    };
    Prepared { artifact: artifact(contents), blobs: contents.iter().map(file).collect(), pin: None }
}

/// What a download of `artifact` needs, with nothing landed yet.
pub(crate) fn ground(
    artifact: Artifact,
    vouching: Option<Arc<Vouching>>,
) -> (tempfile::TempDir, Arc<Ground>) {
    let dir = tempfile::tempdir().unwrap();
    let landing = Arc::new(open(&dir, &artifact));
    let counters = Counters::new(artifact.layout().total_bytes(), Arc::default());
    let threads = (Workers::start(), Buffers::new());
    let landing = (landing, LandingRule::default());
    (dir, Ground::new(Arc::new(artifact), landing, threads, counters, (Means::default(), vouching)))
}

/// The same in memory, as a network card may write it. None where there is no tmpfs.
pub(crate) fn ground_in_memory(
    artifact: Artifact,
    registrar: Arc<dyn Registrar>,
) -> Option<(tempfile::TempDir, Arc<Ground>)> {
    let shm = std::path::Path::new("/dev/shm");
    if !store::filesystem_of(shm).is_ok_and(store::FsKind::lands_direct) {
        return None;
    }
    let dir = tempfile::tempdir_in(shm).unwrap();
    let landing = Arc::new(open(&dir, &artifact));
    landing.preallocate().unwrap();
    let counters = Counters::new(artifact.layout().total_bytes(), Arc::default());
    let threads = (Workers::start(), Buffers::new());
    let rule = LandingRule { registrar: Some(registrar), ..LandingRule::default() };
    let trust = (Means::default(), None);
    Some((dir, Ground::new(Arc::new(artifact), (landing, rule), threads, counters, trust)))
}

fn open(dir: &tempfile::TempDir, artifact: &Artifact) -> Landing {
    Landing::open(&dir.path().join("landing"), artifact.layout(), &artifact.manifest.digest()).unwrap()
}

/// Files of one piece each have roots, which are their trees; larger ones are checked as a whole.
pub(crate) fn artifact(contents: &[Vec<u8>]) -> Artifact {
    let is_piece = |bytes: &[u8]| bytes.len() as u64 <= PIECE_BYTES;
    let source = |(number, bytes): (usize, &Vec<u8>)| SourceFile {
        path: format!("{number:06}"),
        size: bytes.len() as u64,
        digest: Sha256Digest::of(bytes),
        root: is_piece(bytes).then(|| Blake3Root::new(*blake3::hash(bytes).as_bytes())),
        tree: Vec::new(),
        is_executable: false,
        safetensors: None,
    };
    let sources = contents.iter().enumerate().map(source).collect();
    let built = build::build(sources, &build::Options::default()).unwrap();
    let manifest = Manifest::parse(&built.manifest).unwrap();
    let tree = |blob: &Blob| PieceTree::single(blob.size, blob.root?);
    let check = |blob: &Blob| tree(blob).map_or(Check::Sha256, Check::Tree);
    let checks = manifest.blobs().iter().map(check).collect();
    Artifact { reference: "test".into(), manifest, index: None, config: built.config, checks }
}
