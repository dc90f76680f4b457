//! Ways to distribute an artifact that are measured beside the product's own, on the same network and seeds.
//!
//! Owns: the interface of a policy, and which there are. Does not own: what a policy decides (`chain`, `binomial`,
//! `trees`, `mesh`), nor what carries it out (`driver`; for the hybrid, `world`).
//!
//! All but the hybrid are given more than they would have: they know at once what every node holds, a request costs no
//! time, and nothing is sent twice. A piece is sent on only when all of it has arrived, as everywhere.

mod binomial;
mod chain;
mod driver;
mod fleet;
mod mesh;
#[cfg(test)]
mod tests;
mod trees;

use modelpack::layout::PieceIndex;

use crate::options::{Options, Report};
use fleet::Fleet;

/// Decides what each node sends. The driver asks; the policy sends nothing by itself.
trait Policy {
    /// What a node sends next and to whom, as its card is idle: a piece that it holds to a node that wants it. `None`
    /// until a piece has arrived somewhere.
    fn next(&mut self, from: u32, fleet: &Fleet) -> Option<(u32, PieceIndex)>;

    /// Who is there has changed: the fleet counts those that have come, and no longer those that are known to be dead.
    fn changed(&mut self, fleet: &Fleet);
}

/// A way to distribute an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each node sends to the next one.
    Chain,
    /// RDMC's binomial pipeline: a hypercube, one of its dimensions after the other.
    Binomial,
    /// The plan that the product's planner makes at the start, and nothing else.
    Trees,
    /// A random graph, rarest piece first within a window.
    Mesh,
    /// The product: planned trees, and swarms that may leave them.
    Hybrid,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Chain, Self::Binomial, Self::Trees, Self::Mesh, Self::Hybrid];

    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Binomial => "binomial",
            Self::Trees => "trees",
            Self::Mesh => "mesh",
            Self::Hybrid => "hybrid",
        }
    }

    /// Runs a scenario to its end under this policy. Under all but the hybrid, of its faults only those are played that
    /// are about cards, about who comes late or dies, and about what nodes have when they come.
    pub fn run(self, options: &Options) -> Report {
        match self {
            Self::Chain => driver::run(options, &mut chain::Chain),
            Self::Binomial => driver::run(options, &mut binomial::Binomial::new(options)),
            Self::Trees => driver::run(options, &mut trees::Trees::new(options)),
            Self::Mesh => driver::run(options, &mut mesh::Mesh::new(options)),
            Self::Hybrid => crate::run(options),
        }
    }
}
