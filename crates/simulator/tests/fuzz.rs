//! Seeds of random faults: those that found something once, and a few that are always the same.

#![expect(clippy::print_stdout, reason = "whoever reads a failure needs the seed")]

use simulator::fuzz::{self, Fault, Nature, Scenario, Shown, Verdict, past_seeds};

/// Seeds that are played each time: a few seconds.
const SEEDS: u64 = 40;

/// Seeds of a rare kind that are played each time.
const RARE: usize = 4;

fn check(seed: u64) -> Verdict {
    let scenario = Scenario::new(seed);
    let verdict = fuzz::play(&scenario);
    if let Some(found) = &verdict.violation {
        println!("seed {seed}: {scenario}");
        for line in fuzz::replay(&scenario, &Shown::default()).trace {
            println!("{line}");
        }
        panic!("seed {seed}: {found:?}; `cargo run --release -p simulator -- replay {seed}` shows it");
    }
    verdict
}

/// The first seeds that are of a kind.
fn rare(is_kind: impl Fn(&Scenario) -> bool) -> impl Iterator<Item = u64> {
    (0..).filter(move |seed| is_kind(&Scenario::new(*seed))).take(RARE)
}

#[test]
fn what_was_found_once_is_not_found_again() {
    assert!(past_seeds().count() > 0);
    past_seeds().for_each(|(seed, _)| drop(check(seed)));
}

#[test]
fn all_holds_whatever_goes_wrong() {
    (0..SEEDS).for_each(|seed| drop(check(seed)));
}

#[test]
fn wrong_provisional_trees_are_repaired() {
    let misreads = |scenario: &Scenario| {
        scenario.members.iter().any(|member| matches!(member.nature, Nature::Misreads { .. }))
    };
    let repairs: u64 = rare(misreads).map(|seed| check(seed).repairs).sum();
    assert!(repairs > 0, "nobody read anything wrong");
}

#[test]
fn wrong_plans_are_survived() {
    let is_misled = |scenario: &Scenario| {
        scenario.faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongPlans { .. }))
    };
    let plans: u64 = rare(is_misled).map(|seed| check(seed).wrong_plans).sum();
    assert!(plans > 0, "all plans were right");
}

#[test]
fn a_seed_is_the_same_run_each_time_also_when_it_is_looked_at() {
    for seed in 0..8 {
        let scenario = Scenario::new(seed);
        let (first, second) = (fuzz::play(&scenario), fuzz::replay(&scenario, &Shown::default()));
        assert_eq!((first.event_hash, first.events), (second.event_hash, second.events), "seed {seed}");
        assert_ne!(first.event_hash, fuzz::play(&Scenario::new(seed + 1)).event_hash);
    }
}
