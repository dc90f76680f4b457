//! The end of a process that others read from.
//!
//! Owns: how long it is put off for reads that are under way. Does not own: what children and scheduler are told
//! (`presence`), or that a child closes its link when its reads have ended (`swarm`).

use std::time::{Duration, Instant};

use crate::presence::Present;

/// A process that lets nobody new in, and serves what children have already asked for. Dropping it cuts them off.
pub struct Leaving(Present);

/// Why a process that leaves has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftBecause {
    /// No child holds a link any more.
    Drained,
    /// The time was over.
    Deadline,
    /// It was told to end at once.
    Told,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Children that were cut off.
    pub cut_off: usize,
    /// How long it took.
    pub after: Duration,
    /// Why not sooner or later.
    pub because: LeftBecause,
}

impl Leaving {
    pub(crate) fn new(present: Present) -> Self {
        Self(present)
    }

    /// How many children hold a link.
    pub fn children(&self) -> usize {
        self.0.children().count()
    }

    /// Serves on until no child holds a link and every client on this machine has heard it, at most so long, or until
    /// `cut` is ready.
    pub async fn drain(mut self, at_most: Duration, cut: impl Future<Output = ()>) -> Left {
        let (start, children) = (Instant::now(), self.0.children().clone());
        let because = tokio::select! {
            biased;
            () = self.0.drained() => LeftBecause::Drained,
            () = cut => LeftBecause::Told,
            () = tokio::time::sleep(at_most) => LeftBecause::Deadline,
        };
        let left = Left { cut_off: children.count(), after: start.elapsed(), because };
        self.0.end().await;
        left
    }
}
