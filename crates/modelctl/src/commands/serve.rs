//! `modelctl peer` and `modelctl scheduler`: processes that serve until they are told to end.
//!
//! Owns: their start, their signals, who may speak to them and what they print. Does not own: what they serve.

use std::{fmt, net::SocketAddr};

use anyhow::Context as _;
use identity::{FleetKey, Identity, Security};
use peer::{Left, LeftBecause, Peer, PeerOptions, PeerSecurity};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use wire::schedulers::Schedulers;

use crate::{
    access,
    cli::{FleetKeyAction, FleetKeyArgs, PeerArgs, SchedulerArgs, TrustArgs},
    printer::Printer,
    report::Refusal,
    text,
};

/// Said once, when the process is ready.
#[derive(Debug, Serialize)]
struct Ready {
    listening: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listening on {}", self.listening)?;
        match &self.socket {
            Some(socket) => write!(f, ", for pulls on this machine at {socket}"),
            None => Ok(()),
        }
    }
}

/// Runs a peer.
pub(crate) fn peer(args: &PeerArgs, printer: &Printer) -> anyhow::Result<()> {
    let control = security(args.listen, &args.trust)?;
    if args.listen.ip().is_unspecified() && args.advertise.is_none() {
        let message = format!("`{}` is no address by which others reach this peer", args.listen);
        return Err(Refusal::usage(message).hint("name one with `--advertise HOST`").into());
    }
    let data = if args.data_plain { Security::Plain } else { control.clone() };
    let options = PeerOptions {
        store: args.store.clone(),
        store_max: args.store_max.map(|size| size.0),
        socket: args.socket.clone(),
        listen: args.listen,
        schedulers: args.scheduler.clone(),
        nic_rate: args.nic_rate.map(|rate| rate.0),
        name: args.name.clone().unwrap_or_else(host_name),
        seed: args.seed.clone(),
        advertise: args.advertise.clone(),
        security: PeerSecurity { control, data },
    };
    access::runtime()?.block_on(async {
        let mut signals = EndSignals::new()?;
        let peer = Peer::start(options).await?;
        let socket = Some(args.socket.display().to_string());
        printer.result(&Ready { listening: peer.listening().to_string(), socket })?;
        let leaving = peer.run(signals.next()).await?;
        printer.note(format_args!("leaving: {}, at most {}", children(leaving.children()), args.drain));
        printer.note(how(&leaving.drain(args.drain.0, signals.next()).await));
        Ok(())
    })
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
        let options = scheduler::Options { security, peering, ..Default::default() };
        printer.result(&Ready { listening, socket: None })?;
        Ok(scheduler::serve(listener, options, end).await?)
    })
}

/// Who may speak to a process that listens there: without a key, only this machine (DESIGN §4).
pub(super) fn security(listen: SocketAddr, trust: &TrustArgs) -> anyhow::Result<Security> {
    if let Some(file) = &trust.fleet_key {
        return Ok(Security::Fleet(Identity::new(&FleetKey::load(file)?)?));
    }
    if listen.ip().is_loopback() || trust.insecure {
        return Ok(Security::Plain);
    }
    let message = format!("`{listen}` can be reached from other machines, and nothing is authenticated");
    let hint = "give every process of the fleet one key with `--fleet-key FILE`; see `modelctl fleet-key`";
    Err(Refusal::usage(message).hint(hint).into())
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
