//! What must hold, whatever goes wrong: the books that the world keeps of its nodes, and what contradicts them.
//!
//! Owns: every oracle but the one that looks for idle sources (`idle`). Does not ask a swarm what it thinks, except to
//! compare it with what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, Run};
use modelpack::piece_map::PieceMap;
use planner::Standing;
use swarm::{Failure, Input, Output, PieceOutcome, ReadId, Source};

use super::scenario::{Nature, Scenario};
use super::world::{node_of, number};

mod asking;
mod idle;

/// Times that a node may be woken between two looks at it: its timers are tens of milliseconds apart, a few for each link.
const TICKS_MAX: u32 = 1000;

/// Pieces that one member has out at the origin at most, and that are read twice where a fault, or who comes, moves stripes.
const OUT_MAX: u64 = 4;

/// How long after everything is calm a swarm may still find that there is no source: what it waits for is half a minute.
const HOPELESS: Duration = Duration::from_mins(1);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle.
    pub oracle: &'static str,
    /// When.
    pub at: Duration,
    /// Whom it concerns.
    pub nodes: Vec<u32>,
    /// What is wrong.
    pub what: String,
}

/// A read as its asker has it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The node asked, or the origin.
    from: u32,
    run: Run,
    /// By the asker's clock.
    at: Duration,
    /// Of the link that it was asked on.
    generation: u64,
    /// It was late once, or its link ended: others may be asked for the same.
    may_repeat: bool,
}

/// A link as its child has it.
#[derive(Debug)]
struct Link {
    generation: u64,
    is_up: bool,
    grant: u32,
    /// What the other end has announced on it.
    heard: PieceMap,
    /// When it was opened or a piece last came, by the child's clock.
    last_piece: Duration,
    /// A read on it failed or was late, and no good piece has come since.
    is_troubled: bool,
    /// A piece that waits to be asked for while both ends are idle, and since when.
    waits: Option<(PieceIndex, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Running,
    Complete,
    Failed,
    Lost,
}

/// The books of one node.
#[derive(Debug)]
struct Book {
    outcome: Outcome,
    /// What it was told is right.
    proved: PieceMap,
    links: BTreeMap<u32, Link>,
    reads: BTreeMap<ReadId, Asked>,
    next_read: u64,
    ticks: u32,
    /// Who has sent it wrong bytes.
    wronged_by: BTreeSet<u32>,
}

/// All books.
#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) violation: Option<Violation>,
    books: Vec<Book>,
    natures: Vec<Nature>,
    /// Nodes whose bytes count as the origin's; the origin is one.
    first_hands: BTreeSet<u32>,
    origin_ok: Vec<bool>,
    run_pieces: u32,
    calm: Duration,
    /// Pieces that left the origin.
    first_hand_pieces: u64,
    /// Pieces that the origin had to send again, because those who had them were lost.
    excused: u64,
    /// Who was accused because nobody knows whom it had its pieces of: the product knows that it may be wrong there.
    accused_in_place: BTreeSet<u32>,
    /// Who came back and vouches for what its former process got wrong of the origin.
    wrong_heirs: BTreeSet<u32>,
    /// Nodes that came, were lost, or lost a link.
    changes: u64,
    /// When the last node was done.
    pub(super) last_done: Duration,
    pub(super) longest_wait: Duration,
    /// Since when nobody has anything out, though somebody waits.
    still_since: Duration,
    /// Busy time of each node's receiving, when it was last looked at.
    received: Vec<Duration>,
    /// How many pieces each node had proved at the last look.
    proved: Vec<u32>,
}

impl Oracle {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let members = &scenario.members;
        let origin = number(members.len());
        let seeds = (0..).zip(members).filter(|(_, member)| member.is_seed).map(|(node, _)| node);
        let book = || Book {
            outcome: Outcome::Running,
            proved: PieceMap::empty(scenario.pieces),
            links: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            ticks: 0,
            wronged_by: BTreeSet::new(),
        };
        Self {
            violation: None,
            books: members.iter().map(|_| book()).collect(),
            natures: members.iter().map(|member| member.nature).collect(),
            first_hands: seeds.chain([origin]).collect(),
            origin_ok: members.iter().map(|member| member.origin_ok).collect(),
            run_pieces: scenario.run_pieces,
            calm: scenario.calm,
            first_hand_pieces: 0,
            excused: 0,
            accused_in_place: BTreeSet::new(),
            wrong_heirs: BTreeSet::new(),
            changes: 0,
            last_done: Duration::ZERO,
            longest_wait: Duration::ZERO,
            still_since: Duration::ZERO,
            received: vec![Duration::ZERO; members.len()],
            proved: vec![0; members.len()],
        }
    }

    /// The first one counts.
    fn violated(&mut self, oracle: &'static str, at: Duration, nodes: &[u32], what: String) {
        self.violation.get_or_insert(Violation { oracle, at, nodes: nodes.to_vec(), what });
    }

    pub(super) fn endless(&mut self, at: Duration) {
        self.violated("event budget", at, &[], "the events never end".to_owned());
    }

    pub(super) fn begun(&mut self, node: u32, have: &PieceMap) {
        self.books[node as usize].proved = have.clone();
        self.changes += 1;
    }

    /// A node is gone. What only it had must leave the origin again.
    pub(super) fn lost(&mut self, node: u32) {
        self.changes += 1;
        let at = node as usize;
        if self.books[at].outcome == Outcome::Lost {
            return;
        }
        self.books[at].outcome = Outcome::Lost;
        let others = (0..)
            .zip(&self.books)
            .filter(|(other, book)| book.outcome != Outcome::Lost && !self.first_hands.contains(other));
        let mut elsewhere = PieceMap::empty(self.books[at].proved.piece_count());
        others.for_each(|(_, book)| elsewhere.union(&book.proved));
        let first_hand = self.books[at].reads.values().filter(|read| self.first_hands.contains(&read.from));
        let mut had = self.books[at].proved.clone();
        first_hand.for_each(|read| had.insert_run(read.run));
        self.excused += had.iter().filter(|piece| !elsewhere.contains(*piece)).count() as u64;
        self.books[at].reads.clear();
    }

    pub(super) fn accused_in_place(&mut self, node: u32) {
        self.accused_in_place.insert(node);
    }

    pub(super) fn inherited_wrong(&mut self, node: u32) {
        self.wrong_heirs.insert(node);
    }

    /// A node forgets all that it has, which is wrong, and reads it again; says the number of its next read.
    pub(super) fn begun_again(&mut self, node: u32) -> u64 {
        let book = &mut self.books[node as usize];
        book.proved = PieceMap::empty(book.proved.piece_count());
        book.reads.clear();
        book.next_read
    }

    /// What a node gets of the origin is never what the digest says, or it cannot read it.
    pub(super) fn gives_up_on_wrong_bytes(&mut self, node: u32, at: Duration) {
        self.books[node as usize].outcome = Outcome::Failed;
        if self.natures[node as usize] == Nature::Honest && self.origin_ok[node as usize] {
            self.violated(
                "gives up",
                at,
                &[node],
                "gives up on wrong bytes, though it can read right ones".to_owned(),
            );
        }
    }

    pub(super) fn refused(&mut self, node: u32) {
        self.origin_ok[node as usize] = false;
    }

    pub(super) fn is_over(&self, node: u32) -> bool {
        self.books[node as usize].outcome != Outcome::Running
    }

    pub(super) fn crossed(&mut self, from: u32, to: u32, _piece: PieceIndex) {
        self.first_hand_pieces +=
            u64::from(self.first_hands.contains(&from) && !self.first_hands.contains(&to));
    }

    pub(super) fn wronged(&mut self, node: u32, by: u32) {
        self.books[node as usize].wronged_by.insert(by);
    }

    pub(super) fn stands(&mut self, at: Duration, node: u32, standing: Standing) {
        let nature = self.natures[node as usize];
        let is_corrupt = matches!(nature, Nature::Corrupt { .. } | Nature::Misreads { .. })
            || self.wrong_heirs.contains(&node);
        if standing == Standing::Quarantined && !is_corrupt && !self.accused_in_place.contains(&node) {
            self.violated("honest quarantined", at, &[node], "it never sent a wrong byte".to_owned());
        }
    }

    pub(super) fn ticked(&mut self, node: u32, at: Duration) {
        let book = &mut self.books[node as usize];
        book.ticks += 1;
        if book.ticks > TICKS_MAX {
            self.violated("tight loop", at, &[node], format!("woken {TICKS_MAX} times within an instant"));
        }
    }

    /// A swarm is told something.
    pub(super) fn told(&mut self, node: u32, (global, now): (Duration, Duration), input: &Input) {
        match input {
            Input::LinkUp { peer, in_flight_max } => self.link_up(node, node_of(*peer), *in_flight_max, now),
            Input::LinkDown { peer } | Input::LinkLeaving { peer } | Input::LinkMoved { peer } => {
                self.link_down(node, node_of(*peer));
            }
            Input::Have { peer, runs } => {
                if let Some(link) = self.books[node as usize].links.get_mut(&node_of(*peer)) {
                    for run in runs {
                        link.heard.insert_run(*run);
                    }
                }
            }
            Input::Arrived { peer } => self.came(node, node_of(*peer), now),
            Input::Piece { read, piece, outcome } => {
                let Some(asked) = self.books[node as usize].reads.get(read).copied() else {
                    let what = format!("piece {} of read {} comes after its end", piece.0, read.0);
                    return self.violated("reads end once", global, &[node], what);
                };
                self.came(node, asked.from, now);
                let book = &mut self.books[node as usize];
                if *outcome == PieceOutcome::Good {
                    book.proved.insert(*piece);
                    if let Some(link) = book.links.get_mut(&asked.from) {
                        link.is_troubled = false;
                    }
                }
            }
            Input::ReadEnded { read, outcome } => {
                if let Some(asked) = self.books[node as usize].reads.get(read).copied() {
                    self.was_late(node, asked.from, now);
                }
                let Some(asked) = self.books[node as usize].reads.remove(read) else {
                    let what = format!("read {} ends twice", read.0);
                    return self.violated("reads end once", global, &[node], what);
                };
                if let Some(link) = self.books[node as usize].links.get_mut(&asked.from) {
                    link.is_troubled |= *outcome != swarm::ReadOutcome::Ok;
                }
            }
            _ => {}
        }
    }

    fn link_up(&mut self, node: u32, parent: u32, grant: u32, now: Duration) {
        let book = &mut self.books[node as usize];
        let pieces = book.proved.piece_count();
        let old = book.links.remove(&parent);
        let link = Link {
            generation: old.as_ref().map_or(0, |old| old.generation) + 1,
            is_up: true,
            grant,
            heard: PieceMap::empty(pieces),
            last_piece: now,
            // A new link says nothing of whether anything comes on it, where nothing came on the last.
            is_troubled: old.is_some_and(|old| old.is_troubled),
            waits: None,
        };
        book.links.insert(parent, link);
    }

    fn link_down(&mut self, node: u32, parent: u32) {
        self.changes += 1;
        let book = &mut self.books[node as usize];
        if let Some(link) = book.links.get_mut(&parent) {
            link.is_up = false;
            link.waits = None;
            link.is_troubled |= book.reads.values().any(|read| read.from == parent);
        }
        for read in book.reads.values_mut().filter(|read| read.from == parent) {
            read.may_repeat = true;
        }
    }

    /// A swarm wants something.
    pub(super) fn wants(&mut self, node: u32, (global, now): (Duration, Duration), output: &Output) {
        match output {
            Output::Disconnect { peer } => self.link_down(node, node_of(*peer)),
            Output::Read { read, source, run, deadline } => {
                let origin = number(self.books.len());
                let from = match source {
                    Source::Origin => origin,
                    Source::Peer(peer) => node_of(*peer),
                };
                if *deadline <= now {
                    self.violated("asking", global, &[node], format!("read {} is late already", read.0));
                }
                self.asks((node, from), (global, now), (*read, *run));
            }
            Output::Announce { run } if !self.books[node as usize].proved.contains_run(*run) => {
                let what = format!("announces {}..{}, not all of it proved", run.start.0, run.end.0);
                self.violated("nothing unproved announced", global, &[node], what);
            }
            Output::Coming { runs, .. } => self.says_coming(node, global, runs),
            Output::Blame { peer, piece } => {
                let about = node_of(*peer);
                if !self.books[node as usize].wronged_by.contains(&about) {
                    let what = format!("blames {about} for piece {}, which sent it nothing wrong", piece.0);
                    self.violated("blame", global, &[node, about], what);
                }
            }
            Output::Complete => {
                let book = &mut self.books[node as usize];
                book.outcome = Outcome::Complete;
                self.last_done = self.last_done.max(global);
                if !self.books[node as usize].proved.is_full() {
                    let lacks = self.books[node as usize].proved.next_missing(PieceIndex(0));
                    let what = format!("says that it is complete without {lacks:?}");
                    self.violated("right or absent", global, &[node], what);
                }
            }
            Output::Failed { reason } => self.fails(node, global, *reason),
            _ => {}
        }
    }

    fn says_coming(&mut self, node: u32, global: Duration, runs: &[Run]) {
        let reads = &self.books[node as usize].reads;
        let is_read =
            |run: &Run| reads.values().any(|read| self.first_hands.contains(&read.from) && read.run == *run);
        if let Some(run) = runs.iter().find(|run| !is_read(run)).copied() {
            let what = format!("says that {}..{} comes, and reads it nowhere", run.start.0, run.end.0);
            self.violated("coming", global, &[node], what);
        }
    }

    fn fails(&mut self, node: u32, global: Duration, reason: Failure) {
        self.books[node as usize].outcome = Outcome::Failed;
        if self.natures[node as usize] != Nature::Honest {
            return;
        }
        let is_excused =
            reason == Failure::NoSource && !self.origin_ok[node as usize] && global < self.calm + HOPELESS;
        if !is_excused {
            let can_read =
                if self.origin_ok[node as usize] { "it can read the origin" } else { "all is calm" };
            let what = format!("gives up ({reason}), though {can_read}");
            self.violated("gives up", global, &[node], what);
        }
    }

    /// What must hold once it is over.
    pub(super) fn at_end(&mut self, now: Duration, expected: &[u32], scenario: &Scenario) {
        let late: Vec<u32> = expected.iter().copied().filter(|node| !self.is_over(*node)).collect();
        if !late.is_empty() {
            let what = format!("they are not done, and all is calm since {:?}", scenario.calm);
            self.violated("everybody finishes", now, &late, what);
        }
        let whole = u64::from(scenario.pieces);
        let most = whole + whole.div_ceil(100) + self.excused + OUT_MAX * (scenario.faults.len() as u64 + 1);
        if scenario.is_steady() && self.first_hand_pieces > most {
            let what = format!(
                "{} pieces of {whole} came first hand, {} excused, {} changes",
                self.first_hand_pieces, self.excused, self.changes
            );
            self.violated("origin budget", now, &[], what);
        }
    }

    /// A node in a few words.
    pub(super) fn shown(&self, node: u32) -> String {
        let book = &self.books[node as usize];
        let all = book.proved.piece_count();
        let lacks = (0..all).map(PieceIndex).filter(|piece| !book.proved.contains(*piece)).take(8);
        let lacks: Vec<u32> = lacks.map(|piece| piece.0).collect();
        let up = book.links.iter().filter(|(_, link)| link.is_up);
        let up: Vec<String> = up.map(|(parent, link)| format!("{parent} ({})", link.heard.len())).collect();
        let reads = book
            .reads
            .values()
            .map(|read| format!("{}..{} of {}", read.run.start.0, read.run.end.0, read.from));
        let reads: Vec<String> = reads.collect();
        format!(
            "{:?}, has {} of {all}, lacks {lacks:?}, links to {}, reads {}",
            book.outcome,
            book.proved.len(),
            up.join(" "),
            reads.join(", ")
        )
    }

    /// Copies of the artifact that left the origin and the seeds.
    #[expect(clippy::cast_precision_loss, reason = "a count of pieces")]
    pub(super) fn copies(&self, pieces: u32) -> f64 {
        self.first_hand_pieces as f64 / f64::from(pieces.max(1))
    }
}

/// Bytes of distinct pieces that a node waits for.
fn bytes_out(book: &Book) -> u64 {
    let mut out = PieceMap::empty(book.proved.piece_count());
    book.reads.values().for_each(|read| out.insert_run(read.run));
    out.iter().filter(|piece| !book.proved.contains(*piece)).count() as u64 * PIECE_BYTES
}
