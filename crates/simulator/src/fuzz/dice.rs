//! Dice: everything random of a run comes from one number. Does not own what is drawn.

use std::time::Duration;

use modelpack::layout::PieceIndex;

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to, but not including, `below`.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// The same, as an index.
    pub(super) fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.below(below as u64)).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }

    /// A moment before `end`.
    pub(super) fn moment(&mut self, end: Duration) -> Duration {
        Duration::from_nanos(self.below(crate::queue::nanos(end)))
    }

    /// A time between the two of which short and long ones are as likely: each doubling is.
    pub(super) fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let mut span = least;
        while span * 2 < most && self.percent(75) {
            span *= 2;
        }
        (span + self.moment(span)).min(most)
    }
}

/// The finaliser of `SplitMix64`.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Whether a piece of a node is among the so many of a hundred that something is wrong with: always the same ones.
pub(super) fn is_struck(seed: u64, node: u32, piece: PieceIndex, percent: u64) -> bool {
    let word = seed ^ u64::from(node) << 32 ^ u64::from(piece.0);
    mix(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % 100 < percent
}
