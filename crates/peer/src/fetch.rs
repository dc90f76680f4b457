//! Reading runs from the origin: bytes into buffers, whole pieces to the workers.
//!
//! Owns: one read at a time, from its request to its last piece. Does not own: which run is read when (crate
//! `swarm`), or retries of a request (crate `registry`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use memory::Filled;
use modelpack::{
    layout::{PieceIndex, Run},
    piece_map::PieceMap,
};
use registry::Served;
use store::{Landing, StoreError};
use swarm::{PieceOutcome, ReadId, ReadOutcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    artifact::{Artifact, Check, Checked, Place},
    buffers::{Buffers, Piece, Space},
    error::PeerError,
    lanes::{Direction, Traffic},
    origin::{Origin, OriginStream, is_transient},
    progress::Counters,
    sinks::{LandingRule, Sinks},
    transports::Means,
    vouching::{Provenance, Vouching},
    workers::Workers,
};

/// Bytes per second that keep a read alive beyond its deadline: on a slow line every piece takes long, and to begin
/// again would never end.
const SLOWEST: u64 = 16 << 10;

/// Pieces that fill at once, of as many reads.
const FILLING: usize = 4;

/// Pieces for each thread that checks them: one at work, one that waits. What waits longer has left the caches by the time
/// it is hashed, and until then its socket holds it as well.
const READY: usize = 2;

/// What landing one artifact needs, wherever its bytes come from.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) artifact: Arc<Artifact>,
    pub(crate) landing: Arc<Landing>,
    pub(crate) workers: Workers,
    pub(crate) buffers: Buffers,
    pub(crate) sinks: Arc<Sinks>,
    pub(crate) counters: Arc<Counters>,
    /// How links to other peers are made.
    pub(crate) means: Means,
    /// Who vouches for pieces, if they are exchanged with peers and the manifest does not prove each.
    pub(crate) vouching: Option<Arc<Vouching>>,
    checks: AtomicUsize,
    /// Bounds what is read from the origin before it is checked.
    turns: Arc<Semaphore>,
}

/// A piece was checked, or could not be written.
#[derive(Debug)]
pub(crate) struct PieceChecked {
    pub(crate) read: ReadId,
    pub(crate) piece: PieceIndex,
    pub(crate) result: Result<Checked, StoreError>,
    /// Whether it came from a mirror of the origin: then the origin is not wrong if the piece is.
    pub(crate) is_mirrored: bool,
}

impl Ground {
    pub(crate) fn new(
        artifact: Arc<Artifact>,
        (landing, rule): (Arc<Landing>, LandingRule),
        (workers, buffers): (Workers, Buffers),
        counters: Arc<Counters>,
        (means, vouching): (Means, Option<Arc<Vouching>>),
    ) -> Arc<Self> {
        let sinks = Sinks::new(Arc::clone(&landing), rule, (workers.clone(), buffers.clone()));
        let turns = Arc::new(Semaphore::new(FILLING + READY * workers.count()));
        Arc::new(Self {
            artifact,
            landing,
            workers,
            buffers,
            sinks,
            counters,
            means,
            vouching,
            checks: AtomicUsize::new(0),
            turns,
        })
    }

    /// The right to read one more piece from the origin, as soon as one of those before is checked.
    async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.expect("nobody closes the semaphore")
    }

    /// Pieces that landed and whose check has not ended.
    pub(crate) fn checks_waiting(&self) -> usize {
        self.checks.load(Ordering::Relaxed)
    }

    fn check_and_write(
        &self,
        piece: PieceIndex,
        (bytes, place): (Filled, Place),
        provenance: &Provenance,
    ) -> Result<Checked, StoreError> {
        match self.vouching_for(piece) {
            Some(vouching) => vouching.land(&self.artifact, &self.landing, (piece, bytes, place), provenance),
            None => self.artifact.land(&self.landing, piece, (bytes, place)),
        }
    }

    /// Who vouches for this piece, if it has to be vouched for.
    pub(crate) fn vouching_for(&self, piece: PieceIndex) -> Option<&Arc<Vouching>> {
        let blob = self.artifact.layout().span(piece).blob;
        self.vouching.as_ref().filter(|_| !matches!(self.artifact.check(blob), Check::Tree(_)))
    }

    /// Checks and lands a piece on a worker; `report` is called there with what came of it.
    pub(crate) fn land(
        self: &Arc<Self>,
        (read, piece): (ReadId, PieceIndex),
        bytes: Piece,
        provenance: Provenance,
        report: impl FnOnce(PieceChecked) + Send + 'static,
    ) {
        let ground = Arc::clone(self);
        self.checks.fetch_add(1, Ordering::Relaxed);
        let Piece { bytes, right } = bytes;
        let place = right.place();
        if let Some(hold) = &right.hold {
            hold.arrived();
        }
        let check = move || {
            let len = bytes.len() as u64;
            let result = ground.check_and_write(piece, (bytes, place), &provenance);
            ground.checks.fetch_sub(1, Ordering::Relaxed);
            match result.as_ref().map(|checked| checked.outcome) {
                Ok(PieceOutcome::Good) => {
                    ground.sinks.landed(piece);
                    ground.counters.landed(place, len);
                }
                Ok(PieceOutcome::Bad) => ground.counters.metrics.refused_piece(),
                Err(_) => {}
            }
            // The buffer is free before the driver can ask for one.
            drop(right);
            report(PieceChecked { read, piece, result, is_mirrored: false });
        };
        match place {
            Place::Buffer => self.sinks.stage(piece, Box::new(check)),
            Place::File => self.workers.run(check),
        }
    }
}

/// How a read from the origin ended.
#[derive(Debug)]
pub(crate) struct FetchEnded {
    pub(crate) read: ReadId,
    /// Pieces that went to the workers; each is reported by itself.
    pub(crate) sent: u32,
    pub(crate) outcome: ReadOutcome,
    /// The origin sent the whole blob where a range was asked for.
    pub(crate) ignores_ranges: bool,
    pub(crate) error: Option<PeerError>,
}

/// One read from the origin.
pub(crate) struct Fetch<E> {
    pub(crate) ground: Arc<Ground>,
    pub(crate) origin: Origin,
    /// If anybody counts what the artifact costs.
    pub(crate) traffic: Option<Arc<Traffic>>,
    pub(crate) read: ReadId,
    pub(crate) run: Run,
    /// What is here already. An origin without ranges sends it again; it is not written again, because bytes that
    /// were hashed must stay what they were.
    pub(crate) have: PieceMap,
    /// Whether the origin is known to serve no ranges, so that what comes before the run is skipped.
    pub(crate) may_skip: bool,
    /// When it is late, but for what [`SLOWEST`] allows.
    pub(crate) deadline: Instant,
    pub(crate) events: mpsc::UnboundedSender<E>,
}

impl<E: From<PieceChecked> + From<FetchEnded> + Send + 'static> Fetch<E> {
    /// Reads until the run is there, something fails or is late, or `cancelled` is dropped; says so once.
    pub(crate) async fn run(self, cancelled: oneshot::Receiver<()>) {
        let mut progress = FetchProgress::default();
        let (outcome, error) = tokio::select! {
            result = self.body(&mut progress) => match result {
                Ok(()) => (ReadOutcome::Ok, None),
                Err(error) if is_transient(&error) => (ReadOutcome::Retry, Some(error)),
                Err(error) => (ReadOutcome::SourceGone, Some(error)),
            },
            _ = cancelled => (ReadOutcome::Ok, None),
        };
        let FetchProgress { sent, ignores_ranges } = progress;
        let ended = FetchEnded { read: self.read, sent, outcome, ignores_ranges, error };
        // A driver that is gone needs no answer.
        let _ = self.events.send(ended.into());
    }

    async fn body(&self, progress: &mut FetchProgress) -> Result<(), PeerError> {
        let layout = self.ground.artifact.layout();
        let (blob, range) = layout.bytes_of(self.run);
        let opening = self.origin.read(&self.ground.artifact, blob, range.clone());
        let mut stream = self.in_time(0, opening).await?;
        progress.ignores_ranges = stream.ignores_ranges();
        if stream.start() < range.start && !self.may_skip {
            // The swarm plans differently without ranges; reading on would fetch the blob once for each read.
            return Ok(());
        }
        self.skip_and_fill(&mut stream, range, progress).await
    }

    async fn skip_and_fill(
        &self,
        stream: &mut OriginStream,
        range: std::ops::Range<u64>,
        progress: &mut FetchProgress,
    ) -> Result<(), PeerError> {
        let (mut at, mut received) = (stream.start(), 0);
        let mut pieces = self.run.pieces();
        let mut filling: Option<Filling> = None;
        while at < range.end {
            let Some(mut bytes) = self.in_time(received, stream.next()).await? else { break };
            received += bytes.len() as u64;
            match (&self.origin, stream.is_remote()) {
                // In the cache that the user's tools share.
                (Origin::Hub(_), false) => self.ground.counters.came_from_here(bytes.len() as u64),
                _ => self.ground.counters.came_from_origin(bytes.len() as u64),
            }
            if stream.is_remote() {
                self.pace(bytes.len() as u64).await;
            }
            let skip = usize::try_from(range.start.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
            at += bytes.len() as u64;
            let _ = bytes.split_to(skip);
            while !bytes.is_empty() {
                let mut current = match filling.take() {
                    Some(current) => current,
                    None => match pieces.next() {
                        Some(piece) => self.begin(piece).await,
                        None => return Ok(()),
                    },
                };
                let count = current.take(&bytes);
                let _ = bytes.split_to(count);
                if current.left > 0 {
                    filling = Some(current);
                } else if let Some(buffer) = current.buffer {
                    self.send_on(current.piece, buffer, stream.served());
                    progress.sent += 1;
                }
            }
        }
        if !progress.ignores_ranges {
            // Nothing may follow; and only a body that was read to its end gives its connection back.
            self.in_time(received, stream.next()).await?;
        }
        Ok(())
    }

    /// Waits until so many bytes may have come: the connection fills meanwhile, and its other end waits.
    async fn pace(&self, bytes: u64) {
        if let Some(lane) = self.traffic.as_ref().and_then(|traffic| traffic.pacer(Direction::Received)) {
            lane.take(bytes).await;
        }
        if let Some(limit) = self.ground.means.transports.limit() {
            limit.received().take(bytes).await;
        }
    }

    /// Waits for `step`, of a read that has brought `received` bytes.
    async fn in_time<T>(
        &self,
        received: u64,
        step: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, PeerError> {
        let late_at = self.deadline + Duration::from_secs(received / SLOWEST);
        let late = |_| PeerError::Slow { reference: self.ground.artifact.reference.clone() };
        tokio::time::timeout_at(late_at.into(), step).await.map_err(late)?
    }

    async fn begin(&self, piece: PieceIndex) -> Filling {
        let len = self.ground.artifact.layout().span(piece).len;
        let is_here = self.have.contains(piece);
        let buffers = &self.ground.buffers;
        let buffer = if is_here {
            None
        } else {
            let turn = self.ground.turn().await;
            Some((buffers.buffer(len, buffers.permit().await), turn))
        };
        Filling { piece, left: len as usize, buffer }
    }

    fn send_on(
        &self,
        piece: PieceIndex,
        (space, turn): (Space, OwnedSemaphorePermit),
        served: Option<Served>,
    ) {
        let events = self.events.clone();
        let bytes = Piece { bytes: space.lease.filled(), right: space.right };
        self.ground.land((self.read, piece), bytes, Provenance::Origin, move |mut checked| {
            let is_bad = checked.result.as_ref().is_ok_and(|checked| checked.outcome == PieceOutcome::Bad);
            checked.is_mirrored = is_bad && served.is_some_and(|served| served.was_wrong());
            drop(turn);
            // A driver that is gone needs no answer.
            let _ = events.send(checked.into());
        });
    }
}

#[derive(Debug, Default)]
struct FetchProgress {
    sent: u32,
    ignores_ranges: bool,
}

/// The piece that arrives now.
struct Filling {
    piece: PieceIndex,
    left: usize,
    /// None if the piece is here, so that its bytes are only passed over.
    buffer: Option<(Space, OwnedSemaphorePermit)>,
}

impl Filling {
    /// Takes what it can of `bytes`; says how much.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let count = self.left.min(bytes.len());
        if let Some((space, _)) = &mut self.buffer {
            let target = space.lease.as_mut_slice();
            let at = target.len() - self.left;
            target[at..at + count].copy_from_slice(&bytes[..count]);
        }
        self.left -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        thread,
    };

    use modelpack::reference::Reference;
    use registry::{Access, Repository};

    use super::*;
    use crate::testing;

    const PIECE: usize = 1 << 20;
    const LONG: Duration = Duration::from_secs(30);

    enum Said {
        Checked,
        Ended(FetchEnded),
    }

    impl From<PieceChecked> for Said {
        fn from(_: PieceChecked) -> Self {
            Self::Checked
        }
    }

    impl From<FetchEnded> for Said {
        fn from(ended: FetchEnded) -> Self {
            Self::Ended(ended)
        }
    }

    /// A registry that answers one read, of `len` bytes, which `body` gives.
    fn registry(len: usize, body: impl FnOnce(&mut TcpStream) + Send + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reference = format!("{}/models/test:v1", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let answer = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\n\
                 Content-Range: bytes 0-{}/{len}\r\n\r\n",
                len - 1
            );
            socket.write_all(answer.as_bytes()).unwrap();
            body(&mut socket);
        });
        origin_at(&reference)
    }

    /// One that gives a piece: `chunk` bytes at a time, one every 50 ms, `chunks` in all. Then it says nothing more.
    fn slow_registry(chunk: usize, chunks: usize) -> Origin {
        registry(PIECE, move |socket| {
            for _ in 0..chunks {
                thread::sleep(Duration::from_millis(50));
                socket.write_all(&vec![7; chunk]).unwrap();
            }
            // Until the other side hangs up.
            let _ = socket.read(&mut [0]);
        })
    }

    /// One that gives all of a blob.
    fn quick_registry(blob: Vec<u8>) -> Origin {
        registry(blob.len(), move |socket| socket.write_all(&blob).unwrap())
    }

    fn origin_at(reference: &str) -> Origin {
        let Ok(Reference::Registry(at)) = reference.parse() else { panic!("a registry") };
        let access = Access { plain_http: true, ..Access::default() };
        Origin::Registry(Repository::open(&at, access).unwrap())
    }

    /// One read with a deadline that is over at once.
    async fn read(origin: Origin) -> FetchEnded {
        let (_dir, ground) = testing::ground(testing::artifact(&[vec![7; PIECE]]), None);
        let (events, mut said) = mpsc::unbounded_channel::<Said>();
        let fetch = Fetch {
            have: PieceMap::empty(1),
            run: Run::new(0, 1),
            read: ReadId(0),
            traffic: None,
            may_skip: false,
            deadline: Instant::now() + Duration::from_millis(300),
            ground,
            origin,
            events,
        };
        let (_cancel, cancelled) = oneshot::channel();
        tokio::time::timeout(LONG, fetch.run(cancelled)).await.expect("it ends in time");
        loop {
            if let Said::Ended(ended) = said.recv().await.expect("said once") {
                return ended;
            }
        }
    }

    #[tokio::test]
    async fn a_slow_read_goes_on_as_long_as_bytes_come() {
        let ended = read(slow_registry(PIECE / 16, 16)).await;
        assert_eq!((ended.sent, ended.outcome), (1, ReadOutcome::Ok), "{:?}", ended.error);
    }

    #[tokio::test]
    async fn a_read_that_brings_next_to_nothing_is_late_and_says_so() {
        let ended = read(slow_registry(100, 20)).await;
        assert_eq!((ended.sent, ended.outcome), (0, ReadOutcome::Retry));
        assert!(matches!(ended.error, Some(PeerError::Slow { .. })), "{:?}", ended.error);
    }

    #[tokio::test]
    async fn nothing_is_read_far_ahead_of_those_who_check_it() {
        let count = Workers::start().count();
        let ahead = FILLING + READY * count;
        let blob = vec![7; (ahead + 1) * PIECE];
        let (_dir, ground) = testing::ground(testing::artifact(std::slice::from_ref(&blob)), None);
        let busy: Vec<_> = (0..count)
            .map(|_| {
                let (done, wait) = std::sync::mpsc::channel::<()>();
                // It ends when the other side is dropped.
                ground.workers.run(move || while wait.recv().is_ok() {});
                done
            })
            .collect();
        let (events, mut said) = mpsc::unbounded_channel::<Said>();
        let pieces = u32::try_from(ahead + 1).unwrap();
        let fetch = Fetch {
            have: PieceMap::empty(pieces),
            run: Run::new(0, pieces),
            read: ReadId(0),
            may_skip: false,
            deadline: Instant::now() + LONG,
            ground: Arc::clone(&ground),
            origin: quick_registry(blob),
            traffic: None,
            events,
        };
        let (_cancel, cancelled) = oneshot::channel();
        let mut reading = tokio::spawn(fetch.run(cancelled));
        tokio::time::timeout(LONG, async {
            while ground.checks_waiting() < ahead {
                assert!(!reading.is_finished(), "it waits");
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("what may be read is read");
        assert_eq!(ground.turns.available_permits(), 0);
        assert!(said.try_recv().is_err() && !reading.is_finished(), "nothing was checked");
        drop(busy);
        tokio::time::timeout(LONG, &mut reading).await.expect("it goes on").unwrap();
        while let Some(said) = said.recv().await {
            if let Said::Ended(ended) = said {
                assert_eq!((ended.sent, ended.outcome), (pieces, ReadOutcome::Ok), "{:?}", ended.error);
                return;
            }
        }
        panic!("it says when it has ended");
    }
}
