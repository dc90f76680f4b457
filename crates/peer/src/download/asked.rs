//! Which parents have reads of this download to answer. Does not own the reads.

use std::{collections::BTreeMap, sync::Arc};

use planner::PeerId;

use crate::metrics::Metrics;

/// Counts them into the numbers of the process. Dropping it takes them out.
#[derive(Debug)]
pub(super) struct Asked {
    metrics: Arc<Metrics>,
    /// Whom each transfer that is posted was asked of.
    posted: BTreeMap<u64, PeerId>,
    by_peer: BTreeMap<PeerId, u32>,
}

impl Asked {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, posted: BTreeMap::new(), by_peer: BTreeMap::new() }
    }

    pub(super) fn posted(&mut self, transfer: u64, peer: PeerId) {
        self.posted.insert(transfer, peer);
        *self.by_peer.entry(peer).or_insert_with(|| {
            self.metrics.asks(1);
            0
        }) += 1;
    }

    /// Whatever came of it, and whether or not it was posted.
    pub(super) fn ended(&mut self, transfer: u64) {
        let Some(peer) = self.posted.remove(&transfer) else { return };
        if let Some(count) = self.by_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&peer);
                self.metrics.asks(-1);
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.by_peer.values().for_each(|_| self.metrics.asks(-1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_counts_while_it_has_anything_to_answer() {
        let metrics = Arc::new(Metrics::default());
        let [one, other] = [1, 2].map(|number| PeerId::new([number; 16]));
        let mut asked = Asked::new(Arc::clone(&metrics));
        for (transfer, peer) in [(1, one), (2, one), (3, other)] {
            asked.posted(transfer, peer);
        }
        assert_eq!(metrics.parents_asked(), 2);
        asked.ended(1);
        asked.ended(9);
        assert_eq!(metrics.parents_asked(), 2, "it has one more, and another waited for its buffer");
        asked.ended(2);
        assert_eq!(metrics.parents_asked(), 1);
        drop(asked);
        assert_eq!(metrics.parents_asked(), 0, "the download was given up");
    }
}
