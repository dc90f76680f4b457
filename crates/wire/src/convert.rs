//! Generated messages ↔ core types, each checked once, here. Does not own any decision about them.
//!
//! A message's size is bounded by the transport's message limit before it gets here; these checks bound what the numbers
//! in it can make the receiver do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::Voucher;
use modelpack::layout::{PIECES_MAX, PieceIndex, Run};
use planner::{
    ArtifactId, Before, Contact, Member, PeerId, PeerPlan, Place, StripePart, StripeSet, StripeSource,
};

use crate::{WireError, control, priority, schedulers::SCHEDULERS_MAX};

/// Most stripes in a plan. The planner makes at most 16; twice that leaves room without a new protocol.
pub const STRIPES_MAX: usize = 32;

/// Most backups a stripe names. The planner names 2.
pub const BACKUPS_MAX: usize = 8;

/// Most members a plan names: 512 of at most ~500 bytes stay far below a 4 MiB message.
pub const MEMBERS_MAX: usize = 512;

/// Most bytes of a `HOST:PORT`: a DNS name has at most 253, a port 5.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Most bytes of a name for people: what fits a line of progress.
pub const NAME_BYTES_MAX: usize = 128;

/// Most bytes of the name of a zone or a rack: those of every member fit one message.
pub const LABEL_BYTES_MAX: usize = 32;

/// Longest prediction that is taken seriously: 10 years. Beyond, `Duration` arithmetic could overflow.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Length { field, got: bytes.len(), want: N })
}

pub(crate) fn bounded(field: &'static str, got: usize, max: usize) -> Result<(), WireError> {
    if got <= max { Ok(()) } else { Err(WireError::TooMany { field, got, max }) }
}

/// A peer's id: exactly 16 bytes.
pub fn peer_id(bytes: &[u8]) -> Result<PeerId, WireError> {
    array("peer_id", bytes).map(PeerId::new)
}

/// An artifact's id: exactly 32 bytes.
pub fn artifact_id(bytes: &[u8]) -> Result<ArtifactId, WireError> {
    array("artifact", bytes).map(ArtifactId)
}

/// A link's secret: exactly 32 bytes.
pub fn secret(bytes: &[u8]) -> Result<[u8; 32], WireError> {
    array("secret", bytes)
}

/// A piece count that the protocol can number.
pub fn piece_count(count: u32) -> Result<u32, WireError> {
    if u64::from(count) <= PIECES_MAX {
        Ok(count)
    } else {
        Err(WireError::Invalid { field: "piece_count", why: "more pieces than the protocol numbers" })
    }
}

/// A `HOST:PORT` as a peer announces it. Whether it resolves is found out by connecting.
pub fn address(text: String) -> Result<String, WireError> {
    bounded("address", text.len(), ADDRESS_BYTES_MAX)?;
    // The digits are asked for because `parse` takes a sign too.
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && is_port(port) && text.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(text)
        }
        _ => Err(WireError::Invalid { field: "address", why: "not HOST:PORT" }),
    }
}

/// Addresses of schedulers that a peer cannot reach.
pub fn unreachable(addresses: Vec<String>) -> Result<Vec<String>, WireError> {
    bounded("unreachable", addresses.len(), SCHEDULERS_MAX)?;
    addresses.into_iter().map(address).collect()
}

/// A name for people: short, and without control characters, because it reaches terminals.
pub fn name(text: String) -> Result<String, WireError> {
    bounded("name", text.len(), NAME_BYTES_MAX)?;
    if text.chars().any(char::is_control) {
        return Err(WireError::Invalid { field: "name", why: "it holds control characters" });
    }
    Ok(text)
}

/// The name of a zone or a rack, or nothing.
pub fn label(text: String) -> Result<String, WireError> {
    bounded("label", text.len(), LABEL_BYTES_MAX)?;
    name(text)
}

/// The labels by which a peer says where it stands.
const ZONE: &str = "zone";
const RACK: &str = "rack";

/// A place as labels; nothing is said where there is none.
pub fn labels(place: &Place) -> BTreeMap<String, String> {
    let labels =
        [(ZONE, &place.zone), (RACK, &place.rack)].into_iter().filter(|(_, value)| !value.is_empty());
    labels.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// The place that labels tell of; others are for later versions.
pub fn place(labels: impl IntoIterator<Item = (String, String)>) -> Result<Place, WireError> {
    let mut place = Place::default();
    for (name, value) in labels {
        match name.as_str() {
            ZONE => place.zone = label(value)?,
            RACK => place.rack = label(value)?,
            _ => {}
        }
    }
    Ok(place)
}

/// Runs of an artifact of `piece_count` pieces: none empty, none beyond the end, ascending and apart.
///
/// Ascending runs that do not overlap cannot be more than there are pieces, so the work they cause is bounded too.
pub fn runs(runs: &[control::Run], piece_count: u32) -> Result<Vec<Run>, WireError> {
    let mut from = 0;
    runs.iter()
        .map(|run| {
            if run.start < from || run.start >= run.end || run.end > piece_count {
                let why = "runs must be ascending, apart, not empty and within the artifact";
                return Err(WireError::Invalid { field: "runs", why });
            }
            from = run.end;
            Ok(Run::new(run.start, run.end))
        })
        .collect()
}

/// The stripes that a child wants to hear of at once.
impl TryFrom<control::Interest> for StripeSet {
    type Error = WireError;

    fn try_from(message: control::Interest) -> Result<Self, WireError> {
        let why = "not some of at most 64 stripes";
        Self::new(message.stripe_pieces, message.stripe_count, message.stripes)
            .ok_or(WireError::Invalid { field: "stripes", why })
    }
}

impl From<StripeSet> for control::Interest {
    fn from(set: StripeSet) -> Self {
        Self { stripe_pieces: set.stripe_pieces(), stripe_count: set.stripe_count(), stripes: set.bits() }
    }
}

/// Signed vouchers and the pieces that they are about. Whether a signature is right is found out when it matters.
pub fn vouchers(
    messages: Vec<control::Voucher>,
    piece_count: u32,
) -> Result<Vec<(PieceIndex, Voucher)>, WireError> {
    let voucher = |message: control::Voucher| {
        if message.piece >= piece_count {
            return Err(WireError::Invalid { field: "vouchers", why: "the artifact has no such piece" });
        }
        let voucher = Voucher {
            round: message.round,
            value: array("value", &message.value)?,
            key: array("key", &message.key)?,
            signature: array("signature", &message.signature)?,
        };
        Ok((PieceIndex(message.piece), voucher))
    };
    messages.into_iter().map(voucher).collect()
}

/// A voucher as it travels.
pub fn voucher_message(piece: PieceIndex, voucher: &Voucher) -> control::Voucher {
    control::Voucher {
        piece: piece.0,
        round: voucher.round,
        value: voucher.value.to_vec(),
        key: voucher.key.to_vec(),
        signature: voucher.signature.to_vec(),
    }
}

/// Runs as they travel.
pub fn runs_message(runs: &[Run]) -> Vec<control::Run> {
    runs.iter().map(|run| control::Run { start: run.start.0, end: run.end.0 }).collect()
}

pub(crate) fn seconds(field: &'static str, value: f64) -> Result<Option<Duration>, WireError> {
    if value == 0.0 {
        return Ok(None);
    }
    if !(0.0..=SECONDS_MAX).contains(&value) {
        return Err(WireError::Invalid { field, why: "not a time in seconds" });
    }
    Ok(Some(Duration::from_secs_f64(value)))
}

/// The plan's message for the artifact it is about.
pub fn plan_message(artifact: ArtifactId, plan: &PeerPlan) -> control::Plan {
    let stripe = |part: &StripePart| control::StripePart {
        from_origin: part.source == StripeSource::Origin,
        parent: match part.source {
            StripeSource::Parent(id) => id.bytes().to_vec(),
            StripeSource::Origin | StripeSource::None => Vec::new(),
        },
        backups: part.backups.iter().map(|id| id.bytes().to_vec()).collect(),
        before: part.before.iter().map(control::Before::from).collect(),
    };
    let stripes: Vec<_> = plan.stripes.iter().map(stripe).collect();
    control::Plan {
        artifact: artifact.0.to_vec(),
        epoch: plan.epoch,
        stripe_count: u32::try_from(stripes.len()).unwrap_or(u32::MAX),
        stripe_pieces: plan.stripe_pieces,
        stripes,
        members: plan.members.iter().map(control::Member::from).collect(),
        finish_seconds: plan.finish.map_or(0.0, |time| time.as_secs_f64()),
        bound_seconds: plan.bound.map_or(0.0, |time| time.as_secs_f64()),
        quarantined: plan.quarantined.iter().map(|id| id.bytes().to_vec()).collect(),
        priority: control::Priority::from(plan.priority).into(),
    }
}

impl From<&Member> for control::Member {
    fn from(member: &Member) -> Self {
        Self {
            peer_id: member.id.bytes().to_vec(),
            control_address: member.contact.address.to_string(),
            seed: member.is_seed,
            name: member.contact.name.to_string(),
            far: member.is_far,
        }
    }
}

impl TryFrom<control::Member> for Member {
    type Error = WireError;

    fn try_from(member: control::Member) -> Result<Self, WireError> {
        Ok(Self {
            id: peer_id(&member.peer_id)?,
            contact: Contact::new(address(member.control_address)?, name(member.name)?),
            is_seed: member.seed,
            is_far: member.far,
        })
    }
}

impl From<&Before> for control::Before {
    fn from(before: &Before) -> Self {
        Self { peer_id: before.peer.bytes().to_vec(), epoch: before.epoch }
    }
}

impl TryFrom<control::Before> for Before {
    type Error = WireError;

    fn try_from(before: control::Before) -> Result<Self, WireError> {
        Ok(Self { peer: peer_id(&before.peer_id)?, epoch: before.epoch })
    }
}

impl TryFrom<control::StripePart> for StripePart {
    type Error = WireError;

    fn try_from(part: control::StripePart) -> Result<Self, WireError> {
        bounded("backups", part.backups.len(), BACKUPS_MAX)?;
        let source = match (part.from_origin, part.parent.as_slice()) {
            (true, []) => StripeSource::Origin,
            (false, []) => StripeSource::None,
            (false, parent) => StripeSource::Parent(peer_id(parent)?),
            (true, _) => {
                return Err(WireError::Invalid { field: "parent", why: "a stripe has one first choice" });
            }
        };
        let backups: Vec<PeerId> = part.backups.iter().map(|id| peer_id(id)).collect::<Result<_, _>>()?;
        bounded("before", part.before.len(), BACKUPS_MAX)?;
        let before: Vec<Before> = part.before.into_iter().map(Before::try_from).collect::<Result<_, _>>()?;
        if source == StripeSource::None && !before.is_empty() {
            return Err(WireError::Invalid {
                field: "before",
                why: "only an entrant takes over from somebody",
            });
        }
        if !before.iter().all(|before| backups.contains(&before.peer)) {
            return Err(WireError::Invalid { field: "before", why: "a peer named there is no backup" });
        }
        Ok(Self { source, backups, before })
    }
}

/// The artifact and plan of a message: every peer named in a stripe is a member, so that it can be reached.
pub fn plan(message: control::Plan) -> Result<(ArtifactId, PeerPlan), WireError> {
    let artifact = artifact_id(&message.artifact)?;
    bounded("stripes", message.stripes.len(), STRIPES_MAX)?;
    bounded("members", message.members.len(), MEMBERS_MAX)?;
    if message.stripes.is_empty() || message.stripes.len() != message.stripe_count as usize {
        return Err(WireError::Invalid { field: "stripes", why: "not one a stripe" });
    }
    if message.stripe_pieces == 0 || u64::from(message.stripe_pieces) > PIECES_MAX {
        return Err(WireError::Invalid { field: "stripe_pieces", why: "not a number of pieces" });
    }
    let stripes: Vec<StripePart> =
        message.stripes.into_iter().map(StripePart::try_from).collect::<Result<_, _>>()?;
    let members: Vec<Member> = message.members.into_iter().map(Member::try_from).collect::<Result<_, _>>()?;
    let known: BTreeSet<PeerId> = members.iter().map(|member| member.id).collect();
    if known.len() != members.len() {
        return Err(WireError::Invalid { field: "members", why: "a peer is named twice" });
    }
    for part in &stripes {
        let parent = match part.source {
            StripeSource::Parent(id) => Some(id),
            StripeSource::Origin | StripeSource::None => None,
        };
        if !parent.iter().chain(&part.backups).all(|id| known.contains(id)) {
            return Err(WireError::Invalid { field: "stripes", why: "a peer named there is no member" });
        }
    }
    let plan = PeerPlan {
        epoch: message.epoch,
        stripe_pieces: message.stripe_pieces,
        stripes,
        members,
        quarantined: message.quarantined.iter().map(|id| peer_id(id)).collect::<Result<_, _>>()?,
        finish: seconds("finish_seconds", message.finish_seconds)?,
        bound: seconds("bound_seconds", message.bound_seconds)?,
        priority: priority::of_number(message.priority),
    };
    Ok((artifact, plan))
}
