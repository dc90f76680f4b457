//! When a peer asks others than the parents of its plan, and when it does not.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

/// Two stripes, of which the even pieces are the first.
const PIECES: u32 = 240;
const ME: PeerId = PeerId::new([1; 16]);
const PARENTS: [PeerId; 2] = [PeerId::new([2; 16]), PeerId::new([3; 16])];
const BACKUPS: [PeerId; 2] = [PeerId::new([4; 16]), PeerId::new([5; 16])];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn plan(sources: [StripeSource; 2], far: &[PeerId]) -> PeerPlan {
    let part = |source| StripePart { source, backups: BACKUPS.to_vec(), before: Vec::new() };
    let is_far = |id: PeerId| far.contains(&id);
    let member = |id| Member { id, contact: Contact::new("peer:1", ""), is_seed: false, is_far: is_far(id) };
    PeerPlan {
        epoch: 1,
        stripe_pieces: 1,
        stripes: sources.map(part).to_vec(),
        members: PARENTS.into_iter().chain(BACKUPS).map(member).collect(),
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

/// A swarm all of whose links are up, and what it wanted done lately.
struct Play {
    swarm: Swarm,
    now: Duration,
    outputs: Vec<Output>,
}

impl Play {
    fn new(sources: [StripeSource; 2]) -> Self {
        Self::among(sources, &[])
    }

    /// Some of the others stand in other racks.
    fn among(sources: [StripeSource; 2], far: &[PeerId]) -> Self {
        Self::resumed(plan(sources, far), PieceMap::empty(PIECES))
    }

    /// Some pieces were here before.
    fn resumed(part: PeerPlan, have: PieceMap) -> Self {
        let bytes = u64::from(have.piece_count()) * PIECE_BYTES;
        let layout = PieceLayout::new(vec![bytes]).expect("a small artifact");
        let swarm = Swarm::new(Config::new(ME, 7), layout, have, Duration::ZERO);
        let mut play = Self { swarm, now: Duration::ZERO, outputs: Vec::new() };
        play.tell(Input::OriginUp { ranges: true });
        play.tell(Input::Plan(part));
        for peer in PARENTS.into_iter().chain(BACKUPS) {
            play.tell(Input::LinkUp { peer, in_flight_max: 16 });
        }
        play
    }

    fn of_parents() -> Self {
        Self::new(PARENTS.map(StripeSource::Parent))
    }

    fn tell(&mut self, input: Input) {
        self.swarm.handle(self.now, input);
        self.outputs.extend(std::iter::from_fn(|| self.swarm.poll()));
    }

    fn has(&mut self, peer: PeerId, pieces: impl Iterator<Item = u32>) {
        let runs = pieces.map(|piece| Run::one(PieceIndex(piece))).collect();
        self.tell(Input::Have { peer, runs });
    }

    /// Lets time pass, in which the swarm is woken when it wants to be; what it asks of the peers in `givers` comes at
    /// once. Says which pieces it asked of whom.
    fn pass(&mut self, time: Duration, givers: &[PeerId]) -> Vec<(PeerId, u32)> {
        let end = self.now + time;
        let mut asked = Vec::new();
        loop {
            for output in std::mem::take(&mut self.outputs) {
                let Output::Read { read, source: Source::Peer(peer), run, .. } = output else { continue };
                asked.extend(run.pieces().map(|piece| (peer, piece.0)));
                if givers.contains(&peer) {
                    for piece in run.pieces() {
                        self.tell(Input::Piece { read, piece, outcome: PieceOutcome::Good });
                    }
                    self.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
                }
            }
            if self.outputs.is_empty() {
                match self.swarm.next_wake().filter(|at| *at <= end) {
                    Some(at) => {
                        self.now = self.now.max(at);
                        self.tell(Input::Tick);
                    }
                    None => break,
                }
            }
        }
        self.now = end;
        asked
    }

    /// The reads that peers were asked for since.
    fn reads(&mut self) -> Vec<(ReadId, Run)> {
        let of_peer = |output| match output {
            Output::Read { read, source: Source::Peer(_), run, .. } => Some((read, run)),
            _ => None,
        };
        std::mem::take(&mut self.outputs).into_iter().filter_map(of_peer).collect()
    }

    /// The reads that the origin was asked for since.
    fn reads_at_origin(&mut self) -> Vec<(ReadId, Run)> {
        let of_origin = |output| match output {
            Output::Read { read, source: Source::Origin, run, .. } => Some((read, run)),
            _ => None,
        };
        std::mem::take(&mut self.outputs).into_iter().filter_map(of_origin).collect()
    }

    /// All of a read comes.
    fn gives(&mut self, (read, run): (ReadId, Run)) {
        for piece in run.pieces() {
            self.tell(Input::Piece { read, piece, outcome: PieceOutcome::Good });
        }
        self.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    }

    fn interests(&self, of: PeerId) -> Vec<u64> {
        let interest = |output: &Output| match output {
            Output::Interest { peer, stripes } if *peer == of => Some(stripes.bits()),
            _ => None,
        };
        self.outputs.iter().filter_map(interest).collect()
    }
}

fn even(to: u32) -> impl Iterator<Item = u32> {
    (0..to).step_by(2)
}

#[test]
fn what_a_backup_has_first_is_left_to_the_parent_that_is_on_time() {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(20));
    play.has(BACKUPS[0], even(24));
    assert!(play.pass(ms(50), &PARENTS).iter().all(|(peer, _)| *peer == PARENTS[0]));
}

#[test]
fn a_parent_that_falls_behind_what_others_have_is_helped_out() {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(4));
    for backup in BACKUPS {
        play.has(backup, even(100));
    }
    let asked = play.pass(ms(200), &[PARENTS, BACKUPS].concat());
    let of_backups: BTreeSet<u32> =
        asked.iter().filter(|(peer, _)| BACKUPS.contains(peer)).map(|(_, piece)| *piece).collect();
    assert!(
        of_backups.len() >= 38,
        "all but what the parent has, and a few that may be on their way: {of_backups:?}"
    );
}

#[test]
fn a_parent_that_rests_for_long_is_not_waited_for() {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(4));
    play.pass(ms(10), &PARENTS);
    // Too few to be behind, and with one backup alone.
    play.has(BACKUPS[0], even(8));
    assert_eq!(play.pass(ms(50), &[]), []);
    let asked: BTreeSet<_> = play.pass(Duration::from_secs(3), &BACKUPS).into_iter().collect();
    assert_eq!(asked, BTreeSet::from([(BACKUPS[0], 4), (BACKUPS[0], 6)]));
}

#[test]
fn a_peer_that_nothing_is_on_its_way_to_asks_whoever_has_something() {
    let mut play = Play::of_parents();
    // One alone, so that its parent is not behind; and that goes on giving, so that it does not rest.
    play.has(BACKUPS[0], std::iter::once(100));
    let mut asked = Vec::new();
    for piece in even(20) {
        play.has(PARENTS[0], std::iter::once(piece));
        asked.extend(play.pass(ms(90), &PARENTS));
    }
    assert!(asked.contains(&(BACKUPS[0], 100)), "{asked:?}");
}

#[test]
fn news_is_urgent_of_what_a_link_is_asked_for() {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(4));
    let last = |play: &Play, of| play.interests(of).last().copied();
    assert_eq!((last(&play, PARENTS[0]), last(&play, BACKUPS[0])), (Some(0b01), Some(0b00)));
    play.outputs.clear();
    play.has(BACKUPS[0], even(4));
    assert!(play.interests(BACKUPS[0]).is_empty(), "said once");
    play.tell(Input::LinkDown { peer: PARENTS[0] });
    assert_eq!(last(&play, BACKUPS[0]), Some(0b01), "its parent is gone");
    assert_eq!(last(&play, PARENTS[1]), Some(0b11));
}

#[test]
fn whoever_comes_late_takes_what_is_new_first_and_the_old_piece_by_piece() {
    let mut play = Play::of_parents();
    // Both parents are in the middle of it.
    play.has(PARENTS[0], even(120));
    play.has(PARENTS[1], (1..120).step_by(2));
    let old = play.pass(ms(10), &[]);
    assert_eq!(old.len(), 1, "{old:?}");
    let idle = usize::from(old[0].0 == PARENTS[0]);
    play.has(PARENTS[idle], [120, 121, 122, 123].into_iter());
    let new: Vec<u32> = play.pass(ms(10), &[]).into_iter().map(|(_, piece)| piece).collect();
    assert!(!new.is_empty() && new.iter().all(|piece| *piece >= 120), "{new:?}");
}

#[test]
fn whoever_comes_late_puts_off_nothing_that_comes_in_through_it() {
    let parents = PARENTS.map(StripeSource::Parent);
    let all = [PARENTS, BACKUPS].concat();
    for (sources, holder, far, hurries) in [
        (parents, PARENTS[0], &[][..], false),
        ([StripeSource::Origin, parents[1]], BACKUPS[0], &[], true),
        (parents, PARENTS[0], &PARENTS[..1], true),
        // Nobody is near who could wait for it.
        (parents, PARENTS[0], &all[..], false),
    ] {
        let mut play = Play::among(sources, far);
        play.has(PARENTS[1], (1..120).step_by(2));
        play.has(holder, even(120));
        let asked: Vec<u32> = play.pass(ms(10), &[]).into_iter().map(|(_, piece)| piece).collect();
        assert!(asked.iter().any(|piece| piece % 2 == 1), "{asked:?}");
        assert_eq!(asked.iter().any(|piece| piece % 2 == 0), hurries, "{sources:?}, {far:?}");
    }
}

/// What a late peer asks for of old pieces in the second half of a wave that brings one piece each millisecond, while it
/// gets so many in that time.
fn old_in_a_wave(gives: usize) -> Vec<u32> {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(120));
    play.has(PARENTS[1], (1..120).step_by(2));
    let (mut out, mut old) = (VecDeque::new(), Vec::new());
    for piece in 120..PIECES {
        play.now += ms(1);
        play.has(PARENTS[piece as usize % 2], std::iter::once(piece));
        for _ in 0..gives {
            out.extend(play.reads());
            let Some((read, run)) = out.pop_front() else { break };
            play.tell(Input::Piece { read, piece: run.start, outcome: PieceOutcome::Good });
            play.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
        }
        let asked = play.reads();
        old.extend(asked.iter().map(|(_, run)| run.start.0).filter(|asked| piece >= 180 && *asked < 120));
        out.extend(asked);
    }
    old
}

#[test]
fn whoever_comes_late_leaves_the_old_where_the_wave_fills_its_card() {
    assert!(old_in_a_wave(1).is_empty());
    assert!(old_in_a_wave(2).len() > 20, "its card has time for more");
}

#[test]
fn an_entrant_has_one_read_at_the_origin_for_each_of_its_stripes_once_a_piece_has_come() {
    for (sources, reads) in [
        ([StripeSource::Origin, StripeSource::Parent(PARENTS[1])], 1),
        ([StripeSource::Origin, StripeSource::Origin], 2),
    ] {
        let mut play = Play::new(sources);
        let first = play.reads_at_origin();
        assert_eq!(first.len(), 1, "{sources:?}");
        play.now += ms(40);
        play.gives(first[0]);
        assert_eq!(play.reads_at_origin().len(), reads, "{sources:?}");
    }
}

#[test]
fn a_read_that_others_wait_for_is_no_longer_than_a_quarter_of_a_second() {
    for (takes, pieces) in [(ms(1), 4), (ms(100), 2), (ms(250), 1), (ms(2700), 1)] {
        let sources = [StripeSource::Origin, StripeSource::Parent(PARENTS[1])];
        let part = PeerPlan { stripe_pieces: 16, ..plan(sources, &[]) };
        let mut play = Play::resumed(part, PieceMap::empty(1 << 11));
        let lengths: Vec<u32> = std::iter::repeat_with(|| {
            let read = play.reads_at_origin()[0];
            play.now += takes * read.1.len();
            play.gives(read);
            read.1.len()
        })
        .take(3)
        .collect();
        assert_eq!(lengths, [1, pieces, pieces], "where a piece takes {takes:?}");
    }
}

#[test]
fn an_entrant_leaves_to_whoever_stalls_what_that_has_for_a_second() {
    let mut have = PieceMap::empty(PIECES);
    for run in [Run::new(1, 2), Run::new(3, 4), Run::new(5, PIECES)] {
        have.insert_run(run);
    }
    let sources = [StripeSource::Origin, StripeSource::Parent(PARENTS[1])];
    let mut play = Play::resumed(plan(sources, &[]), have);
    let at_origin = play.reads_at_origin();
    play.has(BACKUPS[0], [2, 4].into_iter());
    let asked = play.reads();
    play.now += ms(10);
    play.gives(asked[0]);
    let asked = play.reads();
    play.gives(at_origin[0]);
    let mut read_at_origin = |until: Duration| {
        while let Some(at) = play.swarm.next_wake().filter(|at| *at <= until) {
            play.now = play.now.max(at);
            play.tell(Input::Tick);
        }
        play.reads_at_origin().into_iter().map(|(_, run)| run).collect::<Vec<Run>>()
    };
    assert_eq!(read_at_origin(ms(1000)), []);
    assert_eq!(read_at_origin(ms(1500)), [asked[0].1]);
}

#[test]
fn what_a_source_refuses_it_has_not() {
    let mut play = Play::of_parents();
    play.has(PARENTS[0], even(2));
    let refused = |output: &Output| match output {
        Output::Read { read, source: Source::Peer(_), .. } => Some(*read),
        _ => None,
    };
    let read = play.outputs.iter().find_map(refused).expect("it is asked");
    play.outputs.clear();
    play.tell(Input::ReadEnded { read, outcome: ReadOutcome::NotHere });
    assert_eq!(play.pass(ms(90), &[]), [], "not again, however long it waits");
    play.has(PARENTS[0], even(2));
    assert_eq!(play.pass(ms(1500), &PARENTS), [(PARENTS[0], 0)], "until it says so again");
}

#[test]
fn what_comes_into_the_rack_in_time_is_not_fetched_there_by_others_too() {
    // The first parent rests: what somebody near has is asked of that one, what is only elsewhere of nobody.
    let mut play = Play::among(PARENTS.map(StripeSource::Parent), &[BACKUPS[1]]);
    play.has(PARENTS[0], even(20));
    play.pass(ms(10), &PARENTS);
    play.has(BACKUPS[0], even(28));
    play.has(BACKUPS[1], even(36));
    let asked = play.pass(ms(150), &PARENTS);
    assert!(asked.iter().all(|(peer, _)| *peer == BACKUPS[0]), "{asked:?}");
    assert!(!asked.is_empty());
}

#[test]
fn when_the_parent_is_gone_what_nobody_near_has_is_fetched_from_elsewhere() {
    let mut play = Play::among(PARENTS.map(StripeSource::Parent), &[BACKUPS[1]]);
    play.has(BACKUPS[0], even(12));
    play.has(BACKUPS[1], even(24));
    play.tell(Input::LinkDown { peer: PARENTS[0] });
    let asked = play.pass(ms(50), &BACKUPS);
    let of = |peer: PeerId| -> BTreeSet<u32> {
        asked.iter().filter(|(from, _)| *from == peer).map(|(_, piece)| *piece).collect()
    };
    assert_eq!(of(BACKUPS[0]), even(12).collect());
    assert_eq!(of(BACKUPS[1]), even(24).skip(6).collect());
}

#[test]
fn who_is_near_and_late_with_its_first_piece_keeps_nobody_from_elsewhere() {
    let mut play = Play::among(PARENTS.map(StripeSource::Parent), &[BACKUPS[1]]);
    play.tell(Input::LinkDown { peer: PARENTS[0] });
    play.has(BACKUPS[0], even(12));
    play.has(BACKUPS[1], even(12));
    // A piece that nobody else ever gave may take half a second.
    let asked = play.pass(ms(450), &[BACKUPS[1]]);
    assert!(asked.len() == 1 && asked[0].0 == BACKUPS[0], "{asked:?}");
    let late: BTreeSet<u32> = play.pass(ms(200), &[BACKUPS[1]]).into_iter().map(|(_, piece)| piece).collect();
    assert_eq!(late, even(12).filter(|piece| *piece != asked[0].1).collect());
}

#[test]
fn a_parent_that_announces_only_what_is_here_already_is_not_waited_for() {
    let mut have = PieceMap::empty(PIECES);
    have.insert_run(Run::new(12, PIECES));
    let mut play = Play::resumed(plan(PARENTS.map(StripeSource::Parent), &[BACKUPS[1]]), have);
    play.has(BACKUPS[1], even(12));
    let mut asked = Vec::new();
    for piece in even(48).skip(6) {
        play.has(PARENTS[0], std::iter::once(piece));
        asked.extend(play.pass(ms(90), &[BACKUPS[1]]));
    }
    let asked: BTreeSet<(PeerId, u32)> = asked.into_iter().collect();
    assert_eq!(asked, even(12).map(|piece| (BACKUPS[1], piece)).collect());
}

#[test]
fn a_parent_on_a_slow_network_is_waited_for_though_its_last_piece_is_here_already() {
    let mut have = PieceMap::empty(PIECES);
    have.insert_run(Run::new(12, PIECES));
    let mut play = Play::resumed(plan(PARENTS.map(StripeSource::Parent), &[BACKUPS[1]]), have);
    play.has(BACKUPS[1], even(12));
    for (pause, piece) in [(80, 12), (300, 14), (620, 16)] {
        assert_eq!(play.pass(ms(pause), &[BACKUPS[1]]), []);
        play.has(PARENTS[0], std::iter::once(piece));
    }
    assert_eq!(play.pass(ms(400), &[BACKUPS[1]]), []);
}

#[test]
fn whoever_reads_from_another_rack_asks_there_when_its_parent_rests() {
    let mut play = Play::among(PARENTS.map(StripeSource::Parent), &[PARENTS[0], BACKUPS[1]]);
    play.has(PARENTS[0], even(20));
    play.pass(ms(10), &PARENTS);
    play.has(BACKUPS[1], even(40));
    let asked = play.pass(ms(150), &PARENTS);
    assert!(asked.iter().any(|(peer, piece)| *peer == BACKUPS[1] && *piece >= 20), "{asked:?}");
}
