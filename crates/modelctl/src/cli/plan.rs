//! The command that says how an artifact would be distributed.
//!
//! Owns: its flags. Does not own: what it does.

use std::path::PathBuf;

use clap::Args;
use modelpack::{quantity::Rate, reference::Reference};

use super::{FleetArgs, RegistryArgs, reference};

/// Say how an artifact would reach many peers, and how fast; or how it does now
#[derive(Debug, Args)]
#[command(after_help = "\
Reads the artifact's manifest and no more, makes the plan that a scheduler would make if all these
peers wanted the artifact at once, and shows it: the time that no distribution can beat and what
sets it, the predicted time, what is read from the origin by whom, and the trees. Each stripe, an
equal part of the pieces, travels along a tree of its own. Nothing is sent to anybody.

The file has one peer a line: NAME RATE [zone=ZONE] [rack=RACK] [seed], where RATE is what its
network card does in each direction, as in --nic-rate. NAME[1-64] stands for 64 peers, # begins a
comment. Where there are seeds they are the origin, and nobody reads the registry:

  # what stands in the new racks
  node[01-16]  100gbit  rack=r1
  node[17-32]  100gbit  rack=r2
  old-1        25gbit
  store        10GB/s  seed

With --live it shows the plan that the fleet's scheduler has of the artifact now, and how much of it
each peer has. A peer that has everything reads nothing, so that it is below nobody.

Example:
  $ modelctl plan registry.example.org/models/minilm:v1 --peers peers.txt
  $ modelctl plan oci:out:v1 --peers peers.txt --origin-rate 10gbit --svg trees.svg
  $ modelctl plan fleet:sha256:5f3a… --live --fleet-key /etc/modelctl/fleet.key")]
pub(crate) struct PlanArgs {
    /// The artifact
    #[arg(value_name = "REF", value_parser = reference)]
    pub(crate) reference: Reference,

    /// The peers that would want it, one a line
    #[arg(long, value_name = "FILE", required_unless_present = "live")]
    pub(crate) peers: Option<PathBuf>,

    /// Show the plan of the fleet's scheduler instead
    #[arg(long, conflicts_with_all = ["peers", "origin_rate"])]
    pub(crate) live: bool,

    /// What the registry sends, to all peers together [default: not known, and no limit]
    #[arg(long, value_name = "RATE")]
    pub(crate) origin_rate: Option<Rate>,

    /// The stripe whose tree is drawn
    #[arg(long, value_name = "N")]
    pub(crate) stripe: Option<usize>,

    /// Draw the trees of all stripes, or that of --stripe, into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    #[command(flatten, next_help_heading = "With --live")]
    pub(crate) fleet: FleetArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}
