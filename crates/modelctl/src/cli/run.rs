//! `modelctl run` as it is typed. Does not own: what it does.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;
use modelpack::reference::Reference;

use super::{
    EmbeddedArgs, RegistryArgs, TransportArgs, TrustArgs, Urgency,
    fleet::{Landing, Link, PeerChoice, SelectionArgs},
    reference,
};

/// Pull an artifact, then become a command that uses it
#[derive(Debug, Args)]
#[command(after_help = "\
The artifact is pulled as by `modelctl pull`. Then this process becomes COMMAND, by exec(2): its
signals, its output and its exit code are the command's own. Every `{}` in its arguments becomes
the directory's absolute path. What `run` itself says goes to stderr.

Without -o the directory is $XDG_CACHE_HOME/modelctl/models/sha256-HEX, below ~/.cache if that is
not set, named by what the reference names now: a second run starts at once, and a tag that has
moved gets a directory of its own. Of the others that no command of `run` uses, the --keep that
were used last stay.

With --scheduler, and without a local peer, the command starts when nobody reads from this process
any more, at the latest after --linger. It serves nobody afterwards; a peer or sidecar does.

Example:
  $ modelctl run registry.example.org/models/chat:v1 -- vllm serve {} --port 8000
  $ modelctl run REF -o /models/chat -- sh -c 'exec my-server --weights \"$1\"' sh {}")]
pub(crate) struct RunArgs {
    /// The artifact
    #[arg(value_name = "REF", value_parser = reference)]
    pub(crate) reference: Reference,

    /// The command, and its arguments, in which `{}` stands for the directory
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,

    /// The directory that is to hold the artifact [default: one in the user's cache, named by its digest]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// How many other artifacts stay in the user's cache
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "output")]
    pub(crate) keep: usize,

    /// Pull through the peer at this socket, or through none [default: /run/modelctl/peer.sock if it answers]
    #[arg(long, value_name = "unix:PATH|none", env = "MODELCTL_PEER", hide_env_values = true)]
    pub(crate) peer: Option<PeerChoice>,

    /// How files come from the local peer's store
    #[arg(long, value_enum, default_value_t = Link::Auto)]
    pub(crate) link: Link,

    /// Land the bytes in this process, not in the local peer: for tmpfs and volumes in memory
    #[arg(long)]
    pub(crate) direct: bool,

    /// How bytes of other peers land in this process; without RDMA always through buffers
    #[arg(long, value_enum, default_value_t = Landing::Auto)]
    pub(crate) landing: Landing,

    /// How urgent it is, where peers of its fleet share their network cards with something else
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Urgency::Normal)]
    pub(crate) priority: Urgency,

    #[command(flatten)]
    pub(crate) selection: SelectionArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,

    #[command(flatten)]
    pub(crate) embedded: EmbeddedArgs,

    #[command(flatten)]
    pub(crate) trust: TrustArgs,

    #[command(flatten)]
    pub(crate) transport: TransportArgs,
}
