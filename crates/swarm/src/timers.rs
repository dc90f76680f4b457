//! What time does: stalled links, quiet stripes, links to open again, the very end. Does not own the choice of pieces.

use std::collections::BTreeSet;
use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use planner::{PeerId, PeerPlan, StripeSource};

use crate::io::{Output, ReadId, Source};
use crate::link::{Link, LinkState};
use crate::origin::OriginState;
use crate::reads::Read;
use crate::stripes::{Stripe, rendezvous};
use crate::swarm::{LINKS_MAX, Swarm};

/// A link is stalled when no piece came for this many times what its oldest read should have taken.
const STALL_FACTOR: u32 = 3;

/// A seed is called stalled no sooner: nobody else has what is read from it, and to ask it again costs its budget.
const SEED_STALL_MIN: Duration = Duration::from_secs(1);

/// For so long neither the origin nor a seed is asked for what somebody has who stalls: processes that share a machine all
/// pause at times, a card with many children is slow, and the piece would count against the budget, too.
pub(crate) const STALL_SPARED: Duration = SEED_STALL_MIN;

/// A link is silent when no byte came for this long though reads are out: on the slowest card something comes sooner,
/// and it is as long as schedulers take to call one another dead.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// How long after a scheduler was lost another one may take over: peers are with the next one in less than a second,
/// and a stripe that nobody reads meanwhile waits no longer than this.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// A peer that runs this much later than it was due was stopped, or starved by others on its machine.
const LATE: Duration = Duration::from_millis(50);

/// Bytes in flight in all below which the end is near enough to read a piece twice.
const HEDGE_BYTES: u64 = 8 << 20;

/// At the very end a read is hedged after this many times what an idle link would need.
const HEDGE_FACTOR: u32 = 2;

/// Stripes whose backups are linked while nothing is wrong: whoever they are, they hold or will hold every stripe, and
/// announcements to many more would cost more than opening a link does when it is needed.
const WARM_STRIPES: usize = 4;

/// Members, first in rendezvous order, that are linked when a stripe is quiet.
const LOOK_AROUND: usize = 3;

/// Without scheduler, origin and news for this long, no source will come.
const NO_SOURCE_AFTER: Duration = Duration::from_secs(30);

impl Swarm {
    /// When a link with reads out will have stalled, unless something comes.
    pub fn stalls_at(&self, peer: PeerId) -> Option<Duration> {
        self.links.get(&peer).and_then(|link| self.link_stalls_at(peer, link))
    }

    /// How long what is out on a link should take from now on, if its rate is known.
    pub fn predicted(&self, peer: PeerId) -> Option<Duration> {
        self.links.get(&peer).and_then(|link| link.predicted(0, None))
    }

    fn link_stalls_at(&self, peer: PeerId, link: &Link) -> Option<Duration> {
        let oldest = link.reads.iter().find_map(|id| self.reads.get(*id).filter(|read| read.is_live))?;
        if self.owes_nothing(link) {
            return None;
        }
        Some(oldest.issued.max(link.last_piece) + self.patience_with(Source::Peer(peer), oldest.expected))
    }

    /// Whether a link has never given anything, and should have by now: others need not be spared for what it announces.
    pub(crate) fn is_late_with_its_first(&self, link: &Link) -> bool {
        let is_late = |read: &Read| {
            let since = read.issued.max(link.last_piece);
            read.is_live && self.now >= since + read.expected.max(self.config.stall_min)
        };
        link.rate().is_none()
            && link.reads.iter().filter_map(|id| self.reads.get(*id)).any(is_late)
            && !self.owes_nothing(link)
    }

    /// Whether all that is out on a link has come, and waits to be checked: its other end could not do more.
    fn owes_nothing(&self, link: &Link) -> bool {
        let out = link.reads.iter().filter_map(|id| self.reads.get(*id));
        link.has_sent(out.map(|read| read.bytes_left.div_ceil(PIECE_BYTES)).sum())
    }

    /// A piece was checked, whatever came of it.
    pub(crate) fn checked(&mut self, id: ReadId) {
        if let Some(Source::Peer(peer)) = self.reads.get(id).map(|read| read.source)
            && let Some(link) = self.links.get_mut(&peer)
        {
            link.checked();
        }
    }

    /// How long a source may give no piece that asks so much time for one.
    pub(crate) fn patience_with(&self, source: Source, expected: Duration) -> Duration {
        let is_seed = matches!(source, Source::Peer(peer) if self.seeds.contains(&peer));
        let least = if is_seed { SEED_STALL_MIN } else { Duration::ZERO };
        (expected * STALL_FACTOR).max(self.config.stall_min).max(least)
    }

    pub(crate) fn give_up_stalled(&mut self) {
        let mut stalled: BTreeSet<PeerId> = self
            .links
            .iter()
            .filter(|(peer, link)| self.link_stalls_at(**peer, link).is_some_and(|at| at <= self.now))
            .map(|(peer, _)| *peer)
            .collect();
        self.stalls += stalled.len() as u64;
        stalled.extend(self.hedged());
        for peer in stalled {
            self.abandon_link(peer);
            if let Some(link) = self.links.get_mut(&peer) {
                if !std::mem::replace(&mut link.is_slow, true) {
                    link.slow_since = self.now;
                }
                self.edges.are_stale = true;
            }
        }
    }

    /// Tells the scheduler which parents stall: sooner than they can be called silent it may see that nobody gets anything.
    pub(crate) fn tell_stalled(&mut self) {
        let is_due = |link: &Link| self.told_stalled_at(link).is_some_and(|at| at <= self.now);
        let stalled: Vec<PeerId> =
            self.links.iter().filter(|(_, link)| is_due(link)).map(|(peer, _)| *peer).collect();
        for peer in stalled {
            if let Some(link) = self.links.get_mut(&peer) {
                link.is_told_stalled = true;
            }
            self.outputs.push_back(Output::Stalled { peer });
        }
    }

    fn told_stalled_at(&self, link: &Link) -> Option<Duration> {
        let counts = link.is_up() && link.is_slow && !link.is_told_stalled && !link.reads.is_empty();
        (counts && !link.mine.is_empty()).then_some(link.last_byte + self.config.stall_min)
    }

    /// Tells the scheduler of those that serve nothing, or not all that they claim: it takes them for alive, and plans by
    /// what they announce.
    pub(crate) fn report_silent(&mut self) {
        let is_refusing = |link: &Link| refuses_until(link).is_some_and(|at| at <= self.now);
        let refusing: Vec<PeerId> =
            self.links.iter().filter(|(_, link)| is_refusing(link)).map(|(peer, _)| *peer).collect();
        for peer in refusing {
            self.report(peer);
        }
        let is_silent = |link: &Link| silent_at(link).is_some_and(|at| at <= self.now);
        let silent: Vec<PeerId> =
            self.links.iter().filter(|(_, link)| is_silent(link)).map(|(peer, _)| *peer).collect();
        for peer in silent {
            self.report(peer);
            // Its reads hold buffers that others could use.
            self.outputs.push_back(Output::Disconnect { peer });
            self.link_down(peer);
        }
    }

    /// The scheduler names sources that it was told give nothing: it does not believe that any more.
    pub(crate) fn rely_on_parents(&mut self, plan: &PeerPlan) {
        for part in &plan.stripes {
            if let StripeSource::Parent(parent) = part.source
                && let Some(link) = self.links.get_mut(&parent)
            {
                link.relied_on(self.now);
            }
        }
    }

    /// To a new scheduler everybody is in good standing, and one that names whom this peer accuses has not heard of it.
    pub(crate) fn accuse_again(&mut self, plan: &PeerPlan) {
        let is_named = |peer: &PeerId| plan.members.iter().any(|member| member.id == *peer);
        let unheard = self.blamed.iter().filter(|(peer, _)| self.lost_at.is_some() || is_named(peer));
        self.outputs.extend(unheard.map(|(peer, piece)| Output::Blame { peer: *peer, piece: *piece }));
    }

    pub(crate) fn report(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer).filter(|link| !link.is_reported) {
            link.reported();
            self.outputs.push_back(Output::Silent { peer });
        }
    }

    /// If this peer did not run when it was due, nothing that came meanwhile was heard: nobody was silent.
    pub(crate) fn forgive(&mut self, now: Duration) {
        if self.wake_due.is_some_and(|due| now > due + LATE) {
            let unheard = now.saturating_sub(self.now);
            for link in self.links.values_mut() {
                link.last_piece += unheard;
                link.last_byte += unheard;
            }
        }
    }

    /// Links that hold up the very end though an idle one could give the same.
    fn hedged(&self) -> Vec<PeerId> {
        if !self.wanted.is_empty()
            || self.reads.iter().map(|(_, read)| read.bytes_left).sum::<u64>() > HEDGE_BYTES
        {
            return Vec::new();
        }
        let peers = self.links.iter().filter(|(peer, _)| !self.seeds.contains(peer)).map(|(_, link)| link);
        let idle: Vec<&Link> = peers.filter(|link| link.is_usable() && link.reads.is_empty()).collect();
        let is_late = |link: &Link| {
            !self.owes_nothing(link)
                && link.reads.iter().filter_map(|id| self.reads.get(*id)).filter(|read| read.is_live).any(
                    |read| {
                        let missing = read.run.pieces().find(|piece| !self.have.contains(*piece));
                        let other = idle
                            .iter()
                            .filter(|other| missing.is_some_and(|piece| other.has.contains(piece)));
                        other.filter_map(|other| other.predicted(read.bytes_left, None)).min().is_some_and(
                            |alternative| {
                                self.now
                                    >= read.issued + (alternative * HEDGE_FACTOR).max(self.config.stall_min)
                            },
                        )
                    },
                )
        };
        self.links.iter().filter(|(_, link)| is_late(link)).map(|(peer, _)| *peer).collect()
    }

    fn is_planned(&self) -> bool {
        self.lost_at.is_none()
    }

    /// Whether a scheduler is there, or another one may be taking over.
    fn has_scheduler(&self) -> bool {
        self.is_planned() || self.take_over_ends().is_some_and(|at| self.now < at)
    }

    /// Until when nobody reads for himself what another scheduler may be planning. Without a plan there is none.
    fn take_over_ends(&self) -> Option<Duration> {
        self.plan.as_ref()?;
        self.lost_at.map(|at| at + TAKE_OVER)
    }

    /// Whether a stripe that is quiet gets another source from the scheduler: if that is there and can see why. A
    /// peer that serves wrong bytes, or none, is alive to it.
    fn is_schedulers_business(&self, stripe: &Stripe) -> bool {
        let is_useless =
            |peer| self.blamed.contains_key(peer) || self.links.get(peer).is_some_and(Link::is_failing);
        self.has_scheduler() && !matches!(&stripe.source, StripeSource::Parent(parent) if is_useless(parent))
    }

    /// Quiet stripes: first link those who would read them from the origin before us, then read it ourselves.
    pub(crate) fn look_around(&mut self) {
        if self.plan.is_none() {
            return;
        }
        for number in 0..self.stripes.all().len() {
            let stripe = &self.stripes.all()[number];
            let quiet_at =
                |times| stripe.quiet_at(times, self.config.stall_min, self.is_schedulers_business(stripe));
            if stripe.wanted == 0 || quiet_at(1) > self.now {
                continue;
            }
            let order = self.rendezvous_order(number);
            let rank = order.iter().position(|peer| *peer == self.config.me).unwrap_or(order.len());
            let turns = u32::try_from(rank + 1).unwrap_or(u32::MAX);
            let is_my_turn = quiet_at(turns) <= self.now;
            for peer in order.into_iter().take(LOOK_AROUND) {
                self.connect(peer);
            }
            if is_my_turn {
                for seed in self.seeds.clone() {
                    self.connect(seed);
                }
                self.stripes.all_mut()[number].is_last_resort = true;
                self.edges.are_stale = true;
            }
        }
    }

    /// The live known members of the swarm and this peer, in the order in which they touch a stripe at the origin.
    fn rendezvous_order(&self, stripe: usize) -> Vec<PeerId> {
        let is_live = |peer: &PeerId| {
            !self.links.get(peer).is_some_and(Link::is_gone) && !self.blamed.contains_key(peer)
        };
        let known = self.plan.iter().flat_map(|plan| &plan.members).filter(|member| !member.is_seed);
        let mut order: Vec<PeerId> = known.map(|member| member.id).filter(is_live).collect();
        order.push(self.config.me);
        order.sort_by_key(|peer| (rendezvous(*peer, stripe), *peer));
        order
    }

    pub(crate) fn open_links(&mut self) {
        if self.plan.is_none() {
            return;
        }
        let mut peers = BTreeSet::new();
        for (number, stripe) in self.stripes.all().iter().enumerate() {
            if number < WARM_STRIPES || self.needs_backups(number) {
                peers.extend(stripe.backups.iter().copied());
            }
            if let StripeSource::Parent(parent) = stripe.source {
                peers.insert(parent);
            }
        }
        peers.extend(self.links.keys().copied());
        for peer in peers {
            self.connect(peer);
        }
    }

    fn connect(&mut self, peer: PeerId) {
        if peer == self.config.me || self.blamed.contains_key(&peer) {
            return;
        }
        match self.links.get(&peer).map(|link| link.state) {
            None if self.links.len() < LINKS_MAX => {}
            Some(LinkState::Down { retry_at }) if retry_at <= self.now => {}
            _ => return,
        }
        let member = self.plan.iter().flat_map(|plan| &plan.members).find(|member| member.id == peer);
        let Some(address) = member.map(|member| member.contact.address.to_string()) else { return };
        let piece_count = self.layout.piece_count();
        self.links.entry(peer).or_insert_with(|| Link::new(piece_count)).state = LinkState::Connecting;
        self.outputs.push_back(Output::Connect { peer, address });
    }

    /// Whether nothing can ever bring the rest.
    pub(crate) fn is_hopeless(&self) -> bool {
        if self.origin.state != OriginState::Down {
            return false;
        }
        let has_scheduler = self.is_planned() && !self.config.standalone;
        let can_wait = has_scheduler || self.plan.as_ref().is_some_and(|plan| !plan.members.is_empty());
        !can_wait || self.now >= self.last_news + NO_SOURCE_AFTER && !self.has_hope()
    }

    /// Whether something is on its way, or a seed has it and is asked when this peer's turn comes.
    fn has_hope(&self) -> bool {
        let is_coming =
            |link: &Link| link.reads.iter().filter_map(|id| self.reads.get(*id)).any(|read| read.is_live);
        self.links.iter().filter(|(_, link)| link.is_usable()).any(|(peer, link)| {
            is_coming(link) || self.seeds.contains(peer) && self.wanted.count_common(&link.has) > 0
        })
    }

    /// Every moment at which time alone may change something. Moments that have passed may be among them.
    pub(crate) fn timers(&self) -> impl Iterator<Item = Duration> + '_ {
        let stalls = self.links.iter().filter_map(|(peer, link)| self.link_stalls_at(*peer, link));
        let told = self.links.values().filter_map(|link| self.told_stalled_at(link));
        let silences =
            self.links.values().flat_map(|link| silent_at(link).into_iter().chain(refuses_until(link)));
        let retries = self.links.values().map(|link| match link.state {
            LinkState::Down { retry_at } => retry_at,
            LinkState::Connecting | LinkState::Up | LinkState::Leaving => link.pause_until,
        });
        let quiet = self.stripes.all().iter().filter(|stripe| stripe.wanted > 0 && self.plan.is_some()).map(
            |stripe| {
                let is_planned = self.is_schedulers_business(stripe);
                let turn = |turns| stripe.quiet_at(turns, self.config.stall_min, is_planned);
                let patience = turn(1).saturating_sub(turn(0)).max(self.config.stall_min);
                let passed = self.now.saturating_sub(turn(0)).as_nanos() / patience.as_nanos().max(1);
                turn(0) + patience * u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1)
            },
        );
        let slow = self.links.values().filter(|link| link.is_slow);
        let spared = slow.map(|link| link.slow_since + STALL_SPARED);
        let missed = self.links.values().filter_map(Link::missed_until);
        let handovers = self.stripes.all().iter().filter_map(|stripe| Some(stripe.handover.as_ref()?.until));
        let origin = handovers.chain([self.origin.pause_until, self.origin.yields_until]);
        // A link that is idle now may help somebody's parent out later, also at the very end.
        let end = (!self.links.is_empty()).then_some(self.now + self.config.stall_min);
        let hopeless = (self.origin.state == OriginState::Down).then_some(self.last_news + NO_SOURCE_AFTER);
        let take_over = self.take_over_ends();
        stalls
            .chain(told)
            .chain(silences)
            .chain(spared)
            .chain(missed)
            .chain(take_over)
            .chain(retries)
            .chain(quiet)
            .chain(origin)
            .chain(end)
            .chain(hopeless)
    }
}

/// When a link that does not give what it should will have been silent for too long.
fn silent_at(link: &Link) -> Option<Duration> {
    let counts = link.is_up() && link.is_slow && !link.is_reported && !link.reads.is_empty();
    counts.then_some(link.last_byte + SILENT_AFTER)
}

/// When a link that does not have what it announced will have had the time to say so.
fn refuses_until(link: &Link) -> Option<Duration> {
    link.refusing_since().map(|since| since + SILENT_AFTER)
}
