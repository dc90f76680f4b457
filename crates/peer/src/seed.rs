//! `modelctl peer --seed`: artifacts of this machine, announced to the fleet.
//!
//! Owns: what can be announced, proving it before anybody hears of it, and noticing that a file changes afterwards.
//! Does not own: serving it (`node`), or describing a directory as an artifact.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use modelpack::{
    digest::Sha256Digest,
    layout::{BlobIndex, PieceIndex},
    manifest::Manifest,
    piece_tree::{Landed, PieceTree},
    reference::{LayoutReference, Reference},
};
use registry::Access;
use store::{Fingerprint, Pin, Store, StoreError};
use tokio::sync::mpsc;

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
    fill::blocking,
    kept,
    origin::{self, Origin},
    workers::Workers,
};

/// An artifact of this machine that a peer announces: its bytes count as the origin's.
#[derive(Clone, Debug)]
pub enum Seed {
    /// In a layout on disk. It is proved piece by piece first.
    Layout(LayoutReference),
    /// The files of a directory, which were described as an artifact just now.
    Files(SeedFiles),
    /// In the peer's own store, by a digest or by the name under which it was pulled.
    Stored(Reference),
}

/// An artifact whose blobs are files where they lie.
#[derive(Clone, Debug)]
pub struct SeedFiles {
    /// The directory, for messages.
    pub dir: PathBuf,
    /// What it is.
    pub manifest: Manifest,
    /// Its config.
    pub config: Vec<u8>,
    /// Its blobs, by number.
    pub blobs: Vec<SeedFile>,
}

/// One of its files.
#[derive(Clone, Debug)]
pub struct SeedFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it was like when it was hashed.
    pub fingerprint: Fingerprint,
    /// Its piece tree, as it is serialised.
    pub tree: Vec<u8>,
}

/// A proved artifact, ready to be announced.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) artifact: Artifact,
    pub(crate) blobs: Vec<Arc<SeedBlob>>,
    /// Of one in the store.
    pub(crate) pin: Option<Pin>,
}

/// One open blob of a seed.
#[derive(Debug)]
pub(crate) struct SeedBlob {
    pub(crate) file: Arc<File>,
    path: PathBuf,
    fingerprint: Fingerprint,
}

impl SeedBlob {
    pub(crate) fn new(file: Arc<File>, path: PathBuf) -> Result<Self, StoreError> {
        let fingerprint = Fingerprint::of_file(&file, &path)?;
        Ok(Self { file, path, fingerprint })
    }

    /// Fails if somebody wrote the file since it was proved.
    pub(crate) fn check(&self) -> Result<(), PeerError> {
        if Fingerprint::of_file(&self.file, &self.path)? == self.fingerprint {
            return Ok(());
        }
        Err(PeerError::Changed { path: self.path.clone() })
    }
}

/// Opens and proves what is to be announced.
pub(crate) async fn prepare(seed: Seed, store: &Arc<Store>) -> Result<Prepared, PeerError> {
    match seed {
        Seed::Layout(at) => from_layout(at).await,
        Seed::Files(files) => blocking(move || from_files(files)).await,
        Seed::Stored(reference) => {
            let store = Arc::clone(store);
            blocking(move || from_store(&reference, &store)).await
        }
    }
}

const NO_TREES: &str = "peers exchange only what has piece trees";
const BUILD: &str = "build the artifact with `modelctl build`, or announce the directory of its files";

fn refused(reference: &Reference, reason: &'static str, hint: &'static str) -> PeerError {
    PeerError::Seed { reference: reference.to_string(), reason, hint }
}

async fn from_layout(at: LayoutReference) -> Result<Prepared, PeerError> {
    let blobs_dir = at.dir.join("blobs/sha256");
    let reference = Reference::Layout(at);
    let (origin, artifact) = origin::open(&reference, Access::default()).await?;
    let Origin::Layout(layout) = origin else { unreachable!("opened as a layout") };
    if !artifact.is_anchored() {
        return Err(refused(&reference, NO_TREES, BUILD));
    }
    let mut blobs = Vec::new();
    for blob in artifact.manifest.blobs() {
        let file = Arc::new(layout.blob(&blob.digest, blob.size)?);
        blobs.push(Arc::new(SeedBlob::new(file, blobs_dir.join(blob.digest.hex()))?));
    }
    let unproved = Arc::new(Prepared { artifact, blobs, pin: None });
    let (report, mut results) = mpsc::unbounded_channel();
    let workers = Workers::start();
    for blob in unproved.artifact.layout().blobs() {
        let (unproved, report) = (Arc::clone(&unproved), report.clone());
        workers.run(move || {
            let result = unproved.prove(blob);
            drop(unproved);
            // Whoever waits has given up at an earlier blob.
            let _ = report.send(result);
        });
    }
    drop(report);
    while let Some(result) = results.recv().await {
        result?;
    }
    Ok(Arc::into_inner(unproved).expect("every job has dropped its handle before its report"))
}

fn from_files(files: SeedFiles) -> Result<Prepared, PeerError> {
    let SeedFiles { dir, manifest, config, blobs: sources } = files;
    let (mut checks, mut blobs) = (Vec::new(), Vec::new());
    for (blob, SeedFile { path, fingerprint, tree }) in manifest.blobs().iter().zip(sources) {
        let changed = |path: &Path| PeerError::Changed { path: path.to_path_buf() };
        let tree = blob.root.and_then(|root| PieceTree::anchor(blob.size, root, &tree).ok());
        checks.push(Check::Tree(tree.ok_or_else(|| changed(&path))?));
        let file = store::open_file(&path)?;
        let opened = SeedBlob { file: Arc::new(file), path, fingerprint };
        opened.check()?;
        blobs.push(Arc::new(opened));
    }
    let artifact = Artifact { reference: dir.display().to_string(), manifest, index: None, config, checks };
    Ok(Prepared { artifact, blobs, pin: None })
}

fn from_store(reference: &Reference, store: &Store) -> Result<Prepared, PeerError> {
    let named: Option<Sha256Digest> = match reference {
        Reference::Fleet(digest) => Some(*digest),
        Reference::Registry(at) => match at.digest {
            Some(digest) => Some(digest),
            None => store.named(&reference.to_string())?,
        },
        Reference::Hub(_) => store.named(&reference.to_string())?,
        Reference::Layout(_) | Reference::Directory(_) => None,
    };
    let missing = || {
        let hint = "pull it through this peer first, or announce the directory of its files";
        refused(reference, "the store does not have it", hint)
    };
    let listed = store.complete_manifests()?;
    let digest = named.filter(|digest| listed.contains(digest)).ok_or_else(missing)?;
    let (mut artifact, files) =
        kept::load(store, &digest)?.ok_or_else(|| refused(reference, NO_TREES, BUILD))?;
    let pin = store.pin(&artifact.manifest);
    kept::compute_trees(store, &mut artifact)?;
    artifact.reference = reference.to_string();
    let mut blobs = Vec::new();
    for (blob, file) in artifact.manifest.blobs().iter().zip(files) {
        blobs.push(Arc::new(SeedBlob::new(Arc::new(file), PathBuf::from(blob.digest.to_string()))?));
    }
    Ok(Prepared { artifact, blobs, pin: Some(pin) })
}

impl Prepared {
    /// Proves a blob from end to end.
    fn prove(&self, blob: BlobIndex) -> Result<(), PeerError> {
        let mut buffer = Vec::new();
        for piece in self.artifact.layout().pieces_of(blob).pieces() {
            self.prove_piece(piece, &mut buffer)?;
        }
        self.blobs[blob.0 as usize].check()
    }

    fn prove_piece(&self, piece: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), PeerError> {
        let span = self.artifact.layout().span(piece);
        let path = || self.artifact.path_of(span.blob);
        buffer.resize(span.len as usize, 0);
        let read = self.blobs[span.blob.0 as usize].file.read_exact_at(buffer, span.offset);
        read.map_err(|source| StoreError::Io { operation: "read", path: PathBuf::from(path()), source })?;
        let is_good = match self.artifact.check(span.blob) {
            Check::Tree(tree) => tree.verify(Landed::new(span.in_blob, &*buffer)).is_ok(),
            Check::Root(_) | Check::Sha256 => false,
        };
        let what = || format!("{} bytes from {}", span.len, span.offset);
        if is_good { Ok(()) } else { Err(PeerError::WrongBytes { path: path(), what: what() }) }
    }
}
