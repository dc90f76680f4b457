//! A model of a hub at one commit, described as an artifact.
//!
//! Owns: resolving a revision once, learning every file's SHA-256 (of one in Git LFS the hub says it; a small one is
//! read), and where a file's bytes come from: memory, the shared cache or the hub. Does not own: proving what comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use modelpack::{
    build::{self, Options},
    digest::Sha256Digest,
    hub::{self, Commit, GitBlob, HubFile, Listing},
    modelfile::Facts,
    reference::HubReference,
};

use super::{CachedModel, Hub, HubFailure};
use crate::{access::Access, blob::BlobStream, error::RegistryError, patience::Patience};

/// Small files that are read at the same time. Each may have [`hub::SMALL_BYTES_MAX`].
const SMALL_AT_ONCE: usize = 4;

/// Bytes of small files that are kept from learning their digests to landing; what is beyond is read twice.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// The model's own description.
const HF_CONFIG: &str = "config.json";

/// A model at one commit.
#[derive(Debug)]
pub struct Snapshot {
    at: HubReference,
    commit: Commit,
    listing: Listing,
    /// By file, in the order of the listing.
    digests: Vec<Sha256Digest>,
    places: BTreeMap<Sha256Digest, usize>,
    /// None where nothing may be asked of it.
    hub: Option<Hub>,
    cache: Option<CachedModel>,
    /// Whose bytes in the cache turned out to be wrong.
    distrusted: Mutex<BTreeSet<Sha256Digest>>,
    /// Bytes of small files that came without asking.
    told: BTreeMap<GitBlob, Bytes>,
    kept: BTreeMap<Sha256Digest, Bytes>,
    hf_config: Option<serde_json::Value>,
    manifest: Vec<u8>,
    config: Vec<u8>,
}

/// A file's bytes, or a part of them, as they can be had.
#[derive(Debug)]
pub enum FileBytes {
    /// From the hub, as they come.
    Stream(Box<BlobStream>),
    /// In the shared cache: the whole file.
    Cached(File),
    /// In memory: what was asked for.
    Kept(Bytes),
}

/// What a revision is, as somebody says who has asked the hub.
#[derive(Clone, Debug)]
pub struct Told {
    /// The commit.
    pub commit: Commit,
    /// All its files.
    pub listing: Listing,
    /// The bytes of files whose SHA-256 is not listed, as far as they are known: Git's names prove them.
    pub small: Vec<Bytes>,
}

/// What a revision is.
struct Resolved {
    hub: Option<Hub>,
    cache: Option<CachedModel>,
    commit: Commit,
    listing: Listing,
    told: BTreeMap<GitBlob, Bytes>,
}

impl Resolved {
    async fn of(at: &HubReference, access: &Access, patience: Patience) -> Result<Self, RegistryError> {
        let cache = access.hub.cache.as_ref().map(|root| CachedModel::new(root, at));
        if access.hub.is_offline {
            let absent = || HubFailure::NoRevision {
                model: at.model(),
                revision: at.revision().to_owned(),
                dir: "~/.cache/huggingface".into(),
            };
            let (commit, listing) = cache.as_ref().ok_or_else(absent)?.found()?;
            return Ok(Self { hub: None, cache, commit, listing, told: BTreeMap::new() });
        }
        let hub = Hub::open(at, &access.hub, access.ca_pem.clone())?.with_patience(patience);
        let commit = match at.revision().parse() {
            Ok(commit) => commit,
            Err(_) => hub.commit().await?,
        };
        let listing = hub.listing(commit).await?;
        Ok(Self { hub: Some(hub), cache, commit, listing, told: BTreeMap::new() })
    }
}

impl Snapshot {
    /// Finds out what the revision is now. Of the artifact that it makes, the manifest and the config are the same
    /// wherever and whenever the same commit is described.
    pub async fn open(at: &HubReference, access: &Access) -> Result<Self, RegistryError> {
        Self::open_with(at, access, Patience::default()).await
    }

    /// The same with other limits in time.
    pub async fn open_with(
        at: &HubReference,
        access: &Access,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        let snapshot = Self::of(at, Resolved::of(at, access, patience).await?);
        snapshot.check_access().await?;
        snapshot.learned().await
    }

    /// The same as somebody else says that it is. Nothing is asked of the hub but small files that were not told: whether
    /// it lets anybody read, [`Self::lets_in`] says.
    pub async fn told(at: &HubReference, access: &Access, told: Told) -> Result<Self, RegistryError> {
        let hub = Hub::open(at, &access.hub, access.ca_pem.clone())?;
        let Told { commit, listing, small } = told;
        let told = small.into_iter().map(|raw| (GitBlob::of(&raw), raw)).collect();
        Self::of(at, Resolved { hub: Some(hub), cache: None, commit, listing, told }).learned().await
    }

    fn of(at: &HubReference, resolved: Resolved) -> Self {
        let Resolved { hub, cache, commit, listing, told } = resolved;
        Self {
            at: at.clone(),
            commit,
            digests: Vec::with_capacity(listing.files().len()),
            listing,
            places: BTreeMap::new(),
            hub,
            cache,
            distrusted: Mutex::default(),
            told,
            kept: BTreeMap::new(),
            hf_config: None,
            manifest: Vec::new(),
            config: Vec::new(),
        }
    }

    async fn learned(mut self) -> Result<Self, RegistryError> {
        self.learn_digests().await?;
        self.describe()?;
        Ok(self)
    }

    /// Finds out which commit the revision is now, and nothing more. Asked in the name of [`HubAccess::token`].
    ///
    /// [`HubAccess::token`]: crate::HubAccess::token
    pub async fn commit_of(at: &HubReference, access: &Access) -> Result<Commit, RegistryError> {
        Hub::open(at, &access.hub, access.ca_pem.clone())?.commit().await
    }

    /// Whether the hub lets somebody with this token read it, which it is asked once, now. What it leads to has to be what
    /// is listed here.
    pub async fn lets_in(&self, token: Option<&str>) -> Result<(), RegistryError> {
        let Some(hub) = &self.hub else { return Ok(()) };
        let hub = hub.in_name_of(token)?.with_patience(Patience { attempts: 1, ..Patience::default() });
        let files = self.files().filter(|(file, _)| file.size > 0);
        let Some((file, digest)) = files.max_by_key(|(file, _)| (file.lfs.is_some(), file.size)) else {
            return hub.commit().await.map(drop);
        };
        hub.read((self.commit, file, digest), 0..1).await.map(drop)
    }

    /// The same model, read in the name of somebody else.
    pub fn in_name_of(&self, token: Option<&str>) -> Result<Self, RegistryError> {
        let hub = self.hub.as_ref().map(|hub| hub.in_name_of(token)).transpose()?;
        Ok(Self {
            at: self.at.clone(),
            commit: self.commit,
            listing: self.listing.clone(),
            digests: self.digests.clone(),
            places: self.places.clone(),
            hub,
            cache: None,
            distrusted: Mutex::default(),
            told: BTreeMap::new(),
            kept: self.kept.clone(),
            hf_config: self.hf_config.clone(),
            manifest: self.manifest.clone(),
            config: self.config.clone(),
        })
    }

    /// What others can be told of it.
    pub fn to_tell(&self) -> Told {
        Told {
            commit: self.commit,
            listing: self.listing.clone(),
            small: self.kept.values().cloned().collect(),
        }
    }

    /// The bytes of a file that was read to learn its digest, if they are kept.
    pub fn kept(&self, digest: &Sha256Digest) -> Option<&Bytes> {
        self.kept.get(digest)
    }

    /// Finds out which commit the revision is now and which files it has, and nothing more.
    pub async fn list(at: &HubReference, access: &Access) -> Result<(Commit, Listing), RegistryError> {
        let Resolved { commit, listing, .. } = Resolved::of(at, access, Patience::default()).await?;
        Ok((commit, listing))
    }

    /// Which commit it is.
    pub fn commit(&self) -> Commit {
        self.commit
    }

    /// Its files.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Its files, each with its SHA-256.
    pub fn files(&self) -> impl Iterator<Item = (&HubFile, &Sha256Digest)> {
        self.listing.files().iter().zip(&self.digests)
    }

    /// The manifest, which states no BLAKE3 hashes.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The config of that manifest.
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// What is known of it besides its files.
    pub fn options(&self) -> Options {
        Options {
            facts: Facts { name: Some(self.at.name.clone()), ..Facts::default() },
            about: hub::about(&self.at, self.commit),
            hf_config: self.hf_config.clone(),
            ..Options::default()
        }
    }

    /// That it is listed does not mean that whoever asks may have it.
    async fn check_access(&self) -> Result<(), RegistryError> {
        let Some(hub) = &self.hub else { return Ok(()) };
        let in_lfs = self.listing.files().iter().filter_map(|file| Some((file, file.lfs?)));
        let Some((file, digest)) = in_lfs.max_by_key(|(file, _)| file.size) else { return Ok(()) };
        hub.read((self.commit, file, &digest), 0..file.size.min(1)).await.map(drop)
    }

    async fn learn_digests(&mut self) -> Result<(), RegistryError> {
        let this = &*self;
        let learning: Vec<_> = this.listing.files().iter().map(|file| this.learn(file)).collect();
        let mut learned = stream::iter(learning).buffered(SMALL_AT_ONCE);
        let (mut digests, mut kept, mut kept_bytes) = (Vec::new(), BTreeMap::new(), 0);
        let mut hf_config = None;
        while let Some((digest, raw)) = learned.try_next().await? {
            let path = &this.listing.files()[digests.len()].path;
            if let Some((raw, is_cached)) = raw {
                if path == HF_CONFIG {
                    hf_config = serde_json::from_slice(&raw).ok();
                }
                // What is in the cache is as near, and is counted as what it is.
                if !is_cached && kept_bytes + raw.len() <= KEPT_BYTES_MAX {
                    kept_bytes += raw.len();
                    kept.insert(digest, raw);
                }
            }
            digests.push(digest);
        }
        drop(learned);
        self.places = digests.iter().copied().zip(0..).collect();
        (self.digests, self.kept, self.hf_config) = (digests, kept, hf_config);
        self.told.clear();
        Ok(())
    }

    /// A file's SHA-256; and its bytes if they had to be read for that, and whether in the cache.
    async fn learn(&self, file: &HubFile) -> Result<(Sha256Digest, Option<(Bytes, bool)>), RegistryError> {
        if let Some(digest) = file.lfs {
            return Ok((digest, None));
        }
        // On the heap when its turn comes: there may be thousands.
        let (raw, is_cached) = match self.told.get(&file.git).filter(|raw| file.is_made_of(raw)) {
            Some(raw) => (raw.clone(), false),
            None => Box::pin(self.small(file)).await.map(|(raw, is_cached)| (Bytes::from(raw), is_cached))?,
        };
        Ok((Sha256Digest::of(&raw), Some((raw, is_cached))))
    }

    async fn small(&self, file: &HubFile) -> Result<(Vec<u8>, bool), RegistryError> {
        let cached = || {
            let mut raw = Vec::new();
            self.cache.as_ref()?.blob(file)?.take(file.size).read_to_end(&mut raw).ok()?;
            Some(raw).filter(|raw| file.is_made_of(raw))
        };
        match (cached(), &self.hub) {
            (Some(raw), _) => Ok((raw, true)),
            (None, Some(hub)) => Ok((hub.whole(self.commit, file).await?, false)),
            (None, None) => Err(HubFailure::WrongBytes {
                path: file.path.clone(),
                model: self.at.model(),
                expected: file.etag(),
            }
            .into()),
        }
    }

    fn describe(&mut self) -> Result<(), RegistryError> {
        let files = self.files().map(|(file, digest)| file.source(*digest)).collect();
        let built = build::build(files, &self.options())
            .map_err(|source| HubFailure::Artifact { model: self.at.model(), source })?;
        (self.manifest, self.config) = (built.manifest, built.config);
        Ok(())
    }

    /// Begins to read a part of a file.
    pub async fn read(&self, digest: &Sha256Digest, range: Range<u64>) -> Result<FileBytes, RegistryError> {
        if let Some(raw) = self.kept.get(digest) {
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(raw.len());
            return Ok(FileBytes::Kept(raw.slice(at(range.start)..at(range.end))));
        }
        match self.cached(digest) {
            Some(file) => Ok(FileBytes::Cached(file)),
            None => self.stream(digest, range).await.map(Box::new).map(FileBytes::Stream),
        }
    }

    /// A file in the shared cache, unproved.
    pub fn cached(&self, digest: &Sha256Digest) -> Option<File> {
        if self.is_distrusted(digest) {
            return None;
        }
        self.cache.as_ref()?.blob(self.file(digest)?)
    }

    fn is_distrusted(&self, digest: &Sha256Digest) -> bool {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// The bytes of a file in the shared cache, or those that came from the hub, are not what they should be.
    pub fn distrust(&self, digest: &Sha256Digest) {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest);
        if let Some(hub) = &self.hub {
            hub.forget_location(digest);
        }
    }

    /// Begins to read a part of a file from the hub itself.
    pub(crate) async fn stream(
        &self,
        digest: &Sha256Digest,
        range: Range<u64>,
    ) -> Result<BlobStream, RegistryError> {
        let missing = |path: &str| HubFailure::Missing {
            model: self.at.model(),
            files: vec![path.to_owned()],
            dir: self.cache.as_ref().map_or_else(Default::default, |cache| cache.snapshot(self.commit)),
        };
        let file = self.file(digest).ok_or_else(|| missing(&digest.to_string()))?;
        let Some(hub) = &self.hub else {
            let is_damaged = self.is_distrusted(digest);
            return Err(if is_damaged { self.wrong_bytes(digest) } else { missing(&file.path) }.into());
        };
        hub.read((self.commit, file, digest), range).await
    }

    /// What came under this digest is something else.
    pub(crate) fn wrong_bytes(&self, digest: &Sha256Digest) -> HubFailure {
        HubFailure::WrongBytes {
            path: self.file(digest).map_or_else(String::new, |file| file.path.clone()),
            model: self.at.model(),
            expected: digest.hex(),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        self.hub.as_ref().map(Hub::patience).unwrap_or_default()
    }

    /// Who sends the files.
    pub(crate) fn host(&self) -> String {
        self.hub.as_ref().map_or_else(|| "the shared cache".to_owned(), Hub::host)
    }

    fn file(&self, digest: &Sha256Digest) -> Option<&HubFile> {
        self.listing.files().get(*self.places.get(digest)?)
    }
}
