//! Where the nodes of a run stand, and what joins their racks. Does not own what a plan makes of it (`planner`), nor how
//! bytes cross (`network`).

use std::fmt;

use planner::Place;

use super::dice::Dice;
use super::scenario::{Fault, Member};

/// Racks have dice of their own, so that a seed that has none means what it meant before there were any. This number is
/// such that the seeds that found something by then have none.
const SALT: u64 = 0x7d26;

/// Of a hundred seeds so many have racks.
const PERCENT: u64 = 40;

/// Of a hundred nodes so many do not say where they stand.
const UNLABELLED_PERCENT: u64 = 10;

/// The racks of a fleet. Their uplinks are shared by all that crosses them; the origin is in none.
#[derive(Clone, Debug)]
pub struct Racks {
    /// The rack of each node.
    homes: Vec<usize>,
    /// What each node says of where it stands.
    places: Vec<Place>,
    /// Bytes per second of what joins each rack to the others, in each direction.
    uplinks: Vec<u64>,
}

impl Racks {
    /// What a seed means for these members, if it is one with racks.
    pub(super) fn drawn(seed: u64, members: &[Member]) -> Option<Self> {
        let mut dice = Dice::new(seed ^ SALT);
        if !dice.percent(PERCENT) {
            return None;
        }
        let (count, zones) = (2 + dice.index(3), 1 + dice.index(2));
        let oversubscription = dice.pick(&[1, 2, 4]);
        let mut racks = Self { homes: Vec::new(), places: Vec::new(), uplinks: vec![0; count] };
        for member in members {
            let drawn = (dice.index(count), dice.percent(UNLABELLED_PERCENT));
            let (home, place) = match member.returns {
                Some(returns) => (racks.homes[returns.of], racks.places[returns.of].clone()),
                None if drawn.1 => (drawn.0, Place::default()),
                None => {
                    let (zone, rack) = (format!("zone-{}", drawn.0 % zones), format!("rack-{}", drawn.0));
                    (drawn.0, Place { zone, rack })
                }
            };
            if member.returns.is_none() {
                racks.uplinks[home] += member.rate;
            }
            racks.homes.push(home);
            racks.places.push(place);
        }
        racks.uplinks.iter_mut().for_each(|uplink| *uplink = (*uplink / oversubscription).max(1));
        Some(racks)
    }

    /// Half of all partitions cut a rack off.
    pub(super) fn part(&self, seed: u64, faults: &mut [(std::time::Duration, Fault)]) {
        let mut dice = Dice::new(seed ^ SALT ^ 1);
        for (_, fault) in faults {
            let (rack, is_rack) = (dice.index(self.uplinks.len()), dice.percent(50));
            if let Fault::Partition { far, .. } = fault
                && is_rack
            {
                let homes = self.homes.iter().enumerate().filter(|(_, home)| **home == rack);
                *far = homes.fold(0, |set, (node, _)| set | 1 << node);
            }
        }
    }

    /// What a node of the fullest rack gets from elsewhere if all in it take it from there.
    pub(super) fn slowest(&self) -> u64 {
        let among = |rack: usize| self.homes.iter().filter(|home| **home == rack).count() as u64;
        let each = (0..self.uplinks.len()).filter(|rack| among(*rack) > 0);
        each.map(|rack| self.uplinks[rack] / among(rack)).min().unwrap_or(u64::MAX).max(1)
    }

    /// The rack of a node.
    pub(super) fn home(&self, node: usize) -> usize {
        self.homes[node]
    }

    /// What a node says of where it stands.
    pub(super) fn place(&self, node: usize) -> Place {
        self.places[node].clone()
    }

    /// Bytes per second of each uplink.
    pub(super) fn uplinks(&self) -> &[u64] {
        &self.uplinks
    }
}

impl fmt::Display for Racks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rack, uplink) in self.uplinks.iter().enumerate() {
            write!(f, "\n  rack {rack}: {uplink} B/s, nodes")?;
            for (node, place) in self.places.iter().enumerate().filter(|(node, _)| self.homes[*node] == rack)
            {
                write!(f, " {node}")?;
                f.write_str(if place.rack.is_empty() { " (unlabelled)" } else { "" })?;
            }
        }
        Ok(())
    }
}
