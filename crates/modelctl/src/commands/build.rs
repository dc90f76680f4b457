//! `modelctl build`: from a directory to an artifact.
//!
//! Owns: where the artifact goes. Does not own: reading the directory (`model`), or what is written
//! (`modelpack::build`).

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use modelpack::{
    build::{About, Built, BuiltTrees, Dialect},
    digest::Sha256Digest,
    manifest::{Blob, Manifest},
    piece_trees,
    reference::{LayoutReference, Reference, RegistryReference},
};
use registry::Repository;
use store::{LayoutWriter, StoreError};
use tokio::runtime::Runtime;

use super::Published;
use crate::{
    access,
    cli::{AboutArgs, BuildArgs},
    hash,
    model::{Described, Model, Stated},
    printer::Printer,
    progress::Progress,
    publish::{self, Trees},
    report::Refusal,
    walk,
};

/// Where the artifact goes, ready to take it.
enum Target<'a> {
    Layout(LayoutWriter, &'a LayoutReference),
    Registry(Repository, &'a RegistryReference),
}

/// Builds, and says what was published.
pub(crate) fn run(args: &BuildArgs, printer: &Printer) -> anyhow::Result<()> {
    let start = Instant::now();
    let model = Model::as_stated(&args.dir, stated(args))?;
    // Opened before anything is hashed: what can be refused early is not refused after an hour.
    let runtime = access::runtime()?;
    let target = Target::open(args, &runtime)?;
    let Described { manifest, built, sources } = model.describe(printer)?;
    let artifact = artifact(manifest, built);
    let progress = printer.progress("publishing", artifact.manifest.layout().total_bytes());
    let open = |blob: &Blob| sources.open(blob);
    let sent_bytes = match target {
        Target::Layout(writer, at) => {
            let take = |blob: &Blob| {
                let taken = &sources.of(blob).fingerprint;
                Ok(writer.take_blob(&blob.digest, taken, &open(blob)?, args.link.into()).map(drop)?)
            };
            write_layout(&writer, at.tag.as_deref(), &artifact, take, &progress)?;
            None
        }
        Target::Registry(repository, at) => {
            let push = artifact.push(&repository, at.tag.as_deref(), open, &progress);
            Some(runtime.block_on(push).with_context(|| format!("cannot publish `{at}`"))?)
        }
    };
    progress.finish();
    printer
        .result(&Published { sent_bytes, ..Published::new(&args.tag, &artifact.manifest, start.elapsed()) })
}

fn stated(args: &BuildArgs) -> Stated {
    let AboutArgs { name, version, title, description, authors, vendor, licenses, .. } = args.about.clone();
    let AboutArgs { languages, doc_url, source_url, revision, .. } = args.about.clone();
    Stated {
        modelfile: args.modelfile.clone(),
        name,
        about: About {
            authors,
            licenses,
            languages,
            version,
            title,
            description,
            vendor,
            doc_url,
            source_url,
            revision,
        },
        dialect: if args.legacy_cnai { Dialect::Cnai } else { Dialect::Cncf },
        preserves_metadata: args.preserve_metadata,
    }
}

impl<'a> Target<'a> {
    fn open(args: &'a BuildArgs, runtime: &Runtime) -> anyhow::Result<Self> {
        match &args.tag {
            Reference::Layout(at) => Ok(Self::Layout(open_layout(at, &args.dir)?, at)),
            Reference::Registry(at) => {
                let repository = open_repository(args, at)?;
                let reached = runtime.block_on(repository.has_blob(&Sha256Digest::of(b"{}"), 2));
                reached.with_context(|| format!("cannot publish `{at}`"))?;
                Ok(Self::Registry(repository, at))
            }
            Reference::Fleet(_) => {
                let hint = "let a peer announce the directory itself: `modelctl peer --seed DIR`";
                Err(Refusal::usage("peers take no artifacts").hint(hint).into())
            }
            Reference::Hub(_) => Err(Refusal::usage("a hub takes no artifacts")
                .hint("write `HOST/REPO:TAG` for a registry, or `oci:DIR:TAG` for a layout on disk")
                .into()),
            Reference::Directory(_) => {
                let reference = &args.tag;
                let message = format!("`{reference}` is a plain directory, and artifacts do not go there");
                let hint = format!("write `oci:{reference}:TAG` for a layout on disk");
                Err(Refusal::usage(message).hint(hint).into())
            }
        }
    }
}

fn open_layout(at: &LayoutReference, model: &Path) -> anyhow::Result<LayoutWriter> {
    if at.digest.is_some() {
        return Err(digest_stated(&Reference::Layout(at.clone())));
    }
    // The next build would take the layout for part of the model.
    if walk::is_inside(&at.dir, model) {
        let message = format!("the layout `{}` would lie inside the model's directory", at.dir.display());
        return Err(Refusal::usage(message).hint("write the layout somewhere else").into());
    }
    LayoutWriter::open(&at.dir).map_err(|error| match error {
        StoreError::Occupied { dir, reason } => {
            Refusal::failed(format!("`{}` is not an OCI image layout: {reason}", dir.display()))
                .hint("write the layout into a new directory")
                .into()
        }
        error => error.into(),
    })
}

fn open_repository(args: &BuildArgs, at: &RegistryReference) -> anyhow::Result<Repository> {
    if at.digest.is_some() {
        return Err(digest_stated(&Reference::Registry(at.clone())));
    }
    access::destination(&args.registry, at)
}

fn digest_stated(reference: &Reference) -> anyhow::Error {
    Refusal::usage(format!("`{reference}` states a digest, which only the files decide"))
        .hint("name the artifact by a tag")
        .into()
}

fn write_layout(
    writer: &LayoutWriter,
    tag: Option<&str>,
    artifact: &publish::Artifact,
    take: impl Fn(&Blob) -> anyhow::Result<()> + Sync,
    progress: &Progress,
) -> anyhow::Result<()> {
    let write = |blob: &Blob| {
        take(blob)?;
        progress.add(blob.size);
        Ok(())
    };
    hash::in_parallel(artifact.manifest.blobs(), |blob| blob.size, write)?;
    writer.write_bytes(&artifact.config)?;
    writer.put_manifest(artifact.manifest.raw(), tag)?;
    for Trees { manifest, blobs } in &artifact.trees {
        for blob in blobs {
            writer.write_bytes(blob)?;
        }
        writer.put_referrer(manifest, piece_trees::ARTIFACT_TYPE)?;
    }
    Ok(())
}

/// What `build` has made, to be published.
pub(super) fn artifact(manifest: Manifest, built: Built) -> publish::Artifact {
    let trees = built.trees.map(|BuiltTrees { manifest, config, layers }| {
        let layers = layers.into_iter().map(|(_, tree)| tree);
        Trees { manifest, blobs: std::iter::once(config).chain(layers).collect() }
    });
    publish::Artifact { manifest, config: built.config, trees: trees.into_iter().collect() }
}
