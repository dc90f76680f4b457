//! Plans of members that stand in racks, and those in zones.

use std::collections::{BTreeMap, BTreeSet};

use planner::{Input, PeerId, PeerPlan, Place, StripeSource};
use proptest::{collection::vec, prelude::*};

use crate::support::{Fleet, id};

/// A zone and a rack in it.
type At = (u8, u8);

/// A fleet and where each of it stands.
#[derive(Default)]
struct Racked {
    fleet: Fleet,
    places: BTreeMap<PeerId, At>,
}

impl Racked {
    fn of(members: u8, at: impl Fn(u8) -> At) -> Self {
        let mut racked = Self::default();
        (0..members).for_each(|number| racked.join(number, at(number)));
        racked
    }

    fn join(&mut self, number: u8, (zone, rack): At) {
        self.places.insert(id(number), (zone, rack));
        self.fleet.register(number, Place { zone: format!("z{zone}"), rack: format!("r{rack}") });
        self.fleet.join_where_it_stands(number, 0, true, vec![]);
    }

    fn leave(&mut self, number: u8) {
        if self.places.remove(&id(number)).is_some() {
            self.fleet.tell(Input::Gone { peer: id(number) });
            self.fleet.plans.remove(&id(number));
        }
    }

    fn at(&self, peer: PeerId) -> At {
        self.places[&peer]
    }

    fn parent(plan: &PeerPlan, stripe: usize) -> Option<PeerId> {
        match plan.stripes[stripe].source {
            StripeSource::Parent(parent) => Some(parent),
            StripeSource::Origin | StripeSource::None => None,
        }
    }

    /// Everybody hangs under the one that reads the origin; each stripe comes into each rack once, and into each zone.
    fn check(&self) {
        let Some(first) = self.fleet.plans.values().next() else { return };
        for stripe in 0..first.stripes.len() {
            let (mut into_rack, mut into_zone) = (BTreeMap::new(), BTreeMap::new());
            for (peer, plan) in &self.fleet.plans {
                let (mut above, mut steps) = (*peer, 0);
                while let Some(parent) = Self::parent(&self.fleet.plans[&above], stripe) {
                    above = parent;
                    steps += 1;
                    assert!(steps <= self.places.len(), "a circle");
                }
                let source = self.fleet.plans[&above].stripes[stripe].source;
                assert_eq!(source, StripeSource::Origin, "{peer} hangs under {above}");
                let from = Self::parent(plan, stripe).map(|parent| self.at(parent));
                if from != Some(self.at(*peer)) {
                    *into_rack.entry(self.at(*peer)).or_insert(0) += 1;
                }
                if from.map(|at| at.0) != Some(self.at(*peer).0) {
                    *into_zone.entry(self.at(*peer).0).or_insert(0) += 1;
                }
            }
            assert!(into_rack.values().all(|entries| *entries == 1), "{into_rack:?} into racks");
            assert!(into_zone.values().all(|entries| *entries == 1), "{into_zone:?} into zones");
        }
    }

    /// How often each rack gives a stripe to another.
    fn crossings(&self) -> BTreeMap<At, usize> {
        let mut crossings = BTreeMap::new();
        for (peer, plan) in &self.fleet.plans {
            for parent in (0..plan.stripes.len()).filter_map(|stripe| Self::parent(plan, stripe)) {
                let (from, to) = (self.at(parent), self.at(*peer));
                *crossings.entry(from).or_insert(0) += usize::from(from != to);
            }
        }
        crossings
    }
}

#[test]
fn what_crosses_between_racks_is_shared_by_them() {
    // One rack after the other, as they are switched on, and all of them at a time.
    for at in [|number: u8| (0, number / 8), |number: u8| (0, number % 8)] {
        let racked = Racked::of(64, at);
        racked.check();
        let crossings = racked.crossings();
        assert_eq!(crossings.values().sum::<usize>(), 16 * 7);
        assert!(crossings.values().all(|count| (12..=16).contains(count)), "{crossings:?}");
        let entrants: Vec<At> = racked.fleet.readers().into_iter().map(|peer| racked.at(peer)).collect();
        let racks: BTreeSet<&At> = entrants.iter().collect();
        assert_eq!((entrants.len(), racks.len()), (16, 8));
    }
}

#[test]
fn racks_of_a_zone_have_a_stripe_of_one_another() {
    let racked = Racked::of(96, |number| (number % 2, number % 8));
    racked.check();
    assert_eq!(racked.crossings().values().sum::<usize>(), 16 * 7);
}

#[test]
fn nobody_sends_more_than_a_copy_more_than_the_others() {
    let racked = Racked::of(64, |number| (0, number / 8));
    let mut children: BTreeMap<PeerId, usize> = BTreeMap::new();
    for plan in racked.fleet.plans.values() {
        for parent in (0..plan.stripes.len()).filter_map(|stripe| Racked::parent(plan, stripe)) {
            *children.entry(parent).or_default() += 1;
        }
    }
    // 16 stripes for 63 others are 15.75 children each.
    assert!(children.values().all(|count| *count <= 16), "{children:?}");
}

#[test]
fn a_backup_is_near_and_another_elsewhere_unless_all_are_near() {
    let racked = Racked::of(40, |number| (0, number % 2));
    let mut entrants = [0; 16];
    for (peer, plan) in &racked.fleet.plans {
        for (stripe, part) in plan.stripes.iter().enumerate() {
            if part.source == StripeSource::Origin {
                entrants[stripe] = racked.at(*peer).1;
            }
        }
    }
    for (peer, plan) in &racked.fleet.plans {
        for (stripe, part) in plan.stripes.iter().enumerate() {
            let StripeSource::Parent(parent) = part.source else { continue };
            let is_far = |other: PeerId| racked.at(other) != racked.at(*peer);
            assert_eq!(part.backups.len(), 2);
            assert!(!part.backups.contains(&parent) && !part.backups.contains(peer));
            let far = part.backups.iter().filter(|backup| is_far(**backup)).count();
            // Where it is read from the origin, the others have nothing that is not here.
            let is_let_in = entrants[stripe] != racked.at(*peer).1;
            assert!(!is_let_in || far == if is_far(parent) { 2 } else { 1 }, "{part:?} of {peer}");
        }
        assert!(
            plan.members.iter().all(|member| member.is_far == (racked.at(member.id) != racked.at(*peer)))
        );
    }
}

#[test]
fn whoever_leaves_is_replaced_in_its_rack() {
    let mut racked = Racked::of(48, |number| (0, number / 12));
    for number in [0, 13, 14, 25, 40, 41, 42] {
        racked.leave(number);
        racked.check();
    }
    // A rack of its own, and one that is there no more.
    racked.join(60, (0, 9));
    racked.check();
    racked.leave(60);
    (12..24).for_each(|number| racked.leave(number));
    racked.check();
    racked.join(61, (1, 0));
    racked.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_stripe_comes_into_each_place_once_whoever_comes_and_goes(
        steps in vec((any::<bool>(), 0_u8..60, 0_u8..3, 0_u8..4), 1..70),
    ) {
        let mut racked = Racked::default();
        for (is_join, number, zone, rack) in steps {
            if !is_join {
                racked.leave(number);
            } else if !racked.places.contains_key(&id(number)) {
                racked.join(number, (zone, rack));
            }
            racked.check();
        }
    }
}
