//! Whether a read may be asked: of whom, for what, and how many at once. Does not own what comes of it.

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use swarm::ReadId;

use super::{Asked, Book, Oracle, bytes_out};
use crate::fuzz::world::number;

/// No link is called late before this.
const STALL_MIN: Duration = Duration::from_millis(100);

/// Bytes in flight below which a piece may be asked of two at once: the very end.
const HEDGE_BYTES: u64 = 8 << 20;

/// Reads of one peer at the origin, at once.
const ORIGIN_READS_MAX: usize = 4;

impl Book {
    /// The generation of the link to a node that is up now; 0 for the origin, and where there is none.
    fn generation(&self, parent: u32) -> u64 {
        self.links.get(&parent).filter(|link| link.is_up).map_or(0, |link| link.generation)
    }

    fn oldest_on(&self, parent: u32) -> Option<Duration> {
        self.reads.values().filter(|read| read.from == parent).map(|read| read.at).min()
    }

    /// Whether the end is so near, and a link so late, that others may be asked for the same.
    fn is_hedged(&self, parent: u32, now: Duration) -> bool {
        self.oldest_on(parent).is_some_and(|oldest| now >= oldest + STALL_MIN)
            && bytes_out(self) <= HEDGE_BYTES
    }

    /// Whether nothing has come on a link for as long as the shortest patience, though something was asked.
    fn is_late(&self, parent: u32, now: Duration) -> bool {
        let last = self.links.get(&parent).map_or(Duration::ZERO, |link| link.last_piece);
        self.oldest_on(parent).is_some_and(|oldest| now >= oldest.max(last) + STALL_MIN)
    }
}

impl Oracle {
    /// Something is about to change on a link. If it was late until now, others were perhaps asked, or will be.
    pub(super) fn was_late(&mut self, node: u32, from: u32, now: Duration) {
        let book = &mut self.books[node as usize];
        if book.is_late(from, now) || book.is_hedged(from, now) {
            book.let_repeat(from);
        }
    }

    /// A piece came on a link.
    pub(super) fn came(&mut self, node: u32, from: u32, now: Duration) {
        self.was_late(node, from, now);
        let book = &mut self.books[node as usize];
        if let Some(link) = book.links.get_mut(&from) {
            link.last_piece = now;
            link.waits = None;
        }
    }

    pub(super) fn asks(
        &mut self,
        (node, from): (u32, u32),
        (global, now): (Duration, Duration),
        (read, run): (ReadId, Run),
    ) {
        let origin = number(self.books.len());
        let words = format!(
            "read {}: {}..{} from {}",
            read.0,
            run.start.0,
            run.end.0,
            if from == origin { "the origin".to_owned() } else { from.to_string() }
        );
        let found = self.wrong_with((node, from), now, (read, run));
        if let Some((oracle, why)) = found {
            self.violated(oracle, global, &[node, from], format!("{words}: {why}"));
        }
        let book = &mut self.books[node as usize];
        book.next_read = read.0 + 1;
        let asked = Asked { from, run, at: now, generation: book.generation(from), may_repeat: false };
        book.reads.insert(read, asked);
        if let Some(link) = book.links.get_mut(&from) {
            link.waits = None;
        }
    }

    fn wrong_with(
        &mut self,
        (node, from): (u32, u32),
        now: Duration,
        (read, run): (ReadId, Run),
    ) -> Option<(&'static str, String)> {
        let is_origin = from == number(self.books.len());
        let run_pieces = self.run_pieces;
        let book = &mut self.books[node as usize];
        if read.0 < book.next_read {
            return Some(("asking", "a number used before".to_owned()));
        }
        if run.is_empty() || run.end.0 > book.proved.piece_count() {
            return Some(("asking", "no pieces of the artifact".to_owned()));
        }
        if let Some(piece) = run.pieces().find(|piece| book.proved.contains(*piece)) {
            return Some(("asking", format!("it has piece {}", piece.0)));
        }
        if is_origin {
            let reads = book.reads.values().filter(|read| read.from == from).count();
            if reads >= ORIGIN_READS_MAX {
                return Some(("budgets", format!("{reads} are out at the origin")));
            }
        } else {
            let generation = book.generation(from);
            let Some(link) = book.links.get(&from).filter(|link| link.is_up) else {
                return Some(("asking", "no link to it is up".to_owned()));
            };
            if let Some(piece) = run.pieces().find(|piece| !link.heard.contains(*piece)) {
                return Some(("asking", format!("it has not announced piece {}", piece.0)));
            }
            let on_it = |read: &&Asked| read.from == from && read.generation == generation;
            let out = book.reads.values().filter(on_it).count();
            if out >= link.grant as usize {
                return Some(("budgets", format!("{out} are out and {} granted", link.grant)));
            }
            if run.len() > run_pieces {
                return Some(("budgets", format!("more than {run_pieces} pieces")));
            }
        }
        let twice = run.pieces().find_map(|piece| book.asked_twice(piece, now))?;
        Some(("no piece asked twice", twice))
    }
}

impl Book {
    /// Why a piece must not be asked for again, if it is out.
    fn asked_twice(&mut self, piece: PieceIndex, now: Duration) -> Option<String> {
        let out = self.reads.iter().filter(|(_, read)| read.run.contains(piece) && !read.may_repeat);
        let out: Vec<(ReadId, Asked)> = out.map(|(id, read)| (*id, *read)).collect();
        for (id, read) in out {
            let is_ended =
                self.links.contains_key(&read.from) && read.generation != self.generation(read.from);
            if is_ended || self.is_hedged(read.from, now) || self.is_late(read.from, now) {
                self.let_repeat(read.from);
            } else {
                let age = now.saturating_sub(read.at).as_secs_f64();
                return Some(format!(
                    "piece {} is out as read {} from {} since {age:.6} s",
                    piece.0, id.0, read.from
                ));
            }
        }
        None
    }

    fn let_repeat(&mut self, from: u32) {
        for read in self.reads.values_mut().filter(|read| read.from == from) {
            read.may_repeat = true;
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.is_troubled = true;
        }
    }
}
