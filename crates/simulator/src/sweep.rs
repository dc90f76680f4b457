//! The cases that are measured: which fleet, what goes wrong in it, and what it is compared with.
//!
//! Owns: the cases, their bounds, the figures of a run. Does not own: how a run goes (`world`), how figures are shown.

use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use planner::bound::{Bound, Broadcast, Rates, Sink, discrete_optimum, sink};

use crate::fuzz::mix;
use crate::options::{Fault, Options, Racks, Report};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Nothing goes wrong.
    Clean,
    /// A tenth of the peers have a tenth of the rate, in both directions, and do not say so.
    Slow,
    /// A tenth of the peers die at half time.
    Kill,
    /// The origin has four times the rate of a card.
    OriginFast,
    /// The origin has half the rate of a card.
    OriginSlow,
    /// One peer comes at half time.
    Late,
    /// There is no scheduler from 20 % to 80 % of the time.
    SchedulerDown,
    /// Cards of the whole, half and quarter of the rate, a third of the peers each.
    Heterogeneous,
    /// Racks whose uplinks do a third of what their cards do: eight, or two where there are less than 64 peers.
    Racks,
    /// Every other peer gets a sixteenth of a card from the origin: the way is long, or others' connections get more.
    Far,
    /// Peers get one, two or four times as much of the origin as each other, as connections that share a card do.
    Unequal,
    /// A tenth of the peers have disks that do half of what their cards do.
    Disk,
    /// A tenth of the peers have cores that hash half of what their cards do, all together.
    Hash,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Clean,
        Self::Slow,
        Self::Kill,
        Self::OriginFast,
        Self::OriginSlow,
        Self::Late,
        Self::SchedulerDown,
        Self::Heterogeneous,
        Self::Racks,
        Self::Far,
        Self::Unequal,
        Self::Disk,
        Self::Hash,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Slow => "slow",
            Self::Kill => "kill",
            Self::OriginFast => "origin-fast",
            Self::OriginSlow => "origin-slow",
            Self::Late => "late",
            Self::SchedulerDown => "scheduler-down",
            Self::Heterogeneous => "heterogeneous",
            Self::Racks => "racks",
            Self::Far => "far",
            Self::Unequal => "unequal",
            Self::Disk => "disk",
            Self::Hash => "hash",
        }
    }
}

/// What is swept.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// What is measured.
    pub case: Case,
    /// How many peers.
    pub peers: u32,
    /// Bytes of the artifact.
    pub bytes: u64,
    /// Bytes per second of a card, in each direction.
    pub rate: u64,
    /// Pieces that the artifact is cut into.
    pub pieces: u32,
    /// In how many parts a piece crosses the network.
    pub quanta: u32,
}

/// The figures of one run.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The time of each healthy peer, as a multiple of its own bound; infinite for those that never finished.
    pub ratios: Vec<f64>,
    /// The same of the peer that came late, if one did; it is not among `ratios`.
    pub late: Option<f64>,
    /// Copies of the artifact that left the origin.
    pub origin_copies: f64,
    /// What crossed between racks, as a multiple of what must: a copy for each rack but one. Only where there are racks.
    pub core: Option<f64>,
    /// When the last healthy peer was done.
    pub last: Duration,
}

impl Figures {
    /// The ratio of the last healthy peer, or of the one that came late if that is worse.
    pub fn worst(&self) -> f64 {
        self.ratios.iter().copied().chain(self.late).fold(0.0, f64::max)
    }
}

/// The share of peers that are slow, or die.
const FEW: u32 = 10;

/// From so many peers on there are eight racks.
const MANY: u32 = 64;

/// How many times faster the cards of a rack are together than its uplink.
const OVERSUBSCRIPTION: u64 = 3;

/// How many times less than its card a slow disk does, or slow cores do.
const SINK_DIVISOR: f64 = 2.0;

/// Cores that hash one piece each.
const HASH_CORES: u32 = 4;

impl Sweep {
    /// Bytes of one piece of the artifact.
    pub fn piece_bytes(&self) -> u64 {
        self.bytes.div_ceil(u64::from(self.pieces.max(1)))
    }

    /// The fluid bound of a clean run, and the discrete optimum.
    pub fn yardsticks(&self) -> (Duration, Duration) {
        let rate = as_f64(self.rate);
        let rates = vec![Rates { up: rate, down: rate }; self.peers as usize];
        let bound =
            Bound::new(self.bytes, Some(self.origin_rate()), &rates).time().max(self.bound_of_racks());
        (bound, discrete_optimum(self.pieces, self.peers, self.piece_bytes(), rate))
    }

    fn origin_rate(&self) -> f64 {
        let rate = as_f64(self.rate);
        match self.case {
            Case::OriginFast => rate * 4.0,
            Case::OriginSlow => rate / 2.0,
            _ => rate,
        }
    }

    fn racks(&self) -> Option<Racks> {
        let count: u32 = if self.peers < MANY { 2 } else { 8 };
        // Racks that are smaller by one have the uplink of the others.
        let uplink = u64::from(self.peers.div_ceil(count)) * self.rate / OVERSUBSCRIPTION;
        (self.case == Case::Racks).then_some(Racks { count: count as usize, uplink })
    }

    /// What a mesh that knows nothing of racks takes, and how many there are; only where there are racks.
    pub fn of_random_mesh(&self) -> Option<(Duration, usize)> {
        let racks = self.racks()?;
        let oversubscription = f64::from(u32::try_from(OVERSUBSCRIPTION).ok()?);
        let time = self.broadcast().racks_random(u32::try_from(racks.count).ok()?, oversubscription);
        Some((time, racks.count))
    }

    /// Copies of the artifact that have to cross between racks.
    fn core_copies(&self, racks: Racks) -> f64 {
        let racks = u32::try_from(racks.count).expect("few racks");
        as_f64(self.broadcast().core_bytes(racks)) / as_f64(self.bytes)
    }

    fn broadcast(&self) -> Broadcast {
        Broadcast {
            bytes: self.bytes,
            pieces: self.pieces,
            receivers: self.peers,
            rate: as_f64(self.rate),
            hop: Duration::ZERO,
        }
    }

    /// The bound of racks, in which each is a member with its uplink as card.
    fn bound_of_racks(&self) -> Duration {
        let racks = self.racks().map(|racks| {
            let rate = as_f64(racks.uplink);
            vec![Rates { up: rate, down: rate }; racks.count]
        });
        Bound::new(self.bytes, Some(self.origin_rate()), &racks.unwrap_or_default()).time()
    }

    /// The rate of a card relative to the fastest, as a divisor.
    fn divisor(&self, peer: u32) -> u32 {
        match self.case {
            Case::Slow if self.is_one_of_few(peer) => 10,
            Case::Heterogeneous => 1 << (peer % 3),
            _ => 1,
        }
    }

    /// What a peer can prove in a second, and how many pieces it proves at once, if that is less than its card brings.
    fn sink(&self, peer: u32) -> Option<(f64, u32)> {
        let lanes = match self.case {
            Case::Disk => 1,
            Case::Hash => HASH_CORES,
            _ => return None,
        };
        self.is_one_of_few(peer).then_some((as_f64(self.rate) / SINK_DIVISOR, lanes))
    }

    fn is_one_of_few(&self, peer: u32) -> bool {
        // Where there are less than ten, one is.
        peer % FEW == FEW / 2 || self.peers <= FEW / 2 && peer == 0
    }

    fn is_healthy(&self, peer: u32) -> bool {
        !matches!(self.case, Case::Slow | Case::Kill) || !self.is_one_of_few(peer)
    }

    /// The run of one seed: bytes and rates are those of the sweep, divided so that pieces are of the product's size.
    pub fn options(&self, seed: u64) -> Options {
        let shrink = as_f64(self.piece_bytes()) / as_f64(PIECE_BYTES);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rates are positive and small"
        )]
        let scaled = |rate: f64| (rate / shrink) as u64;
        let mut options = Options {
            origin_rate: scaled(self.origin_rate()),
            quanta: self.quanta,
            racks: self.racks().map(|racks| Racks { uplink: scaled(as_f64(racks.uplink)), ..racks }),
            seed,
            ..Options::new(self.peers as usize, self.pieces, scaled(as_f64(self.rate)))
        };
        let (bound, _) = self.yardsticks();
        for peer in 0..self.peers {
            let (node, factor) = (peer as usize, self.divisor(peer));
            match self.case {
                Case::Slow if factor > 1 => options.faults.push(Fault::Lame { node, factor }),
                Case::Kill if !self.is_healthy(peer) => {
                    options.faults.push(Fault::Kill { node, at: bound / 2 });
                }
                Case::Far if peer % 2 == 1 => options.faults.push(Fault::Far { node, factor: 16 }),
                Case::Unequal => {
                    options.faults.push(Fault::Favoured { node, share: 1 << (drawn(seed, peer) % 3) });
                }
                Case::Disk | Case::Hash => options.faults.extend(self.sink(peer).map(|(rate, lanes)| {
                    let a_piece = as_f64(PIECE_BYTES) * f64::from(lanes) / (rate / shrink);
                    Fault::Sink { node, a_piece: Duration::from_secs_f64(a_piece), lanes }
                })),
                _ if factor > 1 => options.faults.push(Fault::Slow { node, factor }),
                _ => {}
            }
        }
        if self.case == Case::Late {
            options.faults.push(Fault::Late { node: self.peers as usize - 1, at: bound / 2 });
        }
        if self.case == Case::SchedulerDown {
            options.faults.push(Fault::TakeOver { at: bound / 5, after: bound * 3 / 5 });
        }
        options
    }

    /// What a peer is compared with: the bound on giving everything to all healthy ones with a card as fast as its own,
    /// while all others only help.
    fn bound_of(&self, peer: u32) -> Duration {
        let rates = |peer: u32| {
            let rate = as_f64(self.rate) / f64::from(self.divisor(peer));
            Rates { up: rate, down: rate }
        };
        let (own, own_sink) = (self.divisor(peer), self.sink(peer));
        let is_served = |other: &u32| {
            let is_slower = own_sink.is_none() && self.sink(*other).is_some();
            self.is_healthy(*other) && self.divisor(*other) <= own && !is_slower
        };
        let (same, others): (Vec<u32>, Vec<u32>) = (0..self.peers).partition(is_served);
        let of = |peers: Vec<u32>| -> Vec<Rates> { peers.into_iter().map(rates).collect() };
        let cards = Bound::with_helpers(self.bytes, Some(self.origin_rate()), &of(same), &of(others)).time();
        cards.max(self.bound_of_racks()).max(self.bound_of_sink(peer))
    }

    fn bound_of_sink(&self, peer: u32) -> Duration {
        let disk = self.sink(peer).map_or(f64::INFINITY, |(rate, _)| rate);
        sink(self.bytes, Sink { card: as_f64(self.rate), disk, memory: f64::INFINITY, hash: f64::INFINITY })
    }

    /// What came of a run.
    pub fn figures(&self, report: &Report) -> Figures {
        let (late, from) = match self.case {
            Case::Late => (Some(self.peers - 1), self.yardsticks().0 / 2),
            _ => (None, Duration::ZERO),
        };
        let mut bounds = std::collections::BTreeMap::new();
        let mut ratio = |peer: u32, from: Duration| {
            let kind = (self.divisor(peer), self.sink(peer).is_some());
            let bound = *bounds.entry(kind).or_insert_with(|| self.bound_of(peer));
            let time = report.done[peer as usize].map(|done| done.saturating_sub(from));
            time.map_or(f64::INFINITY, |time| time.as_secs_f64() / bound.as_secs_f64())
        };
        let copies = |bytes: u64| as_f64(bytes) / as_f64(u64::from(self.pieces) * PIECE_BYTES);
        let healthy: Vec<u32> =
            (0..self.peers).filter(|peer| self.is_healthy(*peer) && Some(*peer) != late).collect();
        Figures {
            ratios: healthy.iter().map(|peer| ratio(*peer, Duration::ZERO)).collect(),
            late: late.map(|peer| ratio(peer, from)),
            origin_copies: copies(report.origin_bytes),
            core: self.racks().map(|racks| copies(report.core_bytes) / self.core_copies(racks)),
            last: healthy.iter().filter_map(|peer| report.done[*peer as usize]).max().unwrap_or_default(),
        }
    }
}

/// What is drawn for a peer.
fn drawn(seed: u64, peer: u32) -> u64 {
    mix((seed << u32::BITS | u64::from(peer)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[expect(clippy::cast_precision_loss, reason = "bytes and rates are far below 2^53")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
