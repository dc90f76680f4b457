//! The sending side of `bench link`, a process of its own.
//!
//! Owns: serving one file until it is told to end, and what that took. Does not own: the engine (crate `transport`).

use std::{
    fs::File,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener},
    ops::Range,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use transport::{Export, Exports, tcp::Server};

use super::{Securing, cpu_seconds, runtime, say};

/// Most bytes that the bare sender hands over at once, as the product's does.
const SEND_CALL_BYTES_MAX: usize = 256 << 10;

/// Serve one file over one data link until SIGTERM
#[derive(Debug, Args)]
pub(crate) struct SenderArgs {
    /// The file
    file: PathBuf,
    /// Where to listen
    listen: IpAddr,
    /// How the link is secured
    securing: Securing,
}

/// What the receiver has to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) pid: u32,
    pub(super) address: SocketAddr,
    pub(super) link: u64,
    pub(super) secret: String,
    pub(super) window: u64,
}

/// What a side of a link used.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Used {
    pub(super) cpu_s: f64,
}

/// A file that is all there.
pub(super) struct WholeFile {
    file: File,
    bytes: u64,
}

impl WholeFile {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl Export for WholeFile {
    fn file(&self) -> &File {
        &self.file
    }

    fn is_readable(&self, _: Range<u64>) -> bool {
        true
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Serves it.
pub(crate) fn run(args: &SenderArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let export = WholeFile::open(&args.file)?;
    let listen = SocketAddr::new(args.listen, 0);
    match args.securing {
        Securing::Bare => serve_bare(&export, listen)?,
        Securing::Plain | Securing::Tls => serve(export, listen, args.securing)?,
    }
    say(&Used { cpu_s: cpu_seconds() })
}

fn serve(export: WholeFile, listen: SocketAddr, securing: Securing) -> anyhow::Result<()> {
    let exports = Exports::new();
    let window = exports.register(Arc::new(export));
    runtime()?.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let server = Server::bind(listen, exports, securing.security()?).await?;
        let (link, secret) = server.issue_link();
        let secret = blake3::Hash::from_bytes(secret).to_hex().to_string();
        say(&Offer { pid: process::id(), address: server.local_addr(), link, secret, window })?;
        server
            .run(async move {
                term.recv().await;
            })
            .await;
        Ok(())
    })
}

/// The least that sends a file: one connection, `sendfile`, no requests.
fn serve_bare(export: &WholeFile, listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)?;
    say(&Offer {
        pid: process::id(),
        address: listener.local_addr()?,
        link: 0,
        secret: String::new(),
        window: 0,
    })?;
    let (mut socket, _) = listener.accept()?;
    let mut offset = 0;
    while offset < export.bytes {
        let sent = rustix::fs::sendfile(
            socket.as_fd(),
            export.file.as_fd(),
            Some(&mut offset),
            SEND_CALL_BYTES_MAX,
        )?;
        anyhow::ensure!(sent > 0, "the file has become shorter");
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    // Until the receiver hangs up, or this process is told to end.
    let _ = socket.read(&mut [0]);
    Ok(())
}
