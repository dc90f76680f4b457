//! A set of piece numbers that is searched from anywhere: the intersections that picking a piece needs. The proved
//! set itself is a `PieceMap`.

use std::iter;

use modelpack::layout::{PieceIndex, Run};

#[derive(Clone, Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
    /// No word before this one has a piece.
    first: usize,
    /// Nor has any from this one on: what peers lack and what others have is mostly a few words together.
    end: usize,
    piece_count: u32,
    count: u32,
}

impl Bits {
    pub(crate) fn empty(piece_count: u32) -> Self {
        Self { words: vec![0; piece_count.div_ceil(64) as usize], first: 0, end: 0, piece_count, count: 0 }
    }

    /// Takes all pieces out.
    pub(crate) fn clear(&mut self) {
        if self.first < self.end {
            self.words[self.first..self.end].fill(0);
        }
        (self.first, self.end, self.count) = (0, 0, 0);
    }

    pub(crate) fn piece_count(&self) -> u32 {
        self.piece_count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

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
            self.widen(piece.0 as usize / 64, piece.0 as usize / 64 + 1);
            self.count += 1;
        }
        is_new
    }

    pub(crate) fn remove(&mut self, piece: PieceIndex) -> bool {
        let was_there = self.contains(piece);
        if was_there {
            self.words[piece.0 as usize / 64] &= !(1 << (piece.0 % 64));
            self.count -= 1;
            while self.first < self.end && self.words[self.first] == 0 {
                self.first += 1;
            }
        }
        was_there
    }

    /// There may be pieces in these words.
    fn widen(&mut self, first: usize, end: usize) {
        self.first = if self.first < self.end { self.first.min(first) } else { first };
        self.end = self.end.max(end);
    }

    /// Adds every piece of `other`.
    pub(crate) fn unite(&mut self, other: &Self) {
        self.unite_common(other, other);
    }

    /// Adds every piece that both others have.
    pub(crate) fn unite_common(&mut self, one: &Self, other: &Self) {
        let words = one.first.max(other.first)..one.end.min(other.end).min(self.words.len());
        if words.is_empty() {
            return;
        }
        self.widen(words.start, words.end);
        for at in words {
            let before = self.words[at];
            self.words[at] |= one.words[at] & other.words[at];
            self.count += (self.words[at] ^ before).count_ones();
        }
    }

    /// Takes every piece of `other` out.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for at in self.first.max(other.first)..self.end.min(other.end) {
            let before = self.words[at];
            self.words[at] &= !other.words[at];
            self.count -= (self.words[at] ^ before).count_ones();
        }
    }

    /// How many pieces are in both sets.
    pub(crate) fn count_common(&self, other: &Self) -> u32 {
        let words = self.first.max(other.first)..self.end.min(other.end);
        words.map(|at| (self.words[at] & other.words[at]).count_ones()).sum()
    }

    /// The pieces that are in both sets, as `word_at` narrows them, ascending.
    pub(crate) fn common(
        &self,
        other: &Self,
        word_at: impl Fn(usize) -> u64,
    ) -> impl Iterator<Item = PieceIndex> {
        (self.first.max(other.first)..self.end.min(other.end)).flat_map(move |at| {
            let both = self.words[at] & other.words[at];
            let mut word = if both == 0 { 0 } else { both & word_at(at) };
            let base = u32::try_from(at * 64).expect("words cover at most piece_count pieces");
            iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros();
                    word &= word - 1;
                    PieceIndex(base + bit)
                })
            })
        })
    }

    /// The pieces from the word of `from` on that more of the sets have than their number says, of which `digits(at, place)`
    /// gives one binary place for the 64 pieces from `at` times 64 on, and of which there are `places`.
    pub(crate) fn in_more_than(
        sets: &[&Self],
        places: u32,
        digits: impl Fn(usize, u32) -> u64,
        (from, piece_count): (PieceIndex, u32),
    ) -> Self {
        let mut found = Self::empty(piece_count);
        let places = places.max(usize::BITS - sets.len().leading_zeros());
        let mut counts = vec![0_u64; places as usize];
        let end = sets.iter().map(|set| set.end).max().unwrap_or(0).min(found.words.len());
        let words = from.0 as usize / 64..end;
        (found.first, found.end) = (words.start.min(end), end);
        for at in words {
            // How many sets have each piece, in binary: one word for each place.
            counts.fill(0);
            for set in sets {
                let mut carry = set.word(at);
                for digit in &mut counts {
                    if carry == 0 {
                        break;
                    }
                    (*digit, carry) = (*digit ^ carry, *digit & carry);
                }
            }
            let (mut more, mut same) = (0, u64::MAX);
            for (place, digit) in (0..places).zip(&counts).rev() {
                let number = digits(at, place);
                more |= same & digit & !number;
                same &= !(digit ^ number);
            }
            found.words[at] = more;
            found.count += more.count_ones();
        }
        found
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

    /// Its 64 pieces from `at` times 64 on, to be combined with those of other sets.
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// The first piece at or after `from` that is in this set, as `word_at` narrows it.
    pub(crate) fn scan(&self, from: u32, word_at: impl Fn(usize) -> u64) -> Option<PieceIndex> {
        let first = (from as usize / 64).max(self.first);
        for at in first..self.end {
            let mut word = word_at(at);
            if at == from as usize / 64 {
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
            prop_assert_eq!(bits.scan(from, |at| bits.word(at) & all.word(at)), even);
            let numbers = |at: usize, place: u32| [0xaaaa_aaaa_aaaa_aaaa, 0xcccc_cccc_cccc_cccc][place as usize % 2] >> at;
            let sets = [&bits, &all, &bits];
            let found = Bits::in_more_than(&sets, 2, numbers, (PieceIndex(from), 170));
            for piece in from / 64 * 64..170 {
                let number = (0..2).map(|place| (numbers(piece as usize / 64, place) >> (piece % 64) & 1) << place).sum::<u64>();
                let has = sets.iter().filter(|set| set.contains(PieceIndex(piece))).count() as u64;
                prop_assert_eq!(found.contains(PieceIndex(piece)), has > number, "{} in {} with {}", piece, has, number);
            }
            prop_assert_eq!(found.next(0).filter(|piece| piece.0 < from / 64 * 64), None);
            let both = |set: &Bits| set.common(&all, |_| u64::MAX).map(|piece| piece.0).collect::<Vec<_>>();
            let even: Vec<u32> = set.iter().copied().filter(|piece| piece % 2 == 0).collect();
            prop_assert_eq!(both(&bits), even.clone());
            prop_assert_eq!(bits.count_common(&all) as usize, even.len());
            let mut some = Bits::empty(170);
            some.insert(PieceIndex(from.min(169)));
            let len = set.iter().filter(|piece| **piece % 2 == 0 && **piece != from.min(169)).count() + 1;
            some.unite_common(&bits, &all);
            prop_assert_eq!((some.len() as usize, both(&some).len()), (len, len - from.min(169) as usize % 2));
            some.clear();
            prop_assert!(some.is_empty() && some.next(0).is_none());
            some.insert(PieceIndex(150));
            prop_assert_eq!((some.next(0), some.next(151)), (Some(PieceIndex(150)), None));
            let len = set.union(&(0..170).step_by(2).collect()).count();
            all.unite(&bits);
            prop_assert_eq!((all.len() as usize, all.next(1) == Some(PieceIndex(1))), (len, set.contains(&1)));
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
