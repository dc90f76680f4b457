//! What the death of a parent costs its children, by the clock of the simulation.

#![expect(clippy::print_stdout, reason = "whoever reads a failure needs the seed and the times")]

use std::time::Duration;

use simulator::Orphan;
use simulator::failover::{End, Failover};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// How long bytes may stay away after a process has died.
const GAP: Duration = Duration::from_millis(100);

/// How long an entrant that hangs may keep its stripes: until a child finds it stalled, and a plan, and the way of the first
/// pieces from the origin to the last of its children.
const STALL: Duration = Duration::from_millis(250);

fn orphans(peers: u32, end: End) -> Vec<Orphan> {
    let failover = Failover { peers, pieces: 768, rate: 1_250_000_000, end };
    let of_seed = |seed| {
        let orphans = failover.orphans(seed);
        println!("{peers} peers, {end:?}, seed {seed}: {orphans:#?}");
        orphans
    };
    let orphans: Vec<Orphan> = SEEDS.flat_map(of_seed).collect();
    assert!(orphans.len() > 10, "nobody lost a parent");
    orphans
}

#[test]
fn bytes_flow_again_soon_after_a_process_has_died() {
    for peers in [8, 48] {
        for orphan in orphans(peers, End::Closed) {
            assert!(orphan.gap.is_some_and(|gap| gap <= GAP), "{orphan:?}");
        }
    }
}

#[test]
fn a_silent_parent_costs_no_more_than_the_stall_rule_and_one_completion() {
    let (of_entrants, others): (Vec<_>, Vec<_>) =
        orphans(48, End::Silent).into_iter().partition(|orphan| orphan.is_of_entrant);
    assert!(!of_entrants.is_empty() && others.iter().any(|orphan| orphan.promised().is_some()));
    for orphan in others {
        let promised = orphan.promised().unwrap_or(GAP * 3);
        assert!(orphan.gap.is_some_and(|gap| gap <= promised), "{orphan:?}");
    }
    for orphan in of_entrants {
        assert!(orphan.gap.is_some_and(|gap| gap <= STALL), "{orphan:?}");
    }
}
