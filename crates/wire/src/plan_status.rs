//! The whole plan of one swarm, as it travels to whoever asks.
//!
//! Owns: how much of it one message holds, and the checks of such a message. Does not own: the plan (`planner`), or how
//! it is shown.

use std::{collections::BTreeMap, time::Duration};

use planner::{MemberStatus, PeerId, Place, PlanStatus, StripeSource};

use crate::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    control::{self, CurrentPlanReply},
    convert::{self, STRIPES_MAX, bounded},
};

/// Members that are listed, at most: each takes at most ~340 bytes (a name of 128, two labels of 32, and 32 numbers
/// of three bytes), so that they fit a message of 4 MiB.
pub const MEMBERS_MAX: usize = 12_288;

/// A source as a number: no listed member, the origin, or the member of that number.
const NOBODY: u32 = 0;
const ORIGIN: u32 = 1;
const FIRST: u32 = 2;

/// The message for a plan, or for that there is none.
pub fn plan_status_message(plan: Option<&PlanStatus>) -> CurrentPlanReply {
    let head = CurrentPlanReply {
        protocol_version: PROTOCOL_VERSION,
        features: FEATURES,
        ..CurrentPlanReply::default()
    };
    let Some(plan) = plan else { return head };
    let numbers: BTreeMap<PeerId, u32> = plan.members.iter().map(|member| member.peer).zip(FIRST..).collect();
    let source = |source: &StripeSource| match source {
        StripeSource::None => NOBODY,
        StripeSource::Origin => ORIGIN,
        StripeSource::Parent(parent) => numbers.get(parent).copied().unwrap_or(NOBODY),
    };
    let member = |member: &MemberStatus| control::MemberStatus {
        peer_id: member.peer.bytes().to_vec(),
        name: member.name.clone(),
        nic_bytes_per_second: member.nic_rate.unwrap_or(0),
        counts_bytes_per_second: member.counts.unwrap_or(0),
        seed: member.is_seed,
        pieces: member.pieces,
        zone: member.place.zone.clone(),
        rack: member.place.rack.clone(),
        sources: member.sources.iter().map(source).collect(),
    };
    let seconds = |time: Option<Duration>| time.map_or(0.0, |time| time.as_secs_f64());
    CurrentPlanReply {
        member_count: plan.member_count,
        members: plan.members.iter().map(member).collect(),
        artifact_bytes: plan.bytes,
        piece_count: plan.piece_count,
        epoch: plan.epoch,
        stripe_count: plan.stripe_count,
        stripe_pieces: plan.stripe_pieces,
        finish_seconds: seconds(plan.finish),
        bound_seconds: seconds(plan.bound),
        ..head
    }
}

/// The plan of a message; `None` if there is none.
pub fn plan_status(reply: CurrentPlanReply) -> Result<Option<PlanStatus>, WireError> {
    check_version(reply.protocol_version)?;
    if reply.member_count == 0 {
        return Ok(None);
    }
    bounded("members", reply.members.len(), MEMBERS_MAX)?;
    bounded("stripes", reply.stripe_count as usize, STRIPES_MAX)?;
    let piece_count = convert::piece_count(reply.piece_count)?;
    if reply.stripe_count == 0 || reply.stripe_pieces == 0 {
        return Err(WireError::Invalid { field: "stripes", why: "there is none" });
    }
    let ids: Vec<PeerId> =
        reply.members.iter().map(|member| convert::peer_id(&member.peer_id)).collect::<Result<_, _>>()?;
    let source = |number: u32| match number {
        NOBODY => Ok(StripeSource::None),
        ORIGIN => Ok(StripeSource::Origin),
        number => {
            let parent = ids.get((number - FIRST) as usize).copied().map(StripeSource::Parent);
            parent.ok_or(WireError::Invalid { field: "sources", why: "a peer named there is no member" })
        }
    };
    let member = |(member, peer): (control::MemberStatus, &PeerId)| {
        if member.sources.len() != reply.stripe_count as usize || member.pieces > piece_count {
            return Err(WireError::Invalid {
                field: "members",
                why: "not one source a stripe, or too many pieces",
            });
        }
        Ok(MemberStatus {
            peer: *peer,
            name: convert::name(member.name)?,
            nic_rate: Some(member.nic_bytes_per_second).filter(|rate| *rate > 0),
            counts: Some(member.counts_bytes_per_second).filter(|rate| *rate > 0),
            place: Place { zone: convert::label(member.zone)?, rack: convert::label(member.rack)? },
            is_seed: member.seed,
            pieces: member.pieces,
            sources: member.sources.into_iter().map(source).collect::<Result<_, _>>()?,
        })
    };
    Ok(Some(PlanStatus {
        bytes: reply.artifact_bytes,
        piece_count,
        epoch: reply.epoch,
        stripe_pieces: reply.stripe_pieces,
        stripe_count: reply.stripe_count,
        finish: convert::seconds("finish_seconds", reply.finish_seconds)?,
        bound: convert::seconds("bound_seconds", reply.bound_seconds)?,
        members: reply.members.into_iter().zip(&ids).map(member).collect::<Result<_, _>>()?,
        member_count: reply.member_count,
    }))
}
