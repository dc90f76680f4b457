//! Two schedulers: where peers are sent, and who reads a description for all.

use std::time::Duration;

use planner::FleetName;
use tokio::net::TcpListener;
use wire::control::{Claim, Run, peer_to_scheduler::Kind as Said, scheduler_to_peer::Kind as Heard};

use crate::fleet::{PIECES, Scheduler, Stream, hello, id, in_time, join};

/// Listeners of two schedulers, in rank, and what both know.
pub(crate) async fn two() -> ([TcpListener; 2], Vec<String>) {
    let listen = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
    let (one, other) = (listen().await, listen().await);
    let addresses = vec![address(&one), address(&other)];
    let is_first = FleetName::LOCAL.prefers(&addresses[0], &addresses[1]);
    (if is_first { [one, other] } else { [other, one] }, addresses)
}

/// Where a scheduler sends a peer: at once, or as soon as it finds the other one alive.
async fn redirected(scheduler: &Scheduler) -> String {
    let mut stream = Stream::open(scheduler).await;
    stream.say(Said::Hello(hello(id(1)))).await;
    let mut heard = stream.hear().await;
    let is_early = matches!(heard, Some(Heard::Welcome(_)));
    if is_early {
        heard = stream.hear().await;
    }
    let Some(Heard::Redirect(redirect)) = heard else { panic!("{heard:?} is no redirect") };
    assert!(is_early || stream.hear().await.is_none(), "the stream ends");
    redirect.address
}

#[tokio::test]
async fn peers_are_sent_to_a_living_scheduler_that_comes_first() {
    let ([first, second], addresses) = two().await;
    let second = Scheduler::among(second, addresses.clone());
    let mut early = Stream::joined(&second, id(2)).await;
    early.plan().await;
    let first = Scheduler::among(first, addresses);
    let expected = first.address.to_string();
    assert_eq!(redirected(&second).await, expected);
    // Who came while it was away is told, and served as long as it stays.
    match early.hear().await {
        Some(Heard::Redirect(redirect)) => assert_eq!(redirect.address, expected),
        other => panic!("{other:?} is no redirect"),
    }
    early.say(Said::Join(join(Vec::new()))).await;
    early.plan().await;
    // Not who cannot go there, or does not know how to.
    let mut partitioned = hello(id(3));
    partitioned.unreachable = vec![expected.clone()];
    let mut old = hello(id(4));
    old.features = 0;
    for hello in [partitioned, old] {
        let mut stream = Stream::open(&second).await;
        stream.say(Said::Hello(hello)).await;
        stream.welcome().await;
        stream.say(Said::Join(join(Vec::new()))).await;
        stream.plan().await;
    }
    // The first sends nobody anywhere.
    Stream::joined(&first, id(5)).await.plan().await;
    // Once it is gone the second serves everybody.
    first.stop().await;
    in_time(async {
        loop {
            let mut stream = Stream::open(&second).await;
            stream.say(Said::Hello(hello(id(1)))).await;
            match stream.hear().await {
                Some(Heard::Welcome(_)) => return,
                Some(Heard::Redirect(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    second.stop().await;
}

#[tokio::test]
async fn a_peer_that_does_not_know_redirects_is_never_sent_one() {
    let ([first, second], addresses) = two().await;
    let second = Scheduler::among(second, addresses.clone());
    let mut old = hello(id(4));
    old.features = 0;
    let mut stream = Stream::open(&second).await;
    stream.say(Said::Hello(old)).await;
    stream.welcome().await;
    let first = Scheduler::among(first, addresses);
    redirected(&second).await;
    stream.say(Said::Join(join(Vec::new()))).await;
    // The next that it hears is the plan.
    stream.plan().await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn one_peer_reads_the_origin_for_those_who_wait() {
    let scheduler = Scheduler::patient().await;
    let elected = Stream::welcomed(&scheduler, id(1)).await;
    let _others = [Stream::welcomed(&scheduler, id(2)).await, Stream::welcomed(&scheduler, id(3)).await];
    let told = scheduler.claim(Claim::Offer, id(1)).await;
    assert!(told.read_origin && told.control_addresses.is_empty());
    let waiting =
        async { tokio::join!(scheduler.claim(Claim::Offer, id(2)), scheduler.claim(Claim::Offer, id(3))) };
    let mut waiting = Box::pin(waiting);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "they wait for what the first learns");
    elected.say(Said::Join(join(vec![Run { start: 0, end: PIECES }]))).await;
    let (second, third) = (&mut waiting).await;
    drop(waiting);
    for told in [second, third] {
        assert!(!told.read_origin);
        assert_eq!(told.control_addresses, ["127.0.0.1:1001"]);
    }
    assert!(scheduler.claim(Claim::Offer, id(1)).await.read_origin, "itself is of no use to it");
    scheduler.stop().await;
}

#[tokio::test]
async fn the_next_reads_the_origin_when_the_elected_peer_dies_or_fails() {
    let scheduler = Scheduler::patient().await;
    let elected = Stream::welcomed(&scheduler, id(1)).await;
    let _others = [Stream::welcomed(&scheduler, id(2)).await, Stream::welcomed(&scheduler, id(3)).await];
    assert!(scheduler.claim(Claim::Offer, id(1)).await.read_origin);
    let (second, ()) = tokio::join!(scheduler.claim(Claim::Offer, id(2)), async { drop(elected) });
    assert!(second.read_origin);
    let (third, _) =
        tokio::join!(scheduler.claim(Claim::Offer, id(3)), scheduler.claim(Claim::Failed, id(2)));
    assert!(third.read_origin);
    // Who has no stream is nobody that others could ask.
    assert!(!scheduler.claim(Claim::Offer, id(9)).await.read_origin);
    scheduler.stop().await;
}
