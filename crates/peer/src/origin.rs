//! Where an artifact first comes from: a registry, an `oci:` layout on disk, or a model on a hub.
//!
//! Owns: resolving a reference, finding piece trees, reading one run. Does not own: which run is read when.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use modelpack::{
    config::{CONFIG_BYTES_MAX, ModelConfig},
    digest::Sha256Digest,
    index::sole_manifest,
    layout::{BlobIndex, PIECE_BYTES},
    manifest::{Blob, Family, Manifest},
    piece_tree::PieceTree,
    piece_trees::{ARTIFACT_TYPE, TreeLayer, TreesManifest},
    reference::Reference,
};
use registry::{Access, BlobStream, FileBytes, MirrorBytes, Repository, Served, Snapshot};
use store::{LayoutReader, StoreError};

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
};

/// Piece trees fetched side by side: enough to hide the round trips of an artifact of many files.
const TREES_AT_ONCE: usize = 8;

/// Bytes read at a time from a layout.
const READ_BYTES: usize = 256 << 10;

/// An open origin.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Registry(Repository),
    Layout(Arc<LayoutReader>),
    Hub(Arc<Snapshot>),
}

/// Opens the origin of `reference` and learns what the artifact is. Everything is checked that can be before bytes
/// move: the manifest against the digest that was asked for, the config against the manifest, trees against roots.
pub(crate) async fn open(reference: &Reference, access: Access) -> Result<(Origin, Artifact), PeerError> {
    let name = reference.to_string();
    let registry = |source| PeerError::registry(&name, source);
    let (origin, raw, asked) = match reference {
        Reference::Registry(at) => {
            let repository = Repository::open(at, access).map_err(registry)?;
            let raw = repository.resolve(at.tag.as_deref(), at.digest.as_ref()).await.map_err(registry)?;
            (Origin::Registry(repository), raw, at.digest)
        }
        Reference::Layout(at) => {
            let layout = LayoutReader::open(&at.dir)?;
            let raw = layout.find(at.tag.as_deref(), at.digest.as_ref())?;
            (Origin::Layout(Arc::new(layout)), raw, at.digest)
        }
        Reference::Hub(at) => {
            let snapshot = Snapshot::open(at, &access).await.map_err(registry)?;
            let raw = snapshot.manifest().to_vec();
            (Origin::Hub(Arc::new(snapshot)), raw, None)
        }
        Reference::Fleet(_) => {
            let reason = "it is with other peers only: pull it through the local peer";
            return Err(PeerError::Reference { reference: name, reason });
        }
        Reference::Directory(_) => {
            let reason = "a plain directory is no artifact: build one from it with `modelctl build`";
            return Err(PeerError::Reference { reference: name, reason });
        }
    };
    describe(name, origin, (raw, asked)).await
}

/// The same at a registry whose word for the digest of the manifest is known.
pub(crate) async fn open_digest(
    reference: &Reference,
    repository: Repository,
    digest: &Sha256Digest,
) -> Result<(Origin, Artifact), PeerError> {
    let name = reference.to_string();
    let raw = repository.manifest(digest).await.map_err(|source| PeerError::registry(&name, source))?;
    describe(name, Origin::Registry(repository), (raw, Some(*digest))).await
}

/// A model of a hub that is described already.
pub(crate) async fn of_snapshot(
    name: String,
    snapshot: Arc<Snapshot>,
) -> Result<(Origin, Artifact), PeerError> {
    let raw = snapshot.manifest().to_vec();
    describe(name, Origin::Hub(snapshot), (raw, None)).await
}

async fn describe(
    name: String,
    origin: Origin,
    (mut raw, mut asked): (Vec<u8>, Option<Sha256Digest>),
) -> Result<(Origin, Artifact), PeerError> {
    let unusable = |source| PeerError::Manifest { reference: name.clone(), source };
    let mut index = None;
    if let Some(sole) = sole_manifest(&raw).map_err(unusable)? {
        let found = Sha256Digest::of(&raw);
        if let Some(asked) = asked.filter(|asked| *asked != found) {
            return Err(PeerError::other_digest(&name, &asked, &found));
        }
        index = Some(std::mem::replace(&mut raw, origin.manifest(&name, &sole).await?));
        asked = Some(sole);
    }
    let manifest = Manifest::parse(&raw).map_err(unusable)?;
    if let Some(asked) = asked.filter(|asked| *asked != manifest.digest()) {
        return Err(PeerError::other_digest(&name, &asked, &manifest.digest()));
    }
    let config = origin.small_blob(&name, &manifest.config().digest, CONFIG_BYTES_MAX).await?;
    if manifest.family() == Family::ModelPack {
        ModelConfig::parse(&config)
            .map_err(|source| PeerError::Config { reference: name.clone(), source })?;
    }
    let checks = origin.checks(&name, &manifest).await;
    Ok((origin, Artifact { reference: name, manifest, index, config, checks }))
}

impl Origin {
    async fn manifest(&self, name: &str, digest: &Sha256Digest) -> Result<Vec<u8>, PeerError> {
        match self {
            Self::Registry(repository) => {
                repository.manifest(digest).await.map_err(|source| PeerError::registry(name, source))
            }
            Self::Layout(layout) => Ok(layout.manifest(digest)?),
            Self::Hub(snapshot) => Ok(snapshot.manifest().to_vec()),
        }
    }

    async fn small_blob(
        &self,
        name: &str,
        digest: &Sha256Digest,
        bytes_max: u64,
    ) -> Result<Vec<u8>, PeerError> {
        match self {
            Self::Registry(repository) => repository
                .small_blob(digest, bytes_max)
                .await
                .map_err(|source| PeerError::registry(name, source)),
            Self::Layout(layout) => Ok(layout.small_blob(digest, bytes_max)?),
            Self::Hub(snapshot) => Ok(snapshot.config().to_vec()),
        }
    }

    /// How each blob will be checked. A tree that cannot be had only makes the check coarser, so that nothing here is
    /// an error.
    async fn checks(&self, name: &str, manifest: &Manifest) -> Vec<Check> {
        let is_listed = |blob: &Blob| blob.root.is_some() && blob.size > PIECE_BYTES;
        let listed = if manifest.blobs().iter().any(is_listed) {
            self.tree_layers(name, &manifest.digest()).await
        } else {
            BTreeMap::new()
        };
        let checks: Vec<_> = manifest.blobs().iter().map(|blob| self.check_of(name, blob, &listed)).collect();
        stream::iter(checks).buffered(TREES_AT_ONCE).collect().await
    }

    async fn check_of(
        &self,
        name: &str,
        blob: &Blob,
        listed: &BTreeMap<Sha256Digest, Vec<TreeLayer>>,
    ) -> Check {
        let Some(root) = blob.root else { return Check::Sha256 };
        if let Some(tree) = PieceTree::single(blob.size, root) {
            return Check::Tree(tree);
        }
        for layer in listed.get(&blob.digest).into_iter().flatten() {
            match self.small_blob(name, &layer.digest, blob.size.div_ceil(PIECE_BYTES) * 32).await {
                Ok(serialised) => match PieceTree::anchor(blob.size, root, &serialised) {
                    Ok(tree) => return Check::Tree(tree),
                    Err(error) => tracing::warn!(blob = %blob.digest, %error, "a piece tree is not used"),
                },
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(blob = %blob.digest, error, "a piece tree cannot be read");
                }
            }
        }
        tracing::info!(blob = %blob.digest, "no piece tree: the blob is checked as a whole");
        Check::Root(root)
    }

    /// The layers of all piece-tree referrers, by the blob they are about.
    async fn tree_layers(
        &self,
        name: &str,
        subject: &Sha256Digest,
    ) -> BTreeMap<Sha256Digest, Vec<TreeLayer>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let referrers = self.referrers(name, subject).await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the artifact's referrers cannot be listed");
            Vec::new()
        });
        for raw in referrers {
            match TreesManifest::parse(&raw) {
                Ok(trees) if trees.subject == *subject => {
                    for layer in trees.layers {
                        found.entry(layer.blob).or_default().push(layer);
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a list of piece trees is not used"),
            }
        }
        found
    }

    async fn referrers(&self, name: &str, subject: &Sha256Digest) -> Result<Vec<Vec<u8>>, PeerError> {
        let mut raw = Vec::new();
        match self {
            Self::Registry(repository) => {
                let failed = |source| PeerError::registry(name, source);
                for digest in repository.referrers(subject, ARTIFACT_TYPE).await.map_err(failed)? {
                    raw.push(repository.manifest(&digest).await.map_err(failed)?);
                }
            }
            Self::Layout(layout) => {
                for listed in layout.referrers(subject, ARTIFACT_TYPE)? {
                    raw.push(layout.manifest(&listed.digest)?);
                }
            }
            // A hub knows no BLAKE3.
            Self::Hub(_) => {}
        }
        Ok(raw)
    }

    /// What came from mirrors of it.
    pub(crate) fn mirror_bytes(&self) -> Vec<MirrorBytes> {
        match self {
            Self::Registry(repository) => repository.mirror_bytes(),
            Self::Layout(_) | Self::Hub(_) => Vec::new(),
        }
    }

    /// A blob that was read as a whole is wrong: whichever mirror had a part in it is not asked again.
    pub(crate) fn distrust_mirrors(&self) {
        if let Self::Registry(repository) = self {
            repository.distrust_mirrors();
        }
    }

    /// Begins to read `range` of a blob.
    pub(crate) async fn read(
        &self,
        artifact: &Artifact,
        blob: BlobIndex,
        range: std::ops::Range<u64>,
    ) -> Result<OriginStream, PeerError> {
        let Blob { digest, size, .. } = artifact.blob(blob);
        match self {
            Self::Registry(repository) => {
                let failed = |source| PeerError::registry(&artifact.reference, source);
                let stream = Box::new(repository.read(digest, *size, range).await.map_err(failed)?);
                Ok(OriginStream::Registry { stream, reference: artifact.reference.clone() })
            }
            Self::Layout(layout) => {
                let file = Arc::new(layout.blob(digest, *size)?);
                let path = PathBuf::from(&artifact.reference);
                Ok(OriginStream::Layout { file, path, next: range.start, end: range.end })
            }
            Self::Hub(snapshot) => {
                let failed = |source| PeerError::registry(&artifact.reference, source);
                let (start, end) = (range.start, range.end);
                Ok(match snapshot.read(digest, range).await.map_err(failed)? {
                    FileBytes::Stream(stream) => {
                        OriginStream::Registry { stream, reference: artifact.reference.clone() }
                    }
                    FileBytes::Cached(file) => {
                        let path = PathBuf::from(&artifact.reference);
                        OriginStream::Layout { file: Arc::new(file), path, next: start, end }
                    }
                    FileBytes::Kept(bytes) => OriginStream::Kept { bytes: Some(bytes), start },
                })
            }
        }
    }

    /// The bytes of these blobs that came from here were wrong: where there is another copy, it is read next.
    pub(crate) fn distrust(&self, artifact: &Artifact, blobs: &[BlobIndex]) {
        if let Self::Hub(snapshot) = self {
            for blob in blobs {
                snapshot.distrust(&artifact.blob(*blob).digest);
            }
        }
    }
}

/// Bytes of one blob as they come from the origin.
#[derive(Debug)]
pub(crate) enum OriginStream {
    Registry {
        stream: Box<BlobStream>,
        reference: String,
    },
    Layout {
        file: Arc<File>,
        path: PathBuf,
        next: u64,
        end: u64,
    },
    /// Read before.
    Kept {
        bytes: Option<Bytes>,
        start: u64,
    },
}

impl OriginStream {
    /// The offset of the first byte that comes: the range's, or 0 where the origin serves no ranges.
    pub(crate) fn start(&self) -> u64 {
        match self {
            Self::Registry { stream, .. } => stream.start(),
            Self::Layout { next, .. } => *next,
            Self::Kept { start, .. } => *start,
        }
    }

    /// Whether the bytes come over a network.
    pub(crate) fn is_remote(&self) -> bool {
        !matches!(self, Self::Layout { .. })
    }

    /// Which mirror serves it, if one does.
    pub(crate) fn served(&self) -> Option<Served> {
        match self {
            Self::Registry { stream, .. } => Some(stream.served()),
            Self::Layout { .. } | Self::Kept { .. } => None,
        }
    }

    /// Whether the origin sends the whole blob because it serves no ranges.
    pub(crate) fn ignores_ranges(&self) -> bool {
        matches!(self, Self::Registry { stream, .. } if stream.is_whole())
    }

    /// The next bytes; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        match self {
            Self::Registry { stream, reference } => {
                stream.next().await.map_err(|source| PeerError::registry(reference, source))
            }
            Self::Kept { bytes, .. } => Ok(bytes.take().filter(|bytes| !bytes.is_empty())),
            Self::Layout { next, end, .. } if next == end => Ok(None),
            Self::Layout { file, path, next, end } => {
                let (file, offset) = (Arc::clone(file), *next);
                let len = usize::try_from(*end - offset).unwrap_or(READ_BYTES).min(READ_BYTES);
                let read = move || {
                    let mut buffer = vec![0; len];
                    file.read_exact_at(&mut buffer, offset).map(|()| Bytes::from(buffer))
                };
                let bytes = match tokio::task::spawn_blocking(read).await {
                    Ok(result) => result,
                    Err(error) => Err(error.into()),
                }
                .map_err(|source| StoreError::Io {
                    operation: "read",
                    path: path.clone(),
                    source,
                })?;
                *next += bytes.len() as u64;
                Ok(Some(bytes))
            }
        }
    }
}

/// Whether a failed read may be tried again at the same origin.
pub(crate) fn is_transient(error: &PeerError) -> bool {
    match error {
        PeerError::Registry { source, .. } => source.class() == registry::Class::Retry,
        PeerError::Slow { .. } => true,
        _ => false,
    }
}
