//! The receiving side of a link over RDMA, a process of its own.
//!
//! Owns: the way to a link, and what is registered for its reads. Does not own: the reads (`receiver`).

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use memory::{Access, Pool, Region};
use modelpack::{
    digest::Blake3Root,
    piece_tree::{Anchored, PieceTree},
};
use rustix::{
    fs::{FallocateFlags, fallocate},
    process::{Signal, set_parent_process_death_signal},
};
use transport_rdma::{Rdma, RdmaLink, Registration};

use super::{
    LandingKind, RdmaReceived, ShapeArgs,
    exchange::{Answer, Cost, Done, Exchange, Hello, Welcome, endpoints},
};
use crate::link::{
    Check,
    receiver::{Buffers, Event, Place, Pull, completion_sink, piece_bytes},
    result::RdmaNote,
    say,
};

/// Receive one file over one link of RDMA
#[derive(Debug, Args)]
pub(crate) struct RdmaReceiverArgs {
    /// The directory where it lands, which is made
    dir: PathBuf,
    /// Whether pieces are checked
    check: Check,
    /// How they reach the file
    landing: LandingKind,
    /// Where the sender listens
    address: String,
    #[command(flatten)]
    shape: ShapeArgs,
}

/// Receives it.
pub(crate) fn run(args: &RdmaReceiverArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let stream = TcpStream::connect(&args.address)
        .with_context(|| format!("nobody listens on {}: start `bench link-serve` there", args.address))?;
    let mut exchange = Exchange::new(stream)?;
    let rdma = args.shape.open()?;
    let (events, heard) = mpsc::channel();
    let in_flight = usize::from(args.shape.qps) * usize::from(args.shape.outstanding);
    let (link, welcome) = connect(&rdma, &mut exchange, in_flight, &events)?;
    let rails = rdma.rails();
    let note = RdmaNote {
        rails: rails.iter().map(|rail| format!("{}/{}", rail.name, rail.port)).collect(),
        mtu_bytes: rails.iter().map(|rail| rail.mtu_bytes).min().unwrap_or_default(),
        qps: args.shape.qps,
        outstanding: args.shape.outstanding,
        work_bytes: args.shape.work_size.0,
        landing: args.landing.name().to_owned(),
        checked: args.check == Check::On,
        register_seconds: 0.0,
    };
    let begin = Instant::now();
    let (place, buffers, registration) = prepare(args, &rdma, &welcome)?;
    let note = RdmaNote { register_seconds: begin.elapsed().as_secs_f64(), ..note };
    let pull = Pull {
        link,
        window: welcome.handle,
        bytes: welcome.bytes,
        in_flight,
        buffers,
        place: Arc::new(place),
        events,
        heard,
    };
    let received = pull.run()?;
    // The link goes before the memory that it writes.
    drop(pull);
    drop(registration);
    exchange.say(&Done)?;
    let Cost { cpu_s } = exchange.hear()?;
    say(&RdmaReceived { received, sender_cpu_s: Some(cpu_s), note })
}

/// Hello, answer, first read.
fn connect(
    rdma: &Rdma,
    exchange: &mut Exchange,
    in_flight: usize,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<(Arc<RdmaLink>, Welcome)> {
    let offer = rdma.offer(in_flight, completion_sink(events))?;
    exchange.say(&Hello { endpoints: offer.endpoints().into_iter().map(Into::into).collect() })?;
    let mut welcome = match exchange.hear()? {
        Answer::Welcome(welcome) => welcome,
        Answer::Refusal(why) => bail!("the sender refuses: {why}"),
    };
    let answer = endpoints(std::mem::take(&mut welcome.endpoints))?;
    let probe = std::mem::take(&mut welcome.probe).into();
    let link = offer.connect(&answer, &probe).map_err(|error| match error.hint() {
        Some(hint) => anyhow::Error::new(error).context(format!("there is no link ({hint})")),
        None => anyhow::Error::new(error).context("there is no link"),
    })?;
    for window in std::mem::take(&mut welcome.windows) {
        link.grant(welcome.handle, window.into())?;
    }
    Ok((link, welcome))
}

/// The file, and the memory that reads write: its own pages, or a pool's.
fn prepare(
    args: &RdmaReceiverArgs,
    rdma: &Rdma,
    welcome: &Welcome,
) -> anyhow::Result<(Place, Buffers, Vec<Registration>)> {
    let tree = (args.check == Check::On).then(|| tree(welcome)).transpose()?;
    match args.landing {
        LandingKind::Direct => {
            let file = make_file(&args.dir, welcome.bytes)?;
            let region = Region::map(&file, usize::try_from(welcome.bytes)?, Access::ReadWrite)?;
            // No registration is longer than a window, as in a pull.
            let step = usize::try_from(transport_rdma::WINDOW_BYTES)?;
            let starts = (0..region.len()).step_by(step);
            let register = |start: usize| rdma.register(&region, start..region.len().min(start + step));
            let registrations = starts.map(register).collect::<Result<_, _>>()?;
            let place = tree.map_or(Place::Nothing, Place::There);
            Ok((place, Buffers::InPlace(region), registrations))
        }
        LandingKind::Staged => {
            let place = match tree {
                Some(tree) => Place::checked(&args.dir, tree)?,
                None => Place::unchecked(&args.dir, welcome.bytes)?,
            };
            let pool = Pool::new(crate::link::receiver::BUFFERS, piece_bytes())?;
            let registration = rdma.register(pool.region(), 0..pool.region().len())?;
            Ok((place, Buffers::Pool(pool), vec![registration]))
        }
    }
}

fn make_file(dir: &Path, bytes: u64) -> anyhow::Result<File> {
    fs::create_dir_all(dir)?;
    let file = File::options().read(true).write(true).create_new(true).open(dir.join("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    Ok(file)
}

fn tree(welcome: &Welcome) -> anyhow::Result<PieceTree<Anchored>> {
    let serialised = hex::decode(&welcome.tree).context("the sender's tree is no hex")?;
    let (root, values) = serialised.split_first_chunk().context("a tree begins with its root")?;
    Ok(PieceTree::anchor(welcome.bytes, Blake3Root::new(*root), values)?)
}
