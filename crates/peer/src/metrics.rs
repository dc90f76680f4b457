//! What a peer shows of itself on `/metrics` and `/healthz`.
//!
//! Owns: the counters of the whole process, and the names of its numbers. Does not own: those of one transfer
//! (`progress`), which count into these.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use planner::{Charge, Priority};
use telemetry::{Health, Page, Sample, Watched};
use transport::{Level, tcp};

use crate::{
    children::Children,
    lanes::{Direction, Lanes},
    node::Node,
};

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CameFrom {
    /// A registry, or a layout on disk.
    Origin,
    /// A peer that announces a local artifact.
    Seed(Level),
    /// Another peer.
    Peer(Level),
}

/// The counters of one process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    from_origin: AtomicU64,
    /// Over links, of pieces that are not whole as well.
    arrived: AtomicU64,
    from_seeds: ByLevel,
    from_peers: ByLevel,
    was_here: AtomicU64,
    links: ByLevel,
    /// Parents that have reads of this process to answer, once for each download.
    parents_asked: AtomicI64,
    fallbacks: AtomicU64,
    stalls: AtomicU64,
    refused_pieces: AtomicU64,
    wrong_bytes: AtomicU64,
    silences: AtomicU64,
    begun: AtomicU64,
    finished: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    /// The bits of the last ratio to the bound; 0 as long as there is none.
    ratio: AtomicU64,
    is_leaving: AtomicBool,
    /// What clients of the mirrors got.
    mirrored_bytes: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
}

/// What became of a client's question to a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Refused,
    /// The registry or hub cannot be asked.
    Unanswered,
}

/// A count for each way in which bytes travel between peers.
#[derive(Debug, Default)]
struct ByLevel {
    tcp: AtomicU64,
    rdma: AtomicU64,
}

impl ByLevel {
    fn at(&self, level: Level) -> &AtomicU64 {
        match level {
            Level::Tcp => &self.tcp,
            Level::Nic => &self.rdma,
        }
    }
}

impl Metrics {
    /// All that has come, of pieces that are on their way as well: what a card counts beside it is not this process's.
    pub(crate) fn received(&self) -> u64 {
        read(&self.from_origin) + read(&self.arrived)
    }

    /// Bytes came over a link, perhaps no whole piece.
    pub(crate) fn arrived(&self, bytes: u64) {
        add(&self.arrived, bytes);
    }

    /// So many more parents have reads to answer.
    pub(crate) fn asks(&self, parents: i64) {
        self.parents_asked.fetch_add(parents, Ordering::Relaxed);
    }

    pub(crate) fn parents_asked(&self) -> i64 {
        self.parents_asked.load(Ordering::Relaxed)
    }

    /// A link over RDMA failed and was opened anew over TCP.
    pub(crate) fn fell_back(&self) {
        add(&self.fallbacks, 1);
    }

    pub(crate) fn came(&self, from: CameFrom, bytes: u64) {
        let counter = match from {
            CameFrom::Origin => &self.from_origin,
            CameFrom::Seed(level) => self.from_seeds.at(level),
            CameFrom::Peer(level) => self.from_peers.at(level),
        };
        add(counter, bytes);
    }

    pub(crate) fn was_here(&self, bytes: u64) {
        add(&self.was_here, bytes);
    }

    /// So many parents were given up because they brought nothing for too long.
    pub(crate) fn stalled(&self, parents: u64) {
        add(&self.stalls, parents);
    }

    #[cfg(test)]
    pub(crate) fn refused_pieces(&self) -> u64 {
        read(&self.refused_pieces)
    }

    /// A piece was not what it should be.
    pub(crate) fn refused_piece(&self) {
        add(&self.refused_pieces, 1);
    }

    /// Another peer is accused before the scheduler.
    pub(crate) fn accused(&self, charge: Charge) {
        let counter = match charge {
            Charge::WrongBytes => &self.wrong_bytes,
            Charge::Silence => &self.silences,
        };
        add(counter, 1);
    }

    /// A client of a mirror asked something.
    pub(crate) fn asked(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Answered => &self.answered,
            Outcome::Refused => &self.refused,
            Outcome::Unanswered => &self.unanswered,
        };
        add(counter, 1);
    }

    /// A client of a mirror got bytes of a file.
    pub(crate) fn mirrored(&self, bytes: u64) {
        add(&self.mirrored_bytes, bytes);
    }

    /// A pull took so much time of that which it needs at least.
    pub(crate) fn took(&self, elapsed: Duration, bound: Option<Duration>) {
        if let Some(bound) = bound.filter(|bound| !bound.is_zero()) {
            let ratio = elapsed.as_secs_f64() / bound.as_secs_f64();
            self.ratio.store(ratio.to_bits(), Ordering::Relaxed);
        }
    }

    /// From now on it is on its way out.
    pub(crate) fn leaves(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A link to a parent, which counts from when it is up until it is dropped.
#[derive(Debug)]
pub(crate) struct LinkCount {
    metrics: Arc<Metrics>,
    /// How it carries bytes, once it is up.
    level: Option<Level>,
}

impl LinkCount {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), level: None }
    }

    pub(crate) fn up(&mut self, level: Level) {
        if self.level.is_none() {
            self.level = Some(level);
            add(self.metrics.links.at(level), 1);
        }
    }
}

impl Drop for LinkCount {
    fn drop(&mut self) {
        if let Some(level) = self.level {
            self.metrics.links.at(level).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A transfer under way. Dropped before it has ended, it was cancelled.
#[derive(Debug)]
pub(crate) struct Running {
    metrics: Arc<Metrics>,
    has_ended: bool,
}

impl Running {
    pub(crate) fn begin(metrics: &Arc<Metrics>) -> Self {
        add(&metrics.begun, 1);
        Self { metrics: Arc::clone(metrics), has_ended: false }
    }

    pub(crate) fn end<T, E>(mut self, result: &Result<T, E>) {
        add(if result.is_ok() { &self.metrics.finished } else { &self.metrics.failed }, 1);
        self.has_ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended {
            add(&self.metrics.cancelled, 1);
        }
    }
}

/// A peer process, as whoever watches it reads it.
pub(crate) struct Watch {
    pub(crate) node: Arc<Node>,
    pub(crate) children: Children,
    pub(crate) data: tcp::Server,
}

impl Watched for Watch {
    fn metrics(&self) -> String {
        let metrics = self.node.metrics();
        let mut page = Page::new();
        let build: Sample<'_> = (&[("role", "peer"), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
        page.gauge("modelctl_build_info", "Always 1.", &[build]);
        traffic(&mut page, metrics, self.data.sent_bytes());
        let (children, over_rdma) = self.children.links_by_transport();
        let links: &[Sample<'_>] = &[
            (&[("to", "parent"), ("transport", "tcp")], as_f64(read(&metrics.links.tcp))),
            (&[("to", "parent"), ("transport", "rdma")], as_f64(read(&metrics.links.rdma))),
            (&[("to", "child"), ("transport", "tcp")], as_f64(children as u64)),
            (&[("to", "child"), ("transport", "rdma")], as_f64(over_rdma as u64)),
        ];
        page.gauge("modelctl_peer_links", "Links that are up.", links);
        if let Some(limit) = self.node.means().transports.limit() {
            rates(&mut page, limit.now());
        }
        held(&mut page, self.node.lanes());
        transfers(&mut page, metrics);
        trouble(&mut page, metrics);
        mirrors(&mut page, metrics);
        if self.node.is_in_fleet() {
            let is_there = f64::from(u8::from(self.node.is_planned()));
            let help = "1 if it is connected to a scheduler, 0 if none is reachable.";
            page.gauge("modelctl_peer_scheduler_connected", help, &[(&[], is_there)]);
        }
        let help = "Artifacts that others may read here.";
        page.gauge("modelctl_peer_shared_artifacts", help, &[(&[], as_f64(self.node.shared_count() as u64))]);
        page.finish()
    }

    /// Without a scheduler it serves all the same.
    fn health(&self) -> Health {
        if self.node.metrics().is_leaving.load(Ordering::Relaxed) {
            return Health::Unready("leaving");
        }
        let is_alone = self.node.is_without_scheduler();
        Health::Serving(if is_alone { "serving, without a scheduler" } else { "serving" })
    }
}

fn traffic(page: &mut Page, metrics: &Metrics, sent: u64) {
    let received: &[Sample<'_>] = &[
        (&[("source", "origin"), ("transport", "http")], as_f64(read(&metrics.from_origin))),
        (&[("source", "seed"), ("transport", "tcp")], as_f64(read(&metrics.from_seeds.tcp))),
        (&[("source", "seed"), ("transport", "rdma")], as_f64(read(&metrics.from_seeds.rdma))),
        (&[("source", "peer"), ("transport", "tcp")], as_f64(read(&metrics.from_peers.tcp))),
        (&[("source", "peer"), ("transport", "rdma")], as_f64(read(&metrics.from_peers.rdma))),
    ];
    let help = "Bytes of blobs that were received, those that were discarded included.";
    page.counter("modelctl_peer_received_bytes_total", help, received);
    let help = "Bytes of blobs that transfers found on this machine.";
    page.counter("modelctl_peer_found_bytes_total", help, &[(&[], as_f64(read(&metrics.was_here)))]);
    let help = "Bytes of blobs that were sent to other peers.";
    page.counter("modelctl_peer_sent_bytes_total", help, &[(&[("transport", "tcp")], as_f64(sent))]);
}

/// What may be sent and received, where the cards are not free.
fn rates(page: &mut Page, [sending, receiving]: [Option<u64>; 2]) {
    let sample = |direction, rate: Option<u64>| Some(([("direction", direction)], as_f64(rate?)));
    let rates = [sample("sent", sending), sample("received", receiving)];
    let samples: Vec<Sample<'_>> = rates.iter().flatten().map(|(label, rate)| (&label[..], *rate)).collect();
    if !samples.is_empty() {
        let help = "What it may move now: by its limit, or beside others on the network card.";
        page.gauge("modelctl_peer_allowed_bytes_per_second", help, &samples);
    }
}

/// What waits for more urgent artifacts, if anything.
fn held(page: &mut Page, lanes: &Lanes) {
    let directions = [("sent", Direction::Sent), ("received", Direction::Received)];
    let of = |priority: Priority| {
        directions.map(|(name, direction)| {
            let labels = [("priority", priority.name()), ("direction", name)];
            Some((labels, as_f64(lanes.held(priority, direction)?)))
        })
    };
    let rates: Vec<_> = Priority::ALL.into_iter().flat_map(of).flatten().collect();
    let samples: Vec<Sample<'_>> = rates.iter().map(|(labels, rate)| (&labels[..], *rate)).collect();
    if !samples.is_empty() {
        let help = "What less urgent artifacts may move now beside more urgent ones.";
        page.gauge("modelctl_peer_held_bytes_per_second", help, &samples);
    }
}

fn transfers(page: &mut Page, metrics: &Metrics) {
    let ended: &[Sample<'_>] = &[
        (&[("result", "finished")], as_f64(read(&metrics.finished))),
        (&[("result", "failed")], as_f64(read(&metrics.failed))),
        (&[("result", "cancelled")], as_f64(read(&metrics.cancelled))),
    ];
    let help = "Artifacts that began to be brought into the store.";
    page.counter("modelctl_peer_transfers_begun_total", help, &[(&[], as_f64(read(&metrics.begun)))]);
    page.counter("modelctl_peer_transfers_ended_total", "Those that have ended, and how.", ended);
    let ratio = f64::from_bits(read(&metrics.ratio));
    if ratio > 0.0 {
        let help = "Time of the last transfer, as a multiple of the least that the members' rates allow.";
        page.gauge("modelctl_peer_bound_ratio", help, &[(&[], ratio)]);
    }
}

fn mirrors(page: &mut Page, metrics: &Metrics) {
    let asked: &[Sample<'_>] = &[
        (&[("result", "answered")], as_f64(read(&metrics.answered))),
        (&[("result", "refused")], as_f64(read(&metrics.refused))),
        (&[("result", "unanswered")], as_f64(read(&metrics.unanswered))),
    ];
    let help = "Questions of clients for which this peer is a registry or a hub, and what they came to.";
    page.counter("modelctl_peer_mirror_questions_total", help, asked);
    let help = "Bytes of files that those clients got.";
    let sent = as_f64(read(&metrics.mirrored_bytes));
    page.counter("modelctl_peer_mirror_sent_bytes_total", help, &[(&[], sent)]);
}

fn trouble(page: &mut Page, metrics: &Metrics) {
    let help = "Links over RDMA that failed and were opened anew over TCP.";
    page.counter("modelctl_peer_rdma_fallbacks_total", help, &[(&[], as_f64(read(&metrics.fallbacks)))]);
    let help = "Parents that were given up because they brought nothing for too long.";
    page.counter("modelctl_peer_stalls_total", help, &[(&[], as_f64(read(&metrics.stalls)))]);
    let help = "Pieces that were not what they should be, whoever sent them.";
    page.counter("modelctl_peer_refused_pieces_total", help, &[(&[], as_f64(read(&metrics.refused_pieces)))]);
    let accusations: &[Sample<'_>] = &[
        (&[("charge", "wrong_bytes")], as_f64(read(&metrics.wrong_bytes))),
        (&[("charge", "silence")], as_f64(read(&metrics.silences))),
    ];
    let help = "Times that this peer accused another one before the scheduler.";
    page.counter("modelctl_peer_accusations_total", help, accusations);
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are nine petabytes; beyond, a count is rounded")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use identity::{ReaderKey, Security};
    use planner::PeerId;
    use transport::Exports;

    use super::*;
    use crate::transports::Means;

    async fn watch() -> Watch {
        let node = Node::new(ReaderKey::generate().unwrap(), Means::default(), Exports::new()).unwrap();
        let at = "127.0.0.1:0".parse().unwrap();
        let data = tcp::Server::bind(at, Exports::new(), Security::Plain).await.unwrap();
        Watch { node, children: Children::none(), data }
    }

    #[tokio::test]
    async fn whoever_leaves_is_not_ready_any_more() {
        let watch = watch().await;
        assert_eq!(watch.health(), Health::Serving("serving"));
        assert!(!watch.metrics().contains("scheduler_connected"), "it belongs to no fleet");
        watch.node.metrics().leaves();
        assert_eq!(watch.health(), Health::Unready("leaving"));
    }

    #[tokio::test]
    async fn a_child_that_reads_two_artifacts_has_two_links() {
        let watch = watch().await;
        let links = |count| {
            let line = format!("modelctl_peer_links{{to=\"child\",transport=\"tcp\"}} {count}\n");
            assert!(watch.metrics().contains(&line), "{}", watch.metrics());
        };
        let [one, other] = [1, 2].map(|byte| PeerId::new([byte; 16]));
        let grants = [one, one, other].map(|child| watch.children.enter(child).unwrap());
        links(3);
        drop(grants);
        links(0);
    }

    #[test]
    fn a_transfer_that_is_dropped_was_cancelled() {
        let metrics = Arc::<Metrics>::default();
        drop(Running::begin(&metrics));
        Running::begin(&metrics).end(&Ok::<_, ()>(()));
        Running::begin(&metrics).end(&Err::<(), _>(()));
        let counts = [&metrics.begun, &metrics.cancelled, &metrics.finished, &metrics.failed].map(read);
        assert_eq!(counts, [3, 1, 1, 1]);
    }

    #[test]
    fn a_link_counts_once_and_only_while_it_is_up() {
        let metrics = Arc::<Metrics>::default();
        let (mut link, never_up) = (LinkCount::new(&metrics), LinkCount::new(&metrics));
        let counts = || [&metrics.links.tcp, &metrics.links.rdma].map(read);
        link.up(Level::Nic);
        link.up(Level::Nic);
        drop(never_up);
        assert_eq!(counts(), [0, 1]);
        drop(link);
        assert_eq!(counts(), [0, 0]);
    }

    #[test]
    fn a_ratio_is_of_a_bound_that_is_known() {
        let metrics = Metrics::default();
        metrics.took(Duration::from_secs(3), None);
        metrics.took(Duration::from_secs(3), Some(Duration::ZERO));
        assert_eq!(read(&metrics.ratio), 0);
        metrics.took(Duration::from_secs(3), Some(Duration::from_secs(2)));
        let mut page = Page::new();
        transfers(&mut page, &metrics);
        assert!(page.finish().ends_with("\nmodelctl_peer_bound_ratio 1.5\n"));
    }
}
