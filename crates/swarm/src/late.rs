//! Coming late to a broadcast: what the others had by then is read last. Does not own the choice among pieces (`pick`).
//!
//! Whoever comes in the middle of a wave cannot be done before its end. Until then it takes part in it like everybody
//! else; the rest it reads one read at a time, while its own card is not busy with the wave. A wave that fills cards leaves
//! no parent anything to give besides, and what the late one took of it the others would wait for.

use std::time::Duration;

use planner::{PeerId, StripeSource};

use crate::bits::Bits;
use crate::io::Source;
use crate::link::Link;
use crate::reads::Read;
use crate::swarm::Swarm;

/// A peer is late when another that is not done has this part of everything, and it has not itself.
const LATE_SHARE: u32 = 8;

/// The wave's pace is taken over so many pieces: bursts of single parents do not count.
const WINDOW_PIECES: u32 = 32;

/// The card is busy at this part of the best pace that it was seen at.
const BUSY: f64 = 0.85;

/// How quickly pieces come from peers, as times of [`WINDOW_PIECES`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    since: Duration,
    pieces: u32,
    last: Option<Duration>,
    best: Duration,
}

impl Pace {
    fn came(&mut self, now: Duration) {
        if self.pieces == 0 {
            self.since = now;
        }
        self.pieces += 1;
        if self.pieces > WINDOW_PIECES {
            let took = now.saturating_sub(self.since);
            self.best = self.last.map_or(took, |_| self.best.min(took));
            (self.last, self.pieces, self.since) = (Some(took), 1, now);
        }
    }

    /// Not until something is known: what is read besides shows what the card can do.
    fn is_busy(&self) -> bool {
        self.last.is_some_and(|last| self.best >= last.mul_f64(BUSY))
    }
}

impl Swarm {
    /// A piece came from a peer.
    pub(crate) fn note_pace(&mut self) {
        if !self.postponed.is_empty() {
            self.pace.came(self.now);
        }
    }

    /// Puts off what a link has when it is first heard of, if this peer comes late to it.
    pub(crate) fn postpone(&mut self, peer: PeerId) {
        let piece_count = self.layout.piece_count();
        let few = piece_count.div_ceil(LATE_SHARE);
        let Some(link) = self.links.get(&peer).filter(|_| self.have.len() < few) else { return };
        if link.has.len() >= few && link.has.len() < piece_count {
            if self.postponed.is_empty() {
                self.postponed = Bits::empty(piece_count);
            }
            self.postponed.unite(&link.has);
            self.hurry_for_others();
        }
    }

    /// Puts off nothing of the stripes that come in through this peer, to all or to its rack: others wait for all of them,
    /// whoever had them when it came.
    pub(crate) fn hurry_for_others(&mut self) {
        let mut members = self.plan.iter().flat_map(|plan| &plan.members);
        let has_near = members.any(|member| !member.is_far && !member.is_seed);
        for (stripe, mask) in self.stripes.all().iter().zip(self.stripes.masks()) {
            let comes_in_here = match &stripe.source {
                StripeSource::Origin => true,
                StripeSource::Parent(parent) => {
                    self.seeds.contains(parent) || has_near && self.far.contains(parent)
                }
                StripeSource::None => false,
            };
            if comes_in_here {
                self.postponed.subtract(mask);
            }
        }
    }

    /// Nothing is put off once most are done.
    pub(crate) fn see_whether_the_wave_is_over(&mut self) {
        if self.postponed.is_empty() {
            return;
        }
        let usable = self.links.values().filter(|link| link.is_usable());
        let done = usable.clone().filter(|link| link.has.len() == self.layout.piece_count()).count();
        if done * 2 >= usable.count() {
            self.postponed = Bits::empty(0);
            self.is_stirred = true;
        }
    }

    /// Whether one more read of what was put off is too many: while one is out, or while the wave fills this peer's card.
    /// What the origin sends keeps nobody's card from others, and a read that is late may never end.
    pub(crate) fn reads_postponed(&self) -> bool {
        let is_busy = self.pace.is_busy();
        let is_one = |read: &Read| match read.source {
            Source::Peer(peer) => {
                let is_usable = self.links.get(&peer).is_some_and(Link::is_usable);
                let is_due = self.now >= read.issued + read.expected.max(self.config.stall_min);
                let counts = is_busy || self.postponed.contains(read.run.start);
                read.is_live && is_usable && !is_due && counts
            }
            Source::Origin => false,
        };
        self.reads.iter().any(|(_, read)| is_one(read))
    }
}
