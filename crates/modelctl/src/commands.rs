//! One module a command.

mod build;
mod diff;
mod doctor;
mod inspect;
mod login;
mod modelfile;
mod plan;
mod pull;
mod push;
mod run;
mod serve;
mod sidecar;
mod status;
mod stored;
mod transports;
mod verify;

use std::{fmt, time::Duration};

use modelpack::{manifest::Manifest, reference::Reference};
use serde::Serialize;

use crate::{
    cli::Command,
    printer::Printer,
    text::{self, Align, Table},
};

/// Does what was asked.
pub(crate) fn run(command: &Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => build::run(args, printer),
        Command::Modelfile(args) => modelfile::run(args, printer),
        Command::Push(args) => push::run(args, printer),
        Command::Pull(args) => pull::run(args, printer),
        Command::Run(args) => run::run(args, printer),
        Command::Inspect(args) => inspect::run(args, printer),
        Command::Verify(args) => verify::run(args, printer),
        Command::Diff(args) => diff::run(args, printer),
        Command::Ls(args) => stored::ls(args, printer),
        Command::Rm(args) => stored::rm(args, printer),
        Command::Tag(args) => stored::tag(args, printer),
        Command::Prune(args) => stored::prune(args, printer),
        Command::Login(args) => login::login(args, printer),
        Command::Logout(args) => login::logout(args, printer),
        Command::Peer(args) => serve::peer(args, printer),
        Command::Scheduler(args) => serve::scheduler(args, printer),
        Command::Sidecar(args) => sidecar::run(args, printer),
        Command::Status(args) => status::run(args, printer),
        Command::Plan(args) => plan::run(args, printer),
        Command::FleetKey(args) => serve::fleet_key(args, printer),
        Command::Doctor(args) => doctor::run(args, printer),
    }
}

/// The result of `build` and `push`.
#[derive(Debug, Serialize)]
struct Published {
    reference: String,
    digest: String,
    files: usize,
    bytes: u64,
    seconds: f64,
    /// Bytes of blobs that the registry did not have; `None` if there is no registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
}

impl Published {
    fn new(reference: &Reference, manifest: &Manifest, took: Duration) -> Self {
        let files = manifest.files();
        Self {
            reference: reference.to_string(),
            digest: manifest.digest().to_string(),
            files: files.len(),
            bytes: files.iter().map(|file| manifest.blobs()[file.blob.0 as usize].size).sum(),
            seconds: took.as_secs_f64(),
            sent_bytes: None,
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        say("reference", self.reference.clone());
        say("digest", self.digest.clone());
        say("files", format!("{}, {}", self.files, text::bytes(self.bytes)));
        if let Some(sent) = self.sent_bytes {
            say("sent", text::bytes(sent));
        }
        say("time", text::seconds(Duration::from_secs_f64(self.seconds)));
        table.fmt(f)
    }
}
