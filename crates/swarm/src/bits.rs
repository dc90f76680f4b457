//! A set of piece numbers that is searched from anywhere: the intersections that picking a piece needs. The proved
//! set itself is a `PieceMap`.

use modelpack::layout::{PieceIndex, Run};

#[derive(Clone, Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
    piece_count: u32,
    count: u32,
}

impl Bits {
    pub(crate) fn empty(piece_count: u32) -> Self {
        Self { words: vec![0; piece_count.div_ceil(64) as usize], piece_count, count: 0 }
    }

    pub(crate) fn piece_count(&self) -> u32 {
        self.piece_count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    pub(crate) fn contains(&self, piece: PieceIndex) -> bool {
        piece.0 < self.piece_count && self.words[piece.0 as usize / 64] >> (piece.0 % 64) & 1 == 1
    }

    pub(crate) fn insert(&mut self, piece: PieceIndex) -> bool {
        let is_new = piece.0 < self.piece_count && !self.contains(piece);
        if is_new {
            self.words[piece.0 as usize / 64] |= 1 << (piece.0 % 64);
            self.count += 1;
        }
        is_new
    }

    pub(crate) fn remove(&mut self, piece: PieceIndex) -> bool {
        let was_there = self.contains(piece);
        if was_there {
            self.words[piece.0 as usize / 64] &= !(1 << (piece.0 % 64));
            self.count -= 1;
        }
        was_there
    }

    /// The part of `run` that exists at all; runs come from the network.
    pub(crate) fn clip(&self, run: Run) -> Run {
        let end = run.end.0.min(self.piece_count);
        Run::new(run.start.0.min(end), end)
    }

    /// The first piece at or after `from` that is in the set.
    pub(crate) fn next(&self, from: u32) -> Option<PieceIndex> {
        self.scan(from, |at| self.words[at])
    }

    /// The first piece at or after `from` that is in both sets.
    pub(crate) fn next_common(&self, other: &Self, from: u32) -> Option<PieceIndex> {
        self.scan(from, |at| self.words[at] & other.words.get(at).copied().unwrap_or(0))
    }

    fn scan(&self, from: u32, word_at: impl Fn(usize) -> u64) -> Option<PieceIndex> {
        let first = from as usize / 64;
        for at in first..self.words.len() {
            let mut word = word_at(at);
            if at == first {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                let base = u32::try_from(at * 64).expect("words cover at most piece_count pieces");
                return Some(PieceIndex(base + word.trailing_zeros()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(ops in proptest::collection::vec((0_u32..200, any::<bool>()), 0..200), from in 0_u32..200) {
            let (mut bits, mut all) = (Bits::empty(170), Bits::empty(170));
            all.insert_even();
            let mut set = BTreeSet::new();
            for (piece, is_insert) in ops {
                let expect = if is_insert { piece < 170 && set.insert(piece) } else { set.remove(&piece) };
                let got = if is_insert { bits.insert(PieceIndex(piece)) } else { bits.remove(PieceIndex(piece)) };
                prop_assert_eq!(got, expect);
            }
            prop_assert_eq!(bits.len() as usize, set.len());
            prop_assert_eq!(bits.next(from), set.range(from..).next().map(|piece| PieceIndex(*piece)));
            let even = set.range(from..).find(|piece| **piece % 2 == 0).map(|piece| PieceIndex(*piece));
            prop_assert_eq!(bits.next_common(&all, from), even);
        }
    }

    impl Bits {
        fn insert_even(&mut self) {
            for piece in (0..self.piece_count).step_by(2) {
                self.insert(PieceIndex(piece));
            }
        }
    }
}
