//! Peers that speak the real protocol and misbehave in one way each.
//!
//! Owns: what each does wrong, their process from start to end. Does not own: what honest peers make of it.
//!
//! A double joins as a holder of the whole artifact, so that plans make it a parent, or as one that can read the origin,
//! and serves links by hand.

mod exports;
mod reader;
mod service;
mod session;

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use identity::{FleetKey, Identity, ReaderKey, Security};
use modelpack::layout::PieceLayout;
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use transport::{Exports, tcp};

use self::reader::Claims;
use testbed::artifact::Artifact;

/// Threads of the data plane: a silent double holds one a read for ever, and so many reads it can be asked at once.
const DATA_THREADS: usize = 64;

/// What a double does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Behaviour {
    /// Nothing wrong: it serves what it says, and knows no feature of later versions
    Old,
    /// Sends other bytes than the artifact's
    WrongBytes,
    /// Announces everything and has nothing
    LiesHave,
    /// Grants, takes requests and never answers
    Silent,
    /// Serves rightly and says of every other peer that it sent wrong bytes
    Accuser,
    /// Reads the origin for others, vouches for other bytes than are there, and serves those
    LyingReader,
}

/// Be a misbehaving peer
#[derive(Debug, Args)]
pub(crate) struct DoubleArgs {
    /// What it does
    #[arg(long, value_enum)]
    pub(crate) behaviour: Behaviour,
    /// Its control address; the data plane takes a free port of the same host
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The schedulers
    #[arg(long, value_delimiter = ',')]
    pub(crate) scheduler: Vec<String>,
    /// The fleet's key
    #[arg(long)]
    pub(crate) fleet_key: PathBuf,
    /// Do not encrypt the data plane
    #[arg(long)]
    pub(crate) data_plain: bool,
    /// The layout whose artifact it pretends to have
    #[arg(long)]
    pub(crate) layout: PathBuf,
    /// The artifact's tag there
    #[arg(long)]
    pub(crate) tag: String,
}

/// What the parts of a double share.
pub(crate) struct Double {
    pub(crate) behaviour: Behaviour,
    /// What it vouches with, and its name.
    pub(crate) key: ReaderKey,
    pub(crate) control_address: String,
    pub(crate) schedulers: Vec<String>,
    pub(crate) control: Security,
    pub(crate) is_data_encrypted: bool,
    pub(crate) artifact: Artifact,
    pub(crate) layout: PieceLayout,
    pub(crate) claims: watch::Sender<Claims>,
    pub(crate) tcp: tcp::Server,
    /// Of each blob.
    pub(crate) handles: Vec<u64>,
    pub(crate) seen: Arc<Seen>,
}

/// What came of it, for the report.
#[derive(Default)]
pub(crate) struct Seen {
    /// Reads that children asked for.
    pub(crate) asked: AtomicU64,
    /// Complaints that were said.
    pub(crate) complaints: AtomicU64,
    /// Secrets of its data links.
    pub(crate) secrets: Mutex<Vec<String>>,
}

/// Runs until it is told to end; prints a line when it is ready, and what happened at the end.
pub(crate) fn run(args: &DoubleArgs) -> anyhow::Result<()> {
    let mut data = tokio::runtime::Builder::new_multi_thread();
    let data = data.worker_threads(DATA_THREADS).enable_all().build()?;
    let control = Runtime::new()?;
    let double = Arc::new(data.block_on(Double::new(args))?);
    let tcp = double.tcp.clone();
    data.spawn(async move { tcp.run(std::future::pending()).await });
    let told = control.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let listener = TcpListener::bind(args.listen).await?;
        let serving = tokio::spawn(service::serve(listener, Arc::clone(&double)));
        let session = tokio::spawn(session::run(Arc::clone(&double)));
        say(&json!({ "listening": double.control_address, "peer": hex::encode(double.key.id()) }))?;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            served = serving => served??,
            never = session => never?,
        }
        anyhow::Ok(())
    });
    say(&double.report())?;
    // Threads that are silent for ever are not waited for.
    data.shutdown_background();
    told
}

impl Double {
    async fn new(args: &DoubleArgs) -> anyhow::Result<Self> {
        let control = Security::Fleet(Identity::new(&FleetKey::load(&args.fleet_key)?)?);
        let data = if args.data_plain { Security::Plain } else { control.clone() };
        let artifact = Artifact::read(&args.layout, &args.tag)?;
        let seen = Arc::new(Seen::default());
        let exports = Exports::new();
        let mut handles = Vec::new();
        for blob in &artifact.blobs {
            handles.push(exports.register(exports::export(args.behaviour, blob, Arc::clone(&seen))?));
        }
        let tcp = tcp::Server::bind(SocketAddr::new(args.listen.ip(), 0), exports, data).await?;
        let layout = PieceLayout::new(artifact.blobs.iter().map(|blob| blob.bytes).collect())?;
        let claims = match args.behaviour {
            Behaviour::LyingReader => Claims::default(),
            _ => Claims::everything(&layout),
        };
        Ok(Self {
            behaviour: args.behaviour,
            key: ReaderKey::generate()?,
            control_address: args.listen.to_string(),
            schedulers: args.scheduler.clone(),
            control,
            is_data_encrypted: !args.data_plain,
            artifact,
            layout,
            claims: watch::Sender::new(claims),
            tcp,
            handles,
            seen,
        })
    }

    /// The feature bits that it says it knows.
    pub(crate) fn features(&self) -> u64 {
        if self.behaviour == Behaviour::Old { 0 } else { wire::FEATURES }
    }

    fn report(&self) -> serde_json::Value {
        let claims = self.claims.borrow();
        let vouched = claims.pieces.iter().filter(|(_, voucher)| voucher.is_some());
        let vouched_bytes: u64 = vouched.map(|(piece, _)| self.layout.piece_bytes(*piece)).sum();
        json!({
            "vouched_bytes": vouched_bytes,
            "sent_bytes": self.tcp.sent_bytes(),
            "asked": self.seen.asked.load(Ordering::Relaxed),
            "complaints": self.seen.complaints.load(Ordering::Relaxed),
            "secrets": *self.seen.secrets.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }
}

fn say(line: &serde_json::Value) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}
