//! A double that reads the origin for others, and vouches for other bytes than are there.
//!
//! Owns: which pieces it claims and when, and what it signs. Does not own: streams and links.
//!
//! It does not read: what it would change anyway costs the origin nothing here, and counts as read in the report.

use std::time::Duration;

use identity::{ReaderKey, Voucher};
use modelpack::{
    layout::{PieceIndex, PieceLayout},
    piece_tree::piece_value,
};
use tokio::sync::watch;
use wire::control::Plan;

/// How long it takes for a piece: 1 MiB at the rate of the drill's cards.
pub(crate) const PIECE_INTERVAL: Duration = Duration::from_millis(20);

/// What a double says that it has. It only grows.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) pieces: Vec<(PieceIndex, Option<Voucher>)>,
    /// Of the plan that it acts by.
    pub(crate) epoch: u64,
}

impl Claims {
    /// Everything, and nobody vouches for it.
    pub(crate) fn everything(layout: &PieceLayout) -> Self {
        Self { pieces: layout.all().pieces().map(|piece| (piece, None)).collect(), epoch: 0 }
    }
}

/// Its part of the plan.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    stripe_pieces: u32,
    /// Whether it is the one that reads the stripe at the origin.
    is_entrant: Vec<bool>,
    /// Nobody else is there yet: it waits, lest it ends as a holder of everything that reads nothing.
    is_alone: bool,
}

impl Reader {
    pub(crate) fn follow(&mut self, plan: &Plan, claims: &watch::Sender<Claims>) {
        self.stripe_pieces = plan.stripe_pieces.max(1);
        self.is_entrant = plan.stripes.iter().map(|stripe| stripe.from_origin).collect();
        self.is_alone = plan.members.is_empty();
        claims.send_modify(|claims| claims.epoch = plan.epoch);
    }

    /// Claims the next piece of its part, if there is one.
    pub(crate) fn claim(
        &self,
        (key, artifact): (&ReaderKey, &[u8; 32]),
        layout: &PieceLayout,
        claims: &watch::Sender<Claims>,
    ) -> Option<PieceIndex> {
        let next = {
            let claims = claims.borrow();
            let is_new = |piece: &PieceIndex| claims.pieces.iter().all(|(claimed, _)| claimed != piece);
            layout.all().pieces().find(|piece| self.is_mine(*piece) && is_new(piece))?
        };
        let span = layout.span(next);
        let value = piece_value(span.in_blob, &vec![0; span.len as usize]);
        let voucher = key.vouch(artifact, next.0, 0, value);
        claims.send_modify(|claims| claims.pieces.push((next, Some(voucher))));
        Some(next)
    }

    fn is_mine(&self, piece: PieceIndex) -> bool {
        let stripe = (piece.0 / self.stripe_pieces.max(1)) as usize % self.is_entrant.len().max(1);
        !self.is_alone && self.is_entrant.get(stripe).is_some_and(|is_entrant| *is_entrant)
    }
}
