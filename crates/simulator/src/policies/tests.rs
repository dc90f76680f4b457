//! The laws of policies.

use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use planner::bound::discrete_optimum;

use super::Kind;
use crate::options::{Fault, Options, Report};

const RATE: u64 = 10 << 20;
const PIECES: u32 = 256;

fn fleet(nodes: usize) -> Options {
    // In so many parts that how a piece crosses two cards hardly counts.
    Options { quanta: 64, ..Options::new(nodes, PIECES, RATE) }
}

fn last(report: &Report) -> f64 {
    report.done.iter().flatten().max().copied().unwrap_or_default().as_secs_f64()
}

/// Runs, and requires that all but the dead are complete.
fn check(kind: Kind, options: &Options, dead: &[usize]) -> Report {
    let report = kind.run(options);
    for (node, done) in report.done.iter().enumerate() {
        assert_eq!(done.is_none(), dead.contains(&node), "{kind:?} N={}: node {node}", options.nodes);
    }
    report
}

#[test]
fn every_policy_gives_everybody_each_piece_exactly_once() {
    for kind in [Kind::Chain, Kind::Binomial, Kind::Trees, Kind::Mesh] {
        for nodes in 1..=20_usize {
            let report = check(kind, &Options::new(nodes, PIECES, RATE), &[]);
            assert!(report.received.iter().all(|pieces| *pieces == u64::from(PIECES)), "{kind:?} N={nodes}");
            let extra = report.origin_bytes / PIECE_BYTES - u64::from(PIECES);
            // At its end the binomial pipeline gives the last piece along every edge of the origin.
            let extra_max = if kind == Kind::Binomial { u64::from(nodes.ilog2()) } else { 0 };
            assert!(extra <= extra_max, "{kind:?} N={nodes}: {extra} pieces more left the origin");
        }
    }
}

#[test]
fn the_binomial_pipeline_takes_as_many_rounds_as_the_bound() {
    for nodes in [1, 2, 3, 6, 7, 8, 12, 15, 16, 63, 64] {
        let options = fleet(nodes);
        let time = last(&check(Kind::Binomial, &options, &[]));
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let rate = RATE as f64;
        let receivers = u32::try_from(nodes).unwrap();
        let optimum = discrete_optimum(PIECES, receivers, PIECE_BYTES, rate).as_secs_f64();
        let ratio = time / optimum;
        println!("N={nodes}: {ratio:.4} of the optimum");
        assert!((1.0..1.015).contains(&ratio), "N={nodes}: {ratio}");
    }
}

#[test]
fn the_chain_takes_a_piece_more_for_each_node() {
    for nodes in [2, 8, 32] {
        let options = fleet(nodes);
        let time = last(&check(Kind::Chain, &options, &[]));
        let hops = u32::try_from(nodes).unwrap() - 1;
        let piece = Duration::from_millis(100);
        let expect = piece * PIECES + (piece + crate::world::LATENCY) * hops;
        let ratio = time / expect.as_secs_f64();
        println!("N={nodes}: {ratio:.4} of the formula");
        assert!((1.0..1.01).contains(&ratio), "N={nodes}: {ratio}");
    }
}

#[test]
fn every_policy_goes_on_without_the_dead() {
    let faults = |dead: &[usize]| {
        dead.iter().map(|node| Fault::Kill { node: *node, at: Duration::from_secs(12) }).collect()
    };
    for kind in [Kind::Chain, Kind::Binomial, Kind::Trees, Kind::Mesh] {
        for (nodes, dead) in [(2, vec![0]), (8, vec![0]), (16, vec![3, 4, 15]), (33, vec![1, 2, 3, 30])] {
            check(kind, &Options { faults: faults(&dead), ..fleet(nodes) }, &dead);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let options = fleet(16);
    let (first, second) = (Kind::Mesh.run(&options), Kind::Mesh.run(&options));
    assert_eq!(first.event_hash, second.event_hash);
    assert_ne!(first.done, Kind::Mesh.run(&Options { seed: 2, ..options }).done);
}
