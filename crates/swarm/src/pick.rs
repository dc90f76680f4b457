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
use crate::timers::STALL_SPARED;

/// Whoever reads alone from the origin asks for so many pieces at once, at most: a read that fails late costs no more
/// than what had not come, but its connection is not used by others meanwhile. A request costs Debian's registry 3 ms of
/// processor time, a piece less than one.
const ALONE_RUN_PIECES_MAX: u32 = 64;

/// A read that others wait for takes no longer than this, unless it is one piece.
const SHARED_READ_TIME: Duration = Duration::from_millis(250);

/// In how many rounds of all its reads what is left would come, if they stayed as long as the next.
const ALONE_ROUNDS: u32 = 2;

/// Pieces looked at for one read, at most.
const SCAN_MAX: usize = 256;

/// A read may take this long plus its bytes at `READ_RATE_MIN` before the driver gives it up.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const READ_RATE_MIN: u64 = 1 << 20;

/// Assumed for a read on a link before any rate is known.
const EXPECTED_FIRST: Duration = Duration::from_millis(500);

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
        self.draw_edges();
        for peer in &peers {
            self.fill_as(*peer, Self::of_parent);
        }
        for peer in &peers {
            self.fill(*peer);
        }
        self.fill_origin();
    }

    /// Posts to a link what it has room for.
    pub(crate) fn fill(&mut self, peer: PeerId) {
        self.draw_edges();
        self.fill_as(peer, Self::of_anybody);
    }

    fn fill_as(&mut self, peer: PeerId, candidates: impl Fn(&Self, PeerId, &Link, &mut Vec<PieceIndex>)) {
        let mut starts = std::mem::take(&mut self.starts);
        while !self.wanted.is_empty()
            && let Some(link) = self.links.get(&peer)
            && link.has_room(self.now, self.config.link_reads_max)
            && !self.holds_back()
        {
            starts.clear();
            candidates(self, peer, link, &mut starts);
            if starts.is_empty() {
                break;
            }
            self.post_one_of(peer, &starts);
        }
        self.starts = starts;
    }

    fn post_one_of(&mut self, peer: PeerId, starts: &[PieceIndex]) {
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
    }

    /// The first wanted pieces of a link that `word_at` leaves, as many as the window holds; what was put off comes last.
    fn window(&self, link: &Link, word_at: impl Fn(usize) -> u64, starts: &mut Vec<PieceIndex>) {
        let window = self.config.window_pieces as usize;
        let timely = |at| word_at(at) & !self.postponed.word(at);
        starts.extend(self.wanted.common(&link.has, timely).take(window));
        if starts.is_empty() && !self.postponed.is_empty() && !self.reads_postponed() {
            starts.extend(self.wanted.common(&link.has, word_at).take(window));
        }
    }

    /// Pieces of the stripes that the link is the parent of.
    fn of_parent(&self, peer: PeerId, link: &Link, starts: &mut Vec<PieceIndex>) {
        if !link.is_slow && !link.mine.is_empty() && !self.seeds.contains(&peer) {
            self.window(link, |at| link.mine.word(at), starts);
        }
    }

    /// The same, else those that no parent gives, or not in time.
    fn of_anybody(&self, peer: PeerId, link: &Link, starts: &mut Vec<PieceIndex>) {
        if link.is_slow || self.seeds.contains(&peer) {
            return self.one_by_one(peer, link, starts);
        }
        self.of_parent(peer, link, starts);
        if starts.is_empty() && !self.edges.orphans.is_empty() {
            self.window(link, |at| self.orphans_for(peer, at), starts);
        }
    }

    /// For seeds, which are asked for what nobody has, and slow links, which are asked last.
    fn one_by_one(&self, peer: PeerId, link: &Link, starts: &mut Vec<PieceIndex>) {
        let is_for = |piece: PieceIndex| {
            if self.seeds.contains(&peer) {
                return self.is_for_seed(peer, piece);
            }
            // A seed is no other: it is asked only by whoever is told to.
            let mut others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
            !others.any(|(_, other)| other.is_usable() && other.has.contains(piece))
        };
        let pieces = self.wanted.common(&link.has, |_| u64::MAX).take(SCAN_MAX);
        starts.extend(pieces.filter(|piece| is_for(*piece)).take(self.config.window_pieces as usize));
    }

    pub(crate) fn fill_origin(&mut self) {
        while self.post_to_origin() {}
    }

    /// Whether anything is to be read at the origin or at seeds by this peer.
    pub(crate) fn reads_first_hand(&self) -> bool {
        self.stripes.all().iter().any(|stripe| {
            stripe.is_last_resort
                || match &stripe.source {
                    StripeSource::Origin => true,
                    StripeSource::Parent(parent) => self.seeds.contains(parent),
                    StripeSource::None => false,
                }
        })
    }

    /// A seed is an origin that happens to be a peer: only a stripe's entrant asks it, and only for what nobody has.
    fn is_for_seed(&self, seed: PeerId, piece: PieceIndex) -> bool {
        let stripe = self.stripes.at(piece);
        let is_mine = stripe.source == StripeSource::Parent(seed) && self.is_handed_over(stripe);
        let mut others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
        (stripe.is_last_resort || is_mine && !self.is_left_to_former(stripe, piece))
            && !others.any(|(_, link)| self.may_still_give(link, piece))
    }

    /// Whether a link has a piece or reads it, by what it last said, and is not known for long to give nothing.
    fn may_still_give(&self, link: &Link, piece: PieceIndex) -> bool {
        link.has_or_will(piece)
            || link.had(self.now, piece)
            || self.now < link.slow_since + STALL_SPARED && link.may_give(piece)
    }

    fn mean_rate(&self) -> Option<f64> {
        let known = self.links.values().filter_map(Link::rate);
        let (sum, count) = known.fold((0.0, 0_u32), |(sum, count), rate| (sum + rate, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// One read for each stripe that is read there, so that all stripes come alike fast, whoever has more of them. More
    /// would only make everybody's last pieces arrive together, at the very end. And one in all until a piece has come:
    /// whoever joins first has all stripes for a moment, and what it asks for then everybody's first pieces wait for.
    fn origin_reads_max(&self) -> u32 {
        if self.plan.is_none() {
            return self.config.origin_reads_max;
        }
        if self.origin.piece_takes.is_none() {
            return 1;
        }
        let mine = self.stripes.all().iter().filter(|stripe| self.may_read_origin(stripe)).count();
        u32::try_from(mine).unwrap_or(u32::MAX).clamp(1, self.config.origin_reads_max.max(1))
    }

    /// Pieces in the next read from the origin, at most. Others can begin with what comes in a while only: where that is
    /// one piece, a read is one. Whoever reads alone asks for much at once, because a request costs a registry more than
    /// its bytes do; and for less towards the end, so that all reads end together.
    fn origin_run_pieces(&self) -> u32 {
        if !self.config.standalone {
            let timely = |takes: Duration| SHARED_READ_TIME.as_nanos() / takes.as_nanos().max(1);
            let timely = self.origin.piece_takes.map_or(1, timely).max(1);
            return u32::try_from(timely).unwrap_or(u32::MAX).min(self.config.origin_run_pieces);
        }
        let left: u32 = self.stripes.all().iter().map(|stripe| stripe.wanted).sum();
        let share = left / (self.origin_reads_max().max(1) * ALONE_ROUNDS);
        share.min(ALONE_RUN_PIECES_MAX).max(self.config.origin_run_pieces)
    }

    fn post_to_origin(&mut self) -> bool {
        let OriginState::Up { ranges } = self.origin.state else { return false };
        let reads = u32::try_from(self.origin.reads.len()).unwrap_or(u32::MAX);
        let waits_until = self.origin.pause_until.max(self.origin.yields_until);
        if reads >= self.origin_reads_max() || self.now < waits_until {
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
        let Some(mut first) = first else { return false };
        if self.config.standalone && ranges {
            first = self.least_read(first);
        }
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

    /// Where whoever reads alone goes on: of the first blobs of which something is wanted, in the one that has the fewest
    /// reads. One file takes one write at a time, and one that is checked as a whole is hashed by one thread.
    fn least_read(&self, first: PieceIndex) -> PieceIndex {
        let reads_in = |blob: Run| {
            let reads = self.origin.reads.iter().filter_map(|id| self.reads.get(*id));
            reads.filter(|read| blob.contains(read.run.start)).count()
        };
        let (mut least, mut next) = (None, Some(first));
        for _ in 0..self.config.origin_blobs_max.max(1) {
            let Some(piece) = next else { break };
            let blob = self.layout.pieces_of(self.layout.span(piece).blob);
            let reads = reads_in(blob);
            if least.is_none_or(|(fewest, _)| reads < fewest) {
                least = Some((reads, piece));
            }
            next = self.wanted.next(blob.end.0);
        }
        least.map_or(first, |(_, piece)| piece)
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

    pub(crate) fn is_handed_over(&self, stripe: &Stripe) -> bool {
        let has_said = |before: &Before| {
            self.links.get(&before.peer).is_none_or(|link| match link.state {
                LinkState::Connecting => false,
                // Who stalls may never say it: until it does, what it last said holds.
                LinkState::Up => link.is_slow || link.coming.0 >= before.epoch,
                LinkState::Leaving | LinkState::Down { .. } => true,
            })
        };
        let handover = stripe.handover.as_ref();
        handover.is_none_or(|handover| self.now >= handover.until || handover.before.iter().all(has_said))
    }

    /// Whether a piece is left to somebody that read its stripe before, has stalled, and may have paused, or be slow.
    fn is_left_to_former(&self, stripe: &Stripe, piece: PieceIndex) -> bool {
        let handover = stripe.handover.as_ref().filter(|handover| self.now < handover.until);
        handover.is_some_and(|handover| {
            handover
                .before
                .iter()
                .any(|before| self.links.get(&before.peer).is_some_and(|link| link.may_give(piece)))
        })
    }

    fn is_for_origin(&self, piece: PieceIndex) -> bool {
        let stripe = self.stripes.at(piece);
        // What is said to be coming has not come for as long as anybody waits.
        let is_with = |link: &Link| {
            if stripe.is_last_resort { link.has_for_sure(piece) } else { self.may_still_give(link, piece) }
        };
        // A seed is an origin too, which gives nothing of a stripe that is read here.
        let mut others = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer));
        self.wanted.contains(piece)
            && self.may_read_origin(stripe)
            && !others.any(|(_, link)| is_with(link))
            && (stripe.is_last_resort || !self.is_left_to_former(stripe, piece))
    }

    fn post(&mut self, source: Source, run: Run) {
        let (_, range) = self.layout.bytes_of(run);
        let bytes = range.end - range.start;
        let link = if let Source::Peer(peer) = source { self.links.get(&peer) } else { None };
        let rate = if link.is_some_and(|link| link.rate().is_none()) { self.mean_rate() } else { None };
        let expected = link.and_then(|link| link.predicted(bytes, rate)).unwrap_or(EXPECTED_FIRST);
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
        self.is_coming_stale |= match source {
            Source::Origin => true,
            Source::Peer(peer) => self.seeds.contains(&peer),
        };
        let stalls_at = self.now + self.patience_with(source, expected);
        self.wake_due = Some(self.wake_due.map_or(stalls_at, |due| due.min(stalls_at)));
        let id = self.reads.insert(read);
        let link = if let Source::Peer(peer) = source { self.links.get_mut(&peer) } else { None };
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
