//! Whom only seeds are left.

use planner::{Input, StripeSource};

use crate::support::{ARTIFACT, Fleet, id};

#[test]
fn whoever_can_read_no_origin_and_accuses_who_reads_it_reads_a_seed() {
    let mut fleet = Fleet::default();
    fleet.join(1, 0, true, Vec::new());
    fleet.join(2, 0, false, Vec::new());
    fleet.join_seed(3);
    assert_eq!(fleet.sources(2), [id(1)], "a seed is left alone while there is somebody else");
    fleet.tell(Input::Silence { peer: id(2), artifact: ARTIFACT, about: id(1) });
    assert_eq!(fleet.readers(), [id(1)]);
    assert!(fleet.plans[&id(2)].stripes.iter().all(|part| part.source == StripeSource::Parent(id(3))));
    fleet.tell(Input::Silence { peer: id(2), artifact: ARTIFACT, about: id(3) });
    assert_eq!(fleet.sources(2), [], "nor does it read a seed that it accuses");
}
