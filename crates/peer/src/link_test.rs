//! A test of the way to one peer, by the very opening, grants, windows and data planes that pulls use.
//!
//! Owns: the artifact that is reserved for it, at both ends, and what is measured. Does not own: links (`links`,
//! `service`), or what is made of the figures.

mod served;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use identity::random_bytes;
use memory::Pool;
use modelpack::{
    layout::{BlobIndex, PIECE_BYTES, PieceLayout},
    piece_map::PieceMap,
};
use planner::{ArtifactId, PeerId};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};
use transport::{Completion, ReadRequest};
use transport_rdma::RailInfo;

pub(crate) use self::served::LinkTests;
use crate::{
    error::PeerError,
    fill::blocking,
    links::{GrantedLink, LinkEvent, LinkRequest, open_link},
    security::PeerSecurity,
    transports::{Means, TransportMode, TransportOptions, Transports},
};

/// Whoever answers at the address: a test does not know who that should be.
pub(crate) const ANYBODY: PeerId = PeerId::new([0; 16]);

/// What is read, again and again: enough for as many reads as may be out.
const PIECES: u32 = 16;

/// How long single reads are timed, and at most how many.
const LATENCY_TIME: Duration = Duration::from_secs(1);
const LATENCY_READS_MAX: usize = 1000;

/// How long reads are kept outstanding.
const RATE_TIME: Duration = Duration::from_millis(1500);

/// How long a link may take to be up with all its pieces readable.
const OPEN_TIME: Duration = Duration::from_secs(15);

/// No read of a piece takes this long on a network that is of use.
const READ_TIME: Duration = Duration::from_secs(5);

/// What a buffer holds before a timed read; what is served is zero.
const POISON: u8 = 0xa5;

/// The name of what is read: the hash of a text, which no manifest has.
fn artifact() -> ArtifactId {
    ArtifactId(*blake3::hash(b"modelcast link test v1").as_bytes())
}

fn bytes() -> u64 {
    u64::from(PIECES) * PIECE_BYTES
}

fn piece_bytes() -> usize {
    usize::try_from(PIECE_BYTES).expect("a piece fits the address space")
}

/// Whom to test the way to.
#[derive(Clone, Debug)]
pub struct LinkTestOptions {
    /// HOST:PORT of the peer, where its peers reach it.
    pub address: String,
    /// How connections to it are secured.
    pub security: PeerSecurity,
    /// The RDMA devices to use, all that are active if empty.
    pub devices: Vec<String>,
}

/// How fast one transport is.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkFigures {
    /// With as many reads out as the peer grants.
    pub bytes_per_second: f64,
    /// Of reads of 1 MiB, one at a time: half of them took at most so long.
    pub median: Duration,
    /// And 99 of 100.
    pub p99: Duration,
}

/// What came of a test.
#[derive(Debug)]
pub struct LinkReport {
    /// Over TCP; or why not, with causes.
    pub tcp: Result<LinkFigures, String>,
    /// Over RDMA; or why not, with causes.
    pub rdma: Result<LinkFigures, String>,
    /// The rails of this machine that were tried.
    pub rails: Vec<RailInfo>,
}

/// Tests the way to a running peer, over TCP and over RDMA, for about five seconds. Must be called within a tokio
/// runtime. What fails is part of the report.
pub async fn link_test(options: LinkTestOptions) -> LinkReport {
    let tcp = measure(&options, Transports::tcp()).await;
    let rdma = TransportOptions {
        mode: TransportMode::Rdma,
        devices: options.devices.clone(),
        // The buffers, and nothing is served.
        pinned_bytes_max: u64::MAX,
    };
    let opened = blocking(move || Transports::open(rdma)).await;
    over_rdma(&options, tcp, opened).await
}

async fn over_rdma(
    options: &LinkTestOptions,
    tcp: Result<LinkFigures, String>,
    opened: Result<Transports, PeerError>,
) -> LinkReport {
    match opened {
        Ok(transports) => {
            let rails = transports.rails();
            LinkReport { tcp, rdma: measure(options, transports).await, rails }
        }
        Err(error) => LinkReport { tcp, rdma: Err(with_causes(&error)), rails: Vec::new() },
    }
}

async fn measure(options: &LinkTestOptions, transports: Transports) -> Result<LinkFigures, String> {
    let pool = Pool::new(PIECES as usize, piece_bytes()).map_err(|error| with_causes(&error))?;
    let region = Arc::clone(pool.region());
    let transports = blocking(move || transports.register(&region).map(|()| transports)).await;
    let transports = transports.map_err(|error| with_causes(&error))?;
    let (ends, ended) = mpsc::unbounded_channel();
    // The test that has ended needs no news.
    let sink = Arc::new(move |completion| drop(ends.send((completion, Instant::now()))));
    let (events, mut heard) = mpsc::unbounded_channel();
    let me = random_bytes::<16>().map_err(|error| with_causes(&error))?;
    let request = LinkRequest {
        me: PeerId::new(me),
        peer: ANYBODY,
        address: options.address.clone(),
        artifact: artifact(),
        layout: PieceLayout::new(vec![bytes()]).map_err(|error| with_causes(&error))?,
        here: PieceMap::empty(PIECES),
        generation: 1,
        means: Means { security: options.security.clone(), transports },
        metrics: Arc::default(),
    };
    let _handle = open_link(request, sink, events);
    let granted = timeout(OPEN_TIME, granted(&mut heard)).await;
    let granted = granted.map_err(|_| format!("the link was not up within {} s", OPEN_TIME.as_secs()))??;
    let mut reads = Reads { granted, pool, ended, out: VecDeque::new() };
    tokio::select! {
        figures = reads.measure() => figures,
        reason = down(&mut heard) => Err(reason),
    }
}

/// The link, when all of the artifact may be read over it.
async fn granted(heard: &mut UnboundedReceiver<LinkEvent>) -> Result<GrantedLink, String> {
    let (mut link, mut have) = (None, PieceMap::empty(PIECES));
    loop {
        match heard.recv().await {
            Some(LinkEvent::Up { grant, .. }) => link = Some(grant),
            Some(LinkEvent::Have { runs, .. }) => {
                for run in runs {
                    have.insert_run(run);
                }
            }
            Some(LinkEvent::Down { reason, .. } | LinkEvent::Moved { reason, .. }) => return Err(reason),
            Some(_) => {}
            None => return Err("the link ended".to_owned()),
        }
        if have.is_full()
            && let Some(link) = link.take()
        {
            return Ok(link);
        }
    }
}

/// Why a link that was up ends.
async fn down(heard: &mut UnboundedReceiver<LinkEvent>) -> String {
    loop {
        match heard.recv().await {
            Some(LinkEvent::Down { reason, .. } | LinkEvent::Moved { reason, .. }) => return reason,
            Some(LinkEvent::Leaving { .. }) => return "the peer leaves".to_owned(),
            Some(_) => {}
            None => return "the link ended".to_owned(),
        }
    }
}

/// Reads of one link.
struct Reads {
    granted: GrantedLink,
    pool: Arc<Pool>,
    ended: UnboundedReceiver<(Completion, Instant)>,
    /// When each read that is out began.
    out: VecDeque<(u64, Instant)>,
}

impl Reads {
    async fn measure(&mut self) -> Result<LinkFigures, String> {
        // What the first read sets up, no other one does.
        self.timed(0).await?;
        let mut times = Vec::with_capacity(LATENCY_READS_MAX);
        let begin = Instant::now();
        while times.len() < LATENCY_READS_MAX && (times.is_empty() || begin.elapsed() < LATENCY_TIME) {
            times.push(self.timed(times.len() as u64).await?);
        }
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        let (median, p99) = (at(50), at(99));
        Ok(LinkFigures { bytes_per_second: self.rate(median).await?, median, p99 })
    }

    /// One read, alone; its bytes are looked at.
    async fn timed(&mut self, id: u64) -> Result<Duration, String> {
        self.post(id).await?;
        let (filled, took) = self.next().await?;
        if filled.iter().any(|byte| *byte != 0) {
            return Err("a read brought bytes that are not the peer's".to_owned());
        }
        Ok(took)
    }

    /// Bytes per second while reads are kept outstanding: no more than a link that is used up by each of them, which
    /// took so long alone, carries before their deadline.
    async fn rate(&mut self, alone: Duration) -> Result<f64, String> {
        let most = (self.granted.in_flight_max as usize).min(self.granted.link.in_flight_max());
        let slow = usize::try_from(RATE_TIME.as_nanos() / alone.as_nanos().max(1)).unwrap_or(usize::MAX);
        let most = most.min(slow).clamp(1, PIECES as usize);
        let (begin, mut posted, mut done) = (Instant::now(), 0, 0_u32);
        loop {
            let is_over = done > 0 && begin.elapsed() >= RATE_TIME;
            while !is_over && self.out.len() < most {
                self.post(posted).await?;
                posted += 1;
            }
            if self.out.is_empty() {
                let seconds = begin.elapsed().as_secs_f64().max(f64::EPSILON);
                return Ok(
                    f64::from(done) * f64::from(u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX)) / seconds
                );
            }
            // Its buffer is free again at once.
            drop(self.next().await?);
            done += 1;
        }
    }

    async fn post(&mut self, id: u64) -> Result<(), String> {
        if let Some(pacer) = &self.granted.pacer {
            pacer.take(PIECE_BYTES).await;
        }
        let window = self.granted.windows.get(&BlobIndex(0)).ok_or("the peer grants nothing")?.handle;
        let mut lease = self.pool.try_lease(piece_bytes()).expect("there are as many buffers as reads");
        lease.as_mut_slice()[..POISONED].fill(POISON);
        let begin = Instant::now();
        let deadline = (begin + READ_TIME).min(self.granted.expires.borrow().into_std());
        let offset = id % u64::from(PIECES) * PIECE_BYTES;
        let read = ReadRequest { id, window, offset, lease, deadline };
        self.granted.link.post(read).map_err(|_| "the link ended".to_owned())?;
        self.out.push_back((id, begin));
        Ok(())
    }

    /// The next read that ends, and what it took.
    async fn next(&mut self) -> Result<(memory::Filled, Duration), String> {
        let (Completion { id, result }, at) = self.ended.recv().await.ok_or("the link ended")?;
        let place = self.out.iter().position(|(out, _)| *out == id).ok_or("a read ended twice")?;
        let (_, begin) = self.out.remove(place).expect("it is there");
        let filled = result.map_err(|fault| with_causes(&fault))?;
        Ok((filled, at.saturating_duration_since(begin)))
    }
}

/// How much of a buffer is poisoned: a read that wrote nothing is found, and a fast link is not slowed.
const POISONED: usize = 4096;

/// An error and what caused it, as one line.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
