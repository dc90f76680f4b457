//! What waits to be sent to one peer: bounded, because a later plan replaces an earlier one of the same artifact.
//!
//! Owns: the order of messages and the end of the stream. Does not own: the connection, which takes a message when it
//! has room for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, stream};
use planner::{ArtifactId, PeerPlan};
use tokio::sync::{Notify, watch};
use tonic::Status;
use wire::{
    FEATURES, PROTOCOL_VERSION,
    control::{Redirect, Refusal, SchedulerToPeer, SchedulerWelcome, scheduler_to_peer::Kind},
    convert,
};

/// The messages for one peer. Never blocks whoever fills it.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// There may be something to send.
    filled: Notify,
    /// Whether it was closed.
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    welcome: Option<SchedulerWelcome>,
    /// The latest plan of each artifact that was not sent yet.
    plans: BTreeMap<ArtifactId, PeerPlan>,
    /// Where the peer is to go, that was not sent yet.
    redirect: Option<Redirect>,
    refusal: Option<Refusal>,
    is_closed: bool,
}

impl Outbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), filled: Notify::new(), closed: watch::Sender::new(false) })
    }

    /// Welcomes the peer, before any plan.
    pub(crate) fn welcome(&self, load_interval: Duration) {
        self.change(|state| {
            state.welcome = Some(SchedulerWelcome {
                protocol_version: PROTOCOL_VERSION,
                features: FEATURES,
                load_interval_ms: u32::try_from(load_interval.as_millis()).unwrap_or(u32::MAX),
            });
        });
    }

    /// Replaces what was not sent yet of this artifact.
    pub(crate) fn put(&self, artifact: ArtifactId, plan: PeerPlan) {
        self.change(|state| drop(state.plans.insert(artifact, plan)));
    }

    /// The peer left this swarm: what was not sent yet is void.
    pub(crate) fn forget(&self, artifact: &ArtifactId) {
        self.change(|state| drop(state.plans.remove(artifact)));
    }

    /// Sends the peer to another scheduler. It may stay if it cannot reach that.
    pub(crate) fn redirect(&self, address: String) {
        self.change(|state| state.redirect = Some(Redirect { address }));
    }

    /// Ends the stream. The first call counts.
    pub(crate) fn close(&self, refusal: Option<String>) {
        self.change(|state| {
            if !state.is_closed {
                state.is_closed = true;
                state.plans.clear();
                state.refusal = refusal.map(|reason| Refusal { reason });
            }
        });
        self.closed.send_replace(true);
    }

    /// Ready once it was closed.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// The messages, as the connection takes them; there is one stream of an outbox.
    pub(crate) fn stream(self: Arc<Self>) -> impl Stream<Item = Result<SchedulerToPeer, Status>> + Send {
        stream::unfold(self, |outbox| async move {
            let kind = outbox.next().await?;
            Some((Ok(SchedulerToPeer { kind: Some(kind) }), outbox))
        })
    }

    async fn next(&self) -> Option<Kind> {
        loop {
            {
                let mut state = self.lock();
                if let Some(welcome) = state.welcome.take() {
                    return Some(Kind::Welcome(welcome));
                }
                if let Some(redirect) = state.redirect.take() {
                    return Some(Kind::Redirect(redirect));
                }
                if let Some((artifact, plan)) = state.plans.pop_first() {
                    return Some(Kind::Plan(convert::plan_message(artifact, &plan)));
                }
                if state.is_closed {
                    return state.refusal.take().map(Kind::Refusal);
                }
            }
            self.filled.notified().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(epoch: u64) -> PeerPlan {
        PeerPlan {
            epoch,
            stripe_pieces: 1,
            stripes: Vec::new(),
            members: Vec::new(),
            quarantined: Vec::new(),
            finish: None,
            bound: None,
            priority: planner::Priority::default(),
        }
    }

    #[tokio::test]
    async fn a_slow_peer_gets_the_latest_plan_of_each_artifact_only() {
        let (a, b) = (ArtifactId([1; 32]), ArtifactId([2; 32]));
        let outbox = Outbox::new();
        for epoch in 1..=1000 {
            outbox.put(a, plan(epoch));
        }
        outbox.put(b, plan(7));
        outbox.welcome(Duration::from_secs(1));
        assert!(matches!(outbox.next().await, Some(Kind::Welcome(_))));
        let epochs = [outbox.next().await, outbox.next().await].map(|kind| match kind {
            Some(Kind::Plan(plan)) => plan.epoch,
            other => panic!("{other:?} is no plan"),
        });
        assert_eq!(epochs, [1000, 7]);
        outbox.put(a, plan(1001));
        outbox.forget(&a);
        outbox.welcome(Duration::from_secs(1));
        assert!(matches!(outbox.next().await, Some(Kind::Welcome(_))));
        outbox.put(b, plan(8));
        outbox.close(Some("first".to_owned()));
        outbox.close(Some("second".to_owned()));
        assert_eq!(outbox.next().await, Some(Kind::Refusal(Refusal { reason: "first".to_owned() })));
        assert_eq!(outbox.next().await, None);
        outbox.closed().await;
    }
}
