//! What follows from the facts: findings, each with what mends it, and which transports can be used. Pure.
//!
//! Owns: the rules and their wording. Does not own: RDMA's part (`rdma`), how findings are shown.

mod link;
mod rdma;

use std::fmt;

use serde::Serialize;
use verbs::KernelVersion;

use super::facts::{Container, Destination, Facts, Filesystem, Limits, Peer, Role};
use crate::text;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    /// Worth knowing.
    Note,
    /// Something is there and cannot be used as it is.
    Problem,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Area {
    Files,
    Memory,
    Rdma,
    Memlock,
    Encryption,
    Serving,
    Directory,
    Store,
    Peer,
    /// Over TCP, to a peer that somebody named.
    Link,
}

impl Area {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Files => "open files",
            Self::Memory => "memory",
            Self::Rdma => "rdma",
            Self::Memlock => "memlock",
            Self::Encryption => "encryption",
            Self::Serving => "serving",
            Self::Directory => "directory",
            Self::Store => "store",
            Self::Peer => "peer",
            Self::Link => "link",
        }
    }
}

/// One thing that was found, and what may be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) area: Area,
    pub(super) text: String,
    pub(super) hint: Option<String>,
}

impl Finding {
    pub(super) fn new(severity: Severity, area: Area, text: impl Into<String>) -> Self {
        Self { severity, area, text: text.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// How bytes reach the files of a directory (DESIGN §6, "Landing rule").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Landing {
    /// The card writes the file's own pages.
    Direct,
    /// Into a buffer, and from there to the file.
    Staged,
    /// Not at all.
    None,
}

impl fmt::Display for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Staged => "staged",
            Self::None => "none",
        })
    }
}

/// What was made of the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Judgement {
    /// Why RDMA cannot be used; `None` if it can.
    pub(super) rdma_lacks: Option<String>,
    /// How bytes would land in each of [`Facts::destinations`], in order, over RDMA.
    pub(super) landings: Vec<Landing>,
    pub(super) findings: Vec<Finding>,
}

/// A peer of a large fleet has a descriptor for each link, client and blob.
const OPEN_FILES_ENOUGH: u64 = 16_384;

/// Judges a machine.
pub(super) fn judge(facts: &Facts) -> Judgement {
    let mut findings = vec![open_files(&facts.limits)];
    findings.extend(memory(facts));
    let rdma = rdma::judge(facts);
    let is_usable = rdma.lacks.is_none();
    findings.extend(rdma.findings);
    for destination in &facts.destinations {
        findings.push(directory(destination, facts.kernel_version));
        findings.extend(huge_pages(destination).filter(|_| is_usable));
    }
    findings.push(peer(&facts.peer));
    findings.extend(facts.link.iter().flat_map(|link| link::judge(link, rdma.lacks.as_deref())));
    let landings = facts.destinations.iter().map(landing).collect();
    Judgement { rdma_lacks: rdma.lacks, landings, findings }
}

fn open_files(limits: &Limits) -> Finding {
    match limits.open_files_max {
        None => Finding::new(Severity::Ok, Area::Files, "no limit"),
        Some(max) if max >= OPEN_FILES_ENOUGH => {
            Finding::new(Severity::Ok, Area::Files, format!("{max} at once"))
        }
        Some(max) => Finding::new(
            Severity::Note,
            Area::Files,
            format!("{max} at once, one for each link, client and blob: few for a peer of a large fleet"),
        )
        .hint("`ulimit -n 524288` in a shell; `LimitNOFILE=524288` in a systemd unit"),
    }
}

fn memory(facts: &Facts) -> Option<Finding> {
    let max = facts.cgroup_memory_bytes_max?;
    let text = format!(
        "the control group allows {}, and models on a tmpfs and memory pinned for RDMA count there",
        text::bytes(max)
    );
    let hint = match facts.container {
        Some(Container::Kubernetes) => {
            "give the container a memory limit with room for the model (`resources.limits.memory`)"
        }
        Some(Container::Docker | Container::Podman) => "start the container with more `--memory`",
        None => "`systemctl set-property UNIT MemoryMax=…` gives a service more",
    };
    Some(Finding::new(Severity::Note, Area::Memory, text).hint(hint))
}

/// How bytes would land over RDMA.
fn landing(destination: &Destination) -> Landing {
    match destination.filesystem {
        _ if destination.refusal.is_some() => Landing::None,
        Filesystem::Hugetlbfs => Landing::None,
        Filesystem::Tmpfs => Landing::Direct,
        Filesystem::Named(_) => Landing::Staged,
    }
}

fn directory(destination: &Destination, kernel: Option<KernelVersion>) -> Finding {
    let Destination { path, role, exists, refusal, filesystem, free_bytes, .. } = destination;
    let (area, path) = match role {
        Role::Directory => (Area::Directory, text::one_line(&path.display().to_string())),
        Role::Store => (Area::Store, text::one_line(&path.display().to_string())),
    };
    if let Some(refusal) = refusal {
        let (severity, hint) = match role {
            Role::Directory => {
                (Severity::Problem, format!("choose another, or make it writable: `ls -ld {path}`"))
            }
            Role::Store => (Severity::Note, "a peer of this user needs `--store` elsewhere".to_owned()),
        };
        return Finding::new(severity, area, format!("`{path}`: {refusal}")).hint(hint);
    }
    let new = if *exists { "" } else { ", still to be made" };
    let free = text::bytes(*free_bytes);
    match filesystem {
        Filesystem::Hugetlbfs => Finding::new(
            Severity::Problem,
            area,
            format!("`{path}`: hugetlbfs cannot hold a file of exact length"),
        )
        .hint("use a tmpfs: `mount -t tmpfs -o huge=advise,size=… tmpfs DIR`"),
        Filesystem::Tmpfs => Finding::new(
            Severity::Ok,
            area,
            format!(
                "`{path}` (tmpfs, {free} free{new}): lands direct over RDMA, as a card may write its pages"
            ),
        ),
        Filesystem::Named(name) => {
            let why = match kernel {
                Some(kernel) if !kernel.refuses_file_pins() => {
                    "a card that writes its pages could lose bytes on this kernel"
                }
                _ => "the kernel lets no card write its pages",
            };
            Finding::new(
                Severity::Ok,
                area,
                format!("`{path}` ({name}, {free} free{new}): lands staged ({why})"),
            )
        }
    }
}

fn huge_pages(destination: &Destination) -> Option<Finding> {
    let is_small = destination.huge_pages.as_deref().is_none_or(|setting| setting == "never");
    if destination.filesystem != Filesystem::Tmpfs || !is_small {
        return None;
    }
    let path = text::one_line(&destination.path.display().to_string());
    let text = format!("`{path}` has small pages: pinning them for a card takes longer than the bytes do");
    let hint =
        "`mount -o remount,huge=advise MOUNTPOINT` (`mount -t tmpfs -o huge=advise …` when it is made)";
    let area = match destination.role {
        Role::Directory => Area::Directory,
        Role::Store => Area::Store,
    };
    Some(Finding::new(Severity::Note, area, text).hint(hint))
}

fn peer(peer: &Peer) -> Finding {
    let socket = peer.socket.display();
    match &peer.reason {
        None => Finding::new(Severity::Ok, Area::Peer, format!("answers at `{socket}`")),
        Some(reason) => Finding::new(
            Severity::Note,
            Area::Peer,
            format!("none at `{socket}` ({reason}): pulls go without it"),
        )
        .hint("`modelctl peer --store DIR --scheduler URL` runs one; `--socket-group` says who may use it"),
    }
}
