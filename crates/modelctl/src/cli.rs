//! The command line as it is typed.
//!
//! Owns: names of commands and flags, their help, and what can be judged of a value by itself. Does not own: what the
//! commands do. A flag exists from the day it works.

mod fleet;
mod login;
mod mirror;
mod plan;
mod publish;
mod run;
mod sidecar;
mod status;
mod store;
mod transport;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, CommandFactory as _, Parser, Subcommand, ValueEnum, builder::BoolishValueParser, error::ErrorKind,
};
use modelpack::reference::{Reference, ReferenceError};

pub(crate) use self::fleet::{
    EmbeddedArgs, FleetKeyAction, FleetKeyArgs, Landing, PeerArgs, PeerChoice, PullArgs, SchedulerArgs,
    SelectionArgs, TrustArgs, label,
};
pub(crate) use self::login::{LoginArgs, LogoutArgs};
pub(crate) use self::mirror::{MirrorArgs, UpstreamUrl};
pub(crate) use self::plan::PlanArgs;
pub(crate) use self::publish::{AboutArgs, ModelfileArgs, Placing};
pub(crate) use self::run::RunArgs;
pub(crate) use self::sidecar::SidecarArgs;
pub(crate) use self::status::{FleetArgs, StatusArgs};
pub(crate) use self::store::{DiffArgs, LsArgs, PruneArgs, RmArgs, StoreArgs, TagArgs};
pub(crate) use self::transport::{DeviceArgs, Transport, TransportArgs, Urgency};
use crate::report::Refusal;

const REFERENCES: &str = "\
References:
  HOST/REPO[:TAG][@DIGEST]  an artifact in a registry; HOST has a `.` or `:`, or is `localhost`
  oci:DIR[:TAG|@DIGEST]     an artifact in an OCI image layout on disk
  hf://ORG/NAME[@REV]       a model on a Hugging Face hub
  fleet:DIGEST              an artifact that other peers have, pulled through the local peer
  /DIR, ./DIR, ../DIR       a directory

Exit codes:
  0 done, 1 failed, 2 wrong usage or configuration, 3 bytes are not what they should be

Data goes to stdout, everything else to stderr. With --json a failure is said on stdout too, as the
last line: {\"error\",\"causes\",\"hint\",\"exit_code\"}.

Example:
  $ modelctl build ./minilm -t registry.example.org/models/minilm:v1
  $ modelctl pull registry.example.org/models/minilm:v1 -o /models/minilm";

/// Moves AI model weights to every machine that serves them, and proves every byte
#[derive(Debug, Parser)]
#[command(name = "modelctl", version, max_term_width = 100, after_help = REFERENCES, disable_help_subcommand = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print the result as one JSON object on one line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Build(BuildArgs),
    Modelfile(ModelfileArgs),
    Push(PushArgs),
    Pull(PullArgs),
    Run(RunArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Diff(DiffArgs),
    Ls(LsArgs),
    Rm(RmArgs),
    Tag(TagArgs),
    Prune(PruneArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Peer(PeerArgs),
    Scheduler(SchedulerArgs),
    Sidecar(Box<SidecarArgs>),
    Status(StatusArgs),
    Plan(PlanArgs),
    FleetKey(FleetKeyArgs),
    Doctor(DoctorArgs),
}

/// Publish a directory as a ModelPack artifact
#[derive(Debug, Args)]
#[command(after_help = "\
Every file becomes one layer, named by its SHA-256 and annotated with its BLAKE3 hash, so that
whoever pulls it can prove each piece as it arrives. The same files give the same digest on any
machine and day; SOURCE_DATE_EPOCH sets the creation time. Hidden files are included, except .git,
.modelctl and .cache/huggingface at the top. Symbolic links to files of the directory are followed.

What a file is for is judged by its name, and what is known of the model comes from its config.json
and the headers of its weights; a Modelfile, as modctl has it, says both, and flags beat it. A
directory in it stands for all that lies below.

Example:
  $ modelctl build ./minilm -t oci:out:v1
  $ modelctl build ./minilm -t registry.example.org/models/minilm:v1 --license Apache-2.0
  $ modelctl build ./minilm -f Modelfile -t registry.example.org/models/minilm:v2")]
pub(crate) struct BuildArgs {
    /// The directory that holds the model
    pub(crate) dir: PathBuf,

    // Not a doc comment, which would take the brackets for a link. So below.
    #[arg(short, long = "tag", value_name = "REF", value_parser = reference,
        help = "Where the artifact goes: HOST/REPO:TAG, or oci:DIR[:TAG] for a layout on disk")]
    pub(crate) tag: Reference,

    /// Take the files that this Modelfile names, and what it says
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) modelfile: Option<PathBuf>,

    /// How files come into a layout on disk
    #[arg(long, value_enum, default_value_t = Placing::Auto)]
    pub(crate) link: Placing,

    /// Write the names of ModelPack's drafts (vnd.cnai), for registries that know models by them only
    #[arg(long)]
    pub(crate) legacy_cnai: bool,

    /// Keep permissions and times of files, so that the same files are not the same artifact everywhere
    #[arg(long)]
    pub(crate) preserve_metadata: bool,

    #[command(flatten)]
    pub(crate) about: AboutArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Copy an artifact to a registry, from a layout on disk, another registry or a hub
#[derive(Debug, Args)]
#[command(after_help = "\
The manifest is copied byte for byte, so its digest stays the same. Blobs that the registry
already has are not sent; one that it has in another repository it takes over itself, where it may.
From another registry blobs stream through without a copy on disk, and all that points at the
artifact comes along: signatures, SBOMs, piece trees.

A model on a hub becomes an artifact as it streams through: every byte is proved against what the
hub lists, and its BLAKE3 hashes are computed on the way. What the registry has is not fetched from
the hub; it is read back instead, for its hashes, unless the tag is what would be published already.
A selection takes a part of such a model only. See `modelctl pull --help` on hubs.

Example:
  $ modelctl push oci:out:v1 registry.example.org/models/minilm:v1
  $ modelctl push registry.example.org/models/minilm:v1 mirror.example.net/models/minilm:v1
  $ modelctl push hf://org/minilm registry.example.org/models/minilm:v1")]
pub(crate) struct PushArgs {
    #[arg(value_name = "SOURCE", value_parser = reference, help = "The artifact: oci:DIR[:TAG|@DIGEST], HOST/REPO[:TAG][@DIGEST], or hf://ORG/NAME[@REV]")]
    pub(crate) source: Reference,

    /// Where it goes: HOST/REPO:TAG
    #[arg(value_name = "DESTINATION", value_parser = reference)]
    pub(crate) destination: Reference,

    /// Speak HTTP without TLS to the source only
    #[arg(long)]
    pub(crate) from_plain_http: bool,

    #[command(flatten)]
    pub(crate) selection: SelectionArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Show what an artifact or a directory holds
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  $ modelctl inspect registry.example.org/models/minilm:v1
  $ modelctl inspect registry.example.org/models/minilm:v1 --tensors
  $ modelctl inspect oci:out:v1 --checksums blake3 > SUMS && (cd ./minilm && b3sum -c ../SUMS)")]
pub(crate) struct InspectArgs {
    /// An artifact, or a directory as /DIR, ./DIR or ../DIR
    #[arg(value_name = "REF", value_parser = reference)]
    pub(crate) reference: Reference,

    /// Print only checksums, for `b3sum -c` or `sha256sum -c`
    #[arg(long, value_name = "ALGORITHM", conflicts_with = "json")]
    pub(crate) checksums: Option<Algorithm>,

    /// List every tensor of safetensors files; of a registry only the headers are read
    #[arg(long, conflicts_with = "checksums")]
    pub(crate) tensors: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// A hash function whose tool can check a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    Blake3,
    Sha256,
}

/// Check every byte of a directory against an artifact
#[derive(Debug, Args)]
#[command(after_help = "\
Each file is hashed and compared with the manifest: by BLAKE3 where the manifest states it, else
by SHA-256. Exits with 3 if a file differs or is missing. Files that the artifact does not have
are reported, nothing more. With the selection of a pull, only that part has to be there.

Example:
  $ modelctl verify registry.example.org/models/minilm:v1 /models/minilm")]
pub(crate) struct VerifyArgs {
    /// The artifact
    #[arg(value_name = "REF", value_parser = reference)]
    pub(crate) reference: Reference,

    /// The directory to check
    pub(crate) dir: PathBuf,

    #[command(flatten)]
    pub(crate) selection: SelectionArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Say what this machine can do, and why not more
#[derive(Debug, Args)]
#[command(after_help = "\
Looks at RDMA devices, limits, control groups, how bytes would land in each directory, and whether a
local peer answers. Changes nothing. Every finding is `ok`, a `note`, or a `PROBLEM` with what mends
it. Exits with 1 if nothing can be pulled into a directory. What RDMA lacks is no failure: over TCP
every model moves, too.

With --peer it also reads from a running peer for five seconds, over TCP and over RDMA, as a pull
would, and says how fast each is or why it does not work; exits with 1 if TCP does not.

Example:
  $ modelctl doctor
  $ modelctl doctor /models /dev/shm
  $ modelctl doctor --peer 10.0.0.2:7200 --fleet-key /etc/modelctl/fleet.key")]
pub(crate) struct DoctorArgs {
    /// Directories that models would be pulled into [default: the current one]
    #[arg(value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) test: PeerTestArgs,
}

/// The peer to which the way is tested.
#[derive(Debug, Args)]
#[command(next_help_heading = "Link test")]
pub(crate) struct PeerTestArgs {
    /// Test the way to the peer that others reach there
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: Option<String>,

    /// The fleet's key, if it has one
    #[arg(long, value_name = "FILE", env = "MODELCTL_FLEET_KEY", hide_env_values = true)]
    pub(crate) fleet_key: Option<PathBuf>,

    /// The peers of the fleet run with --data-plain
    #[arg(long, requires = "peer")]
    pub(crate) data_plain: bool,

    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

/// How registries are reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct RegistryArgs {
    /// Speak HTTP without TLS
    #[arg(long, env = "MODELCTL_PLAIN_HTTP", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub(crate) plain_http: bool,

    /// Trust the certificates in this PEM file as well
    #[arg(
        long,
        value_name = "FILE",
        env = "MODELCTL_CA_CERT",
        hide_env_values = true,
        conflicts_with = "plain_http"
    )]
    pub(crate) ca_cert: Option<PathBuf>,

    /// Show the registry this certificate, a PEM file
    #[arg(
        long,
        value_name = "FILE",
        env = "MODELCTL_CLIENT_CERT",
        hide_env_values = true,
        requires = "client_key",
        conflicts_with = "plain_http"
    )]
    pub(crate) client_cert: Option<PathBuf>,

    /// The key of that certificate, a PEM file
    #[arg(
        long,
        value_name = "FILE",
        env = "MODELCTL_CLIENT_KEY",
        hide_env_values = true,
        requires = "client_cert"
    )]
    pub(crate) client_key: Option<PathBuf>,

    /// Take credentials from FILE, not from where Docker and podman keep them
    #[arg(long, value_name = "FILE", env = "MODELCTL_AUTHFILE", hide_env_values = true)]
    pub(crate) authfile: Option<PathBuf>,
}

fn reference(text: &str) -> Result<Reference, ReferenceError> {
    text.parse()
}

/// What was typed, or what to say instead.
pub(crate) enum Parsed {
    Command(Box<Cli>),
    /// Help or the version: wanted, so it is data.
    Text(String),
    Wrong {
        error: anyhow::Error,
        is_json: bool,
    },
}

/// Reads the arguments of this process.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Parsed {
    let args: Vec<_> = args.collect();
    match Cli::try_parse_from(&args) {
        Ok(cli) => Parsed::Command(Box::new(cli)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Parsed::Text(error.render().to_string().trim_end().to_owned())
        }
        // clap gives up at the first mistake, perhaps before it has seen the flag.
        Err(error) => {
            Parsed::Wrong { error: wrong(&error, &args), is_json: args.iter().any(|arg| arg == "--json") }
        }
    }
}

/// clap's message in the form of all others: one line, its tip as the hint, no label and no pointer to the help.
fn wrong(error: &clap::Error, args: &[OsString]) -> anyhow::Error {
    let source = std::error::Error::source(error);
    if let Some(reference) = source.and_then(|source| source.downcast_ref::<ReferenceError>()) {
        return reference.clone().into();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let message = text.split("\n\n").next().unwrap_or(text);
    let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace('\'', "`");
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let hint = tip.map_or_else(
        || format!("`{} --help` shows an example", command_of(args)),
        |tip| tip.replace('\'', "`"),
    );
    Refusal::usage(message).hint(hint).into()
}

/// The command that was meant, as far as it can be told.
fn command_of(args: &[OsString]) -> String {
    let cli = Cli::command();
    let name = args.iter().skip(1).find_map(|arg| cli.find_subcommand(arg)).map(clap::Command::get_name);
    name.map_or_else(|| "modelctl".to_owned(), |name| format!("modelctl {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_has_an_example() {
        Cli::command().debug_assert();
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands_mut() {
            let help = command.render_help().to_string();
            assert!(help.contains("\nExample:\n  $ modelctl "), "{help}");
        }
    }
}
