//! The child's end of links: a control stream to a parent, the grant that it keeps alive, and the data link under it.
//!
//! Owns: what happens to a link as its owner sees it, and that it ends exactly once. Does not own: how one is opened
//! (`open`) and kept (`keep`), or what is read over it.

mod control;
mod keep;
mod open;
mod outstanding;
mod windows;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use identity::Voucher;
use modelpack::{
    layout::{BlobIndex, PieceIndex, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{ArtifactId, PeerId, StripeSet};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    task::JoinHandle,
    time::{Instant, timeout},
};
use tonic::Status;
use transport::{CompletionSink, Link, Pacer, Window, tcp};
use wire::{
    WireError,
    connection::{CONNECT_TIMEOUT, explain},
};

use self::windows::Readable;
use crate::{have_feed::Coming, metrics::Metrics, transports::Means};

/// The names of transports, in [`wire::control::LinkHello`].
pub(crate) const TCP: &str = "tcp";
pub(crate) const RDMA: &str = "rdma";

/// How soon it is noticed that bytes come over a data link, and the end of an idle one; reads that are out on it end at
/// once.
const DATA_POLL: Duration = Duration::from_millis(100);

/// What happens to one link.
pub(crate) enum LinkEvent {
    /// It may be read from. First, once, unless it could not be opened.
    Up {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// What is granted.
        grant: GrantedLink,
    },
    /// Pieces that the parent has and that may be read. None is said twice.
    Have {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// The pieces.
        runs: Vec<Run>,
        /// For those that the manifest does not prove one by one: who vouches for them. Nothing is checked yet.
        vouchers: Vec<(PieceIndex, Voucher)>,
    },
    /// The pieces that it reads from the origin have changed; first after its first pieces.
    Coming {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// What it reads from the origin now.
        coming: Coming,
    },
    /// The parent leaves: what was posted may end, and then the owner is to drop the handle. Nothing more is to be posted.
    Leaving {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
    },
    /// Bytes have come over it since it was last said.
    Progress {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
    },
    /// RDMA failed, so that it ended: opened anew it will be one over TCP. Last, once, instead of `Down`.
    Moved {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// Why.
        reason: String,
    },
    /// It ended, or could not be opened. Last, once, unless the handle was dropped.
    Down {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// Why.
        reason: String,
    },
}

/// A link that may be read from.
pub(crate) struct GrantedLink {
    /// The data link.
    pub(crate) link: Arc<dyn Link>,
    /// The parent's files. A blob without a window cannot be read here.
    pub(crate) windows: BTreeMap<BlobIndex, Window>,
    /// Reads outstanding, at most.
    pub(crate) in_flight_max: u32,
    /// What reads keep to, if the parent grants a rate.
    pub(crate) pacer: Option<Arc<Pacer>>,
    /// When the grant ends unless it is renewed, which moves it. No read's deadline may lie beyond.
    pub(crate) expires: watch::Receiver<Instant>,
    /// Why it is one over TCP, where RDMA might have been.
    pub(crate) fallback: Option<String>,
}

/// A link to open.
#[derive(Clone, Debug)]
pub(crate) struct LinkRequest {
    /// This peer.
    pub(crate) me: PeerId,
    /// The parent.
    pub(crate) peer: PeerId,
    /// HOST:PORT of its control service.
    pub(crate) address: String,
    /// What to read.
    pub(crate) artifact: ArtifactId,
    /// Its geometry, which the grant must agree with.
    pub(crate) layout: PieceLayout,
    /// What of it is here.
    pub(crate) here: PieceMap,
    /// The caller's name for this attempt: events of an earlier one may still be on their way.
    pub(crate) generation: u64,
    /// How both connections are made.
    pub(crate) means: Means,
    /// Where it is counted what comes.
    pub(crate) metrics: Arc<Metrics>,
}

/// A link, open or opening. Dropping it ends the control stream and closes the data link, without an event.
#[derive(Debug)]
pub(crate) struct LinkHandle {
    task: JoinHandle<()>,
    words: UnboundedSender<Word>,
}

/// What the owner of a link tells it.
#[derive(Debug)]
enum Word {
    Landed(Run),
    Interest(StripeSet),
}

impl LinkHandle {
    /// These pieces are here now, whoever brought them. Each is to be said once.
    pub(crate) fn landed(&self, run: Run) {
        self.tell(Word::Landed(run));
    }

    /// Of these stripes the parent is to tell at once.
    pub(crate) fn interest(&self, stripes: StripeSet) {
        self.tell(Word::Interest(stripes));
    }

    fn tell(&self, word: Word) {
        // A link that has ended needs no news.
        let _ = self.words.send(word);
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a link. Must be called within a tokio runtime.
pub(crate) fn open_link(
    request: LinkRequest,
    sink: CompletionSink,
    events: UnboundedSender<LinkEvent>,
) -> LinkHandle {
    let child = Child { request, events };
    let (words, told) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let end = child.run(sink, told).await;
        child.say_end(&end);
    });
    LinkHandle { task, words }
}

/// Why a link is down.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("cannot reach the peer: {}", explain(.0))]
    Connect(tonic::transport::Error),
    #[error("the peer did not open the link within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("the control stream failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    #[error("the peer ended the link")]
    Ended,
    #[error("the peer refused: {0}")]
    Refused(String),
    #[error("the peer leaves: {0}")]
    Farewell(String),
    #[error("the peer sent a message that cannot be taken: {0}")]
    Message(#[from] WireError),
    #[error("the data link failed: {}", explain(.0))]
    Data(tcp::ConnectError),
    #[error("the data link ended")]
    DataEnded,
    #[error("there is no RDMA to the peer: {0}")]
    NoRdma(String),
    #[error("the link over RDMA failed")]
    RdmaEnded,
    #[error("the peer refused a window: {0}")]
    Window(String),
    #[error("the grant expired")]
    Expired,
}

impl LinkEnd {
    /// Whether it is RDMA that does not do, and not the peer.
    fn is_of_rdma(&self) -> bool {
        matches!(self, Self::RdmaEnded | Self::Window(_))
    }
}

impl From<Status> for LinkEnd {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

fn invalid(field: &'static str, why: &'static str) -> LinkEnd {
    LinkEnd::Message(WireError::Invalid { field, why })
}

/// The task behind a [`LinkHandle`].
struct Child {
    request: LinkRequest,
    events: UnboundedSender<LinkEvent>,
}

impl Child {
    async fn run(&self, sink: CompletionSink, told: UnboundedReceiver<Word>) -> LinkEnd {
        match timeout(CONNECT_TIMEOUT, self.open(sink)).await {
            Ok(Ok(open)) => match self.keep(open, told).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Ok(Err(end)) => end,
            Err(_) => LinkEnd::Timeout,
        }
    }

    fn say_end(&self, end: &LinkEnd) {
        let (peer, generation, reason) = (self.request.peer, self.request.generation, end.to_string());
        let transports = &self.request.means.transports;
        if end.is_of_rdma() && transports.allow_tcp() {
            transports.demote(peer, reason.clone());
            self.emit(LinkEvent::Moved { peer, generation, reason });
        } else {
            self.emit(LinkEvent::Down { peer, generation, reason });
        }
    }

    fn say_readable(&self, Readable { runs, vouchers }: Readable) {
        let (peer, generation) = (self.request.peer, self.request.generation);
        if !runs.is_empty() {
            self.emit(LinkEvent::Have { peer, generation, runs, vouchers });
        }
    }

    /// An owner that no longer listens has dropped the handle, or is about to.
    fn emit(&self, event: LinkEvent) {
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests;
