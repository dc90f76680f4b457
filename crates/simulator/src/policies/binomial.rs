//! The binomial pipeline on a hypercube, as in RDMC (Behrens et al. 2018, after Ganesan and Seshadri 2005). Does not own
//! what carries pieces.
//!
//! In step `j` the two ends of each edge of dimension `j mod l` send each other a piece. A vertex passes on what it got
//! last along an edge whose bit is set in its number: to one neighbour after the other, until it gets the next such
//! piece. What it gets along other edges, everybody else has. So after `k − 1 + l` steps all have everything.
//!
//! Where nodes are no power of two, some vertices are two nodes: one sends what the vertex sends, the other receives
//! what it receives and hands the first what that missed in the step before; after each step whose bit is set they
//! change. That costs a step in all.

use modelpack::layout::PieceIndex;

use super::Policy;
use super::fleet::Fleet;
use crate::options::Options;

/// Each node goes through its steps at its own pace: it does the next when the last has left its card, the piece is
/// there, what it is to receive in the last has begun to come, and nobody else's card sends to the receiver. When nodes come or are lost, all are numbered anew and begin again with the first piece that anybody lacks;
/// nothing is sent to who has it.
#[derive(Debug)]
pub(super) struct Binomial {
    /// The nodes of each vertex, one or two; the origin is the first.
    vertices: Vec<Vec<u32>>,
    /// The vertex of each node that is there.
    vertex_of: Vec<Option<u32>>,
    /// How many of the first pieces all have had from the start.
    base: u32,
    /// The next step of each node.
    steps: Vec<u32>,
}

impl Binomial {
    pub(super) fn new(options: &Options) -> Self {
        let mut all = Self { vertices: Vec::new(), vertex_of: Vec::new(), base: 0, steps: Vec::new() };
        all.number(&Fleet::new(options.nodes, options.pieces));
        all
    }

    fn number(&mut self, fleet: &Fleet) {
        let ranks: Vec<u32> = std::iter::once(fleet.origin()).chain(fleet.peers()).collect();
        let count = 1 << ranks.len().ilog2();
        self.vertices = ranks[..count].iter().map(|node| vec![*node]).collect();
        for (vertex, node) in self.vertices[1..].iter_mut().zip(&ranks[count..]) {
            vertex.push(*node);
        }
        let nodes = fleet.origin() as usize + 1;
        self.vertex_of = vec![None; nodes];
        for (number, vertex) in (0..).zip(&self.vertices) {
            for node in vertex {
                self.vertex_of[*node as usize] = Some(number);
            }
        }
        self.base = fleet.peers().map(|peer| fleet.prefix(peer)).min().unwrap_or_default();
        self.steps = vec![0; nodes];
    }

    fn dimensions(&self) -> u32 {
        self.vertices.len().ilog2()
    }

    /// Which of its nodes receives in a step what the vertex receives.
    fn receiver(&self, vertex: u32, step: u32) -> u32 {
        let (rounds, rest) = (step / self.dimensions(), step % self.dimensions());
        let changes = rounds * vertex.count_ones() + (vertex & ((1 << rest) - 1)).count_ones();
        let nodes = &self.vertices[vertex as usize];
        nodes[changes as usize % nodes.len()]
    }

    /// What a node sends in a step: to whom, and which of `pieces`.
    fn transfer(&self, node: u32, step: u32, pieces: u32) -> Option<(u32, u32)> {
        let vertex = self.vertex_of[node as usize]?;
        let dimensions = self.dimensions();
        let is_pair = self.vertices[vertex as usize].len() == 2;
        if is_pair && self.receiver(vertex, step) == node {
            let twin = *self.vertices[vertex as usize].iter().find(|other| **other != node)?;
            let piece = step.checked_sub(dimensions + 1)?;
            return Some((twin, piece.min(pieces - 1)));
        }
        let edge = step % dimensions;
        let other = vertex ^ (1 << edge);
        if other == 0 {
            return None;
        }
        let piece = if vertex == 0 {
            step
        } else {
            // How long until an edge whose bit is set comes, along which the vertex got the piece before.
            let wait = (0..dimensions).find(|ahead| vertex >> ((edge + ahead) % dimensions) & 1 == 1)?;
            (step + wait).checked_sub(dimensions)?
        };
        Some((self.receiver(other, step), piece.min(pieces - 1)))
    }

    /// What a node receives in a step.
    fn due(&self, node: u32, step: u32, pieces: u32) -> Option<u32> {
        let vertex = self.vertex_of[node as usize]?;
        let other = vertex ^ (1 << (step % self.dimensions()));
        let senders = self.vertices[other as usize].iter().chain(&self.vertices[vertex as usize]);
        senders.filter(|sender| **sender != node).find_map(|sender| {
            self.transfer(*sender, step, pieces).filter(|(to, _)| *to == node).map(|(_, piece)| piece)
        })
    }
}

impl Policy for Binomial {
    fn next(&mut self, from: u32, fleet: &Fleet) -> Option<(u32, PieceIndex)> {
        if fleet.is_sending(from) {
            return None;
        }
        let pieces = fleet.pieces() - self.base;
        // One dimension more than vertices have is for what twins hand each other.
        while self.steps[from as usize] <= pieces + self.dimensions() + 1 {
            let step = self.steps[from as usize];
            let due = step.checked_sub(1).and_then(|before| self.due(from, before, pieces));
            if due.is_some_and(|piece| fleet.wants(from, self.base + piece)) {
                return None;
            }
            let transfer = self.transfer(from, step, pieces).map(|(to, piece)| (to, self.base + piece));
            if let Some((to, piece)) = transfer.filter(|(to, piece)| fleet.wants(*to, *piece)) {
                if !fleet.holds(from, piece) || fleet.is_receiving(to) {
                    return None;
                }
                self.steps[from as usize] += 1;
                return Some((to, PieceIndex(piece)));
            }
            self.steps[from as usize] += 1;
        }
        None
    }

    fn changed(&mut self, fleet: &Fleet) {
        self.number(fleet);
    }
}
