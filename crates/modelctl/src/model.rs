//! A model in a directory, described as an artifact.
//!
//! Owns: which directories are models, and reading each file once. Does not own: what is written of them
//! (`modelpack::build`), or where the artifact goes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use modelpack::{
    build::{self, About, Built, Dialect, SourceFile, Surveyed},
    digest::Sha256Digest,
    manifest::{Blob, Manifest},
    modelfile::{self, Choice, Facts, MODELFILE_BYTES_MAX, Modelfile},
    safetensors::Summary,
};
use serde_json::Value;
use store::Fingerprint;

use crate::{
    hash::{self, Wanted},
    printer::Printer,
    progress::Progress,
    report::Refusal,
    tensors,
    walk::{Found, Walk},
};

/// Most bytes of the model's own `config.json` that is looked at for the model's family and the like.
const HF_CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Longest pointer that Git LFS leaves in place of a file (its specification, "The Pointer").
const LFS_POINTER_BYTES_MAX: u64 = 1024;

/// A directory that can become an artifact, as far as can be said before its files are read.
pub(crate) struct Model {
    dir: PathBuf,
    walk: Walk,
    /// All but the model's own description, which is read with its files.
    options: build::Options,
}

/// What somebody states of a model besides its files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stated {
    /// A Modelfile that chooses files and says more.
    pub(crate) modelfile: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) about: About,
    pub(crate) dialect: Dialect,
    /// Whether the files' own permissions and times are kept.
    pub(crate) preserves_metadata: bool,
}

/// An artifact whose blobs are files of the directory.
pub(crate) struct Described {
    pub(crate) manifest: Manifest,
    pub(crate) built: Built,
    pub(crate) sources: Sources,
}

/// Every file of the model, by digest: equal files are one blob.
pub(crate) struct Sources(BTreeMap<Sha256Digest, Source>);

/// One of them, as it was when it was read.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) fingerprint: Fingerprint,
    /// Its piece tree: empty for a file of at most one piece.
    pub(crate) tree: Vec<u8>,
}

/// One file that was read.
struct Read {
    file: SourceFile,
    fingerprint: Fingerprint,
    /// Something that whoever builds should know.
    warning: Option<String>,
}

impl Model {
    /// Looks at everything below `dir`, and reads nothing yet.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        Self::as_stated(dir, Stated::default())
    }

    /// The same with what somebody states of it.
    pub(crate) fn as_stated(dir: &Path, stated: Stated) -> anyhow::Result<Self> {
        let Stated { modelfile, name, about, dialect, preserves_metadata } = stated;
        let created_at_unix = source_date_epoch()?;
        let facts = Facts { name, ..Facts::default() };
        let mut options = build::Options { created_at_unix, facts, about, dialect, ..Default::default() };
        let mut walk = Walk::of(dir)?;
        if let Some(path) = &modelfile {
            choose(&mut walk, &mut options, path)
                .with_context(|| format!("cannot use the Modelfile `{}`", path.display()))?;
        }
        walk.follow_links(dir)?;
        refuse_odd(&walk)?;
        if preserves_metadata {
            options.kept = walk.files.iter().map(|found| (found.path.clone(), found.kept)).collect();
        }
        let model = Self { dir: dir.to_path_buf(), walk, options };
        let paths = model.walk.files.iter().map(|found| found.path.as_str());
        build::check_stated(paths, &model.options).with_context(|| model.failed())?;
        Ok(model)
    }

    /// The Modelfile that takes the same files for the same, and says what they say. Only headers are read.
    pub(crate) fn modelfile(&self, printer: &Printer) -> Modelfile {
        let files: Vec<_> = self.walk.files.iter().filter(|found| !is_modelfile(&found.path)).collect();
        let summaries = files.iter().map(|found| {
            let read =
                || -> anyhow::Result<_> { tensors::of_file(&store::open_file(&found.file)?, found.size) };
            let tensors = tensors::is_safetensors(&found.path).then(read)?;
            let tensors = tensors.inspect_err(|error| printer.warn(not_safetensors(found, error))).ok()?;
            Some(Summary::of(&tensors))
        });
        let summaries: Vec<_> = summaries.collect();
        let surveyed = files.iter().zip(&summaries).map(|(found, summary)| Surveyed {
            path: &found.path,
            kind: self.options.kind(&found.path),
            size: found.size,
            safetensors: summary.as_ref(),
        });
        let surveyed: Vec<_> = surveyed.collect();
        let found = build::facts_of(&surveyed, hf_config(&self.walk.files).as_ref());
        let mut choices: Vec<_> = surveyed.iter().map(|file| Choice::of_file(file.kind, file.path)).collect();
        choices.sort_by_key(|choice| choice.kind);
        Modelfile { facts: self.options.facts.clone().or(found), choices }
    }

    /// Reads every file once. The same files give the same artifact on any machine and day.
    pub(crate) fn describe(&self, printer: &Printer) -> anyhow::Result<Described> {
        let read = read_all(&self.walk, printer)?;
        let source = |(read, found): (&Read, &Found)| {
            let Read { file, fingerprint, .. } = read;
            (
                file.digest,
                Source { path: found.file.clone(), fingerprint: *fingerprint, tree: file.tree.clone() },
            )
        };
        let sources = Sources(read.iter().zip(&self.walk.files).map(source).collect());
        let hf_config = hf_config(&self.walk.files);
        let options = build::Options { hf_config, ..self.options.clone() };
        let files = read.into_iter().map(|read| read.file).collect();
        let built = build::build(files, &options).with_context(|| self.failed())?;
        let manifest = Manifest::parse(&built.manifest).with_context(|| self.failed())?;
        Ok(Described { manifest, built, sources })
    }

    fn failed(&self) -> String {
        format!("cannot build from `{}`", self.dir.display())
    }
}

impl Sources {
    /// The file that holds a blob.
    pub(crate) fn of(&self, blob: &Blob) -> &Source {
        self.0.get(&blob.digest).expect("every blob is a file's")
    }

    /// Opens it, if it is as it was when it was hashed.
    pub(crate) fn open(&self, blob: &Blob) -> anyhow::Result<File> {
        let Source { path, fingerprint, .. } = self.of(blob);
        hash::open_unchanged(path, fingerprint)
    }
}

fn refuse_odd(walk: &Walk) -> anyhow::Result<()> {
    let Some(odd) = walk.odd.first() else { return Ok(()) };
    let hint = if odd.what.starts_with("is a symbolic link") {
        "links to files of the directory are followed; for others copy the model with `cp -rL`"
    } else {
        "rename it, or move it out of the directory"
    };
    Err(Refusal::failed(format!("`{}` {}", crate::text::one_line(&odd.path), odd.what)).hint(hint).into())
}

/// Leaves only what a Modelfile takes.
fn choose(walk: &mut Walk, options: &mut build::Options, path: &Path) -> anyhow::Result<()> {
    let mut raw = Vec::new();
    // One more than may be, so that too long a file is told from one that just fits.
    File::open(path)?.take(MODELFILE_BYTES_MAX as u64 + 1).read_to_end(&mut raw)?;
    let modelfile = Modelfile::parse(&raw)?;
    let found = walk.files.iter().map(|found| &found.path).chain(walk.odd.iter().map(|odd| &odd.path));
    let paths: Vec<&str> = found.map(String::as_str).collect();
    let chosen = modelfile.select(&paths)?;
    options.kinds = chosen.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
    walk.files.retain(|found| options.kinds.contains_key(&found.path));
    walk.odd.retain(|odd| options.kinds.contains_key(&odd.path));
    options.facts = std::mem::take(&mut options.facts).or(modelfile.facts);
    options.modelfile = Some(modelfile::without_time(&String::from_utf8(raw)?));
    Ok(())
}

/// Whether a file describes the artifact rather than being part of the model.
fn is_modelfile(path: &str) -> bool {
    path.eq_ignore_ascii_case("modelfile")
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
    let hash::Hashed { fingerprint, sha256, tree } = hash::hash(&found.file, Wanted::Both, progress)?;
    let (digest, tree) = (sha256.expect("both were wanted"), tree.expect("both were wanted"));
    let (mut safetensors, mut warning) = (None, None);
    if tensors::is_safetensors(&found.path) {
        match tensors::of_file(&hash::open_unchanged(&found.file, &fingerprint)?, fingerprint.size) {
            Ok(tensors) => safetensors = Some(Summary::of(&tensors)),
            Err(error) => warning = Some(not_safetensors(found, &error)),
        }
    }
    let (path, is_executable) = (found.path.clone(), found.is_executable);
    let (root, tree, size) = (Some(tree.root()), tree.serialise(), fingerprint.size);
    let file = SourceFile { path, size, digest, root, tree, is_executable, safetensors };
    Ok(Read { file, fingerprint, warning })
}

/// Nothing loads such a file, but whoever builds may know why it is there.
fn not_safetensors(found: &Found, error: &anyhow::Error) -> String {
    let is_pointer = found.size <= LFS_POINTER_BYTES_MAX
        && fs::read(&found.file).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs"));
    let why = if is_pointer {
        "it is a Git LFS pointer; `git lfs pull` fetches the file".to_owned()
    } else {
        format!("{error:#}")
    };
    format!("`{}` is published, but it is not a safetensors file: {why}", found.path)
}

/// `SOURCE_DATE_EPOCH`, or 0.
pub(crate) fn source_date_epoch() -> anyhow::Result<i64> {
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
    let raw = (found.size <= HF_CONFIG_BYTES_MAX).then(|| fs::read(&found.file).ok())??;
    serde_json::from_slice(&raw).ok()
}
