//! `modelctl pull --hf-cache`: a model of a hub into the cache that the hub's own tools share.
//!
//! Owns: that what is there already is proved before it counts, and that what is brought is moved in whole. Does not own:
//! the cache's layout (`registry`), or the pull.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use modelpack::{
    hub::{Commit, HubFile, Listing},
    reference::{HubReference, Reference},
    selection::Selection,
};
use peer::PullRequest;
use registry::{Access, CachedModel, Snapshot};
use serde::Serialize;
use store::LinkMode;

use super::{Report, bring_shown, linger, warn_of};
use crate::{
    cli::PullArgs,
    commands::serve::end_signal,
    hash,
    printer::Printer,
    report::Refusal,
    text::{self, Align, Table},
};

/// What is said where nothing had to be brought.
#[derive(Debug, Serialize)]
struct WasThere {
    reference: String,
    revision: String,
    files: usize,
    bytes: u64,
    origin_bytes: u64,
    peer_bytes: u64,
    local_bytes: u64,
    verified: bool,
    output: String,
}

/// Pulls, and says where Python finds it.
pub(super) async fn run(args: &PullArgs, access: Access, printer: &Printer) -> anyhow::Result<()> {
    let Reference::Hub(at) = &args.reference else {
        let message = format!("`{}` is no model on a hub, and only those have a cache", args.reference);
        return Err(Refusal::usage(message).hint("name a directory with `-o DIR`").into());
    };
    if !args.selection.selection()?.is_everything() {
        let message = "the cache of the hub's tools is filled with whole models only";
        return Err(Refusal::usage(message).hint("name a directory with `-o DIR`").into());
    }
    let Some(root) = access.hub.cache.clone() else {
        let message = "nothing says where the cache is";
        return Err(Refusal::usage(message).hint("name it with `HF_HUB_CACHE`, or set `HOME`").into());
    };
    let cache = CachedModel::new(&root, at);
    let listed = Snapshot::list(at, &access).await.with_context(|| format!("cannot read `{at}`"))?;
    let (commit, listing) = listed;
    let snapshot = cache.snapshot(commit);
    if is_complete(&cache, &listing, printer)? {
        cache.take(commit, &listing, &cache.staging(commit))?;
        let bytes = listing.files().iter().map(|file| file.size).sum();
        return printer.result(&WasThere {
            reference: args.reference.to_string(),
            revision: commit.to_string(),
            files: listing.files().len(),
            bytes,
            origin_bytes: 0,
            peer_bytes: 0,
            local_bytes: bytes,
            verified: true,
            output: snapshot.display().to_string(),
        });
    }
    let staging = cache.staging(commit);
    fs::create_dir_all(staging.parent().unwrap_or(&root))
        .with_context(|| format!("cannot make the cache at `{}`", root.display()))?;
    let request = PullRequest {
        reference: Reference::Hub(pinned(at, commit)),
        access,
        output: staging.clone(),
        landing: args.landing.into(),
        selection: Arc::new(Selection::default()),
        bases: Vec::new(),
        priority: args.priority.into(),
    };
    // A second name of a file that somebody else may write would change under the cache's name.
    let (report, lingering) = bring_shown(args, request, LinkMode::Copy, printer).await?;
    let told_to_end = end_signal()?;
    warn_of(&report, printer);
    // Whoever still reads from here has the files open.
    cache.take(commit, &listing, &staging)?;
    fs::remove_dir_all(&staging).with_context(|| format!("cannot remove `{}`", staging.display()))?;
    let told = printer.result(&Report {
        output: Some(snapshot.display().to_string()),
        ..Report::new(&args.reference, report)
    });
    linger(args, lingering, told_to_end).await;
    told
}

/// The same model at the commit that was found, so that nobody can move it meanwhile.
fn pinned(at: &HubReference, commit: Commit) -> HubReference {
    HubReference { revision: Some(commit.to_string()), ..at.clone() }
}

/// Whether every file is in the cache, and is what the hub lists.
fn is_complete(cache: &CachedModel, listing: &Listing, printer: &Printer) -> anyhow::Result<bool> {
    if listing.files().iter().any(|file| cache.blob(file).is_none()) {
        return Ok(false);
    }
    let progress = printer.progress("verifying", listing.files().iter().map(|file| file.size).sum());
    let good = hash::in_parallel(
        listing.files(),
        |file| file.size,
        |file| {
            let path = cache.blob_path(file);
            let is_good =
                is_good(file, &path).with_context(|| format!("cannot read `{}`", path.display()))?;
            progress.add(file.size);
            Ok(is_good)
        },
    )?;
    progress.finish();
    for (file, _) in listing.files().iter().zip(&good).filter(|(_, is_good)| !**is_good) {
        let path = text::one_line(&file.path);
        printer.warn(format_args!("`{path}` in the shared cache is damaged, and is replaced"));
    }
    Ok(good.into_iter().all(|is_good| is_good))
}

fn is_good(file: &HubFile, path: &Path) -> io::Result<bool> {
    let mut opened = File::open(path)?;
    if let Some(digest) = &file.lfs {
        return Ok(hash::sha256(&mut opened)? == *digest);
    }
    let mut raw = Vec::new();
    opened.take(file.size + 1).read_to_end(&mut raw)?;
    Ok(file.is_made_of(&raw))
}

impl std::fmt::Display for WasThere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        say("reference", self.reference.clone());
        say("revision", self.revision.clone());
        say("files", format!("{}, {}, all proved", self.files, text::bytes(self.bytes)));
        say("sources", "the shared cache had everything".to_owned());
        say("output", self.output.clone());
        table.fmt(f)
    }
}
