//! What a scheduler says of its fleet is taken only when every length, count and number is right.

use std::time::Duration;

use planner::{
    Alarm, AlarmStatus, ArtifactId, Charge, PeerId, PeerStatus, Priority, Standing, SwarmStatus,
    capacity::{Foreign, Learned},
};
use wire::{
    WireError,
    control::StatusReply,
    status::{ALARMS_MAX, FleetStatus, PEERS_MAX, SWARMS_MAX},
};

fn status() -> FleetStatus {
    let (peer, name, address) = (PeerId::new([1; 16]), "node-1".to_owned(), "10.0.0.1:7200".to_owned());
    let standing = Standing::Quarantined;
    let alarm = Alarm {
        peer,
        name: name.clone(),
        address: address.clone(),
        standing,
        charge: Some(Charge::WrongBytes),
        accusers: 2,
        last_accused: Duration::ZERO,
    };
    let age = Duration::from_millis(1500);
    let learned = Some(Learned { rate: 9, is_full: true, age });
    let foreign = Some(Foreign { sent: 3, received: 4, age });
    let nic_rate = Some(7);
    let peer = PeerStatus { peer, name, address, nic_rate, learned, foreign, sent: 5, received: 6, standing };
    let swarm = SwarmStatus {
        artifact: ArtifactId([7; 32]),
        bytes: 1 << 40,
        members: 3,
        complete: 1,
        seeds: 1,
        permille: 1000,
        priority: Priority::Low,
    };
    let (accused_ago, left) = (Duration::from_secs(3), Duration::from_millis(1));
    FleetStatus {
        redirect: Some("10.0.0.2:7100".to_owned()),
        peers: vec![
            PeerStatus {
                nic_rate: None,
                learned: None,
                foreign: None,
                standing: Standing::Suspect,
                ..peer.clone()
            },
            peer,
        ],
        peer_count: 9,
        swarms: vec![swarm],
        swarm_count: 8,
        alarms: vec![AlarmStatus { alarm, accused_ago, left }],
        alarm_count: 7,
    }
}

#[test]
fn a_status_survives_the_wire() {
    let alone = FleetStatus { redirect: None, ..status() };
    for status in [status(), alone] {
        assert_eq!(FleetStatus::try_from(StatusReply::from(&status)).expect("our own status"), status);
    }
}

type Change = fn(&mut StatusReply);

#[test]
fn a_status_that_breaks_a_rule_is_refused() {
    let changes: &[(&str, Change)] = &[
        ("another version", |s| s.protocol_version += 1),
        ("a redirect to nowhere", |s| s.redirect = "nowhere".to_owned()),
        ("a short peer", |s| s.peers[0].peer_id.truncate(15)),
        ("a name that moves the cursor", |s| s.peers[0].name = "\u{1b}[2J".to_owned()),
        ("an address without a port", |s| s.peers[0].control_address = "10.0.0.1".to_owned()),
        ("an unknown standing", |s| s.peers[0].standing = 3),
        ("a short artifact", |s| s.swarms[0].artifact.truncate(31)),
        ("more than all of it", |s| s.swarms[0].permille = 1001),
        ("an alarm about nobody", |s| s.alarms[0].peer_id.clear()),
        ("an alarm of an unknown standing", |s| s.alarms[0].standing = -1),
        ("an alarm of an unknown charge", |s| s.alarms[0].charge = 3),
        ("a long name in an alarm", |s| s.alarms[0].name = "n".repeat(129)),
        ("too many peers", |s| s.peers = vec![s.peers[0].clone(); PEERS_MAX + 1]),
        ("too many swarms", |s| s.swarms = vec![s.swarms[0].clone(); SWARMS_MAX + 1]),
        ("too many alarms", |s| s.alarms = vec![s.alarms[0].clone(); ALARMS_MAX + 1]),
    ];
    for (what, change) in changes {
        let mut reply = StatusReply::from(&status());
        change(&mut reply);
        let refused: Result<FleetStatus, WireError> = reply.try_into();
        assert!(refused.is_err(), "{what}: {refused:?}");
    }
}

#[test]
fn the_longest_lists_fit_one_message() {
    use prost::Message as _;
    let (mut status, long) = (status(), "a".repeat(254));
    let peer =
        PeerStatus { name: "n".repeat(128), address: format!("{long}:65535"), ..status.peers[1].clone() };
    let age = Duration::from_hours(24 * 365);
    let (learned, foreign) =
        (Learned { rate: u64::MAX, is_full: true, age }, Foreign { sent: u64::MAX, received: u64::MAX, age });
    let (learned, foreign) = (Some(learned), Some(foreign));
    let peer =
        PeerStatus { nic_rate: Some(u64::MAX), learned, foreign, sent: u64::MAX, received: u64::MAX, ..peer };
    status.alarms[0].alarm.name.clone_from(&peer.name);
    status.alarms[0].alarm.address.clone_from(&peer.address);
    status.peers = vec![peer; PEERS_MAX];
    status.swarms = vec![status.swarms[0]; SWARMS_MAX];
    status.alarms = vec![status.alarms[0].clone(); ALARMS_MAX];
    let reply = StatusReply::from(&status);
    assert!(reply.encoded_len() <= wire::connection::MESSAGE_BYTES_MAX, "{}", reply.encoded_len());
    FleetStatus::try_from(reply).expect("as long as may be");
}
