//! Which pieces of an artifact are there: a set that only grows by union.

use std::fmt;

use crate::layout::{PieceIndex, Run, runs_of};

/// A set of piece numbers below a fixed count. A monoid: union is associative, commutative and idempotent, and
/// the empty map is its neutral element.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceMap {
    words: Vec<u64>,
    piece_count: u32,
    count: u32,
}

impl PieceMap {
    /// The empty set over `piece_count` pieces.
    pub fn empty(piece_count: u32) -> Self {
        Self { words: vec![0; piece_count.div_ceil(64) as usize], piece_count, count: 0 }
    }

    /// The set of all `piece_count` pieces.
    pub fn full(piece_count: u32) -> Self {
        let mut map = Self::empty(piece_count);
        map.insert_run(Run::new(0, piece_count));
        map
    }

    /// How many pieces the artifact has.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// How many pieces are in the set.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether no piece is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.piece_count
    }

    /// Whether `piece` is in the set. A piece the artifact does not have is not.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        piece.0 < self.piece_count && self.words[piece.0 as usize / 64] >> (piece.0 % 64) & 1 == 1
    }

    /// Whether every piece of `run` is in the set.
    pub fn contains_run(&self, run: Run) -> bool {
        run.pieces().all(|piece| self.contains(piece))
    }

    /// Adds `piece`; says whether it was new.
    ///
    /// # Panics
    /// If the artifact has no such piece.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        assert!(piece.0 < self.piece_count, "piece {piece} of {}", self.piece_count);
        let word = &mut self.words[piece.0 as usize / 64];
        let bit = 1 << (piece.0 % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.count += u32::from(is_new);
        is_new
    }

    /// Takes `piece` out; says whether it was there. Only for a claim that proved wrong.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let was_there = self.contains(piece);
        if was_there {
            self.words[piece.0 as usize / 64] &= !(1 << (piece.0 % 64));
            self.count -= 1;
        }
        was_there
    }

    /// Adds every piece of `run`.
    pub fn insert_run(&mut self, run: Run) {
        for piece in run.pieces() {
            self.insert(piece);
        }
    }

    /// Adds every piece of `other`.
    ///
    /// # Panics
    /// If the two are about artifacts of different piece counts.
    pub fn union(&mut self, other: &Self) {
        assert!(self.piece_count == other.piece_count, "maps of two artifacts");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// The pieces in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    PieceIndex(u32::try_from(at * 64).expect("within piece_count") + bit)
                })
            })
        })
    }

    /// The set as its maximal runs, ascending: the form it travels in.
    pub fn runs(&self) -> Vec<Run> {
        runs_of(self.iter())
    }

    /// The first piece at or after `from` that is not in the set.
    pub fn next_missing(&self, from: PieceIndex) -> Option<PieceIndex> {
        let mut at = from.0;
        while at < self.piece_count {
            let word = !self.words[at as usize / 64] >> (at % 64);
            if word != 0 {
                let found = at + word.trailing_zeros();
                return (found < self.piece_count).then_some(PieceIndex(found));
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

impl fmt::Debug for PieceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {:?}", self.count, self.piece_count, self.runs())
    }
}
