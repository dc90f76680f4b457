//! From a hub to a registry, without a copy in between.
//!
//! Owns: making an artifact of a model as its files stream through, as good as one that was built from a directory: every
//! blob is proved and has a piece tree. Does not own: how a blob gets across (`registry`), or what is written
//! (`modelpack::build`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use modelpack::{
    build::{self, Options},
    digest::Sha256Digest,
    manifest::{Blob, Manifest},
    piece_tree::{PieceTree, Provisional},
    reference::{HubReference, Reference, RegistryReference},
    safetensors::Summary,
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

/// What was computed of each blob.
type Trees = BTreeMap<Sha256Digest, PieceTree<Provisional>>;

/// One copy under way.
struct Copy<'a> {
    from: Arc<Snapshot>,
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
    let created_at_unix = source_date_epoch()?;
    let access = access::hub(&args.registry)?;
    let repository = access::destination(&args.registry, to)?;
    let published = access::runtime()?.block_on(async {
        // What cannot work is found before the hub is read.
        let reached = repository.has_blob(&Sha256Digest::of(b"{}"), 2).await;
        reached.with_context(|| format!("cannot publish `{to}`"))?;
        let snapshot =
            Snapshot::open(from, &access).await.with_context(|| format!("cannot read `{from}`"))?;
        let blobs: BTreeMap<_, _> = snapshot.files().map(|(file, digest)| (*digest, file.size)).collect();
        let progress = printer.progress("copying", blobs.values().sum());
        let sent = AtomicU64::new(0);
        let copy = Copy { from: Arc::new(snapshot), to: repository, printer, progress, sent };
        let trees = copy.blobs(blobs).await.with_context(|| format!("cannot publish `{to}`"))?;
        let options = Options { created_at_unix, ..copy.from.options() };
        let built = copy.build(&trees, &options).await.with_context(|| format!("cannot publish `{from}`"))?;
        let manifest = Manifest::parse(&built.manifest)?;
        let whole = artifact(manifest, built);
        let finished = whole.finish(&copy.to, to.tag.as_deref()).await;
        finished.with_context(|| format!("cannot publish `{to}`"))?;
        copy.progress.finish();
        let published = Published::new(&Reference::Registry(to.clone()), &whole.manifest, start.elapsed());
        anyhow::Ok(Published { sent_bytes: Some(copy.sent.into_inner()), ..published })
    })?;
    printer.result(&published)
}

impl Copy<'_> {
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
            anyhow::Ok((digest, tree))
        });
        copies.buffer_unordered(UPLOADS_AT_ONCE).try_collect().await
    }

    /// Describes the files, whose bytes are in the registry now.
    async fn build(&self, trees: &Trees, options: &Options) -> anyhow::Result<build::Built> {
        let files = stream::iter(self.from.files()).map(|(file, digest)| async move {
            let tree = trees.get(digest).context("a file has no bytes")?;
            let mut source = file.source(*digest);
            (source.root, source.tree) = (Some(tree.root()), tree.serialise());
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
