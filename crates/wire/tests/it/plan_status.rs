//! The whole plan of a swarm, there and back, and what is not believed.

use std::time::Duration;

use planner::{MemberStatus, PeerId, Place, PlanStatus, StripeSource};
use prost::Message as _;
use wire::{
    WireError,
    connection::MESSAGE_BYTES_MAX,
    control::CurrentPlanReply,
    convert::{LABEL_BYTES_MAX, NAME_BYTES_MAX},
    plan_status::{MEMBERS_MAX, plan_status, plan_status_message},
};

fn id(number: usize) -> PeerId {
    PeerId::new((number as u128 + 1).to_be_bytes())
}

/// Everybody but the first gets every stripe from the one before.
fn plan(members: usize, stripes: u32, name: &str) -> PlanStatus {
    let source =
        |at: usize| at.checked_sub(1).map_or(StripeSource::Origin, |parent| StripeSource::Parent(id(parent)));
    let member = |at: usize| MemberStatus {
        peer: id(at),
        name: name.to_owned(),
        nic_rate: (at > 0).then_some(u64::MAX),
        counts: (at > 0).then_some(u64::MAX),
        place: Place { zone: "z".repeat(LABEL_BYTES_MAX), rack: "r".repeat(LABEL_BYTES_MAX) },
        is_seed: at == 1,
        pieces: 40,
        sources: vec![source(at); stripes as usize],
    };
    PlanStatus {
        bytes: 64 << 20,
        piece_count: 64,
        epoch: 9,
        stripe_pieces: 4,
        stripe_count: stripes,
        finish: Some(Duration::from_secs(3)),
        bound: None,
        members: (0..members).map(member).collect(),
        member_count: u32::try_from(members).expect("few"),
    }
}

#[test]
fn a_plan_goes_there_and_back() {
    let sent = plan(3, 16, "node");
    assert_eq!(plan_status(plan_status_message(Some(&sent))).unwrap(), Some(sent));
    assert_eq!(plan_status(plan_status_message(None)).unwrap(), None);
}

#[test]
fn whoever_is_not_listed_is_nobodys_source() {
    let mut sent = plan(2, 2, "node");
    sent.members.remove(0);
    let back = plan_status(plan_status_message(Some(&sent))).unwrap().unwrap();
    assert_eq!(
        (back.members[0].sources.as_slice(), back.member_count),
        ([StripeSource::None; 2].as_slice(), 2)
    );
}

#[test]
fn the_largest_plan_fits_a_message() {
    let name = "n".repeat(NAME_BYTES_MAX);
    let message = plan_status_message(Some(&plan(MEMBERS_MAX, 32, &name)));
    assert!(message.encoded_len() <= MESSAGE_BYTES_MAX, "{}", message.encoded_len());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let check = |change: fn(&mut CurrentPlanReply), field: &str| {
        let mut message = plan_status_message(Some(&plan(3, 2, "node")));
        change(&mut message);
        match plan_status(message) {
            Err(WireError::Invalid { field: found, .. } | WireError::TooMany { field: found, .. }) => {
                assert_eq!(found, field);
            }
            other => panic!("{field}: {other:?}"),
        }
    };
    check(|message| message.members[1].sources[0] = 5, "sources");
    check(|message| message.members[1].sources.truncate(1), "members");
    check(|message| message.members[1].pieces = 65, "members");
    check(|message| message.stripe_count = 33, "stripes");
    check(|message| message.stripe_pieces = 0, "stripes");
    check(|message| message.finish_seconds = -1.0, "finish_seconds");
    check(|message| message.members = vec![message.members[0].clone(); MEMBERS_MAX + 1], "members");
}
