//! A planner and the plans that it has sent last.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use modelpack::layout::Run;
use planner::{
    ArtifactId, HostAddr, Input, Output, PeerId, PeerPlan, Place, Planner, Progress, StripeSource,
};

pub(crate) const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
pub(crate) const PIECES: u32 = 64;

pub(crate) const fn id(number: u8) -> PeerId {
    PeerId::new([number; 16])
}

/// A member with a card of 1 GiB/s that can read the origin and has nothing comes.
pub(crate) fn arrival(number: u8, piece_count: u32) -> [Input; 2] {
    let join = Input::Join {
        peer: id(number),
        artifact: ARTIFACT,
        bytes: u64::from(piece_count) << 20,
        piece_count,
        origin_ok: true,
        is_seed: false,
        have: Vec::new(),
        progress: Progress::default(),
    };
    [register(number, Some(1 << 30), Place::default()), join]
}

/// A peer opens its stream.
pub(crate) fn register(number: u8, nic_rate: Option<u64>, place: Place) -> Input {
    let (peer, address, name) = (id(number), format!("node-{number}:1"), format!("node-{number}"));
    let host = HostAddr::new(Ipv4Addr::new(10, 0, 0, number).into());
    Input::Register { peer, address, name, nic_rate, place, host }
}

/// One swarm.
#[derive(Default)]
pub(crate) struct Fleet {
    planner: Planner,
    pub(crate) plans: BTreeMap<PeerId, PeerPlan>,
}

impl Fleet {
    pub(crate) fn tell(&mut self, input: Input) {
        self.tell_at(Duration::ZERO, input);
    }

    pub(crate) fn tell_at(&mut self, now: Duration, input: Input) {
        self.planner.handle(now, input);
        while let Some(output) = self.planner.poll() {
            if let Output::Plan { to, plan, .. } = output {
                self.plans.insert(to, plan);
            }
        }
    }

    /// A member that has `have` and is in repair `round`.
    pub(crate) fn join(&mut self, number: u8, round: u32, origin_ok: bool, have: Vec<Run>) {
        self.register(number, Place::default());
        self.join_where_it_stands(number, round, origin_ok, have);
    }

    /// The same of a peer that has said where it stands.
    pub(crate) fn join_where_it_stands(&mut self, number: u8, round: u32, origin_ok: bool, have: Vec<Run>) {
        self.tell(Input::Join {
            peer: id(number),
            artifact: ARTIFACT,
            bytes: u64::from(PIECES) << 20,
            piece_count: PIECES,
            origin_ok,
            is_seed: false,
            have,
            progress: Progress { round, ..Progress::default() },
        });
    }

    /// A peer announces the artifact, and cannot read it anywhere else.
    pub(crate) fn join_seed(&mut self, number: u8) {
        self.register(number, Place::default());
        self.tell(Input::Join {
            peer: id(number),
            artifact: ARTIFACT,
            bytes: u64::from(PIECES) << 20,
            piece_count: PIECES,
            origin_ok: false,
            is_seed: true,
            have: vec![Run::new(0, PIECES)],
            progress: Progress::default(),
        });
    }

    /// A peer that stands somewhere opens its stream.
    pub(crate) fn register(&mut self, number: u8, place: Place) {
        self.tell(register(number, None, place));
    }

    /// Who reads something from the origin, and for whom a member is a parent.
    pub(crate) fn readers(&self) -> Vec<PeerId> {
        let reads = |plan: &PeerPlan| plan.stripes.iter().any(|part| part.source == StripeSource::Origin);
        self.plans.iter().filter(|(_, plan)| reads(plan)).map(|(peer, _)| *peer).collect()
    }

    /// Everybody whom a member's plan names as a source.
    pub(crate) fn sources(&self, number: u8) -> Vec<PeerId> {
        let mut sources = Vec::new();
        for part in &self.plans[&id(number)].stripes {
            if let StripeSource::Parent(parent) = part.source {
                sources.push(parent);
            }
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }
}
