//! The plan that the scheduler of a fleet has now.
//!
//! Owns: whom it asks about which artifact. Does not own: the asking (`scheduler`).

use std::collections::BTreeMap;

use anyhow::Context as _;
use modelpack::{digest::Sha256Digest, reference::Reference};
use planner::{ArtifactId, PeerId, PlanStatus};
use scheduler::{current_plan, inquire};
use wire::schedulers::Schedulers;

use super::trees::{self, Peer, Tree};
use crate::{access, artifact::Artifact, cli::PlanArgs, report::Refusal};

/// What the scheduler said.
pub(super) struct Current {
    pub(super) digest: Sha256Digest,
    /// HOST:PORT of the scheduler.
    pub(super) scheduler: String,
    pub(super) plan: PlanStatus,
}

/// Asks the one that plans.
pub(super) async fn ask(args: &PlanArgs) -> anyhow::Result<Current> {
    let digest = digest(args).await?;
    let security = access::security_of(&args.fleet)?;
    let schedulers = Schedulers::new(&security, access::fleet_schedulers(&args.fleet).await?);
    let what = "cannot ask the fleet for its plan";
    let scheduler = inquire(&schedulers, &security).await.context(what)?.address;
    let plan = current_plan(&scheduler, &security, ArtifactId(*digest.bytes())).await.context(what)?;
    let plan = plan.ok_or_else(|| {
        let message = format!("nobody in the fleet has or wants `{}`", args.reference);
        Refusal::failed(message).hint("`modelctl status` lists the digests of what a fleet moves")
    })?;
    Ok(Current { digest, scheduler, plan })
}

/// What a reference states is not looked up.
async fn digest(args: &PlanArgs) -> anyhow::Result<Sha256Digest> {
    let stated = match &args.reference {
        Reference::Fleet(digest) => Some(*digest),
        Reference::Registry(at) => at.digest,
        Reference::Layout(at) => at.digest,
        Reference::Directory(_) | Reference::Hub(_) => None,
    };
    match stated {
        Some(digest) => Ok(digest),
        None => Ok(Artifact::open(&args.reference, &args.registry).await?.manifest.digest()),
    }
}

impl Current {
    /// Its members, seeds first, and the trees.
    pub(super) fn trees(&self) -> (Vec<Peer>, Vec<Tree>) {
        let PlanStatus { members, piece_count, stripe_count, .. } = &self.plan;
        let by_name: BTreeMap<_, _> =
            members.iter().map(|member| ((!member.is_seed, &member.name, member.peer), member)).collect();
        let ids: Vec<PeerId> = by_name.values().map(|member| member.peer).collect();
        let members: Vec<_> = by_name.into_values().collect();
        let peer = |member: &&planner::MemberStatus| Peer {
            name: member.name.clone(),
            // What the plan counts with, where that is known.
            nic_rate: member.counts.or(member.nic_rate),
            place: member.place.clone(),
            is_seed: member.is_seed,
            done: Some(f64::from(member.pieces) / f64::from((*piece_count).max(1))),
        };
        let peers = members.iter().map(peer).collect();
        let source = |peer: usize, stripe: usize| members[peer].sources.get(stripe).copied();
        (peers, trees::of(&ids, *stripe_count as usize, source))
    }
}
