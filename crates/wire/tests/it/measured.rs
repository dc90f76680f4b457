//! What a peer measures comes to the scheduler as it was.

use std::time::Duration;

use planner::{
    ArtifactId, Measured, SwarmLoad,
    capacity::{Foreign, Learned},
};
use wire::measured::{load_message, measured};

#[test]
fn what_was_measured_survives_the_wire() {
    let age = Duration::from_millis(1200);
    let swarms = [7, 8].map(|number| SwarmLoad { artifact: ArtifactId([number; 32]), rate: 5 }).to_vec();
    let all = Measured {
        learned: Some(Learned { rate: 9, is_full: true, age }),
        foreign: Some(Foreign { sent: 1, received: 2, age }),
        swarms,
    };
    for sent in [all, Measured::default()] {
        let message = load_message((3, 4), &sent);
        assert_eq!((message.sent_bytes_per_second, message.received_bytes_per_second), (3, 4));
        assert_eq!(measured(message).expect("our own"), sent);
    }
}

#[test]
fn a_report_that_breaks_a_rule_is_refused_and_no_time_is_endless() {
    let swarm = SwarmLoad { artifact: ArtifactId([7; 32]), rate: 1 };
    let learned = Some(Learned { rate: 1, is_full: false, age: Duration::ZERO });
    let sent = Measured { swarms: vec![swarm; 64], learned, ..Measured::default() };
    let mut message = load_message((0, 0), &sent);
    message.learned.as_mut().expect("it is there").age_ms = u64::MAX;
    let heard = measured(message.clone()).expect("as much as may be");
    assert!(heard.learned.expect("it is there").age < Duration::from_hours(24 * 366));
    message.swarms[5].artifact.truncate(31);
    assert!(measured(message.clone()).is_err(), "a short artifact");
    message.swarms[5] = message.swarms[4].clone();
    message.swarms.push(message.swarms[4].clone());
    assert!(measured(message).is_err(), "too many swarms");
}
