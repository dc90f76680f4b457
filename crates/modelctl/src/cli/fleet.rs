//! The commands that move an artifact to where it is served.
//!
//! Owns: their flags, and the values that only they take. Does not own: what they do.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use modelpack::{
    manifest::Kind,
    quantity::Size,
    reference::{Reference, ReferenceError},
    selection::{Selection, SelectionError},
};

use planner::Place;
use wire::{convert, schedulers::scheduler_address};

use super::{MirrorArgs, RegistryArgs, TransportArgs, Urgency, reference};

/// Pull an artifact into a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Each piece is proved before it counts, and nothing has its final name before everything is proved.
A pull that was interrupted goes on where it stopped. Run again on a complete directory, it does
nothing. A directory that holds anything else is refused and left as it is.

If the local peer answers (see `modelctl peer`), it fetches together with the other peers of its
fleet. Else, with --scheduler, this process takes part in the fleet itself: it reads from peers and
serves what it has proved, also for a while after it has said that it is done. Else it reads from
the registry alone. With --direct it lands the bytes itself in any case, and asks the local peer
only for the scheduler. Without -o the local peer brings the artifact into its own store, from
where it serves others, and a later pull on this machine finds it.
How a local peer reads from others, and how fast, is its own --transport and --limit.

With --base, files of an older version are looked through: what is the same, under the same path
or in a tensor of the same name, is copied instead of fetched, and proved like anything else. A
local peer looks through the older versions in its store by itself.

With --include, --exclude or --kind only a part goes to the directory. From the registry alone
nothing else is read; a local peer brings the whole artifact, because that is what peers exchange.
A glob is matched with the whole path: `*` stays within a directory, `**` does not.

A model on a hub (hf://ORG/NAME[@REV]) is read as other tools of the hub read it: HF_ENDPOINT,
HF_TOKEN or the file of `hf auth login`, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE mean the same.
A revision is resolved once to a commit. Files of the shared cache are used, once they are proved,
unless a local peer fetches. With --hf-cache the model goes into that cache, where transformers and
vLLM find it by its name.

Example:
  $ modelctl pull registry.example.org/models/minilm:v1 -o /models/minilm
  $ modelctl pull hf://org/minilm -o /models/minilm
  $ modelctl pull registry.example.org/models/minilm:v2 -o /models/minilm-v2 --base /models/minilm
  $ modelctl pull REF -o DIR --kind config,weight --exclude 'original/**'
  $ modelctl pull REF -o DIR --scheduler http://10.0.0.1:7100 --fleet-key /etc/modelctl/fleet.key")]
pub(crate) struct PullArgs {
    /// The artifact
    #[arg(value_name = "REF", value_parser = reference)]
    pub(crate) reference: Reference,

    /// The directory that is to hold it [default: only the local peer's store]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Put a model of a hub into the cache that the hub's own tools share
    #[arg(long, conflicts_with = "output")]
    pub(crate) hf_cache: bool,

    /// Say what would move from where and whether it fits; change nothing
    #[arg(long, requires = "output")]
    pub(crate) dry_run: bool,

    /// Pull through the peer at this socket, or through none [default: /run/modelctl/peer.sock if it answers]
    #[arg(long, value_name = "unix:PATH|none", env = "MODELCTL_PEER", hide_env_values = true)]
    pub(crate) peer: Option<PeerChoice>,

    /// How files come from the local peer's store
    #[arg(long, value_enum, default_value_t = Link::Auto, requires = "output")]
    pub(crate) link: Link,

    /// Take what is the same from an older version here; may be given several times
    #[arg(long, value_name = "DIR|oci:DIR[:TAG]", value_parser = base, requires = "output")]
    pub(crate) base: Vec<Reference>,

    /// Land the bytes in this process, not in the local peer: for tmpfs and volumes in memory
    #[arg(long, requires = "output")]
    pub(crate) direct: bool,

    /// How bytes of other peers land in this process; without RDMA always through buffers
    #[arg(long, value_enum, default_value_t = Landing::Auto, requires = "output")]
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

/// A directory, however it is written, or a layout.
fn base(text: &str) -> Result<Reference, ReferenceError> {
    if text.starts_with("oci:") { reference(text) } else { Ok(Reference::Directory(text.into())) }
}

/// Which part of an artifact is meant.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct SelectionArgs {
    /// Only files whose path this matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,

    /// No files whose path this matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,

    /// Only files of these kinds
    #[arg(long, value_enum, value_name = "KIND[,KIND]", value_delimiter = ',')]
    pub(crate) kind: Vec<FileKind>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileKind {
    Config,
    Weight,
    Code,
    Doc,
    Dataset,
}

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::Config => Self::Config,
            FileKind::Weight => Self::Weight,
            FileKind::Code => Self::Code,
            FileKind::Doc => Self::Doc,
            FileKind::Dataset => Self::Dataset,
        }
    }
}

impl SelectionArgs {
    /// What is wanted.
    pub(crate) fn selection(&self) -> Result<Selection, SelectionError> {
        let kinds: Vec<_> = self.kind.iter().copied().map(Kind::from).collect();
        Selection::new(&self.include, &self.exclude, &kinds)
    }
}

/// How a pull takes part in a fleet by itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub(crate) struct EmbeddedArgs {
    /// Without a local peer: take part in the fleet of these schedulers
    #[arg(
        long,
        value_name = "URL[,URL]",
        value_delimiter = ',',
        env = "MODELCTL_SCHEDULER",
        hide_env_values = true,
        value_parser = scheduler_url
    )]
    pub(crate) scheduler: Vec<String>,

    /// Where other peers reach this process [default: loopback without a key, else this machine's address as the scheduler sees it]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,

    /// The host by which others reach it, where that is not the address that it listens on
    #[arg(long, value_name = "HOST", env = "MODELCTL_ADVERTISE", hide_env_values = true)]
    pub(crate) advertise: Option<String>,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// How long it may live on when it is done, while others still read from it
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) linger: Wait,

    /// With a fleet key: do not encrypt model bytes between peers, which is faster
    #[arg(long, requires = "fleet_key")]
    pub(crate) data_plain: bool,
}

/// Where a process stands: bytes cross from rack to rack, and from zone to zone, once for all who are there.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PlaceArgs {
    /// The zone it stands in, a room or a data centre: of each part of an artifact one copy comes into it
    #[arg(long, value_name = "NAME", env = "MODELCTL_ZONE", hide_env_values = true, value_parser = label)]
    pub(crate) zone: Option<String>,

    /// The rack it stands in within its zone, the machines of one switch: one copy comes into it
    #[arg(long, value_name = "NAME", env = "MODELCTL_RACK", hide_env_values = true, value_parser = label)]
    pub(crate) rack: Option<String>,
}

impl From<&PlaceArgs> for Place {
    fn from(args: &PlaceArgs) -> Self {
        let [zone, rack] = [&args.zone, &args.rack].map(|label| label.clone().unwrap_or_default());
        Self { zone, rack }
    }
}

/// The name of a zone or a rack.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let why = |_| format!("it has at most {} bytes, and no control characters", convert::LABEL_BYTES_MAX);
    convert::label(text.to_owned()).map_err(why)
}

/// How long an end may be put off, as in `10s`, `500ms`, `2m` or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) Duration);

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_millis()) {
            (seconds, 0) => write!(f, "{seconds} s"),
            _ => write!(f, "{} ms", self.0.as_millis()),
        }
    }
}

impl FromStr for Wait {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" if number.chars().all(|digit| digit == '0') => 0,
            _ => return Err("the units are ms, s, m and h"),
        };
        let number: u64 = number.parse().map_err(|_| "it begins with a whole number")?;
        let millis = number.checked_mul(millis).filter(|millis| *millis <= WAIT_MAX_MS);
        millis.map(Duration::from_millis).map(Self).ok_or("that is longer than a day")
    }
}

/// Longer than any artifact takes; beyond it somebody meant something else.
const WAIT_MAX_MS: u64 = 24 * 3_600_000;

/// Which local peer a pull goes through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerChoice {
    None,
    Socket(PathBuf),
}

impl FromStr for PeerChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            _ if text == "none" => Ok(Self::None),
            Some(path) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err("it is `unix:PATH` or `none`"),
        }
    }
}

/// How a blob is brought from the local peer's store into a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    /// Reflink, else hard link, else copy
    Auto,
    /// Share the blocks until one side is written, or fail
    Reflink,
    /// A second name of the store's own file, or fail
    Hard,
    /// Bytes of their own, for consumers that may write
    Copy,
}

impl From<Link> for store::LinkMode {
    fn from(link: Link) -> Self {
        match link {
            Link::Auto => Self::Auto,
            Link::Reflink => Self::Reflink,
            Link::Hard => Self::Hard,
            Link::Copy => Self::Copy,
        }
    }
}

/// How bytes of other peers get to their final offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Landing {
    /// Onto a tmpfs: written there by the network card. Else through buffers
    Auto,
    /// The same, but fail at once where the file system cannot
    Direct,
    /// Through buffers, also over RDMA
    Staged,
}

impl From<Landing> for peer::LandingMode {
    fn from(landing: Landing) -> Self {
        match landing {
            Landing::Auto => Self::Auto,
            Landing::Direct => Self::Direct,
            Landing::Staged => Self::Staged,
        }
    }
}

/// Run this node's peer: it stores, fetches and serves
#[derive(Debug, Args)]
#[command(after_help = "\
One a node. Pulls on this machine go through its socket; it fetches each artifact once, from the
origin and from other peers, and serves what it has proved. Without a scheduler it fetches from the
origin alone. With --json the first line of stdout says where it listens, once it is ready.

At SIGTERM or SIGINT it lets nobody new in, tells the scheduler and all who read from it to go
elsewhere, and ends when their reads under way have ended, or after --drain; at a second signal at
once. Pulls on this machine end with an error; what has landed is in the store.

Example:
  $ modelctl peer --store /var/lib/modelctl --scheduler http://127.0.0.1:7100
  $ modelctl peer --store /var/lib/modelctl --scheduler http://127.0.0.1:7100 --seed ./minilm
  $ modelctl peer --store /store --listen 10.0.0.2:7200 --scheduler http://10.0.0.1:7100 --fleet-key KEY")]
pub(crate) struct PeerArgs {
    /// The directory of its store; made if it is missing
    #[arg(long, value_name = "DIR", env = "MODELCTL_STORE", hide_env_values = true)]
    pub(crate) store: PathBuf,

    /// How much its store may hold, as in 500GB or 2TiB: what was not used for longest goes first
    #[arg(long, value_name = "SIZE", env = "MODELCTL_STORE_MAX", hide_env_values = true)]
    pub(crate) store_max: Option<Size>,

    /// The socket for pulls on this machine
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/modelctl/peer.sock",
        env = "MODELCTL_SOCKET",
        hide_env_values = true
    )]
    pub(crate) socket: PathBuf,

    /// A group, by name or number, whose members may pull through the socket, too
    #[arg(long, value_name = "GROUP", env = "MODELCTL_SOCKET_GROUP", hide_env_values = true)]
    pub(crate) socket_group: Option<String>,

    /// Where other peers reach it; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "MODELCTL_LISTEN",
        hide_env_values = true
    )]
    pub(crate) listen: SocketAddr,

    /// The schedulers, of which one plans with all peers; or one name that has an address for each
    #[arg(
        long,
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        env = "MODELCTL_SCHEDULER",
        hide_env_values = true,
        value_parser = scheduler_url
    )]
    pub(crate) scheduler: Vec<String>,

    /// Announce an artifact of this machine, which others pull as fleet:DIGEST: a directory of files,
    /// oci:DIR:TAG, or what the store has, as it was pulled or as fleet:DIGEST; may be repeated
    #[arg(long, value_name = "REF", value_parser = reference)]
    pub(crate) seed: Vec<Reference>,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Its name in messages for people [default: the host's name]
    #[arg(long, env = "MODELCTL_NAME", hide_env_values = true)]
    pub(crate) name: Option<String>,

    /// The host by which others reach it, where that is not the address that it listens on
    #[arg(long, value_name = "HOST", env = "MODELCTL_ADVERTISE", hide_env_values = true)]
    pub(crate) advertise: Option<String>,

    /// Where it shows /metrics and /healthz, over plain HTTP, to anybody who can reach it [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "MODELCTL_HTTP_LISTEN", hide_env_values = true)]
    pub(crate) http_listen: Option<SocketAddr>,

    /// How bytes of other peers land in its store; without RDMA always through buffers
    #[arg(long, value_enum, default_value_t = Landing::Auto)]
    pub(crate) landing: Landing,

    /// Fetch all of a new version, instead of taking from older ones in the store what is the same: for
    /// networks that are faster than the disk
    #[arg(long, env = "MODELCTL_NO_DELTA", hide_env_values = true)]
    pub(crate) no_delta: bool,

    /// How long its end may take while others still read from it
    #[arg(long, value_name = "TIME", default_value = "30s", env = "MODELCTL_DRAIN", hide_env_values = true)]
    pub(crate) drain: Wait,

    #[command(flatten)]
    pub(crate) mirror: MirrorArgs,

    #[command(flatten)]
    pub(crate) trust: TrustArgs,

    /// With a fleet key: do not encrypt model bytes between peers, which is faster
    #[arg(long, requires = "fleet_key")]
    pub(crate) data_plain: bool,

    #[command(flatten)]
    pub(crate) transport: TransportArgs,
}

/// Who may speak to a process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub(crate) struct TrustArgs {
    /// The fleet's key: speak only with processes that have the same, encrypted
    #[arg(long, value_name = "FILE", env = "MODELCTL_FLEET_KEY", hide_env_values = true)]
    pub(crate) fleet_key: Option<PathBuf>,

    /// Without a key: listen on an address that other machines reach all the same
    #[arg(long, conflicts_with = "fleet_key")]
    pub(crate) insecure: bool,
}

/// Make a fleet's key
#[derive(Debug, Args)]
#[command(after_help = "\
Whoever holds the key is a member of the fleet: it can read every artifact there and take part in
moving it. Make one, copy it to every machine by a way that you trust, and start each scheduler and
peer with it. There is no revocation but a new key.

Example:
  $ modelctl fleet-key new /etc/modelctl/fleet.key")]
pub(crate) struct FleetKeyArgs {
    #[command(subcommand)]
    pub(crate) action: FleetKeyAction,
}

/// What is done with a fleet key.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetKeyAction {
    /// Write a new key to a new file that only its owner can read
    New {
        /// The file
        file: PathBuf,
    },
}

/// Run the scheduler: it plans who gets what from whom
#[derive(Debug, Args)]
#[command(after_help = "\
Peers connect to it and tell it what they have and want; it needs nothing on disk, and pulls go on
without it. Of several schedulers one is used by all peers, and another when that one is gone. It
ends at SIGTERM or SIGINT. With --json the first line of stdout says where it listens.

With --record it appends to a file who came, joined, got on and left, and which plans it made, one
JSON object a line, up to 1 GiB. `simulator rerun FILE` plays that again under other policies.

Example:
  $ modelctl scheduler --listen 127.0.0.1:7100
  $ modelctl scheduler --listen 10.0.0.1:7100 --scheduler http://10.0.0.1:7100,http://10.0.0.2:7100 \\
      --fleet-key /etc/modelctl/fleet.key
  $ modelctl scheduler --listen 10.0.0.1:7100 --fleet-key /etc/modelctl/fleet.key")]
pub(crate) struct SchedulerArgs {
    /// Where peers reach it; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:7100",
        env = "MODELCTL_LISTEN",
        hide_env_values = true
    )]
    pub(crate) listen: SocketAddr,

    /// All schedulers of the fleet, the same list that the peers have; this one may be among them
    #[arg(
        long,
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        env = "MODELCTL_SCHEDULER",
        hide_env_values = true,
        value_parser = scheduler_url
    )]
    pub(crate) scheduler: Vec<String>,

    /// HOST:PORT by which peers know it, where that is not the address that it listens on
    #[arg(long, value_name = "HOST:PORT", value_parser = scheduler_url)]
    pub(crate) advertise: Option<String>,

    /// Where it shows /metrics and /healthz, over plain HTTP, to anybody who can reach it [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "MODELCTL_HTTP_LISTEN", hide_env_values = true)]
    pub(crate) http_listen: Option<SocketAddr>,

    /// Write down here what happens, to play it again [default: nowhere]
    #[arg(long, value_name = "FILE", env = "MODELCTL_RECORD", hide_env_values = true)]
    pub(crate) record: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) trust: TrustArgs,
}

pub(super) fn scheduler_url(text: &str) -> Result<String, &'static str> {
    scheduler_address(text).ok_or("it is `http://HOST:PORT`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let (ms, max) = (Duration::from_millis, "that is longer than a day");
        for (text, expected) in [
            ("0", Ok(ms(0))),
            ("0s", Ok(ms(0))),
            ("500ms", Ok(ms(500))),
            ("10s", Ok(ms(10_000))),
            ("2m", Ok(ms(120_000))),
            ("24h", Ok(ms(86_400_000))),
            ("25h", Err(max)),
            ("18446744073709551615h", Err(max)),
            ("10", Err("the units are ms, s, m and h")),
            ("-1s", Err("the units are ms, s, m and h")),
            ("s", Err("it begins with a whole number")),
            ("", Err("it begins with a whole number")),
        ] {
            assert_eq!(text.parse::<Wait>().map(|linger| linger.0), expected, "{text}");
        }
    }

    #[test]
    fn a_peer_is_a_socket_or_none() {
        assert_eq!("none".parse(), Ok(PeerChoice::None));
        assert_eq!("unix:/run/a.sock".parse(), Ok(PeerChoice::Socket("/run/a.sock".into())));
        assert!("unix:".parse::<PeerChoice>().is_err());
        assert!("/run/a.sock".parse::<PeerChoice>().is_err());
    }

    #[test]
    fn a_scheduler_is_named_by_host_and_port() {
        assert_eq!(scheduler_url("http://10.0.0.1:7100/"), Ok("10.0.0.1:7100".into()));
        for wrong in ["https://a:1", "http://a", "http://:1", "http://a/b:1"] {
            assert!(scheduler_url(wrong).is_err(), "{wrong}");
        }
    }
}
