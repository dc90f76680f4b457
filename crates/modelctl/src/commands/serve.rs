//! `modelctl peer` and `modelctl scheduler`: processes that serve until they are told to end.
//!
//! Owns: their start, their signals, who may speak to them and what they print. Does not own: what they serve.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use face::Rule;
use identity::{FleetKey, Identity, Security};
use modelpack::{manifest::Blob, reference::Reference};
use peer::{
    Delta, HubFace, Left, LeftBecause, MirrorOptions, Peer, PeerOptions, PeerSecurity, Seed, SeedFile,
    SeedFiles, Upstream,
};
use planner::Place;
use registry::Access;
use scheduler::RecordFile;
use serde::Serialize;
use store::Store;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use wire::schedulers::Schedulers;

use super::transports;
use crate::{
    access,
    cli::{FleetKeyAction, FleetKeyArgs, PeerArgs, SchedulerArgs, TrustArgs},
    groups::group_number,
    model::{Described, Model, Source},
    printer::Printer,
    report::Refusal,
    text, walk,
};

/// Said once, when the process is ready.
#[derive(Debug, Serialize)]
struct Ready {
    listening: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
    /// Where it shows `/metrics` and `/healthz`.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    /// Where it is a registry that can only be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    oci: Option<String>,
    /// Where it is a hub that can only be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeds: Vec<Announced>,
}

/// One artifact of this machine that others may pull.
#[derive(Debug, Serialize)]
struct Announced {
    seed: String,
    reference: String,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listening on {}", self.listening)?;
        if let Some(socket) = &self.socket {
            write!(f, ", for pulls on this machine at {socket}")?;
        }
        if let Some(http) = &self.http {
            write!(f, ", for metrics on http://{http}/metrics")?;
        }
        if let Some(oci) = &self.oci {
            write!(f, ", as a registry mirror on http://{oci}")?;
        }
        if let Some(hub) = &self.hub {
            write!(f, ", as a hub mirror on http://{hub}")?;
        }
        for Announced { seed, reference } in &self.seeds {
            write!(f, "\nannounces {seed}: modelctl pull {reference}")?;
        }
        Ok(())
    }
}

/// Runs a peer.
pub(crate) fn peer(args: &PeerArgs, printer: &Printer) -> anyhow::Result<()> {
    let control = security(args.listen, &args.trust)?;
    if args.listen.ip().is_unspecified() && args.advertise.is_none() {
        let message = format!("`{}` is no address by which others reach this peer", args.listen);
        return Err(Refusal::usage(message).hint("name one with `--advertise HOST`").into());
    }
    let transports = transports::open(&args.transport)?;
    let socket_group = args.socket_group.as_deref().map(group_number).transpose()?;
    // Before anything is hashed, which may take an hour.
    let face = Face::bind(args.http_listen, &args.trust)?;
    let mirror = Mirror::bind(args)?;
    let seeds = seeds(args, printer)?;
    let data = if args.data_plain { Security::Plain } else { control.clone() };
    let options = PeerOptions {
        store: args.store.clone(),
        store_max: args.store_max.map(|size| size.0),
        socket: args.socket.clone(),
        socket_group,
        listen: args.listen,
        schedulers: args.scheduler.clone(),
        nic_rate: args.transport.nic_rate.map(|rate| rate.0),
        place: Place::from(&args.place),
        name: args.name.clone().unwrap_or_else(host_name),
        seeds,
        advertise: args.advertise.clone(),
        security: PeerSecurity { control, data },
        transports,
        landing: args.landing.into(),
        delta: if args.no_delta { Delta::Off } else { Delta::FromStore },
    };
    access::runtime()?.block_on(async {
        let mut signals = EndSignals::new()?;
        let mut peer = tokio::select! {
            started = Peer::start(options) => started?,
            // Proving what is announced may take as long as the disk needs.
            () = signals.next() => return Ok(()),
        };
        let socket = Some(args.socket.display().to_string());
        let announced = peer.announced().iter().map(|(seed, digest)| Announced {
            seed: seed.clone(),
            reference: Reference::Fleet(*digest).to_string(),
        });
        let seeds = announced.collect();
        let http = face.as_ref().map(|face| face.address.clone());
        if let Some(face) = face {
            peer = peer.show_on(face.listen()?);
        }
        let (oci, hub) = mirror.addresses();
        if let Some(options) = mirror.listen()? {
            peer = peer.mirror(options);
        }
        printer.result(&Ready { listening: peer.listening().to_string(), socket, http, oci, hub, seeds })?;
        let leaving = peer.run(signals.next()).await?;
        printer.note(format_args!("leaving: {}, at most {}", children(leaving.children()), args.drain));
        printer.note(how(&leaving.drain(args.drain.0, signals.next()).await));
        Ok(())
    })
}

/// What is to be announced. Files of directories are hashed here and stay where they are.
fn seeds(args: &PeerArgs, printer: &Printer) -> anyhow::Result<Vec<Seed>> {
    let models = args.seed.iter().map(|reference| match reference {
        // The next start would take the store for part of the model.
        Reference::Directory(dir) if walk::is_inside(&args.store, dir) => {
            let message = format!("the store `{}` would lie inside `{reference}`", args.store.display());
            Err(Refusal::usage(message).hint("keep the store somewhere else").into())
        }
        Reference::Directory(dir) => Ok(Some(Model::of(dir)?)),
        _ => Ok(None),
    });
    let models = models.collect::<anyhow::Result<Vec<_>>>()?;
    if models.iter().any(Option::is_some) {
        // A store that another process has is found before anything is hashed, not an hour after.
        drop(Store::open(&args.store)?);
    }
    let seed = |(reference, model): (&Reference, Option<Model>)| match (reference, model) {
        (Reference::Directory(dir), Some(model)) => files(dir.clone(), &model, printer).map(Seed::Files),
        (Reference::Layout(at), _) => Ok(Seed::Layout(at.clone())),
        (reference, _) => Ok(Seed::Stored(reference.clone())),
    };
    args.seed.iter().zip(models).map(seed).collect()
}

fn files(dir: PathBuf, model: &Model, printer: &Printer) -> anyhow::Result<SeedFiles> {
    let Described { manifest, built, sources } = model.describe(printer)?;
    let file = |blob: &Blob| {
        let Source { path, fingerprint, tree } = sources.of(blob).clone();
        SeedFile { path, fingerprint, tree }
    };
    let blobs = manifest.blobs().iter().map(file).collect();
    Ok(SeedFiles { dir, config: built.config, blobs, manifest })
}

fn children(count: usize) -> String {
    if count == 1 { "1 child".to_owned() } else { format!("{count} children") }
}

/// How a peer ended, for people.
fn how(left: &Left) -> String {
    let (after, cut_off) = (text::seconds(left.after), children(left.cut_off));
    match left.because {
        LeftBecause::Told => format!("left after {after}: told again, {cut_off} cut off"),
        LeftBecause::Deadline => format!("left after {after}: the time is over, {cut_off} cut off"),
        _ => format!("left after {after}: nobody reads here any more"),
    }
}

/// Runs a scheduler.
pub(crate) fn scheduler(args: &SchedulerArgs, printer: &Printer) -> anyhow::Result<()> {
    let security = security(args.listen, &args.trust)?;
    if !args.scheduler.is_empty() && args.listen.ip().is_unspecified() && args.advertise.is_none() {
        let message = format!("`{}` is no address by which others reach this scheduler", args.listen);
        return Err(Refusal::usage(message).hint("name it with `--advertise HOST:PORT`").into());
    }
    access::runtime()?.block_on(async {
        let end = end_signal()?;
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on `{}`", args.listen))?;
        let listening = listener.local_addr()?.to_string();
        let peering = (!args.scheduler.is_empty()).then(|| scheduler::Peering {
            schedulers: Schedulers::new(&security, args.scheduler.clone()),
            advertised: args.advertise.clone().unwrap_or_else(|| listening.clone()),
        });
        let face = Face::bind(args.http_listen, &args.trust)?;
        let http = face.as_ref().map(|face| face.address.clone());
        let face = face.map(Face::listen).transpose()?;
        let record = args.record.as_ref().map(|file| {
            let opened = RecordFile::open(file, &security);
            opened.with_context(|| format!("cannot write a record to `{}`", file.display()))
        });
        let record = record.transpose()?;
        let options = scheduler::Options { security, peering, record, ..Default::default() };
        let metrics = Arc::clone(&options.metrics);
        let showing = async {
            match face {
                Some(face) => telemetry::serve(face, metrics).await,
                None => std::future::pending().await,
            }
        };
        printer.result(&Ready { listening, socket: None, http, oci: None, hub: None, seeds: Vec::new() })?;
        tokio::select! {
            served = scheduler::serve(listener, options, end) => Ok(served?),
            never = showing => match never {},
        }
    })
}

/// Who may speak to a process that listens there: without a key, only this machine (DESIGN §4).
pub(super) fn security(listen: SocketAddr, trust: &TrustArgs) -> anyhow::Result<Security> {
    if let Some(file) = &trust.fleet_key {
        return Ok(Security::Fleet(Identity::new(&FleetKey::load(file)?)?));
    }
    may_listen(listen, trust)?;
    Ok(Security::Plain)
}

fn may_listen(listen: SocketAddr, trust: &TrustArgs) -> anyhow::Result<()> {
    if trust.fleet_key.is_some() || trust.insecure || listen.ip().is_loopback() {
        return Ok(());
    }
    let message = format!("`{listen}` can be reached from other machines, and nothing is authenticated");
    let hint = "give every process of the fleet one key with `--fleet-key FILE`; see `modelctl fleet-key`";
    Err(Refusal::usage(message).hint(hint).into())
}

/// A socket for `/metrics` and `/healthz`. Whoever connects before something answers there waits.
pub(super) struct Face {
    listener: std::net::TcpListener,
    address: String,
}

impl Face {
    /// Opens it, if one is wanted. Without a key it is for this machine only, like all else.
    pub(super) fn bind(listen: Option<SocketAddr>, trust: &TrustArgs) -> anyhow::Result<Option<Self>> {
        let Some(listen) = listen else { return Ok(None) };
        may_listen(listen, trust)?;
        let listener = std::net::TcpListener::bind(listen);
        let listener = listener.with_context(|| format!("cannot listen on `{listen}`"))?;
        let address = listener.local_addr()?.to_string();
        Ok(Some(Self { listener, address }))
    }

    /// HOST:PORT.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The socket for the runtime that this is called in.
    pub(super) fn listen(self) -> anyhow::Result<TcpListener> {
        self.listener.set_nonblocking(true)?;
        Ok(TcpListener::from_std(self.listener)?)
    }
}

/// What a peer stands in for.
struct Mirror {
    upstreams: Vec<Upstream>,
    oci: Option<Face>,
    hub: Option<(Face, Models)>,
}

/// What the models of a hub are.
struct Models {
    rule: Option<Rule>,
    upstream: Option<Access>,
}

impl Mirror {
    /// Opens the sockets that are wanted.
    fn bind(args: &PeerArgs) -> anyhow::Result<Self> {
        let upstreams = access::upstreams(&args.mirror)?;
        let oci = Face::bind(args.mirror.oci_listen, &args.trust)?;
        let rule = args.mirror.hub_models.clone();
        if let Some(rule) =
            rule.as_ref().filter(|rule| upstreams.iter().all(|at| at.registry != rule.registry()))
        {
            let message = format!("`--hub-models` names `{}`, which is not mirrored", rule.registry());
            let hint = "give that registry with `--oci-upstream URL`, too";
            return Err(Refusal::usage(message).hint(hint).into());
        }
        let models = Models { rule, upstream: access::hub_upstream(&args.mirror)? };
        if args.mirror.hub_listen.is_some() && models.rule.is_none() && models.upstream.is_none() {
            let message = "`--hub-listen` needs to know what its models are";
            let hint =
                "artifacts of a registry: `--hub-models RULE`; those of another hub: `--hub-upstream URL`";
            return Err(Refusal::usage(message).hint(hint).into());
        }
        let hub = Face::bind(args.mirror.hub_listen, &args.trust)?.map(|face| (face, models));
        if !upstreams.is_empty() && oci.is_none() && hub.is_none() {
            let message = "`--oci-upstream` names registries, but nobody can ask this peer for them";
            let hint = "say where, with `--oci-listen ADDR` or `--hub-listen ADDR`";
            return Err(Refusal::usage(message).hint(hint).into());
        }
        Ok(Self { upstreams, oci, hub })
    }

    /// Where each can be reached.
    fn addresses(&self) -> (Option<String>, Option<String>) {
        let address = |face: &Face| face.address.clone();
        (self.oci.as_ref().map(address), self.hub.as_ref().map(|(face, _)| address(face)))
    }

    /// The sockets for the runtime that this is called in; `None` if there are none.
    fn listen(self) -> anyhow::Result<Option<MirrorOptions>> {
        let Self { upstreams, oci, hub } = self;
        if oci.is_none() && hub.is_none() {
            return Ok(None);
        }
        let oci = oci.map(Face::listen).transpose()?;
        let hub_face = |(face, Models { rule, upstream }): (Face, Models)| {
            Ok::<_, anyhow::Error>(HubFace { listener: face.listen()?, rule, upstream })
        };
        let hub = hub.map(hub_face).transpose()?;
        Ok(Some(MirrorOptions { upstreams, oci, hub }))
    }
}

/// What `fleet-key new` wrote.
#[derive(Debug, Serialize)]
struct NewKey {
    file: String,
    /// The fleet's name: it says nothing of the key.
    fleet: String,
}

impl fmt::Display for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrote the key of fleet {} to {}", self.fleet, self.file)
    }
}

/// Makes a fleet key.
pub(crate) fn fleet_key(args: &FleetKeyArgs, printer: &Printer) -> anyhow::Result<()> {
    let FleetKeyAction::New { file } = &args.action;
    let key = FleetKey::generate().context("the system gives no random bytes")?;
    key.save_new(file)?;
    let fleet = format!("{:016x}", key.fleet_name());
    printer.result(&NewKey { file: file.display().to_string(), fleet })
}

/// Being told to end. The handlers are in place from the start.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> anyhow::Result<Self> {
        let signal = |kind| signal(kind).context("cannot handle signals");
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ready when the process is told to end.
pub(super) fn end_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals = EndSignals::new()?;
    Ok(async move { signals.next().await })
}

pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
