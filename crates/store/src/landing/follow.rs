//! Reading a blob while it lands, from its start.
//!
//! Owns: waiting for pieces in order. Does not own: whether the bytes are right, which nobody knows yet.

use std::sync::atomic::{AtomicBool, Ordering};

use modelpack::layout::PieceIndex;

use super::{Landing, unpoison};

impl Landing {
    /// Waits until a piece is on disk. Says `false` if it is not there and `is_over`, after which [`Self::wake`] has to
    /// be called.
    pub(crate) fn wait_for(&self, piece: PieceIndex, is_over: &AtomicBool) -> bool {
        let mut state = self.state();
        while !state.here.contains(piece) {
            if is_over.load(Ordering::SeqCst) {
                return false;
            }
            state = unpoison(self.moved.wait(state));
        }
        true
    }

    /// Has all who wait look again.
    pub(crate) fn wake(&self) {
        // Whoever has looked and does not wait yet holds it.
        drop(self.state());
        self.moved.notify_all();
    }
}
