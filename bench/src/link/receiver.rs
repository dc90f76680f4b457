//! The receiving side of `bench link`, a process of its own, as a peer does it: reads in flight, threads that check
//! and land.
//!
//! Owns: the reads, the threads, what it took. Does not own: the engine (crate `transport`), landing (crate `store`).

use std::{
    fs::{self, File},
    io::Read as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use memory::{Filled, Lease, Pool, Region};
use modelpack::{
    digest::{Blake3Root, Sha256Digest},
    layout::{BlobIndex, BlobPiece, PIECE_BYTES, PieceIndex, PieceLayout},
    piece_tree::{Anchored, Landed, PieceTree},
};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use store::Landing;
use transport::{
    Completion, CompletionSink, Exports, Link, ReadRequest,
    memory::MemoryLink,
    tcp::{self, Target},
};

use super::{Check, IN_FLIGHT, Securing, cpu_seconds, runtime, say, sender::WholeFile};

/// Buffers of one piece, as a peer has them.
pub(super) const BUFFERS: usize = 64;

/// No read takes this long on any network that is measured.
const PATIENCE: Duration = Duration::from_mins(2);

/// Receive one file over one data link
#[derive(Debug, Args)]
pub(crate) struct ReceiverArgs {
    /// The sent file, beside which `.tree` is its piece tree; its bytes are read only without a network
    file: PathBuf,
    /// The directory where it lands, which is made
    dir: PathBuf,
    /// How the link is secured
    securing: Securing,
    /// Whether pieces are checked
    check: Check,
    /// Where the sender is; without it, both sides are this process
    #[arg(long, requires_all = ["link", "secret", "window"])]
    address: Option<SocketAddr>,
    /// The link's number
    #[arg(long)]
    link: Option<u64>,
    /// The link's secret
    #[arg(long)]
    secret: Option<String>,
    /// The file's handle
    #[arg(long)]
    window: Option<u64>,
}

/// What was received.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) bytes: u64,
    /// From the first read to the last piece that landed, synced where that is needed.
    pub(super) seconds: f64,
    pub(super) cpu_s: f64,
    /// From a read's start to its end, and to when its piece has landed.
    pub(super) read_us: Vec<u64>,
    pub(super) piece_us: Vec<u64>,
}

/// Receives it.
pub(crate) fn run(args: &ReceiverArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let bytes = fs::metadata(&args.file)?.len();
    if args.securing == Securing::Bare {
        let address = args.address.context("the bare kind needs a network")?;
        return say(&receive_bare(address, bytes)?);
    }
    let place = Arc::new(Place::of(args, bytes)?);
    let (events, heard) = mpsc::channel();
    let sink = completion_sink(&events);
    let runtime = runtime()?;
    let over = Arc::new(AtomicBool::new(false));
    let (link, window): (Arc<dyn Link>, u64) = match args.address {
        None => in_memory(&args.file, sink, Arc::clone(&over))?,
        Some(address) => {
            let (address, security) = (address.to_string(), args.securing.security()?);
            let secret = args.secret.as_deref().context("a link has a secret")?;
            let secret = *blake3::Hash::from_hex(secret)?.as_bytes();
            let link = args.link.context("a link has a number")?;
            let target = Target { address: &address, link, secret: &secret, security: &security };
            let link = runtime.block_on(tcp::connect(target, IN_FLIGHT, sink))?;
            (link, args.window.context("a file has a handle")?)
        }
    };
    let buffers = Buffers::Pool(Pool::new(BUFFERS, piece_bytes())?);
    let pull = Pull { link, window, bytes, in_flight: IN_FLIGHT, buffers, place, events, heard };
    let received = pull.run();
    over.store(true, Ordering::Relaxed);
    say(&received?)
}

/// Tells the loop of each read that ends.
pub(super) fn completion_sink(events: &Sender<Event>) -> CompletionSink {
    let events = events.clone();
    // Whoever hears it ends first only where the run has failed.
    Arc::new(move |completion| drop(events.send(Event::Ended(completion, Instant::now()))))
}

/// A link whose engine has a thread of this process.
fn in_memory(
    path: &Path,
    sink: CompletionSink,
    over: Arc<AtomicBool>,
) -> anyhow::Result<(Arc<dyn Link>, u64)> {
    let exports = Exports::new();
    let window = exports.register(Arc::new(WholeFile::open(path)?));
    let link = MemoryLink::new(exports, IN_FLIGHT, sink);
    let engine = Arc::clone(&link);
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            if !engine.step(Instant::now()) {
                thread::yield_now();
            }
        }
    });
    Ok((link, window))
}

pub(super) fn piece_bytes() -> usize {
    usize::try_from(PIECE_BYTES).expect("a piece fits memory")
}

/// The least that receives and checks: one thread, one buffer, BLAKE3 of the whole, nothing kept.
fn receive_bare(address: SocketAddr, bytes: u64) -> anyhow::Result<Received> {
    let mut socket = TcpStream::connect(address)?;
    let begin = Instant::now();
    let (mut hasher, mut buffer, mut left) = (blake3::Hasher::new(), vec![0; piece_bytes()], bytes);
    while left > 0 {
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        socket.read_exact(&mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        left -= count as u64;
    }
    // Otherwise nobody had to compute it.
    std::hint::black_box(hasher.finalize());
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Received { bytes, seconds, cpu_s: cpu_seconds(), read_us: Vec::new(), piece_us: Vec::new() })
}

/// Where pieces land.
pub(super) enum Place {
    /// Checked, and journaled, as a pull does it.
    Checked { tree: PieceTree<Anchored>, landing: Box<Landing> },
    /// Only written where they belong.
    Unchecked { file: File, is_synced: bool },
    /// They are there; checked.
    There(PieceTree<Anchored>),
    /// They are there, and nobody looks.
    Nothing,
}

impl Place {
    fn of(args: &ReceiverArgs, bytes: u64) -> anyhow::Result<Self> {
        match args.check {
            Check::On => {
                let serialised = fs::read(args.file.with_extension("tree"))?;
                let (root, values) = serialised.split_first_chunk().context("a tree begins with its root")?;
                Self::checked(&args.dir, PieceTree::anchor(bytes, Blake3Root::new(*root), values)?)
            }
            Check::Off => Self::unchecked(&args.dir, bytes),
        }
    }

    pub(super) fn checked(dir: &Path, tree: PieceTree<Anchored>) -> anyhow::Result<Self> {
        let layout = PieceLayout::new(vec![tree.blob_bytes()])?;
        let landing = Landing::open(dir, &layout, &Sha256Digest::of(tree.root().bytes()))?;
        landing.preallocate()?;
        Ok(Self::Checked { tree, landing: Box::new(landing) })
    }

    pub(super) fn unchecked(dir: &Path, bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let file = File::create(dir.join("file"))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        let is_synced = store::filesystem_of(dir)? != store::FsKind::Tmpfs;
        Ok(Self::Unchecked { file, is_synced })
    }

    fn land(&self, piece: PieceIndex, bytes: Filled) -> anyhow::Result<()> {
        match self {
            Self::Checked { tree, landing } => {
                let landed = Landed::new(landing.layout().span(piece).in_blob, bytes);
                let Ok(verified) = tree.verify(landed) else { bail!("piece {piece} is not what was sent") };
                Ok(landing.commit(piece, &verified)?)
            }
            Self::Unchecked { file, .. } => Ok(file.write_all_at(&bytes, u64::from(piece.0) * PIECE_BYTES)?),
            Self::There(tree) => match tree.verify(Landed::new(BlobPiece(piece.0), bytes)) {
                Ok(_) => Ok(()),
                Err(_) => bail!("piece {piece} is not what was sent"),
            },
            Self::Nothing => Ok(()),
        }
    }

    fn finish(&self) -> anyhow::Result<()> {
        match self {
            Self::Checked { landing, .. } => {
                ensure!(landing.verified().is_full(), "not every piece has landed");
                Ok(landing.sync_blob(BlobIndex(0))?)
            }
            Self::Unchecked { file, is_synced: true } => Ok(file.sync_data()?),
            Self::Unchecked { .. } | Self::There(_) | Self::Nothing => Ok(()),
        }
    }

    /// Whether a piece is done as soon as it is there.
    fn is_instant(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// What reads write.
pub(super) enum Buffers {
    /// Any of a pool's.
    Pool(Arc<Pool>),
    /// The file's own pages.
    InPlace(Arc<Region>),
}

impl Buffers {
    /// The memory for so many bytes of the file, if there is any now.
    fn lease(&self, offset: u64, len: usize) -> anyhow::Result<Option<Lease>> {
        match self {
            Self::Pool(pool) => Ok(pool.try_lease(len)),
            Self::InPlace(region) => {
                let start = usize::try_from(offset)?;
                Ok(Some(region.lease(start..start + len).context("a piece is read once")?))
            }
        }
    }
}

/// What the loop hears.
pub(super) enum Event {
    Ended(Completion, Instant),
    Landed(u64, Instant, anyhow::Result<()>),
}

/// A piece for the threads.
type Job = (u64, Filled);

/// All reads of one file.
pub(super) struct Pull {
    pub(super) link: Arc<dyn Link>,
    pub(super) window: u64,
    pub(super) bytes: u64,
    pub(super) in_flight: usize,
    pub(super) buffers: Buffers,
    pub(super) place: Arc<Place>,
    pub(super) events: Sender<Event>,
    pub(super) heard: Receiver<Event>,
}

impl Pull {
    pub(super) fn run(&self) -> anyhow::Result<Received> {
        let jobs = self.start_threads();
        let pieces = self.bytes.div_ceil(PIECE_BYTES);
        let count = usize::try_from(pieces)?;
        let (mut read_us, mut piece_us) = (vec![0; count], vec![0; count]);
        let begin = Instant::now();
        let mut starts: Vec<Instant> = Vec::with_capacity(count);
        let (mut outstanding, mut landed) = (0, 0);
        while landed < pieces {
            while starts.len() < count && outstanding < self.in_flight {
                let now = Instant::now();
                if !self.post(starts.len() as u64, now)? {
                    break;
                }
                starts.push(now);
                outstanding += 1;
            }
            match self.heard.recv_timeout(PATIENCE).context("the link stands still")? {
                Event::Ended(Completion { id, result }, at) => {
                    outstanding -= 1;
                    read_us[usize::try_from(id)?] = micros(at - starts[usize::try_from(id)?]);
                    let filled = result.with_context(|| format!("the read of piece {id} failed"))?;
                    if self.place.is_instant() {
                        landed += 1;
                        piece_us[usize::try_from(id)?] = read_us[usize::try_from(id)?];
                        continue;
                    }
                    jobs.send((id, filled)).context("no thread checks any more")?;
                }
                Event::Landed(id, at, result) => {
                    result?;
                    landed += 1;
                    piece_us[usize::try_from(id)?] = micros(at - starts[usize::try_from(id)?]);
                }
            }
        }
        self.place.finish()?;
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Received { bytes: self.bytes, seconds, cpu_s: cpu_seconds(), read_us, piece_us })
    }

    /// Posts the read of a piece; says whether there was room.
    fn post(&self, id: u64, now: Instant) -> anyhow::Result<bool> {
        let offset = id * PIECE_BYTES;
        let len = usize::try_from((self.bytes - offset).min(PIECE_BYTES))?;
        let Some(lease) = self.buffers.lease(offset, len)? else { return Ok(false) };
        let read = ReadRequest { id, window: self.window, offset, lease, deadline: now + PATIENCE };
        if self.link.post(read).is_ok() {
            return Ok(true);
        }
        ensure!(!self.link.is_closed(), "the link has ended");
        Ok(false)
    }

    /// One thread a core, as in a peer. They end with the sender of jobs.
    fn start_threads(&self) -> Sender<Job> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (queue, place, events) = (Arc::clone(&queue), Arc::clone(&self.place), self.events.clone());
            thread::spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((id, filled)) = job else { return };
                    let index = PieceIndex(u32::try_from(id).expect("a layout counts pieces so"));
                    let result = place.land(index, filled);
                    // Whoever hears it ends first only where the run has failed.
                    drop(events.send(Event::Landed(id, Instant::now(), result)));
                }
            });
        }
        jobs
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
