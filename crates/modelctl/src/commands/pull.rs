//! `modelctl pull`: an artifact into a directory.
//!
//! Owns: how a pull and what comes of it are told. Does not own: who brings the bytes (`way`), the cache that a hub's
//! tools share (`cached`), or the pull.

mod cached;
pub(super) mod way;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use modelpack::reference::Reference;
use peer::{Blamed, Lingering, PullPlan, PullReport, PullRequest, PullWatch};
use registry::{Access, MirrorBytes};
use serde::Serialize;
use store::LinkMode;

use self::way::{Asked, Found, Way};
use super::{serve::end_signal, transports};
use crate::{
    access,
    cli::PullArgs,
    printer::Printer,
    report::Refusal,
    text::{self, Align, Table},
};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The result of `--json` (DESIGN §8).
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    digest: String,
    /// Which part of the artifact was asked for, as on the command line; `None` for all of it.
    selection: Option<String>,
    files: usize,
    bytes: u64,
    origin_bytes: u64,
    /// Of these: what mirrors of the origin gave.
    mirrors: Vec<FromMirror>,
    peer_bytes: u64,
    local_bytes: u64,
    seconds: f64,
    first_piece_seconds: Option<f64>,
    transport: &'static str,
    bytes_by_transport: BytesByTransport,
    landing: String,
    bytes_by_landing: BytesByLanding,
    fallback_reason: Option<String>,
    bound_seconds: Option<f64>,
    ratio: Option<f64>,
    bounded_by: Option<String>,
    blamed: Vec<Blame>,
    verified: bool,
    output: Option<String>,
}

/// What came from a mirror.
#[derive(Debug, Serialize)]
struct FromMirror {
    registry: String,
    bytes: u64,
}

/// A peer that was found out.
#[derive(Debug, Serialize)]
struct Blame {
    peer: String,
    reason: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct BytesByTransport {
    tcp: u64,
    rdma: u64,
}

/// Of good pieces: written to their place by the network card, or through a buffer.
#[derive(Clone, Copy, Debug, Serialize)]
struct BytesByLanding {
    direct: u64,
    staged: u64,
}

/// One line of progress with `--json`.
#[derive(Debug, Serialize)]
struct ProgressLine {
    bytes_done: u64,
    bytes_total: u64,
    origin_bytes: u64,
    peer_bytes: u64,
    local_bytes: u64,
}

/// What `--dry-run` says.
#[derive(Debug, Serialize)]
struct Plan {
    reference: String,
    digest: String,
    selection: Option<String>,
    files: usize,
    /// Layers that are archives of further files.
    archives: usize,
    bytes: u64,
    from: String,
    output: String,
    complete: bool,
    free_bytes: u64,
    fits: bool,
    proved_by: &'static str,
}

/// Pulls, or says what a pull would do.
pub(crate) fn run(args: &PullArgs, printer: &Printer) -> anyhow::Result<()> {
    transports::check(&args.transport)?;
    access::runtime()?.block_on(async {
        let access = access::for_reference(&args.registry, &args.reference)?;
        let reference = args.reference.clone();
        if args.hf_cache {
            return cached::run(args, access, printer).await;
        }
        let Some(output) = args.output.clone() else { return store(args, access, printer).await };
        let selection = Arc::new(args.selection.selection()?);
        let request = PullRequest {
            reference,
            access,
            output,
            landing: args.landing.into(),
            selection,
            bases: args.base.clone(),
            priority: args.priority.into(),
        };
        if args.dry_run {
            let plan = peer::plan_pull(request).await?;
            return printer.result(&Plan::new(args, &plan));
        }
        pull(args, request, printer).await
    })
}

/// Pulls into the store of the local peer, and nowhere else.
async fn store(args: &PullArgs, access: Access, printer: &Printer) -> anyhow::Result<()> {
    if matches!(args.reference, Reference::Layout(_) | Reference::Directory(_)) {
        let message = format!("`{}` lies on this machine, and a peer opens no path", args.reference);
        return Err(Refusal::usage(message).hint("name a directory with `-o DIR`").into());
    }
    if !args.selection.selection()?.is_everything() {
        let message = "a part of an artifact has no place in a store, which keeps whole ones";
        return Err(Refusal::usage(message).hint("name a directory with `-o DIR`").into());
    }
    let asked = Asked::from(args);
    let local = match way::local_peer(&asked).await? {
        Found::Answers(local) => local,
        Found::Unusable(error) => return Err(error.into()),
        Found::Absent => {
            let message = "`-o DIR` is missing, and there is no local peer to pull into the store of";
            let hint = "name a directory with `-o DIR`, or start a peer on this machine with `modelctl peer`";
            return Err(Refusal::usage(message).hint(hint).into());
        }
    };
    way::check_limit(&asked)?;
    way::warn_of_transport(&asked, printer);
    let watch = PullWatch::new();
    let report = tokio::select! {
        result = local.store(&args.reference, (access, args.priority.into()), &watch) => result?,
        result = show(&watch, printer) => return result.map(|never| match never {}),
    };
    warn_of(&report, printer);
    printer.result(&Report::new(&args.reference, report))
}

pub(super) fn warn_of(report: &PullReport, printer: &Printer) {
    if report.copied > 0 {
        let blobs = text::plural(report.copied as usize, "file");
        printer.warn(format_args!(
            "{blobs} copied from the local peer's store: the bytes take their space twice"
        ));
    }
    for Blamed { peer, reason } in &report.blamed {
        printer.warn(format_args!("{peer} is blamed: {reason}; they were refused"));
    }
}

async fn pull(args: &PullArgs, request: PullRequest, printer: &Printer) -> anyhow::Result<()> {
    let (report, lingering) = bring_shown(args, request, args.link.into(), printer).await?;
    // From here on the directory is there: whatever ends this process, it has done what it was asked.
    let told_to_end = end_signal()?;
    warn_of(&report, printer);
    let told = printer.result(&Report::new(&args.reference, report));
    linger(args, lingering, told_to_end).await;
    told
}

/// Others may still read what has landed here.
async fn linger(args: &PullArgs, lingering: Option<Lingering>, told_to_end: impl Future<Output = ()>) {
    if let Some(lingering) = lingering {
        lingering.linger(args.embedded.linger.0, told_to_end).await;
    }
}

/// The same, showing how it goes.
async fn bring_shown(
    args: &PullArgs,
    request: PullRequest,
    link: LinkMode,
    printer: &Printer,
) -> anyhow::Result<(PullReport, Option<Lingering>)> {
    let watch = PullWatch::new();
    let asked = Asked::from(args);
    tokio::select! {
        result = bring(&asked, request, link, (&watch, printer)) => result,
        result = show(&watch, printer) => result.map(|never| match never {}),
    }
}

/// Pulls into a directory in the way that is asked for. What is left lingering serves others until it is dropped.
pub(super) async fn bring(
    asked: &Asked<'_>,
    request: PullRequest,
    link: LinkMode,
    (watch, printer): (&PullWatch, &Printer),
) -> anyhow::Result<(PullReport, Option<Lingering>)> {
    match way::choose(asked, printer).await? {
        Way::Local(local) => {
            if !request.selection.is_everything() {
                printer.warn("the local peer brings the whole artifact into its store; `--peer none` reads the selection alone");
            }
            if !request.bases.is_empty() {
                printer.warn("the local peer looks for equal bytes in its own store, not in `--base`");
            }
            Ok((local.pull(request, link, watch).await?, None))
        }
        Way::Alone { reason } => {
            let report = peer::pull(request, transports::alone(asked.transport)?, watch).await?;
            Ok((PullReport { fallback_reason: reason, ..report }, None))
        }
        Way::Fleet(_) if !request.selection.is_everything() => Err(no_selection().into()),
        Way::Fleet(fleet) => {
            let (report, lingering) = peer::pull_in_fleet(request, fleet, watch).await?;
            Ok((report, Some(lingering)))
        }
    }
}

/// Whoever has only a part could not serve others what they want.
fn no_selection() -> Refusal {
    let message =
        "a selection cannot be pulled as a member of a fleet, whose members exchange whole artifacts";
    let hint =
        "pull it through a local peer, or from the registry alone: without `--scheduler` and `--direct`";
    Refusal::usage(message).hint(hint)
}

/// Shows progress to people until it is dropped.
pub(super) async fn show_bar(watch: &PullWatch, printer: &Printer) -> std::convert::Infallible {
    let mut bar = None;
    loop {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        let progress = watch.progress();
        if progress.total > 0 {
            bar.get_or_insert_with(|| printer.progress("pulling", progress.total)).at(progress.done);
        }
    }
}

/// Shows progress until it is dropped: as a bar to people, as lines with `--json`.
async fn show(watch: &PullWatch, printer: &Printer) -> anyhow::Result<std::convert::Infallible> {
    let mut bar = None;
    loop {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        let progress = watch.progress();
        if progress.total == 0 {
            continue;
        }
        printer.progress_line(&ProgressLine {
            bytes_done: progress.done,
            bytes_total: progress.total,
            origin_bytes: progress.origin,
            peer_bytes: progress.peer,
            local_bytes: progress.local,
        })?;
        bar.get_or_insert_with(|| printer.progress("pulling", progress.total)).at(progress.done);
    }
}

impl Report {
    fn new(reference: &Reference, pull: PullReport) -> Self {
        let ratio = pull.bound.map(|bound| pull.elapsed.as_secs_f64() / bound.as_secs_f64());
        let mirror = |from: &MirrorBytes| FromMirror { registry: from.registry.clone(), bytes: from.bytes };
        let moved = pull.origin_bytes + pull.peer_bytes > 0;
        Self {
            reference: reference.to_string(),
            digest: pull.digest.to_string(),
            selection: pull.selection.clone(),
            files: pull.files,
            bytes: pull.bytes,
            origin_bytes: pull.origin_bytes,
            mirrors: pull.mirrors.iter().map(mirror).collect(),
            peer_bytes: pull.peer_bytes,
            local_bytes: pull.local_bytes,
            seconds: pull.elapsed.as_secs_f64(),
            first_piece_seconds: pull.first_piece.map(|time| time.as_secs_f64()),
            transport: pull.transport(),
            bytes_by_transport: BytesByTransport { tcp: pull.tcp_bytes, rdma: pull.rdma_bytes },
            landing: if moved { pull.landing } else { "none".to_owned() },
            bytes_by_landing: BytesByLanding { direct: pull.direct_bytes, staged: pull.staged_bytes },
            fallback_reason: pull.fallback_reason,
            bound_seconds: pull.bound.map(|bound| bound.as_secs_f64()),
            ratio,
            bounded_by: pull.bounded_by,
            blamed: pull.blamed.into_iter().map(|Blamed { peer, reason }| Blame { peer, reason }).collect(),
            verified: true,
            output: pull.output.map(|dir| dir.display().to_string()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        say("reference", self.reference.clone());
        say("digest", self.digest.clone());
        if let Some(selection) = &self.selection {
            say("selection", text::one_line(selection));
        }
        say("files", format!("{}, {}, all proved", self.files, text::bytes(self.bytes)));
        let sources = [("origin", self.origin_bytes), ("peers", self.peer_bytes), ("here", self.local_bytes)];
        let named = sources.iter().filter(|(_, bytes)| *bytes > 0);
        let sources: Vec<_> =
            named.map(|(name, bytes)| format!("{} from {name}", text::bytes(*bytes))).collect();
        if !sources.is_empty() {
            say("sources", sources.join(", "));
        }
        for FromMirror { registry, bytes } in &self.mirrors {
            say(
                "",
                format!(
                    "of the origin's, {} from its mirror {}",
                    text::bytes(*bytes),
                    text::one_line(registry)
                ),
            );
        }
        let BytesByTransport { tcp, rdma } = self.bytes_by_transport;
        if rdma > 0 {
            let rest = if tcp > 0 { format!(", {} over TCP", text::bytes(tcp)) } else { String::new() };
            say("transport", format!("{} over RDMA{rest}", text::bytes(rdma)));
        }
        if let Some(reason) = self.fallback_reason.as_ref().filter(|_| rdma > 0) {
            say("", reason.clone());
        }
        say("time", self.time());
        match &self.output {
            Some(dir) => say("output", dir.clone()),
            None => say("now in", "the store of the local peer".to_owned()),
        }
        table.fmt(f)
    }
}

impl Report {
    fn time(&self) -> String {
        let mut time = text::seconds(Duration::from_secs_f64(self.seconds));
        if let Some(ratio) = self.ratio {
            time = format!("{time}, {ratio:.2} × the bound");
        }
        if let Some(stage) = &self.bounded_by {
            time = format!("{time}, bounded by {stage}");
        }
        time
    }
}

impl Plan {
    fn new(args: &PullArgs, plan: &PullPlan) -> Self {
        Self {
            reference: args.reference.to_string(),
            digest: plan.digest.to_string(),
            selection: Some(args.selection.selection().map(|all| all.to_string()).unwrap_or_default())
                .filter(|text| !text.is_empty()),
            files: plan.files,
            archives: plan.archives,
            bytes: plan.bytes,
            from: origin_of(&args.reference),
            output: plan.output.display().to_string(),
            complete: plan.is_complete,
            free_bytes: plan.free,
            fits: plan.fits(),
            proved_by: if plan.is_anchored { "piece" } else { "file" },
        }
    }
}

fn origin_of(reference: &Reference) -> String {
    match reference {
        Reference::Registry(at) => at.registry.clone(),
        Reference::Layout(at) => at.dir.display().to_string(),
        Reference::Directory(dir) => dir.display().to_string(),
        Reference::Fleet(_) => "other peers".to_owned(),
        Reference::Hub(at) => at.to_string(),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        say("reference", self.reference.clone());
        say("digest", self.digest.clone());
        if let Some(selection) = &self.selection {
            say("selection", text::one_line(selection));
        }
        say(
            "files",
            format!("{}, {}", text::files_and_archives(self.files, self.archives), text::bytes(self.bytes)),
        );
        if self.complete {
            say("to move", format!("nothing: `{}` is complete", self.output));
        } else {
            let packed = if self.archives > 0 { ", packed" } else { "" };
            say("to move", format!("up to {}{packed} from {}", text::bytes(self.bytes), self.from));
            say("proved", format!("{} by {}", self.proved_by, self.proved_by));
            let fits = if self.fits { "it fits" } else { "it does not fit" };
            let at = Path::new(&self.output).display();
            let packed =
                if self.archives > 0 { " packed; what it unpacks to is known only then" } else { "" };
            say("space", format!("{} free at {at}: {fits}{packed}", text::bytes(self.free_bytes)));
        }
        table.fmt(f)
    }
}
