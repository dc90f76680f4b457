//! `modelctl sidecar` as it is typed. Does not own: what it does, or the grammar of its file (crate `sidecar`).

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use modelpack::reference::Reference;

use super::{
    EmbeddedArgs, RegistryArgs, TransportArgs, TrustArgs, Urgency,
    fleet::{Landing, Link, PeerChoice, SelectionArgs, Wait},
    reference,
};

/// Keep model directories present and fresh beside the server that reads them
#[derive(Debug, Args)]
#[command(after_help = "\
DIR becomes a symbolic link to a version that is complete and proved. When the tag moves, the next
version is pulled beside it and the link is renamed over the old one: whoever opens DIR finds a
whole version at any moment, and what a server has open or mapped never changes. One former version
stays, or as many as `keep` says. If the registry is away, what is there is served, and called stale.
Of a model on a hub (`hf://ORG/NAME@BRANCH`) only the branch's commit is looked at.

With --once it ends when every model is there: for an init container. Else it stays, serves peers
with --scheduler, and answers over HTTP: /healthz, /readyz and /startupz for probes, /v1/models with
state, digest and progress, /metrics. At SIGTERM it finishes a switch under way, and serves those who
read from it for at most --linger.

A file names several models, and the server that is told of a new version (Triton, vLLM, SGLang):

  poll = \"1m\"
  [[model]]
  reference = \"registry.example.org/models/chat:stable\"
  directory = \"/models/chat\"
  exclude = [\"*.bin\"]                 # as --include, --exclude and --kind
  [model.triton]
  url = \"http://127.0.0.1:8000\"
  repository = \"/models/triton\"

Example:
  $ modelctl sidecar registry.example.org/models/chat:stable -o /models/chat --once
  $ modelctl sidecar --config sidecar.toml --scheduler http://10.0.0.1:7100 --fleet-key KEY")]
pub(crate) struct SidecarArgs {
    /// The artifact, if there is one only
    #[arg(value_name = "REF", value_parser = reference, requires = "output", required_unless_present = "config", conflicts_with = "config")]
    pub(crate) reference: Option<Reference>,

    /// The directory that is to hold it
    #[arg(short, long, value_name = "DIR", requires = "reference")]
    pub(crate) output: Option<PathBuf>,

    /// What to keep where, and which servers to tell, in TOML
    #[arg(long, value_name = "FILE", env = "MODELCTL_SIDECAR_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// End when every model is there
    #[arg(long)]
    pub(crate) once: bool,

    /// How often each tag is looked at [default: what the file says, else 1m]
    #[arg(long, value_name = "TIME")]
    pub(crate) poll: Option<Wait>,

    /// Where it answers over HTTP [default: what the file says, else 127.0.0.1:7300; nowhere with --once]
    #[arg(long, value_name = "ADDR", env = "MODELCTL_HTTP_LISTEN", hide_env_values = true)]
    pub(crate) http_listen: Option<SocketAddr>,

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
