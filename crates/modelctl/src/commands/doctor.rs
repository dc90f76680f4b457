//! `modelctl doctor`: what this machine can do, and why not more.
//!
//! Owns: the report and its wording. Does not own: reading `/proc` and `/sys` (`probe`), or deciding where bytes
//! land, which the store does when it opens a directory.

mod probe;

use std::{
    fmt,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use serde::Serialize;
use store::FsKind;

use self::probe::{Port, Probe};
use crate::{
    cli::DoctorArgs,
    printer::Printer,
    text::{self, Align, Table},
};

/// Where a peer's socket is unless somebody says otherwise.
const PEER_SOCKET: &str = "/run/modelctl/peer.sock";

/// The library by which programs reach RDMA devices.
const VERBS_LIBRARY: &str = "libibverbs.so.1";

/// What was found. Serialised, it is the result of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    cpus: usize,
    memory_bytes: Option<u64>,
    /// The smallest limit of the control groups that this process is in.
    cgroup_memory_bytes_max: Option<u64>,
    rdma: Rdma,
    destination: Destination,
    peer: Peer,
}

#[derive(Debug, Serialize)]
struct Rdma {
    ports: Vec<Port>,
    /// Why there is no port, if there is none.
    reason: Option<&'static str>,
    library: Option<PathBuf>,
    /// `None`: no limit.
    memlock_bytes_max: Option<u64>,
    /// Whether this build has the RDMA transport.
    built_in: bool,
}

#[derive(Debug, Serialize)]
struct Destination {
    path: PathBuf,
    filesystem: String,
    free_bytes: u64,
    landing: &'static str,
    landing_reason: &'static str,
    /// What RDMA would allow here.
    rdma_landing: &'static str,
    /// The huge-page setting of a tmpfs.
    huge_pages: Option<String>,
}

#[derive(Debug, Serialize)]
struct Peer {
    socket: &'static str,
    answers: bool,
    reason: Option<String>,
}

/// Looks around and says what was found.
pub(crate) fn run(args: &DoctorArgs, printer: &Printer) -> anyhow::Result<()> {
    let probe = Probe::new("/");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: probe::kernel(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: probe.memory_bytes(),
        cgroup_memory_bytes_max: probe.cgroup_memory_bytes_max(),
        rdma: rdma(&probe),
        destination: destination(&probe, &args.path)?,
        peer: peer(),
    };
    printer.result(&report)
}

fn rdma(probe: &Probe) -> Rdma {
    let ports = probe.rdma_ports();
    let reason = match &ports {
        None => Some("no RDMA driver is loaded: `/sys/class/infiniband` does not exist"),
        Some(ports) if ports.is_empty() => Some("an RDMA driver is loaded, but it has found no device"),
        Some(_) => None,
    };
    Rdma {
        ports: ports.unwrap_or_default(),
        reason,
        library: probe.library(VERBS_LIBRARY),
        memlock_bytes_max: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
        built_in: false,
    }
}

fn destination(probe: &Probe, path: &Path) -> anyhow::Result<Destination> {
    let kind = store::filesystem_of(path)?;
    // DESIGN §6, "Landing rule".
    let rdma_landing = if kind.lands_direct() {
        "direct: the card may write into the pages of a tmpfs"
    } else {
        "staged: the kernel does not let a card write into the pages of this file system"
    };
    Ok(Destination {
        path: path.to_path_buf(),
        filesystem: kind.to_string(),
        free_bytes: store::free_bytes(path)?,
        landing: "staged",
        landing_reason: "TCP bytes are checked in a buffer, then written to their final offset",
        rdma_landing,
        huge_pages: (kind == FsKind::Tmpfs).then(|| probe.huge_pages(path)),
    })
}

fn peer() -> Peer {
    match UnixStream::connect(PEER_SOCKET) {
        Ok(_) => Peer { socket: PEER_SOCKET, answers: true, reason: None },
        Err(error) => {
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
                std::io::ErrorKind::ConnectionRefused => "nobody listens: its peer has ended".to_owned(),
                std::io::ErrorKind::PermissionDenied => "this user may not open it".to_owned(),
                _ => error.to_string(),
            };
            Peer { socket: PEER_SOCKET, answers: false, reason: Some(reason) }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        say("modelctl", self.version.to_owned());
        say("kernel", self.kernel.clone());
        say("cpus", self.cpus.to_string());
        if let Some(bytes) = self.memory_bytes {
            say("memory", text::bytes(bytes));
        }
        if let Some(bytes) = self.cgroup_memory_bytes_max {
            say("", format!("the control group allows {}", text::bytes(bytes)));
        }
        self.rdma.describe(&mut say);
        self.destination.describe(&mut say);
        match &self.peer.reason {
            None => say("peer", format!("answers at {}", self.peer.socket)),
            Some(reason) => say("peer", format!("none at {}: {reason}", self.peer.socket)),
        }
        table.fmt(f)
    }
}

impl Rdma {
    fn describe(&self, say: &mut impl FnMut(&str, String)) {
        for (number, port) in self.ports.iter().enumerate() {
            say(if number == 0 { "rdma" } else { "" }, port.to_string());
        }
        if let Some(reason) = self.reason {
            say("rdma", reason.to_owned());
        }
        match &self.library {
            Some(path) => say("", format!("{VERBS_LIBRARY} is at {}", path.display())),
            None => say("", format!("{VERBS_LIBRARY} is not installed")),
        }
        say("", "not used: this build moves bytes over TCP".to_owned());
        match self.memlock_bytes_max {
            None => say("memlock", "unlimited".to_owned()),
            Some(bytes) => {
                say("memlock", format!("{} may be locked (RDMA needs more; TCP none)", text::bytes(bytes)));
            }
        }
    }
}

impl Destination {
    fn describe(&self, say: &mut impl FnMut(&str, String)) {
        say("directory", self.path.display().to_string());
        say("filesystem", format!("{}, {} free", self.filesystem, text::bytes(self.free_bytes)));
        if let Some(setting) = &self.huge_pages {
            say("huge pages", setting.clone());
        }
        say("landing", format!("{}: {}", self.landing, self.landing_reason));
        say("", format!("over RDMA it would be {}", self.rdma_landing));
    }
}
