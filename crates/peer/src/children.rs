//! How many children hold a grant of this process, or of one artifact of it.
//!
//! Owns: the count. Does not own: grants, or what is done when nobody holds one.

use std::sync::Arc;

use tokio::sync::watch;

/// Children that are counted together, as are clones.
#[derive(Clone, Debug)]
pub(crate) struct Children(Arc<watch::Sender<usize>>);

/// One child that holds a grant. Dropping it ends the grant.
#[derive(Debug)]
pub(crate) struct Child(Children);

impl Children {
    /// Nobody yet.
    pub(crate) fn none() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// One more, until the value is dropped.
    pub(crate) fn enter(&self) -> Child {
        self.0.send_modify(|count| *count += 1);
        Child(self.clone())
    }

    /// Whether somebody holds a grant.
    pub(crate) fn are_there(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Ready when nobody holds a grant.
    pub(crate) async fn gone(&self) {
        let mut count = self.0.subscribe();
        // Fails only without a sender, and `self` is one.
        let _ = count.wait_for(|count| *count == 0).await;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_waits_for_the_last() {
        let children = Children::none();
        let is_alone = async || timeout(Duration::from_secs(1), children.gone()).await.is_ok();
        assert!(is_alone().await);
        let (first, second) = (children.enter(), children.clone().enter());
        drop(first);
        assert!(!is_alone().await);
        drop(second);
        assert!(is_alone().await);
    }
}
