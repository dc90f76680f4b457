//! What is played: a fleet and its faults, all drawn from one seed. Does not own what faults do (`faults`).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use modelpack::layout::PIECE_BYTES;

use super::dice::Dice;
use super::misled;
use super::racks::Racks;

/// Nodes that a scenario begins with, at most. Those that come back after a crash are counted apart.
const NODES_MAX: usize = 24;

/// What a piece takes on a whole card: 20 GB/s to 100 MB/s. On one that is ten times slower and that all share, bytes of
/// each still come more often than anybody is called silent.
const PIECE_TIME: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));

/// Members that do not behave, at most: one address can accuse no more than three at a time.
const WICKED_MAX: usize = 3;

/// Shortest and longest fault that heals.
const FAULT: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(8));

/// Time that healthy nodes have after the last fault, beside what the bytes take: two silences of a minute each that a
/// scheduler holds against somebody, and five turns at a stripe that nobody reads.
const PATIENCE: Duration = Duration::from_secs(270);

/// How many times the time that the slowest card needs for everything may pass besides.
const PATIENCE_FACTOR: u32 = 30;

/// How a node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// As it should.
    Honest,
    /// So many of a hundred of its pieces are sent wrong from some time on.
    Corrupt {
        /// From when.
        from: Duration,
        /// How many.
        percent: u64,
    },
    /// Announces so many of a hundred of the pieces that it has not, and refuses them.
    Lying {
        /// How many.
        percent: u64,
    },
    /// Takes reads and answers none from some time on.
    Silent {
        /// From when.
        from: Duration,
    },
    /// Gets so many of a hundred pieces of the origin wrong, and vouches for them, where only their blob's digest proves
    /// pieces.
    Misreads {
        /// How many.
        percent: u64,
    },
}

/// A node that crashed and came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// Which node it was: same card, same address, another name.
    pub of: usize,
    /// Of a hundred pieces that it had proved, so many were not synced and are lost.
    pub lost_percent: u64,
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its card, in bytes per second.
    pub rate: u64,
    /// What it says that its card does.
    pub claim: Option<u64>,
    /// When it comes.
    pub begins: Duration,
    /// Whether it can read the origin.
    pub origin_ok: bool,
    /// Whether it announces a local artifact.
    pub is_seed: bool,
    /// Reads that it grants on a link.
    pub grant: u32,
    /// How long it takes to hash and write a piece.
    pub proof: Duration,
    /// How it behaves.
    pub nature: Nature,
    /// Which one it was before.
    pub returns: Option<Return>,
}

/// What goes wrong at some moment. Nodes of a set are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node dies.
    Kill {
        /// Which.
        node: usize,
    },
    /// A node says farewell.
    Leave {
        /// Which.
        node: usize,
    },
    /// The links between two nodes break, with all that is on its way.
    Break {
        /// The one.
        one: usize,
        /// The other.
        other: usize,
    },
    /// A node's stream to its scheduler breaks, and it is back after a while.
    Session {
        /// Which.
        node: usize,
        /// How long it is away.
        away: Duration,
    },
    /// Some nodes cannot reach the others; whoever waits hears of it after a while.
    Partition {
        /// The nodes of one side.
        far: u64,
        /// The schedulers that are on that side.
        far_schedulers: u64,
        /// How long.
        lasts: Duration,
        /// When streams across it count as broken; what waits in those that do not is late and not lost.
        noticed: Duration,
    },
    /// All messages from and to a node take longer.
    Delay {
        /// Which.
        node: usize,
        /// How long.
        lasts: Duration,
        /// How much longer, at most.
        by: Duration,
    },
    /// A node is stopped and goes on later, as if nothing had been.
    Stop {
        /// Which.
        node: usize,
        /// How long.
        lasts: Duration,
        /// When others find its streams broken.
        noticed: Duration,
    },
    /// A node's clock stands still and then jumps.
    Clock {
        /// Which.
        node: usize,
        /// How long.
        lasts: Duration,
    },
    /// A node proves nothing for a while.
    Disk {
        /// Which.
        node: usize,
        /// How long.
        lasts: Duration,
    },
    /// The first scheduler dies, and is back later, knowing nothing.
    SchedulerGone {
        /// How long.
        lasts: Duration,
    },
    /// Some nodes go to the second scheduler though the first one lives.
    Double {
        /// Which.
        nodes: u64,
        /// How long.
        lasts: Duration,
    },
    /// Plans that arrive are wrong.
    WrongPlans {
        /// So many of a hundred.
        percent: u64,
        /// How long.
        lasts: Duration,
    },
    /// The origin serves nobody.
    OriginOut {
        /// How long.
        lasts: Duration,
    },
    /// The origin refuses a node from now on.
    Refused {
        /// Which.
        node: usize,
    },
}

impl Fault {
    /// How long it lasts.
    pub fn lasts(&self) -> Duration {
        match *self {
            Self::Partition { lasts, .. }
            | Self::Delay { lasts, .. }
            | Self::Stop { lasts, .. }
            | Self::Clock { lasts, .. }
            | Self::Disk { lasts, .. }
            | Self::SchedulerGone { lasts }
            | Self::Double { lasts, .. }
            | Self::WrongPlans { lasts, .. }
            | Self::OriginOut { lasts } => lasts,
            Self::Session { away, .. } => away,
            Self::Kill { .. } | Self::Leave { .. } | Self::Break { .. } | Self::Refused { .. } => {
                Duration::ZERO
            }
        }
    }

    /// Whether a scheduler was out of somebody's reach, or somebody out of its own mind: no budget is promised then.
    pub fn is_unsteady(&self) -> bool {
        !matches!(
            self,
            Self::Kill { .. }
                | Self::Leave { .. }
                | Self::Break { .. }
                | Self::Disk { .. }
                | Self::Refused { .. }
        )
    }
}

/// Kinds of faults, each of which a seed turns on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Crash,
    Leave,
    Break,
    Session,
    Partition,
    Delay,
    Stop,
    Clock,
    Disk,
    Scheduler,
    Double,
    OriginOut,
    Refused,
    Corrupt,
    Lying,
    Silent,
    Slow,
    Lame,
    Late,
}

impl Kind {
    const ALL: [Self; 19] = [
        Self::Crash,
        Self::Leave,
        Self::Break,
        Self::Session,
        Self::Partition,
        Self::Delay,
        Self::Stop,
        Self::Clock,
        Self::Disk,
        Self::Scheduler,
        Self::Double,
        Self::OriginOut,
        Self::Refused,
        Self::Corrupt,
        Self::Lying,
        Self::Silent,
        Self::Slow,
        Self::Lame,
        Self::Late,
    ];
}

/// A run, as data.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was drawn from.
    pub seed: u64,
    /// Who takes part; at least one of them is never harmed and has, or can read, everything.
    pub members: Vec<Member>,
    /// Whether only the digest of the whole proves pieces, and members rely on who vouches for them.
    pub is_rootless: bool,
    /// Where they stand, if not all in one rack.
    pub racks: Option<Racks>,
    /// Pieces of the artifact, one blob.
    pub pieces: u32,
    /// In how many parts a piece crosses the network.
    pub quanta: u32,
    /// Bytes per second of the origin.
    pub origin_rate: u64,
    /// Pieces in one read from a peer, at most.
    pub run_pieces: u32,
    /// How many schedulers there are; the first is preferred.
    pub schedulers: u32,
    /// What goes wrong, in order.
    pub faults: Vec<(Duration, Fault)>,
    /// From when nothing is wrong any more but what members are.
    pub calm: Duration,
    /// When everybody who can must be done.
    pub until: Duration,
}

impl Scenario {
    /// What a seed means.
    pub fn new(seed: u64) -> Self {
        Draw::new(seed).scenario()
    }

    /// Whether so much of the artifact leaves the origin as is promised: every member does as it should, and had one
    /// and the same scheduler all the time.
    pub fn is_steady(&self) -> bool {
        self.members.iter().all(|member| member.nature == Nature::Honest)
            && !self.faults.iter().any(|(_, fault)| fault.is_unsteady())
    }
}

impl fmt::Display for Scenario {
    /// A line for each thing that is drawn.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            members, pieces, quanta, origin_rate, run_pieces, schedulers, faults, calm, until, ..
        } = self;
        f.write_str(if self.is_rootless { "no roots, " } else { "" })?;
        write!(f, "{} nodes, {pieces} pieces in {quanta} parts, {run_pieces} in a read, ", members.len())?;
        write!(f, "origin {origin_rate} B/s, {schedulers} schedulers, calm from {calm:?}, until {until:?}")?;
        for (node, member) in members.iter().enumerate() {
            let Member { rate, claim, begins, origin_ok, is_seed, grant, proof, nature, returns } = member;
            write!(
                f,
                "\n  node {node}: {rate} B/s, claims {claim:?}, from {begins:?}, grants {grant}, proves in {proof:?}"
            )?;
            write!(f, ", {nature:?}")?;
            f.write_str(if *is_seed { ", a seed" } else { "" })?;
            f.write_str(if *origin_ok { "" } else { ", no origin" })?;
            if let Some(Return { of, lost_percent }) = returns {
                write!(f, ", was {of} and lost {lost_percent} %")?;
            }
        }
        if let Some(racks) = &self.racks {
            write!(f, "{racks}")?;
        }
        for (at, fault) in faults {
            write!(f, "\n  {:12.6} s  {fault:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A scenario in the making.
struct Draw {
    seed: u64,
    dice: Dice,
    /// Of a hundred occasions, in how many a kind happens.
    weights: BTreeMap<Kind, u64>,
    /// How long everything would take over one card.
    ideal: Duration,
    /// The one that nothing happens to.
    core: usize,
    has_origin: bool,
    members: Vec<Member>,
    faults: Vec<(Duration, Fault)>,
}

impl Draw {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut weights = BTreeMap::new();
        for kind in Kind::ALL {
            let weight = 5 + dice.below(60);
            weights.insert(kind, if dice.percent(25) { weight } else { 0 });
        }
        Self {
            seed,
            dice,
            weights,
            ideal: Duration::ZERO,
            core: 0,
            has_origin: true,
            members: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn is_on(&mut self, kind: Kind) -> bool {
        let weight = self.weights[&kind];
        self.dice.percent(weight)
    }

    fn scenario(mut self) -> Scenario {
        // Small fleets find most, and are played soonest.
        let most = self.dice.pick(&[4, 4, 8, 8, 8, 8, 14, NODES_MAX]);
        let count = 2 + self.dice.index(most - 1);
        let pieces = self.dice.pick(&[4, 16, 32, 32, 48, 64, 96, 160]) + self.dice.below(16);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        let a_piece = self.dice.span(PIECE_TIME.0, PIECE_TIME.1);
        self.ideal = a_piece * pieces;
        let rate = PIECE_BYTES * 1_000_000_000 / crate::queue::nanos(a_piece);
        self.core = self.dice.index(count);
        self.has_origin = !self.dice.percent(20);
        self.members(count, rate);
        self.happen();
        let origin_rate = self.dice.pick(&[rate / 2, rate, rate, rate * 4]);
        let (quanta, run_pieces) = (self.dice.pick(&[2, 2, 4]), self.dice.pick(&[1, 1, 4]));
        let is_double = self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Double { .. }));
        let schedulers = if is_double || self.dice.percent(30) { 2 } else { 1 };
        let is_rootless =
            misled::drawn(self.seed, (&mut self.members, self.core), (&mut self.faults, self.ideal));
        self.faults.sort_by_key(|(at, _)| *at);
        let racks = Racks::drawn(self.seed, &self.members);
        if let Some(racks) = &racks {
            racks.part(self.seed, &mut self.faults);
        }
        let ends = self.faults.iter().map(|(at, fault)| *at + fault.lasts());
        let begins = self.members.iter().map(|member| member.begins);
        let calm = ends.chain(begins).max().unwrap_or_default();
        let slowest = self.members.iter().map(|member| member.rate).min().unwrap_or(1).min(origin_rate);
        let slowest = racks.as_ref().map_or(slowest, |racks| slowest.min(racks.slowest())).max(1);
        let proof = self.members.iter().map(|member| member.proof).max().unwrap_or_default() * pieces;
        let whole = u64::from(pieces) * PIECE_BYTES;
        let whole = Duration::from_micros(whole.saturating_mul(1_000_000) / slowest) + proof;
        Scenario {
            seed: self.seed,
            until: calm + PATIENCE + whole * PATIENCE_FACTOR,
            members: self.members,
            is_rootless,
            racks,
            pieces,
            quanta,
            origin_rate,
            run_pieces,
            schedulers,
            faults: self.faults,
            calm,
        }
    }

    fn members(&mut self, count: usize, rate: u64) {
        let knows_rates = !self.dice.percent(25);
        let has_seeds = !self.has_origin || self.dice.percent(15);
        let mut wicked = 0;
        for node in 0..count {
            let mut own = rate;
            if self.is_on(Kind::Slow) {
                own /= self.dice.pick(&[2, 4, 10]);
            }
            let claim = knows_rates.then_some(own);
            if own == rate && self.is_on(Kind::Lame) {
                own /= self.dice.pick(&[2, 4, 10]);
            }
            let is_core = node == self.core;
            let is_seed = has_seeds && (is_core || self.dice.percent(10));
            let is_late = self.is_on(Kind::Late) && !is_core;
            let (wide, ideal) = (self.dice.percent(50), self.ideal);
            let member = Member {
                rate: own.max(1),
                claim,
                begins: if is_late {
                    self.dice.moment(ideal * 2)
                } else {
                    self.dice.moment(Duration::from_millis(3))
                },
                origin_ok: self.has_origin && (is_core || !self.dice.percent(10)),
                is_seed,
                grant: if wide { 16 } else { 1 + u32::try_from(self.dice.below(16)).unwrap_or(0) },
                proof: self.proof(own),
                nature: if is_core || wicked >= WICKED_MAX { Nature::Honest } else { self.nature() },
                returns: None,
            };
            wicked += usize::from(member.nature != Nature::Honest);
            self.members.push(member);
        }
    }

    /// A disk or a hash that is up to four times slower than the card.
    fn proof(&mut self, rate: u64) -> Duration {
        let a_piece = Duration::from_nanos(PIECE_BYTES.saturating_mul(1_000_000_000) / rate.max(1));
        if self.is_on(Kind::Disk) { self.dice.moment(a_piece * 4) } else { Duration::ZERO }
    }

    fn nature(&mut self) -> Nature {
        let (ideal, percent) = (self.ideal, self.dice.pick(&[5, 50, 100]));
        let from = if self.dice.percent(50) { Duration::ZERO } else { self.dice.moment(ideal) };
        if self.is_on(Kind::Corrupt) {
            Nature::Corrupt { from, percent }
        } else if self.is_on(Kind::Lying) {
            Nature::Lying { percent }
        } else if self.is_on(Kind::Silent) {
            Nature::Silent { from }
        } else {
            Nature::Honest
        }
    }

    /// Any but the core.
    fn victim(&mut self) -> usize {
        let count = self.members.len();
        let victim = self.dice.index(count - 1);
        if victim >= self.core { victim + 1 } else { victim }
    }

    fn some(&mut self, count: usize) -> u64 {
        let share = self.dice.pick(&[10, 30, 50]);
        (0..count).filter(|_| self.dice.percent(share)).fold(0, |set, node| set | 1 << node)
    }

    fn happen(&mut self) {
        let (count, end) = (self.members.len(), self.ideal * 3 / 2 + Duration::from_millis(200));
        let mut gone = 0_u64;
        for _ in 0..=self.dice.below(4) {
            for kind in Kind::ALL {
                if !self.is_on(kind) {
                    continue;
                }
                let at = self.dice.moment(end);
                let lasts = self.dice.span(FAULT.0, FAULT.1);
                let (node, any) = (self.victim(), self.dice.index(count));
                if matches!(kind, Kind::Crash | Kind::Leave) {
                    if gone >> node & 1 == 1 {
                        continue;
                    }
                    gone |= 1 << node;
                }
                if let Some(fault) = self.fault(kind, (node, any), lasts) {
                    self.faults.push((at, fault));
                    if kind == Kind::Crash && self.dice.percent(60) {
                        self.comes_back(node, at + lasts.max(Duration::from_millis(50)));
                    }
                }
            }
        }
    }

    fn comes_back(&mut self, of: usize, begins: Duration) {
        let lost_percent = self.dice.pick(&[0, 10, 50, 100]);
        let returns = Some(Return { of, lost_percent });
        let nature = Nature::Honest;
        self.members.push(Member { begins, nature, returns, ..self.members[of] });
    }

    /// `victim` may be lost, `any` cannot.
    fn fault(&mut self, kind: Kind, (victim, any): (usize, usize), lasts: Duration) -> Option<Fault> {
        let count = self.members.len();
        let noticed = if self.dice.percent(40) { Duration::ZERO } else { Duration::from_secs(4) };
        Some(match kind {
            Kind::Crash => Fault::Kill { node: victim },
            Kind::Leave => Fault::Leave { node: victim },
            Kind::Break => Fault::Break { one: victim, other: any },
            Kind::Session => Fault::Session { node: any, away: lasts },
            Kind::Partition => {
                let far_schedulers = self.dice.below(4);
                Fault::Partition { far: self.some(count), far_schedulers, lasts, noticed }
            }
            Kind::Delay => {
                let by = self.dice.span(Duration::from_millis(1), Duration::from_secs(1));
                Fault::Delay { node: any, lasts, by }
            }
            Kind::Stop => Fault::Stop { node: any, lasts, noticed },
            Kind::Clock => Fault::Clock { node: any, lasts },
            Kind::Disk => Fault::Disk { node: any, lasts },
            Kind::Scheduler => Fault::SchedulerGone { lasts },
            Kind::Double => Fault::Double { nodes: self.some(count), lasts },
            Kind::OriginOut => Fault::OriginOut { lasts },
            Kind::Refused => Fault::Refused { node: victim },
            Kind::Corrupt | Kind::Lying | Kind::Silent | Kind::Slow | Kind::Lame | Kind::Late => return None,
        })
    }
}
