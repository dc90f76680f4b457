//! `modelctl verify`: every byte of a directory against an artifact.
//!
//! Owns: what counts as changed, missing or extra. Does not own: hashing, or resolving the reference.

use std::{collections::BTreeMap, fmt, path::Path, time::Instant};

use modelpack::{
    digest::{Blake3Root, Sha256Digest},
    layout::BlobIndex,
    manifest::{Blob, ModelFile},
    selection::Selection,
};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::{
    access,
    artifact::Artifact,
    cli::VerifyArgs,
    hash::{self, Wanted},
    packed::{self, Content},
    printer::Printer,
    progress::Progress,
    report::Refusal,
    text::{self, Align, Table},
    walk::{Found, Walk},
};

/// What was found. Serialised, it is the result of `--json`; the lists hold paths.
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    digest: String,
    directory: String,
    /// Which part of the artifact was looked for, as on the command line; `None` for all of it.
    selection: Option<String>,
    files: usize,
    bytes: u64,
    verified: bool,
    changed: Vec<String>,
    missing: Vec<String>,
    /// Files that the artifact does not have: told, but no failure.
    extra: Vec<String>,
    seconds: f64,
}

/// Checks, and fails if a byte differs.
pub(crate) fn run(args: &VerifyArgs, printer: &Printer) -> anyhow::Result<()> {
    let start = Instant::now();
    let runtime = access::runtime()?;
    let artifact = runtime.block_on(Artifact::open(&args.reference, &args.registry))?;
    let selection = args.selection.selection()?;
    let walk = Walk::of(&args.dir)?;
    let wanted = expected((&artifact, &selection), runtime.handle(), printer)?;
    let manifest = artifact.manifest;
    let mut report = Report {
        reference: args.reference.to_string(),
        digest: manifest.digest().to_string(),
        directory: args.dir.display().to_string(),
        selection: (!selection.is_everything()).then(|| selection.to_string()),
        files: wanted.len(),
        bytes: wanted.iter().map(|file| file.size).sum(),
        verified: false,
        changed: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
        seconds: 0.0,
    };
    compare(&wanted, &walk, printer, &mut report)?;
    report.verified = report.changed.is_empty() && report.missing.is_empty();
    report.seconds = start.elapsed().as_secs_f64();
    printer.result(&report)?;
    if report.verified { Ok(()) } else { Err(report.refusal(&args.dir)) }
}

/// A file that should be there.
struct Expected {
    path: String,
    size: u64,
    sha256: Sha256Digest,
    root: Option<Blake3Root>,
}

/// Every file of the artifact that is wanted. What is in archives the manifest does not say: they are read once more.
fn expected(
    (artifact, selection): (&Artifact, &Selection),
    runtime: &Handle,
    printer: &Printer,
) -> anyhow::Result<Vec<Expected>> {
    let (manifest, mut matched) = artifact.manifest.select(selection)?;
    let manifest = &manifest;
    let blob_of = |blob: BlobIndex| &manifest.blobs()[blob.0 as usize];
    let of_file = |file: &ModelFile| {
        let Blob { size, digest: sha256, root } = *blob_of(file.blob);
        Expected { path: file.path.clone(), size, sha256, root }
    };
    let mut expected: Vec<_> = manifest.files().iter().map(of_file).collect();
    let bytes = manifest.archives().iter().map(|archive| blob_of(archive.blob).size).sum();
    let progress = printer.progress("reading archives", bytes);
    let contents = packed::contents(manifest, |blob| artifact.blocking_reader(blob, runtime), &progress)?;
    progress.finish();
    for (path, Content { size, sha256, kind }) in contents {
        if selection.selects(&path, kind, &mut matched) {
            expected.push(Expected { path, size, sha256, root: None });
        }
    }
    if !selection.is_everything() {
        selection.check(&matched)?;
    }
    Ok(expected)
}

/// Sorts the artifact's files into good, changed and missing, and names what is there besides.
fn compare(expected: &[Expected], walk: &Walk, printer: &Printer, report: &mut Report) -> anyhow::Result<()> {
    let mut there: BTreeMap<&str, Option<&Found>> =
        walk.files.iter().map(|found| (found.path.as_str(), Some(found))).collect();
    // In the place of a file, something else is a change.
    there.extend(walk.odd.iter().map(|odd| (odd.path.as_str(), None)));
    let mut open = Vec::new();
    for file in expected {
        match there.remove(file.path.as_str()) {
            Some(Some(found)) if found.size == file.size => open.push((file, found)),
            Some(_) => report.changed.push(file.path.clone()),
            None => report.missing.push(file.path.clone()),
        }
    }
    report.extra = there.into_keys().map(str::to_owned).collect();
    let progress = printer.progress("verifying", open.iter().map(|(_, found)| found.size).sum());
    let good = hash::in_parallel(
        &open,
        |(_, found)| found.size,
        |(file, found)| is_same(file, &found.file, &progress),
    )?;
    progress.finish();
    let changed =
        open.iter().zip(good).filter(|(_, is_good)| !is_good).map(|((file, _), _)| file.path.clone());
    report.changed.extend(changed);
    report.changed.sort();
    Ok(())
}

/// Compares by BLAKE3 where the manifest states it, because it is several times faster to compute.
fn is_same(file: &Expected, path: &Path, progress: &Progress) -> anyhow::Result<bool> {
    match file.root {
        Some(root) => {
            let hashed = hash::hash(path, Wanted::Blake3, progress)?;
            Ok(hashed.tree.expect("it was wanted").root() == root)
        }
        None => Ok(hash::hash(path, Wanted::Sha256, progress)?.sha256 == Some(file.sha256)),
    }
}

impl Report {
    fn refusal(&self, dir: &Path) -> anyhow::Error {
        let bad = self.changed.len() + self.missing.len();
        let (differ, are) = if bad == 1 { ("differs", "is") } else { ("differ", "are") };
        let (files, reference) = (text::plural(self.files, "file"), &self.reference);
        let message = format!("{bad} of {files} {differ} from `{reference}` or {are} missing");
        let hint = format!("pull it again into a new directory, and remove `{}`", dir.display());
        Refusal::integrity(message).hint(hint).into()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = Table::new([Align::Left, Align::Left]);
        for (what, paths) in [("changed", &self.changed), ("missing", &self.missing), ("extra", &self.extra)]
        {
            for path in paths {
                list.row([what.to_owned(), text::one_line(path)]);
            }
        }
        if self.verified {
            let bytes = text::bytes(self.bytes);
            list.row([
                "verified".to_owned(),
                format!("{}, {bytes}: {}", text::plural(self.files, "file"), self.digest),
            ]);
        }
        list.fmt(f)
    }
}
