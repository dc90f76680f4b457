//! Where pieces go, with a network card that is made up and links that are stepped by hand.

use std::{
    sync::{Condvar, mpsc},
    time::{Duration, Instant},
};

use planner::PeerId;
use proptest::prelude::*;
use swarm::{PieceOutcome, ReadId};
use transport::{Exports, memory::MemoryLink};

use super::*;
use crate::{
    artifact::Place,
    buffers::Piece,
    fetch::{Ground, PieceChecked},
    testing,
    vouching::Provenance,
};

const LONG: Duration = Duration::from_secs(30);

/// A card that lets so many windows be registered at once.
struct Card(Arc<(Mutex<Cards>, Condvar)>);

struct Cards {
    room: usize,
    registered: usize,
    asked: Vec<Range<usize>>,
}

struct Registered(Arc<(Mutex<Cards>, Condvar)>);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().registered -= 1;
        self.0.1.notify_all();
    }
}

impl Registrar for Card {
    fn register(&self, _: &Arc<Region>, range: Range<usize>) -> Result<Box<dyn Any + Send + Sync>, String> {
        let mut cards = self.0.0.lock().unwrap();
        cards.asked.push(range);
        self.0.1.notify_all();
        if cards.registered == cards.room {
            return Err("there is no room".to_owned());
        }
        cards.registered += 1;
        Ok(Box::new(Registered(Arc::clone(&self.0))))
    }
}

impl Card {
    fn of(room: usize) -> Arc<Self> {
        let cards = Cards { room, registered: 0, asked: Vec::new() };
        Arc::new(Self(Arc::new((Mutex::new(cards), Condvar::new()))))
    }

    /// Waits until that is so.
    fn until(&self, mut is_so: impl FnMut(&Cards) -> bool) {
        let cards = self.0.0.lock().unwrap();
        let (_cards, waited) = self.0.1.wait_timeout_while(cards, LONG, |cards| !is_so(cards)).unwrap();
        assert!(!waited.timed_out());
    }
}

fn files() -> Vec<Vec<u8>> {
    (1..=4_u8).map(|number| vec![number; 1000 * usize::from(number)]).collect()
}

/// The artifact numbers its blobs as it likes.
fn right_bytes(ground: &Ground, piece: PieceIndex) -> Vec<u8> {
    let len = ground.artifact.layout().span(piece).len as usize;
    files().into_iter().find(|file| file.len() == len).expect("sizes differ")
}

fn ground(room: usize) -> Option<(tempfile::TempDir, Arc<Ground>, Arc<Card>)> {
    let card = Card::of(room);
    let (dir, ground) = testing::ground_in_memory(testing::artifact(&files()), Arc::clone(&card) as _)?;
    ground.sinks.begin(&PieceMap::empty(4));
    Some((dir, ground, card))
}

async fn space(ground: &Ground, piece: u32, level: Level) -> Space {
    let space = Arc::clone(&ground.sinks).space(PieceIndex(piece), level);
    tokio::time::timeout(LONG, space).await.expect("in time")
}

fn link() -> Arc<MemoryLink> {
    MemoryLink::at_level(Level::Nic, Exports::new(), 1, Arc::new(drop))
}

fn dyn_link(link: &Arc<MemoryLink>) -> Arc<dyn Link> {
    Arc::clone(link) as Arc<dyn Link>
}

/// What is checked is told to `report`.
fn land(
    ground: &Arc<Ground>,
    piece: PieceIndex,
    mut space: Space,
    bytes: &[u8],
    report: &mpsc::Sender<PieceChecked>,
) {
    space.lease.as_mut_slice().copy_from_slice(bytes);
    let arrived = Piece { bytes: space.lease.filled(), right: space.right };
    let (from, report) = (Provenance::Peer(PeerId::new([2; 16]), None), report.clone());
    ground.land((ReadId(0), piece), arrived, from, move |checked| {
        // A test that has failed listens no more.
        let _ = report.send(checked);
    });
}

fn outcome(reports: &mpsc::Receiver<PieceChecked>) -> PieceOutcome {
    reports.recv_timeout(LONG).expect("in time").result.expect("it is written").outcome
}

#[tokio::test]
async fn a_piece_goes_straight_to_its_place_once_the_card_may_write_there() {
    let Some((_dir, ground, card)) = ground(10) else { return };
    let piece = PieceIndex(0);
    assert_eq!(space(&ground, 0, Level::Tcp).await.right.place(), Place::Buffer);
    assert!(card.0.0.lock().unwrap().asked.is_empty(), "nobody needs it");
    let space = space(&ground, 0, Level::Nic).await;
    assert_eq!(space.right.place(), Place::File);
    let bytes = right_bytes(&ground, piece);
    assert_eq!(card.0.0.lock().unwrap().asked[0], 0..bytes.len());
    let (report, reports) = mpsc::channel();
    land(&ground, piece, space, &bytes, &report);
    assert_eq!(outcome(&reports), PieceOutcome::Good);
    assert!(ground.landing.verified().contains(piece));
    assert_eq!(ground.counters.landing(), "direct");
    let again = ground.sinks.try_space(piece, Level::Nic).expect("a buffer is free");
    assert_eq!(again.right.place(), Place::Buffer, "it is here");
}

#[tokio::test]
async fn the_next_window_is_registered_ahead_and_a_full_one_is_let_go() {
    let Some((_dir, ground, card)) = ground(10) else { return };
    let (report, reports) = mpsc::channel();
    let first = space(&ground, 0, Level::Nic).await;
    card.until(|cards| cards.registered == 2 && cards.asked.len() == 2);
    land(&ground, PieceIndex(0), first, &right_bytes(&ground, PieceIndex(0)), &report);
    assert_eq!(outcome(&reports), PieceOutcome::Good);
    card.until(|cards| cards.registered == 1);
    // As after a restart: what is here is not registered.
    ground.sinks.begin(&PieceMap::full(4));
    assert_eq!(space(&ground, 3, Level::Nic).await.right.place(), Place::Buffer);
}

#[tokio::test]
async fn what_is_refused_is_staged_and_tried_again_when_there_is_room() {
    let Some((_dir, ground, card)) = ground(1) else { return };
    let (report, reports) = mpsc::channel();
    let first = space(&ground, 0, Level::Nic).await;
    assert_eq!(first.right.place(), Place::File);
    card.until(|cards| cards.asked.len() == 2);
    assert_eq!(space(&ground, 2, Level::Nic).await.right.place(), Place::Buffer, "there is no room");
    land(&ground, PieceIndex(0), first, &right_bytes(&ground, PieceIndex(0)), &report);
    assert_eq!(outcome(&reports), PieceOutcome::Good);
    card.until(|cards| cards.registered == 0);
    assert_eq!(space(&ground, 2, Level::Nic).await.right.place(), Place::File);
}

#[tokio::test]
async fn reads_that_go_straight_to_the_file_are_bounded_like_all() {
    let Some((_dir, ground, _card)) = ground(10) else { return };
    let direct = space(&ground, 0, Level::Nic).await;
    let permits: Vec<_> = std::iter::from_fn(|| ground.buffers.try_permit()).collect();
    assert_eq!(permits.len(), 63);
    drop(space(&ground, 1, Level::Nic));
    assert!(ground.sinks.try_space(PieceIndex(1), Level::Nic).is_none());
    drop(direct);
    assert!(ground.buffers.try_permit().is_some());
}

#[tokio::test]
async fn a_piece_that_comes_another_way_first_closes_the_link_and_waits_for_its_lease() {
    let Some((_dir, ground, _card)) = ground(10) else { return };
    let (piece, link, (report, reports)) = (PieceIndex(0), link(), mpsc::channel());
    let mut out = space(&ground, 0, Level::Nic).await;
    assert!(out.right.hold.as_ref().unwrap().post_on(&dyn_link(&link)));
    let hedged = space(&ground, 0, Level::Nic).await;
    assert_eq!(hedged.right.place(), Place::Buffer, "its place is out");
    land(&ground, piece, hedged, &right_bytes(&ground, piece), &report);
    assert!(link.is_closed());
    out.lease.as_mut_slice().fill(0xdd);
    assert!(ground.landing.verified().is_empty() && reports.try_recv().is_err());
    assert!(!out.right.hold.as_ref().unwrap().post_on(&dyn_link(&link)), "nobody needs it any more");
    drop(out);
    assert_eq!(outcome(&reports), PieceOutcome::Good);
    let mut found = vec![0; right_bytes(&ground, piece).len()];
    ground.landing.read(piece, &mut found).unwrap();
    assert!(found == right_bytes(&ground, piece));
    assert_eq!(ground.counters.landing(), "none", "nothing was counted as read");
}

#[tokio::test]
async fn a_piece_that_is_being_checked_at_its_place_is_not_given_up_for_a_copy() {
    let Some((_dir, ground, _card)) = ground(10) else { return };
    let (piece, link, (report, reports)) = (PieceIndex(0), link(), mpsc::channel());
    let out = space(&ground, 0, Level::Nic).await;
    assert!(out.right.hold.as_ref().unwrap().post_on(&dyn_link(&link)));
    let hedged = space(&ground, 0, Level::Nic).await;
    let bytes = right_bytes(&ground, piece);
    land(&ground, piece, out, &bytes, &report);
    land(&ground, piece, hedged, &bytes, &report);
    assert_eq!((outcome(&reports), outcome(&reports)), (PieceOutcome::Good, PieceOutcome::Good));
    assert!(!link.is_closed());
}

#[test]
fn a_window_lies_within_one_blob() {
    let dir = tempfile::tempdir().unwrap();
    let layout = modelpack::layout::PieceLayout::new(vec![300 * PIECE_BYTES + 5, 10]).unwrap();
    let digest = modelpack::digest::Sha256Digest::of(b"m");
    let landing = Arc::new(Landing::open(dir.path(), &layout, &digest).unwrap());
    let sinks = Sinks::new(landing, LandingRule::default(), (Workers::start(), Buffers::new()));
    let run = |piece| sinks.window_of(PieceIndex(piece)).run;
    assert_eq!([run(0), run(255)], [Run::new(0, 256); 2]);
    assert_eq!([run(256), run(300)], [Run::new(256, 301); 2]);
    assert_eq!(run(301), Run::new(301, 302));
    assert_eq!(sinks.bytes_of(run(256)), 256 << 20..(300 << 20) + 5);
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A read begins over a card.
    Read,
    /// The oldest read of the piece has brought the right bytes, or others, or fails.
    Right,
    Lie,
    Fail,
    /// It comes from the origin.
    Origin,
}

struct Play {
    ground: Arc<Ground>,
    reads: Vec<(PieceIndex, Space, Arc<MemoryLink>)>,
    report: mpsc::Sender<PieceChecked>,
    landed: usize,
    right: PieceMap,
}

impl Play {
    fn land(&mut self, piece: PieceIndex, space: Space, is_right: bool) {
        let mut bytes = right_bytes(&self.ground, piece);
        bytes[7] ^= u8::from(!is_right);
        land(&self.ground, piece, space, &bytes, &self.report);
        self.landed += 1;
        if is_right {
            self.right.insert(piece);
        }
    }

    async fn step(&mut self, piece: PieceIndex, step: Step) {
        let ground = Arc::clone(&self.ground);
        let oldest = self.reads.iter().position(|(of, ..)| *of == piece);
        match (step, oldest) {
            (Step::Read, _) => {
                let (space, link) = (space(&ground, piece.0, Level::Nic).await, link());
                let is_posted = space.right.hold.as_ref().is_none_or(|hold| hold.post_on(&dyn_link(&link)));
                if is_posted {
                    self.reads.push((piece, space, link));
                }
            }
            (Step::Right | Step::Lie, Some(oldest)) => {
                let (_, space, _) = self.reads.remove(oldest);
                self.land(piece, space, matches!(step, Step::Right));
            }
            (Step::Fail, Some(oldest)) => {
                let (_, mut space, _) = self.reads.remove(oldest);
                space.lease.as_mut_slice().fill(0xee);
            }
            (Step::Origin, _) => {
                let permit = ground.buffers.permit().await;
                let len = ground.artifact.layout().span(piece).len;
                self.land(piece, ground.buffers.buffer(len, permit), true);
            }
            (Step::Right | Step::Lie | Step::Fail, None) => {}
        }
        // A closed link writes until it gives its leases back.
        for (_, mut space, _) in self.reads.extract_if(.., |(.., link)| link.is_closed()) {
            space.lease.as_mut_slice().fill(0xdd);
        }
        for piece in ground.landing.verified().iter() {
            let mut found = right_bytes(&ground, piece);
            ground.landing.read(piece, &mut found).unwrap();
            assert!(found == right_bytes(&ground, piece), "{piece} changed at {step:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn in_whatever_order_pieces_come_all_are_checked_and_none_that_is_verified_changes(
        steps in prop::collection::vec((0..4_u32, prop::sample::select(vec![
            Step::Read, Step::Read, Step::Right, Step::Lie, Step::Fail, Step::Origin,
        ])), 1..40),
        room in 1..6_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let Some((_dir, ground, _card)) = ground(room) else { return Ok(()) };
        let ((report, reports), right) = (mpsc::channel(), PieceMap::empty(4));
        let mut play = Play { ground, reads: Vec::new(), report, landed: 0, right };
        for (piece, step) in steps {
            runtime.block_on(play.step(PieceIndex(piece), step));
        }
        play.reads.clear();
        let until = Instant::now() + LONG;
        for _ in 0..play.landed {
            let checked = reports.recv_timeout(until.saturating_duration_since(Instant::now()));
            prop_assert!(checked.expect("every piece is checked").result.is_ok());
        }
        prop_assert_eq!(play.ground.landing.verified(), play.right);
        let permits: Vec<_> = std::iter::from_fn(|| play.ground.buffers.try_permit()).collect();
        prop_assert_eq!(permits.len(), 64, "every right came back");
    }
}
