//! A parent's end of a link over RDMA: the child's offer is answered, windows are pinned one after another.
//!
//! Owns: how many windows a child may hold, and that pinning, which takes its time, holds up neither renewals nor news.
//! Does not own: which bytes of a window count, or the queue pairs' end (`sources`).

use std::{collections::VecDeque, future::pending, pin::Pin, sync::Arc};

use transport_rdma::{Endpoint, RemoteWindow};
use wire::{
    connection::explain,
    control::{RdmaAnswer, WindowGrant, WindowRefusal},
    rdma::{self, WINDOWS_MAX, WindowId},
};

use super::Share;
use crate::{
    fill::blocking,
    rdma_words,
    sources::{Reader, Sources},
    transports::Transports,
};

/// Windows that a child may hold: some more than one of this version does. What it could pin beyond would be missing for
/// other children.
const HELD_MAX: usize = 64;

type Pinning = Pin<Box<dyn Future<Output = Result<RemoteWindow, String>> + Send>>;

/// What a child reads over RDMA.
pub(super) struct Windows {
    reader: Reader,
    sources: Sources,
    asked: VecDeque<WindowId>,
    pinning: Option<(WindowId, Pinning)>,
}

/// What is said of one window.
pub(super) enum Said {
    Grant(WindowGrant),
    Refusal(WindowRefusal),
}

/// Connects to what a child offers; says why not otherwise.
pub(super) async fn answer(
    transports: &Transports,
    offer: Vec<Endpoint>,
    share: &Share,
) -> Result<(RdmaAnswer, Windows), String> {
    let rdma = transports.rdma().ok_or("this peer has no RDMA device")?.clone();
    let sources = share.sources.clone().ok_or("the artifact is not served over RDMA")?;
    let serving = blocking(move || rdma.serve(&offer)).await.map_err(|error| explain(&error))?;
    let endpoints: Vec<_> = serving.endpoints().iter().map(rdma_words::endpoint).collect();
    let answer = rdma::answer_message(&endpoints, &rdma_words::probe(serving.probe()));
    let reader = sources.enter(serving).ok_or("the artifact is being withdrawn")?;
    Ok((answer, Windows { reader, sources, asked: VecDeque::new(), pinning: None }))
}

impl Windows {
    /// The child wants these. False if it wants more than may ever be.
    pub(super) fn ask(&mut self, ids: Vec<WindowId>) -> bool {
        self.asked.extend(ids);
        self.asked.len() <= WINDOWS_MAX
    }

    /// The child reads these no more.
    pub(super) fn release(&mut self, ids: &[WindowId]) {
        for WindowId { blob, index } in ids {
            if let Some(handle) = self.sources.handle(*blob) {
                self.reader.serving.release(handle, *index);
            }
        }
    }

    /// What is to be said of the next window, when it is known. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Said {
        if self.pinning.is_none() {
            let Some(id) = self.asked.pop_front() else { return pending().await };
            self.pinning = Some((id, self.pin(id)));
        }
        let Some((id, pinning)) = &mut self.pinning else { return pending().await };
        let (id, pinned) = (*id, pinning.await);
        self.pinning = None;
        match pinned {
            Ok(window) => Said::Grant(rdma::grant_message(&rdma_words::window(id.blob, window))),
            Err(reason) => Said::Refusal(WindowRefusal { blob: id.blob, index: id.index, reason }),
        }
    }

    fn pin(&self, id: WindowId) -> Pinning {
        let refused = |reason: &str| Box::pin(std::future::ready(Err(reason.to_owned()))) as Pinning;
        if self.reader.serving.windows_held() >= HELD_MAX {
            return refused("the child holds as many windows as it may");
        }
        let Some(source) = self.sources.source(id.blob) else {
            return refused("there is no such file, or it has changed");
        };
        let serving = Arc::clone(&self.reader.serving);
        Box::pin(async move {
            blocking(move || serving.window(&source, id.index).map_err(|error| explain(&error))).await
        })
    }
}
