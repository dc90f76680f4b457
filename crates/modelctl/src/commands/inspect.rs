//! `modelctl inspect`: what an artifact or a directory holds.
//!
//! Owns: the report and its two forms, and checksum lists. Does not own: judging the bytes, which `verify` does.

use std::{fmt, path::Path};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use modelpack::{
    build::kind_of,
    config::ModelConfig,
    manifest::{Archive, Manifest},
    reference::Reference,
    safetensors::{HEADER_BYTES_MAX, Tensor},
};
use serde::Serialize;
use store::CompleteRecord;

use crate::{
    access,
    artifact::{Artifact, SUMMED_HEADER_BYTES_MAX},
    cli::{Algorithm, InspectArgs},
    hash::{self, Wanted},
    printer::Printer,
    report::Refusal,
    tensors::{self, Listed, Tensors},
    text::{self, Align, Table},
    walk::Walk,
};

/// Headers read from a registry at the same time: each may have 100 MB, though those of real models have a few.
const HEADERS_AT_ONCE: usize = 4;

/// Most weight files whose headers are read: larger artifacts are still shown, without their tensors.
const HEADER_FILES_MAX: usize = 1024;

/// Hexadecimal characters of a digest that a person needs to tell files apart.
const SHORT_DIGEST: usize = 12;

/// What was found. Serialised, it is the result of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    /// The manifest's digest; `None` for a directory that was not published.
    digest: Option<String>,
    bytes: u64,
    /// Whether every file has a BLAKE3 root in the manifest; `None` where there is no manifest at hand.
    anchored: Option<bool>,
    /// For a published directory: whether its files are as they were when they were proved.
    unchanged: Option<bool>,
    model: Option<Model>,
    tensors: Option<Tensors>,
    /// With `--tensors`: of each safetensors file.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_files: Option<Vec<Listed>>,
    files: Vec<FileFacts>,
    /// Layers that are archives of further files; what is in them is not read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    archives: Vec<ArchiveFacts>,
}

#[derive(Debug, Serialize)]
struct ArchiveFacts {
    layer: usize,
    packing: String,
    kind: Option<String>,
    bytes: u64,
    sha256: String,
}

/// What the config says, where it says something.
#[derive(Debug, Serialize)]
struct Model {
    name: Option<String>,
    version: Option<String>,
    family: Option<String>,
    architecture: Option<String>,
    format: Option<String>,
    precision: Option<String>,
    quantization: Option<String>,
    parameters: Option<String>,
    licenses: Vec<String>,
    source: Option<String>,
    revision: Option<String>,
    created_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct FileFacts {
    path: String,
    kind: String,
    bytes: u64,
    executable: bool,
    /// 64 hexadecimal characters, if it is known without reading the file.
    sha256: Option<String>,
    blake3: Option<String>,
}

/// Shows, or prints checksums.
pub(crate) fn run(args: &InspectArgs, printer: &Printer) -> anyhow::Result<()> {
    let report = match &args.reference {
        Reference::Directory(dir) => match args.checksums {
            Some(algorithm) => return printer.data(checksums_of_dir(dir, algorithm, printer)?),
            None => directory(dir, args, printer)?,
        },
        reference => access::runtime()?.block_on(async {
            let artifact = Artifact::open(reference, &args.registry).await?;
            match args.checksums {
                Some(_) => Ok(Report::of_manifest(reference, &artifact.manifest)),
                None => remote(args, &artifact, printer).await,
            }
        })?,
    };
    match args.checksums {
        Some(algorithm) => printer.data(report.checksums(algorithm)?),
        None => printer.result(&report),
    }
}

/// An artifact in a registry or layout.
async fn remote(args: &InspectArgs, artifact: &Artifact, printer: &Printer) -> anyhow::Result<Report> {
    let reference = &args.reference;
    let mut report = Report::of_manifest(reference, &artifact.manifest);
    let config =
        artifact.config().await.with_context(|| format!("cannot read the config of `{reference}`"))?;
    report.model = config.map(Model::from);
    let manifest = &artifact.manifest;
    let weights: Vec<_> =
        manifest.files().iter().filter(|file| tensors::is_safetensors(&file.path)).collect();
    if args.tensors || weights.len() <= HEADER_FILES_MAX {
        let most = if args.tensors { HEADER_BYTES_MAX } else { SUMMED_HEADER_BYTES_MAX };
        let read = |path, blob| async move { (path, artifact.tensors(blob, most).await) };
        let blob_of = |index: modelpack::layout::BlobIndex| &manifest.blobs()[index.0 as usize];
        let headers = stream::iter(weights).map(|file| read(&file.path, blob_of(file.blob)));
        report.add_tensors(args, headers.buffered(HEADERS_AT_ONCE).collect().await, printer);
    }
    Ok(report)
}

/// A directory, published or not. No file is read but the headers of weights.
fn directory(dir: &Path, args: &InspectArgs, printer: &Printer) -> anyhow::Result<Report> {
    let record = CompleteRecord::load(dir)?;
    let walk = Walk::of(dir)?;
    let mut summaries = Vec::new();
    for found in walk.files.iter().filter(|found| tensors::is_safetensors(&found.path)) {
        let file = store::open_file(&found.file).map_err(anyhow::Error::from);
        let summary = file.and_then(|file| tensors::of_file(&file, found.size));
        summaries.push((&found.path, summary));
    }
    let unchanged = record.as_ref().map(|record| store::verify_record(dir, record).is_ok());
    // What is known of files that have changed is no longer true of them.
    let proved = record.as_ref().filter(|_| unchanged == Some(true));
    let sha256 = |path: &str| {
        let files = &proved?.files;
        files.iter().find(|file| file.path == path).map(|file| file.sha256.hex())
    };
    let files = walk.files.iter().map(|found| FileFacts {
        path: found.path.clone(),
        kind: kind_of(&found.path).to_string(),
        bytes: found.size,
        executable: found.is_executable,
        sha256: sha256(&found.path),
        blake3: None,
    });
    let mut report = Report {
        reference: dir.display().to_string(),
        digest: record.as_ref().map(|record| record.digest.to_string()),
        bytes: walk.bytes(),
        anchored: None,
        unchanged,
        model: None,
        tensors: None,
        tensor_files: None,
        files: files.collect(),
        archives: Vec::new(),
    };
    report.add_tensors(args, summaries, printer);
    Ok(report)
}

/// What the headers of files say, or why they cannot be read.
type Headers<'a> = Vec<(&'a String, anyhow::Result<Vec<Tensor>>)>;

impl Report {
    /// Adds up what could be read; the rest is told and left out.
    fn add_tensors(&mut self, args: &InspectArgs, headers: Headers<'_>, printer: &Printer) {
        let mut listed = Vec::new();
        for (path, header) in headers {
            match &header {
                Ok(tensors) => self.tensors.get_or_insert_default().add(tensors),
                Err(error) => {
                    let path = text::one_line(path);
                    printer.warn(format_args!("cannot count the tensors of `{path}`: {error:#}"));
                }
            }
            if args.tensors {
                listed.push(Listed::new(path, header));
            }
        }
        self.tensor_files = args.tensors.then_some(listed);
    }
}

/// Reads every file of a directory.
fn checksums_of_dir(dir: &Path, algorithm: Algorithm, printer: &Printer) -> anyhow::Result<String> {
    let walk = Walk::of(dir)?;
    let progress = printer.progress("hashing", walk.bytes());
    let wanted = match algorithm {
        Algorithm::Blake3 => Wanted::Blake3,
        Algorithm::Sha256 => Wanted::Sha256,
    };
    let lines = hash::in_parallel(
        &walk.files,
        |found| found.size,
        |found| {
            let hashed = hash::hash(&found.file, wanted, &progress)?;
            let hex = hashed.sha256.map(|digest| digest.hex()).or(hashed.tree.map(|tree| tree.root().hex()));
            Ok(checksum_line(&hex.expect("one was wanted"), &found.path))
        },
    )?;
    progress.finish();
    Ok(lines.join("\n"))
}

/// One line as `sha256sum` and `b3sum` write and read it: a backslash before the line says that the name is escaped.
fn checksum_line(hex: &str, path: &str) -> String {
    let escaped = path.replace('\\', "\\\\").replace('\n', "\\n");
    let mark = if escaped == path { "" } else { "\\" };
    format!("{mark}{hex}  {escaped}")
}

impl Report {
    fn of_manifest(reference: &Reference, manifest: &Manifest) -> Self {
        let files: Vec<_> = manifest
            .files()
            .iter()
            .map(|file| {
                let blob = &manifest.blobs()[file.blob.0 as usize];
                FileFacts {
                    path: file.path.clone(),
                    kind: file.kind.to_string(),
                    bytes: blob.size,
                    executable: file.is_executable,
                    sha256: Some(blob.digest.hex()),
                    blake3: blob.root.map(|root| root.hex()),
                }
            })
            .collect();
        Self {
            reference: reference.to_string(),
            digest: Some(manifest.digest().to_string()),
            bytes: manifest.layout().total_bytes(),
            anchored: Some(manifest.blobs().iter().all(|blob| blob.root.is_some())),
            unchanged: None,
            model: None,
            tensors: None,
            tensor_files: None,
            files,
            archives: manifest
                .archives()
                .iter()
                .map(|archive| ArchiveFacts::new(archive, manifest))
                .collect(),
        }
    }

    /// A list of what the manifest states.
    fn checksums(&self, algorithm: Algorithm) -> anyhow::Result<String> {
        if let Some(archive) = self.archives.first() {
            let message = format!(
                "what is in layer {} ({}) is known only when it is unpacked",
                archive.layer, archive.packing
            );
            let hint = "pull it, and use `--checksums` with the directory";
            return Err(Refusal::failed(message).hint(hint).into());
        }
        let line = |file: &FileFacts| {
            let hex = match algorithm {
                Algorithm::Blake3 => file.blake3.as_ref(),
                Algorithm::Sha256 => file.sha256.as_ref(),
            };
            let hex = hex.ok_or_else(|| {
                Refusal::failed(format!("the artifact states no BLAKE3 hash of `{}`", file.path))
                    .hint("`--checksums sha256` works with every artifact")
            })?;
            Ok(checksum_line(hex, &file.path))
        };
        let lines: anyhow::Result<Vec<_>> = self.files.iter().map(line).collect();
        Ok(lines?.join("\n"))
    }
}

impl From<ModelConfig> for Model {
    fn from(config: ModelConfig) -> Self {
        Self {
            name: config.name,
            version: config.version,
            family: config.family,
            architecture: config.architecture,
            format: config.format,
            precision: config.precision,
            quantization: config.quantization,
            parameters: config.param_size,
            licenses: config.licenses,
            source: config.source_url,
            revision: config.revision,
            created_at: config.created_at,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut facts = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| facts.row([name.to_owned(), text::one_line(&value)]);
        say("reference", self.reference.clone());
        if let Some(digest) = &self.digest {
            say("digest", digest.clone());
        }
        say(
            "files",
            format!(
                "{}, {}",
                text::files_and_archives(self.files.len(), self.archives.len()),
                text::bytes(self.bytes)
            ),
        );
        match (self.anchored, self.unchanged) {
            (Some(true), _) => say("proof", "BLAKE3, piece by piece".to_owned()),
            (Some(false), _) => say(
                "proof",
                "SHA-256, file by file (the manifest does not state every BLAKE3 hash)".to_owned(),
            ),
            (_, Some(true)) => say("proof", "unchanged since it was pulled and proved".to_owned()),
            (_, Some(false)) => say("proof", "changed since it was pulled and proved".to_owned()),
            (None, None) => {}
        }
        if let Some(model) = &self.model {
            model.describe(&mut say);
        }
        if let Some(tensors) = &self.tensors {
            say("tensors", tensors.to_string());
        }
        writeln!(f, "{facts}\n")?;
        match &self.tensor_files {
            Some(files) => tensor_list(files).fmt(f),
            None => self.list().fmt(f),
        }
    }
}

impl ArchiveFacts {
    fn new(archive: &Archive, manifest: &Manifest) -> Self {
        let blob = &manifest.blobs()[archive.blob.0 as usize];
        Self {
            layer: archive.layer,
            packing: archive.packing.to_string(),
            kind: archive.kind.map(|kind| kind.to_string()),
            bytes: blob.size,
            sha256: blob.digest.hex(),
        }
    }
}

fn tensor_list(files: &[Listed]) -> Table<5> {
    let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Left, Align::Left]);
    table.row(["DTYPE".into(), "SHAPE".into(), "BYTES".into(), "FILE".into(), "TENSOR".into()]);
    for file in files {
        let path = text::one_line(&file.path);
        if file.error.is_some() {
            table.row([
                "?".into(),
                String::new(),
                String::new(),
                path.clone(),
                "header cannot be used".into(),
            ]);
        }
        for tensor in &file.tensors {
            let shape: Vec<_> = tensor.shape.iter().map(ToString::to_string).collect();
            let shape = format!("[{}]", shape.join(","));
            let name = text::one_line(&tensor.name);
            table.row([tensor.dtype.clone(), shape, tensor.bytes.to_string(), path.clone(), name]);
        }
    }
    table
}

impl Report {
    fn list(&self) -> Table<4> {
        let mut files = Table::new([Align::Left, Align::Right, Align::Left, Align::Left]);
        let has_digests = self.files.iter().any(|file| file.sha256.is_some());
        let title = if has_digests { "SHA256" } else { "" };
        files.row(["KIND".into(), "SIZE".into(), title.into(), "PATH".into()]);
        for file in &self.files {
            let digest = file.sha256.as_deref().unwrap_or_default();
            let digest = digest.get(..SHORT_DIGEST).unwrap_or(digest).to_owned();
            files.row([file.kind.clone(), text::bytes(file.bytes), digest, text::one_line(&file.path)]);
        }
        for archive in &self.archives {
            let digest = archive.sha256.get(..SHORT_DIGEST).unwrap_or_default().to_owned();
            let kind = archive.kind.clone().unwrap_or_else(|| "any".to_owned());
            let what = format!("(the files of layer {}, {})", archive.layer, archive.packing);
            files.row([kind, text::bytes(archive.bytes), digest, what]);
        }
        files
    }
}

impl Model {
    fn describe(&self, say: &mut impl FnMut(&str, String)) {
        let facts = [
            ("name", &self.name),
            ("version", &self.version),
            ("family", &self.family),
            ("architecture", &self.architecture),
            ("format", &self.format),
            ("precision", &self.precision),
            ("quantization", &self.quantization),
            ("parameters", &self.parameters),
            ("source", &self.source),
            ("revision", &self.revision),
        ];
        for (name, value) in facts {
            if let Some(value) = value {
                say(name, value.clone());
            }
        }
        if !self.licenses.is_empty() {
            say("licenses", self.licenses.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_line_are_escaped_as_coreutils_do() {
        assert_eq!(checksum_line("ab", "a b"), "ab  a b");
        assert_eq!(checksum_line("ab", "a\\b\nc"), "\\ab  a\\\\b\\nc");
    }
}
