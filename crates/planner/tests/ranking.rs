//! Laws of the order of schedulers.

use planner::FleetName;
use proptest::{collection::vec, prelude::*};

fn addresses() -> impl Strategy<Value = Vec<String>> {
    vec((0_u8..40, 1_u16..9), 1..12)
        .prop_map(|all| all.into_iter().map(|(host, port)| format!("10.0.0.{host}:{port}")).collect())
}

proptest! {
    #[test]
    fn everybody_has_the_same_order_whatever_order_the_addresses_were_given_in(
        fleet: u64, (given, shuffled) in addresses().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let fleet = FleetName(fleet);
        let ranked = fleet.rank(given.clone());
        prop_assert_eq!(&ranked, &fleet.rank(shuffled));
        prop_assert_eq!(&ranked, &fleet.rank([given.clone(), given.clone()].concat()), "each is there once");
        prop_assert!(ranked.windows(2).all(|two| fleet.prefers(&two[0], &two[1]) && !fleet.prefers(&two[1], &two[0])));
        prop_assert!(given.iter().all(|address| ranked.contains(address)));
    }

    #[test]
    fn an_address_that_is_removed_moves_no_other(fleet: u64, given in addresses(), at: prop::sample::Index) {
        let fleet = FleetName(fleet);
        let mut ranked = fleet.rank(given.clone());
        let removed = at.get(&given).clone();
        let left = given.into_iter().filter(|address| *address != removed).collect();
        ranked.retain(|address| *address != removed);
        prop_assert_eq!(fleet.rank(left), ranked);
    }
}

#[test]
fn fleets_are_shared_out_evenly() {
    let addresses: Vec<String> = (1..=4).map(|host| format!("10.0.0.{host}:7100")).collect();
    let mut firsts = [0_u32; 4];
    for fleet in 0..4000 {
        let first = &FleetName(fleet).rank(addresses.clone())[0];
        firsts[addresses.iter().position(|address| address == first).expect("one of them")] += 1;
    }
    assert!(firsts.iter().all(|count| (800..1200).contains(count)), "{firsts:?}");
}

#[test]
fn the_order_is_the_same_in_every_version() {
    let addresses = ["10.0.0.1:7100", "10.0.0.2:7100", "10.0.0.3:7100"].map(str::to_owned).to_vec();
    assert_eq!(FleetName::LOCAL.0.to_le_bytes(), *b"local\0\0\0");
    assert_eq!(FleetName::LOCAL.rank(addresses.clone()), PINNED_LOCAL);
}
const PINNED_LOCAL: [&str; 3] = ["10.0.0.1:7100", "10.0.0.2:7100", "10.0.0.3:7100"];
