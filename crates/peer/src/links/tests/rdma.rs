//! Links over cards of a fabric within this process, and what becomes of those that cannot be.

use memory::Region;
use modelpack::layout::PIECE_BYTES;
use transport::{Level, ReadFault};
use transport_rdma::{Rdma, fake::Fabric};
use wire::control::{WindowRelease, WindowRequest};

use super::*;
use crate::transports::TransportMode;

/// What a process with this card reads into.
struct Card {
    transports: Transports,
    pool: Arc<Pool>,
}

fn card_in(rdma: &Rdma, mode: TransportMode) -> Card {
    let piece = usize::try_from(PIECE_BYTES).unwrap();
    let (transports, pool) = (Transports::over(rdma.clone(), mode), Pool::new(4, piece).unwrap());
    transports.register(pool.region()).unwrap();
    Card { transports, pool }
}

fn card(rdma: &Rdma) -> Card {
    card_in(rdma, TransportMode::Auto)
}

/// Transports of a parent: what it would read into does not matter.
fn parents(rdma: &Rdma) -> Transports {
    let transports = Transports::over(rdma.clone(), TransportMode::Auto);
    transports.register(&Region::anonymous(4096).unwrap()).unwrap();
    transports
}

impl ChildLink {
    fn over(address: SocketAddr, card: &Card) -> Self {
        Self::open_over(address, ARTIFACT, card.transports.clone())
    }

    /// Why it ends in order to be opened anew; it must not have said before that anything can be read.
    async fn moved(&mut self) -> String {
        loop {
            match self.event().await {
                LinkEvent::Moved { peer: PARENT, generation: 5, reason } => return reason,
                LinkEvent::Up { .. } | LinkEvent::Coming { .. } | LinkEvent::Progress { .. } => {}
                LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
                _ => panic!("something can be read"),
            }
        }
    }

    /// Everything that is announced until so many pieces are.
    async fn have_pieces(&mut self, count: u32) -> Vec<Run> {
        let mut runs = Vec::new();
        while runs.iter().map(Run::len).sum::<u32>() < count {
            runs.extend(self.have().await);
        }
        runs.sort_unstable();
        runs
    }

    /// How a read of the first bytes of a blob ends.
    fn read(&self, grant: &GrantedLink, card: &Card, blob: BlobIndex) -> Result<Vec<u8>, ReadFault> {
        let lease = card.pool.try_lease(7).expect("free");
        let (window, deadline) = (grant.windows[&blob].handle, std::time::Instant::now() + LONG);
        let request = ReadRequest { id: 9, window, offset: 0, lease, deadline };
        grant.link.post(request).expect("room");
        let completion = self.completions.recv_timeout(LONG).expect("in time");
        completion.result.map(|filled| filled.to_vec())
    }
}

/// A link between two cards.
struct Linked {
    parent: ParentPeer,
    card: Card,
    child: ChildLink,
    grant: GrantedLink,
}

impl Linked {
    async fn over(fabric: &Fabric) -> Self {
        let parent = ParentPeer::start_over(GRANT_EXPIRY, parents(&fabric.adapter(1))).await;
        let card = card(&fabric.adapter(1));
        let mut child = ChildLink::over(parent.address, &card);
        let grant = child.up().await;
        Self { parent, card, child, grant }
    }
}

async fn until(what: impl Fn() -> bool) {
    in_time(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rdma_is_chosen_where_both_ends_can_and_its_queue_pairs_end_with_the_link() {
    let fabric = Fabric::new();
    let Linked { parent, card, mut child, grant } = Linked::over(&fabric).await;
    assert_eq!((grant.link.level(), &grant.fallback), (Level::Nic, &None));
    parent.have.publish(Run::new(3, 4));
    assert_eq!(child.have_pieces(3).await, [Run::new(0, 2), Run::new(3, 4)]);
    for blob in [BlobIndex(0), BlobIndex(1)] {
        let expect: Vec<u8> = (0..7).map(|at| byte_at(blob.0.into(), at)).collect();
        assert_eq!(child.read(&grant, &card, blob).expect("readable"), expect, "{blob}");
    }
    assert_eq!(fabric.queue_pairs(), 4, "two at each end");
    assert_eq!(parent.children.links_by_transport(), (0, 1));
    drop((child.handle, grant));
    until(|| fabric.queue_pairs() == 0).await;
    in_time(parent.children.gone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_share_a_limit_and_hear_of_it_with_each_renewal() {
    const RATE: u64 = 10 << 20;
    let fabric = Fabric::new();
    let transports = parents(&fabric.adapter(1)).limited(RATE);
    let parent = ParentPeer::start_over(Duration::from_secs(1), transports).await;
    let rate = |grant: &GrantedLink| grant.pacer.as_ref().map(|pacer| pacer.rate());
    let cards = [card(&fabric.adapter(1)), card(&fabric.adapter(1))];
    let mut first = ChildLink::over(parent.address, &cards[0]);
    let alone = first.up().await;
    assert_eq!(rate(&alone), Some(RATE));
    let mut second = ChildLink::over(parent.address, &cards[1]);
    assert_eq!(rate(&second.up().await), Some(RATE / 2));
    until(|| rate(&alone) == Some(RATE / 2)).await;
    // Over TCP it is the parent that keeps to it.
    let over_tcp = ChildLink::open_over(parent.address, ARTIFACT, Transports::tcp()).up().await;
    assert_eq!(rate(&over_tcp), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_one_over_tcp_where_one_end_cannot_and_says_why() {
    let fabric = Fabric::new();
    let (with, without) = (card(&fabric.adapter(1)), Transports::tcp());
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let mut child = ChildLink::over(parent.address, &with);
    let grant = child.up().await;
    assert_eq!(grant.link.level(), Level::Tcp);
    let reason = "the peer does not serve over RDMA: this peer has no RDMA device";
    assert_eq!(grant.fallback.as_deref(), Some(reason));
    child.have().await;

    let parent = ParentPeer::start_over(GRANT_EXPIRY, parents(&fabric.adapter(1))).await;
    let grant = ChildLink::open_over(parent.address, ARTIFACT, without).up().await;
    assert_eq!((grant.link.level(), grant.fallback), (Level::Tcp, None), "it never had a choice");

    // A parent from before RDMA.
    let (_tcp, _, says) = honest().await;
    let grant = ChildLink::over(serve_lies(says).await, &with).up().await;
    assert_eq!(grant.link.level(), Level::Tcp);
    assert_eq!(grant.fallback.as_deref(), Some("the peer does not serve over RDMA: it does not know how"));
    until(|| fabric.queue_pairs() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_do_not_reach_each_other_by_their_cards_use_tcp_and_do_not_try_again_at_once() {
    let fabric = Fabric::new();
    let rdma = fabric.adapter(1);
    let parent = ParentPeer::start_over(GRANT_EXPIRY, parents(&rdma)).await;
    fabric.cut(&rdma.rails()[0].name);
    let card = card(&fabric.adapter(1));
    for _ in 0..2 {
        let mut child = ChildLink::over(parent.address, &card);
        let grant = child.up().await;
        assert_eq!(grant.link.level(), Level::Tcp);
        let reason = grant.fallback.expect("a reason");
        assert!(reason.starts_with("RDMA does not reach the peer: "), "{reason}");
        child.have().await;
        let start = Instant::now();
        drop(child.handle);
        until(|| fabric.queue_pairs() == 0).await;
        assert!(start.elapsed() < LONG);
    }
    assert!(card.transports.is_demoted(PARENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_window_moves_the_link_to_tcp_and_nothing_was_announced_before() {
    let fabric = Fabric::new();
    // Enough for the probe and the parent's own buffers, not for a window.
    let parent = ParentPeer::start_over(GRANT_EXPIRY, parents(&fabric.adapter_with(1, 64 << 10))).await;
    let card = card(&fabric.adapter(1));
    let mut child = ChildLink::over(parent.address, &card);
    let reason = child.moved().await;
    assert!(reason.starts_with("the peer refused a window: "), "{reason}");
    let mut again = ChildLink::over(parent.address, &card);
    let grant = again.up().await;
    assert_eq!((grant.link.level(), grant.fallback), (Level::Tcp, Some(reason)));
    assert_eq!(again.have().await, [Run::new(0, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_fails_moves_the_link_also_when_nothing_is_read() {
    let fabric = Fabric::new();
    let parent = ParentPeer::start_over(GRANT_EXPIRY, parents(&fabric.adapter(1))).await;
    let rdma = fabric.adapter(1);
    let card = card(&rdma);
    let mut child = ChildLink::over(parent.address, &card);
    child.up().await;
    child.have().await;
    fabric.port_down(&rdma.rails()[0].name);
    assert_eq!(child.moved().await, "the link over RDMA failed");
    assert!(card.transports.is_demoted(PARENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_quarantined_loses_its_queue_pairs_and_may_read_over_tcp() {
    let fabric = Fabric::new();
    let Linked { parent, card, mut child, grant } = Linked::over(&fabric).await;
    child.have().await;
    parent.readers.quarantine(&[PARENT]);
    assert!(child.read(&grant, &card, BlobIndex(0)).is_ok(), "another one is");
    parent.readers.quarantine(&[CHILD]);
    let reason = child.down().await;
    assert_eq!(reason, "the peer refused: the scheduler says that this child is quarantined");
    drop((child.handle, grant));
    until(|| fabric.queue_pairs() == 0).await;
    let grant = ChildLink::over(parent.address, &card).up().await;
    let reason = "the peer does not serve over RDMA: the scheduler says that this child is quarantined";
    assert_eq!((grant.link.level(), grant.fallback.as_deref()), (Level::Tcp, Some(reason)));
    parent.readers.quarantine(&[]);
    assert_eq!(ChildLink::over(parent.address, &card).up().await.link.level(), Level::Nic);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_given_back_and_what_is_withdrawn_is_read_no_more() {
    let fabric = Fabric::new();
    let Linked { parent, card, mut child, grant } = Linked::over(&fabric).await;
    parent.have.publish(Run::new(2, 4));
    child.have_pieces(4).await;
    let sources = parent.sources.clone().expect("it has a card");
    assert_eq!(sources.windows_held(), 2);
    child.handle.landed(Run::new(0, 3));
    until(|| sources.windows_held() == 1).await;
    assert!(matches!(child.read(&grant, &card, BlobIndex(0)), Err(ReadFault::Refused)));
    assert!(child.read(&grant, &card, BlobIndex(1)).is_ok(), "the other is still held");

    sources.end();
    assert_eq!(fabric.queue_pairs(), 2, "the parent's are gone at once");
    assert!(matches!(child.read(&grant, &card, BlobIndex(1)), Err(ReadFault::LinkDown(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_given_back_only_when_no_read_is_out_there() {
    let fabric = Fabric::new();
    let Linked { parent, card, mut child, grant } = Linked::over(&fabric).await;
    parent.have.publish(Run::new(2, 4));
    child.have_pieces(4).await;
    let sources = parent.sources.clone().expect("it has a card");
    fabric.script().hold();
    let lease = card.pool.try_lease(7).expect("free");
    let (window, deadline) = (grant.windows[&BlobIndex(0)].handle, std::time::Instant::now() + LONG);
    grant.link.post(ReadRequest { id: 1, window, offset: 0, lease, deadline }).expect("room");
    // The other window goes, which shows that this one was looked at, too.
    child.handle.landed(Run::new(0, 4));
    until(|| sources.windows_held() == 1).await;
    assert!(child.completions.try_recv().is_err());
    fabric.script().release();
    assert!(child.completions.recv_timeout(LONG).expect("in time").result.is_ok());
    until(|| sources.windows_held() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_may_use_nothing_else_refuses_and_is_refused_with_a_reason() {
    let fabric = Fabric::new();
    let strict = card_in(&fabric.adapter(1), TransportMode::Rdma);
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let reason = ChildLink::over(parent.address, &strict).down().await;
    assert_eq!(reason, "the peer refused: this peer serves over `tcp` only");
    let parent = ParentPeer::start_over(GRANT_EXPIRY, strict.transports.clone()).await;
    let reason = ChildLink::open(parent.address).down().await;
    assert_eq!(reason, "the peer refused: this peer serves over `rdma` only: the child offers none");
    let other = card_in(&fabric.adapter(1), TransportMode::Rdma);
    let grant = ChildLink::over(parent.address, &other).up().await;
    assert_eq!(grant.link.level(), Level::Nic, "two of a kind");
}

#[tokio::test]
async fn windows_are_for_links_over_rdma_only() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let windows = vec![control::RdmaWindow { blob: 0, index: 0 }];
    for said in
        [Said::Windows(WindowRequest { windows: windows.clone() }), Said::Release(WindowRelease { windows })]
    {
        let mut child = RawChild::open(parent.address, RawChild::hello()).await;
        let Some(Heard::Welcome(_)) = child.hear().await else { panic!("no welcome") };
        let Some(Heard::Grant(_)) = child.hear().await else { panic!("no grant") };
        child.outgoing.send(ChildToParent { kind: Some(said) }).await.expect("it listens");
        assert_eq!(child.refusal().await, "there are no windows on this link");
    }
    for said in [
        Heard::Window(control::WindowGrant { bytes: 7, rkeys: vec![1], ..Default::default() }),
        Heard::WindowRefusal(control::WindowRefusal::default()),
    ] {
        let (_tcp, _, mut says) = honest().await;
        says.push(said);
        let reason = ChildLink::open(serve_lies(says).await).down().await;
        assert!(reason.contains("a window of a link over TCP"), "{reason}");
    }
}
