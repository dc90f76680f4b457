//! A broadcast that a scheduler has recorded, as a scenario: who came when with what, over which cards.
//!
//! Owns: what of a record is one broadcast, what is learned where nothing was declared, the bound of it. Does not own: the
//! lines (crate `record`), how a scenario is played (`policies`).

use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use planner::bound::{Bound, Rates};

use crate::options::{Fault, Options, Report};

mod story;

pub use story::broadcasts;

/// One artifact's way to everybody who wanted it: from when the first came that lacked pieces until nobody did.
#[derive(Clone, Debug, PartialEq)]
pub struct Broadcast {
    /// The digest of the artifact.
    pub artifact: String,
    /// Its size.
    pub bytes: u64,
    /// How many pieces it has.
    pub pieces: u32,
    /// When it began, since the record did. All other times count from then.
    pub begin: Duration,
    /// Those that lacked pieces when they came, in that order.
    pub members: Vec<Member>,
    /// Those that had everything.
    pub holders: u32,
    /// What these can send together, in bytes per second, where that is known.
    pub holders_rate: Option<u64>,
    /// The best pace at which anybody came by pieces, in bytes per second: what the origin sent at least, as pieces that
    /// one member gets are all different.
    pub best_pace: Option<u64>,
    /// Plans that members were told.
    pub plans: u32,
}

/// Who wanted the artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its name for people.
    pub name: String,
    /// When it came.
    pub joined: Duration,
    /// How many pieces it had then.
    pub has: u32,
    /// What became of it.
    pub end: End,
    /// Its card, where anything is known of it.
    pub card: Option<Card>,
}

/// What became of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It had everything.
    Finished(Duration),
    /// It left before.
    Left(Duration),
    /// The record ends before.
    Open,
}

/// Bytes per second of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// As its peer said.
    Declared(u64),
    /// The most that it was seen to send or receive.
    Seen(u64),
}

impl Card {
    /// Bytes per second.
    pub fn rate(self) -> u64 {
        match self {
            Self::Declared(rate) | Self::Seen(rate) => rate,
        }
    }
}

/// How a broadcast is played.
#[derive(Clone, Copy, Debug)]
pub struct Play {
    /// Pieces that the artifact is cut into, at most; it has no more than it had.
    pub pieces: u32,
    /// In how many parts a piece crosses the network.
    pub quanta: u32,
    /// What makes the run its own.
    pub seed: u64,
    /// Bytes per second of the origin, as [`Broadcast::origin_rate`] says.
    pub origin_rate: u64,
}

/// A run that takes so many times what the recorded one took, or the bound, is stuck.
const PATIENCE: u32 = 50;

impl Broadcast {
    /// What the origin sends, in bytes per second: all that had the artifact from the start as if they were one, else
    /// what was seen. `None` if nobody got anything.
    pub fn origin_rate(&self) -> Option<u64> {
        self.holders_rate.or(self.best_pace)
    }

    /// When the last of those that stayed had everything; `None` if not all of them ever had.
    pub fn recorded(&self) -> Option<Duration> {
        let ends = self.members.iter().filter(|member| !matches!(member.end, End::Left(_)));
        let times = ends.map(|member| match member.end {
            End::Finished(at) => Some(at),
            End::Left(_) | End::Open => None,
        });
        times.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The same of a run under some policy.
    pub fn last(&self, report: &Report) -> Option<Duration> {
        let ends = self.members.iter().zip(&report.done);
        let stayed = ends.filter(|(member, _)| !matches!(member.end, End::Left(_)));
        stayed.map(|(_, done)| *done).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Each member's card. One of which nothing is known has the middle one of the others.
    fn rates(&self) -> Vec<u64> {
        let mut known: Vec<u64> =
            self.members.iter().filter_map(|member| member.card.map(Card::rate)).collect();
        known.sort_unstable();
        let middle = known.get(known.len() / 2).copied().unwrap_or(1);
        let rate = |member: &Member| member.card.map_or(middle, Card::rate).max(1);
        self.members.iter().map(rate).collect()
    }

    /// The time that no distribution can beat: the fluid bound for those that had nothing and stayed, if all had been
    /// there from the start, or what the last of all needs to receive what it lacked, if that is more.
    pub fn bound(&self, origin_rate: u64) -> Duration {
        let (mut receivers, mut helpers, mut alone) = (Vec::new(), Vec::new(), Duration::ZERO);
        for (member, rate) in self.members.iter().zip(self.rates()) {
            let rates = Rates { up: as_f64(rate), down: as_f64(rate) };
            let has_left = matches!(member.end, End::Left(_));
            if member.has == 0 && !has_left { &mut receivers } else { &mut helpers }.push(rates);
            if !has_left {
                let lacks = self.bytes / u64::from(self.pieces.max(1)) * u64::from(self.pieces - member.has);
                alone = alone.max(member.joined + Duration::from_secs_f64(as_f64(lacks) / as_f64(rate)));
            }
        }
        // Where somebody brought pieces, the origin need not have sent them.
        let nobody_had = self.members.iter().all(|member| member.has == 0);
        let origin = nobody_had.then_some(as_f64(origin_rate));
        Bound::with_helpers(self.bytes, origin, &receivers, &helpers).time().max(alone)
    }

    /// The scenario. Bytes and rates are divided so that pieces are of the product's size; times are not.
    pub fn options(&self, play: &Play) -> Options {
        let pieces = self.pieces.min(play.pieces).max(1);
        let piece_bytes = self.bytes.div_ceil(u64::from(pieces)).max(1);
        let scaled = |rate: u64| {
            let rate = u128::from(rate) * u128::from(PIECE_BYTES) / u128::from(piece_bytes);
            u64::try_from(rate).unwrap_or(u64::MAX).max(1)
        };
        let rates = self.rates();
        let fastest = rates.iter().copied().max().unwrap_or(1);
        let longest = self.bound(play.origin_rate).max(self.recorded().unwrap_or_default());
        let mut options = Options::new(self.members.len(), pieces, scaled(fastest));
        options.origin_rate = scaled(play.origin_rate);
        (options.quanta, options.seed) = (play.quanta, play.seed);
        options.time_max = options.time_max.max(longest.saturating_mul(PATIENCE));
        for (node, (member, rate)) in self.members.iter().zip(rates).enumerate() {
            options.faults.push(Fault::Card { node, rate: scaled(rate) });
            let has = u64::from(member.has) * u64::from(pieces) / u64::from(self.pieces.max(1));
            if let Some(pieces) = u32::try_from(has).ok().filter(|has| *has > 0) {
                options.faults.push(Fault::Has { node, pieces: pieces.min(options.pieces - 1) });
            }
            if member.joined > Duration::ZERO {
                options.faults.push(Fault::Late { node, at: member.joined });
            }
            if let End::Left(at) = member.end {
                options.faults.push(Fault::Kill { node, at });
            }
        }
        if !self.members.iter().any(|member| matches!(member.card, Some(Card::Declared(_)))) {
            options.faults.push(Fault::NoRates);
        }
        options
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and rates are far below 2^53")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
