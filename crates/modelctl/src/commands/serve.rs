//! `modelctl peer` and `modelctl scheduler`: processes that serve until they are told to end.
//!
//! Owns: their start, their signals and what they print. Does not own: what they serve.

use std::{fmt, net::SocketAddr};

use anyhow::Context as _;
use peer::{Peer, PeerOptions};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    access,
    cli::{PeerArgs, SchedulerArgs},
    printer::Printer,
    report::Refusal,
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
    refuse_strangers(args.listen, args.insecure)?;
    let options = PeerOptions {
        store: args.store.clone(),
        socket: args.socket.clone(),
        listen: args.listen,
        scheduler: args.scheduler.clone(),
        nic_rate: args.nic_rate.map(|rate| rate.0),
        name: args.name.clone().unwrap_or_else(host_name),
        seed: args.seed.clone(),
    };
    access::runtime()?.block_on(async {
        let end = end_signal()?;
        let peer = Peer::start(options).await?;
        let socket = Some(args.socket.display().to_string());
        printer.result(&Ready { listening: peer.listening().to_string(), socket })?;
        Ok(peer.run(end).await?)
    })
}

/// Runs a scheduler.
pub(crate) fn scheduler(args: &SchedulerArgs, printer: &Printer) -> anyhow::Result<()> {
    refuse_strangers(args.listen, args.insecure)?;
    access::runtime()?.block_on(async {
        let end = end_signal()?;
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on `{}`", args.listen))?;
        printer.result(&Ready { listening: listener.local_addr()?.to_string(), socket: None })?;
        Ok(scheduler::serve(listener, scheduler::Options::default(), end).await?)
    })
}

/// Until processes can prove that they belong to one fleet, only this machine may speak to them (DESIGN §4).
fn refuse_strangers(listen: SocketAddr, is_insecure: bool) -> anyhow::Result<()> {
    if listen.ip().is_loopback() || is_insecure {
        return Ok(());
    }
    let message = format!("`{listen}` can be reached from other machines, and nothing here is authenticated");
    let hint = "listen on 127.0.0.1, or add `--insecure` on a network that you trust";
    Err(Refusal::usage(message).hint(hint).into())
}

/// Ready when the process is told to end. The handlers are in place when this returns.
fn end_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let signal = |kind| signal(kind).context("cannot handle signals");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
