//! Which rail here goes with which rail there, and what a QP between them carries. Pure.

use crate::{Endpoint, Network};

/// For each rail of the other end the rail here that goes with it: the one of the same place if they are of one network,
/// else the first of that network that is still free.
pub(crate) fn match_rails(theirs: &[Network], ours: &[Network]) -> Vec<Option<usize>> {
    let mut is_free = vec![true; ours.len()];
    let mut matched = vec![None; theirs.len()];
    for (place, network) in theirs.iter().enumerate() {
        if ours.get(place) == Some(network) {
            is_free[place] = false;
            matched[place] = Some(place);
        }
    }
    for (network, matched) in theirs.iter().zip(&mut matched).filter(|(_, matched)| matched.is_none()) {
        let place = (0..ours.len()).find(|place| is_free[*place] && ours[*place] == *network);
        if let Some(place) = place {
            is_free[place] = false;
            *matched = Some(place);
        }
    }
    matched
}

/// How many reads a QP between the two carries at once, of what `most` allows.
pub(crate) fn reads_in_flight(own: &Endpoint, peer: &Endpoint, most: u8) -> u8 {
    own.reads_in_flight_max.min(peer.reads_in_flight_max).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rails_pair_by_place_then_by_network() {
        use Network::{InfiniBand as Ib, RoceIpv4 as V4, RoceIpv6 as V6};
        let check = |theirs: &[Network], ours: &[Network], expect: &[Option<usize>]| {
            assert_eq!(match_rails(theirs, ours), expect, "{theirs:?} with {ours:?}");
        };
        check(&[V4, V4], &[V4, V4], &[Some(0), Some(1)]);
        check(&[V4, V4], &[V4], &[Some(0), None]);
        check(&[V4], &[V4, V4], &[Some(0)]);
        check(&[Ib], &[V4], &[None]);
        check(&[V4], &[V6], &[None]);
        // Out of place, but of one network.
        check(&[Ib, V4], &[V4, Ib], &[Some(1), Some(0)]);
        check(&[V4, V4, Ib], &[Ib, V4], &[None, Some(1), Some(0)]);
        check(&[], &[V4], &[]);
        check(&[V4], &[], &[None]);
    }
}
