//! How far a pull is, and what it came to: counted where bytes move, read by whoever shows it.
//!
//! Owns: the counters of one transfer and the stage it waits on. Does not own: printing.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use modelpack::layout::BlobIndex;
use tokio::sync::{Notify, futures::Notified};
use transport::Level;

use crate::{
    artifact::Place,
    blame::Blames,
    metrics::{CameFrom, Metrics},
};

/// How far a pull is, in bytes of blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Proved, or of blobs that are proved as a whole: landed.
    pub done: u64,
    /// All.
    pub total: u64,
    /// Read from the origin, what was discarded included.
    pub origin: u64,
    /// Read from other peers.
    pub peer: u64,
    /// Found on this machine.
    pub local: u64,
}

/// The counters of one transfer.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    done: AtomicU64,
    total: AtomicU64,
    origin: AtomicU64,
    peer: AtomicU64,
    local: AtomicU64,
    /// Of `origin` and `peer`: what came over links between peers, by how those carry it.
    tcp: AtomicU64,
    rdma: AtomicU64,
    /// The first reason why something went over TCP though RDMA might have been.
    fallback: OnceLock<String>,
    /// Good pieces that landed without a buffer.
    direct: AtomicU64,
    /// Those that landed through one.
    staged: AtomicU64,
    /// What came over network cards that write memory, and went through buffers all the same.
    staged_by_nic: AtomicU64,
    /// Of the whole process.
    pub(crate) metrics: Arc<Metrics>,
    /// Microseconds from the start to the first good piece, plus one; 0 before it.
    first_piece: AtomicU64,
    /// Who gave wrong bytes.
    pub(crate) blames: Blames,
    /// Blobs that were proved as a whole before the end.
    proved: Mutex<BTreeSet<BlobIndex>>,
    /// Told whenever more is done.
    moved: Notify,
}

impl Counters {
    pub(crate) fn new(total: u64, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { total: AtomicU64::new(total), metrics, ..Self::default() })
    }

    pub(crate) fn came_from_origin(&self, bytes: u64) {
        self.origin.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.came(CameFrom::Origin, bytes);
    }

    pub(crate) fn came_from_peer(&self, bytes: u64, is_seed: bool, level: Level) {
        let counter = if is_seed { &self.origin } else { &self.peer };
        counter.fetch_add(bytes, Ordering::Relaxed);
        let counter = match level {
            Level::Tcp => &self.tcp,
            Level::Nic => &self.rdma,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.came(if is_seed { CameFrom::Seed(level) } else { CameFrom::Peer(level) }, bytes);
    }

    /// Something goes over TCP, for this reason. Only the first one is kept.
    pub(crate) fn fell_back(&self, reason: String) {
        // A later one changes nothing.
        let _ = self.fallback.set(reason);
    }

    pub(crate) fn fallback(&self) -> Option<&str> {
        self.fallback.get().map(String::as_str)
    }

    /// A piece is good and where it belongs.
    pub(crate) fn landed(&self, place: Place, bytes: u64) {
        let counter = match place {
            Place::File => &self.direct,
            Place::Buffer => &self.staged,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A piece came into a buffer over a link of that level.
    pub(crate) fn came_into_buffer(&self, level: Level, bytes: u64) {
        if level == Level::Nic {
            self.staged_by_nic.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// How bytes landed, as the report names it. What can only be staged, from the origin or over TCP, makes no
    /// difference where something landed directly.
    pub(crate) fn landing(&self) -> &'static str {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) > 0;
        match (read(&self.direct), read(&self.staged_by_nic)) {
            (true, false) => "direct",
            (true, true) => "mixed",
            (false, _) if read(&self.origin) || read(&self.peer) => "staged",
            (false, _) => "none",
        }
    }

    pub(crate) fn was_here(&self, bytes: u64) {
        self.local.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.was_here(bytes);
        self.done(bytes);
    }

    /// Bytes of somebody else's file on this machine; they count as done when they are checked.
    pub(crate) fn came_from_here(&self, bytes: u64) {
        self.local.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.was_here(bytes);
    }

    pub(crate) fn done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.moved.notify_waiters();
    }

    /// A blob is what its digest says.
    pub(crate) fn proved(&self, blob: BlobIndex) {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).insert(blob);
        self.moved.notify_waiters();
    }

    /// Whether that was said of it.
    pub(crate) fn is_proved(&self, blob: BlobIndex) -> bool {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).contains(&blob)
    }

    /// Told whenever more is done. Whoever waits enables it before it looks.
    pub(crate) fn moved(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// Bytes that were counted as done are wanted again.
    pub(crate) fn undone(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> Progress {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Progress {
            done: read(&self.done),
            total: read(&self.total),
            origin: read(&self.origin),
            peer: read(&self.peer),
            local: read(&self.local),
        }
    }

    pub(crate) fn tcp_bytes(&self) -> u64 {
        self.tcp.load(Ordering::Relaxed)
    }

    pub(crate) fn rdma_bytes(&self) -> u64 {
        self.rdma.load(Ordering::Relaxed)
    }

    pub(crate) fn direct_bytes(&self) -> u64 {
        self.direct.load(Ordering::Relaxed)
    }

    pub(crate) fn staged_bytes(&self) -> u64 {
        self.staged.load(Ordering::Relaxed)
    }

    pub(crate) fn note_first_piece(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX - 1) + 1;
        // Whoever was first has set it; a later piece changes nothing.
        let _ = self.first_piece.compare_exchange(0, micros, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn first_piece(&self) -> Option<Duration> {
        match self.first_piece.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros - 1)),
        }
    }
}

impl From<wire::local::Progress> for Progress {
    fn from(progress: wire::local::Progress) -> Self {
        Self {
            done: progress.bytes_done,
            total: progress.bytes_total,
            origin: progress.origin_bytes,
            peer: progress.peer_bytes,
            local: progress.local_bytes,
        }
    }
}

impl From<Progress> for wire::local::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            bytes_done: progress.done,
            bytes_total: progress.total,
            origin_bytes: progress.origin,
            peer_bytes: progress.peer,
            local_bytes: progress.local,
        }
    }
}

/// What so many bytes came over, as results name it.
pub(crate) const fn transport_of(tcp_bytes: u64, rdma_bytes: u64) -> &'static str {
    match (tcp_bytes, rdma_bytes) {
        (0, 0) => "none",
        (_, 0) => "tcp",
        (0, _) => "rdma",
        _ => "mixed",
    }
}

/// What a transfer waits on at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Bytes of the origin.
    Origin,
    /// Bytes of other peers.
    Peers,
    /// Hashing.
    Hash,
    /// Writing.
    Disk,
}

impl Stage {
    /// As `bounded_by` names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Peers => "peers",
            Self::Hash => "hash",
            Self::Disk => "disk",
        }
    }
}

/// What one moment of a transfer looks like from the driver.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Pieces landed whose check has not ended.
    pub(crate) checks: usize,
    /// Checks that can run at once.
    pub(crate) workers: usize,
    pub(crate) origin_reads: usize,
    pub(crate) peer_reads: usize,
}

/// Adds up which stage the pipeline waited on.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    origin: Duration,
    peers: Duration,
    checks: Duration,
    hashing: Duration,
    writing: Duration,
}

impl Stages {
    /// `load` was so for `time`. More pieces wait for a check than can be checked: then checking holds the rest up.
    pub(crate) fn waited(&mut self, load: Load, time: Duration) {
        if load.checks > load.workers {
            self.checks += time;
        } else if load.origin_reads > 0 && load.peer_reads == 0 {
            self.origin += time;
        } else {
            self.peers += time;
        }
    }

    /// One piece took this long to hash and to write.
    pub(crate) fn checked(&mut self, hashing: Duration, writing: Duration) {
        self.hashing += hashing;
        self.writing += writing;
    }

    /// The stage that was waited on longest, if any was.
    pub(crate) fn longest(&self) -> Option<Stage> {
        let check = if self.writing > self.hashing { Stage::Disk } else { Stage::Hash };
        [(self.origin, Stage::Origin), (self.peers, Stage::Peers), (self.checks, check)]
            .into_iter()
            .filter(|(time, _)| !time.is_zero())
            .max_by_key(|(time, _)| *time)
            .map(|(_, stage)| stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_stage_that_was_waited_on_longest_is_named() {
        let mut stages = Stages::default();
        assert_eq!(stages.longest(), None);
        let reading = Load { workers: 2, origin_reads: 4, ..Load::default() };
        stages.waited(reading, SECOND);
        assert_eq!(stages.longest(), Some(Stage::Origin));
        stages.waited(Load { peer_reads: 1, ..reading }, SECOND * 2);
        assert_eq!(stages.longest(), Some(Stage::Peers));
        stages.waited(Load { checks: 3, ..reading }, SECOND * 3);
        stages.checked(SECOND, SECOND / 2);
        assert_eq!(stages.longest(), Some(Stage::Hash));
        stages.checked(Duration::ZERO, SECOND);
        assert_eq!(stages.longest(), Some(Stage::Disk));
    }

    #[test]
    fn bytes_count_for_what_they_came_over_and_the_first_reason_is_kept() {
        let counters = Counters::new(10, Arc::default());
        let transport = || transport_of(counters.tcp_bytes(), counters.rdma_bytes());
        assert_eq!((transport(), counters.fallback()), ("none", None));
        counters.came_from_peer(3, false, Level::Nic);
        assert_eq!(transport(), "rdma");
        counters.fell_back("it broke".to_owned());
        counters.fell_back("it broke again".to_owned());
        counters.came_from_peer(4, true, Level::Tcp);
        assert_eq!((transport(), counters.fallback()), ("mixed", Some("it broke")));
        assert_eq!((counters.tcp_bytes(), counters.rdma_bytes()), (4, 3));
        assert_eq!(transport_of(1, 0), "tcp");
    }

    #[test]
    fn only_the_first_piece_counts_as_first() {
        let counters = Counters::new(10, Arc::default());
        assert_eq!(counters.first_piece(), None);
        counters.note_first_piece(Duration::ZERO);
        counters.note_first_piece(SECOND);
        assert_eq!(counters.first_piece(), Some(Duration::ZERO));
    }
}
