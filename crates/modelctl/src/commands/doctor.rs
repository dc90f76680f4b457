//! `modelctl doctor`: what this machine can do, and why not more.
//!
//! Owns: the report, how it is shown, and when it is a failure. Does not own: where facts come from (`probe`, `devices`),
//! what follows from them (`judge`).

mod devices;
mod facts;
mod judge;
mod link;
pub(super) mod probe;

use std::{
    fmt,
    io::ErrorKind,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use store::FsKind;

use self::{
    facts::{Destination, Facts, Filesystem, Limits, Peer, Rdma, Role},
    judge::{Area, Finding, Judgement, Severity},
    probe::Probe,
};
use crate::{cli::DoctorArgs, printer::Printer, report::Refusal, text};

/// Where a peer's socket is unless somebody says otherwise.
const PEER_SOCKET: &str = "/run/modelctl/peer.sock";

/// Where the service's store is; `MODELCTL_STORE` says otherwise, as it does to a peer.
const STORE: &str = "/var/lib/modelctl";

/// The library by which programs reach RDMA devices.
const VERBS_LIBRARY: &str = "libibverbs.so.1";

/// What was found. Serialised, it is the result of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    judgement: Judgement,
    facts: Facts,
}

/// Looks around and says what was found.
pub(crate) fn run(args: &DoctorArgs, printer: &Printer) -> anyhow::Result<()> {
    let mut facts = facts(&Probe::new("/"), &args.dirs)?;
    facts.link = link::link(&args.test)?;
    let report = Report { judgement: judge::judge(&facts), facts };
    printer.result(&report)?;
    match report.failure() {
        None => Ok(()),
        Some(finding) => {
            let refusal = Refusal::failed(finding.text.clone());
            Err(finding.hint.iter().fold(refusal, Refusal::hint).into())
        }
    }
}

fn facts(probe: &Probe, dirs: &[PathBuf]) -> anyhow::Result<Facts> {
    let here = [PathBuf::from(".")];
    let dirs = if dirs.is_empty() { &here[..] } else { dirs };
    let mut destinations = dirs
        .iter()
        .map(|dir| destination(probe, dir, Role::Directory))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let store = std::env::var_os("MODELCTL_STORE").map_or_else(|| PathBuf::from(STORE), PathBuf::from);
    destinations.push(destination(probe, &store, Role::Store)?);
    let found = verbs::findings();
    Ok(Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: probe::kernel(),
        kernel_version: found.kernel,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: probe.memory_bytes(),
        cgroup_memory_bytes_max: found.cgroup_bytes_max,
        container: probe.container(),
        limits: Limits {
            memlock_bytes_max: found.memlock.soft,
            memlock_bytes_hard_max: found.memlock.hard,
            has_ipc_lock: found.memlock.is_bypassed,
            open_files_max: getrlimit(Resource::Nofile).current,
        },
        rdma: rdma(probe),
        destinations,
        peer: peer(Path::new(PEER_SOCKET)),
        link: None,
    })
}

fn rdma(probe: &Probe) -> Rdma {
    let (devices, unavailable) = devices::devices();
    Rdma {
        kernel_ports: probe.rdma_ports(),
        library: probe.library(VERBS_LIBRARY),
        providers: probe.providers(),
        device_files: probe.device_files(),
        devices,
        unavailable,
    }
}

fn destination(probe: &Probe, path: &Path, role: Role) -> anyhow::Result<Destination> {
    let filesystem = match store::filesystem_of(path)? {
        FsKind::Tmpfs => Filesystem::Tmpfs,
        FsKind::Other(HUGETLBFS_MAGIC) => Filesystem::Hugetlbfs,
        kind => Filesystem::Named(kind.to_string()),
    };
    Ok(Destination {
        path: path.to_path_buf(),
        role,
        exists: path.exists(),
        refusal: probe::refusal(path),
        huge_pages: (filesystem == Filesystem::Tmpfs).then(|| probe.huge_pages(path)).flatten(),
        filesystem,
        free_bytes: store::free_bytes(path)?,
    })
}

/// The numbers are those of statfs(2).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

fn peer(socket: &Path) -> Peer {
    let reason = UnixStream::connect(socket).err().map(|error| match error.kind() {
        ErrorKind::NotFound => "it does not exist".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens: its peer has ended".to_owned(),
        ErrorKind::PermissionDenied => "this user may not open it".to_owned(),
        _ => error.to_string(),
    });
    Peer { socket: socket.to_path_buf(), answers: reason.is_none(), reason }
}

/// As wide as text becomes, where a command is no longer.
const COLUMNS: usize = 100;

/// Columns before the text of a finding.
const LEAD: usize = 21;

impl Report {
    /// What keeps this machine from what it was asked. What RDMA lacks does not: TCP moves every model.
    fn failure(&self) -> Option<&Finding> {
        let is_vital = |area| matches!(area, Area::Directory | Area::Link);
        let mut findings = self.judgement.findings.iter();
        findings.find(|finding| finding.severity == Severity::Problem && is_vital(finding.area))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { version, kernel, cpus, memory_bytes, .. } = &self.facts;
        write!(f, "modelctl {version} on {kernel}, {}", text::plural(*cpus, "CPU"))?;
        if let Some(bytes) = memory_bytes {
            write!(f, ", {} of memory", text::bytes(*bytes))?;
        }
        write!(f, "\n\nTCP   can be used\nRDMA  ")?;
        match &self.judgement.rdma_lacks {
            None => write!(f, "can be used")?,
            Some(reason) => write!(f, "cannot be used: {reason}")?,
        }
        writeln!(f)?;
        for finding in &self.judgement.findings {
            let severity = match finding.severity {
                Severity::Ok => "ok",
                Severity::Note => "note",
                Severity::Problem => "PROBLEM",
            };
            let name = finding.area.name();
            let mut lead = format!("{severity:<7}  {name:<10}");
            let hint = finding.hint.iter().flat_map(|hint| {
                let lines = text::wrapped(hint, COLUMNS - LEAD - 2);
                lines
                    .into_iter()
                    .enumerate()
                    .map(|(n, line)| if n == 0 { format!("> {line}") } else { format!("  {line}") })
            });
            for line in text::wrapped(&finding.text, COLUMNS - LEAD).into_iter().chain(hint) {
                write!(f, "\n{lead:LEAD$}{line}")?;
                lead.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
