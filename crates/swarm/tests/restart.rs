//! A scheduler that was lost and starts anew: its epochs begin at 1 again.

use std::time::Duration;

use modelpack::{
    layout::{PIECE_BYTES, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{Before, Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, Source, Swarm};

const PIECES: u32 = 8;
const ME: PeerId = PeerId::new([1; 16]);
const OTHER: PeerId = PeerId::new([2; 16]);
const NOW: Duration = Duration::from_millis(1);

/// A plan of one stripe.
fn plan(epoch: u64, source: StripeSource, before: Vec<Before>) -> PeerPlan {
    let member = Member { id: OTHER, contact: Contact::new("other:1", ""), is_seed: false, is_far: false };
    PeerPlan {
        epoch,
        stripe_pieces: PIECES,
        stripes: vec![StripePart { source, backups: Vec::new(), before }],
        members: vec![member],
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

fn swarm() -> Swarm {
    let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
    Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO)
}

fn tell(swarm: &mut Swarm, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
    let mut outputs = Vec::new();
    for input in inputs {
        swarm.handle(NOW, input);
        outputs.extend(std::iter::from_fn(|| swarm.poll()));
    }
    outputs
}

fn reads_of_the_origin(outputs: &[Output]) -> Vec<Run> {
    let run = |output: &Output| match output {
        Output::Read { source: Source::Origin, run, .. } => Some(*run),
        _ => None,
    };
    outputs.iter().filter_map(run).collect()
}

#[test]
fn what_was_said_under_the_old_scheduler_hands_nothing_over_under_the_new() {
    let mut swarm = swarm();
    let coming = |epoch, runs| Input::Coming { peer: OTHER, epoch, runs };
    let before = vec![Before { peer: OTHER, epoch: 2 }];
    let outputs = tell(
        &mut swarm,
        [
            Input::OriginUp { ranges: true },
            Input::Plan(plan(57, StripeSource::Parent(OTHER), Vec::new())),
            Input::LinkUp { peer: OTHER, in_flight_max: 16 },
            coming(57, vec![Run::new(0, 4)]),
            Input::NoScheduler,
            Input::Plan(plan(2, StripeSource::Origin, before)),
        ],
    );
    assert_eq!(reads_of_the_origin(&outputs), [], "the other goes on by its old plan as far as is known");
    let outputs = tell(&mut swarm, [coming(2, vec![Run::new(0, 6)])]);
    assert_eq!(reads_of_the_origin(&outputs), [Run::new(6, 7)], "one stripe, one read");
}

#[test]
fn what_is_coming_is_said_again_under_a_new_scheduler() {
    let mut swarm = swarm();
    let by_plan = || Input::Plan(plan(1, StripeSource::Origin, Vec::new()));
    let said =
        |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Coming { epoch: 1, .. }));
    assert!(said(&tell(&mut swarm, [Input::OriginUp { ranges: true }, by_plan()])));
    assert!(!said(&tell(&mut swarm, [by_plan()])), "nothing has changed");
    assert!(said(&tell(&mut swarm, [Input::NoScheduler, by_plan()])), "the same number, another plan");
}

#[test]
fn a_stripe_of_somebody_else_is_left_alone_while_another_scheduler_may_take_over() {
    let mut swarm = swarm();
    let by_plan = Input::Plan(plan(1, StripeSource::Parent(OTHER), Vec::new()));
    tell(&mut swarm, [Input::OriginUp { ranges: true }, by_plan, Input::NoScheduler]);
    let (mut now, mut read_at) = (NOW, None);
    while read_at.is_none() {
        now = swarm.next_wake().expect("a swarm that runs has something to wait for").max(now);
        swarm.handle(now, Input::Tick);
        let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
        read_at = (!reads_of_the_origin(&outputs).is_empty()).then_some(now);
    }
    let read_at = read_at.expect("it is read at last");
    assert!(read_at >= Duration::from_secs(2), "another scheduler had no time: {read_at:?}");
    assert!(read_at < Duration::from_secs(6), "nobody came: {read_at:?}");
}

#[test]
fn a_new_scheduler_is_told_again_who_sent_wrong_bytes() {
    let mut swarm = swarm();
    let by_plan = || Input::Plan(plan(1, StripeSource::Parent(OTHER), Vec::new()));
    let outputs = tell(
        &mut swarm,
        [
            Input::OriginUp { ranges: true },
            by_plan(),
            Input::LinkUp { peer: OTHER, in_flight_max: 1 },
            Input::Have { peer: OTHER, runs: vec![Run::new(0, PIECES)] },
        ],
    );
    let read = outputs.iter().find_map(|output| match output {
        Output::Read { read, source: Source::Peer(OTHER), run, .. } => Some((*read, run.start)),
        _ => None,
    });
    let (read, piece) = read.expect("the parent is read");
    let blame = Output::Blame { peer: OTHER, piece };
    let outputs = tell(&mut swarm, [Input::Piece { read, piece, outcome: PieceOutcome::Bad }]);
    assert!(outputs.contains(&blame), "{outputs:?}");
    let knowing =
        || Input::Plan(PeerPlan { members: Vec::new(), ..plan(1, StripeSource::Origin, Vec::new()) });
    assert!(!tell(&mut swarm, [knowing()]).contains(&blame), "the scheduler knows");
    assert!(tell(&mut swarm, [Input::NoScheduler, knowing()]).contains(&blame), "the next one does not");
    assert!(!tell(&mut swarm, [knowing()]).contains(&blame), "it was told");
    assert!(tell(&mut swarm, [by_plan()]).contains(&blame), "one that took over unseen sends it there");
}
