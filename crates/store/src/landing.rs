//! A landing: the directory in which one artifact's blobs are being written.
//!
//! Owns: its lock, one file a blob, the journal, and which pieces were verified since it was opened. Does not own:
//! fetching, hashing threads, or where the finished blobs go.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use memory::Region;
use modelpack::{
    digest::Sha256Digest,
    layout::{BlobIndex, PieceIndex, PieceLayout, Run},
    piece_map::PieceMap,
};
use rustix::{fs::FallocateFlags, io::Errno};

use crate::{
    error::{Context as _, StoreError},
    files::{Dir, FsKind, free_bytes},
    journal::{Claim, ClaimKind, Claims, JOURNAL_NAME, Journal, Record},
    lock::{DirLock, LOCK_NAME},
    output::SELECTION_NAME,
    store::Pin,
};

mod consistent;
mod direct;
mod follow;
mod recheck;
mod shared;
mod write;

/// The name of the directory of blob files within a landing.
pub(crate) const BLOBS_NAME: &str = "blobs";

/// Every landing of a process has its own number, so that a proof cannot be shown to another one.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The exclusive right to write one artifact's blobs in one directory. Shared between threads by `Arc`.
///
/// Every blob has a file there, written at final offsets, and every piece written has a journal record, written after
/// its bytes. Nothing is synced per piece: whoever resumes hashes what the journal claims.
///
/// Whoever commits a verified piece vouches that the tree it was verified against is that of the piece's blob.
#[derive(Debug)]
pub struct Landing {
    id: u64,
    dir: Dir,
    blobs: Dir,
    layout: PieceLayout,
    slots: Vec<Slot>,
    state: Mutex<State>,
    /// Told of every piece that is here.
    moved: Condvar,
    kind: FsKind,
    /// What this run made, to be taken back if there is no space.
    created: Created,
    _pin: Option<Pin>,
    _lock: DirLock,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    claims: Claims,
    /// Checked since this landing was opened.
    verified: PieceMap,
    /// On disk, whatever is known of it: what was written, or looked at again, since this landing was opened.
    here: PieceMap,
}

#[derive(Debug)]
struct Slot {
    state: RwLock<SlotState>,
    unsynced: AtomicU64,
    /// Moves when unproved bytes are written or the blob is forgotten, so that older proofs are void.
    generation: AtomicU64,
}

#[derive(Debug)]
struct SlotState {
    file: Arc<File>,
    stage: Stage,
    /// Once somebody has asked for it: then no range is written by two.
    region: Option<Arc<Region>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Pieces may be written.
    Open,
    /// The file was handed over as a whole and may be a second name of somebody else's: never write it.
    Placed,
    /// The file is a finished blob of the store.
    FromStore,
    /// Published, or about to be.
    Sealed,
}

/// What opening a landing made that was not there before.
#[derive(Debug, Default)]
pub(crate) struct Created {
    /// Directories, outermost first.
    pub(crate) dirs: Vec<PathBuf>,
    blobs: Vec<BlobIndex>,
}

fn unpoison<T>(result: Result<T, PoisonError<T>>) -> T {
    // A panic elsewhere leaves bit sets and file handles whole: each change is one step.
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Makes `path` and what is missing above it; says what was made, outermost first.
pub(crate) fn create_dirs(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut missing: Vec<_> = path
        .ancestors()
        .take_while(|at| !at.as_os_str().is_empty() && at.symlink_metadata().is_err())
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    let mut made = Vec::new();
    for dir in missing {
        match std::fs::create_dir(&dir) {
            Ok(()) => made.push(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                remove_dirs(&made);
                return Err(error).context("create directory", dir);
            }
        }
    }
    Ok(made)
}

/// Takes back what [`create_dirs`] made, as far as it is empty.
pub(crate) fn remove_dirs(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        if let Err(error) = std::fs::remove_dir(dir) {
            tracing::debug!(dir = %dir.display(), %error, "a directory stays");
        }
    }
}

/// A locked directory that is to become a landing.
pub(crate) struct Site {
    pub(crate) dir: Dir,
    pub(crate) lock: DirLock,
    pub(crate) created: Vec<PathBuf>,
    /// Finished blobs of a store; shorter than the artifact where there are none.
    pub(crate) present: Vec<Option<File>>,
    /// In a store: keeps what is there of the artifact.
    pub(crate) pin: Option<Pin>,
}

impl Site {
    /// Makes `path` if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let created = create_dirs(path)?;
        let open = || {
            let dir = open_final(path)?;
            let lock = DirLock::acquire(&dir, LOCK_NAME)?;
            Ok((dir, lock))
        };
        match open() {
            Ok((dir, lock)) => Ok(Self { dir, lock, created, present: Vec::new(), pin: None }),
            Err(error) => {
                remove_dirs(&created);
                Err(error)
            }
        }
    }
}

/// Opens a directory of ours, whose own name must not be a symbolic link that somebody planted.
fn open_final(path: &Path) -> Result<Dir, StoreError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => Dir::open(parent)?.sub(name),
        None => Dir::open(path),
    }
}

impl Landing {
    /// Opens `dir`, which is made if it is missing, for the artifact whose manifest digest is `identity`.
    ///
    /// [`StoreError::Busy`] if another landing has it; [`StoreError::Occupied`] if it belongs to another artifact.
    pub fn open(dir: &Path, layout: &PieceLayout, identity: &Sha256Digest) -> Result<Self, StoreError> {
        Self::open_at(Site::open(dir)?, layout, identity)
    }

    pub(crate) fn open_at(
        site: Site,
        layout: &PieceLayout,
        identity: &Sha256Digest,
    ) -> Result<Self, StoreError> {
        let Site { dir, lock, created, present, pin } = site;
        let (journal, claims) = Journal::open(&dir, layout, identity)?;
        let blobs = dir.make(BLOBS_NAME)?;
        let mut created = Created { dirs: created, blobs: Vec::new() };
        let mut verified = PieceMap::empty(layout.piece_count());
        let mut present = present.into_iter();
        let mut slots = Vec::new();
        for blob in layout.blobs() {
            let (file, stage) = match present.next().flatten() {
                Some(file) => {
                    verified.insert_run(layout.pieces_of(blob));
                    (file, Stage::FromStore)
                }
                None => (open_blob(&blobs, blob, &mut created)?, Stage::Open),
            };
            let start = SlotState { file: Arc::new(file), stage, region: None };
            slots.push(Slot {
                state: RwLock::new(start),
                unsynced: AtomicU64::new(0),
                generation: AtomicU64::new(0),
            });
        }
        let kind = dir.kind()?;
        let here = verified.clone();
        let state = Mutex::new(State { journal, claims, verified, here });
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            id,
            dir,
            blobs,
            layout: layout.clone(),
            slots,
            state,
            moved: Condvar::new(),
            kind,
            created,
            _pin: pin,
            _lock: lock,
        })
    }

    /// The geometry of its blobs.
    pub fn layout(&self) -> &PieceLayout {
        &self.layout
    }

    /// Gives every blob its full size, and its space where that costs nothing: not in memory, where a page has to be
    /// found for each 4 KiB before the first byte could be read, which takes as long as landing them.
    ///
    /// Asks for free space first. Whatever goes wrong, what this run made is taken back, and the landing is of no
    /// further use.
    pub fn preallocate(&self) -> Result<(), StoreError> {
        let mut before = Vec::new();
        for blob in self.writable_blobs() {
            let file = self.file(blob);
            before.push((Arc::clone(&file), file.metadata().context("look at", self.blob_path(blob))?.len()));
        }
        self.allocate(self.space_to_come()?).inspect_err(|_| {
            for (file, bytes) in before {
                if let Err(error) = file.set_len(bytes) {
                    tracing::warn!(%error, "a partial blob keeps space that it does not use");
                }
            }
            self.take_back();
        })
    }

    fn allocate(&self, need: u64) -> Result<(), StoreError> {
        let free = free_bytes(self.dir.path())?;
        if need > free {
            return Err(StoreError::NoSpace { need, free, path: self.dir.path().to_path_buf() });
        }
        for blob in self.writable_blobs() {
            let (file, bytes) = (self.file(blob), self.layout.blob_bytes(blob));
            if bytes == 0 {
                continue;
            }
            let allocated = match self.kind {
                FsKind::Tmpfs => Err(Errno::OPNOTSUPP),
                _ => rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, bytes),
            };
            match allocated {
                Ok(()) => {}
                // A sparse file of the right size serves as well.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    file.set_len(bytes).context("size", self.blob_path(blob))?;
                }
                Err(Errno::NOSPC) => {
                    let free = free_bytes(self.dir.path())?;
                    return Err(StoreError::NoSpace { need, free, path: self.dir.path().to_path_buf() });
                }
                Err(errno) => return Err(errno).context("allocate", self.blob_path(blob)),
            }
        }
        Ok(())
    }

    /// Bytes of space that its blobs will take yet.
    fn space_to_come(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for blob in self.writable_blobs() {
            let meta = self.file(blob).metadata().context("look at", self.blob_path(blob))?;
            // st_blocks counts 512 bytes whatever the file system's block is (stat(2)).
            bytes += self.layout.blob_bytes(blob).saturating_sub(meta.blocks() * 512);
        }
        Ok(bytes)
    }

    /// Free space that its blobs will not take, as far as `wanted` bytes of it matter. Thousands of unpacked files ask
    /// this, so that every blob is looked at only in memory, where none has its space, and where that may be scarce.
    pub(crate) fn free_beside_blobs(&self, wanted: u64) -> Result<u64, StoreError> {
        let free = free_bytes(self.dir.path())?;
        let is_plenty = wanted.saturating_add(self.layout.total_bytes()) <= free;
        if self.kind != FsKind::Tmpfs || is_plenty {
            return Ok(free);
        }
        Ok(free.saturating_sub(self.space_to_come()?))
    }

    fn writable_blobs(&self) -> impl Iterator<Item = BlobIndex> + '_ {
        self.layout.blobs().filter(|blob| self.stage(*blob) == Stage::Open)
    }

    /// Removes what this run made. Best effort: the error that brought us here is the one to report.
    fn take_back(&self) {
        let remove = |dir: &Dir, name: &str| {
            if let Err(error) = dir.remove_if_there(name) {
                tracing::warn!(%error, "something is left behind");
            }
        };
        for blob in &self.created.blobs {
            remove(&self.blobs, &blob.to_string());
        }
        if !self.created.dirs.is_empty() {
            remove(&self.dir, JOURNAL_NAME);
            remove(&self.dir, SELECTION_NAME);
            if let Err(error) = self.dir.remove_empty_dir(BLOBS_NAME) {
                tracing::warn!(%error, "something is left behind");
            }
            remove(&self.dir, LOCK_NAME);
            remove_dirs(&self.created.dirs);
        }
    }

    /// What the journal claims, ascending. Nothing of it counts before it is rechecked.
    pub fn claims(&self) -> Vec<Claim> {
        self.state().claims.list()
    }

    /// The pieces that were verified since this landing was opened, those of finished blobs of the store included.
    pub fn verified(&self) -> PieceMap {
        self.state().verified.clone()
    }

    /// Whether these pieces were verified since this landing was opened, as [`Self::verified`] has it.
    pub fn holds(&self, run: Run) -> bool {
        self.state().verified.contains_run(run)
    }

    /// Reads a piece as it is on disk.
    ///
    /// # Panics
    /// If `buf` is not as long as the piece.
    pub fn read(&self, piece: PieceIndex, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_from(&self.file(self.layout.span(piece).blob), piece, buf)
    }

    fn read_from(&self, file: &File, piece: PieceIndex, buf: &mut [u8]) -> Result<(), StoreError> {
        let span = self.layout.span(piece);
        assert!(
            buf.len() == span.len as usize,
            "a buffer of {} bytes for a piece of {}",
            buf.len(),
            span.len
        );
        file.read_exact_at(buf, span.offset).context("read", self.blob_path(span.blob))
    }

    /// Voids every claim and every proof of a blob, because its bytes turned out wrong as a whole.
    pub fn forget_blob(&self, blob: BlobIndex) -> Result<(), StoreError> {
        let mut held = unpoison(self.slot(blob).state.write());
        if matches!(held.stage, Stage::Sealed | Stage::FromStore) {
            return Err(StoreError::Sealed { dir: self.dir.path().to_path_buf(), blob });
        }
        if held.stage == Stage::Placed {
            self.blobs.remove_if_there(&blob.to_string())?;
            held.file = Arc::new(self.blobs.create_new(&blob.to_string())?);
            held.stage = Stage::Open;
        }
        self.slot(blob).generation.fetch_add(1, Ordering::SeqCst);
        if let Some(region) = &held.region {
            region.unseal();
        }
        let mut state = self.state();
        state.journal.append(Record::Forget(blob))?;
        state.claims.apply(Record::Forget(blob), &self.layout);
        for piece in self.layout.pieces_of(blob).pieces() {
            state.verified.remove(piece);
            state.here.remove(piece);
        }
        Ok(())
    }

    /// The blob's file, to serve and to hash. It stays readable when the blob is renamed. Do not write it.
    pub fn file(&self, blob: BlobIndex) -> Arc<File> {
        Arc::clone(&unpoison(self.slot(blob).state.read()).file)
    }

    /// Makes the blob's bytes last; does nothing on tmpfs.
    pub fn sync_blob(&self, blob: BlobIndex) -> Result<(), StoreError> {
        if self.kind == FsKind::Tmpfs {
            return Ok(());
        }
        self.slot(blob).unsynced.store(0, Ordering::Relaxed);
        self.file(blob).sync_all().context("sync", self.blob_path(blob))
    }
}

/// What the rest of the crate does with a landing.
impl Landing {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn kind(&self) -> FsKind {
        self.kind
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn blobs(&self) -> &Dir {
        &self.blobs
    }

    pub(crate) fn blob_path(&self, blob: BlobIndex) -> PathBuf {
        self.blobs.path().join(blob.to_string())
    }

    pub(crate) fn generation(&self, blob: BlobIndex) -> u64 {
        self.slot(blob).generation.load(Ordering::SeqCst)
    }

    pub(crate) fn came_from_store(&self, blob: BlobIndex) -> bool {
        matches!(self.stage(blob), Stage::FromStore | Stage::Placed)
    }

    pub(crate) fn is_verified(&self, blob: BlobIndex) -> bool {
        self.state().verified.contains_run(self.layout.pieces_of(blob))
    }

    /// From now on the blob is `file`, which somebody else may own.
    pub(crate) fn set_placed(&self, blob: BlobIndex, file: File) {
        let mut held = unpoison(self.slot(blob).state.write());
        *held = SlotState { file: Arc::new(file), stage: Stage::Placed, region: None };
        self.state().here.insert_run(self.layout.pieces_of(blob));
        self.moved.notify_all();
    }

    /// Ends all writing to the blob: those under way are waited for, and the handle becomes read-only.
    pub(crate) fn seal(&self, blob: BlobIndex) -> Result<(), StoreError> {
        use std::os::fd::AsRawFd as _;
        let mut held = unpoison(self.slot(blob).state.write());
        if held.stage == Stage::Open {
            let magic = format!("/proc/self/fd/{}", held.file.as_raw_fd());
            held.file = Arc::new(File::open(magic).context("reopen", self.blob_path(blob))?);
        }
        held.stage = Stage::Sealed;
        // It stays mapped for as long as somebody holds it; what was proved is sealed there, too.
        held.region = None;
        Ok(())
    }

    /// A blob that may still be written.
    pub(crate) fn first_unfinished(&self) -> Option<BlobIndex> {
        self.writable_blobs().next()
    }

    /// That `proof` is about this landing as it is now.
    pub(crate) fn admits(&self, proof: &crate::proof::BlobProof) -> bool {
        proof.landing == self.id
            && proof.blob.0 < self.layout.blob_count()
            && proof.generation == self.generation(proof.blob)
    }

    fn stage(&self, blob: BlobIndex) -> Stage {
        unpoison(self.slot(blob).state.read()).stage
    }

    fn slot(&self, blob: BlobIndex) -> &Slot {
        &self.slots[blob.0 as usize]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }
}

/// Opens a blob's file to be written, or makes it.
fn open_blob(blobs: &Dir, blob: BlobIndex, created: &mut Created) -> Result<File, StoreError> {
    let name = blob.to_string();
    if let Some(stat) = blobs.stat(&name)? {
        // A second name means that it was hard-linked from a store: writing it would write the store's blob.
        if stat.st_nlink > 1 {
            blobs.remove_if_there(&name)?;
        } else {
            return blobs.open_or_create(&name);
        }
    }
    created.blobs.push(blob);
    blobs.create_new(&name)
}

/// The kind of a claim decides how it is rechecked.
impl Claim {
    /// Whether the piece had been proved.
    pub fn is_verified(&self) -> bool {
        self.kind == ClaimKind::Verified
    }
}
