//! What is said of RDMA is taken only when every number of it is one that can be.

use wire::{
    WireError, control,
    rdma::{self, Endpoint, GrantedWindow, Network, Probe, WindowId},
};

fn endpoint(rail: u32) -> Endpoint {
    let network = if rail == 0 { Network::InfiniBand } else { Network::RoceIpv6 };
    let lid = if rail == 0 { 7 } else { 0 };
    Endpoint {
        rail,
        queue_pair: 0x00ab_cdef,
        first_packet: 9,
        gid: [3; 16],
        lid,
        mtu_bytes: 4096,
        network,
        reads_in_flight_max: 16,
    }
}

fn probe() -> Probe {
    Probe { address: 4096, rkeys: vec![1, u32::MAX], value: [5; 32] }
}

#[test]
fn ends_and_the_probe_survive_the_wire() {
    let ends = [endpoint(0), endpoint(1)];
    assert_eq!(rdma::endpoints(&rdma::endpoint_messages(&ends)).expect("our own"), ends);
    assert_eq!(rdma::endpoints(&[]).expect("no offer"), []);
    let message = rdma::answer_message(&ends, &probe());
    let (back, read_first) = rdma::answer(&message).expect("our own");
    assert!((back.as_slice(), read_first) == (&ends[..], probe()));
}

fn changed(change: impl FnOnce(&mut control::RdmaAnswer)) -> Result<(), WireError> {
    let mut message = rdma::answer_message(&[endpoint(0), endpoint(1)], &probe());
    change(&mut message);
    rdma::answer(&message).map(drop)
}

type Change = fn(&mut control::RdmaAnswer);

#[test]
fn an_answer_that_breaks_a_rule_is_refused() {
    let changes: &[(&str, Change)] = &[
        ("no end", |a| a.endpoints.clear()),
        ("no read at all", |a| a.endpoints[0].reads_in_flight_max = 0),
        ("reads beyond a byte", |a| a.endpoints[0].reads_in_flight_max = 256),
        ("a short address", |a| a.endpoints[0].gid.truncate(15)),
        ("a queue pair of 25 bits", |a| a.endpoints[0].queue_pair = 1 << 24),
        ("a packet of 25 bits", |a| a.endpoints[0].first_packet = 1 << 24),
        ("a lid of 17 bits", |a| a.endpoints[0].lid = 1 << 16),
        ("an MTU between two", |a| a.endpoints[0].mtu_bytes = 1500),
        ("a rail too many", |a| a.endpoints[0].rail = 32),
        ("no network", |a| a.endpoints[0].network = 0),
        ("a network of the future", |a| a.endpoints[0].network = 99),
        ("no probe", |a| a.probe = None),
        ("a short value", |a| a.probe.as_mut().expect("set").value.truncate(31)),
        ("no key", |a| a.probe.as_mut().expect("set").rkeys.clear()),
        ("too many keys", |a| a.probe.as_mut().expect("set").rkeys = vec![1; 33]),
    ];
    for (what, change) in changes {
        assert!(changed(*change).is_err(), "{what} was taken");
    }
    changed(|_| {}).expect("nothing was changed");
    let many = vec![control::RdmaEndpoint::from(&endpoint(0)); rdma::ENDPOINTS_MAX + 1];
    assert!(rdma::endpoints(&many).is_err());
}

#[test]
fn windows_are_some_and_none_twice_and_end_somewhere() {
    let ids = [WindowId { blob: 0, index: 3 }, WindowId { blob: 2, index: 0 }];
    assert_eq!(rdma::window_ids(&rdma::window_messages(&ids)).expect("two"), ids);
    assert!(rdma::window_ids(&[]).is_err());
    assert!(rdma::window_ids(&rdma::window_messages(&[ids[0], ids[1], ids[0]])).is_err());
    let many: Vec<_> = (0..=256).map(|index| WindowId { blob: 0, index }).collect();
    assert!(rdma::window_ids(&rdma::window_messages(&many)).is_err());

    let window = GrantedWindow { id: ids[0], address: 1 << 40, bytes: 5, rkeys: vec![8] };
    let message = rdma::grant_message(&window);
    assert!(rdma::granted_window(&message).expect("our own") == window);
    for wrong in [
        control::WindowGrant { bytes: 0, ..message.clone() },
        control::WindowGrant { address: u64::MAX, ..message.clone() },
        control::WindowGrant { rkeys: Vec::new(), ..message.clone() },
    ] {
        assert!(rdma::granted_window(&wrong).is_err());
    }
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let window =
        GrantedWindow { id: WindowId { blob: 0, index: 0 }, address: 1, bytes: 1, rkeys: vec![77_777] };
    assert!(!format!("{:?}", rdma::grant_message(&window)).contains("77777"));
    let probe = Probe { rkeys: vec![77_777], ..probe() };
    assert!(!format!("{:?}", rdma::answer_message(&[], &probe)).contains("77777"));
}

/// What peers before RDMA knew of a link's first messages.
mod before {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Hello {
        #[prost(uint32, tag = "1")]
        pub(super) protocol_version: u32,
        #[prost(string, repeated, tag = "5")]
        pub(super) transports: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ChildToParent {
        #[prost(oneof = "Kind", tags = "1")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Hello(Hello),
    }
}

#[test]
fn a_peer_from_before_rdma_takes_an_offer_for_a_plain_hello_and_no_notice_of_windows() {
    use prost::Message as _;
    let hello = control::LinkHello {
        protocol_version: 1,
        transports: vec!["tcp".into(), "rdma".into()],
        rdma: rdma::endpoint_messages(&[endpoint(1)]),
        ..Default::default()
    };
    let kind = Some(control::child_to_parent::Kind::Hello(hello));
    let bytes = control::ChildToParent { kind }.encode_to_vec();
    let heard = before::ChildToParent::decode(&*bytes).expect("unknown fields are skipped");
    let Some(before::Kind::Hello(heard)) = heard.kind else { panic!("a hello") };
    assert_eq!((heard.protocol_version, heard.transports.len()), (1, 2));
    let windows = rdma::window_messages(&[WindowId { blob: 0, index: 0 }]);
    let kind = control::child_to_parent::Kind::Windows(control::WindowRequest { windows });
    let bytes = control::ChildToParent { kind: Some(kind) }.encode_to_vec();
    assert_eq!(before::ChildToParent::decode(&*bytes).expect("decodes").kind, None);
}
