//! What nobody says by himself: sources that idle while somebody waits, reads that never end, books that differ.
//!
//! Owns: the look at everybody from time to time. Does not own what follows from single inputs and outputs.
//!
//! A source idles in vain when, for longer than [`PATIENCE`] by the clock of whoever waits: it is honest, runs, is no
//! seed (which is asked for nothing that others have), and nobody has a read out at it; the sink runs, has room in its
//! card (less than half of it busy) and in its disk (nothing waits to be proved), proves nothing meanwhile (whoever comes
//! late reads one piece after another of what others had), and its link to the source is up, of use
//! (since the last good piece nothing failed on it or was late) and has nothing out; and one and the same piece was all
//! that time announced on the link, not proved by the sink and not asked of anybody.

use std::collections::BTreeSet;
use std::time::Duration;

use modelpack::layout::PieceIndex;
use modelpack::piece_map::PieceMap;

use super::{Oracle, Outcome};
use crate::fuzz::scenario::Nature;
use crate::fuzz::world::AUDIT;
use crate::fuzz::world::{Event, World};

/// The stall rule of the design, three times what the oldest read of the parent should take: 500 ms while nothing is
/// known of it, so that 1.5 s may pass before others are asked for what it was to give; and half a second for news.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a fleet in calm may have nothing out at all while somebody lacks pieces that an origin can give: what is left
/// to the scheduler waits half a minute, and accusations, pauses and new links take a few seconds.
const STANDSTILL: Duration = Duration::from_secs(40);

/// A read that is out for this long never ends: no grant lasts as long.
const READ_MAX: Duration = Duration::from_mins(5);

impl World<'_> {
    /// Looks at everybody.
    pub(in crate::fuzz) fn audit(&mut self) {
        let now = self.queue.now();
        self.queue.push(now + AUDIT, Event::Audit);
        let sources: BTreeSet<u32> =
            self.oracle.books.iter().flat_map(|book| book.reads.values()).map(|read| read.from).collect();
        self.look_for_standstill(sources.is_empty());
        for node in 0..self.origin() {
            self.excuse_unasked(node);
            self.oracle.books[node as usize].ticks = 0;
            let state = &self.nodes[node as usize];
            if let Some(swarm) = &state.swarm
                && *swarm.have() != self.oracle.books[node as usize].proved
            {
                let what = "what it has is not what it was told is right".to_owned();
                self.oracle.violated("right or absent", now, &[node], what);
            }
            let busy = self.network.busy(state.card.1);
            let received = std::mem::replace(&mut self.oracle.received[node as usize], busy);
            let is_running = state.swarm.is_some() && state.stopped.is_none() && state.held.is_none();
            let has_room = busy.saturating_sub(received) * 2 < AUDIT && state.proved_at <= now;
            let is_waiting = self.oracle.books[node as usize].outcome == Outcome::Running;
            let proved = self.oracle.books[node as usize].proved.len();
            let moves = std::mem::replace(&mut self.oracle.proved[node as usize], proved) != proved;
            if !is_running || !has_room || !is_waiting || moves || self.streams.is_late(node) {
                self.oracle.books[node as usize].links.values_mut().for_each(|link| link.waits = None);
            } else {
                self.look_for_idle(node, &sources);
                self.oracle.look_for_endless(node, (now, self.clock(node)));
            }
        }
    }

    fn look_for_standstill(&mut self, is_still: bool) {
        let now = self.queue.now();
        let is_waiting = |node: &u32| {
            let book = &self.oracle.books[*node as usize];
            self.is_alive(*node)
                && self.member(*node).nature == Nature::Honest
                && book.outcome == Outcome::Running
        };
        let waiting: Vec<u32> = (0..self.origin()).filter(is_waiting).collect();
        let is_helped = |node: &u32| self.nodes[*node as usize].origin_ok;
        let is_seed = |node: u32| {
            let member = self.member(node);
            self.is_alive(node) && member.is_seed && member.nature == Nature::Honest
        };
        let can_go_on = waiting.iter().any(is_helped) || (0..self.origin()).any(is_seed);
        if !is_still || waiting.is_empty() || !can_go_on || now <= self.scenario.calm {
            self.oracle.still_since = now;
        } else if now > self.oracle.still_since + STANDSTILL {
            let what = format!("nobody has asked for anything for {STANDSTILL:?}, and these lack pieces");
            self.oracle.violated("no standstill", now, &waiting, what);
        }
    }

    fn look_for_idle(&mut self, node: u32, busy: &BTreeSet<u32>) {
        let (global, now) = (self.queue.now(), self.clock(node));
        let parents: Vec<u32> = self.oracle.books[node as usize].links.keys().copied().collect();
        for parent in parents {
            let state = &self.nodes[parent as usize];
            let is_willing = self.is_alive(parent)
                && state.stopped.is_none()
                && self.member(parent).nature == Nature::Honest
                && !self.member(parent).is_seed
                && !self.streams.is_late(parent)
                && !self.is_cut(node, parent)
                && !busy.contains(&parent);
            self.oracle.note_idle((node, parent), (global, now), is_willing);
        }
    }
}

/// Whether both ends of a link have nothing else to do is for the caller to say.
impl Oracle {
    fn note_idle(
        &mut self,
        (node, parent): (u32, u32),
        (global, now): (Duration, Duration),
        is_willing: bool,
    ) {
        let book = &mut self.books[node as usize];
        let mut out = PieceMap::empty(book.proved.piece_count());
        book.reads.values().for_each(|read| out.insert_run(read.run));
        let Some(link) = book.links.get_mut(&parent) else { return };
        if !is_willing || !link.is_up || link.is_troubled {
            link.waits = None;
            return;
        }
        let is_wanted = |piece: &PieceIndex| {
            link.heard.contains(*piece) && !book.proved.contains(*piece) && !out.contains(*piece)
        };
        link.waits = match link.waits.filter(|(piece, _)| is_wanted(piece)) {
            Some(waits) => Some(waits),
            None => link.heard.iter().find(is_wanted).map(|piece| (piece, now)),
        };
        let Some((piece, since)) = link.waits else { return };
        let waited = now.saturating_sub(since);
        self.longest_wait = self.longest_wait.max(waited);
        if waited > PATIENCE {
            let what = format!(
                "{node} asks nobody for piece {} for {waited:?}, and {parent} has it and idles",
                piece.0
            );
            self.violated("no idle source", global, &[node, parent], what);
        }
    }

    fn look_for_endless(&mut self, node: u32, (global, now): (Duration, Duration)) {
        let reads = &self.books[node as usize].reads;
        let old = reads.iter().find(|(_, read)| now.saturating_sub(read.at) > READ_MAX);
        if let Some((id, from)) = old.map(|(id, read)| (id.0, read.from)) {
            let what = format!("read {id} from {from} has not ended in {READ_MAX:?}");
            self.violated("reads end once", global, &[node, from], what);
        }
    }
}
