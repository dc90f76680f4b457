//! From a hub to a registry, without a copy in between.
//!
//! Owns: making an artifact of a model as its files stream through, as good as one that was built from a directory: every
//! blob is proved and has a piece tree. Does not own: how a blob gets across (`registry`), or what is written
//! (`modelpack::build`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use modelpack::{
    build::{self, Built, Options},
    digest::{Blake3Root, Sha256Digest},
    hub::HubFile,
    manifest::{Blob, Manifest},
    piece_trees::{self, TreesManifest},
    reference::{HubReference, Reference, RegistryReference},
    safetensors::Summary,
    selection::{Matched, Selection},
};
use registry::{Repository, Snapshot};

use crate::{
    access,
    artifact::{SUMMED_HEADER_BYTES_MAX, hub_tensors},
    cli::PushArgs,
    commands::{Published, build::artifact},
    model::source_date_epoch,
    printer::Printer,
    progress::Progress,
    publish::UPLOADS_AT_ONCE,
    report::Refusal,
    tensors::is_safetensors,
};

/// Headers read from the hub at the same time.
const HEADERS_AT_ONCE: usize = 4;

/// Of each blob its root, and its tree as it travels.
type Trees = BTreeMap<Sha256Digest, (Blake3Root, Vec<u8>)>;

/// One copy under way.
struct Copy<'a> {
    from: Arc<Snapshot>,
    /// The paths of the files that are wanted.
    wanted: BTreeSet<String>,
    to: Repository,
    printer: &'a Printer,
    progress: Progress,
    sent: AtomicU64,
}

/// Copies, and says what was published.
pub(super) fn run(
    args: &PushArgs,
    from: &HubReference,
    to: &RegistryReference,
    printer: &Printer,
) -> anyhow::Result<()> {
    let start = Instant::now();
    if to.digest.is_some() {
        let message = format!("`{to}` states a digest, which is known only when all bytes have passed");
        return Err(Refusal::usage(message).hint("name the artifact by a tag").into());
    }
    let selection = args.selection.selection()?;
    let created_at_unix = source_date_epoch()?;
    let access = access::hub(&args.registry)?;
    let repository = access::destination(&args.registry, to)?;
    let published = access::runtime()?.block_on(async {
        // What cannot work is found before the hub is read.
        let reached = repository.has_blob(&Sha256Digest::of(b"{}"), 2).await;
        reached.with_context(|| format!("cannot publish `{to}`"))?;
        let snapshot =
            Snapshot::open(from, &access).await.with_context(|| format!("cannot read `{from}`"))?;
        let wanted = wanted(&snapshot, &selection)?;
        let files = snapshot.files().filter(|(file, _)| wanted.contains(&file.path));
        let blobs: BTreeMap<_, _> = files.map(|(file, digest)| (*digest, file.size)).collect();
        let progress = printer.progress("copying", blobs.values().sum());
        let sent = AtomicU64::new(0);
        let copy = Copy { from: Arc::new(snapshot), wanted, to: repository, printer, progress, sent };
        let options = Options { created_at_unix, ..copy.from.options() };
        let whole = if let Some(built) = copy.published(to.tag.as_deref(), &blobs, &options).await {
            artifact(Manifest::parse(&built.manifest)?, built)
        } else {
            let trees = copy.blobs(blobs).await.with_context(|| format!("cannot publish `{to}`"))?;
            let built = copy.build(&trees, &options).await;
            let built = built.with_context(|| format!("cannot publish `{from}`"))?;
            let whole = artifact(Manifest::parse(&built.manifest)?, built);
            let finished = whole.finish(&copy.to, to.tag.as_deref()).await;
            finished.with_context(|| format!("cannot publish `{to}`"))?;
            whole
        };
        copy.progress.finish();
        let published = Published::new(&Reference::Registry(to.clone()), &whole.manifest, start.elapsed());
        anyhow::Ok(Published { sent_bytes: Some(copy.sent.into_inner()), ..published })
    })?;
    printer.result(&published)
}

/// The paths of the files that are wanted.
fn wanted(snapshot: &Snapshot, selection: &Selection) -> anyhow::Result<BTreeSet<String>> {
    let mut matched = Matched::default();
    let is_wanted = |file: &&HubFile| selection.selects(&file.path, build::kind_of(&file.path), &mut matched);
    let files = snapshot.files().map(|(file, _)| file).filter(is_wanted);
    let wanted = files.map(|file| file.path.clone()).collect();
    selection.check(&matched)?;
    Ok(wanted)
}

impl Copy<'_> {
    /// What is under that tag, if it is to the byte what would be published, and all of it is there. Then no byte has to
    /// be read for its hashes: nothing new is said by leaving what is there.
    async fn published(
        &self,
        tag: Option<&str>,
        blobs: &BTreeMap<Sha256Digest, u64>,
        options: &Options,
    ) -> Option<Built> {
        let looked = async {
            let Some((raw, trees)) = self.known(tag).await? else { return Ok(None) };
            if !blobs.keys().all(|blob| trees.contains_key(blob)) {
                return Ok(None);
            }
            let built = self.build(&trees, options).await?;
            if built.manifest != raw {
                return Ok(None);
            }
            for (blob, size) in blobs {
                if !self.to.has_blob(blob, *size).await? {
                    return Ok(None);
                }
            }
            anyhow::Ok(Some(built))
        };
        looked.await.unwrap_or_else(|error| {
            tracing::debug!(error = format!("{error:#}"), "what is there is not looked at");
            None
        })
    }

    /// The manifest under that tag, and the trees that are kept of its blobs.
    async fn known(&self, tag: Option<&str>) -> anyhow::Result<Option<(Vec<u8>, Trees)>> {
        let Some(tag) = tag else { return Ok(None) };
        let Some(raw) = self.to.find_tagged(tag).await? else { return Ok(None) };
        let manifest = Manifest::parse(&raw)?;
        let root = |blob: &Blob| Some((blob.digest, (blob.root?, Vec::new())));
        let mut trees: Trees = manifest.blobs().iter().filter_map(root).collect();
        for referrer in self.to.referrers(&manifest.digest(), piece_trees::ARTIFACT_TYPE).await? {
            for layer in TreesManifest::parse(&self.to.manifest(&referrer).await?)?.layers {
                if let Some((_, tree)) = trees.get_mut(&layer.blob) {
                    *tree = self.to.small_blob(&layer.digest, layer.size).await?;
                }
            }
        }
        Ok(Some((raw, trees)))
    }

    /// The files that are wanted, each with its SHA-256.
    fn files(&self) -> impl Iterator<Item = (&HubFile, &Sha256Digest)> {
        self.from.files().filter(|(file, _)| self.wanted.contains(&file.path))
    }

    /// Brings every blob into the registry, several at a time, and gives their trees.
    async fn blobs(&self, blobs: BTreeMap<Sha256Digest, u64>) -> anyhow::Result<Trees> {
        let copies = stream::iter(blobs).map(|(digest, size)| async move {
            let part = self.progress.part();
            let at = |done| part.at(done);
            let tree = if self.to.has_blob(&digest, size).await? {
                // Only the bytes tell the tree, and those that the registry has are the nearer ones. Nobody's word is
                // taken for a root: a wrong one would have others take wrong bytes for right.
                self.to.survey_blob((&digest, size), &at).await?
            } else {
                let tree = self.to.push_from_hub(&self.from, (&digest, size), &at).await?;
                self.sent.fetch_add(size, Ordering::Relaxed);
                tree
            };
            at(size);
            anyhow::Ok((digest, (tree.root(), tree.serialise())))
        });
        copies.buffer_unordered(UPLOADS_AT_ONCE).try_collect().await
    }

    /// Describes the files, whose bytes are in the registry now.
    async fn build(&self, trees: &Trees, options: &Options) -> anyhow::Result<Built> {
        let files = stream::iter(self.files()).map(|(file, digest)| async move {
            let (root, tree) = trees.get(digest).context("a file has no bytes")?;
            let mut source = file.source(*digest);
            (source.root, source.tree) = (Some(*root), tree.clone());
            if is_safetensors(&file.path) {
                let blob = Blob { digest: *digest, size: file.size, root: source.root };
                match hub_tensors(&self.from, &blob, SUMMED_HEADER_BYTES_MAX).await {
                    Ok(tensors) => source.safetensors = Some(Summary::of(&tensors)),
                    Err(error) => self.printer.warn(format_args!(
                        "`{}` is published, but its tensors are not counted: {error:#}",
                        crate::text::one_line(&file.path)
                    )),
                }
            }
            anyhow::Ok(source)
        });
        let files = files.buffered(HEADERS_AT_ONCE).try_collect().await?;
        Ok(build::build(files, options)?)
    }
}
