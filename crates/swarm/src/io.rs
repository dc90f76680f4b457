//! What a swarm is told and what it wants done, as data.

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use planner::{PeerId, PeerPlan, StripeSet};

/// How one swarm behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This peer.
    pub me: PeerId,
    /// Only the origin: no scheduler, no peers, everything is this peer's share.
    pub standalone: bool,
    /// Reads outstanding at the origin, at most; fewer when many entrants share it.
    pub origin_reads_max: u32,
    /// Pieces in one read from the origin, at most; fewer of a small artifact.
    pub origin_run_pieces: u32,
    /// Blobs that whoever reads alone has reads in at once, as far as there is a choice.
    pub origin_blobs_max: u32,
    /// Reads outstanding on one link, at most; a link's grant may allow fewer.
    pub link_reads_max: u32,
    /// Pieces in one read from a peer, at most; fewer of a small artifact.
    pub peer_run_pieces: u32,
    /// How far ahead of the first missing piece of a source a piece may be picked, counted in missing pieces.
    pub window_pieces: u32,
    /// A source is not called stalled before this.
    pub stall_min: Duration,
    /// Times the origin may deliver wrong bytes for one piece before the artifact is given up.
    pub origin_attempts_max: u32,
    /// What makes this peer's order its own.
    pub seed: u64,
}

impl Config {
    /// The defaults of DESIGN §5 and §6 for this peer.
    pub fn new(me: PeerId, seed: u64) -> Self {
        Self {
            me,
            standalone: false,
            origin_reads_max: 4,
            origin_run_pieces: 4,
            origin_blobs_max: 4,
            link_reads_max: 16,
            peer_run_pieces: 4,
            window_pieces: 32,
            stall_min: Duration::from_millis(100),
            origin_attempts_max: 4,
            seed,
        }
    }
}

/// Where a read gets its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The registry, hub or layout that the artifact came from.
    Origin,
    /// Another peer.
    Peer(PeerId),
}

/// The number of a read within its swarm; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What the check of a piece said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceOutcome {
    /// It matches the manifest and is kept.
    Good,
    /// It does not.
    Bad,
}

/// How a read ended. Its pieces that were not reported good are wanted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Everything arrived, or it was cancelled.
    Ok,
    /// It failed, but the source may serve other reads.
    Retry,
    /// The same, because the source does not give what it announced.
    NotHere,
    /// The source serves no more reads.
    SourceGone,
}

/// The least number of reads in which an artifact is moved between peers: each holds its source up for its length, and
/// there are several hops.
const READS_MIN: u32 = 512;

impl Config {
    /// The same for an artifact of so many pieces: the smaller it is, the smaller its reads.
    pub(crate) fn for_pieces(self, count: u32) -> Self {
        if self.standalone {
            return self;
        }
        let run_max = (count / READS_MIN).max(1);
        Self {
            origin_run_pieces: self.origin_run_pieces.min(run_max),
            peer_run_pieces: self.peer_run_pieces.min(run_max),
            ..self
        }
    }
}

/// What a swarm is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The scheduler's plan; it is reachable.
    Plan(PeerPlan),
    /// No scheduler is configured, or it is no longer reachable. The last plan, if any, stays; the origin may be read
    /// for pieces that no live source announces.
    NoScheduler,
    /// The origin is readable.
    OriginUp {
        /// Whether it serves ranges. If not, each read goes from a blob's first missing piece to its end.
        ranges: bool,
    },
    /// The origin refuses this peer, or there is none.
    OriginDown,
    /// A link is ready for reads.
    LinkUp {
        /// The other end.
        peer: PeerId,
        /// Reads outstanding that it grants.
        in_flight_max: u32,
    },
    /// The other end of a link leaves: what was posted may end, it takes nothing more.
    LinkLeaving {
        /// The other end.
        peer: PeerId,
    },
    /// A link ended or could not be made.
    LinkDown {
        /// The other end.
        peer: PeerId,
    },
    /// A link ended because it is to be opened anew in another way, which is no failure of the other end.
    LinkMoved {
        /// The other end.
        peer: PeerId,
    },
    /// A linked peer announced pieces.
    Have {
        /// The peer.
        peer: PeerId,
        /// The pieces; what is out of range is ignored.
        runs: Vec<Run>,
    },
    /// A linked peer says what it is reading from the origin now; this replaces what it said before.
    Coming {
        /// The peer.
        peer: PeerId,
        /// Of the plan that it acts by; 0 before it has one.
        epoch: u64,
        /// The pieces; what is out of range is ignored.
        runs: Vec<Run>,
    },
    /// A piece came from a linked peer; whether it is right is said later, by `Piece`.
    Arrived {
        /// The peer.
        peer: PeerId,
    },
    /// Bytes came from a linked peer, perhaps no whole piece. Said again while they come, some times a second.
    Progress {
        /// The peer.
        peer: PeerId,
    },
    /// One piece of a read was checked.
    Piece {
        /// The read.
        read: ReadId,
        /// The piece.
        piece: PieceIndex,
        /// What the check said.
        outcome: PieceOutcome,
    },
    /// A read ended; said exactly once for each [`Output::Read`], after all its pieces.
    ReadEnded {
        /// The read.
        read: ReadId,
        /// How.
        outcome: ReadOutcome,
    },
    /// [`crate::Swarm::next_wake`] has come.
    Tick,
}

/// Why a swarm can never be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The origin's own bytes do not match the manifest.
    #[error("the origin delivers wrong bytes for piece {piece}")]
    OriginWrongBytes {
        /// The piece.
        piece: PieceIndex,
    },
    /// The origin cannot be read, and no peer has what is missing.
    #[error("no source has the missing pieces")]
    NoSource,
}

/// What a swarm wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a link; `LinkUp` or `LinkDown` answers.
    Connect {
        /// The peer.
        peer: PeerId,
        /// HOST:PORT of its control service.
        address: String,
    },
    /// Close a link, or give up opening it; no answer is needed. Its reads still end.
    Disconnect {
        /// The peer.
        peer: PeerId,
    },
    /// Ask a linked peer to tell of the pieces of these stripes at once; others may wait for some company. Replaces what was
    /// asked before; until it is asked for the first time, everything is told at once.
    Interest {
        /// The peer.
        peer: PeerId,
        /// The stripes.
        stripes: StripeSet,
    },
    /// Read a run.
    Read {
        /// Its number.
        read: ReadId,
        /// From whom.
        source: Source,
        /// What: pieces of one blob.
        run: Run,
        /// When to give up, on the clock of `now`.
        deadline: Duration,
    },
    /// The bytes of this read are no longer needed. Good pieces that it still delivers count.
    Cancel {
        /// The read.
        read: ReadId,
    },
    /// These pieces are proved: tell children and the scheduler.
    Announce {
        /// The pieces.
        run: Run,
    },
    /// Tell children that this peer reads these pieces from the origin now, so that none of them does too. Replaces
    /// what was said before.
    Coming {
        /// Of the plan that this peer acts by.
        epoch: u64,
        /// The pieces, ascending.
        runs: Vec<Run>,
    },
    /// Tell the scheduler that this peer cannot read the origin any more.
    OriginLost,
    /// This peer sent wrong bytes. Its link is closed, and this swarm does not use it again.
    Blame {
        /// The peer.
        peer: PeerId,
        /// The piece.
        piece: PieceIndex,
    },
    /// Tell the scheduler that this parent has stalled, and that not one byte comes from it: it may know whether others
    /// get any. That is no charge against anybody.
    Stalled {
        /// The peer.
        peer: PeerId,
    },
    /// Tell the scheduler that this peer serves nothing of what it announces.
    Silent {
        /// The peer.
        peer: PeerId,
    },
    /// Every piece is there. Said once.
    Complete,
    /// Nothing can ever complete it. Said once; nothing follows.
    Failed {
        /// Why.
        reason: Failure,
    },
}
