//! `bench link --transport rdma`: a sender and a receiver that are two processes, on one device or on two machines.
//!
//! Owns: the flags, starting both sides, the order of runs. Does not own: the sides (`serve`, `receive`), what they tell
//! each other (`exchange`), the ruler (`read_bw`).

mod exchange;
mod read_bw;
mod receive;
mod serve;

use std::{net::SocketAddr, process::Command};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use modelpack::{layout::PIECE_BYTES, quantity::Size};
use serde::{Deserialize, Serialize};
use testbed::{process::Process, program::path, stage};
use transport_rdma::{Options, Rdma, Shape};

pub(crate) use self::{
    receive::{RdmaReceiverArgs, run as receive},
    serve::{ServeArgs, run as serve},
};
use super::{
    Check, Dest, LinkArgs,
    receiver::Received,
    result::{LinkResult, RdmaNote, Row, Skipped},
    runs::{Lab, Measured, Variant},
};
use crate::output::tell;

/// Both ends pin what they move; the machine's own limits are lower.
const PINNED_BYTES_MAX: u64 = 1 << 40;

/// How pieces reach the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LandingKind {
    /// The card writes the file's own pages
    Direct,
    /// Into a buffer, and from there to the file
    Staged,
}

impl LandingKind {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Staged => "staged",
        }
    }
}

/// What a link is made of. The defaults are the product's.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "RDMA")]
pub(crate) struct ShapeArgs {
    /// The device, the only one if there is one
    #[arg(long, env = "MODELCAST_RDMA_DEVICE")]
    device: Option<String>,
    /// QPs of the link
    #[arg(long, default_value = "2", value_parser = clap::value_parser!(u8).range(1..=8))]
    qps: u8,
    /// Work requests outstanding on a QP
    #[arg(long, default_value = "16", value_parser = clap::value_parser!(u8).range(1..=16))]
    outstanding: u8,
    /// Longest work request
    #[arg(long, default_value = "1MiB")]
    work_size: Size,
}

impl ShapeArgs {
    fn open(&self) -> anyhow::Result<Rdma> {
        let shape = Shape {
            qps_a_rail: self.qps.into(),
            works_a_qp_max: self.outstanding,
            work_bytes_max: usize::try_from(self.work_size.0)?,
        };
        let devices = self.device.iter().cloned().collect();
        let options = Options { devices, pinned_bytes_max: PINNED_BYTES_MAX };
        Rdma::open_shaped(&options, shape).map_err(|unavailable| match unavailable.hint() {
            Some(hint) => {
                anyhow::Error::new(unavailable).context(format!("RDMA cannot be used here ({hint})"))
            }
            None => anyhow::Error::new(unavailable).context("RDMA cannot be used here"),
        })
    }

    /// The same as arguments.
    fn to_args(&self) -> Vec<String> {
        let mut args = vec![format!("--qps={}", self.qps), format!("--outstanding={}", self.outstanding)];
        args.push(format!("--work-size={}", self.work_size.0));
        args.extend(self.device.iter().map(|device| format!("--device={device}")));
        args
    }
}

/// What only a link over RDMA has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "RDMA")]
pub(crate) struct RdmaArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    /// How pieces reach the file [default: direct on tmpfs, staged on disk]
    #[arg(long, value_enum)]
    landing: Option<LandingKind>,
    /// The sender is `bench link-serve` there, on another machine
    #[arg(long, value_name = "HOST:PORT")]
    from: Option<String>,
    /// Measure `ib_read_bw` in turns, with as many QPs and outstanding reads of the same size
    #[arg(long, conflicts_with = "from")]
    read_bw: bool,
}

impl RdmaArgs {
    /// Whether it says anything that means nothing elsewhere.
    pub(super) fn is_asked_for(&self) -> bool {
        self.landing.is_some() || self.from.is_some() || self.read_bw
    }

    /// How pieces reach the file; an error says what cannot be.
    pub(super) fn landing(&self, dest: Dest) -> anyhow::Result<LandingKind> {
        ensure!(
            (1..=PIECE_BYTES).contains(&self.shape.work_size.0),
            "a work request carries a byte to a MiB"
        );
        match (self.landing, dest) {
            (Some(LandingKind::Direct), Dest::Disk) => {
                anyhow::bail!("no card writes the pages of a file on disk: leave out `--landing direct`")
            }
            (Some(landing), _) => Ok(landing),
            (None, Dest::Tmpfs) => Ok(LandingKind::Direct),
            (None, Dest::Disk) => Ok(LandingKind::Staged),
        }
    }
}

/// Everything so often, alternately.
pub(super) fn measure(lab: &Lab, args: &LinkArgs) -> anyhow::Result<LinkResult> {
    let rdma = &args.rdma;
    let landing = rdma.landing(args.dest)?;
    let mut skipped = Vec::new();
    let has_ruler = rdma.read_bw
        && read_bw::probe().inspect_err(|why| skipped.push(Skipped::new("ib_read_bw", why))).is_ok();
    let sender = rdma.from.is_none().then(|| Sender::start(lab, &rdma.shape)).transpose()?;
    let address = rdma
        .from
        .clone()
        .or_else(|| sender.as_ref().map(|sender| sender.address.to_string()))
        .context("a sender is somewhere")?;
    let (mut links, mut rulers, mut note) = (Vec::new(), Vec::new(), None);
    for run in 1..=args.runs.get() {
        tell(&format!("run {run} of {}: rdma", args.runs));
        stage::goes_on()?;
        let received = run_one(lab, args, landing, &address).context("rdma")?;
        note = Some(received.note);
        links.push(Measured::of(received.received, received.sender_cpu_s));
        if has_ruler {
            tell(&format!("run {run} of {}: ib_read_bw", args.runs));
            rulers.push(read_bw::run(&rdma.shape, lab.bytes(), lab.dir(), lab.patience())?);
        }
    }
    drop(sender);
    let mut rows = vec![Row::new(Variant::Rdma, &links)];
    if has_ruler {
        rows.push(Row::new(Variant::ReadBw, &rulers));
    }
    Ok(LinkResult::new(args, rows, skipped).with_note(note.context("there was a run")?))
}

/// What a receiver says when it is done.
#[derive(Debug, Serialize, Deserialize)]
struct RdmaReceived {
    received: Received,
    sender_cpu_s: Option<f64>,
    note: RdmaNote,
}

fn run_one(lab: &Lab, args: &LinkArgs, landing: LandingKind, address: &str) -> anyhow::Result<RdmaReceived> {
    let dir = lab.landing_dir()?;
    let mut command = Command::new(this());
    command.args(["link-rdma-receiver", path(&dir), Check::name(args.check), landing.name(), address]);
    command.args(args.rdma.shape.to_args());
    let received: RdmaReceived = lab.finish(command, "receiver")?;
    let bytes = received.received.bytes;
    ensure!(bytes == lab.bytes(), "the sender's file has {bytes} bytes: say `--size {bytes}`");
    Ok(received)
}

/// The sending process on this machine. It ends when this value does.
struct Sender {
    address: SocketAddr,
    _process: Process,
}

/// What it says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Serves {
    address: SocketAddr,
}

impl Sender {
    fn start(lab: &Lab, shape: &ShapeArgs) -> anyhow::Result<Self> {
        let mut command = Command::new(this());
        // Its stdin ends with this process, however that ends.
        command.args(["link-serve", "--until-stdin-ends", "--listen", "127.0.0.1:0"]);
        command.arg(format!("--size={}", lab.bytes())).args(shape.to_args());
        let mut process = Process::start_listening(command, lab.dir(), "sender")?;
        let Serves { address } = serde_json::from_value(process.ready()?)?;
        Ok(Self { address, _process: process })
    }
}

/// This program, by a name that another process can start.
fn this() -> String {
    format!("/proc/{}/exe", std::process::id())
}
