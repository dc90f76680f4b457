//! Whether RDMA can be used, and what exactly is missing where it cannot. Pure.

use verbs::KernelVersion;

use super::{Area, Finding, Severity};
use crate::{
    commands::doctor::facts::{Container, Device, DevicePort, Facts, Limits, Port, Rdma},
    text,
};

/// What a fetching and a serving peer pin at least: a window of 256 MiB each.
const MEMLOCK_ENOUGH_BYTES: u64 = 512 << 20;

/// What came of it.
pub(super) struct Judged {
    /// The first thing that is in the way.
    pub(super) lacks: Option<String>,
    pub(super) findings: Vec<Finding>,
}

/// Goes from the kernel over the library to the addresses, and names all that is missing.
pub(super) fn judge(facts: &Facts) -> Judged {
    let rdma = &facts.rdma;
    let ports = rdma.kernel_ports.as_deref().unwrap_or_default();
    // Without a device nothing of it is anybody's mistake.
    let severity = if ports.is_empty() { Severity::Note } else { Severity::Problem };
    let missing = |finding: (String, String)| Finding::new(severity, Area::Rdma, finding.0).hint(finding.1);
    let mut findings: Vec<Finding> =
        kernel(facts).into_iter().chain(device_files(facts)).chain(library(rdma)).map(missing).collect();
    if findings.is_empty() {
        findings.extend(devices(rdma, ports));
    }
    let memlock = memlock(&facts.limits, !ports.is_empty(), facts.container);
    let is_reachable = findings.iter().any(|finding| finding.severity == Severity::Ok);
    let lacks = if is_reachable {
        (memlock.severity == Severity::Problem).then(|| "too little memory may be locked".to_owned())
    } else {
        findings.first().map(|finding| finding.text.clone())
    };
    findings.push(memlock);
    if lacks.is_none() {
        findings.extend(serving(facts.kernel_version));
        findings.push(encryption());
    }
    Judged { lacks, findings }
}

/// What the kernel lacks, and what mends it.
fn kernel(facts: &Facts) -> Option<(String, String)> {
    let on = if facts.container.is_some() { "on the host, " } else { "" };
    match &facts.rdma.kernel_ports {
        None => Some((
            "the kernel has no RDMA: no driver is loaded".to_owned(),
            format!(
                "{on}load the card's driver (`modprobe mlx5_ib`, …); without such a card nothing is wrong, and \
                 `modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0` shows how it would be"
            ),
        )),
        Some(ports) if ports.is_empty() => Some((
            "an RDMA driver is loaded, but there is no device".to_owned(),
            format!(
                "{on}see what `dmesg | grep -i -e mlx -e rdma` says of the card; over any network card, slowly: \
                 `rdma link add rxe0 type rxe netdev eth0`"
            ),
        )),
        Some(_) => None,
    }
}

/// Whether programs get at the device.
fn device_files(facts: &Facts) -> Option<(String, String)> {
    let rdma = &facts.rdma;
    if rdma.kernel_ports.as_deref().is_none_or(<[Port]>::is_empty) {
        return None;
    }
    if rdma.device_files.is_empty() {
        let hint = match facts.container {
            Some(Container::Kubernetes) => {
                "ask for the device in the pod (`resources.limits`, by the cluster's RDMA device plugin), with \
                 capability IPC_LOCK"
            }
            Some(Container::Docker) => {
                "`docker run --network host --device /dev/infiniband --cap-add IPC_LOCK --ulimit memlock=-1 …`"
            }
            Some(Container::Podman) => {
                "`podman run --network host --device /dev/infiniband --cap-add IPC_LOCK --ulimit memlock=-1 …`"
            }
            None => "`modprobe ib_uverbs`",
        };
        return Some(("there is a device, but no `/dev/infiniband/uverbs*`".to_owned(), hint.to_owned()));
    }
    let closed = rdma.device_files.iter().find(|file| !file.opens)?;
    let path = closed.path.display();
    Some((
        format!("this user may not open `{path}`"),
        format!(
            "install `rdma-core`, whose udev rules open it, or `chmod 666 {path}`; in a container it has to be \
             among its devices"
        ),
    ))
}

/// What the library lacks. It is no use to look further where the kernel lacks something, but it is told at once.
fn library(rdma: &Rdma) -> Option<(String, String)> {
    const INSTALL: &str = "`apt install libibverbs1 ibverbs-providers`, or `dnf install libibverbs`";
    if rdma.library.is_none() && rdma.devices.is_empty() {
        return Some(("`libibverbs.so.1` is not installed".to_owned(), INSTALL.to_owned()));
    }
    let ports = rdma.kernel_ports.as_deref().unwrap_or_default();
    let is_known = |port: &Port| rdma.devices.iter().any(|device| device.name == port.device);
    let unknown = ports.iter().find(|port| !is_known(port))?;
    if rdma.device_files.is_empty() {
        // Said already; and of the library it says nothing.
        return None;
    }
    let has = match rdma.providers.as_slice() {
        [] => "it has no drivers".to_owned(),
        providers => format!("it has drivers for {}", providers.join(", ")),
    };
    match &rdma.unavailable {
        Some(unavailable) if !rdma.providers.is_empty() => {
            Some((unavailable.reason.clone(), unavailable.hint.clone()))
        }
        _ => Some((format!("libibverbs does not find `{}`: {has}", unknown.device), INSTALL.to_owned())),
    }
}

/// Each port, and why it is of no use if it is not.
fn devices(rdma: &Rdma, ports: &[Port]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in &rdma.devices {
        if let Some(error) = &device.error {
            let text = format!("`{}` cannot be opened: {error}", device.name);
            findings.push(Finding::new(Severity::Problem, Area::Rdma, text).hint("see `dmesg | tail`"));
        }
        for port in &device.ports {
            let number = port.number.to_string();
            let in_kernel = ports.iter().find(|one| one.device == device.name && one.number == number);
            findings.push(self::port(device, port, in_kernel));
        }
    }
    // A usable one first: it decides.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn port(device: &Device, port: &DevicePort, in_kernel: Option<&Port>) -> Finding {
    let name = format!("`{}` port {}", device.name, port.number);
    let netdev = in_kernel.and_then(|port| port.netdev.as_deref()).unwrap_or("IFACE");
    let is_ethernet = in_kernel.is_none_or(|port| port.link_layer == "Ethernet");
    let state = in_kernel.map_or("not active", |port| port.state.as_str());
    let wrong = |text: String, hint: String| Finding::new(Severity::Problem, Area::Rdma, text).hint(hint);
    if !port.is_active {
        let hint = match (is_ethernet, state) {
            (true, _) => {
                format!("`ip link set {netdev} up`, and see that a cable is in it: `ip link show {netdev}`")
            }
            (false, "INIT") => {
                "start a subnet manager in this InfiniBand network: `systemctl start opensm`".to_owned()
            }
            (false, _) => "see that a cable is in it: `ibstat`".to_owned(),
        };
        return wrong(format!("{name} is {state}"), hint);
    }
    let Some(gid) = &port.gid else {
        let hint = if is_ethernet {
            format!("give the interface an IPv4 address: `ip address add ADDRESS/24 dev {netdev}`")
        } else {
            "see `ibstat`: a port that is active has an address".to_owned()
        };
        return wrong(format!("{name} has no address that can be used (GID)"), hint);
    };
    let netdev = gid.netdev.as_deref().map(|netdev| format!(", {netdev}")).unwrap_or_default();
    let rate = in_kernel.map(|port| format!(", {}", port.rate)).unwrap_or_default();
    let odp = if device.has_odp { ", pages on demand" } else { "" };
    let text = format!(
        "{name}: {} GID {} (index {}{netdev}), MTU {}{rate}{odp}",
        gid.kind, gid.address, gid.index, port.mtu_bytes
    );
    Finding::new(Severity::Ok, Area::Rdma, text)
}

fn memlock(limits: &Limits, has_device: bool, container: Option<Container>) -> Finding {
    let ok = |text: String| Finding::new(Severity::Ok, Area::Memlock, text);
    match limits.memlock_bytes_max {
        None => ok("no limit".to_owned()),
        Some(_) if limits.has_ipc_lock => ok("no limit, by CAP_IPC_LOCK".to_owned()),
        Some(bytes) if bytes >= MEMLOCK_ENOUGH_BYTES => ok(format!("{} may be locked", text::bytes(bytes))),
        Some(bytes) if !has_device => {
            ok(format!("{} may be locked: enough for TCP, too little for RDMA", text::bytes(bytes)))
        }
        Some(bytes) => {
            let may_be_raised = limits.memlock_bytes_hard_max.is_none_or(|hard| hard >= MEMLOCK_ENOUGH_BYTES);
            let hint = match container {
                _ if may_be_raised => {
                    "`ulimit -l unlimited`, or as far as the hard limit `ulimit -H -l` lets"
                }
                Some(Container::Kubernetes) => {
                    "capability IPC_LOCK in the pod's securityContext, or `LimitMEMLOCK=infinity` for the node's \
                     container runtime"
                }
                Some(Container::Docker | Container::Podman) => {
                    "start the container with `--ulimit memlock=-1 --cap-add IPC_LOCK`"
                }
                None => {
                    "`LimitMEMLOCK=infinity` in a systemd unit; for users `* - memlock unlimited` in \
                     /etc/security/limits.conf and a new login; `ulimit -l unlimited` as root"
                }
            };
            let text = format!(
                "{} may be locked: RDMA pins memory for cards, {} at least",
                text::bytes(bytes),
                text::bytes(MEMLOCK_ENOUGH_BYTES)
            );
            Finding::new(Severity::Problem, Area::Memlock, text).hint(hint)
        }
    }
}

fn serving(kernel: Option<KernelVersion>) -> Option<Finding> {
    let kernel = kernel.filter(|kernel| !kernel.registers_read_only())?;
    let text = format!(
        "over RDMA from copies in memory: kernel {kernel} lets a card read no file that it may not write"
    );
    Some(
        Finding::new(Severity::Note, Area::Serving, text)
            .hint("from kernel 6.2 on any file is served as it is"),
    )
}

fn encryption() -> Finding {
    let text = "RDMA is never encrypted: who can watch that network can read the models (bytes are proved all the same)";
    Finding::new(Severity::Note, Area::Encryption, text)
        .hint("use it in networks that you trust; elsewhere `--transport tcp` with a fleet key")
}
