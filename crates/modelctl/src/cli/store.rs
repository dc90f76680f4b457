//! What is typed about a store and about two artifacts.
//!
//! Owns: these flags. Does not own: the store.

use std::path::PathBuf;

use clap::Args;
use modelpack::{quantity::Size, reference::Reference};

use super::{RegistryArgs, reference};

/// Which store.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArgs {
    /// The directory of the store
    #[arg(
        long,
        value_name = "DIR",
        env = "MODELCTL_STORE",
        hide_env_values = true,
        default_value = "/var/lib/modelctl"
    )]
    pub(crate) store: PathBuf,
}

/// List what a store holds
#[derive(Debug, Args)]
#[command(after_help = "\
Also while a peer runs on the store. SIZE counts what artifacts share for each of them, OWN only
what removing it would free.

Example:
  $ modelctl ls
  $ modelctl ls --store ./store --json")]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Remove an artifact from a store
#[derive(Debug, Args)]
#[command(after_help = "\
A name is taken away; with its last name the artifact goes, and so do the blobs that no other one
has. A digest, or the beginning of one, removes the artifact with all its names. A peer that runs on
the store has to end first; with --store-max it removes by itself what was not used for longest.

Example:
  $ modelctl rm registry.example.org/models/minilm:v1
  $ modelctl rm 6a5b0c3d9f2e")]
pub(crate) struct RmArgs {
    /// A name as `modelctl ls` shows it, or a digest or its first 8 characters or more
    #[arg(value_name = "REF")]
    pub(crate) reference: String,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Give an artifact of a store another name, or pin it
#[derive(Debug, Args)]
#[command(after_help = "\
Peers that announce or look up the new name find the artifact under it. What is pinned is neither
collected nor removed; pins can be set while a peer runs on the store.

Example:
  $ modelctl tag registry.example.org/models/minilm:v1 registry.example.org/models/minilm:stable
  $ modelctl tag registry.example.org/models/minilm:v1 --pin")]
pub(crate) struct TagArgs {
    /// A name as `modelctl ls` shows it, or a digest or its first 8 characters or more
    #[arg(value_name = "REF")]
    pub(crate) source: String,

    #[arg(value_name = "NAME", value_parser = reference, required_unless_present_any = ["pin", "unpin"],
        help = "Another name, as HOST/REPO:TAG")]
    pub(crate) name: Option<Reference>,

    /// Never collect it
    #[arg(long, conflicts_with = "unpin")]
    pub(crate) pin: bool,

    /// Let it be collected again
    #[arg(long)]
    pub(crate) unpin: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Remove from a store what is not needed
#[derive(Debug, Args)]
#[command(after_help = "\
What has landed of pulls that nobody goes on with, and what a crash has left. With --max also whole
artifacts, the least recently used first, until the rest fits; what is pinned stays. A peer that
runs on the store has to end first.

Example:
  $ modelctl prune --dry-run
  $ modelctl prune --max 500GB")]
pub(crate) struct PruneArgs {
    /// How much may stay, as in 500GB or 2TiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) max: Option<Size>,

    /// Say what would go; remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Say what differs between two artifacts
#[derive(Debug, Args)]
#[command(after_help = "\
Compares manifests and the headers of weights; no file is read. For a file that changed, the bytes
that would move are those of the pieces of 1 MiB that differ, where both artifacts have piece trees,
and else all of it. A tensor counts as changed if a piece in which it lies is. Exits with 0 whether
or not something differs.

Example:
  $ modelctl diff registry.example.org/models/minilm:v1 registry.example.org/models/minilm:v2")]
pub(crate) struct DiffArgs {
    /// The artifact that is there
    #[arg(value_name = "OLD", value_parser = reference)]
    pub(crate) old: Reference,

    /// The one that it is compared with
    #[arg(value_name = "NEW", value_parser = reference)]
    pub(crate) new: Reference,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}
