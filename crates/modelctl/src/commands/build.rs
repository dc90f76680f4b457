//! `modelctl build`: from a directory to an artifact.
//!
//! Owns: reading each file once, and where the result goes. Does not own: what is written (`modelpack::build`).

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use modelpack::{
    build::{self, Built, BuiltTrees, SourceFile},
    digest::Sha256Digest,
    manifest::{Blob, Manifest},
    piece_trees,
    reference::{LayoutReference, Reference, RegistryReference},
};
use registry::Repository;
use serde_json::Value;
use store::{LayoutWriter, StoreError};
use tokio::runtime::Runtime;

use super::Published;
use crate::{
    access,
    cli::BuildArgs,
    hash::{self, Stamp, Wanted},
    printer::Printer,
    progress::Progress,
    publish::{self, Trees},
    report::Refusal,
    tensors,
    walk::{Found, Walk},
};

/// Most bytes of the model's own `config.json` that is looked at for the model's family and the like.
const HF_CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Longest pointer that Git LFS leaves in place of a file (its specification, "The Pointer").
const LFS_POINTER_BYTES_MAX: u64 = 1024;

/// Where the artifact goes, ready to take it.
enum Target<'a> {
    Layout(LayoutWriter, &'a LayoutReference),
    Registry(Repository, &'a RegistryReference),
}

/// Every file of the model, by digest: equal files are one blob.
type Sources = BTreeMap<Sha256Digest, (PathBuf, Stamp)>;

/// One file that was read.
struct Read {
    file: SourceFile,
    stamp: Stamp,
    /// Something that whoever builds should know.
    warning: Option<String>,
}

/// Builds, and says what was published.
pub(crate) fn run(args: &BuildArgs, printer: &Printer) -> anyhow::Result<()> {
    let start = Instant::now();
    let created_at_unix = source_date_epoch()?;
    let walk = Walk::of(&args.dir)?;
    refuse_odd(&walk)?;
    let failed = || format!("cannot build from `{}`", args.dir.display());
    build::check_limits(walk.files.iter().map(|found| found.path.as_str())).with_context(failed)?;
    // Opened before anything is hashed: what can be refused early is not refused after an hour.
    let runtime = access::runtime()?;
    let target = Target::open(args, &runtime)?;

    let read = read_all(&walk, printer)?;
    let sources: Sources = read
        .iter()
        .zip(&walk.files)
        .map(|(read, found)| (read.file.digest, (found.file.clone(), read.stamp)))
        .collect();
    let options = build::Options { name: None, created_at_unix, hf_config: hf_config(&walk.files) };
    let built =
        build::build(read.into_iter().map(|read| read.file).collect(), &options).with_context(failed)?;
    let manifest = Manifest::parse(&built.manifest).with_context(failed)?;

    let artifact = artifact(manifest, built);
    let progress = printer.progress("publishing", artifact.manifest.layout().total_bytes());
    let open = |blob: &Blob| source(&sources, blob);
    let sent_bytes = match target {
        Target::Layout(writer, at) => {
            write_layout(&writer, at.tag.as_deref(), &artifact, open, &progress)?;
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
                let hint = "build to `oci:DIR:TAG`, and let a peer announce that with `--seed`";
                Err(Refusal::usage("peers take no artifacts").hint(hint).into())
            }
            Reference::Directory(_) => {
                let reference = &args.tag;
                let message = format!("`{reference}` is a plain directory, and artifacts do not go there");
                let hint = format!("write `oci:{reference}:TAG` for a layout on disk");
                Err(Refusal::usage(message).hint(hint).into())
            }
        }
    }
}

fn refuse_odd(walk: &Walk) -> anyhow::Result<()> {
    let Some(odd) = walk.odd.first() else { return Ok(()) };
    let hint = if odd.what == "is a symbolic link" {
        "copy the model with `cp -rL`, so that every file is there itself"
    } else {
        "rename it, or move it out of the directory"
    };
    Err(Refusal::failed(format!("`{}` {}", crate::text::one_line(&odd.path), odd.what)).hint(hint).into())
}

fn open_layout(at: &LayoutReference, model: &Path) -> anyhow::Result<LayoutWriter> {
    if at.digest.is_some() {
        return Err(digest_stated(&Reference::Layout(at.clone())));
    }
    let layout = std::path::absolute(&at.dir).unwrap_or_else(|_| at.dir.clone());
    let layout = layout.canonicalize().unwrap_or(layout);
    // The next build would take the layout for part of the model.
    if model.canonicalize().is_ok_and(|model| layout.starts_with(model)) {
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
    access::repository(&args.registry, at)
}

fn digest_stated(reference: &Reference) -> anyhow::Error {
    Refusal::usage(format!("`{reference}` states a digest, which only the files decide"))
        .hint("name the artifact by a tag")
        .into()
}

/// Reads every file once, and says what is odd about them.
fn read_all(walk: &Walk, printer: &Printer) -> anyhow::Result<Vec<Read>> {
    let progress = printer.progress("hashing", walk.bytes());
    let read = hash::in_parallel(&walk.files, |found| found.size, |found| read_one(found, &progress))?;
    progress.finish();
    for warning in read.iter().filter_map(|read| read.warning.as_ref()) {
        printer.warn(warning);
    }
    Ok(read)
}

/// Reads one file: its hashes and, if it has one, its safetensors header.
fn read_one(found: &Found, progress: &Progress) -> anyhow::Result<Read> {
    let hash::Hashed { stamp, sha256, tree } = hash::hash(&found.file, Wanted::Both, progress)?;
    let (digest, tree) = (sha256.expect("both were wanted"), tree.expect("both were wanted"));
    let (mut safetensors, mut warning) = (None, None);
    if tensors::is_safetensors(&found.path) {
        match tensors::of_file(&hash::open_unchanged(&found.file, &stamp)?, stamp.size) {
            Ok(summary) => safetensors = Some(summary),
            Err(error) => warning = Some(not_safetensors(found, &error)),
        }
    }
    let (path, is_executable) = (found.path.clone(), found.is_executable);
    let (root, tree, size) = (tree.root(), tree.serialise(), stamp.size);
    let file = SourceFile { path, size, digest, root, tree, is_executable, safetensors };
    Ok(Read { file, stamp, warning })
}

/// Nothing loads such a file, but whoever builds may know why it is there.
fn not_safetensors(found: &Found, error: &anyhow::Error) -> String {
    let is_pointer = found.size <= LFS_POINTER_BYTES_MAX
        && std::fs::read(&found.file).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs"));
    let why = if is_pointer {
        "it is a Git LFS pointer; `git lfs pull` fetches the file".to_owned()
    } else {
        format!("{error:#}")
    };
    format!("`{}` is published, but it is not a safetensors file: {why}", found.path)
}

fn source_date_epoch() -> anyhow::Result<i64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(std::env::VarError::NotPresent) => Ok(0),
        Ok(text) if text.is_empty() => Ok(0),
        text => text.ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Refusal::usage("`SOURCE_DATE_EPOCH` is not a number of seconds")
                .hint("set it to seconds since 1970, or unset it")
                .into()
        }),
    }
}

/// The model's own description. Only facts for people come from it, so one that cannot be read is no failure.
fn hf_config(files: &[Found]) -> Option<Value> {
    let found = files.iter().find(|found| found.path == "config.json")?;
    let raw = (found.size <= HF_CONFIG_BYTES_MAX).then(|| std::fs::read(&found.file).ok())??;
    serde_json::from_slice(&raw).ok()
}

/// The file that holds a blob, if it is as it was when it was hashed.
fn source(sources: &Sources, blob: &Blob) -> anyhow::Result<File> {
    let (path, stamp) = sources.get(&blob.digest).expect("every blob is a file's");
    hash::open_unchanged(path, stamp)
}

fn write_layout(
    writer: &LayoutWriter,
    tag: Option<&str>,
    artifact: &publish::Artifact,
    open: impl Fn(&Blob) -> anyhow::Result<File> + Sync,
    progress: &Progress,
) -> anyhow::Result<()> {
    let write = |blob: &Blob| {
        writer.write_blob(&blob.digest, blob.size, &open(blob)?)?;
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

fn artifact(manifest: Manifest, built: Built) -> publish::Artifact {
    let trees = built.trees.map(|BuiltTrees { manifest, config, layers }| {
        let layers = layers.into_iter().map(|(_, tree)| tree);
        Trees { manifest, blobs: std::iter::once(config).chain(layers).collect() }
    });
    publish::Artifact { manifest, config: built.config, trees: trees.into_iter().collect() }
}
