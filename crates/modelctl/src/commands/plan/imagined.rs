//! The plan that a scheduler would make for peers that are only imagined.
//!
//! Owns: what such a planner is told. Does not own: what it plans.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use modelpack::{
    digest::Sha256Digest,
    layout::{PieceLayout, Run},
};
use planner::{
    ArtifactId, HostAddr, Input, Output, PeerId, PeerPlan, Planner, Progress,
    bound::{Binding, Bound, Rates},
};

use super::trees::{self, Peer, Tree};

/// What was planned.
pub(super) struct Imagined {
    pub(super) trees: Vec<Tree>,
    /// Consecutive pieces that stay in one stripe.
    pub(super) stripe_pieces: u32,
    /// What no distribution can beat.
    pub(super) bound: Bound,
    /// The predicted time.
    pub(super) finish: Duration,
}

/// All peers join at once: seeds with everything, the others with nothing.
pub(super) fn plan(
    (artifact, layout): (ArtifactId, &PieceLayout),
    peers: &[Peer],
    origin_rate: Option<u64>,
) -> Imagined {
    let mut planner = Planner::new();
    let ids: Vec<PeerId> = peers.iter().map(|peer| id_of(&peer.name)).collect();
    let has_seeds = peers.iter().any(|peer| peer.is_seed);
    let mut plans: BTreeMap<PeerId, PeerPlan> = BTreeMap::new();
    for (at, (peer, id)) in (1..).zip(peers.iter().zip(&ids)) {
        let whole = Run::new(0, layout.piece_count());
        let inputs = [
            Input::Register {
                peer: *id,
                address: String::new(),
                name: peer.name.clone(),
                nic_rate: peer.nic_rate,
                place: peer.place.clone(),
                host: HostAddr::new(Ipv4Addr::from_bits(at).into()),
            },
            Input::Join {
                peer: *id,
                artifact,
                bytes: layout.total_bytes(),
                piece_count: layout.piece_count(),
                origin_ok: !has_seeds,
                is_seed: peer.is_seed,
                have: if peer.is_seed { vec![whole] } else { Vec::new() },
                progress: Progress::default(),
            },
        ];
        for input in inputs {
            planner.handle(Duration::ZERO, input);
            while let Some(output) = planner.poll() {
                if let Output::Plan { to, plan, .. } = output {
                    plans.insert(to, plan);
                }
            }
        }
    }
    let bound = bound(layout.total_bytes(), peers, origin_rate);
    // What comes on top of the bound is the way through the peers, which the planner knows.
    let latest = plans.values().max_by_key(|plan| plan.epoch);
    let way = latest.and_then(|plan| Some(plan.finish?.saturating_sub(plan.bound?)));
    Imagined {
        trees: trees_of(&ids, &plans),
        stripe_pieces: latest.map_or(1, |plan| plan.stripe_pieces),
        bound,
        finish: bound.time().saturating_add(way.unwrap_or_default()),
    }
}

/// Names are as random as those of real peers.
fn id_of(name: &str) -> PeerId {
    let hash = *Sha256Digest::of(name.as_bytes()).bytes();
    PeerId::new(*hash.first_chunk().expect("a hash has 32 bytes"))
}

/// Seeds are the origin, and wait for nothing.
fn bound(bytes: u64, peers: &[Peer], origin_rate: Option<u64>) -> Bound {
    let rate = |peer: &Peer| as_f64(peer.nic_rate.unwrap_or(0));
    let receivers =
        peers.iter().filter(|peer| !peer.is_seed).map(|peer| Rates { up: rate(peer), down: rate(peer) });
    let mut seeds = peers.iter().filter(|peer| peer.is_seed).map(rate).peekable();
    let origin = if seeds.peek().is_some() { Some(seeds.sum()) } else { origin_rate.map(as_f64) };
    Bound::new(bytes, origin, &receivers.collect::<Vec<_>>())
}

fn trees_of(ids: &[PeerId], plans: &BTreeMap<PeerId, PeerPlan>) -> Vec<Tree> {
    let stripes = plans.values().map(|plan| plan.stripes.len()).max().unwrap_or(0);
    trees::of(ids, stripes, |peer, stripe| Some(plans.get(&ids[peer])?.stripes.get(stripe)?.source))
}

/// What sets the bound, as programs read it.
pub(super) fn word(binding: Binding) -> &'static str {
    match binding {
        Binding::Origin => "origin",
        Binding::Receiver => "receiver",
        Binding::Senders => "senders",
        Binding::OriginBudget => "peers",
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate; 53 bits are more than any card has")]
fn as_f64(rate: u64) -> f64 {
    rate as f64
}

#[cfg(test)]
mod tests {
    use planner::Place;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn peers(count: usize, seeds: usize) -> Vec<Peer> {
        let peer = |at: usize| Peer {
            name: format!("node-{at}"),
            nic_rate: Some(GB),
            place: Place { rack: format!("r{}", at % 4), ..Place::default() },
            is_seed: at < seeds,
            done: None,
        };
        (0..count + seeds).map(peer).collect()
    }

    fn planned(count: usize, seeds: usize, origin_rate: Option<u64>) -> Imagined {
        let layout = PieceLayout::new(vec![10 * GB]).unwrap();
        plan((ArtifactId([7; 32]), &layout), &peers(count, seeds), origin_rate)
    }

    #[test]
    fn everybody_gets_every_stripe_that_was_read_once() {
        for (count, seeds) in [(1, 0), (3, 0), (40, 0), (200, 0), (20, 2)] {
            let Imagined { trees, .. } = planned(count, seeds, None);
            assert_eq!(trees.len(), 16);
            for tree in trees {
                assert_eq!(tree.entrant.is_some(), seeds == 0);
                let gets = (seeds..count + seeds).filter(|peer| tree.level(*peer) > 0).count();
                assert_eq!(gets, count);
                if seeds == 0 {
                    assert_eq!(tree.crossings(&peers(count, seeds)).count(), count.min(4) - 1);
                }
            }
        }
    }

    #[test]
    fn what_binds_is_the_slowest_part() {
        let binding = |count, seeds, origin| planned(count, seeds, origin).bound.binding();
        assert_eq!(binding(8, 0, None), (Duration::from_secs(10), Binding::Receiver));
        assert_eq!(binding(8, 0, Some(GB / 2)), (Duration::from_secs(20), Binding::Origin));
        assert_eq!(binding(8, 2, None), (Duration::from_secs(10), Binding::Receiver));
        let Imagined { bound, finish, .. } = planned(8, 0, None);
        assert!(finish > bound.time() && finish < bound.time() * 101 / 100, "{finish:?}");
    }
}
