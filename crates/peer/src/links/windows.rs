//! Which windows of a parent's files a link holds, and which announced pieces wait for one.
//!
//! Owns: what is asked for and given back, and when; that the swarm hears only of pieces that can be read. Does not own:
//! the messages, or reads. It is driven by its caller and does nothing by itself.

use std::collections::{BTreeMap, BTreeSet};

use identity::Voucher;
use modelpack::{
    layout::{BlobIndex, PIECE_BYTES, PieceIndex, PieceLayout, Run, runs_of},
    piece_map::PieceMap,
};
use transport_rdma::WINDOW_BYTES;
use wire::rdma::WindowId;

/// What a link holds or has asked for, at most: many times what is in flight at once, and little of what a parent may pin
/// for all of its children.
const HELD_BYTES_MAX: u64 = 16 * WINDOW_BYTES;

/// Windows that a link holds or has asked for, at most. Only those of small files come to so many.
const HELD_MAX: usize = 48;

const PIECES_A_WINDOW: u64 = WINDOW_BYTES / PIECE_BYTES;

/// Pieces that may be read now, and who vouches for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Readable {
    pub(super) runs: Vec<Run>,
    pub(super) vouchers: Vec<(PieceIndex, Voucher)>,
}

/// The books of one link.
#[derive(Debug)]
pub(super) struct Windows {
    layout: PieceLayout,
    /// The pieces that are here, whoever brought them.
    here: PieceMap,
    held: BTreeMap<WindowId, Held>,
    /// Announced and not here, by window: more than none.
    missing: BTreeMap<WindowId, u32>,
    /// Announced pieces of which the swarm has not heard.
    kept: BTreeMap<WindowId, Vec<PieceIndex>>,
    vouchers: BTreeMap<PieceIndex, Voucher>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Asked,
    Granted,
    /// Given back as soon as no read is out there.
    Leaving,
}

impl Windows {
    /// A link without windows, of a process that has `here` of the artifact.
    pub(super) fn new(layout: PieceLayout, here: PieceMap) -> Self {
        let (held, missing, kept) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { layout, here, held, missing, kept, vouchers: BTreeMap::new() }
    }

    /// The window that a piece is in.
    fn of(&self, piece: PieceIndex) -> WindowId {
        let span = self.layout.span(piece);
        let index = u32::try_from(span.offset / WINDOW_BYTES).unwrap_or(u32::MAX);
        WindowId { blob: span.blob.0, index }
    }

    /// How long a window is; none if the artifact has no such.
    pub(super) fn bytes(&self, id: WindowId) -> Option<u64> {
        let bytes =
            (id.blob < self.layout.blob_count()).then(|| self.layout.blob_bytes(BlobIndex(id.blob)))?;
        let left = bytes.checked_sub(u64::from(id.index).checked_mul(WINDOW_BYTES)?)?;
        Some(left.min(WINDOW_BYTES)).filter(|bytes| *bytes > 0)
    }

    fn pieces(&self, id: WindowId) -> Run {
        let blob = self.layout.pieces_of(BlobIndex(id.blob));
        let most = u64::from(blob.end.0);
        let start = u64::from(blob.start.0) + u64::from(id.index) * PIECES_A_WINDOW;
        let number = |at: u64| u32::try_from(at.min(most)).unwrap_or(u32::MAX);
        Run::new(number(start), number(start + PIECES_A_WINDOW))
    }

    /// The parent has these now, of which none was said before. Gives those that may be read.
    pub(super) fn announced(&mut self, runs: &[Run], vouchers: Vec<(PieceIndex, Voucher)>) -> Readable {
        let mut pieces = Vec::new();
        for piece in runs.iter().flat_map(Run::pieces) {
            let id = self.of(piece);
            if !self.here.contains(piece) {
                *self.missing.entry(id).or_default() += 1;
            }
            if self.held.get(&id) == Some(&Held::Granted) {
                pieces.push(piece);
            } else {
                self.kept.entry(id).or_default().push(piece);
            }
        }
        let is_new = |piece: &PieceIndex| runs.iter().any(|run| run.contains(*piece));
        self.vouchers.extend(vouchers.into_iter().filter(|(piece, _)| is_new(piece)));
        self.readable(pieces)
    }

    /// These pieces are here now.
    pub(super) fn landed(&mut self, run: Run, announced: &PieceMap) {
        for piece in run.pieces() {
            if self.here.insert(piece) && announced.contains(piece) {
                let id = self.of(piece);
                match self.missing.get_mut(&id) {
                    Some(missing) if *missing > 1 => *missing -= 1,
                    _ => drop(self.missing.remove(&id)),
                }
            }
        }
    }

    /// Windows that are not needed any more, each said once: whose every piece is here, and where others wait for a place
    /// also those that have nothing to read now. Nothing there may be read from now on; when nothing is, the caller gives
    /// them back and says so by [`Self::released`].
    pub(super) fn idle(&mut self) -> Vec<WindowId> {
        let is_full = self.waiting().next().is_some_and(|next| !self.has_room(self.held_bytes(), 0, next));
        let is_idle = |id: &WindowId| {
            !self.missing.contains_key(id) && (is_full || self.here.contains_run(self.pieces(*id)))
        };
        let granted = self.held.iter().filter(|(_, held)| **held == Held::Granted).map(|(id, _)| *id);
        let idle: Vec<WindowId> = granted.filter(is_idle).collect();
        self.held.extend(idle.iter().map(|id| (*id, Held::Leaving)));
        idle
    }

    /// Those of [`Self::idle`] that were not given back yet.
    pub(super) fn leaving(&self) -> impl Iterator<Item = WindowId> + '_ {
        self.held.iter().filter(|(_, held)| **held == Held::Leaving).map(|(id, _)| *id)
    }

    /// The window was given back.
    pub(super) fn released(&mut self, id: WindowId) {
        self.held.remove(&id);
    }

    /// Windows to ask for now, the first ones of the artifact first.
    pub(super) fn ask(&mut self) -> Vec<WindowId> {
        let (mut bytes, mut asked) = (self.held_bytes(), Vec::new());
        for id in self.waiting() {
            if !self.has_room(bytes, asked.len(), id) {
                break;
            }
            bytes += self.bytes(id).unwrap_or(0);
            asked.push(id);
        }
        self.held.extend(asked.iter().map(|id| (*id, Held::Asked)));
        asked
    }

    /// Whether one more may be held beside those that come to so many bytes, and so many that are not held yet.
    fn has_room(&self, bytes: u64, more: usize, id: WindowId) -> bool {
        self.held.len() + more < HELD_MAX && bytes + self.bytes(id).unwrap_or(0) <= HELD_BYTES_MAX
    }

    fn held_bytes(&self) -> u64 {
        self.held.keys().filter_map(|id| self.bytes(*id)).sum()
    }

    /// Windows with something to read that are not held.
    fn waiting(&self) -> impl Iterator<Item = WindowId> + '_ {
        self.missing.keys().copied().filter(|id| !self.held.contains_key(id))
    }

    /// A window was granted. Gives what may be read in it; nothing if nobody asked for it.
    pub(super) fn granted(&mut self, id: WindowId) -> Option<Readable> {
        let held = self.held.get_mut(&id).filter(|held| **held == Held::Asked)?;
        *held = Held::Granted;
        let pieces = self.kept.remove(&id).unwrap_or_default();
        Some(self.readable(pieces))
    }

    fn readable(&mut self, pieces: Vec<PieceIndex>) -> Readable {
        let vouchers =
            pieces.iter().filter_map(|piece| Some((*piece, self.vouchers.remove(piece)?))).collect();
        let sorted: BTreeSet<PieceIndex> = pieces.into_iter().collect();
        Readable { runs: runs_of(sorted), vouchers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many windows of one blob, the last of three pieces and a bit.
    fn windows(count: u32) -> Windows {
        let bytes = u64::from(count - 1) * WINDOW_BYTES + 2 * PIECE_BYTES + 5;
        let layout = PieceLayout::new(vec![7, bytes]).unwrap();
        let here = PieceMap::empty(layout.piece_count());
        Windows::new(layout, here)
    }

    fn id(index: u32) -> WindowId {
        WindowId { blob: 1, index }
    }

    fn landed(windows: &mut Windows, run: Run) {
        windows.landed(run, &PieceMap::full(windows.layout.piece_count()));
    }

    #[test]
    fn pieces_are_kept_back_until_their_window_is_granted() {
        let mut windows = windows(2);
        // The last piece of the first window, the first two of the second; the small blob is a window by itself.
        let readable = windows.announced(&[Run::new(0, 1), Run::new(256, 259)], Vec::new());
        assert_eq!(readable, Readable::default());
        assert_eq!(windows.ask(), [WindowId { blob: 0, index: 0 }, id(0), id(1)]);
        assert_eq!(windows.ask(), [], "each is asked for once");
        let second = windows.granted(id(1)).expect("asked for");
        assert_eq!(second.runs, [Run::new(257, 259)]);
        assert_eq!(windows.announced(&[Run::new(259, 260)], Vec::new()).runs, [Run::new(259, 260)]);
        assert_eq!(windows.granted(id(0)).expect("asked for").runs, [Run::new(256, 257)]);
        assert_eq!(windows.granted(id(0)), None, "granted twice");
        assert_eq!(windows.granted(id(7)), None, "nobody asked for it");
        assert_eq!(
            (windows.bytes(id(0)), windows.bytes(id(1))),
            (Some(WINDOW_BYTES), Some(2 * PIECE_BYTES + 5))
        );
        let none = [id(2), WindowId { blob: 2, index: 0 }, id(u32::MAX)];
        assert_eq!(none.map(|id| windows.bytes(id)), [None; 3]);
    }

    #[test]
    fn what_is_here_is_not_asked_for_and_what_is_whole_is_given_back() {
        let mut windows = windows(2);
        landed(&mut windows, Run::new(1, 257));
        windows.announced(&[Run::new(1, 259)], Vec::new());
        assert_eq!(windows.ask(), [id(1)], "the first is here");
        windows.granted(id(1));
        landed(&mut windows, Run::new(257, 259));
        assert_eq!(windows.idle(), [], "a piece of it is not announced yet, and nobody waits for its place");
        landed(&mut windows, Run::new(259, 260));
        assert_eq!(windows.idle(), [id(1)]);
        windows.released(id(1));
        assert_eq!((windows.idle(), windows.ask(), windows.leaving().count()), (vec![], vec![], 0));
    }

    #[test]
    fn no_more_are_held_than_may_be_and_what_has_nothing_to_read_makes_room() {
        let most = u32::try_from(HELD_BYTES_MAX / WINDOW_BYTES).unwrap();
        let mut windows = windows(most + 3);
        let first_of = |index: u32| Run::one(PieceIndex(1 + index * 256));
        let runs: Vec<Run> = (0..most + 2).map(first_of).collect();
        windows.announced(&runs, Vec::new());
        let asked = windows.ask();
        assert_eq!(asked, (0..most).map(id).collect::<Vec<_>>());
        for asked in asked {
            windows.granted(asked);
        }
        assert_eq!((windows.ask(), windows.idle()), (vec![], vec![]), "all of them have something to read");
        landed(&mut windows, first_of(3));
        assert_eq!(windows.idle(), [id(3)], "its one announced piece is here, and others wait");
        assert_eq!((windows.idle(), windows.ask()), (vec![], vec![]), "its place is not free yet");
        assert_eq!(windows.leaving().collect::<Vec<_>>(), [id(3)]);
        windows.released(id(3));
        assert_eq!(windows.ask(), [id(most)]);
        windows.granted(id(most));
        assert_eq!(
            windows.announced(&[Run::one(PieceIndex(1 + 3 * 256 + 1))], Vec::new()).runs,
            [],
            "kept again"
        );
        landed(&mut windows, first_of(0));
        let idle = windows.idle()[0];
        windows.released(idle);
        assert_eq!(windows.ask(), [id(3)], "and asked for again, before later ones");
    }

    #[test]
    fn of_small_files_there_are_as_many_windows_as_may_be() {
        let layout = PieceLayout::new(vec![7; HELD_MAX + 1]).unwrap();
        let here = PieceMap::empty(layout.piece_count());
        let mut windows = Windows::new(layout.clone(), here);
        windows.announced(&[layout.all()], Vec::new());
        assert_eq!(windows.ask().len(), HELD_MAX);
    }

    #[test]
    fn vouchers_wait_with_their_pieces() {
        let mut windows = windows(1);
        let voucher = |round| Voucher { round, value: [1; 32], key: [2; 32], signature: [3; 64] };
        let vouchers = vec![(PieceIndex(1), voucher(4)), (PieceIndex(3), voucher(5))];
        windows.announced(&[Run::new(1, 3)], vouchers);
        windows.ask();
        let readable = windows.granted(id(0)).unwrap();
        assert_eq!(
            readable.vouchers,
            [(PieceIndex(1), voucher(4))],
            "the other is about nothing that was announced"
        );
    }
}
