//! `modelctl sidecar`: model directories that stay present and fresh.
//!
//! Owns: what flags and file say together, and how versions come: as `pull` brings them. Does not own: what is done when,
//! the directories, or the words with servers (crate `sidecar`).

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use modelpack::{
    digest::Sha256Digest,
    reference::{HubReference, Reference},
    selection::Selection,
};
use peer::{Lingering, PullRequest, PullWatch};
use serde::Serialize;
use sidecar::{Board, Config, Ended, ModelConfig, Settings, Source, Trouble, machine::Until};
use store::CompleteRecord;
use tokio::sync::Mutex;

use super::{
    pull::{
        self,
        way::{self, Asked, Way},
    },
    serve::{Face, end_signal},
    transports,
};
use crate::{
    access,
    cli::SidecarArgs,
    printer::Printer,
    report::Refusal,
    text::{Align, Table},
};

/// How often a tag is looked at if nobody says it: a minute is soon enough for a release, and a thousand sidecars ask a
/// registry 17 times a second.
const POLL: Duration = Duration::from_mins(1);

/// Where it answers if nobody says it.
const HTTP_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7300);

/// How often progress is noted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Said once, when it answers.
#[derive(Debug, Serialize)]
struct Started {
    http: String,
    models: usize,
}

impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models = crate::text::plural(self.models, "model");
        write!(f, "keeping {models}; http://{}/readyz says when all are there", self.http)
    }
}

/// What is there in the end.
#[derive(Debug, Serialize)]
struct Kept {
    models: Vec<KeptModel>,
}

#[derive(Debug, Serialize)]
struct KeptModel {
    directory: String,
    digest: Option<String>,
    stale: Option<String>,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left, Align::Left]);
        for KeptModel { directory, digest, stale } in &self.models {
            let digest = digest.clone().unwrap_or_else(|| "nothing yet".to_owned());
            let stale = if stale.is_some() { "stale" } else { "" };
            table.row([directory.clone(), digest, stale.to_owned()]);
        }
        table.fmt(f)
    }
}

/// Keeps what it is told to.
pub(crate) fn run(args: &SidecarArgs, printer: &Printer) -> anyhow::Result<()> {
    transports::check(&args.transport)?;
    let config = config(args)?;
    let selections = config.models.iter().map(ModelConfig::selection).collect::<Result<Vec<_>, _>>()?;
    let is_member = !args.embedded.scheduler.is_empty() || args.direct;
    if is_member && selections.iter().any(|selection| !selection.is_everything()) {
        let message = "members of a fleet exchange whole artifacts, and a part of one is to be kept";
        let hint = "keep it through the local peer, which brings the whole into its store: without `--scheduler` and `--direct`";
        return Err(Refusal::usage(message).hint(hint).into());
    }
    let poll = args.poll.map(|poll| poll.0).or(config.poll).unwrap_or(POLL);
    if poll.is_zero() {
        return Err(Refusal::usage("`--poll 0` would ask the registry without a pause").into());
    }
    let default = (!args.once).then_some(HTTP_LISTEN);
    let listen = args.http_listen.or(config.http_listen).or(default);
    let face = Face::bind(listen, &args.trust)?;
    let until = if args.once { Until::Present } else { Until::Told };
    // Differs between processes that start at the same time, also on different machines.
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
    let seed = (u64::from(std::process::id()) << 32) | u64::from(nanos);
    access::runtime()?.block_on(async {
        let told_to_end = end_signal()?;
        let board = Board::new();
        let models = config.models.into_iter().zip(selections).map(|(model, selection)| {
            let source = Brought::new((model.reference.clone(), selection), (args, printer));
            (model, source)
        });
        let models: Vec<_> = models.collect();
        let count = models.len();
        if let Some(face) = face {
            let http = face.address().to_owned();
            tokio::spawn(telemetry::serve(face.listen()?, Arc::new(board.clone())));
            if !args.once {
                printer.result(&Started { http, models: count })?;
            }
        }
        let ended = sidecar::keep(models, Settings { poll, until, seed }, &board, told_to_end).await;
        let ended = ended.map_err(|trouble| match trouble {
            Trouble::Source(error) => error,
            Trouble::Sidecar(error) => error.into(),
        })?;
        for Ended { dir, stale, .. } in &ended {
            if let Some(why) = stale {
                printer.warn(format_args!("`{}` may be out of date: {why}", dir.display()));
            }
        }
        let model = |Ended { dir, version, stale }: Ended| KeptModel {
            directory: dir.display().to_string(),
            digest: version.map(|version| version.to_string()),
            stale,
        };
        printer.result(&Kept { models: ended.into_iter().map(model).collect() })
    })
}

fn config(args: &SidecarArgs) -> anyhow::Result<Config> {
    if let Some(file) = &args.config {
        return Ok(Config::load(file)?);
    }
    let (Some(reference), Some(dir)) = (&args.reference, &args.output) else {
        return Err(Refusal::usage("neither a model nor `--config FILE` is given").into());
    };
    if matches!(reference, Reference::Directory(_)) {
        let message = format!("`{reference}` is a plain directory, and no artifact");
        return Err(Refusal::usage(message).hint("build one from it with `modelctl build`").into());
    }
    let kind = args.selection.kind.iter().copied().map(Into::into).collect();
    let (include, exclude) = (args.selection.include.clone(), args.selection.exclude.clone());
    let model = ModelConfig { include, exclude, kind, ..ModelConfig::new(reference.clone(), dir.clone()) };
    Ok(Config { models: vec![model], ..Config::default() })
}

/// Versions of one model, as `pull` brings them.
struct Brought<'a> {
    reference: Reference,
    selection: Arc<Selection>,
    args: &'a SidecarArgs,
    printer: &'a Printer,
    /// Of a hub: what it named last.
    named: Mutex<Option<Named>>,
    /// What this process serves others from.
    serving: Mutex<Option<Lingering>>,
}

/// A commit of a hub, and what it is as an artifact.
struct Named {
    commit: String,
    digest: Sha256Digest,
    pinned: Reference,
}

impl<'a> Brought<'a> {
    fn new(
        (reference, selection): (Reference, Selection),
        (args, printer): (&'a SidecarArgs, &'a Printer),
    ) -> Self {
        let (named, serving) = (Mutex::new(None), Mutex::new(None));
        Self { reference, selection: Arc::new(selection), args, printer, named, serving }
    }

    fn asked(&self) -> Asked<'_> {
        let args = self.args;
        Asked {
            reference: &self.reference,
            peer: args.peer.as_ref(),
            direct: args.direct,
            landing: args.landing,
            embedded: &args.embedded,
            trust: &args.trust,
            transport: &args.transport,
        }
    }

    async fn request(&self, version: &Sha256Digest, dir: &Path) -> anyhow::Result<PullRequest> {
        let named = self.named.lock().await;
        let of_hub = named.as_ref().filter(|named| named.digest == *version);
        let reference =
            of_hub.map_or_else(|| peer::pinned(&self.reference, *version), |named| named.pinned.clone());
        Ok(PullRequest {
            reference,
            // Each time anew, as passwords change while a sidecar runs.
            access: access::for_reference(&self.args.registry, &self.reference)?,
            output: dir.to_path_buf(),
            landing: self.args.landing.into(),
            selection: Arc::clone(&self.selection),
            bases: former(dir),
            priority: self.args.priority.into(),
        })
    }
}

/// The versions beside the one that comes: what is the same in them need not be fetched.
fn former(dir: &Path) -> Vec<Reference> {
    // Where they cannot be listed, everything is fetched.
    let beside = dir.parent().and_then(|parent| parent.read_dir().ok()).into_iter().flatten().flatten();
    let others = beside.map(|entry| entry.path()).filter(|other| other != dir);
    let whole = others.filter(|other| CompleteRecord::load(other).is_ok_and(|record| record.is_some()));
    whole.map(Reference::Directory).collect()
}

impl Source for Brought<'_> {
    type Error = anyhow::Error;

    async fn resolve(&self) -> anyhow::Result<Sha256Digest> {
        let access = access::for_reference(&self.args.registry, &self.reference)?;
        let Reference::Hub(at) = &self.reference else {
            return Ok(peer::resolve(&self.reference, access).await?.0);
        };
        // To learn the digest all small files are read, which only another commit is worth.
        let commit = peer::hub_commit(at, &access).await?;
        let mut named = self.named.lock().await;
        if let Some(named) = named.as_ref().filter(|named| named.commit == commit) {
            return Ok(named.digest);
        }
        let at = Reference::Hub(HubReference { revision: Some(commit.clone()), ..at.clone() });
        let (digest, pinned) = peer::resolve(&at, access).await?;
        *named = Some(Named { commit, digest, pinned });
        Ok(digest)
    }

    async fn size(&self, version: &Sha256Digest) -> anyhow::Result<u64> {
        if matches!(self.reference, Reference::Fleet(_)) {
            // Only other peers know.
            return Ok(0);
        }
        Ok(peer::plan_pull(self.request(version, Path::new("absent")).await?).await?.bytes)
    }

    async fn pull(&self, version: &Sha256Digest, dir: &Path, told: &dyn Fn(u64, u64)) -> anyhow::Result<()> {
        let request = self.request(version, dir).await?;
        let (asked, args) = (self.asked(), self.args);
        let watch = PullWatch::new();
        let progress = async {
            loop {
                tokio::time::sleep(PROGRESS_INTERVAL).await;
                let progress = watch.progress();
                if progress.total > 0 {
                    told(progress.done, progress.total);
                }
            }
        };
        let (report, lingering) = tokio::select! {
            result = pull::bring(&asked, request, args.link.into(), (&watch, self.printer)) => result?,
            () = progress => unreachable!("it is told until the pull is done"),
        };
        pull::warn_of(&report, self.printer);
        *self.serving.lock().await = lingering;
        Ok(())
    }

    async fn serve(&self, version: &Sha256Digest, dir: &Path) -> anyhow::Result<()> {
        // Whoever has neither serves nobody.
        if self.args.embedded.scheduler.is_empty() && !self.args.direct {
            return Ok(());
        }
        if let Way::Fleet(fleet) = way::choose(&self.asked(), self.printer).await? {
            let serving = peer::serve_directory(self.request(version, dir).await?, fleet).await?;
            *self.serving.lock().await = Some(serving);
        }
        Ok(())
    }

    async fn leave(&self) {
        if let Some(lingering) = self.serving.lock().await.take() {
            lingering.linger(self.args.embedded.linger.0, std::future::pending()).await;
        }
    }
}
