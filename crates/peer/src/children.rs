//! The children of this process, or of one artifact of it: who holds a grant, and whether they were told to go elsewhere.
//!
//! Owns: the count, and that nobody is let in after the farewell. Does not own: grants, or what is done when nobody holds
//! one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use planner::PeerId;
use tokio::sync::watch;

/// Children that are counted together, as are clones.
#[derive(Clone, Debug)]
pub(crate) struct Children(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many grants each has: one for an artifact.
    grants: BTreeMap<PeerId, usize>,
    /// How many of them are for reads over RDMA.
    over_rdma: usize,
    /// Whoever is in here may read over TCP only.
    quarantined: BTreeSet<PeerId>,
    is_leaving: bool,
}

/// One grant of a child. Dropping it ends the grant.
#[derive(Debug)]
pub(crate) struct Child {
    children: Children,
    peer: PeerId,
    reads_over_rdma: bool,
}

impl Child {
    /// It reads over RDMA.
    pub(crate) fn read_over_rdma(&mut self) {
        if !std::mem::replace(&mut self.reads_over_rdma, true) {
            self.children.0.send_modify(|state| state.over_rdma += 1);
        }
    }
}

impl Children {
    /// Nobody yet.
    pub(crate) fn none() -> Self {
        Self(Arc::default())
    }

    /// One more grant, until the value is dropped; none once this process leaves.
    pub(crate) fn enter(&self, child: PeerId) -> Option<Child> {
        let is_in = self.0.send_if_modified(|state| {
            if !state.is_leaving {
                *state.grants.entry(child).or_default() += 1;
            }
            !state.is_leaving
        });
        is_in.then(|| Child { children: self.clone(), peer: child, reads_over_rdma: false })
    }

    /// How many hold a grant.
    pub(crate) fn count(&self) -> usize {
        self.0.borrow().grants.len()
    }

    /// How many grants they hold: one of each child for each artifact that it reads.
    pub(crate) fn links(&self) -> usize {
        self.0.borrow().grants.values().sum()
    }

    /// The same: those over TCP, and those over RDMA.
    pub(crate) fn links_by_transport(&self) -> (usize, usize) {
        let over_rdma = self.0.borrow().over_rdma;
        (self.links().saturating_sub(over_rdma), over_rdma)
    }

    /// Tells all of them to go elsewhere, and lets nobody in any more.
    pub(crate) fn say_farewell(&self) {
        self.0.send_modify(|state| state.is_leaving = true);
    }

    /// Whether that was said.
    pub(crate) fn are_told(&self) -> bool {
        self.0.borrow().is_leaving
    }

    /// Ready when it was.
    pub(crate) fn told(&self) -> impl Future<Output = ()> + Send + 'static {
        self.when(|state| state.is_leaving)
    }

    /// These are quarantined from now on, and nobody else.
    pub(crate) fn quarantine(&self, peers: &[PeerId]) {
        self.0.send_if_modified(|state| {
            let is_news = !state.quarantined.iter().eq(peers);
            if is_news {
                state.quarantined = peers.iter().copied().collect();
            }
            is_news
        });
    }

    /// Ready when this peer is.
    pub(crate) fn quarantined(&self, peer: PeerId) -> impl Future<Output = ()> + Send + 'static {
        self.when(move |state| state.quarantined.contains(&peer))
    }

    /// Whether it is now.
    pub(crate) fn is_quarantined(&self, peer: PeerId) -> bool {
        self.0.borrow().quarantined.contains(&peer)
    }

    /// Whether somebody holds a grant.
    pub(crate) fn are_there(&self) -> bool {
        !self.0.borrow().grants.is_empty()
    }

    /// Ready when nobody holds a grant.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.when(|state| state.grants.is_empty())
    }

    fn when(
        &self,
        is_so: impl FnMut(&State) -> bool + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (children, mut state) = (self.clone(), self.0.subscribe());
        async move {
            // Fails only without a sender, and this is one.
            let _ = state.wait_for(is_so).await;
            drop(children);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Self { children, peer, reads_over_rdma } = self;
        children.0.send_modify(|state| {
            state.over_rdma -= usize::from(*reads_over_rdma);
            if let Some(grants) = state.grants.get_mut(peer) {
                *grants -= 1;
            }
            state.grants.retain(|_, grants| *grants > 0);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_waits_for_the_last_and_nobody_comes_after_the_farewell() {
        let children = Children::none();
        let is_alone = async || timeout(Duration::from_secs(1), children.gone()).await.is_ok();
        assert!(is_alone().await);
        let [one, other] = [1, 2].map(|byte| PeerId::new([byte; 16]));
        let (first, second) = (children.enter(one), children.clone().enter(other));
        let mut again = children.enter(other);
        again.as_mut().unwrap().read_over_rdma();
        assert_eq!((children.count(), children.links(), children.links_by_transport()), (2, 3, (2, 1)));
        drop(again);
        assert_eq!(children.links_by_transport(), (2, 0));
        drop(first);
        assert!(!is_alone().await);
        assert!(timeout(Duration::from_secs(1), children.told()).await.is_err());
        children.say_farewell();
        children.told().await;
        assert!(children.enter(one).is_none() && children.count() == 1);
        drop(second);
        assert!(is_alone().await);
        assert!(children.enter(one).is_none(), "also when nobody is there any more");
    }
}
