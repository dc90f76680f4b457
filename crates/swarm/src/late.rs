//! Coming late to a broadcast: what the others had by then is read last. Does not own the choice among pieces (`pick`).
//!
//! Whoever comes in the middle of a wave cannot be done before its end. Until then it takes part in it like everybody
//! else; the rest it reads from cards that are idle, one read at a time, which gets little where there is little to get.

use planner::PeerId;

use crate::bits::Bits;
use crate::io::Source;
use crate::link::Link;
use crate::reads::Read;
use crate::swarm::Swarm;

/// A peer is late when another that is not done has this part of everything, and it has not itself.
const LATE_SHARE: u32 = 8;

impl Swarm {
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

    /// Whether one more read of what was put off is too many. What the origin sends keeps nobody's card from others, and
    /// a read that is late may never end.
    pub(crate) fn reads_postponed(&self) -> bool {
        let is_one = |read: &Read| match read.source {
            Source::Peer(peer) => {
                let is_usable = self.links.get(&peer).is_some_and(Link::is_usable);
                let is_due = self.now >= read.issued + read.expected.max(self.config.stall_min);
                read.is_live && is_usable && !is_due && self.postponed.contains(read.run.start)
            }
            Source::Origin => false,
        };
        self.reads.iter().any(|(_, read)| is_one(read))
    }
}
