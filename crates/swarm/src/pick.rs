//! What to read next, from whom: fills every source that has room. Does not own the books (`swarm`).

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use planner::{Before, PeerId, StripeSource};

use crate::io::{Output, Source};
use crate::link::{Link, LinkState};
use crate::origin::OriginState;
use crate::reads::Read;
use crate::stripes::Stripe;
use crate::swarm::Swarm;

/// Reads outstanding at the origin from all entrants together: enough to keep it busy between two requests. More
/// would only make all entrants' last pieces arrive together, at the very end.
const ORIGIN_READS_TOTAL: u32 = 8;

/// Whoever reads alone from the origin asks for so many pieces at once, at most: a read that fails late costs no more
/// than what had not come, but its connection is not used by others meanwhile.
const ALONE_RUN_PIECES_MAX: u32 = 16;

/// In how many rounds of all its reads what is left would come, if they stayed as long as the next.
const ALONE_ROUNDS: u32 = 2;

/// Pieces looked at for one read, at most.
const SCAN_MAX: usize = 256;

/// A read may take this long plus its bytes at `READ_RATE_MIN` before the driver gives it up.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const READ_RATE_MIN: u64 = 1 << 20;

/// Assumed for a read on a link before any rate is known.
const EXPECTED_FIRST: Duration = Duration::from_millis(500);

/// Which of a link's pieces may be read from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Those of stripes it is the parent of.
    Parent,
    /// All that their parents cannot give soon.
    Anybody,
}

impl Swarm {
    pub(crate) fn post_reads(&mut self) {
        if self.wanted.is_empty() {
            return;
        }
        let mut peers: Vec<PeerId> = self
            .links
            .iter()
            .filter(|(_, link)| link.is_up() && !link.has.is_empty())
            .map(|(peer, _)| *peer)
            .collect();
        if !peers.is_empty() {
            let at = self.next_random() % peers.len() as u64;
            peers.rotate_left(usize::try_from(at).unwrap_or(0));
        }
        for pass in [Pass::Parent, Pass::Anybody] {
            for peer in &peers {
                while self.post_to(*peer, pass) {}
            }
        }
        while self.post_to_origin() {}
    }

    fn post_to(&mut self, peer: PeerId, pass: Pass) -> bool {
        let link = &self.links[&peer];
        if !link.has_room(self.now, self.config.link_reads_max) {
            return false;
        }
        let default_rate = self.mean_rate();
        let mine = link.predicted(0, default_rate);
        let window = self.config.window_pieces as usize;
        let (mut starts, mut from) = (Vec::new(), 0);
        for _ in 0..SCAN_MAX {
            let Some(piece) = link.has.next_common(&self.wanted, from) else { break };
            from = piece.0 + 1;
            if self.is_for(peer, piece, pass, mine) {
                starts.push(piece);
                if starts.len() >= window {
                    break;
                }
            }
        }
        if starts.is_empty() {
            return false;
        }
        let at = self.next_random() % starts.len() as u64;
        let picked = starts[usize::try_from(at).unwrap_or(0)];
        let is_picked = |piece: u32| starts.binary_search(&PieceIndex(piece)).is_ok();
        let blob = self.layout.pieces_of(self.layout.span(picked).blob);
        let (mut run, most) = (Run::one(picked), self.config.peer_run_pieces.max(1));
        while run.len() < most && run.start > blob.start && is_picked(run.start.0 - 1) {
            run.start.0 -= 1;
        }
        while run.len() < most && run.end < blob.end && is_picked(run.end.0) {
            run.end.0 += 1;
        }
        self.post(Source::Peer(peer), run);
        true
    }

    fn is_for(&self, peer: PeerId, piece: PieceIndex, pass: Pass, mine: Option<Duration>) -> bool {
        if self.seeds.contains(&peer) {
            return self.is_for_seed(peer, piece);
        }
        let source = self.stripes.at(piece).source;
        let link = &self.links[&peer];
        if link.is_slow {
            // The last choice, but a choice. A seed is none: it is asked only by whoever is told to.
            let others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
            let has_other =
                others.map(|(_, link)| link).any(|other| other.is_usable() && other.has.contains(piece));
            return pass == Pass::Anybody && !has_other;
        }
        if source == StripeSource::Parent(peer) {
            return true;
        }
        let StripeSource::Parent(parent) = source else { return true };
        if pass == Pass::Parent {
            return false;
        }
        match self.links.get(&parent).filter(|parent| parent.is_usable() && parent.has.contains(piece)) {
            // An idle link is a wasted link; a busy one helps only where the parent is much later.
            Some(parent) => {
                link.reads.is_empty() || mine.zip(parent.predicted(0, None)).is_some_and(|(a, b)| a * 2 < b)
            }
            None => true,
        }
    }

    /// A seed is an origin that happens to be a peer: only a stripe's entrant asks it, and only for what nobody has.
    fn is_for_seed(&self, seed: PeerId, piece: PieceIndex) -> bool {
        let stripe = self.stripes.at(piece);
        let is_mine = stripe.source == StripeSource::Parent(seed) && self.is_handed_over(stripe);
        let others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
        (is_mine || stripe.is_last_resort)
            && !others.map(|(_, link)| link).any(|link| link.has_or_will(piece))
    }

    fn mean_rate(&self) -> Option<f64> {
        let known = self.links.values().filter_map(Link::rate);
        let (sum, count) = known.fold((0.0, 0_u32), |(sum, count), rate| (sum + rate, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    fn origin_reads_max(&self) -> u32 {
        let Some(plan) = &self.plan else { return self.config.origin_reads_max };
        let entrants = plan.members.iter().filter(|member| !member.is_seed).count() + 1;
        let entrants = u32::try_from(entrants.min(plan.stripes.len())).unwrap_or(u32::MAX);
        (ORIGIN_READS_TOTAL / entrants).clamp(1, self.config.origin_reads_max.max(1))
    }

    /// Pieces in the next read from the origin, at most. Whoever reads alone asks for much at once, because a request
    /// costs a registry more than its bytes do; and for less towards the end, so that all reads end together.
    fn origin_run_pieces(&self) -> u32 {
        if !self.config.standalone {
            return self.config.origin_run_pieces;
        }
        let left: u32 = self.stripes.all().iter().map(|stripe| stripe.wanted).sum();
        let share = left / (self.origin_reads_max().max(1) * ALONE_ROUNDS);
        share.min(ALONE_RUN_PIECES_MAX).max(self.config.origin_run_pieces)
    }

    fn post_to_origin(&mut self) -> bool {
        let OriginState::Up { ranges } = self.origin.state else { return false };
        let reads = u32::try_from(self.origin.reads.len()).unwrap_or(u32::MAX);
        if reads >= self.origin_reads_max() || self.now < self.origin.pause_until {
            return false;
        }
        let mut first: Option<PieceIndex> = None;
        for stripe in 0..self.stripes.all().len() {
            if self.may_read_origin(&self.stripes.all()[stripe])
                && let Some(piece) = self.next_for_origin(stripe, ranges)
            {
                first = Some(first.map_or(piece, |first| first.min(piece)));
            }
        }
        let Some(first) = first else { return false };
        let blob = self.layout.pieces_of(self.layout.span(first).blob);
        let mut run = Run::one(first);
        if ranges {
            let pieces_max = self.origin_run_pieces();
            while run.len() < pieces_max && run.end < blob.end && self.is_for_origin(run.end) {
                run.end.0 += 1;
            }
        } else {
            run.end = blob.end;
        }
        self.post(Source::Origin, run);
        true
    }

    /// The first piece of a stripe that only the origin can give.
    fn next_for_origin(&mut self, stripe: usize, ranges: bool) -> Option<PieceIndex> {
        let mut from = 0;
        for _ in 0..SCAN_MAX {
            let piece = self.stripes.next_wanted(stripe, from, &self.wanted)?;
            from = piece.0 + 1;
            let is_streaming = !ranges && {
                let blob = self.layout.pieces_of(self.layout.span(piece).blob);
                self.origin
                    .reads
                    .iter()
                    .filter_map(|id| self.reads.get(*id))
                    .any(|read| blob.contains(read.run.start))
            };
            if !is_streaming && self.is_for_origin(piece) {
                return Some(piece);
            }
        }
        None
    }

    /// Whether this peer is to read a stripe from the origin: one that changes hands only after whoever had it before
    /// has said what is on its way, or cannot be asked.
    fn may_read_origin(&self, stripe: &Stripe) -> bool {
        stripe.wanted > 0
            && (stripe.is_last_resort || stripe.source == StripeSource::Origin && self.is_handed_over(stripe))
    }

    fn is_handed_over(&self, stripe: &Stripe) -> bool {
        let has_said = |before: &Before| {
            self.links.get(&before.peer).is_none_or(|link| match link.state {
                LinkState::Connecting => false,
                LinkState::Up => link.coming.0 >= before.epoch,
                LinkState::Leaving | LinkState::Down { .. } => true,
            })
        };
        let handover = stripe.handover.as_ref();
        handover.is_none_or(|handover| self.now >= handover.until || handover.before.iter().all(has_said))
    }

    fn is_for_origin(&self, piece: PieceIndex) -> bool {
        let stripe = self.stripes.at(piece);
        // What is said to be coming has not come for as long as anybody waits.
        let is_with = |link: &Link| {
            if stripe.is_last_resort { link.has_for_sure(piece) } else { link.has_or_will(piece) }
        };
        // A seed is an origin too, which gives nothing of a stripe that is read here.
        let mut others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
        self.wanted.contains(piece) && self.may_read_origin(stripe) && !others.any(|(_, link)| is_with(link))
    }

    fn post(&mut self, source: Source, run: Run) {
        let (_, range) = self.layout.bytes_of(run);
        let bytes = range.end - range.start;
        let rate = self.mean_rate();
        let link = if let Source::Peer(peer) = source { self.links.get_mut(&peer) } else { None };
        let expected = link.as_ref().and_then(|link| link.predicted(bytes, rate)).unwrap_or(EXPECTED_FIRST);
        let deadline = self.now + READ_PATIENCE + Duration::from_secs(bytes / READ_RATE_MIN) + expected;
        let read = Read {
            source,
            run,
            bytes_left: bytes,
            issued: self.now,
            expected,
            is_live: true,
            is_cancelled: false,
        };
        let id = self.reads.insert(read);
        match link {
            Some(link) => link.posted(self.now, id, bytes),
            None => {
                self.origin.reads.insert(id);
            }
        }
        for piece in run.pieces() {
            self.unwant(piece);
        }
        self.outputs.push_back(Output::Read { read: id, source, run, deadline });
    }
}
