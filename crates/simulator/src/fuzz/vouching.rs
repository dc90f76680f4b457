//! Artifacts that only their whole blob proves: who vouches for which piece, and repairs, as `peer::vouching` and
//! `peer::repair` have them. Their provisional tree is wrong where what a reader got of the origin is.
//!
//! Owns: what each node takes pieces on, and what it does when they do not add up. Does not own who reads in a repair
//! (`planner`), nor what is then asked of whom (`swarm`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::{PieceIndex, Run, runs_of};
use modelpack::piece_map::PieceMap;
use planner::{PeerPlan, ROUNDS_MAX};
use swarm::{Config, Input, Output, ReadId, Swarm};

use super::dice::is_struck;
use super::scenario::Nature;
use super::world::{ARTIFACT, Event, World, node_of};

/// How long the last bytes take to be hashed.
const HASHED: Duration = Duration::from_millis(1);

/// What a piece was taken on.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Who read it from the origin, and in which repair.
    reader: u32,
    round: u32,
    /// Who passed it on.
    via: u32,
    is_wrong: bool,
}

/// What one node took pieces on.
#[derive(Debug, Default)]
struct Vouching {
    /// The repair that it is in.
    round: u32,
    kept: BTreeMap<PieceIndex, Kept>,
    /// The same, also of what it has given up since: those who heard of it keep the voucher.
    said: BTreeMap<PieceIndex, Kept>,
    /// What it gave up.
    suspects: Vec<Kept>,
    /// Members that its plans named.
    known: BTreeSet<u32>,
    /// It reads the origin for itself, and is no member any more.
    is_alone: bool,
}

/// What all nodes took pieces on.
#[derive(Debug, Default)]
pub(super) struct Rootless {
    nodes: BTreeMap<u32, Vouching>,
    /// How many repairs were begun.
    pub(super) repairs: u64,
}

impl Rootless {
    fn at(&mut self, node: u32) -> &mut Vouching {
        self.nodes.entry(node).or_default()
    }

    pub(super) fn round(&self, node: u32) -> u32 {
        self.nodes.get(&node).map_or(0, |vouching| vouching.round)
    }

    fn said(&self, node: u32, piece: PieceIndex) -> Option<Kept> {
        self.nodes.get(&node)?.said.get(&piece).copied()
    }

    fn keep(&mut self, node: u32, piece: PieceIndex, kept: Kept) {
        let vouching = self.at(node);
        vouching.kept.insert(piece, kept);
        vouching.said.insert(piece, kept);
    }

    /// Whether others may read the artifact at a node.
    pub(super) fn is_shared(&self, node: u32) -> bool {
        !self.nodes.get(&node).is_some_and(|vouching| vouching.is_alone)
    }

    pub(super) fn planned(&mut self, node: u32, plan: &PeerPlan) {
        self.at(node).known.extend(plan.members.iter().map(|member| node_of(member.id)));
    }

    /// A node begins with pieces: what it read itself when it had another name it vouches for anew, for the rest nobody does.
    /// Says whether any of that is wrong.
    fn begins(&mut self, node: u32, was: Option<u32>, have: &mut PieceMap) -> bool {
        let mut is_any_wrong = false;
        let is_own = |kept: &Kept, was: u32| kept.reader == was;
        for piece in have.iter().collect::<Vec<_>>() {
            let known = was.and_then(|was| self.said(was, piece).filter(|kept| is_own(kept, was)));
            let is_wrong = known.is_some_and(|kept| kept.is_wrong);
            is_any_wrong |= is_wrong;
            if was.is_some() && known.is_none() {
                have.remove(piece);
            } else {
                self.keep(node, piece, Kept { reader: node, round: 0, via: node, is_wrong });
            }
        }
        is_any_wrong
    }
}

impl World<'_> {
    /// Of what a node begins with, what somebody vouches for.
    pub(super) fn begins_vouched(&mut self, node: u32, have: &mut PieceMap) {
        let was = self.member(node).returns.and_then(|returns| u32::try_from(returns.of).ok());
        if self.rootless.as_mut().is_some_and(|rootless| rootless.begins(node, was, have)) {
            self.oracle.inherited_wrong(node);
        }
    }

    /// A piece has come that is what its sender vouches for, or what the origin gave; says whether it is taken.
    pub(super) fn takes(&mut self, (from, to): (u32, u32), piece: PieceIndex) -> bool {
        let origin = self.origin();
        let misread = self.misreads(to, piece);
        let Some(rootless) = &mut self.rootless else { return true };
        let round = rootless.round(to);
        if rootless.at(to).kept.contains_key(&piece) {
            return true;
        }
        let kept = if from == origin {
            Some(Kept { reader: to, round, via: to, is_wrong: misread })
        } else {
            let said = rootless.said(from, piece).filter(|kept| kept.round >= round);
            said.map(|kept| Kept { via: from, ..kept })
        };
        kept.is_some_and(|kept| {
            rootless.keep(to, piece, kept);
            true
        })
    }

    /// Whether a node can show what its child takes all of a run on. One that lies makes vouchers up for the rest, and has no
    /// bytes that go with them.
    pub(super) fn can_vouch(&self, (from, to): (u32, u32), run: Run) -> bool {
        let Some(rootless) = &self.rootless else { return true };
        let round = rootless.round(to);
        run.pieces().all(|piece| rootless.said(from, piece).is_some_and(|kept| kept.round >= round))
    }

    /// Whether a node gets something else of the origin than others do.
    fn misreads(&self, node: u32, piece: PieceIndex) -> bool {
        let Nature::Misreads { percent } = self.member(node).nature else { return false };
        is_struck(self.scenario.seed, node, piece, percent)
    }

    /// What a child makes of news: pieces that nobody vouches for in its round are none, and what others read in a repair
    /// was begun before it.
    pub(super) fn vouched_news(&self, (child, parent): (u32, u32), input: Input) -> Input {
        let Some(rootless) = &self.rootless else { return input };
        let round = rootless.round(child);
        let is_liar = matches!(self.member(parent).nature, Nature::Lying { .. });
        let is_vouched =
            |piece: &PieceIndex| is_liar || self.can_vouch((parent, child), Run::new(piece.0, piece.0 + 1));
        match input {
            Input::Have { peer, runs } => {
                let runs = runs_of(runs.iter().flat_map(Run::pieces).filter(is_vouched));
                Input::Have { peer, runs }
            }
            Input::Coming { peer, epoch, .. } if round > 0 => Input::Coming { peer, epoch, runs: Vec::new() },
            other => other,
        }
    }

    /// Whether all is here and is not what the digest says.
    pub(super) fn is_wrong(&self, node: u32, output: &Output) -> bool {
        let vouching = self.rootless.as_ref().and_then(|rootless| rootless.nodes.get(&node));
        *output == Output::Complete
            && vouching.is_some_and(|vouching| vouching.kept.values().any(|kept| kept.is_wrong))
    }

    /// What is here is what the digest says: whoever vouched for something else is accused.
    pub(super) fn settle(&mut self, node: u32) {
        let Some(rootless) = &mut self.rootless else { return };
        let vouching = rootless.at(node);
        let (suspects, known) = (std::mem::take(&mut vouching.suspects), vouching.known.clone());
        let mut blamed = BTreeSet::from([node]);
        for kept in suspects.iter().filter(|kept| kept.is_wrong) {
            let is_known = known.contains(&kept.reader);
            let culprit = if is_known { kept.reader } else { kept.via };
            if blamed.insert(culprit) {
                if !is_known {
                    self.oracle.accused_in_place(culprit);
                }
                let (peer, about) = (self.id_of(node), self.id_of(culprit));
                self.tell(node, planner::Input::Complaint { peer, artifact: ARTIFACT, about, piece: 0 });
            }
        }
    }

    /// What is here does not add up: it is given up, and read again in the next repair.
    pub(super) fn repair(&mut self, node: u32) {
        if !self.is_alive(node) || self.nodes[node as usize].has_failed && self.is_shared(node) {
            return;
        }
        self.withdraw(node);
        let state = &self.nodes[node as usize];
        let (is_planned, reads_origin) = (state.session.is_some(), state.origin_ok);
        let Some(rootless) = &mut self.rootless else { return };
        rootless.repairs += 1;
        let vouching = rootless.at(node);
        let wrong = std::mem::take(&mut vouching.kept);
        let is_own = wrong.values().all(|kept| kept.reader == node);
        let oldest = wrong.values().map(|kept| kept.round).min().unwrap_or(0);
        let (round, next) = (vouching.round, (oldest + 1).max(vouching.round + 1));
        vouching.suspects.extend(wrong.into_values());
        let is_alone = next > ROUNDS_MAX || !is_planned;
        let is_hopeless = is_own && round > 0 || vouching.is_alone || is_alone && !reads_origin;
        (vouching.round, vouching.is_alone) = (next.min(ROUNDS_MAX), is_alone);
        let now = self.queue.now();
        self.trace.note(now, [node, node], || format!("does not add up: repair {next}, alone: {is_alone}"));
        let state = self.at(node);
        state.has_failed = is_alone || is_hopeless;
        if is_hopeless {
            state.swarm = None;
            return self.oracle.gives_up_on_wrong_bytes(node, now);
        }
        self.begin_again(node, is_alone);
    }

    pub(super) fn is_shared(&self, node: u32) -> bool {
        self.rootless.as_ref().is_none_or(|rootless| rootless.is_shared(node))
    }

    /// Nobody may read here any more.
    fn withdraw(&mut self, node: u32) {
        let peer = self.id_of(node);
        self.tell(node, planner::Input::Leave { peer, artifact: ARTIFACT });
        for (child, generation) in std::mem::take(&mut self.at(node).children) {
            self.broken((child, node), generation);
        }
        let state = self.at(node);
        (state.unsaid, state.coming) = (Vec::new(), (0, Vec::new()));
        state.waiting.clear();
        state.interests.clear();
    }

    fn begin_again(&mut self, node: u32, standalone: bool) {
        let config = Config {
            peer_run_pieces: self.scenario.run_pieces,
            standalone,
            ..Config::new(self.id_of(node), self.scenario.seed ^ u64::from(node))
        };
        let (have, now) = (PieceMap::empty(self.scenario.pieces), self.clock(node));
        let first_read = self.oracle.begun_again(node);
        let swarm = Swarm::new(config, self.layout.clone(), have, now);
        let state = self.at(node);
        (state.swarm, state.first_read) = (Some(swarm), first_read);
        let origin = if state.origin_ok { Input::OriginUp { ranges: true } } else { Input::OriginDown };
        let is_lost = state.is_lost;
        self.input(node, origin);
        if is_lost {
            self.input(node, Input::NoScheduler);
        }
        self.join(node);
    }

    /// Whether something is about a read of the swarm that this node had before.
    pub(super) fn is_of_former_swarm(&self, node: u32, input: &Input) -> bool {
        let first = self.nodes[node as usize].first_read;
        matches!(input, Input::Piece { read, .. } | Input::ReadEnded { read, .. } if read.0 < first)
    }

    /// A swarm counts its reads from 0, and a node has had others before.
    pub(super) fn of_this_swarm(&self, node: u32, mut input: Input) -> Input {
        let first = self.nodes[node as usize].first_read;
        if let Input::Piece { read, .. } | Input::ReadEnded { read, .. } = &mut input {
            read.0 -= first;
        }
        input
    }

    /// The same, the other way.
    pub(super) fn of_this_node(&self, node: u32, mut output: Output) -> Output {
        let first = self.nodes[node as usize].first_read;
        if let Output::Read { read, .. } | Output::Cancel { read } = &mut output {
            *read = ReadId(read.0 + first);
        }
        output
    }

    /// That a node is to repair what it has is found when all is hashed.
    pub(super) fn doubt(&mut self, node: u32) {
        self.queue.push(self.queue.now() + HASHED, Event::Repair(node));
    }
}
