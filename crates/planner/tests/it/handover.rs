//! Stripes that lose their entrant: whoever reads them next hears first what is on its way.

use planner::{Before, StripeSource};

use crate::support::{Fleet, id};

#[test]
fn whoever_cannot_read_a_stripe_any_more_is_heard_before_the_next_reads_it() {
    let mut fleet = Fleet::default();
    fleet.join(1, 0, true, Vec::new());
    fleet.join(2, 0, true, Vec::new());
    let reads = |fleet: &Fleet, number: u8| -> Vec<usize> {
        let parts = fleet.plans[&id(number)].stripes.iter().enumerate();
        parts.filter(|(_, part)| part.source == StripeSource::Origin).map(|(stripe, _)| stripe).collect()
    };
    let lost = reads(&fleet, 1);
    assert!(!lost.is_empty());
    // The origin refuses it from now on.
    fleet.join(1, 0, false, Vec::new());
    let plan = &fleet.plans[&id(2)];
    assert_eq!(reads(&fleet, 2).len(), plan.stripes.len());
    for stripe in lost {
        assert!(plan.stripes[stripe].before.contains(&Before { peer: id(1), epoch: plan.epoch }), "{stripe}");
    }
}
