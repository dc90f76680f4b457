//! Some of an artifact's stripes, and with them some of its pieces. Does not own what a plan says of a stripe (`plan`).

use modelpack::layout::PieceIndex;

/// Some of the stripes that pieces are dealt to, [`Self::stripe_pieces`] in a row to each in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeSet {
    stripe_pieces: u32,
    stripe_count: u32,
    /// Bit `s`: stripe `s` is in it.
    bits: u64,
}

impl StripeSet {
    /// Stripes that a set can tell apart: many more than plans have.
    pub const STRIPES_MAX: u32 = 64;

    /// Those whose bits are set, of so many stripes of so many consecutive pieces; none if there are no such stripes.
    pub fn new(stripe_pieces: u32, stripe_count: u32, bits: u64) -> Option<Self> {
        let is_geometry = stripe_pieces > 0 && (1..=Self::STRIPES_MAX).contains(&stripe_count);
        is_geometry.then_some(Self { stripe_pieces, stripe_count, bits })
    }

    /// Whether the stripe of this piece is in it.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.bits >> (piece.0 / self.stripe_pieces % self.stripe_count) & 1 == 1
    }

    /// Consecutive pieces of one stripe.
    pub fn stripe_pieces(&self) -> u32 {
        self.stripe_pieces
    }

    /// How many stripes there are, in the set or not.
    pub fn stripe_count(&self) -> u32 {
        self.stripe_count
    }

    /// Bit `s`: stripe `s` is in it.
    pub fn bits(&self) -> u64 {
        self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_dealt_to_stripes_in_turn() {
        let set = StripeSet::new(2, 3, 0b101).expect("a geometry");
        let within: Vec<u32> = (0..14).filter(|piece| set.contains(PieceIndex(*piece))).collect();
        assert_eq!(within, [0, 1, 4, 5, 6, 7, 10, 11, 12, 13]);
        for (stripe_pieces, stripe_count) in [(0, 1), (1, 0), (1, 65)] {
            assert_eq!(StripeSet::new(stripe_pieces, stripe_count, 1), None);
        }
    }
}
