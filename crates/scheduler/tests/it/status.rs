//! What schedulers say to somebody who asks how the fleet is.

use std::sync::Arc;

use identity::Security;
use planner::{AlarmStatus, Charge, HALF_LIFE, Standing};
use scheduler::{Inquiry, InquiryError, Options, Seen, inquire};
use telemetry::Watched as _;
use tokio::net::TcpListener;
use wire::{
    control::{Complaint, Run, peer_to_scheduler::Kind as Said},
    schedulers::Schedulers,
};

use crate::{
    fleet::{ARTIFACT, PIECES, Scheduler, Stream, id, in_time, join},
    schedulers::two,
};

async fn ask(addresses: &[String]) -> Result<Inquiry, InquiryError> {
    in_time(inquire(&Schedulers::new(&Security::Plain, addresses.to_vec()), &Security::Plain)).await
}

/// Asks until the answer is as wanted.
async fn ask_until(addresses: &[String], is_wanted: impl Fn(&Inquiry) -> bool) -> Inquiry {
    in_time(async {
        loop {
            match ask(addresses).await {
                Ok(inquiry) if is_wanted(&inquiry) => return inquiry,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_one_that_plans_is_asked_and_tells_what_it_knows() {
    let ([first, second], addresses) = two().await;
    let first = Scheduler::among(first, addresses.clone());
    let second = Scheduler::among(second, addresses.clone());
    let [at_first, at_second] = [&first, &second].map(|scheduler| scheduler.address.to_string());
    let mut peer = Stream::joined(&first, id(1)).await;
    peer.plan().await;
    peer.say_have(vec![Run { start: 0, end: PIECES / 2 }]).await;
    let seed = Stream::welcomed(&first, id(2)).await;
    let mut offer = join(vec![Run { start: 0, end: PIECES }]);
    offer.seed = true;
    seed.say(Said::Join(offer)).await;

    // Who was told of the second only is sent on to the first.
    let is_known = |inquiry: &Inquiry| {
        inquiry.address == at_first && inquiry.status.swarms.first().is_some_and(|swarm| swarm.seeds == 1)
    };
    let Inquiry { status, schedulers, .. } = ask_until(std::slice::from_ref(&at_second), is_known).await;
    assert_eq!(schedulers, [(at_first.clone(), Seen::Active), (at_second.clone(), Seen::Standby)]);
    assert_eq!((status.redirect, status.peer_count, status.swarm_count), (None, 2, 1));
    let names: Vec<&str> = status.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["peer 01010101", "peer 02020202"]);
    let swarm = status.swarms[0];
    assert_eq!((swarm.artifact, swarm.members, swarm.complete, swarm.permille), (ARTIFACT, 1, 0, 500));

    let about = id(2).bytes().to_vec();
    peer.say(Said::Complaint(Complaint { artifact: ARTIFACT.0.to_vec(), about, piece: 3 })).await;
    let Inquiry { status, .. } = ask_until(&addresses, |inquiry| inquiry.status.alarm_count == 1).await;
    let AlarmStatus { alarm, accused_ago, left } = &status.alarms[0];
    assert_eq!((alarm.peer, alarm.name.as_str()), (id(2), "peer 02020202"));
    assert_eq!((alarm.standing, alarm.charge), (Standing::Suspect, Some(Charge::WrongBytes)));
    assert_eq!(alarm.accusers, 1);
    assert!(*accused_ago < *left && *left <= 2 * HALF_LIFE, "{accused_ago:?} {left:?}");
    assert_eq!(status.peers[1].standing, Standing::Suspect);

    first.stop().await;
    let is_second = |inquiry: &Inquiry| inquiry.address == at_second && inquiry.status.redirect.is_none();
    let Inquiry { schedulers, status, .. } = ask_until(&addresses, is_second).await;
    assert!(matches!(&schedulers[0], (address, Seen::Silent(_)) if *address == at_first), "{schedulers:?}");
    assert_eq!(schedulers[1], (at_second, Seen::Active));
    assert_eq!((status.peer_count, status.swarm_count, status.alarm_count), (0, 0, 0));

    second.stop().await;
    let error = ask(&addresses).await.expect_err("nobody is left");
    assert!(matches!(&error, InquiryError::Silent(silent, _) if silent.len() == 2), "{error:?}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_swarm_that_comes_with_anothers_plan_was_taken_over() {
    let options = Options::default();
    let metrics = Arc::clone(&options.metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let scheduler = Scheduler::serve(listener, options);
    let counted = || metrics.metrics().contains("\nmodelctl_scheduler_take_overs_total 1\n");
    let mut stream = Stream::joined(&scheduler, id(1)).await;
    stream.plan().await;
    assert!(!counted());
    let mut theirs = join(Vec::new());
    (theirs.artifact, theirs.epoch) = (vec![8; 32], 5);
    stream.say(Said::Join(theirs)).await;
    stream.hear_plan_of(&[8; 32]).await;
    assert!(counted());
    scheduler.stop().await;
}
