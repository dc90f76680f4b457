//! The command that asks a fleet how it is.
//!
//! Owns: its flags. Does not own: what it does.

use std::path::PathBuf;

use clap::Args;

use super::fleet::{PeerChoice, scheduler_url};

/// Show a fleet: its peers, what moves, and who is not trusted
#[derive(Debug, Args)]
#[command(after_help = "\
Asks the fleet's schedulers, and shows what the active one knows. Without --scheduler the local peer
says where they are. Only who has the fleet's key gets an answer.

A suspect is a peer that somebody accuses of wrong bytes, or of giving nothing that it announces:
it is read from last. When a second address accuses it of wrong bytes it is quarantined: it serves
nobody, and may still fetch.

Example:
  $ modelctl status --fleet-key /etc/modelctl/fleet.key
  $ modelctl status --scheduler http://10.0.0.1:7100 --fleet-key /etc/modelctl/fleet.key --json")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
}

/// Whom a question about a fleet goes to.
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// The fleet's schedulers, or one name that has an address for each
    #[arg(
        long,
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        env = "MODELCTL_SCHEDULER",
        hide_env_values = true,
        value_parser = scheduler_url
    )]
    pub(crate) scheduler: Vec<String>,

    /// The fleet's key, if it has one
    #[arg(long, value_name = "FILE", env = "MODELCTL_FLEET_KEY", hide_env_values = true)]
    pub(crate) fleet_key: Option<PathBuf>,

    /// Ask the peer at this socket where the schedulers are, or none [default: /run/modelctl/peer.sock]
    #[arg(long, value_name = "unix:PATH|none", env = "MODELCTL_PEER", hide_env_values = true)]
    pub(crate) peer: Option<PeerChoice>,
}
