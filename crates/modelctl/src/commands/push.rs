//! `modelctl push`: from a layout on disk, another registry or a hub to a registry.
//!
//! Owns: reading the artifact and its piece trees from the layout. Does not own: the order of uploads (`publish`), copying
//! between registries (`between`), or making an artifact of a hub's model (`from_hub`).

mod between;
mod from_hub;

use std::time::Instant;

use anyhow::Context as _;
use modelpack::{
    config::{CONFIG_BYTES_MAX, ModelConfig},
    digest::Sha256Digest,
    manifest::{Family, Manifest},
    piece_trees::{self, TreesManifest},
    reference::{HubReference, LayoutReference, Reference, RegistryReference},
};
use store::LayoutReader;

use super::Published;
use crate::{
    access,
    cli::PushArgs,
    printer::Printer,
    publish::{Artifact, Trees},
    report::Refusal,
};

/// Copies, and says what was published.
pub(crate) fn run(args: &PushArgs, printer: &Printer) -> anyhow::Result<()> {
    let start = Instant::now();
    let is_part = !args.selection.selection()?.is_everything();
    if is_part && !matches!(args.source, Reference::Hub(_)) {
        let message = format!("`{}` has a manifest already, which is copied byte for byte", args.source);
        let hint =
            "a selection is for models of a hub: `modelctl push hf://ORG/NAME DESTINATION --include GLOB`";
        return Err(Refusal::usage(message).hint(hint).into());
    }
    let (from, to) = match ends(args)? {
        (From::Layout(from), to) => (from, to),
        (From::Registry(from), to) => return between::run(args, from, to, printer),
        (From::Hub(from), to) => return from_hub::run(args, from, to, printer),
    };
    let layout = LayoutReader::open(&from.dir)?;
    let digest = match from.digest {
        Some(digest) => digest,
        None => layout.resolve(from.tag.as_deref())?.digest,
    };
    let artifact = load(&layout, &digest).with_context(|| format!("cannot read `{from}`"))?;
    check_digest(&from.to_string(), &digest, to)?;
    let repository = access::destination(&args.registry, to)?;
    let progress = printer.progress("pushing", artifact.manifest.layout().total_bytes());
    let open = |blob: &modelpack::manifest::Blob| Ok(layout.blob(&blob.digest, blob.size)?);
    let push = artifact.push(&repository, to.tag.as_deref(), open, &progress);
    let sent = access::runtime()?.block_on(push).with_context(|| format!("cannot publish `{to}`"))?;
    progress.finish();
    let published = Published::new(&args.destination, &artifact.manifest, start.elapsed());
    printer.result(&Published { sent_bytes: Some(sent), ..published })
}

/// Where the artifact comes from.
enum From<'a> {
    Layout(&'a LayoutReference),
    Registry(&'a RegistryReference),
    Hub(&'a HubReference),
}

/// A destination that states a digest wants that artifact and no other.
fn check_digest(from: &str, digest: &Sha256Digest, to: &RegistryReference) -> anyhow::Result<()> {
    let Some(asked) = to.digest.filter(|asked| asked != digest) else { return Ok(()) };
    let message = format!("`{from}` is {digest}, but the destination states {asked}");
    Err(Refusal::usage(message).hint("leave the digest away, or name the artifact that has it").into())
}

fn ends(args: &PushArgs) -> anyhow::Result<(From<'_>, &RegistryReference)> {
    match (&args.source, &args.destination) {
        (Reference::Layout(from), Reference::Registry(to)) => Ok((From::Layout(from), to)),
        (Reference::Registry(from), Reference::Registry(to)) => Ok((From::Registry(from), to)),
        (Reference::Hub(from), Reference::Registry(to)) => Ok((From::Hub(from), to)),
        (Reference::Directory(dir), _) => {
            Err(Refusal::usage(format!("`{}` is a plain directory, not an artifact", dir.display()))
                .hint(format!("publish it with `modelctl build {} -t {}`", dir.display(), args.destination))
                .into())
        }
        (Reference::Fleet(_), _) => Err(Refusal::usage("cannot push what only other peers have")
            .hint("pull it into a directory, and publish that with `modelctl build DIR -t REF`")
            .into()),
        (_, to) => Err(Refusal::usage(format!("cannot push to `{to}`"))
            .hint("name a repository in a registry, as `HOST/REPO:TAG`")
            .into()),
    }
}

/// Reads the small parts, checked; the blobs' bytes are checked by the registry when they arrive.
fn load(layout: &LayoutReader, digest: &Sha256Digest) -> anyhow::Result<Artifact> {
    let manifest = Manifest::parse(&layout.manifest(digest)?)?;
    let config = layout.small_blob(&manifest.config().digest, CONFIG_BYTES_MAX)?;
    if manifest.family() == Family::ModelPack {
        ModelConfig::parse(&config)?;
    }
    let mut trees = Vec::new();
    for listed in layout.referrers(digest, piece_trees::ARTIFACT_TYPE)? {
        let raw = layout.manifest(&listed.digest)?;
        // Its config says nothing, by its type (OCI image specification 1.1, "Guidance for an Empty Descriptor").
        let mut blobs = vec![b"{}".to_vec()];
        for layer in TreesManifest::parse(&raw)?.layers {
            blobs.push(layout.small_blob(&layer.digest, layer.size)?);
        }
        trees.push(Trees { manifest: raw, blobs });
    }
    Ok(Artifact { manifest, config, trees })
}
