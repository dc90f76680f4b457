//! The origin as this peer sees it. Does not own which pieces are read from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::PieceIndex;

use crate::io::ReadId;

/// The first wait after a failed read; it doubles with each further one. The origin's client has retried by itself
/// before it reports a failure, so this only keeps a broken origin from being asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Rounds of failed reads in a row after which the origin counts as down: 100 ms · (2^8 − 1) ≈ 25 s of waiting.
const FAILURES_MAX: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OriginState {
    /// Not said yet.
    Unknown,
    Up {
        ranges: bool,
    },
    Down,
}

#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) state: OriginState,
    pub(crate) reads: BTreeSet<ReadId>,
    pub(crate) pause_until: Duration,
    /// It is left to others until then.
    pub(crate) yields_until: Duration,
    /// What the last read took for each of its pieces, or the first piece of all; unknown until that has come.
    pub(crate) piece_takes: Option<Duration>,
    /// Whether others are further with the stripes that they read there.
    pub(crate) is_behind: bool,
    failures: u32,
    /// Wrong deliveries of a piece.
    bad: BTreeMap<PieceIndex, u32>,
}

impl Origin {
    pub(crate) fn new() -> Self {
        Self {
            state: OriginState::Unknown,
            reads: BTreeSet::new(),
            pause_until: Duration::ZERO,
            yields_until: Duration::ZERO,
            piece_takes: None,
            is_behind: false,
            failures: 0,
            bad: BTreeMap::new(),
        }
    }

    /// A piece came of a read that is out for so long.
    pub(crate) fn good(&mut self, took: Duration) {
        self.failures = 0;
        self.piece_takes.get_or_insert(took);
    }

    /// Counts a wrong delivery; returns how many there were.
    pub(crate) fn bad(&mut self, piece: PieceIndex) -> u32 {
        let count = self.bad.entry(piece).or_default();
        *count += 1;
        *count
    }

    /// A read failed. Those that were out beside it fail for the same reason, and count as one.
    pub(crate) fn failed(&mut self, now: Duration) {
        if now < self.pause_until {
            return;
        }
        self.pause_until = now + PAUSE * 2_u32.pow(self.failures);
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            self.state = OriginState::Down;
            self.failures = 0;
        }
    }
}
