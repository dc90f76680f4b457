//! What schedules, places and faults cost at best or at least: a yardstick for plans and measurements. Does not own the
//! fluid bound and the discrete optimum (`bound`).
//!
//! Names in the formulas: `M` bytes in `k` pieces of `p`, `N` receivers and a source (`n = N + 1`), full-duplex cards of
//! `B`, `τ = p / B`, `α` latency of a hop, `v` time to check a piece before it is forwarded, `L = ⌈log2 n⌉`.

use std::time::Duration;

use super::{time, to_f64};

/// One artifact on its way to equal receivers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Broadcast {
    /// `M`.
    pub bytes: u64,
    /// `k`.
    pub pieces: u32,
    /// `N`.
    pub receivers: u32,
    /// `B`, in bytes per second.
    pub rate: f64,
    /// `α + v`: what a hop takes beyond the sending.
    pub hop: Duration,
}

impl Broadcast {
    fn all(&self) -> f64 {
        to_f64(self.bytes) / self.rate
    }

    /// `τ`.
    fn piece(&self) -> f64 {
        self.all() / f64::from(self.pieces.max(1))
    }

    /// `L`.
    fn rounds(&self) -> f64 {
        f64::from(u32::BITS - self.receivers.leading_zeros())
    }

    fn hops(&self, hops: f64, each: f64) -> Duration {
        seconds(self.all() + hops.max(0.0) * (each + self.hop.as_secs_f64()))
    }

    /// The binomial pipeline, `M/B + (L − 1)(τ + α + v)`: it meets the optimum of `k − 1 + L` rounds (Ganesan and
    /// Seshadri 2005; RDMC, Behrens et al. 2018).
    pub fn binomial_pipeline(&self) -> Duration {
        self.hops(self.rounds() - 1.0, self.piece())
    }

    /// A chain, `M/B + (N − 1)(τ + α + v)`, as a ring broadcast is.
    pub fn chain(&self) -> Duration {
        self.hops(f64::from(self.receivers) - 1.0, self.piece())
    }

    /// The number of pieces with which a chain whose latency nothing hides is shortest, `√((N − 1)·M / (α·B))`.
    pub fn chain_pieces(&self) -> f64 {
        ((f64::from(self.receivers) - 1.0).max(0.0) * self.all() / self.hop.as_secs_f64()).sqrt()
    }

    /// One tree in which everybody serves `fanout` children, `f·M/B` and its depth: most uploads are not used.
    pub fn single_tree(&self, fanout: u32) -> Duration {
        let (fanout, depth) = (f64::from(fanout.max(1)), self.depth(fanout));
        seconds(fanout * self.all() + depth * (fanout * self.piece() + self.hop.as_secs_f64()))
    }

    /// `fanout` trees, each member interior in one, `M/B + ⌈log_f n⌉·(f·τ + α + v)` (`SplitStream`, Castro et al. 2003;
    /// two trees, Sanders, Speck and Träff 2009).
    pub fn disjoint_trees(&self, fanout: u32) -> Duration {
        self.hops(self.depth(fanout), f64::from(fanout.max(1)) * self.piece())
    }

    fn depth(&self, fanout: u32) -> f64 {
        let (mut reached, mut depth) = (1_u64, 0_u32);
        while reached < u64::from(self.receivers) + 1 {
            reached = if fanout < 2 { reached + 1 } else { reached.saturating_mul(u64::from(fanout)) };
            depth += 1;
        }
        f64::from(depth)
    }

    /// Only those who have everything serve, at best `L·M/B`.
    pub fn whole_doubling(&self) -> Duration {
        seconds(self.rounds() * self.all())
    }

    /// Everybody reads the origin, `N·M/B`.
    pub fn star(&self) -> Duration {
        seconds(f64::from(self.receivers) * self.all())
    }

    /// Tit for tat, the riffle pipeline: `k + n − 2` rounds (Ganesan and Seshadri 2005).
    pub fn barter(&self) -> Duration {
        let rounds = f64::from(self.pieces) + f64::from(self.receivers) - 1.0;
        seconds(rounds * self.piece())
    }

    /// Bytes that must cross between racks, `(R − 1)·M`: those of the source have them already.
    pub fn core_bytes(&self, racks: u32) -> u64 {
        self.bytes.saturating_mul(u64::from(racks.saturating_sub(1)))
    }

    /// Racks whose uplinks are `oversubscription` times slower than their machines together, and know of it:
    /// `max(M/B, M·o/(n_r·B))`.
    pub fn racks_aware(&self, racks: u32, oversubscription: f64) -> Duration {
        let per_rack = f64::from(self.receivers) / f64::from(racks.max(1));
        seconds(self.all() * (oversubscription / per_rack.max(1.0)).max(1.0))
    }

    /// The same where members choose one another at random, `o·(1 − 1/R)·M/B`.
    pub fn racks_random(&self, racks: u32, oversubscription: f64) -> Duration {
        let away = 1.0 - 1.0 / f64::from(racks.max(1));
        seconds(self.all() * (oversubscription * away).max(1.0))
    }
}

/// How many members are to read an origin of `rate` at once, `⌈B_o / min(B, c)⌉`, each a part of its own, where one
/// connection gets `connection`.
pub fn origin_readers(rate: f64, card: f64, connection: f64) -> u32 {
    let mut readers = 1;
    let each = card.min(connection);
    while f64::from(readers) * each < rate && readers < u32::from(u16::MAX) {
        readers += 1;
    }
    readers
}

/// The least time from an origin: its own rate or that of a card, whichever is less.
pub fn origin(bytes: u64, rate: f64, card: f64) -> Duration {
    time(to_f64(bytes), rate.min(card))
}

/// What a receiver can take, in bytes per second each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sink {
    /// Its card, receiving.
    pub card: f64,
    /// Its disk, writing; infinite where it is memory.
    pub disk: f64,
    /// Its memory, over the number of copies that are made.
    pub memory: f64,
    /// What all its cores hash together.
    pub hash: f64,
}

/// `M / min(d, disk, memory/copies, H·cores)`.
pub fn sink(bytes: u64, sink: Sink) -> Duration {
    let Sink { card, disk, memory, hash } = sink;
    time(to_f64(bytes), card.min(disk).min(memory).min(hash))
}

/// What a fixed binomial pipeline keeps of its rate when one link has `speed` of the others', `l·s / (1 + (l − 1)·s)`
/// with `l = log2 n` (RDMC). A chain keeps `speed`.
pub fn kept_with_slow_link(members: u32, speed: f64) -> f64 {
    let rounds = f64::from(members.max(2)).log2();
    rounds * speed / (1.0 + (rounds - 1.0) * speed)
}

/// What a child loses by a dead parent, `φ·t_detect`, where `share` of what it gets comes from there.
pub fn failed_parent(share: f64, noticed_after: Duration) -> Duration {
    seconds(share * noticed_after.as_secs_f64())
}

/// A member that comes late gets what it can take, or what the others leave: `M / min(d, Σ idle u)`.
pub fn late_joiner(bytes: u64, down: f64, idle_up: f64) -> Duration {
    time(to_f64(bytes), down.min(idle_up))
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 140 GB in pieces of 4 MiB over cards of 25 GB/s, with 20 µs a hop.
    fn fast(receivers: u32) -> Broadcast {
        let hop = Duration::from_micros(20);
        Broadcast { bytes: 140_000_000_000, pieces: 33_379, receivers, rate: 25e9, hop }
    }

    fn check(time: Duration, expect: f64) {
        let is = time.as_secs_f64();
        assert!((is - expect).abs() < expect * 0.001, "{is} instead of {expect}");
    }

    /// The same in pieces of so many MiB, each of which is hashed on one core at 1.55 GB/s before it is passed on.
    fn checked(receivers: u32, mib: u32) -> Broadcast {
        let check = Duration::from_secs_f64(f64::from(mib << 20) / 1.55e9);
        let pieces = 4 * 33_379 / mib;
        Broadcast { pieces, hop: fast(1).hop + check, ..fast(receivers) }
    }

    #[test]
    fn schedules_take_what_the_table_says() {
        for (receivers, star, doubling, chain, binomial) in [
            (8, 44.8, 22.4, 5.601, 5.601),
            (64, 358.4, 39.2, 5.612, 5.601),
            (1024, 5734.4, 61.6, 5.792, 5.602),
        ] {
            let all = fast(receivers);
            check(all.star(), star);
            check(all.whole_doubling(), doubling);
            check(all.chain(), chain);
            check(all.binomial_pipeline(), binomial);
        }
        for (receivers, mib, chain, binomial, stripes) in [
            (8, 4, 5.62, 5.609, 5.612),
            (64, 4, 5.782, 5.617, 5.621),
            (1024, 4, 8.56, 5.629, 5.634),
            (8, 16, 5.68, 5.635, 5.649),
            (64, 16, 6.325, 5.669, 5.685),
            (1024, 16, 17.38, 5.715, 5.734),
        ] {
            let all = checked(receivers, mib);
            check(all.chain(), chain);
            check(all.binomial_pipeline(), binomial);
            check(all.disjoint_trees(2), stripes);
        }
    }

    #[test]
    fn other_schedules_take_what_their_formulas_say() {
        check(fast(1).binomial_pipeline(), 5.6);
        check(fast(64).barter(), 5.6 * f64::from(33_379 + 63) / 33_379.0);
        check(fast(8).single_tree(2), 11.2);
        check(fast(8).single_tree(1), 5.6);
        assert!((fast(64).chain_pieces() - 4200.0).abs() < 1.0, "{}", fast(64).chain_pieces());
    }

    #[test]
    fn racks_that_nobody_knows_of_cost_what_their_uplinks_do() {
        check(fast(64).racks_aware(8, 3.0), 5.6);
        check(fast(64).racks_random(8, 3.0), 5.6 * 2.625);
        check(fast(128).racks_random(32, 4.0), 5.6 * 3.875);
        check(fast(2).racks_aware(2, 3.0), 16.8);
        assert_eq!(fast(64).core_bytes(8), 7 * 140_000_000_000);
        assert_eq!(fast(64).core_bytes(0), 0);
    }

    #[test]
    fn an_origin_is_read_by_as_many_as_it_feeds() {
        assert_eq!(origin_readers(100e9, 25e9, 50e9), 4);
        assert_eq!(origin_readers(10e9, 25e9, 1e9), 10);
        assert_eq!(origin_readers(1e9, 25e9, 50e9), 1);
        check(origin(140_000_000_000, 100e9, 25e9), 5.6);
        check(origin(140_000_000_000, 12.5e9, 25e9), 11.2);
    }

    #[test]
    fn a_sink_is_as_fast_as_its_slowest_part() {
        let all = Sink { card: 25e9, disk: f64::INFINITY, memory: 40e9, hash: 16.0 * 1.6e9 };
        check(sink(140_000_000_000, all), 5.6);
        check(sink(140_000_000_000, Sink { disk: 2.85e9, ..all }), 49.12);
        check(sink(140_000_000_000, Sink { hash: 1.6e9, ..all }), 87.5);
    }

    #[test]
    fn faults_cost_their_share() {
        assert!((kept_with_slow_link(64, 0.5) - 0.857).abs() < 0.001);
        assert!((kept_with_slow_link(64, 0.1) - 0.4).abs() < 0.001);
        assert!((kept_with_slow_link(64, 1.0) - 1.0).abs() < 1e-9);
        check(failed_parent(1.0 / 16.0, Duration::from_millis(160)), 0.01);
        check(late_joiner(140_000_000_000, 25e9, 5e9), 28.0);
    }
}
