//! The members of one swarm, sorted by the part that each can play. Does not own who plays it (`swarm_state`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use modelpack::piece_map::PieceMap;

use super::briefs::{Brief, Briefs};
use crate::forest::{Node, STRIPES};
use crate::id::PeerId;
use crate::plan::Contact;
use crate::planner::Registered;
use crate::quarantine::Standing;

/// No member.
pub(super) const NOBODY: Node = Node::MAX;

/// Backups named for each stripe: with a parent, three sources must fail together before a peer has to look around.
pub(super) const BACKUPS: usize = 2;

/// For each stripe, who may serve it if the parent does not.
pub(super) type Backups = [[Node; BACKUPS]; STRIPES];

/// What somebody can be to the others. The lower the rank, the sooner it serves.
const RANKS: usize = 5;

/// Nobody reads from those.
const QUARANTINED: usize = RANKS - 1;

/// By how much less: who is found slow has less than a quarter of the pace, and mostly not much less.
const SLOW_SHARE: u64 = 8;

/// Which part a member can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It wants pieces.
    Wanting,
    /// In a repair: it wants pieces and has not noticed. It is given right pieces, but what it has may be wrong, so that
    /// nobody reads from it.
    Unaware,
    /// It has everything.
    Holder,
    /// It announces a local artifact, and has everything.
    Seed,
    /// It has everything from before a repair, and may have it wrong.
    Apart,
}

/// By what a member is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) part: Part,
    /// 0 and 1: in good standing, quick or with a slow card; 2 and 3: the same of suspects; 4: quarantined.
    pub(super) rank: usize,
    /// The same, where whoever is slow at the origin comes second too: its card is as good as others' for what it has.
    pub(super) entry_rank: usize,
    /// What its card does for this swarm; 0 if that is not known.
    pub(super) rate: u64,
    /// The same, however slow it turned out to be.
    pub(super) claims: u64,
    pub(super) is_slow_card: bool,
    reads_origin: bool,
}

/// Whether somebody can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadsOrigin {
    Yes,
    OrNot,
}

/// A member that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Straggles {
    pub(super) until: Duration,
    /// It is slow in all that it gets, and not only at the origin.
    pub(super) is_slow_card: bool,
}

#[derive(Debug)]
pub(crate) struct MemberState {
    pub(crate) peer: PeerId,
    pub(crate) facts: Arc<Registered>,
    pub(super) origin_ok: bool,
    pub(crate) is_seed: bool,
    pub(super) priority: crate::priority::Priority,
    /// What of its card is counted with for this swarm, in bytes per second; 0 if that is not known.
    pub(crate) rate: u64,
    /// How often its pieces did not add up to the manifest's digest.
    pub(super) round: u32,
    pub(crate) have: PieceMap,
    /// How many pieces of each stripe it has.
    pub(super) held: [u32; STRIPES],
    /// How many pieces of each stripe it was reading from the origin when it joined, if any.
    pub(super) in_flight: Option<Box<[u32; STRIPES]>>,
    /// Whether nobody waits for it: it was much slower than the others.
    pub(super) straggles: Option<Straggles>,
    /// As it was sorted last.
    pub(super) class: Option<Class>,
    /// The rack that it is in.
    pub(super) rack: usize,
    /// What it was told last, in short.
    pub(super) told: Option<u64>,
}

impl MemberState {
    /// Takes note of what it has, and says of each new piece which stripe it is of.
    pub(super) fn add(
        &mut self,
        (stripe_pieces, stripes): (u32, usize),
        runs: &[Run],
        mut got: impl FnMut(usize, PieceIndex),
    ) {
        for run in runs {
            let end = run.end.0.min(self.have.piece_count());
            for piece in Run::new(run.start.0.min(end), end).pieces() {
                if self.have.insert(piece) {
                    let stripe = (piece.0 / stripe_pieces) as usize % stripes;
                    self.held[stripe] += 1;
                    got(stripe, piece);
                }
            }
        }
    }

    pub(super) fn in_flight(&self, stripe: usize) -> u32 {
        self.in_flight.as_ref().map_or(0, |counts| counts[stripe])
    }

    /// How many pieces of a stripe it has, or had on their way from the origin when it joined.
    pub(super) fn begun(&self, stripe: usize) -> u32 {
        self.held[stripe] + self.in_flight(stripe)
    }

    /// What of its card is counted with, if that is known.
    pub(crate) fn counts(&self) -> Option<u64> {
        let given = self.facts.nic_rate.filter(|given| rounded(*given) == self.rate);
        given.or(Some(self.rate)).filter(|rate| *rate > 0)
    }

    fn class(&self, round: u32) -> Class {
        let is_aware = self.round == round;
        let part = match (self.have.is_full(), is_aware, self.is_seed) {
            (false, true, _) => Part::Wanting,
            (false, false, _) => Part::Unaware,
            (true, true, false) => Part::Holder,
            (true, true, true) => Part::Seed,
            (true, false, _) => Part::Apart,
        };
        let is_slow_card = self.straggles.is_some_and(|straggles| straggles.is_slow_card);
        let rank = |straggles: bool| match self.facts.standing {
            Standing::Good => usize::from(straggles),
            Standing::Suspect => 2 + usize::from(straggles),
            Standing::Quarantined => QUARANTINED,
        };
        let (rank, entry_rank) = (rank(is_slow_card), rank(self.straggles.is_some()));
        let (claims, rate) = (self.rate, slowed(self.rate, is_slow_card));
        Class { part, rank, entry_rank, rate, claims, is_slow_card, reads_origin: self.origin_ok }
    }
}

/// Members of one kind, those with the fastest cards first.
#[derive(Debug, Default)]
pub(super) struct Kind {
    by_rate: BTreeSet<(Reverse<u64>, Node)>,
    /// Of those whose rate is known.
    sum: u128,
    known: u64,
}

impl Kind {
    fn put(&mut self, node: Node, rate: u64) {
        self.by_rate.insert((Reverse(rate), node));
        self.sum += u128::from(rate);
        self.known += u64::from(rate > 0);
    }

    fn take(&mut self, node: Node, rate: u64) {
        self.by_rate.remove(&(Reverse(rate), node));
        self.sum -= u128::from(rate);
        self.known -= u64::from(rate > 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_rate.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.by_rate.len() as u64
    }

    /// 0 if none is known.
    pub(super) fn fastest(&self) -> u64 {
        self.by_rate.first().map_or(0, |(rate, _)| rate.0)
    }

    pub(super) fn has_unknown(&self) -> bool {
        self.known < self.len()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.by_rate.iter().map(|(_, node)| *node)
    }

    /// The first whose rate is not known.
    pub(super) fn nodes_unknown(&self) -> impl Iterator<Item = Node> + '_ {
        self.by_rate.range((Reverse(0), 0)..).map(|(_, node)| *node)
    }
}

/// Rates of several kinds together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rated {
    pub(super) count: u64,
    pub(super) known: u64,
    pub(super) sum: u128,
    /// The slowest known, 0 if there is none.
    pub(super) slowest: u64,
    /// The fastest known, 0 if there is none.
    pub(super) fastest: u64,
}

impl Rated {
    /// Of these, all of which are known.
    pub(crate) fn of(rates: impl Iterator<Item = u64>) -> Self {
        rates.fold(Self::default(), |all, rate| Self {
            count: all.count + 1,
            known: all.known + 1,
            sum: all.sum + u128::from(rate),
            slowest: if all.known == 0 { rate } else { all.slowest.min(rate) },
            fastest: all.fastest.max(rate),
        })
    }

    fn and(self, kind: &Kind) -> Self {
        let slowest = kind.by_rate.range(..(Reverse(0), 0)).next_back().map_or(0, |(rate, _)| rate.0);
        let known = [self.slowest, slowest].into_iter().filter(|rate| *rate > 0).min();
        Self {
            count: self.count + kind.len(),
            known: self.known + kind.known,
            sum: self.sum + kind.sum,
            slowest: known.unwrap_or(0),
            fastest: self.fastest.max(kind.fastest()),
        }
    }

    /// What peers that do not know theirs count as.
    pub(super) fn mean(&self) -> u64 {
        u64::try_from(self.sum / u128::from(self.known.max(1))).unwrap_or(u64::MAX).max(1)
    }

    /// The sum, where those that are not known count as `mean`.
    pub(super) fn weight(&self, mean: u64) -> u128 {
        self.sum + u128::from(self.count - self.known) * u128::from(mean)
    }
}

/// Members by what they are to the others, and by rank.
#[derive(Debug, Default)]
struct Kinds {
    wanting: [Kind; RANKS],
    /// The same by how well they do as entrants, and those of them that can read the origin.
    entering: [Kind; RANKS],
    reading: [Kind; RANKS],
    holders: [Kind; RANKS],
}

impl Kinds {
    fn count(&mut self, node: Node, class: Class, how: fn(&mut Kind, Node, u64)) {
        let Class { part, rank, entry_rank, rate, reads_origin, .. } = class;
        match part {
            Part::Wanting => {
                how(&mut self.wanting[rank], node, rate);
                how(&mut self.entering[entry_rank], node, rate);
                if reads_origin {
                    how(&mut self.reading[entry_rank], node, rate);
                }
            }
            Part::Holder => how(&mut self.holders[rank], node, rate),
            Part::Unaware | Part::Seed | Part::Apart => {}
        }
    }

    fn wanting(&self) -> Rated {
        self.wanting.iter().fold(Rated::default(), Rated::and)
    }

    fn sending(&self, serving: Option<usize>) -> Rated {
        let serving = serving.map(|rank| &self.wanting[rank]);
        serving.into_iter().chain([&self.holders[0]]).fold(Rated::default(), Rated::and)
    }
}

/// All members of a swarm.
#[derive(Debug, Default)]
pub(super) struct Roster {
    by_id: BTreeMap<PeerId, Node>,
    members: Vec<Option<MemberState>>,
    /// Of each that is here, as it was sorted last.
    briefs: Briefs,
    /// The backups of each, apart from the rest: all of them are looked through when somebody leaves.
    backups: Vec<Backups>,
    free: Vec<Node>,
    /// Those whose class may have changed.
    unsorted: BTreeSet<Node>,
    all: Kinds,
    /// The same of each rack.
    by_rack: Vec<Kinds>,
    unaware: BTreeSet<Node>,
    seeds: [Kind; RANKS],
    /// Those in quarantine, whatever their part.
    quarantined: BTreeSet<Node>,
}

impl Roster {
    pub(super) fn insert(&mut self, member: MemberState) -> Node {
        let peer = member.peer;
        let node = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            self.backups.push([[NOBODY; BACKUPS]; STRIPES]);
            Node::try_from(self.members.len() - 1).expect("fewer members than a number holds")
        });
        self.members[node as usize] = Some(member);
        self.by_id.insert(peer, node);
        self.unsorted.insert(node);
        node
    }

    /// Takes a member out. Its number is kept until it is released.
    pub(super) fn remove(&mut self, node: Node) -> Option<MemberState> {
        let member = self.members[node as usize].take()?;
        if let Some(class) = member.class {
            self.count((node, member.rack), class, Kind::take);
        }
        self.briefs.set(node, None);
        self.quarantined.remove(&node);
        self.by_id.remove(&member.peer);
        self.unsorted.remove(&node);
        Some(member)
    }

    pub(super) fn backups(&self, node: Node) -> Backups {
        self.backups[node as usize]
    }

    pub(super) fn set_backups(&mut self, node: Node, backups: Backups) {
        self.backups[node as usize] = backups;
    }

    /// Those of whom somebody was a backup: it is none any more.
    pub(super) fn forget_backup(&mut self, gone: Node) -> Vec<Node> {
        let mut concerned = Vec::new();
        for (node, backups) in (0..).zip(&mut self.backups) {
            if backups.as_flattened().contains(&gone) {
                let named = backups.as_flattened_mut().iter_mut().filter(|backup| **backup == gone);
                named.for_each(|backup| *backup = NOBODY);
                concerned.push(node);
            }
        }
        concerned
    }

    /// The number of one who has left may be given to another; says whether it has left.
    pub(super) fn release(&mut self, node: Node) -> bool {
        let is_free = self.get(node).is_none();
        if is_free {
            self.backups[node as usize] = [[NOBODY; BACKUPS]; STRIPES];
            self.free.push(node);
        }
        is_free
    }

    /// Everybody is told again.
    pub(super) fn forget_told(&mut self) {
        self.members.iter_mut().flatten().for_each(|member| member.told = None);
    }

    pub(super) fn node(&self, peer: PeerId) -> Option<Node> {
        self.by_id.get(&peer).copied()
    }

    pub(super) fn brief(&self, node: Node) -> Option<&Brief> {
        self.briefs.get(node)
    }

    /// How these are reached, those of them who are here.
    pub(super) fn contacts(&self, nodes: &[Node]) -> impl Iterator<Item = (&Brief, &Arc<Contact>)> {
        self.briefs.contacts(nodes)
    }

    /// Nobody is sent to those who are quarantined, or to whom it accuses itself.
    pub(super) fn may_serve(&self, source: Node, reader: &MemberState) -> bool {
        self.brief(source).is_some_and(|brief| {
            let accuses = || self.get(source).is_some_and(|at| at.facts.accusers.contains(&reader.peer));
            brief.standing < Standing::Quarantined && !(brief.has_accusers && accuses())
        })
    }

    pub(super) fn get(&self, node: Node) -> Option<&MemberState> {
        self.members.get(node as usize)?.as_ref()
    }

    /// Its class may change by what is done to it.
    pub(super) fn get_mut(&mut self, node: Node) -> Option<&mut MemberState> {
        self.unsorted.insert(node);
        self.members.get_mut(node as usize)?.as_mut()
    }

    /// The same where it does not.
    pub(super) fn get_kept(&mut self, node: Node) -> Option<&mut MemberState> {
        self.members.get_mut(node as usize)?.as_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, by their numbers.
    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        (0..).zip(&self.members).filter_map(|(node, member)| member.as_ref().map(|_| node))
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &MemberState> {
        self.members.iter().flatten()
    }

    /// By their names, from one on and then from the start.
    pub(super) fn from(&self, peer: PeerId) -> impl Iterator<Item = Node> + '_ {
        self.by_id.range(peer..).chain(self.by_id.range(..peer)).map(|(_, node)| *node)
    }

    /// Sorts those anew whose class may have changed; gives those whose class did.
    pub(super) fn sort(&mut self, round: u32) -> BTreeSet<Node> {
        let unsorted = std::mem::take(&mut self.unsorted);
        let mut changed = BTreeSet::new();
        for node in unsorted {
            let Some(member) = self.members[node as usize].as_mut() else { continue };
            let class = member.class(round);
            self.briefs.set(node, Some((member, class)));
            let before = member.class.replace(class);
            if before != Some(class) {
                let at = (node, member.rack);
                if let Some(before) = before {
                    self.count(at, before, Kind::take);
                }
                self.count(at, class, Kind::put);
                if class.rank == QUARANTINED {
                    self.quarantined.insert(node);
                } else {
                    self.quarantined.remove(&node);
                }
                changed.insert(node);
            }
        }
        changed
    }

    pub(super) fn unsort_all(&mut self) {
        self.unsorted = self.nodes().collect();
    }

    fn count(&mut self, (node, rack): (Node, usize), class: Class, how: fn(&mut Kind, Node, u64)) {
        if self.by_rack.len() <= rack {
            self.by_rack.resize_with(rack + 1, Kinds::default);
        }
        self.all.count(node, class, how);
        self.by_rack[rack].count(node, class, how);
        match class.part {
            Part::Unaware => {
                if !self.unaware.remove(&node) {
                    self.unaware.insert(node);
                }
            }
            Part::Seed => how(&mut self.seeds[class.rank], node, class.rate),
            Part::Wanting | Part::Holder | Part::Apart => {}
        }
    }

    /// The rank of those who serve: the best that anybody has who wants pieces.
    pub(super) fn serving_rank(&self) -> Option<usize> {
        first_of(&self.all.wanting)
    }

    /// Those who take from holders for others.
    pub(super) fn entering(&self) -> Option<(usize, &Kind)> {
        first_of(&self.all.entering).map(|rank| (rank, &self.all.entering[rank]))
    }

    /// Those who read the origin for others.
    pub(super) fn readers(&self) -> Option<(usize, &Kind)> {
        first_of(&self.all.reading).map(|rank| (rank, &self.all.reading[rank]))
    }

    /// The same of each rack: those of a rank who may be entrants, or only those of them who can read the origin.
    pub(super) fn in_racks(&self, rank: usize, reads_origin: ReadsOrigin) -> impl Iterator<Item = &Kind> {
        let kinds = self.by_rack.iter().map(move |kinds| match reads_origin {
            ReadsOrigin::Yes => &kinds.reading[rank],
            ReadsOrigin::OrNot => &kinds.entering[rank],
        });
        kinds.filter(|kind| !kind.is_empty())
    }

    pub(super) fn unaware(&self) -> &BTreeSet<Node> {
        &self.unaware
    }

    /// Those whom nobody reads from.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = Node> + '_ {
        self.quarantined.iter().copied()
    }

    /// Everybody who wants pieces and may have them of others.
    pub(super) fn wanting(&self) -> Rated {
        self.all.wanting()
    }

    /// Everybody who has a share in sending.
    pub(super) fn sending(&self) -> Rated {
        self.all.sending(self.serving_rank())
    }

    /// Those of a rack who want pieces, and those of it who have a share in sending.
    pub(super) fn rated_in(&self, rack: usize) -> (Rated, Rated) {
        let kinds = self.by_rack.get(rack);
        let sending = kinds.map(|kinds| kinds.sending(self.serving_rank()));
        (kinds.map(Kinds::wanting).unwrap_or_default(), sending.unwrap_or_default())
    }

    /// Those who have everything, some of them: members, and where nobody can read the origin, seeds, which are it then.
    /// A suspect alone must not keep anybody from them. One whom several accuse keeps nobody from the origin or from them,
    /// if somebody in good standing can read that, or is one.
    pub(super) fn holders(&self) -> Vec<Node> {
        let has_good = |kinds: &[Kind; RANKS]| kinds[..2].iter().any(|kind| !kind.is_empty());
        let is_readable = has_good(&self.all.reading) || has_good(&self.seeds);
        let counts = |node: &Node| !is_readable || !self.is_doubted(*node);
        let some = |kinds: &[Kind; RANKS]| -> Vec<Node> {
            let best = |ranks: std::ops::Range<usize>| -> Vec<Node> {
                kinds[ranks].iter().flat_map(Kind::nodes).filter(counts).take(STRIPES).collect()
            };
            let good = best(0..2);
            if good.is_empty() { best(2..QUARANTINED) } else { good }
        };
        let mut holders = some(&self.all.holders);
        if self.readers().is_none() && !has_good(&self.all.holders) {
            holders.extend(some(&self.seeds));
        }
        holders
    }

    pub(super) fn is_doubted(&self, node: Node) -> bool {
        self.get(node).is_some_and(|member| member.facts.is_doubted)
    }

    /// Members that announce the artifact, some of them.
    pub(super) fn seeds(&self) -> impl Iterator<Item = Node> + '_ {
        self.seeds.iter().flat_map(Kind::nodes).take(STRIPES)
    }
}

/// Cards that differ by a few percent are alike: the first five binary digits of a rate.
pub(super) fn rounded(rate: u64) -> u64 {
    let digits = 5.min(u64::BITS - rate.leading_zeros());
    let shift = (u64::BITS - rate.leading_zeros()) - digits;
    rate >> shift << shift
}

/// What a card counts as that does much less than it says: it takes a little of what others send, and has none under it.
pub(super) fn slowed(rate: u64, is_slow: bool) -> u64 {
    if is_slow { (rate / SLOW_SHARE).max(u64::from(rate > 0)) } else { rate }
}

fn first_of(kinds: &[Kind; RANKS]) -> Option<usize> {
    kinds[..QUARANTINED].iter().position(|kind| !kind.is_empty())
}
