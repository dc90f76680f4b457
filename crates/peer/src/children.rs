//! The children of this process, or of one artifact of it: who holds a grant, and whether they were told to go elsewhere.
//!
//! Owns: the count, and that nobody is let in after the farewell. Does not own: grants, or what is done when nobody holds
//! one.

use std::{collections::BTreeMap, sync::Arc};

use planner::PeerId;
use tokio::sync::watch;

/// Children that are counted together, as are clones.
#[derive(Clone, Debug)]
pub(crate) struct Children(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many grants each has: one for an artifact.
    grants: BTreeMap<PeerId, usize>,
    is_leaving: bool,
}

/// One grant of a child. Dropping it ends the grant.
#[derive(Debug)]
pub(crate) struct Child(Children, PeerId);

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
        is_in.then(|| Child(self.clone(), child))
    }

    /// How many hold a grant.
    pub(crate) fn count(&self) -> usize {
        self.0.borrow().grants.len()
    }

    /// How many grants they hold: one of each child for each artifact that it reads.
    pub(crate) fn links(&self) -> usize {
        self.0.borrow().grants.values().sum()
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

    /// Whether somebody holds a grant.
    pub(crate) fn are_there(&self) -> bool {
        !self.0.borrow().grants.is_empty()
    }

    /// Ready when nobody holds a grant.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.when(|state| state.grants.is_empty())
    }

    fn when(&self, is_so: fn(&State) -> bool) -> impl Future<Output = ()> + Send + 'static {
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
        let Self(children, child) = self;
        children.0.send_modify(|state| {
            if let Some(grants) = state.grants.get_mut(child) {
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
        let again = children.enter(other);
        assert_eq!((children.count(), children.links()), (2, 3));
        drop(again);
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
