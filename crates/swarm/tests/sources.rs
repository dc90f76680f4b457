//! A swarm whose only other source is of no use, though the scheduler takes it for alive.

use std::{collections::VecDeque, time::Duration};

use modelpack::{
    layout::{PIECE_BYTES, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Failure, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

const PIECES: u32 = 8;
const ME: PeerId = PeerId::new([1; 16]);
const PARENT: PeerId = PeerId::new([2; 16]);

/// A plan in which the parent gives everything.
fn plan() -> PeerPlan {
    let source = StripeSource::Parent(PARENT);
    let parent = Member { id: PARENT, contact: Contact::new("parent:1", ""), is_seed: false, is_far: false };
    PeerPlan {
        epoch: 1,
        stripe_pieces: 4,
        stripes: vec![StripePart { source, backups: Vec::new(), before: Vec::new() }; 2],
        members: vec![parent],
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

/// Runs a swarm beside a parent that announces everything each time it is linked, and then does as told with each
/// read. Says when, on the swarm's clock, the end came, and which, and how often the link stalled.
fn run(has_origin: bool, parent: impl Fn(&mut VecDeque<Input>, ReadId, Run)) -> (Duration, Output, u64) {
    let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
    let mut swarm = Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO);
    let origin = if has_origin { Input::OriginUp { ranges: true } } else { Input::OriginDown };
    let mut inputs = VecDeque::from([origin, Input::Plan(plan())]);
    let (mut now, mut stalls) = (Duration::ZERO, 0);
    for _ in 0..10_000 {
        while let Some(output) = swarm.poll() {
            match output {
                Output::Connect { peer, .. } => {
                    inputs.push_back(Input::LinkUp { peer, in_flight_max: 16 });
                    inputs.push_back(Input::Have { peer, runs: vec![Run::new(0, PIECES)] });
                }
                Output::Read { read, source: Source::Peer(_), run, .. } => parent(&mut inputs, read, run),
                Output::Read { read, source: Source::Origin, run, .. } => {
                    let good = |piece| Input::Piece { read, piece, outcome: PieceOutcome::Good };
                    inputs.extend(run.pieces().map(good));
                    inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
                }
                end @ (Output::Complete | Output::Failed { .. }) => return (now, end, stalls),
                _ => {}
            }
        }
        let input = inputs.pop_front().unwrap_or_else(|| {
            now = swarm.next_wake().expect("a swarm that runs has something to wait for");
            Input::Tick
        });
        swarm.handle(now, input);
        stalls += swarm.take_stalls();
    }
    panic!("it never ends; the clock shows {now:?}");
}

fn hang_up(inputs: &mut VecDeque<Input>, read: ReadId, _: Run) {
    inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
}

fn lie(inputs: &mut VecDeque<Input>, read: ReadId, run: Run) {
    inputs.push_back(Input::Piece { read, piece: run.start, outcome: PieceOutcome::Bad });
    inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
}

#[test]
fn the_origin_is_read_instead_of_a_parent_that_announces_and_never_gives() {
    let (at, end, stalls) = run(true, hang_up);
    assert_eq!((end, stalls), (Output::Complete, 0));
    assert!(at < Duration::from_secs(10), "{at:?}");
}

#[test]
fn the_origin_is_read_instead_of_a_parent_that_was_blamed() {
    let (at, end, _) = run(true, lie);
    assert_eq!(end, Output::Complete);
    assert!(at < Duration::from_secs(10), "{at:?}");
}

#[test]
fn what_a_parent_announces_again_and_never_gives_is_no_hope() {
    for parent in [hang_up, lie] {
        let (at, end, _) = run(false, parent);
        assert_eq!(end, Output::Failed { reason: Failure::NoSource });
        assert!(at < Duration::from_mins(1), "{at:?}");
    }
}

#[test]
fn a_parent_that_says_nothing_stalls() {
    let (_, end, stalls) = run(true, |_, _, _| {});
    assert_eq!(end, Output::Complete);
    assert!(stalls > 0, "{stalls}");
}

/// A swarm without an origin, whose parent is linked and has announced everything.
fn linked() -> Swarm {
    linked_by(plan())
}

fn linked_by(plan: PeerPlan) -> Swarm {
    linked_to(PIECES, plan)
}

/// The same of one that has announced so many pieces.
fn linked_to(announced: u32, plan: PeerPlan) -> Swarm {
    let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
    let mut swarm = Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO);
    for input in [
        Input::OriginDown,
        Input::Plan(plan),
        Input::LinkUp { peer: PARENT, in_flight_max: 16 },
        Input::Have { peer: PARENT, runs: vec![Run::new(0, announced)] },
    ] {
        swarm.handle(Duration::ZERO, input);
    }
    swarm
}

#[test]
fn a_link_to_a_peer_that_is_quarantined_is_closed() {
    let mut swarm = linked();
    while swarm.poll().is_some() {}
    let without = PeerPlan {
        epoch: 2,
        stripes: vec![StripePart { source: StripeSource::None, backups: Vec::new(), before: Vec::new() }; 2],
        members: Vec::new(),
        quarantined: vec![PARENT],
        ..plan()
    };
    swarm.handle(Duration::ZERO, Input::Plan(without));
    let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
    assert!(outputs.contains(&Output::Disconnect { peer: PARENT }), "{outputs:?}");
    let is_read = |output: &Output| matches!(output, Output::Read { .. } | Output::Connect { .. });
    assert!(!outputs.iter().any(is_read), "{outputs:?}");
}

/// A swarm that reads from a parent which gives nothing, and what it wants done until `until`, if it ticks when it is
/// due, except from `asleep` on, for `nap`.
fn silence(asleep: Duration, nap: Duration, until: Duration) -> Vec<(Duration, Output)> {
    let mut swarm = linked();
    let (mut outputs, mut now) = (Vec::new(), Duration::ZERO);
    while now <= until {
        outputs.extend(std::iter::from_fn(|| swarm.poll()).map(|output| (now, output)));
        let due = swarm.next_wake().expect("a swarm that runs has something to wait for");
        now = if now <= asleep && due > asleep { due.max(asleep + nap) } else { due };
        swarm.handle(now, Input::Tick);
    }
    outputs
}

fn silent_at(outputs: &[(Duration, Output)]) -> Vec<Duration> {
    let silent =
        outputs.iter().filter(|(_, output)| matches!(output, Output::Silent { peer } if *peer == PARENT));
    silent.map(|(at, _)| *at).collect()
}

#[test]
fn a_parent_that_gives_nothing_is_reported_once() {
    let outputs = silence(Duration::from_hours(1), Duration::ZERO, Duration::from_secs(9));
    let [at] = silent_at(&outputs)[..] else { panic!("{outputs:?}") };
    assert!(at >= Duration::from_secs(2) && at < Duration::from_secs(3), "{at:?}");
}

#[test]
fn that_a_parent_stalls_is_said_before_it_is_silent() {
    let outputs = silence(Duration::from_hours(1), Duration::ZERO, Duration::from_secs(9));
    let stalled = outputs.iter().filter(|(_, output)| *output == Output::Stalled { peer: PARENT });
    let [at] = stalled.map(|(at, _)| *at).collect::<Vec<_>>()[..] else { panic!("{outputs:?}") };
    assert!(at >= Duration::from_millis(100) && at < silent_at(&outputs)[0], "{at:?}");
}

/// What a peer reads from the origin, and when, whose parent stalls and gives it its stripes. The parent had six pieces
/// and read the seventh; later it may say that it acts by the plan that took the stripes.
fn takes_over(says_so: bool) -> Vec<(Duration, Run)> {
    let mut swarm = linked_to(6, plan());
    let coming = |epoch| Input::Coming { peer: PARENT, epoch, runs: vec![Run::new(6, 7)] };
    swarm.handle(Duration::ZERO, Input::OriginUp { ranges: true });
    swarm.handle(Duration::ZERO, coming(1));
    let (mut now, mut reads, mut told_at) = (Duration::ZERO, Vec::new(), None);
    while now < Duration::from_secs(5) {
        while let Some(output) = swarm.poll() {
            match output {
                Output::Stalled { .. } => {
                    told_at = Some(now);
                    let before = vec![planner::Before { peer: PARENT, epoch: 2 }];
                    let (source, backups) = (StripeSource::Origin, vec![PARENT]);
                    let stripes = vec![StripePart { source, backups, before }; 2];
                    swarm.handle(now, Input::Plan(PeerPlan { epoch: 2, stripes, ..plan() }));
                    if says_so {
                        swarm.handle(now, coming(2));
                    }
                }
                Output::Read { read, source: Source::Origin, run, .. } => {
                    reads.push((now.saturating_sub(told_at.expect("it is no entrant before")), run));
                    for piece in run.pieces() {
                        swarm.handle(now, Input::Piece { read, piece, outcome: PieceOutcome::Good });
                    }
                    swarm.handle(now, Input::ReadEnded { read, outcome: ReadOutcome::Ok });
                }
                Output::Complete => return reads,
                _ => {}
            }
        }
        now = swarm.next_wake().expect("a swarm that runs has something to wait for");
        swarm.handle(now, Input::Tick);
    }
    panic!("it never ends: {reads:?}");
}

#[test]
fn whoever_takes_over_from_one_that_stalls_leaves_it_what_it_has_until_it_is_silent() {
    for says_so in [false, true] {
        let reads = takes_over(says_so);
        let is_early = |(after, _): &&(Duration, Run)| *after < Duration::from_millis(400);
        let early: Vec<Run> = reads.iter().filter(is_early).map(|(_, run)| *run).collect();
        assert_eq!(early, [Run::new(7, 8)], "it may have paused, or be slow: {reads:?}");
        assert!(reads.iter().any(|(_, run)| run.start.0 < 7), "it has not: {reads:?}");
    }
}

#[test]
fn time_in_which_a_peer_does_not_run_is_nobodys_silence() {
    let (asleep, nap) = (Duration::from_millis(100), Duration::from_secs(20));
    let outputs = silence(asleep, nap, Duration::from_secs(25));
    let [at] = silent_at(&outputs)[..] else { panic!("{outputs:?}") };
    assert!(at >= nap + Duration::from_secs(1), "it had no time to give anything: {at:?}");
}

/// Lets a linked swarm run until then, on its own clock, beside a parent that does as told with all that it wants.
fn talk(until: Duration, mut parent: impl FnMut(&mut VecDeque<Input>, Duration, Output)) {
    let (mut swarm, mut inputs, mut now) = (linked(), VecDeque::from([Input::Tick]), Duration::ZERO);
    while now < until {
        let input = inputs.pop_front().unwrap_or_else(|| {
            now = swarm.next_wake().expect("a swarm that runs has something to wait for");
            Input::Tick
        });
        swarm.handle(now, input);
        while let Some(output) = swarm.poll() {
            parent(&mut inputs, now, output);
        }
    }
}

#[test]
fn a_parent_that_refuses_what_it_announces_is_reported_once() {
    let (mut reads, mut reports) = (0, Vec::new());
    talk(Duration::from_secs(2), |inputs, _, output| match output {
        Output::Read { read, .. } => {
            reads += 1;
            inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::NotHere });
        }
        Output::Silent { peer: PARENT } => reports.push(reads),
        _ => {}
    });
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!((3..=6).contains(&reports[0]), "once may be chance: {reports:?}");
}

#[test]
fn a_parent_that_has_not_all_of_what_it_claims_is_reported_though_it_gives_the_rest() {
    let (mut refused, mut reports) = (Vec::new(), Vec::new());
    talk(Duration::from_secs(9), |inputs, now, output| match output {
        Output::Read { read, run, .. } if run.start.0 == 5 => {
            refused.push(now);
            inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::NotHere });
        }
        Output::Read { read, run, .. } => {
            let good = |piece| Input::Piece { read, piece, outcome: PieceOutcome::Good };
            inputs.extend(run.pieces().map(good));
            inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
        }
        Output::Silent { peer: PARENT } => reports.push(now),
        _ => {}
    });
    assert_eq!((refused.len(), reports.len()), (1, 1), "{refused:?} {reports:?}");
    assert!(reports[0] >= refused[0] + Duration::from_secs(2), "it may say what it has: {reports:?}");
}

#[test]
fn whoever_the_scheduler_relies_on_again_is_reported_again() {
    let mut swarm = linked();
    let (mut reports, mut now, mut is_told) = (Vec::new(), Duration::ZERO, false);
    while now < Duration::from_mins(2) {
        while let Some(output) = swarm.poll() {
            match output {
                Output::Silent { .. } => reports.push(now),
                Output::Connect { peer, .. } => {
                    swarm.handle(now, Input::LinkUp { peer, in_flight_max: 16 });
                    swarm.handle(now, Input::Have { peer, runs: vec![Run::new(0, PIECES)] });
                }
                // It has given up: no report after this one counts.
                Output::Failed { .. } => return assert!(reports.len() == 2, "{reports:?}"),
                _ => {}
            }
        }
        if now > Duration::from_secs(20) && !is_told {
            is_told = true;
            assert_eq!(reports.len(), 1, "{reports:?}");
            swarm.handle(now, Input::Plan(PeerPlan { epoch: 2, ..plan() }));
        } else {
            now = swarm.next_wake().expect("a swarm that runs has something to wait for");
            swarm.handle(now, Input::Tick);
        }
    }
}

/// A slow network, and a machine that is slow to hash: bytes come all the time.
#[test]
fn where_bytes_come_is_no_silence() {
    bytes_come(&Input::Progress { peer: PARENT });
    bytes_come(&Input::Arrived { peer: PARENT });
}

fn bytes_come(news: &Input) {
    let mut swarm = linked();
    for tenth in 1..80 {
        let now = Duration::from_millis(100) * tenth;
        swarm.handle(now, news.clone());
        swarm.handle(now, Input::Tick);
        let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
        assert!(!outputs.iter().any(|output| matches!(output, Output::Silent { .. })), "{now:?}");
    }
}

/// All that is asked now comes soon; says when.
fn gives_at_once(swarm: &mut Swarm) -> Duration {
    let now = Duration::from_millis(10);
    let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
    for output in outputs {
        let Output::Read { read, run, .. } = output else { continue };
        for piece in run.pieces() {
            swarm.handle(now, Input::Piece { read, piece, outcome: PieceOutcome::Good });
        }
        swarm.handle(now, Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    }
    now
}

/// How often a link stalls, whose first pieces come at once, when nothing comes for so long.
fn stalls_in(pause: Duration, is_seed: bool) -> u64 {
    let mut plan = plan();
    plan.members[0].is_seed = is_seed;
    let mut swarm = linked_by(plan);
    let now = gives_at_once(&mut swarm);
    assert!(std::iter::from_fn(|| swarm.poll()).any(|output| matches!(output, Output::Read { .. })));
    let until = now + pause;
    while let Some(wake) = swarm.next_wake().filter(|wake| *wake <= until) {
        swarm.handle(wake, Input::Tick);
    }
    swarm.take_stalls()
}

#[test]
fn a_seed_is_given_more_time_than_a_parent() {
    let (short, long) = (Duration::from_millis(700), Duration::from_millis(1500));
    assert_eq!(stalls_in(short, false), 1);
    assert_eq!(stalls_in(short, true), 0, "to ask it again would cost its budget");
    assert_eq!(stalls_in(long, true), 1);
}

/// How often a link stalls that is asked for several pieces, all but so many of which come at once, while the disk of this
/// peer checks none of them.
fn stalls_while_a_disk_rests(is_seed: bool, missing: usize) -> u64 {
    let mut plan = plan();
    plan.members[0].is_seed = is_seed;
    let mut swarm = linked_by(plan);
    let mut now = gives_at_once(&mut swarm);
    let asked = std::iter::from_fn(|| swarm.poll()).filter_map(|output| match output {
        Output::Read { run, .. } => Some(run.len() as usize),
        _ => None,
    });
    let asked: usize = asked.sum();
    assert!(asked > 1, "{asked}");
    now += Duration::from_millis(1);
    for _ in missing..asked {
        swarm.handle(now, Input::Arrived { peer: PARENT });
    }
    while let Some(wake) = swarm.next_wake().filter(|wake| *wake <= now + Duration::from_secs(2)) {
        swarm.handle(wake, Input::Tick);
    }
    swarm.take_stalls()
}

#[test]
fn whoever_has_sent_everything_does_not_stall() {
    for is_seed in [false, true] {
        assert_eq!(stalls_while_a_disk_rests(is_seed, 0), 0);
        assert_eq!(stalls_while_a_disk_rests(is_seed, 1), 1);
    }
}

/// Asks nobody for a piece that the parent has, as long as it may have paused only; then the seed.
#[test]
fn a_seed_is_spared_what_somebody_has_who_pauses() {
    const SEED: PeerId = PeerId::new([3; 16]);
    let mut plan = plan();
    plan.members.push(Member {
        id: SEED,
        contact: Contact::new("seed:1", ""),
        is_seed: true,
        ..plan.members[0].clone()
    });
    for part in &mut plan.stripes {
        (part.source, part.backups) = (StripeSource::Parent(SEED), vec![PARENT]);
    }
    let mut swarm = linked_by(plan);
    let mut now = gives_at_once(&mut swarm);
    swarm.handle(now, Input::LinkUp { peer: SEED, in_flight_max: 16 });
    swarm.handle(now, Input::Have { peer: SEED, runs: vec![Run::new(0, PIECES)] });
    let mut asked_at = None;
    while asked_at.is_none() {
        let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
        let is_asked = |output: &Output| matches!(output, Output::Read { source: Source::Peer(SEED), .. });
        asked_at = outputs.iter().any(is_asked).then_some(now);
        now = swarm.next_wake().expect("it waits for a parent that may only have paused").max(now);
        swarm.handle(now, Input::Tick);
    }
    let asked_at = asked_at.expect("it ends with a read");
    assert!(asked_at >= Duration::from_secs(1), "a pause costs the seed's budget: {asked_at:?}");
    assert!(asked_at < Duration::from_secs(3), "{asked_at:?}");
}

/// Nobody gives anything, and a seed that is linked has everything: it is asked when this peer's turn comes, after others'.
#[test]
fn whoever_has_a_seed_waits_for_its_turn_and_does_not_give_up() {
    const SEED: PeerId = PeerId::new([3; 16]);
    let mut plan = plan();
    let member = |id, is_seed| Member { id, is_seed, ..plan.members[0].clone() };
    let others = (4..12).map(|number| member(PeerId::new([number; 16]), false));
    plan.members = others.chain([member(PARENT, false), member(SEED, true)]).collect();
    plan.stripes.iter_mut().for_each(|part| part.backups = vec![SEED]);
    let mut swarm = linked_to(0, plan);
    swarm.handle(Duration::ZERO, Input::LinkUp { peer: SEED, in_flight_max: 16 });
    swarm.handle(Duration::ZERO, Input::Have { peer: SEED, runs: vec![Run::new(0, PIECES)] });
    let mut now = Duration::ZERO;
    loop {
        let outputs: Vec<Output> = std::iter::from_fn(|| swarm.poll()).collect();
        let has_failed = outputs.iter().any(|output| matches!(output, Output::Failed { .. }));
        assert!(!has_failed, "gives up at {now:?}");
        let is_asked = |output: &Output| matches!(output, Output::Read { source: Source::Peer(SEED), .. });
        if outputs.iter().any(is_asked) {
            break;
        }
        now = swarm.next_wake().expect("its turn comes").max(now);
        swarm.handle(now, Input::Tick);
    }
    assert!(now > Duration::from_secs(30), "others come first: {now:?}");
}
