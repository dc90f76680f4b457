//! Messages become core types only when every length, count and range is right.

use std::time::Duration;

use modelpack::layout::{PIECES_MAX, Run};
use planner::{
    ArtifactId, Before, Contact, Member, PeerId, PeerPlan, Place, StripePart, StripeSet, StripeSource,
};
use wire::{
    FEATURE_RATES, FEATURE_SCHEDULERS, FEATURES, PROTOCOL_VERSION, WireError, check_version, control, convert,
};

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

fn id(n: u8) -> PeerId {
    PeerId::new([n; 16])
}

fn member(n: u8) -> Member {
    Member {
        id: id(n),
        contact: Contact::new(format!("10.0.0.{n}:7000"), format!("node-{n}")),
        is_seed: n == 3,
        is_far: n == 2,
    }
}

fn plan() -> PeerPlan {
    PeerPlan {
        epoch: 4,
        stripe_pieces: 2,
        stripes: vec![
            StripePart {
                source: StripeSource::Origin,
                backups: vec![id(2)],
                before: vec![Before { peer: id(2), epoch: 6 }],
            },
            StripePart { source: StripeSource::Parent(id(1)), backups: vec![id(2), id(3)], before: vec![] },
            StripePart { source: StripeSource::None, backups: vec![], before: vec![] },
        ],
        members: vec![member(1), member(2), member(3)],
        quarantined: vec![PeerId::new([9; 16])],
        finish: Some(Duration::from_millis(1500)),
        bound: None,
        priority: planner::Priority::High,
    }
}

/// What comes of the plan's message after `change`.
fn changed(change: impl FnOnce(&mut control::Plan)) -> Result<(ArtifactId, PeerPlan), WireError> {
    let mut message = convert::plan_message(ARTIFACT, &plan());
    change(&mut message);
    convert::plan(message)
}

#[test]
fn an_interest_survives_the_wire_and_is_some_of_the_stripes() {
    let set = StripeSet::new(4, 16, 0b1001).unwrap();
    assert_eq!(StripeSet::try_from(control::Interest::from(set)).unwrap(), set);
    for (stripe_pieces, stripe_count) in [(0, 16), (4, 0), (4, 65)] {
        let message = control::Interest { stripe_pieces, stripe_count, stripes: 1 };
        assert!(StripeSet::try_from(message).is_err(), "{stripe_pieces} {stripe_count}");
    }
}

#[test]
fn a_plan_survives_the_wire() {
    let (artifact, back) = changed(|_| {}).expect("our own plan");
    assert_eq!((artifact, back), (ARTIFACT, plan()));
}

type Change = fn(&mut control::Plan);

#[test]
fn a_plan_that_breaks_a_rule_is_refused() {
    let changes: &[(&str, Change)] = &[
        ("a short artifact", |p| p.artifact.truncate(31)),
        ("a long artifact", |p| p.artifact.push(0)),
        ("no stripe", |p| {
            p.stripes.clear();
            p.stripe_count = 0;
        }),
        ("another count of stripes", |p| p.stripe_count += 1),
        ("more stripes than may be", |p| {
            p.stripes = vec![control::StripePart::default(); convert::STRIPES_MAX + 1];
            p.stripe_count = u32::try_from(p.stripes.len()).expect("small");
        }),
        ("stripes of no piece", |p| p.stripe_pieces = 0),
        ("stripes of too many pieces", |p| p.stripe_pieces = u32::MAX),
        ("a parent beside the origin", |p| p.stripes[1].from_origin = true),
        ("a parent's id of 15 bytes", |p| p.stripes[1].parent.truncate(15)),
        ("a parent who is no member", |p| p.stripes[1].parent = vec![9; 16]),
        ("a backup who is no member", |p| p.stripes[1].backups[0] = vec![9; 16]),
        ("too many backups", |p| p.stripes[1].backups = vec![vec![2; 16]; convert::BACKUPS_MAX + 1]),
        ("a member twice", |p| p.members[1] = p.members[0].clone()),
        ("too many members", |p| p.members = vec![p.members[0].clone(); convert::MEMBERS_MAX + 1]),
        ("an address without a port", |p| p.members[0].control_address = "10.0.0.1".into()),
        ("a name with an escape", |p| p.members[0].name = "\u{1b}[2J".into()),
        ("a time below zero", |p| p.finish_seconds = -1.0),
        ("no number for a time", |p| p.bound_seconds = f64::NAN),
        ("an endless time", |p| p.bound_seconds = f64::INFINITY),
        ("a time beyond Duration", |p| p.bound_seconds = 1e300),
    ];
    for (what, change) in changes {
        assert!(changed(*change).is_err(), "{what} was taken");
    }
}

fn runs(pairs: &[(u32, u32)], piece_count: u32) -> Result<Vec<Run>, WireError> {
    let message: Vec<_> = pairs.iter().map(|&(start, end)| control::Run { start, end }).collect();
    convert::runs(&message, piece_count)
}

#[test]
fn runs_are_ascending_apart_and_within_the_artifact() {
    assert_eq!(runs(&[], 0).expect("none"), []);
    let good = runs(&[(0, 1), (1, 4), (9, 10)], 10).expect("in order");
    assert_eq!(good, [Run::new(0, 1), Run::new(1, 4), Run::new(9, 10)]);
    let message = convert::runs_message(&good);
    assert_eq!(convert::runs(&message, 10).expect("in order"), good);
    for bad in [&[(0, 11)][..], &[(3, 3)], &[(4, 3)], &[(0, 2), (1, 3)], &[(5, 6), (0, 1)], &[(u32::MAX, 0)]]
    {
        assert!(runs(bad, 10).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn ids_counts_and_addresses_are_checked() {
    assert!(convert::peer_id(&[0; 16]).is_ok());
    assert!(convert::peer_id(&[0; 17]).is_err());
    assert!(convert::peer_id(&[]).is_err());
    assert!(convert::secret(&[0; 31]).is_err());
    let most = u32::try_from(PIECES_MAX).expect("below 2^32");
    assert!(convert::piece_count(most).is_ok());
    assert!(convert::piece_count(most + 1).is_err());
    for good in ["host:1", "10.1.2.3:65535", "[::1]:80"] {
        assert_eq!(convert::address(good.into()).expect(good), good);
    }
    let long = format!("{}:1", "h".repeat(300));
    for bad in ["", ":", "host", "host:", ":80", "host:0", "host:65536", "a b:1", "host:+80", &long] {
        assert!(convert::address(bad.into()).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn only_our_version_is_spoken_and_the_refusal_names_both() {
    check_version(PROTOCOL_VERSION).expect("ours");
    assert_eq!((FEATURE_SCHEDULERS, FEATURE_RATES), (1, 2), "bits are never used for anything else");
    assert_eq!(FEATURES, FEATURE_SCHEDULERS | FEATURE_RATES);
    let error = check_version(PROTOCOL_VERSION + 1).expect_err("not ours");
    assert_eq!(error.to_string(), "the other side speaks protocol version 2, this one speaks 1");
    assert!(check_version(0).is_err(), "a hello without a version");
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let endpoint =
        control::TcpEndpoint { address: "h:1".into(), link: 1, secret: vec![222; 32], encrypted: false };
    assert!(!format!("{endpoint:?}").contains("222"));
    let pull = wire::local::Pull { password: "hunter2".into(), ..Default::default() };
    let frame = wire::local::ClientFrame { kind: Some(wire::local::client_frame::Kind::Pull(pull)) };
    assert!(!format!("{frame:?}").contains("hunter2"));
}

#[test]
fn a_place_goes_there_and_back_as_labels() {
    for (zone, rack) in [("", ""), ("a", ""), ("", "r1"), ("a", "r1")] {
        let place = Place { zone: zone.to_owned(), rack: rack.to_owned() };
        let labels = convert::labels(&place);
        assert_eq!(labels.len(), [zone, rack].iter().filter(|label| !label.is_empty()).count());
        assert_eq!(convert::place(labels).unwrap(), place);
    }
    // What later versions say of it is no matter here.
    let labels = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    assert_eq!(convert::place(labels("rail", "0")).unwrap(), Place::default());
    convert::place(labels("rack", &"r".repeat(convert::LABEL_BYTES_MAX + 1))).unwrap_err();
    convert::place(labels("zone", "a\nb")).unwrap_err();
}
