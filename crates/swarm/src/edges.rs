//! Which pieces are whose by the plan, as sets, so that a source is found by a few operations on words. Does not own the
//! choice (`pick`), nor the plan (`stripes`).

use std::time::Duration;

use modelpack::layout::PieceIndex;
use planner::{PeerId, StripeSet, StripeSource};

use crate::bits::Bits;
use crate::io::Output;
use crate::link::Link;
use crate::stripes::{Stripe, mix};
use crate::swarm::Swarm;

/// A stripe is behind when this part of it is wanted though others have it: more than the parts of a tree differ by.
const BEHIND_SHARE: u32 = 12;
const BEHIND_MIN: u32 = 2;

/// What is so many times further behind, and by so many pieces, is fetched from other racks by whoever wants it: what one
/// peer lets into a rack comes a little later than what others do, and several would ask for the same.
const MUCH: u32 = 2;
const MUCH_MIN: u32 = 8;

/// Or when most stripes have been done for this part of the time that they took, and for this long: trees have drained
/// by then.
const DRAIN_SHARE: u32 = 100;
const DRAIN_MIN: Duration = Duration::from_millis(10);

/// A parent that has neither given nor announced anything for this many times the patience with it may never do.
const RESTS_LONG: u32 = 2;

/// Whoever may ask anybody for a piece does so when it sees it in this part of its links at the latest.
const SPREAD_SHARE: usize = 3;

/// It is looked for stripes that are behind as often as this within the time that has passed, but not again so soon.
const LOOKS: u32 = 256;
const LOOK_MIN: Duration = Duration::from_millis(1);

/// Whether others have what a stripe's parent should have given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Not,
    /// Nothing is on its way: others that are near are asked.
    Near,
    /// So much of it that others are asked, or trees have drained, and cards are idle.
    Some,
    /// So much of it that others are asked in other racks, too.
    Much,
}

/// The plan's edges, as they stand.
#[derive(Clone, Debug)]
pub(crate) struct Edges {
    /// Pieces that anybody may give: of stripes that no usable link is the parent of, or that are behind.
    pub(crate) orphans: Bits,
    /// Those of them that may be asked of other racks.
    away: Bits,
    /// Pieces that are spread widely enough to be asked of anybody.
    spread: Bits,
    /// Which stripes are behind, or may be because trees have drained.
    behind: Vec<Behind>,
    /// When that was seen.
    looked_at: Duration,
    /// Since when most stripes are done.
    draining_since: Option<Duration>,
    /// Whether they have been for long.
    is_drained: bool,
    /// Since when nothing is on its way here, though something is wanted.
    starved_since: Option<Duration>,
    /// Whether that has been so for long.
    is_starved: bool,
    /// Whether plan or links have changed since these were drawn.
    pub(crate) are_stale: bool,
}

impl Edges {
    pub(crate) fn new(piece_count: u32) -> Self {
        Self {
            orphans: Bits::empty(piece_count),
            away: Bits::empty(piece_count),
            spread: Bits::empty(piece_count),
            behind: Vec::new(),
            looked_at: Duration::ZERO,
            draining_since: None,
            is_drained: false,
            starved_since: None,
            is_starved: false,
            are_stale: true,
        }
    }
}

impl Swarm {
    /// Draws the edges anew, if anything has changed.
    pub(crate) fn draw_edges(&mut self) {
        if !std::mem::take(&mut self.edges.are_stale) {
            return;
        }
        let stripes = self.stripes.all();
        for (peer, link) in &mut self.links {
            let numbered = stripes.iter().enumerate();
            let its = numbered.filter(|(_, stripe)| stripe.source == StripeSource::Parent(*peer));
            link.is_parent_of(its.map(|(number, _)| number), self.stripes.masks());
        }
        self.edges.orphans.clear();
        self.edges.away.clear();
        let mut orphaned = 0;
        for (number, (stripe, mask)) in stripes.iter().zip(self.stripes.masks()).enumerate() {
            let parent = match stripe.source {
                StripeSource::Parent(parent) => self.links.get(&parent),
                StripeSource::Origin | StripeSource::None => None,
            };
            let usable = parent.filter(|link| link.is_usable());
            let is_far = matches!(&stripe.source, StripeSource::Parent(parent) if self.far.contains(parent));
            let behind = self.edges.behind.get(number).copied().unwrap_or(Behind::Not);
            let rests = usable.map_or(0, |link| link.rests(self.now, self.config.stall_min));
            // A seed is asked for what nobody else has.
            let is_seed =
                matches!(&stripe.source, StripeSource::Parent(parent) if self.seeds.contains(parent));
            let gives = usable.is_some_and(|link| rests < RESTS_LONG && !link.is_vain(self.now));
            if !gives || is_seed || stripe.is_last_resort {
                self.edges.orphans.unite(mask);
                self.edges.away.unite(mask);
                orphaned |= bit(number);
            } else if rests > 0 || behind != Behind::Not {
                self.edges.orphans.unite_common(mask, &self.edges.spread);
                // What somebody lets into this rack in time is not fetched there by others too.
                if is_far && (rests > 0 || behind != Behind::Near) || behind == Behind::Much {
                    self.edges.away.unite_common(mask, &self.edges.spread);
                }
                orphaned |= bit(number);
            }
        }
        self.say_interests(orphaned);
    }

    /// Orphans that a link may be asked for, in a word of them: of another rack only what nobody has who is near.
    pub(crate) fn orphans_for(&self, peer: PeerId, word: usize) -> u64 {
        if !self.far.contains(&peer) {
            return self.edges.orphans.word(word);
        }
        // A seed near by is asked for what nobody has, by whoever is told to.
        let is_far = |peer| self.far.contains(peer) || self.seeds.contains(peer);
        let counts = |link: &Link| link.is_usable() && !self.is_late_with_its_first(link);
        let near = self.links.iter().filter(|(peer, link)| counts(link) && !is_far(peer));
        match self.edges.away.word(word) {
            0 => 0,
            away => near.fold(away, |left, (_, link)| left & !link.has.word(word)),
        }
    }

    /// Asks every link for early news of what is read from it: the stripes that it is the parent of, and those that
    /// anybody may give.
    fn say_interests(&mut self, orphaned: u64) {
        let (stripes, stripe_pieces) = (self.stripes.all(), self.stripes.stripe_pieces());
        let count = u32::try_from(stripes.len()).unwrap_or(u32::MAX);
        for (peer, link) in self.links.iter_mut().filter(|(_, link)| link.is_up()) {
            let of_parent =
                stripes.iter().enumerate().filter(|(_, stripe)| stripe.source == StripeSource::Parent(*peer));
            let bits = of_parent.fold(orphaned, |bits, (number, _)| bits | bit(number));
            // Whoever has more stripes than a set can tell apart hears of everything at once.
            let interest = StripeSet::new(stripe_pieces, count, bits);
            if let Some(stripes) = interest.filter(|_| link.interest != interest) {
                link.interest = interest;
                self.outputs.push_back(Output::Interest { peer: *peer, stripes });
            }
        }
    }

    /// Finds the stripes whose parents give later than others would: what those have of it is asked of anybody. While all
    /// parents give alike, pieces that somebody else has sooner are left to them.
    pub(crate) fn see_who_is_behind(&mut self) {
        let elapsed = self.now.saturating_sub(self.started);
        if self.now < self.edges.looked_at + (elapsed / LOOKS).max(LOOK_MIN) {
            return;
        }
        self.edges.looked_at = self.now;
        self.see_whether_the_wave_is_over();
        self.see_what_is_spread();
        self.see_whether_trees_drain(elapsed);
        let stripes = self.stripes.all();
        let whole = self.layout.piece_count() / u32::try_from(stripes.len()).unwrap_or(u32::MAX);
        let behind_from = (whole / BEHIND_SHARE).max(BEHIND_MIN);
        let much_from = (behind_from * MUCH).max(MUCH_MIN);
        let mut lags = vec![0; stripes.len()];
        for piece in self.wanted.common(&self.edges.spread, |at| !self.postponed.word(at)) {
            lags[self.stripes.number(piece)] += 1;
        }
        let is_behind = |(stripe, lag): (&Stripe, u32)| {
            let has_parent = matches!(stripe.source, StripeSource::Parent(_));
            if !has_parent || stripe.wanted == 0 {
                return Behind::Not;
            }
            match lag {
                lag if lag >= much_from => Behind::Much,
                lag if lag >= behind_from || self.edges.is_drained => Behind::Some,
                _ if self.edges.is_starved => Behind::Near,
                _ => Behind::Not,
            }
        };
        let behind: Vec<Behind> = stripes.iter().zip(lags).map(is_behind).collect();
        let is_resting =
            |link: &Link| link.rests(self.now, self.config.stall_min) > 0 || link.is_vain(self.now);
        let rests = self.links.values().any(|link| !link.mine.is_empty() && is_resting(link));
        // What is spread has changed, too.
        self.edges.are_stale |=
            behind != self.edges.behind || behind.iter().any(|at| *at != Behind::Not) || rests;
        self.edges.behind = behind;
    }

    /// What one peer alone has is on its way down a tree: if everybody asked that one for it, its card would be kept from
    /// its children, and would send the same again and again. So each peer draws for each piece in how many links it has
    /// to be, and about as many ask for it as have it, until all may.
    fn see_what_is_spread(&mut self) {
        let usable = self.links.values().filter(|link| link.is_usable());
        let links: Vec<&Bits> = usable.map(|link| &link.has).collect();
        let places = (links.len() / SPREAD_SHARE).max(1).ilog2();
        let seed = mix(self.config.seed);
        let drawn = |at: usize, place: u32| {
            if place < places { mix(seed ^ (at as u64) << u8::BITS ^ u64::from(place)) } else { 0 }
        };
        // What is here is not asked for any more.
        let missing = self.have.next_missing(PieceIndex(0)).unwrap_or(PieceIndex(self.layout.piece_count()));
        let among = (missing, self.layout.piece_count());
        self.edges.spread = Bits::in_more_than(&links, places, drawn, among);
    }

    /// Once most stripes are done, whoever still has pieces to give has a card to spare. While nothing is on its way here,
    /// this peer has: the parents of what it wants may have less than others.
    fn see_whether_trees_drain(&mut self, elapsed: Duration) {
        let mut left: Vec<u32> = self.stripes.all().iter().map(|stripe| stripe.wanted).collect();
        left.sort_unstable();
        if left.get(left.len() / 2).is_some_and(|middle| *middle > 0) {
            self.edges.draining_since = None;
        }
        if self.wanted.is_empty() || self.reads.iter().any(|(_, read)| read.is_live) {
            self.edges.starved_since = None;
        }
        let patience = (elapsed / DRAIN_SHARE).max(DRAIN_MIN);
        let is_long = |since: Duration| self.now > since && self.now >= since + patience;
        let draining = *self.edges.draining_since.get_or_insert(self.now);
        let starved = *self.edges.starved_since.get_or_insert(self.now);
        (self.edges.is_drained, self.edges.is_starved) = (is_long(draining), is_long(starved));
    }

    /// Whether backups of a stripe are to be linked: its parent does not do, or it is read first hand.
    pub(crate) fn needs_backups(&self, number: usize) -> bool {
        let stripe = &self.stripes.all()[number];
        let StripeSource::Parent(parent) = stripe.source else { return true };
        self.links.get(&parent).is_some_and(|link| link.is_slow || link.is_gone())
            || self.seeds.contains(&parent)
            || self.edges.behind.get(number).is_some_and(|at| matches!(at, Behind::Some | Behind::Much))
    }
}

/// The bit of a stripe in a [`StripeSet`].
fn bit(stripe: usize) -> u64 {
    u32::try_from(stripe).ok().and_then(|stripe| 1_u64.checked_shl(stripe)).unwrap_or(0)
}
