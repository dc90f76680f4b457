//! Bytes of a new artifact that are on this machine already, in files of an older one (ADR 0029).
//!
//! Owns: where old files are looked for, and trying their bytes: each piece is put together from them, and counts only
//! if the new blob's tree proves it at its new place. Does not own: the guesses (`modelpack::delta`), or blobs without
//! a tree, of which nothing is guessed.

mod header;

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, sync::Arc};

use futures_util::stream::{self, StreamExt as _};
use modelpack::{
    delta::{Attempts, NewFile, OldFile, OldFiles, Trial},
    layout::{BlobIndex, BlobPiece, PIECE_BYTES, PieceIndex},
    manifest::ModelFile,
    piece_map::PieceMap,
    piece_tree::{Anchored, Landed, PieceTree},
    reference::Reference,
    safetensors::Tensor,
};
use registry::Access;
use store::{Pin, Store, StoreError, old_files_in};
use tokio::sync::mpsc;

use self::header::{Header, is_safetensors};
use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
    fetch::Ground,
    fill::blocking,
    origin::{self, Origin},
};

/// Headers of new files that are read side by side: enough to hide the round trips of an artifact of many files.
const HEADERS_AT_ONCE: usize = 8;

/// Most tensors of old files that are kept in mind: ten times what the largest models have.
const TENSORS_MAX: usize = 1 << 20;

/// Whether a peer looks for bytes of a new artifact in older ones of its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delta {
    /// It does.
    #[default]
    FromStore,
    /// It does not: reading and proving old bytes can take longer than fetching them, where the network is faster than the
    /// disk.
    Off,
}

/// Where old files are looked for.
#[derive(Debug)]
pub(crate) enum Bases {
    /// Among the artifacts of the node's store.
    Store(Arc<Store>),
    /// These files.
    Files(Vec<store::OldFile>),
}

/// Old files, open.
#[derive(Debug)]
struct Old {
    files: OldFiles,
    open: Vec<Open>,
    /// They stay in the store as long as they are looked at.
    _pins: Vec<Pin>,
}

#[derive(Debug)]
struct Open {
    file: File,
    tree: Option<PieceTree<Anchored>>,
}

/// A blob of which something is missing.
struct Wanted<'a> {
    blob: BlobIndex,
    paths: Vec<&'a str>,
    tree: &'a PieceTree<Anchored>,
    tensors: Option<Vec<Tensor>>,
}

/// Opens what the user has named: directories, and artifacts in layouts.
pub(crate) async fn open_bases(named: &[Reference]) -> Result<Bases, PeerError> {
    let mut files = Vec::new();
    for reference in named {
        match reference {
            Reference::Directory(dir) => {
                let dir = dir.clone();
                files.extend(blocking(move || old_files_in(&dir)).await?);
            }
            Reference::Layout(_) => {
                let (origin, artifact) = origin::open(reference, Access::default()).await?;
                if let Origin::Layout(layout) = origin {
                    files.extend(blocking(move || files_of(&layout, &artifact)).await?);
                }
            }
            Reference::Registry(_) | Reference::Hub(_) | Reference::Fleet(_) => {
                let reason = "a base is a directory or a layout on this machine";
                return Err(PeerError::Reference { reference: reference.to_string(), reason });
            }
        }
    }
    Ok(Bases::Files(files))
}

fn files_of(layout: &store::LayoutReader, artifact: &Artifact) -> Result<Vec<store::OldFile>, StoreError> {
    let open = |file: &ModelFile| {
        let blob = artifact.blob(file.blob);
        let tree = match artifact.check(file.blob) {
            Check::Tree(tree) => Some(tree.clone()),
            Check::Root(_) | Check::Sha256 => None,
        };
        let (path, digest) = (file.path.clone(), Some(blob.digest));
        let file = layout.blob(&blob.digest, blob.size)?;
        Ok(store::OldFile { path, bytes: blob.size, digest, tree, file })
    };
    artifact.manifest.files().iter().map(open).collect()
}

/// Brings what old files have of what `have` lacks; says what is here then. Headers of new files that are needed are
/// read from `origin`, if there is one to be asked: they are pieces like any other, and would be fetched anyway.
///
/// What goes wrong with old files or the origin only leaves more to be fetched. Given up at any point, it holds the
/// landing until the pieces under way are written.
pub(crate) async fn bring(
    ground: &Arc<Ground>,
    bases: Bases,
    origin: Option<&Origin>,
    mut have: PieceMap,
) -> Result<PieceMap, PeerError> {
    let is_idle = matches!(&bases, Bases::Files(files) if files.is_empty());
    if is_idle || have.is_full() {
        return Ok(have);
    }
    let old = match open_old(bases, &ground.artifact).await {
        Ok(old) if old.open.is_empty() => return Ok(have),
        Ok(old) => Arc::new(old),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "older versions cannot be looked at: everything is fetched");
            return Ok(have);
        }
    };
    let artifact = Arc::clone(&ground.artifact);
    let mut wanted = wanted(&artifact, &have);
    learn_headers((ground, &old, origin), &mut wanted, &mut have).await?;
    let mut attempts: BTreeMap<BlobIndex, Attempts> = BTreeMap::new();
    for one in &wanted {
        let new = one.as_new(&artifact);
        attempts.insert(
            one.blob,
            Attempts::new(&old.files, &new, |trial| one.is_hopeful(&artifact, (&old, &have), trial)),
        );
    }
    for step in [Attempts::first, Attempts::rest] {
        let trials =
            attempts.iter().flat_map(|(blob, one)| step(one).into_iter().map(|trial| (*blob, trial)));
        let trials: Vec<_> = trials.collect();
        for (blob, piece) in try_all(ground, &old, trials).await? {
            let first = artifact.layout().pieces_of(blob).start.0;
            have.insert(PieceIndex(first + piece.0));
            if let Some(one) = attempts.get_mut(&blob) {
                one.was_good(piece);
            }
        }
    }
    Ok(have)
}

async fn open_old(bases: Bases, artifact: &Arc<Artifact>) -> Result<Old, StoreError> {
    let artifact = Arc::clone(artifact);
    blocking(move || {
        let (found, pins) = match bases {
            Bases::Files(files) => (files, Vec::new()),
            Bases::Store(store) => store.old_files(&artifact.manifest)?,
        };
        let (mut files, mut open, mut tensors) = (Vec::new(), Vec::new(), 0);
        for store::OldFile { path, bytes, digest, tree, file } in found {
            let known = Some(&path).filter(|path| is_safetensors(path) && tensors < TENSORS_MAX);
            let known = known.and_then(|_| header::of_file(&file, bytes)).unwrap_or_default();
            tensors += known.len();
            files.push(OldFile { path, bytes, digest, tensors: known });
            open.push(Open { file, tree });
        }
        Ok(Old { files: OldFiles::new(files), open, _pins: pins })
    })
    .await
}

fn wanted<'a>(artifact: &'a Artifact, have: &PieceMap) -> Vec<Wanted<'a>> {
    let layout = artifact.layout();
    let mut paths: BTreeMap<BlobIndex, Vec<&str>> = BTreeMap::new();
    for file in artifact.manifest.files() {
        paths.entry(file.blob).or_default().push(file.path.as_str());
    }
    let missing = layout.blobs().filter(|blob| !have.contains_run(layout.pieces_of(*blob)));
    let one = |blob| {
        let Check::Tree(tree) = artifact.check(blob) else { return None };
        Some(Wanted { blob, paths: paths.remove(&blob)?, tree, tensors: None })
    };
    missing.filter_map(one).collect()
}

/// Reads the headers of new files, where old tensors may be found in them.
async fn learn_headers(
    (ground, old, origin): (&Arc<Ground>, &Arc<Old>, Option<&Origin>),
    wanted: &mut [Wanted<'_>],
    have: &mut PieceMap,
) -> Result<(), PeerError> {
    if !old.files.has_tensors() {
        return Ok(());
    }
    let reads: Vec<_> = wanted
        .iter()
        .enumerate()
        .filter(|(_, one)| one.paths.iter().any(|path| is_safetensors(path)))
        .map(|(number, one)| {
            let counterpart = old.files.counterpart(&one.as_new(&ground.artifact));
            let header = Header { ground, old, origin, counterpart, have };
            async move { (number, header.read(one.blob).await) }
        })
        .collect();
    let mut reads = stream::iter(reads).buffer_unordered(HEADERS_AT_ONCE);
    let mut learned = Vec::new();
    while let Some((number, result)) = reads.next().await {
        learned.push((number, result?));
    }
    drop(reads);
    for (number, (tensors, brought)) in learned {
        wanted[number].tensors = tensors;
        for piece in brought {
            have.insert(piece);
        }
    }
    Ok(())
}

impl Wanted<'_> {
    fn as_new(&self, artifact: &Artifact) -> NewFile<'_> {
        let blob = artifact.blob(self.blob);
        NewFile {
            paths: &self.paths,
            bytes: blob.size,
            digest: blob.digest,
            tensors: self.tensors.as_deref(),
        }
    }

    /// Whether the piece is missing, and nothing is known that speaks against the old bytes.
    fn is_hopeful(&self, artifact: &Artifact, (old, have): (&Old, &PieceMap), trial: &Trial) -> bool {
        let first = artifact.layout().pieces_of(self.blob).start.0;
        if have.contains(PieceIndex(first + trial.piece.0)) {
            return false;
        }
        // Both trees say it without a byte being read.
        match trial.lies_in_place().and_then(|file| old.open[file].tree.as_ref()) {
            Some(tree) if self.tree.blob_bytes() > PIECE_BYTES && tree.blob_bytes() > PIECE_BYTES => {
                self.tree.shares(tree, trial.piece)
            }
            _ => true,
        }
    }
}

type Brought = (BlobIndex, BlobPiece);

/// Tries pieces on the workers; says which are here now.
async fn try_all(
    ground: &Arc<Ground>,
    old: &Arc<Old>,
    trials: Vec<(BlobIndex, Trial)>,
) -> Result<Vec<Brought>, PeerError> {
    let mut trials = trials.into_iter();
    let (report, mut results) = mpsc::unbounded_channel();
    let (mut waiting, mut good) = (0, Vec::new());
    loop {
        // Few at a time: they bound the memory, and hold the landing also when the pull is given up.
        for (blob, trial) in trials.by_ref().take(ground.workers.count() * 2 - waiting) {
            let (ground, old, report) = (Arc::clone(ground), Arc::clone(old), report.clone());
            waiting += 1;
            ground.clone().workers.run(move || {
                let result = attempt(&ground, &old, blob, &trial);
                drop((ground, old));
                // A pull that was given up needs no answer.
                let _ = report.send(((blob, trial.piece), result));
            });
        }
        if waiting == 0 {
            return Ok(good);
        }
        let Some((brought, result)) = results.recv().await else { return Ok(good) };
        waiting -= 1;
        if result? {
            good.push(brought);
        }
    }
}

/// Puts a piece together and proves it; says whether it is here now. Blocks.
fn attempt(ground: &Ground, old: &Old, blob: BlobIndex, trial: &Trial) -> Result<bool, StoreError> {
    let Check::Tree(tree) = ground.artifact.check(blob) else { return Ok(false) };
    let layout = ground.artifact.layout();
    let piece = PieceIndex(layout.pieces_of(blob).start.0 + trial.piece.0);
    let len = layout.piece_bytes(piece);
    let mut buffer = vec![0; usize::try_from(len).expect("at most a piece")];
    let shared = match trial.parts.as_slice() {
        [part] if ground.landing.may_share(part.from) => {
            ground.landing.share(piece, (&old.open[part.file].file, part.from), tree, &mut buffer)?
        }
        _ => None,
    };
    let is_good = match shared {
        Some(is_good) => is_good,
        None => copy(ground, old, (piece, trial, tree), &mut buffer)?,
    };
    if is_good {
        ground.counters.was_here(len);
    }
    Ok(is_good)
}

fn copy(
    ground: &Ground,
    old: &Old,
    (piece, trial, tree): (PieceIndex, &Trial, &PieceTree<Anchored>),
    buffer: &mut [u8],
) -> Result<bool, StoreError> {
    let mut at = 0;
    for part in &trial.parts {
        let end = at + usize::try_from(part.bytes).expect("at most a piece");
        // A file that has become shorter, or a disk that is damaged: the piece is fetched.
        if let Err(error) = old.open[part.file].file.read_exact_at(&mut buffer[at..end], part.from) {
            tracing::debug!(%error, "old bytes cannot be read");
            return Ok(false);
        }
        at = end;
    }
    let Ok(verified) = tree.verify(Landed::new(trial.piece, &*buffer)) else { return Ok(false) };
    ground.landing.commit(piece, &verified)?;
    Ok(true)
}
