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
use store::LayoutWriter;

use super::Published;
use crate::{
    access,
    cli::BuildArgs,
    hash::{self, Stamp, Wanted},
    printer::Printer,
    publish::{self, Trees},
    report::Refusal,
    tensors,
    walk::{Found, Walk},
};

/// Most bytes of the model's own `config.json` that is looked at for the model's family and the like.
const HF_CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Where the artifact goes, ready to take it.
enum Target<'a> {
    Layout(LayoutWriter, &'a LayoutReference),
    Registry(Repository, &'a RegistryReference),
}

/// Every file of the model, by digest: equal files are one blob.
type Sources = BTreeMap<Sha256Digest, (PathBuf, Stamp)>;

/// Builds, and says what was published.
pub(crate) fn run(args: &BuildArgs, printer: &Printer) -> anyhow::Result<()> {
    let start = Instant::now();
    let created_at_unix = source_date_epoch()?;
    let walk = Walk::of(&args.dir)?;
    let failed = || format!("cannot build from `{}`", args.dir.display());
    refuse_odd(&walk)?;
    build::check_limits(walk.files.iter().map(|found| found.path.as_str())).with_context(failed)?;
    let runtime = access::runtime()?;
    // Opened before anything is hashed: what can be refused early is not refused after an hour.
    let target = match &args.tag {
        Reference::Layout(at) => Target::Layout(open_layout(at, &args.dir)?, at),
        Reference::Registry(at) => {
            let repository = open_repository(args, at)?;
            let reached = runtime.block_on(repository.has_blob(&Sha256Digest::of(b"{}"), 2));
            reached.with_context(|| format!("cannot publish `{at}`"))?;
            Target::Registry(repository, at)
        }
        Reference::Directory(_) => return Err(not_a_target(&args.tag)),
    };

    let progress = printer.progress("hashing", walk.bytes());
    let hashed = hash::in_parallel(
        &walk.files,
        |found| found.size,
        |found| read(found, printer, |path| hash::hash(path, Wanted::Both, &progress)),
    )?;
    progress.finish();
    let sources: Sources = hashed
        .iter()
        .zip(&walk.files)
        .map(|((file, stamp), found)| (file.digest, (found.file.clone(), *stamp)))
        .collect();
    let options = build::Options { name: None, created_at_unix, hf_config: hf_config(&walk.files) };
    let files = hashed.into_iter().map(|(file, _)| file).collect();
    let built = build::build(files, &options).with_context(failed)?;
    let manifest = Manifest::parse(&built.manifest).with_context(failed)?;

    let progress = printer.progress("publishing", manifest.layout().total_bytes());
    let sent_bytes = match target {
        Target::Layout(writer, at) => {
            write_layout(&writer, at, &manifest, &built, &sources, |bytes| progress.add(bytes))?;
            None
        }
        Target::Registry(repository, at) => {
            let artifact = artifact(manifest.clone(), built);
            let push =
                artifact.push(&repository, at.tag.as_deref(), |blob| source(&sources, blob), &progress);
            let pushed = runtime.block_on(push).or_else(|error| {
                // The registry refuses bytes that do not fit their digest; why they do not is told first.
                for (path, stamp) in sources.values() {
                    hash::open_unchanged(path, stamp)?;
                }
                Err(error.context(format!("cannot publish `{at}`")))
            });
            Some(pushed?)
        }
    };
    progress.finish();
    printer.result(&Published { sent_bytes, ..Published::new(&args.tag, &manifest, start.elapsed()) })
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

fn not_a_target(reference: &Reference) -> anyhow::Error {
    Refusal::usage(format!("`{reference}` is a plain directory, and artifacts do not go there"))
        .hint(format!("write `oci:{reference}:TAG` for a layout on disk"))
        .into()
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
    Ok(LayoutWriter::open(&at.dir)?)
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

/// Reads one file: its hashes and, if it has one, its safetensors header.
fn read(
    found: &Found,
    printer: &Printer,
    hash: impl Fn(&Path) -> anyhow::Result<hash::Hashed>,
) -> anyhow::Result<(SourceFile, Stamp)> {
    let hash::Hashed { stamp, sha256, tree } = hash(&found.file)?;
    let (digest, tree) = (sha256.expect("both were wanted"), tree.expect("both were wanted"));
    let safetensors = if tensors::is_safetensors(&found.path) {
        let summary = tensors::of_file(&hash::open_unchanged(&found.file, &stamp)?, stamp.size);
        summary.inspect_err(|error| warn_of_header(printer, found, error)).ok()
    } else {
        None
    };
    let (root, tree) = (tree.root(), tree.serialise());
    let (path, is_executable) = (found.path.clone(), found.is_executable);
    Ok((SourceFile { path, size: stamp.size, digest, root, tree, is_executable, safetensors }, stamp))
}

/// Nothing loads such a file, but whoever builds may know why it is there.
fn warn_of_header(printer: &Printer, found: &Found, error: &anyhow::Error) {
    let lfs = b"version https://git-lfs";
    let is_pointer =
        std::fs::read(&found.file).is_ok_and(|bytes| found.size < 1024 && bytes.starts_with(lfs));
    let why = if is_pointer {
        "it is a Git LFS pointer; `git lfs pull` fetches the file".into()
    } else {
        format!("{error:#}")
    };
    printer.warn(format_args!("`{}` is published, but it is not a safetensors file: {why}", found.path));
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
    at: &LayoutReference,
    manifest: &Manifest,
    built: &Built,
    sources: &Sources,
    progress: impl Fn(u64) + Sync,
) -> anyhow::Result<()> {
    hash::in_parallel(
        manifest.blobs(),
        |blob| blob.size,
        |blob| {
            writer.write_blob(&blob.digest, blob.size, &source(sources, blob)?)?;
            progress(blob.size);
            Ok(())
        },
    )?;
    writer.write_bytes(&built.config)?;
    writer.put_manifest(&built.manifest, at.tag.as_deref())?;
    if let Some(BuiltTrees { manifest, config, layers }) = &built.trees {
        writer.write_bytes(config)?;
        for (_, tree) in layers {
            writer.write_bytes(tree)?;
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
