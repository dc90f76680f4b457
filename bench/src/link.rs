//! `bench link`: one sender, one receiver, one data link, beside what else moves bytes between the two.
//!
//! Owns: the network, the order of runs, the result. Does not own: either side (`sender`, `receiver`), iperf3 (`iperf`),
//! links over RDMA (`rdma`).

mod iperf;
mod rdma;
mod receiver;
mod result;
mod runs;
mod sender;

use std::{fs, io::Write as _, num::NonZeroU32};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use identity::{FleetKey, Identity, KEY_BYTES, Security};
use modelpack::{
    layout::{BlobPiece, PIECE_BYTES, PIECES_MAX},
    piece_tree::TreeBuilder,
    quantity::{Rate, Size},
};
use serde::Serialize;
use testbed::{
    maker::Maker,
    netns,
    scratch::{self, Medium},
    stage,
};
use tokio::runtime::{Builder, Runtime};

pub(crate) use self::{
    rdma::{RdmaReceiverArgs, ServeArgs, receive as receive_rdma, serve as serve_rdma},
    receiver::{ReceiverArgs, run as receive},
    sender::{SenderArgs, run as send},
};
use self::{result::LinkResult, runs::Lab};
use crate::{TOOL, output::OutputArgs};

/// Reads outstanding on a link, as a peer grants them.
const IN_FLIGHT: usize = 16;

/// Threads of the runtime on each side, as modelctl has them.
const WORKERS: usize = 2;

/// The key of the fleet that consists of the two sides; nothing else is on their network.
const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

/// Memory beside the file and its copy.
const ROOM_BYTES: u64 = 256 << 20;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Between two network namespaces
    Tcp,
    /// Within one process, without a network
    Memory,
    /// Between two processes on one RDMA device, or from another machine
    Rdma,
}

/// Whether pieces are checked before they land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    On,
    Off,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Where the file lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dest {
    Tmpfs,
    Disk,
}

/// How the two sides talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Securing {
    /// A data link with the fleet's TLS
    Tls,
    /// A data link without, as with `--data-plain`
    Plain,
    /// No data link: a socket, and nothing else
    Bare,
}

impl Securing {
    fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Plain => "plain",
            Self::Bare => "bare",
        }
    }

    fn security(self) -> anyhow::Result<Security> {
        match self {
            Self::Tls => Ok(Security::Fleet(Identity::new(&FleetKey::new(KEY))?)),
            Self::Plain | Self::Bare => Ok(Security::Plain),
        }
    }
}

/// Measure one data link: bytes per second, CPU, system calls, latency of pieces
///
/// Everything runs alternately in one call: the link with TLS and without, iperf3, and a socket whose receiver only
/// hashes what comes.
#[derive(Clone, Debug, Args)]
pub(crate) struct LinkArgs {
    /// The engine
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// Whether pieces are checked before they land
    #[arg(long, value_enum, default_value = "on")]
    check: Check,
    /// Where the file lands
    #[arg(long, value_enum, default_value = "tmpfs")]
    dest: Dest,
    /// The file's size
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// How often each is measured
    #[arg(long, default_value = "5")]
    runs: NonZeroU32,
    /// What the network cards do; without it, what they can
    #[arg(long)]
    rate: Option<Rate>,
    #[command(flatten)]
    rdma: rdma::RdmaArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures it.
pub(crate) fn run(args: &LinkArgs) -> anyhow::Result<()> {
    check_size(args.size)?;
    ensure!(
        args.transport == Transport::Tcp || args.rate.is_none(),
        "without a network there is no rate: leave out `--rate`"
    );
    ensure!(
        args.transport == Transport::Rdma || !args.rdma.is_asked_for(),
        "`--landing`, `--from` and `--read-bw` are for `--transport rdma`"
    );
    let maker = Maker::this(TOOL);
    if args.transport == Transport::Tcp {
        netns::probe(maker).context("cannot make a network")?;
    }
    let job = args.clone();
    let result = stage::run(maker, move || measure(&job, maker))?;
    args.output.print(&result)
}

/// Whether a file can be of that size.
fn check_size(size: Size) -> anyhow::Result<()> {
    let bytes = size.0;
    ensure!(bytes > 0 && bytes.div_ceil(PIECE_BYTES) <= PIECES_MAX, "no file of {bytes} bytes can be sent");
    Ok(())
}

fn measure(args: &LinkArgs, maker: Maker) -> anyhow::Result<LinkResult> {
    let bytes = args.size.0;
    let copies = if args.dest == Dest::Tmpfs { 2 } else { 1 };
    ensure!(
        Medium::with_room(copies * bytes + ROOM_BYTES)? == Medium::Memory,
        "there is not enough memory for {copies} × {bytes} bytes: choose a smaller `--size`"
    );
    let dir = scratch::make(maker, Medium::Memory)?;
    let dest = match args.dest {
        Dest::Tmpfs => dir.clone(),
        Dest::Disk => scratch::make(maker, Medium::Disk)?,
    };
    let path = dir.join("sent.bin");
    let lab = Lab::new(args, (dir, dest, path.clone()), maker)?;
    if args.transport == Transport::Rdma {
        return rdma::measure(&lab, args);
    }
    let mut file = fs::File::create(&path)?;
    fs::write(path.with_extension("tree"), write_noise(&mut file, bytes)?)?;
    let (rows, skipped) = lab.measure(args.runs)?;
    Ok(LinkResult::new(args, rows, skipped))
}

/// Writes noise, and gives the root and the values of its piece tree.
fn write_noise(file: &mut fs::File, bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut tree = TreeBuilder::new(bytes);
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES)?];
    let mut left = bytes;
    for piece in (0..).map(BlobPiece) {
        if left == 0 {
            break;
        }
        stage::goes_on()?;
        let piece_bytes = &mut buffer[..usize::try_from(left.min(PIECE_BYTES))?];
        noise.fill(piece_bytes);
        tree.add(piece, piece_bytes);
        file.write_all(piece_bytes)?;
        left -= piece_bytes.len() as u64;
    }
    let tree = tree.finish().context("every piece was added")?;
    Ok([&tree.root().bytes()[..], &tree.serialise()].concat())
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?)
}

/// What this process has used of the CPU so far, in seconds.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (seconds, nanos) = (spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs());
    std::time::Duration::from_secs(seconds).as_secs_f64()
        + std::time::Duration::from_nanos(nanos).as_secs_f64()
}

/// Says something to the process that started this one.
fn say<T: Serialize>(what: &T) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}
