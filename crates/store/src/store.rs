//! The node's content store: an OCI image layout whose blobs are proved.
//!
//! Owns: the finished blobs, under which names they may be reused, and the partial landings. Does not own:
//! when a blob's SHA-256 is computed.
//!
//! ```text
//! oci-layout index.json     as in any OCI image layout
//! blobs/sha256/HEX          this node computed that SHA-256
//! blobs/blake3/HEX          proved by its root only; its SHA-256 is what a manifest said
//! proved/ALGORITHM-HEX      the identity of a blob, and its inode, size and mtime when it was proved
//! trees/HEX                 the chaining values of the blob with that root, where it has more than one piece
//! kept/HEX                  the artifact of that manifest is never collected: somebody has said so
//! used/HEX                  its mtime says when the artifact of that manifest was last used
//! partial/HEX/              the landing of the manifest with that digest
//! lock                      one process a store
//! ```

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use modelpack::{
    digest::{Blake3Root, Sha256Digest},
    piece_map::PieceMap,
};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use crate::{
    contents::{BlobIdentity, Contents},
    error::{Context as _, StoreError},
    files::{Dir, Fingerprint, FsKind},
    index::{self, Entry, Index},
    landing::{Landing, Site},
    lock::{DirLock, LOCK_NAME},
    proof::{BlobProof, hash_file, mismatch},
    publish,
};

mod collect;
mod manage;
mod pins;
mod trees;

pub use collect::{NoReaders, Readers};
pub use manage::{Inventory, Prune, StoredArtifact, StoredPartial};
pub use pins::Pin;

const SHA256: &str = "sha256";
const BLAKE3: &str = "blake3";
const PROVED_NAME: &str = "proved";
const PARTIAL_NAME: &str = "partial";
const USED_NAME: &str = "used";
const KEPT_NAME: &str = "kept";
const TREES_NAME: &str = "trees";
/// Most bytes of a manifest or config that is read at once: the protocol's 4 MiB (DESIGN §4).
const SMALL_BYTES_MAX: u64 = 4 << 20;
/// Most bytes of one record of `proved`.
const RECORD_BYTES_MAX: u64 = 4096;
/// Finished blobs are written by nobody, not even through a hard link by their owner's slip.
const BLOB_MODE: Mode = Mode::from_raw_mode(0o444);

/// An open store. One process has it at a time; its threads share it.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
    sha256: Dir,
    blake3: Dir,
    proved: Dir,
    trees: Dir,
    used: Dir,
    kept: Dir,
    /// The budget of blobs and partial landings, if there is one.
    bytes_max: Option<u64>,
    pins: pins::Pins,
    /// Held from making room until what it was made for is allocated.
    making_room: Mutex<()>,
    kind: FsKind,
    /// Held while `index.json` or a record is rewritten, or a blob gets another name.
    writing: Mutex<()>,
    /// None if it is only looked at.
    _locks: Vec<DirLock>,
}

/// A blob as it was when it was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proved {
    identity: BlobIdentity,
    fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
struct ProvedJson {
    sha256: String,
    root: Option<String>,
    size: u64,
    inode: u64,
    mtime_ns: i64,
}

impl Store {
    /// Opens the store in `dir`, which is made if it is missing. [`StoreError::Busy`] if another process has it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let made = crate::landing::create_dirs(dir)?;
        let dir = Dir::open(dir).inspect_err(|_| crate::landing::remove_dirs(&made))?;
        let lock = DirLock::acquire(&dir, LOCK_NAME)?;
        index::make_layout(&dir)?;
        // Whoever writes it as a layout (`LayoutWriter`) takes this one, and would have the index rewritten under it.
        let layout_lock = DirLock::acquire(&dir, index::LAYOUT_NAME)?;
        Self::in_dir(dir, vec![lock, layout_lock])
    }

    fn in_dir(dir: Dir, locks: Vec<DirLock>) -> Result<Self, StoreError> {
        Ok(Self {
            sha256: dir.make("blobs/sha256")?,
            blake3: dir.make("blobs/blake3")?,
            proved: dir.make(PROVED_NAME)?,
            trees: dir.make(TREES_NAME)?,
            used: dir.make(USED_NAME)?,
            kept: dir.make(KEPT_NAME)?,
            bytes_max: None,
            pins: pins::Pins::default(),
            making_room: Mutex::new(()),
            kind: dir.kind()?,
            dir,
            writing: Mutex::new(()),
            _locks: locks,
        })
    }

    /// The landing of an artifact's missing blobs, and the pieces of those that are here already. The landing reads
    /// the latter too, and [`Landing::prove_verified`] proves them.
    pub fn landing(&self, contents: impl Into<Contents>) -> Result<(Arc<Landing>, PieceMap), StoreError> {
        let (landing, here) = self.open_landing(&contents.into(), None)?;
        Ok((Arc::new(landing), here))
    }

    fn open_landing(&self, contents: &Contents, pin: Option<Pin>) -> Result<(Landing, PieceMap), StoreError> {
        contents.assert_whole();
        let mut present = Vec::new();
        for blob in &contents.blobs {
            present.push(self.blob_file(blob)?);
        }
        let path = self.dir.path().join(PARTIAL_NAME).join(contents.digest.hex());
        let mut site = Site::open(&path)?;
        (site.present, site.pin) = (present, pin);
        let landing = Landing::open_at(site, &contents.layout, &contents.digest)?;
        let here = landing.verified();
        Ok((landing, here))
    }

    /// A finished blob, if it is here, was proved, and has not changed since.
    ///
    /// Reuse needs the whole identity (DESIGN §4). `blobs/sha256` was hashed here, so that its SHA-256 and size are
    /// facts; if a root is asked for it must be the blob's own, or pieces would not match the asker's tree. A blob in
    /// `blobs/blake3` has only its root and size as facts; it is reused for the very triple of SHA-256, root and size
    /// that it was recorded with, so that a manifest with another SHA-256 for that root does not inherit a claim that
    /// nobody has checked. A manifest that states the same triple would accept the same bytes from anybody.
    pub fn blob_file(&self, blob: &BlobIdentity) -> Result<Option<File>, StoreError> {
        // Between the two places it may get its other name.
        let _writing = self.writing();
        if let Some((proved, file)) = self.find(&self.sha256, SHA256, &blob.digest.hex())? {
            let same_root = blob.root.is_none() || blob.root == proved.identity.root;
            if same_root && proved.identity.size == blob.size && proved.identity.digest == blob.digest {
                return Ok(Some(file));
            }
        }
        let Some(root) = blob.root else { return Ok(None) };
        let found = self.find(&self.blake3, BLAKE3, &root.hex())?;
        Ok(found.filter(|(proved, _)| proved.identity == *blob).map(|(_, file)| file))
    }

    fn find(&self, dir: &Dir, algorithm: &str, hex: &str) -> Result<Option<(Proved, File)>, StoreError> {
        let Some(file) = dir.find(hex)? else { return Ok(None) };
        let Some(proved) = self.load_proved(algorithm, hex)? else { return Ok(None) };
        let path = dir.path().join(hex);
        if Fingerprint::of_file(&file, &path)? != proved.fingerprint {
            tracing::warn!(path = %path.display(), "a blob has changed since it was proved and is not used");
            return Ok(None);
        }
        Ok(Some((proved, file)))
    }

    fn load_proved(&self, algorithm: &str, hex: &str) -> Result<Option<Proved>, StoreError> {
        let Some(bytes) = self.proved.read_small(&format!("{algorithm}-{hex}"), RECORD_BYTES_MAX)? else {
            return Ok(None);
        };
        // A record that cannot be read proves nothing, as if it were absent.
        let parse = || {
            let json: ProvedJson = serde_json::from_slice(&bytes).ok()?;
            let root = json.root.map(|root| root.parse::<Blake3Root>()).transpose().ok()?;
            let identity = BlobIdentity { digest: json.sha256.parse().ok()?, size: json.size, root };
            let fingerprint = Fingerprint { inode: json.inode, size: json.size, mtime_ns: json.mtime_ns };
            Some(Proved { identity, fingerprint })
        };
        Ok(parse())
    }

    fn save_proved(&self, algorithm: &str, hex: &str, proved: &Proved) -> Result<(), StoreError> {
        let json = ProvedJson {
            sha256: proved.identity.digest.to_string(),
            root: proved.identity.root.map(|root| root.hex()),
            size: proved.identity.size,
            inode: proved.fingerprint.inode,
            mtime_ns: proved.fingerprint.mtime_ns,
        };
        let bytes = serde_json::to_vec(&json).expect("text and numbers always serialise");
        self.proved.write_atomic(&format!("{algorithm}-{hex}"), &bytes)
    }

    /// Moves a proved blob from its landing into the store. Finishing a blob that is here already does nothing.
    pub fn finish_blob(
        &self,
        landing: &Landing,
        blob: &BlobIdentity,
        proof: &BlobProof,
    ) -> Result<(), StoreError> {
        if !landing.admits(proof) || !proof.fits(blob) {
            return Err(StoreError::Unproved { dir: landing.dir().path().to_path_buf(), blob: proof.blob });
        }
        if landing.came_from_store(proof.blob) || landing.blobs().stat(&proof.blob.to_string())?.is_none() {
            return Ok(());
        }
        let path = landing.blob_path(proof.blob);
        landing.seal(proof.blob)?;
        // Bytes may have landed between the check and the seal; from here on none can.
        if !landing.admits(proof) {
            return Err(StoreError::Unproved { dir: landing.dir().path().to_path_buf(), blob: proof.blob });
        }
        let file = landing.file(proof.blob);
        rustix::fs::fchmod(&*file, BLOB_MODE).context("set the mode of", &path)?;
        landing.sync_blob(proof.blob)?;
        let fingerprint = Fingerprint::of_file(&file, &path)?;
        // Recorded as a fact is only what was computed: a streamed SHA-256 says nothing of the root.
        let (dir, algorithm, hex, root) = match blob.root {
            Some(root) if !proof.is_sha256() => (&self.blake3, BLAKE3, root.hex(), Some(root)),
            _ => (&self.sha256, SHA256, blob.digest.hex(), proof.root_beside_sha256()),
        };
        let identity = BlobIdentity { root, ..*blob };
        let _writing = self.writing();
        self.save_proved(algorithm, &hex, &Proved { identity, fingerprint })?;
        landing.blobs().rename(&proof.blob.to_string(), dir, &hex)?;
        self.sync(dir)
    }

    /// Computes the SHA-256 of a blob that only its root has proved. Blocks for as long as hashing takes, unless that
    /// was done before; the result is for [`Self::note_sha256`].
    pub fn hash_blob(&self, blob: &BlobIdentity) -> Result<Sha256Digest, StoreError> {
        let known = self.find(&self.sha256, SHA256, &blob.digest.hex())?.map(|(proved, _)| proved.identity);
        // With another root it is another blob, whatever SHA-256 its manifest pairs with it.
        if known.is_some_and(|known| blob.root.is_none() || known.root == blob.root) {
            return Ok(blob.digest);
        }
        let file = self.blob_file(blob)?.ok_or_else(|| self.missing(&blob.digest))?;
        Ok(hash_file(&file, &self.blake3_path(blob))?.sha256)
    }

    /// Gives a blob its name in `blobs/sha256`, now that [`Self::hash_blob`] has computed `computed`. A mismatch is
    /// an error: the manifest named bytes that are not the ones it gave a root for. The blob is then not reused.
    pub fn note_sha256(&self, blob: &BlobIdentity, computed: &Sha256Digest) -> Result<(), StoreError> {
        let Some(root) = blob.root else { return Ok(()) };
        let _writing = self.writing();
        let Some((proved, _)) = self.find(&self.blake3, BLAKE3, &root.hex())? else { return Ok(()) };
        if proved.identity != *blob {
            return Ok(());
        }
        let record = format!("{BLAKE3}-{}", root.hex());
        if *computed != blob.digest {
            self.proved.remove_if_there(&record)?;
            return Err(mismatch(self.blake3_path(blob), &blob.digest, computed));
        }
        let hex = blob.digest.hex();
        self.save_proved(SHA256, &hex, &proved)?;
        self.blake3.rename(&root.hex(), &self.sha256, &hex)?;
        self.proved.remove_if_there(&record)?;
        self.sync(&self.sha256)
    }

    fn blake3_path(&self, blob: &BlobIdentity) -> PathBuf {
        self.blake3.path().join(blob.root.map(|root| root.hex()).unwrap_or_default())
    }

    /// Keeps a manifest; says its digest.
    pub fn put_manifest(&self, raw: &[u8]) -> Result<Sha256Digest, StoreError> {
        self.put_small(raw)
    }

    /// Keeps a config; says its digest.
    pub fn put_config(&self, raw: &[u8]) -> Result<Sha256Digest, StoreError> {
        self.put_small(raw)
    }

    fn put_small(&self, raw: &[u8]) -> Result<Sha256Digest, StoreError> {
        let digest = Sha256Digest::of(raw);
        let hex = digest.hex();
        let _writing = self.writing();
        if self.read_small(&digest)?.is_none() {
            self.sha256.write_atomic(&hex, raw)?;
            self.sync(&self.sha256)?;
        }
        Ok(digest)
    }

    /// A kept manifest; it is hashed again, so that a damaged one is as good as absent.
    pub fn manifest(&self, digest: &Sha256Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_small(digest)
    }

    /// A kept config, likewise.
    pub fn config(&self, digest: &Sha256Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_small(digest)
    }

    fn read_small(&self, digest: &Sha256Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let bytes = self.sha256.read_small(&digest.hex(), SMALL_BYTES_MAX)?;
        Ok(bytes.filter(|bytes| Sha256Digest::of(bytes) == *digest))
    }

    /// Lists a kept manifest in `index.json` and removes its partial landing, once all its blobs are finished.
    /// Doing it twice is harmless.
    pub fn complete(&self, landing: &Landing, digest: &Sha256Digest) -> Result<(), StoreError> {
        if let Some(blob) = landing.first_unfinished() {
            return Err(StoreError::Unproved { dir: landing.dir().path().to_path_buf(), blob });
        }
        let raw = self.read_small(digest)?.ok_or_else(|| self.missing(digest))?;
        let malformed = |error: serde_json::Error| StoreError::Malformed {
            path: self.sha256.path().join(digest.hex()),
            reason: error.to_string(),
        };
        let (media_type, artifact_type) = index::types_of(&raw).map_err(malformed)?;
        let entry = Entry { media_type, digest: *digest, size: raw.len() as u64, tag: None, artifact_type };
        {
            let _writing = self.writing();
            let mut index = Index::load(&self.dir)?;
            index.put(&entry);
            index.save(&self.dir)?;
            self.sync(&self.dir)?;
        }
        self.touch(digest);
        publish::clear_landing(landing)
    }

    /// The manifests that are listed as complete.
    pub fn complete_manifests(&self) -> Result<BTreeSet<Sha256Digest>, StoreError> {
        let _writing = self.writing();
        Ok(Index::load(&self.dir)?.entries().into_iter().map(|entry| entry.digest).collect())
    }

    /// Lists a complete artifact under a name, too, which moves here from whatever had it; that stays listed, if need
    /// be without a name. Does nothing for one that is not listed.
    pub fn name(&self, digest: &Sha256Digest, name: &str) -> Result<(), StoreError> {
        let _writing = self.writing();
        let mut index = Index::load(&self.dir)?;
        let entries = index.entries();
        let mut listed = entries.iter().filter(|entry| entry.digest == *digest).peekable();
        let Some(first) = listed.peek().copied() else { return Ok(()) };
        if listed.any(|entry| entry.tag.as_deref() == Some(name)) {
            return Ok(());
        }
        index.put(&Entry { tag: Some(name.to_owned()), ..first.clone() });
        // Whatever is not listed is swept, while others may still read it.
        for loser in entries.iter().filter(|entry| entry.tag.as_deref() == Some(name)) {
            index.put(&Entry { tag: None, ..loser.clone() });
        }
        index.save(&self.dir)?;
        self.sync(&self.dir)
    }

    /// The artifact that is listed under a name.
    pub fn named(&self, name: &str) -> Result<Option<Sha256Digest>, StoreError> {
        let _writing = self.writing();
        let entries = Index::load(&self.dir)?.entries();
        Ok(entries.into_iter().find(|entry| entry.tag.as_deref() == Some(name)).map(|entry| entry.digest))
    }

    fn missing(&self, digest: &Sha256Digest) -> StoreError {
        StoreError::Missing { dir: self.dir.path().to_path_buf(), what: format!("`{digest}`") }
    }

    fn sync(&self, dir: &Dir) -> Result<(), StoreError> {
        if self.kind == FsKind::Tmpfs { Ok(()) } else { dir.sync() }
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
