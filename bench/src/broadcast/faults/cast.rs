//! Which peer plays what, and the least time in which those that are well can be done.
//!
//! Owns: choosing, the bound. Does not own: the flags, doing it.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::ensure;
use modelpack::quantity::Rate;
use planner::bound::{Bound, Rates};

use super::{Factor, FaultArgs, Moment, Whom};
use crate::broadcast::meter::to_f64;

/// The least that a card can be shaped to, in bytes per second.
const RATE_MIN: f64 = 125_000.0;

/// What a peer plays that is not well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Its card does less.
    Slow(Factor),
    /// It is killed.
    Killed(Moment),
    /// It begins later.
    Late(Moment),
    /// Its card has other things to do.
    Busy(Rate),
    /// It pulls nothing and serves wrong bytes.
    Corrupt,
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(factor) => write!(out, "slow {factor}"),
            Self::Killed(moment) => write!(out, "kill {moment}"),
            Self::Late(moment) => write!(out, "join {moment}"),
            Self::Busy(rate) => write!(out, "busy {}mbit", rate.0 * 8 / 1_000_000),
            Self::Corrupt => write!(out, "corrupt"),
        }
    }
}

/// How peers are put in racks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Racks {
    pub(crate) count: usize,
    pub(crate) oversubscription: f64,
}

/// Everything that is not as in a plain broadcast.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cast {
    peers: usize,
    /// By peer; who is not here is well.
    pub(crate) roles: BTreeMap<usize, Role>,
    pub(crate) racks: Option<Racks>,
    /// Bytes per second.
    pub(crate) origin_rate: Option<Rate>,
    /// In words, as they were asked for.
    pub(crate) faults: Vec<String>,
}

/// What a bound is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) bytes: u64,
    /// Bytes per second that a card is shaped to.
    pub(crate) rate: f64,
    /// Bytes per second of payload that it then carries.
    pub(crate) goodput: f64,
}

impl Cast {
    /// Who plays what, the same for the same flags.
    pub(crate) fn choose(args: &FaultArgs, peers: usize, rate: Rate) -> anyhow::Result<Self> {
        let hits = args.hits();
        let mut roles = BTreeMap::new();
        for (whom, role, said) in &hits {
            if let Whom::Peer(peer) = whom {
                ensure!(*peer < peers, "`{said}`: there are {peers} peers");
                ensure!(roles.insert(*peer, *role).is_none(), "`{said}`: p{} is already hit", peer + 1);
            }
        }
        let order = shuffled(peers, args.fault_seed);
        for (whom, role, said) in &hits {
            if let Whom::Share(share) = whom {
                let free: Vec<_> = order.iter().filter(|peer| !roles.contains_key(*peer)).copied().collect();
                let count = count_of(*share, peers);
                ensure!(count <= free.len(), "`{said}`: only {} peers are not hit yet", free.len());
                roles.extend(free.into_iter().take(count).map(|peer| (peer, *role)));
            }
        }
        ensure!(roles.len() < peers, "somebody has to be well");
        for role in roles.values() {
            match role {
                Role::Busy(busy) => ensure!(busy.0 < rate.0, "foreign traffic is below what a card does"),
                Role::Slow(factor) => {
                    ensure!(to_f64(rate.0) * factor.0 >= RATE_MIN, "a slow card still does 1 mbit");
                }
                _ => {}
            }
        }
        let racks = args.racks.map(|count| Racks { count, oversubscription: args.oversubscription });
        if let Some(Racks { count, oversubscription }) = racks {
            ensure!((1..=peers).contains(&count), "there can be 1 to {peers} racks");
            ensure!((1.0..=1000.0).contains(&oversubscription), "an oversubscription is 1 to 1000");
        }
        let shapes =
            racks.map(|racks| format!("racks {} oversubscription {}", racks.count, racks.oversubscription));
        let origin = args.origin_rate.map(|rate| format!("origin-rate {}mbit", rate.0 * 8 / 1_000_000));
        let faults = hits.into_iter().map(|(_, _, said)| said).chain(shapes).chain(origin).collect();
        Ok(Self { peers, roles, racks, origin_rate: args.origin_rate, faults })
    }

    /// Whether that peer is to have the model at the end.
    pub(crate) fn finishes(&self, peer: usize) -> bool {
        !matches!(self.roles.get(&peer), Some(Role::Killed(_) | Role::Corrupt))
    }

    /// Whether that peer serves wrong bytes instead of pulling.
    pub(crate) fn is_corrupt(&self, peer: usize) -> bool {
        self.roles.get(&peer) == Some(&Role::Corrupt)
    }

    /// Whether nothing is wrong with that peer.
    pub(crate) fn is_well(&self, peer: usize) -> bool {
        !self.roles.contains_key(&peer)
    }

    /// The rack of that peer.
    pub(crate) fn rack_of(&self, peer: usize) -> usize {
        self.racks.map_or(0, |racks| peer * racks.count / self.peers)
    }

    /// What the uplink of that rack does, of what a card does.
    pub(crate) fn uplink_x(&self, rack: usize) -> f64 {
        let hosts = (0..self.peers).filter(|peer| self.rack_of(*peer) == rack).count();
        self.racks.map_or(f64::INFINITY, |racks| to_f64(hosts as u64) / racks.oversubscription)
    }

    /// The least seconds in which everybody for whom `is_counted` can have everything.
    ///
    /// The others only help: a slow one by what its card does, a killed, late or busy one as if it were well all the
    /// time, as otherwise this would be no bound; one that serves wrong bytes not at all.
    pub(crate) fn bound_s(&self, terms: &Terms, is_counted: impl Fn(usize) -> bool) -> f64 {
        let origin =
            self.origin_rate.map_or(terms.goodput, |rate| terms.goodput * to_f64(rate.0) / terms.rate);
        let (mut receivers, mut helpers) = (Vec::new(), Vec::new());
        for peer in 0..self.peers {
            let factor = match self.roles.get(&peer) {
                Some(Role::Slow(factor)) => factor.0,
                Some(Role::Corrupt) => continue,
                _ => 1.0,
            };
            let rates = Rates { up: terms.goodput * factor, down: terms.goodput * factor };
            if is_counted(peer) { receivers.push(rates) } else { helpers.push(rates) }
        }
        let cards = Bound::with_helpers(terms.bytes, Some(origin), &receivers, &helpers).time();
        cards.max(self.racks_bound(terms, origin, is_counted)).as_secs_f64()
    }

    /// The same for racks, each as if it were one host with its uplink as card.
    fn racks_bound(&self, terms: &Terms, origin: f64, is_counted: impl Fn(usize) -> bool) -> Duration {
        let (mut receivers, mut helpers) = (Vec::new(), Vec::new());
        for rack in 0..self.racks.map_or(0, |racks| racks.count) {
            let rate = terms.goodput * self.uplink_x(rack);
            let is_to_have = (0..self.peers).any(|peer| self.rack_of(peer) == rack && is_counted(peer));
            if is_to_have { &mut receivers } else { &mut helpers }.push(Rates { up: rate, down: rate });
        }
        Bound::with_helpers(terms.bytes, Some(origin), &receivers, &helpers).time()
    }
}

/// A share of all, at least one.
fn count_of(share: f64, peers: usize) -> usize {
    (1..=peers).rev().find(|count| to_f64(*count as u64) <= share * to_f64(peers as u64) + 0.5).unwrap_or(1)
}

/// All peers in an order that only the seed decides.
fn shuffled(peers: usize, seed: u64) -> Vec<usize> {
    let rank = |peer: &usize| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&(*peer as u64).to_le_bytes());
        *hasher.finalize().as_bytes()
    };
    let mut order: Vec<usize> = (0..peers).collect();
    order.sort_by_key(rank);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::faults::tests::parse;

    const RATE: Rate = Rate(25_000_000);
    const TERMS: Terms = Terms { bytes: 100_000_000, rate: 25e6, goodput: 20e6 };

    fn cast(flags: &str, peers: usize) -> anyhow::Result<Cast> {
        Cast::choose(&parse(flags).unwrap(), peers, RATE)
    }

    fn check_bound(flags: &str, peers: usize, well_s: f64, all_s: f64) {
        let cast = cast(flags, peers).unwrap();
        let (well, all) = (
            cast.bound_s(&TERMS, |peer| cast.is_well(peer)),
            cast.bound_s(&TERMS, |peer| cast.finishes(peer)),
        );
        assert!(
            (well - well_s).abs() < 1e-6,
            "{flags}: {well} s instead of {well_s} s for those that are well"
        );
        assert!((all - all_s).abs() < 1e-6, "{flags}: {all} s instead of {all_s} s for all");
    }

    #[test]
    fn a_share_is_at_least_one_and_rounded() {
        for (share, peers, count) in
            [(0.1, 4, 1), (0.1, 8, 1), (0.25, 8, 2), (0.1, 16, 2), (1.0, 3, 3), (0.5, 1, 1)]
        {
            assert_eq!(count_of(share, peers), count, "{share} of {peers}");
        }
    }

    #[test]
    fn a_seed_decides_who_is_hit_and_named_peers_come_first() {
        let hit = |flags: &str| cast(flags, 8).unwrap().roles.into_keys().collect::<Vec<_>>();
        assert_eq!(hit("--slow 25%@0.1"), hit("--slow 25%@0.1"));
        let others =
            (2..20).any(|seed| hit(&format!("--slow 25%@0.1 --fault-seed {seed}")) != hit("--slow 25%@0.1"));
        assert!(others);
        let mut order = shuffled(50, 3);
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
        // Whatever the share would have hit, p1 plays what it is named for.
        for seed in 0..8 {
            let cast = cast(&format!("--slow 75%@0.1 --kill p1@50% --fault-seed {seed}"), 8).unwrap();
            assert_eq!(cast.roles.len(), 7);
            assert_eq!(cast.roles[&0], Role::Killed(Moment(0.5)));
        }
    }

    #[test]
    fn faults_that_contradict_are_refused() {
        for flags in [
            "--slow p9@0.5",
            "--slow p1@0.5 --kill p1@50%",
            "--slow 100%@0.5",
            "--slow p1@0.001",
            "--slow 60%@0.5 --join 60%@10%",
            "--busy p1@200mbit",
            "--racks 0",
            "--racks 9",
            "--racks 2 --oversubscription 0.5",
            "--racks 2 --oversubscription NaN",
        ] {
            assert!(cast(flags, 8).is_err(), "{flags}");
        }
    }

    #[test]
    fn those_that_are_well_have_a_bound_of_their_own() {
        // One copy takes 5 s at 20 MB/s; a card at a tenth takes 50 s for itself, and is the last of all.
        check_bound("", 8, 5.0, 5.0);
        check_bound("--slow p3@0.1", 8, 5.0, 50.0);
        check_bound("--kill p3@50%", 8, 5.0, 5.0);
        check_bound("--corrupt 25%", 8, 5.0, 5.0);
        // Half a card's rate leaves the origin, or enters each rack of two at four to one; a rack of four has all of it.
        check_bound("--origin-rate 100mbit", 8, 10.0, 10.0);
        check_bound("--racks 2 --oversubscription 4", 8, 5.0, 5.0);
        check_bound("--racks 4 --oversubscription 4", 8, 10.0, 10.0);
    }

    #[test]
    fn peers_fill_racks_evenly_and_in_order() {
        let cast = cast("--racks 3 --oversubscription 2", 8).unwrap();
        let racks: Vec<_> = (0..8).map(|peer| cast.rack_of(peer)).collect();
        assert_eq!(racks, [0, 0, 0, 1, 1, 1, 2, 2]);
        assert!((cast.uplink_x(0) - 1.5).abs() < 1e-9 && (cast.uplink_x(2) - 1.0).abs() < 1e-9);
    }
}
