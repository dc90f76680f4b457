//! Peers are told plans that name each other, and streams end for good reasons only.

use std::time::Duration;

use planner::{PeerId, PeerPlan, StripeSource};
use wire::control::{Complaint, Leave, Run, peer_to_scheduler::Kind as Said};

use crate::fleet::{ARTIFACT, PIECES, Scheduler, Stream, hello, id, join};

fn names(plan: &PeerPlan, peers: &[PeerId]) -> bool {
    let mut named: Vec<PeerId> = plan.members.iter().map(|member| member.id).collect();
    named.sort_unstable();
    named == peers
}

fn is_entrant(plan: &PeerPlan, stripe: usize) -> bool {
    plan.stripes[stripe].source == StripeSource::Origin
}

#[tokio::test]
async fn plans_name_the_others_and_one_entrant_a_stripe() {
    let scheduler = Scheduler::patient().await;
    let mut a = Stream::joined(&scheduler, id(1)).await;
    let alone = a.plan().await;
    assert!((0..alone.stripes.len()).all(|stripe| is_entrant(&alone, stripe)), "{alone:?}");
    let mut b = Stream::joined(&scheduler, id(2)).await;
    b.plan().await;
    let mut c = Stream::joined(&scheduler, id(3)).await;
    let plans = [
        a.plan_where(|plan| names(plan, &[id(2), id(3)])).await,
        b.plan_where(|plan| names(plan, &[id(1), id(3)])).await,
        c.plan_where(|plan| names(plan, &[id(1), id(2)])).await,
    ];
    for stripe in 0..plans[0].stripes.len() {
        let entrants = plans.iter().filter(|plan| is_entrant(plan, stripe)).count();
        assert_eq!(entrants, 1, "stripe {stripe} of {plans:?}");
    }
    assert_eq!(&*plans[0].members[0].contact.address, "127.0.0.1:1002");
    scheduler.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_changes_the_others_plans() {
    let scheduler = Scheduler::patient().await;
    let mut a = Stream::joined(&scheduler, id(1)).await;
    let b = Stream::joined(&scheduler, id(2)).await;
    a.plan_where(|plan| names(plan, &[id(2)])).await;
    drop(b);
    let alone = a.plan_where(|plan| names(plan, &[])).await;
    assert!((0..alone.stripes.len()).all(|stripe| is_entrant(&alone, stripe)), "{alone:?}");
    let b = Stream::joined(&scheduler, id(2)).await;
    a.plan_where(|plan| names(plan, &[id(2)])).await;
    b.say(Said::Leave(Leave { artifact: ARTIFACT.0.to_vec() })).await;
    a.plan_where(|plan| names(plan, &[])).await;
    scheduler.stop().await;
}

#[tokio::test]
async fn a_whole_holder_becomes_the_source_of_entrants() {
    let scheduler = Scheduler::patient().await;
    let mut holder = Stream::welcomed(&scheduler, id(1)).await;
    holder.say(Said::Join(join(vec![Run { start: 0, end: PIECES - 1 }]))).await;
    holder.say_have(vec![Run { start: PIECES - 1, end: PIECES }]).await;
    // The answer to a later message says that the piece was heard.
    let mut other = join(Vec::new());
    other.artifact = vec![8; 32];
    holder.say(Said::Join(other)).await;
    holder.hear_plan_of(&[8; 32]).await;
    let mut b = Stream::joined(&scheduler, id(2)).await;
    let from_holder =
        |plan: &PeerPlan| plan.stripes.iter().all(|part| part.source == StripeSource::Parent(id(1)));
    b.plan_where(from_holder).await;
    scheduler.stop().await;
}

#[tokio::test]
async fn a_newer_stream_of_a_peer_takes_the_place_of_the_older() {
    let scheduler = Scheduler::patient().await;
    let mut witness = Stream::joined(&scheduler, id(9)).await;
    let mut older = Stream::joined(&scheduler, id(1)).await;
    witness.plan_where(|plan| names(plan, &[id(1)])).await;
    let mut newer = Stream::joined(&scheduler, id(1)).await;
    assert!(older.refusal().await.contains("newer stream"));
    drop(older);
    newer.plan_where(|plan| names(plan, &[id(9)])).await;
    scheduler.stop().await;
}

/// What the scheduler says to a stream that says `first`.
async fn refused(first: Said) -> String {
    let scheduler = Scheduler::patient().await;
    let mut stream = Stream::open(&scheduler).await;
    stream.say(first).await;
    let reason = stream.refusal().await;
    scheduler.stop().await;
    reason
}

#[tokio::test]
async fn wrong_hellos_are_refused_in_clear_words() {
    let mut other_version = hello(id(1));
    other_version.protocol_version = 99;
    let reason = refused(Said::Hello(other_version)).await;
    assert_eq!(reason, "the other side speaks protocol version 99, this one speaks 1");

    let mut short_id = hello(id(1));
    short_id.peer_id.pop();
    assert_eq!(refused(Said::Hello(short_id)).await, "`peer_id` has 15 bytes, not 16");

    let mut no_port = hello(id(1));
    no_port.control_address = "somewhere".to_owned();
    assert_eq!(refused(Said::Hello(no_port)).await, "`address` is not valid: not HOST:PORT");

    let mut long_label = hello(id(1));
    long_label.labels.insert("rack".to_owned(), "r".repeat(33));
    assert_eq!(refused(Said::Hello(long_label)).await, "`label` holds 33, more than 32");

    assert_eq!(refused(Said::Join(join(Vec::new()))).await, "the first message must be a hello");
}

/// What the scheduler says to a member that says `wrong`.
async fn refused_later(wrong: Said) -> String {
    let scheduler = Scheduler::patient().await;
    let mut stream = Stream::joined(&scheduler, id(1)).await;
    stream.say(wrong).await;
    let reason = stream.refusal().await;
    scheduler.stop().await;
    reason
}

#[tokio::test]
async fn wrong_messages_end_the_stream_and_name_the_field() {
    let artifact = ARTIFACT.0.to_vec();
    // Within the protocol's numbers, but beyond the pieces that this peer joined with.
    let beyond = wire::control::HaveUpdate {
        artifact: artifact.clone(),
        added: vec![Run { start: 0, end: PIECES + 1 }],
    };
    assert!(refused_later(Said::Have(beyond)).await.contains("`runs`"));

    let backwards = vec![Run { start: 4, end: 5 }, Run { start: 0, end: 1 }];
    assert!(refused_later(Said::Join(join(backwards))).await.contains("`runs`"));

    let mut too_many = join(Vec::new());
    too_many.piece_count = u32::MAX;
    assert!(refused_later(Said::Join(too_many)).await.contains("`piece_count`"));

    let about = id(2).bytes().to_vec();
    let no_such_piece = Complaint { artifact, about, piece: PIECES };
    assert!(refused_later(Said::Complaint(no_such_piece)).await.contains("`piece`"));

    assert!(refused_later(Said::Hello(hello(id(1)))).await.contains("second hello"));
}

#[tokio::test]
async fn what_is_about_a_swarm_that_was_left_is_not_taken_amiss() {
    let scheduler = Scheduler::patient().await;
    let mut stream = Stream::joined(&scheduler, id(1)).await;
    stream.plan().await;
    stream.say(Said::Leave(Leave { artifact: ARTIFACT.0.to_vec() })).await;
    stream.say_have(vec![Run { start: 0, end: u32::MAX }]).await;
    stream.say(Said::Join(join(Vec::new()))).await;
    stream.plan().await;
    scheduler.stop().await;
}

#[tokio::test]
async fn a_silent_peer_is_dropped_and_one_with_a_heartbeat_is_not() {
    let interval = Duration::from_millis(300);
    let scheduler = Scheduler::start(interval).await;
    let mut lively = Stream::open(&scheduler).await;
    lively.say(Said::Hello(hello(id(1)))).await;
    assert_eq!(lively.welcome().await.load_interval_ms, 300);
    let heart = lively.beat_every(interval);
    lively.say(Said::Join(join(Vec::new()))).await;
    let mut silent = Stream::joined(&scheduler, id(2)).await;
    lively.plan_where(|plan| names(plan, &[id(2)])).await;
    assert_eq!(silent.refusal().await, "nothing was heard for 1500 ms");
    lively.plan_where(|plan| names(plan, &[])).await;
    heart.abort();
    assert_eq!(lively.refusal().await, "nothing was heard for 1500 ms");
    scheduler.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_without_a_refusal() {
    let scheduler = Scheduler::patient().await;
    let mut stream = Stream::joined(&scheduler, id(1)).await;
    stream.plan().await;
    let ((), ()) = tokio::join!(scheduler.stop(), stream.end());
}

#[tokio::test]
async fn who_can_describe_an_artifact_is_told_whole_holders_first() {
    let scheduler = Scheduler::patient().await;
    assert_eq!(scheduler.holders().await, Vec::<String>::new());
    let mut a = Stream::joined(&scheduler, id(1)).await;
    a.plan().await;
    let mut b = Stream::welcomed(&scheduler, id(2)).await;
    b.say(Said::Join(join(vec![Run { start: 0, end: PIECES }]))).await;
    b.plan().await;
    assert_eq!(scheduler.holders().await, ["127.0.0.1:1002", "127.0.0.1:1001"]);
    drop(b);
    a.plan_where(|plan| names(plan, &[])).await;
    assert_eq!(scheduler.holders().await, ["127.0.0.1:1001"]);
    scheduler.stop().await;
}

#[tokio::test]
async fn who_is_accused_is_named_last_and_never_to_its_accuser() {
    let scheduler = Scheduler::patient().await;
    let mut streams = Vec::new();
    for number in 1..=3 {
        streams.push(Stream::joined(&scheduler, id(number)).await);
    }
    let is_named = |plan: &PeerPlan, number: u8| plan.members.iter().any(|member| member.id == id(number));
    for stream in &mut streams[..2] {
        stream.plan_where(|plan| is_named(plan, 3)).await;
    }
    let (artifact, about) = (ARTIFACT.0.to_vec(), id(3).bytes().to_vec());
    streams[0].say(Said::Complaint(Complaint { artifact, about, piece: 5 })).await;
    streams[0].plan_where(|plan| !is_named(plan, 3)).await;
    let is_parent =
        |plan: &PeerPlan| plan.stripes.iter().any(|part| part.source == StripeSource::Parent(id(3)));
    let plan = streams[1].plan_where(|plan| is_named(plan, 3) && !is_parent(plan)).await;
    assert!(plan.stripes.iter().all(|part| part.source != StripeSource::None));
    scheduler.stop().await;
}
