//! An artifact to look at: its manifest, checked, and where more of it can be read.
//!
//! Owns: resolving a reference to a manifest once. Does not own: pulling, which the peer does.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use anyhow::Context as _;
use bytes::Bytes;
use modelpack::{
    config::{CONFIG_BYTES_MAX, ModelConfig},
    digest::Sha256Digest,
    index::sole_manifest,
    manifest::{Blob, Family, Manifest},
    piece_tree::{Anchored, PieceTree},
    piece_trees::{self, TreesManifest},
    reference::Reference,
    safetensors::{self, Tensor},
};
use registry::{Access, BlobStream, FileBytes, Repository, Snapshot};
use store::LayoutReader;
use tokio::runtime::Handle;

use crate::{access, cli::RegistryArgs, report::Refusal, tensors};

/// Bytes of a weight file in the first request for its header: more than most headers have.
const HEADER_GUESS_BYTES: u64 = 256 << 10;

/// Longest header that is read from a registry only to be summed up: beyond the largest of real models.
pub(crate) const SUMMED_HEADER_BYTES_MAX: u64 = 16 << 20;

/// An artifact whose manifest was read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Artifact {
    pub(crate) manifest: Manifest,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Layout(Arc<LayoutReader>),
    Registry(Repository),
    Hub(Arc<Snapshot>),
}

impl Artifact {
    /// Finds the artifact that a user names.
    pub(crate) async fn open(reference: &Reference, args: &RegistryArgs) -> anyhow::Result<Self> {
        Self::find(reference, args).await.with_context(|| format!("cannot read `{reference}`"))
    }

    async fn find(reference: &Reference, args: &RegistryArgs) -> anyhow::Result<Self> {
        let (source, raw) = match reference {
            Reference::Registry(at) => {
                let repository = access::repository(args, at)?;
                let raw = repository.resolve(at.tag.as_deref(), at.digest.as_ref()).await?;
                (Source::Registry(repository), raw)
            }
            Reference::Layout(at) => {
                let layout = LayoutReader::open(&at.dir)?;
                let raw = layout.find(at.tag.as_deref(), at.digest.as_ref())?;
                (Source::Layout(Arc::new(layout)), raw)
            }
            Reference::Hub(at) => {
                let access: Access = access::hub(args)?;
                let snapshot = Snapshot::open(at, &access).await?;
                let raw = snapshot.manifest().to_vec();
                (Source::Hub(Arc::new(snapshot)), raw)
            }
            Reference::Fleet(_) => {
                return Err(Refusal::usage("it is with other peers only")
                    .hint("pull it through the local peer, and look at the directory")
                    .into());
            }
            Reference::Directory(_) => {
                return Err(Refusal::usage("it is a plain directory, not an artifact")
                    .hint("build an artifact from it with `modelctl build`, or name the one it came from")
                    .into());
            }
        };
        let raw = match sole_manifest(&raw)? {
            Some(digest) => source.manifest(&digest).await?,
            None => raw,
        };
        Ok(Self { manifest: Manifest::parse(&raw)?, source })
    }

    /// The config blob, checked; `None` where it is none of a ModelPack artifact.
    pub(crate) async fn config(&self) -> anyhow::Result<Option<ModelConfig>> {
        if self.manifest.family() != Family::ModelPack {
            return Ok(None);
        }
        let digest = &self.manifest.config().digest;
        let raw = match &self.source {
            Source::Layout(layout) => layout.small_blob(digest, CONFIG_BYTES_MAX)?,
            Source::Registry(repository) => repository.small_blob(digest, CONFIG_BYTES_MAX).await?,
            Source::Hub(snapshot) => snapshot.config().to_vec(),
        };
        Ok(Some(ModelConfig::parse(&raw)?))
    }

    /// A blob's bytes, unchecked, for a thread that may wait for them.
    pub(crate) fn blocking_reader(&self, blob: &Blob, runtime: &Handle) -> anyhow::Result<Box<dyn Read>> {
        Ok(match &self.source {
            Source::Layout(layout) => Box::new(layout.blob(&blob.digest, blob.size)?),
            Source::Registry(repository) => {
                let stream = runtime.block_on(repository.read(&blob.digest, blob.size, 0..blob.size))?;
                Box::new(Blocking { stream, runtime: runtime.clone(), chunk: Bytes::new() })
            }
            Source::Hub(snapshot) => match runtime.block_on(snapshot.read(&blob.digest, 0..blob.size))? {
                FileBytes::Stream(stream) => {
                    Box::new(Blocking { stream: *stream, runtime: runtime.clone(), chunk: Bytes::new() })
                }
                FileBytes::Cached(file) => Box::new(file),
                FileBytes::Kept(bytes) => Box::new(io::Cursor::new(bytes)),
            },
        })
    }

    /// The piece trees that belong to it and prove themselves against its roots, by blob: none where it has none.
    pub(crate) async fn trees(&self) -> anyhow::Result<BTreeMap<Sha256Digest, PieceTree<Anchored>>> {
        let subject = self.manifest.digest();
        let listed = match &self.source {
            Source::Layout(layout) => {
                let listed = layout.referrers(&subject, piece_trees::ARTIFACT_TYPE)?;
                listed.into_iter().map(|listed| listed.digest).collect()
            }
            Source::Registry(repository) => {
                repository.referrers(&subject, piece_trees::ARTIFACT_TYPE).await?
            }
            Source::Hub(_) => Vec::new(),
        };
        let mut trees = BTreeMap::new();
        for digest in listed {
            let raw = self.source.manifest(&digest).await?;
            for layer in TreesManifest::parse(&raw)?.layers {
                let blob = self.manifest.blobs().iter().find(|blob| blob.digest == layer.blob);
                let Some((blob, root)) = blob.and_then(|blob| Some((blob, blob.root?))) else { continue };
                // A size that does not fit the blob is none of its tree.
                if layer.size != piece_trees::tree_bytes(blob.size) || trees.contains_key(&blob.digest) {
                    continue;
                }
                let values = match &self.source {
                    Source::Layout(layout) => layout.small_blob(&layer.digest, layer.size)?,
                    Source::Registry(repository) => repository.small_blob(&layer.digest, layer.size).await?,
                    Source::Hub(_) => continue,
                };
                if let Ok(tree) = PieceTree::anchor(blob.size, root, &values) {
                    trees.insert(blob.digest, tree);
                }
            }
        }
        Ok(trees)
    }

    /// What the header of a safetensors file says. The header alone cannot be checked against a digest.
    pub(crate) async fn tensors(&self, blob: &Blob, header_bytes_max: u64) -> anyhow::Result<Vec<Tensor>> {
        match &self.source {
            Source::Layout(layout) => {
                let file: File = layout.blob(&blob.digest, blob.size)?;
                tensors::of_file(&file, blob.size)
            }
            Source::Registry(repository) => {
                let read = async |range: Range<u64>| {
                    part(repository.read(&blob.digest, blob.size, range.clone()).await?, range).await
                };
                remote_tensors(read, blob, header_bytes_max).await
            }
            Source::Hub(snapshot) => hub_tensors(snapshot, blob, header_bytes_max).await,
        }
    }
}

/// What the header of a safetensors file on a hub says.
pub(crate) async fn hub_tensors(
    snapshot: &Snapshot,
    blob: &Blob,
    header_bytes_max: u64,
) -> anyhow::Result<Vec<Tensor>> {
    if let Some(file) = snapshot.cached(&blob.digest) {
        return tensors::of_file(&file, blob.size);
    }
    let read = async |range: Range<u64>| {
        anyhow::Ok(match snapshot.read(&blob.digest, range.clone()).await? {
            FileBytes::Stream(stream) => part(*stream, range).await?,
            FileBytes::Kept(bytes) => bytes.to_vec(),
            FileBytes::Cached(_) => anyhow::bail!("it has just come into the shared cache"),
        })
    };
    remote_tensors(read, blob, header_bytes_max).await
}

/// Waits for each part of a stream.
struct Blocking {
    stream: BlobStream,
    runtime: Handle,
    chunk: Bytes,
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let next = self.runtime.block_on(self.stream.next()).map_err(io::Error::other)?;
            self.chunk = next.unwrap_or_default();
        }
        let count = self.chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

impl Source {
    async fn manifest(&self, digest: &Sha256Digest) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Layout(layout) => layout.manifest(digest)?,
            Self::Registry(repository) => repository.manifest(digest).await?,
            Self::Hub(snapshot) => snapshot.manifest().to_vec(),
        })
    }
}

/// At most two reads.
async fn remote_tensors(
    read: impl AsyncFn(Range<u64>) -> anyhow::Result<Vec<u8>>,
    blob: &Blob,
    header_bytes_max: u64,
) -> anyhow::Result<Vec<Tensor>> {
    let length_bytes = tensors::LENGTH_BYTES as u64;
    anyhow::ensure!(blob.size >= length_bytes, "it has only {} bytes", blob.size);
    let guess = blob.size.min(HEADER_GUESS_BYTES);
    let mut header = read(0..guess).await?;
    let (length, _) = header.split_first_chunk().context("the origin sent too little")?;
    let end = length_bytes + safetensors::header_bytes(*length)?;
    anyhow::ensure!(end <= blob.size, "its header is longer than the file");
    anyhow::ensure!(
        end - length_bytes <= header_bytes_max,
        "its header of {end} bytes is read from a registry only with `--tensors`"
    );
    if end > guess {
        header.extend(read(guess..end).await?);
    }
    let header =
        header.get(tensors::LENGTH_BYTES..usize::try_from(end)?).context("the origin sent too little")?;
    Ok(safetensors::tensors(header, blob.size)?)
}

/// The bytes of `range` of a stream that was asked for them. An origin without ranges sends the file from its start, of
/// which no more is taken.
async fn part(mut stream: BlobStream, range: Range<u64>) -> anyhow::Result<Vec<u8>> {
    let count = usize::try_from(range.end - range.start)?;
    let mut skip = usize::try_from(range.start - stream.start())?;
    let mut taken = Vec::new();
    while taken.len() < count {
        let Some(bytes) = stream.next().await? else { break };
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        let bytes = &bytes[skipped..];
        taken.extend_from_slice(&bytes[..bytes.len().min(count - taken.len())]);
    }
    Ok(taken)
}
