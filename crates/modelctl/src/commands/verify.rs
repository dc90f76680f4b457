//! `modelctl verify`: every byte of a directory against an artifact.
//!
//! Owns: what counts as changed, missing or extra. Does not own: hashing, or resolving the reference.

use std::{collections::BTreeMap, fmt, path::Path, time::Instant};

use modelpack::manifest::{Blob, Manifest, ModelFile};
use serde::Serialize;

use crate::{
    access,
    artifact::Artifact,
    cli::VerifyArgs,
    hash::{self, Wanted},
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
    let artifact = access::runtime()?.block_on(Artifact::open(&args.reference, &args.registry))?;
    let manifest = artifact.manifest;
    let walk = Walk::of(&args.dir)?;
    let mut report = Report {
        reference: args.reference.to_string(),
        digest: manifest.digest().to_string(),
        directory: args.dir.display().to_string(),
        files: manifest.files().len(),
        bytes: manifest.files().iter().map(|file| blob_of(&manifest, file).size).sum(),
        verified: false,
        changed: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
        seconds: 0.0,
    };
    compare(&manifest, &walk, printer, &mut report)?;
    report.verified = report.changed.is_empty() && report.missing.is_empty();
    report.seconds = start.elapsed().as_secs_f64();
    printer.result(&report)?;
    if report.verified { Ok(()) } else { Err(report.refusal(&args.dir)) }
}

/// Sorts the artifact's files into good, changed and missing, and names what is there besides.
fn compare(manifest: &Manifest, walk: &Walk, printer: &Printer, report: &mut Report) -> anyhow::Result<()> {
    let mut there: BTreeMap<&str, Option<&Found>> =
        walk.files.iter().map(|found| (found.path.as_str(), Some(found))).collect();
    // In the place of a file, something else is a change.
    there.extend(walk.odd.iter().map(|odd| (odd.path.as_str(), None)));
    let mut open = Vec::new();
    for file in manifest.files() {
        match there.remove(file.path.as_str()) {
            Some(Some(found)) if found.size == blob_of(manifest, file).size => open.push((file, found)),
            Some(_) => report.changed.push(file.path.clone()),
            None => report.missing.push(file.path.clone()),
        }
    }
    report.extra = there.into_keys().map(str::to_owned).collect();
    let progress = printer.progress("verifying", open.iter().map(|(_, found)| found.size).sum());
    let good = hash::in_parallel(
        &open,
        |(_, found)| found.size,
        |(file, found)| is_same(blob_of(manifest, file), &found.file, &progress),
    )?;
    progress.finish();
    let changed =
        open.iter().zip(good).filter(|(_, is_good)| !is_good).map(|((file, _), _)| file.path.clone());
    report.changed.extend(changed);
    report.changed.sort();
    Ok(())
}

fn blob_of<'a>(manifest: &'a Manifest, file: &ModelFile) -> &'a Blob {
    &manifest.blobs()[file.blob.0 as usize]
}

/// Compares by BLAKE3 where the manifest states it, because it is several times faster to compute.
fn is_same(blob: &Blob, path: &Path, progress: &Progress) -> anyhow::Result<bool> {
    match blob.root {
        Some(root) => {
            let hashed = hash::hash(path, Wanted::Blake3, progress)?;
            Ok(hashed.tree.expect("it was wanted").root() == root)
        }
        None => Ok(hash::hash(path, Wanted::Sha256, progress)?.sha256 == Some(blob.digest)),
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
