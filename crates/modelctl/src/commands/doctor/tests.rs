//! Whole reports of machines that are made up.

use verbs::KernelVersion;

use super::{
    facts::{Container, Device, DeviceFile, DevicePort, Gid, Link, LinkSpeed, Port, Rail, Unavailable},
    *,
};

const GIB: u64 = 1 << 30;

/// A server without RDMA, where somebody asks about a disk and a tmpfs.
fn server() -> Facts {
    let destination = |path: &str, role, filesystem| Destination {
        path: path.into(),
        role,
        exists: true,
        refusal: None,
        filesystem,
        free_bytes: 500_000_000_000,
        huge_pages: None,
    };
    Facts {
        version: "1.2.3".to_owned(),
        kernel: "Linux 6.12.0-amd64".to_owned(),
        kernel_version: Some(KernelVersion { major: 6, minor: 12 }),
        cpus: 64,
        memory_bytes: Some(512 * GIB),
        cgroup_memory_bytes_max: None,
        container: None,
        limits: Limits {
            memlock_bytes_max: Some(8 << 20),
            memlock_bytes_hard_max: Some(8 << 20),
            open_files_max: Some(524_288),
            has_ipc_lock: false,
        },
        rdma: Rdma {
            kernel_ports: None,
            library: None,
            providers: Vec::new(),
            device_files: Vec::new(),
            devices: Vec::new(),
            unavailable: Some(Unavailable {
                reason: "there is no RDMA library".to_owned(),
                hint: "install it".to_owned(),
            }),
        },
        destinations: vec![
            destination("/models", Role::Directory, Filesystem::Named("xfs".to_owned())),
            destination("/dev/shm", Role::Directory, Filesystem::Tmpfs),
            destination(STORE, Role::Store, Filesystem::Named("ext4".to_owned())),
        ],
        peer: Peer { socket: PEER_SOCKET.into(), answers: true, reason: None },
        link: None,
    }
}

/// One port that links can use.
fn active(netdev: &str) -> DevicePort {
    let gid = Gid {
        address: "::ffff:10.0.0.1".to_owned(),
        index: 1,
        kind: "RoCE v2".to_owned(),
        netdev: Some(netdev.to_owned()),
    };
    DevicePort { number: 1, is_active: true, mtu_bytes: 4096, gid: Some(gid) }
}

/// The same with a card that can be used.
fn with_card(name: &str, netdev: &str) -> Facts {
    let port = Port {
        device: name.to_owned(),
        number: "1".to_owned(),
        state: "ACTIVE".to_owned(),
        rate: "100 Gb/sec (4X EDR)".to_owned(),
        link_layer: "Ethernet".to_owned(),
        netdev: Some(netdev.to_owned()),
    };
    let device = Device { name: name.to_owned(), error: None, has_odp: false, ports: vec![active(netdev)] };
    let mut facts = server();
    facts.rdma = Rdma {
        kernel_ports: Some(vec![port]),
        library: Some("/usr/lib/x86_64-linux-gnu/libibverbs.so.1".into()),
        providers: vec!["mlx5".to_owned(), "rxe".to_owned()],
        device_files: vec![DeviceFile { path: "/dev/infiniband/uverbs0".into(), opens: true }],
        devices: vec![device],
        unavailable: None,
    };
    facts.limits.memlock_bytes_max = None;
    facts
}

/// The same when the library finds nothing.
fn without_devices(mut facts: Facts, reason: &str) -> Facts {
    facts.rdma.devices = Vec::new();
    facts.rdma.unavailable =
        Some(Unavailable { reason: reason.to_owned(), hint: "what the library's wall says".to_owned() });
    facts
}

fn report(facts: Facts) -> Report {
    Report { judgement: judge::judge(&facts), facts }
}

/// What one change to a machine with a card makes of it: why RDMA cannot be used, and every finding that is not `ok`.
fn changed(change: impl FnOnce(&mut Facts)) -> (Option<String>, Vec<String>) {
    let mut facts = with_card("mlx5_0", "eth2");
    change(&mut facts);
    let Judgement { rdma_lacks, findings, .. } = judge::judge(&facts);
    let bad = findings.into_iter().filter(|finding| finding.severity != Severity::Ok);
    let bad = bad.filter(|finding| finding.area != Area::Encryption);
    (
        rdma_lacks,
        bad.map(|finding| format!("{} > {}", finding.text, finding.hint.unwrap_or_default())).collect(),
    )
}

#[test]
fn a_server_without_rdma() {
    let report = report(server());
    insta::assert_snapshot!(report);
    assert!(report.failure().is_none(), "TCP is enough");
}

#[test]
fn software_rdma() {
    let mut facts = with_card("rxe0", "eth0");
    facts.destinations[1].huge_pages = Some("advise".to_owned());
    let report = report(facts);
    insta::assert_snapshot!(report);
    assert_eq!(report.judgement.rdma_lacks, None);
}

#[test]
fn little_memory_may_be_locked() {
    let mut facts = with_card("mlx5_0", "eth2");
    facts.limits.memlock_bytes_max = Some(64 << 10);
    let report = report(facts);
    insta::assert_snapshot!(report);
    assert!(report.failure().is_none(), "TCP is enough");
}

#[test]
fn a_container_without_the_device() {
    let mut facts = without_devices(with_card("mlx5_0", "eth2"), "no device");
    facts.container = Some(Container::Docker);
    facts.cgroup_memory_bytes_max = Some(16 * GIB);
    facts.limits.memlock_bytes_max = Some(64 << 10);
    facts.limits.open_files_max = Some(1024);
    facts.rdma.device_files = Vec::new();
    facts.destinations[2].exists = false;
    facts.destinations[2].refusal = Some("this user may not write to `/var/lib`".to_owned());
    facts.peer =
        Peer { socket: PEER_SOCKET.into(), answers: false, reason: Some("it does not exist".to_owned()) };
    insta::assert_snapshot!(report(facts));
}

#[test]
fn each_thing_that_is_missing_is_named_with_what_mends_it() {
    let check = |change: fn(&mut Facts), text: &str, hint: &str| {
        let (lacks, bad) = changed(change);
        assert!(lacks.as_deref().is_some_and(|lacks| lacks.contains(text)), "{lacks:?} lacks {text}");
        assert!(bad.iter().any(|bad| bad.contains(text) && bad.contains(hint)), "no {hint} in {bad:?}");
    };
    check(|facts| facts.rdma.kernel_ports = None, "no driver is loaded", "modprobe mlx5_ib");
    check(|facts| facts.rdma.kernel_ports = Some(Vec::new()), "there is no device", "rdma link add rxe0");
    check(|facts| facts.rdma.device_files = Vec::new(), "no `/dev/infiniband", "modprobe ib_uverbs");
    check(
        |facts| facts.rdma.device_files[0].opens = false,
        "may not open",
        "chmod 666 /dev/infiniband/uverbs0",
    );
    check(
        |facts| {
            *facts = without_devices(facts.clone(), "no library");
            facts.rdma.library = None;
        },
        "`libibverbs.so.1` is not installed",
        "apt install libibverbs1",
    );
    check(
        |facts| {
            *facts = without_devices(facts.clone(), "no device");
            facts.rdma.providers = Vec::new();
        },
        "it has no drivers",
        "ibverbs-providers",
    );
    check(
        |facts| facts.rdma.devices[0].name = "mlx5_9".to_owned(),
        "does not find `mlx5_0`",
        "ibverbs-providers",
    );
    check(
        |facts| *facts = without_devices(facts.clone(), "the driver is too old"),
        "the driver is too old",
        "what the library's wall says",
    );
    check(
        |facts| {
            facts.rdma.devices[0].ports[0].is_active = false;
            facts.rdma.kernel_ports.as_mut().unwrap()[0].state = "DOWN".to_owned();
        },
        "port 1 is DOWN",
        "ip link set eth2 up",
    );
    check(
        |facts| {
            facts.rdma.devices[0].ports[0].is_active = false;
            let port = &mut facts.rdma.kernel_ports.as_mut().unwrap()[0];
            (port.state, port.link_layer) = ("INIT".to_owned(), "InfiniBand".to_owned());
        },
        "port 1 is INIT",
        "opensm",
    );
    check(|facts| facts.rdma.devices[0].ports[0].gid = None, "has no address", "ip address add");
}

#[test]
fn one_usable_port_is_enough_and_the_others_are_told() {
    let (lacks, bad) = changed(|facts| {
        let mut down = active("eth3");
        (down.number, down.is_active) = (2, false);
        facts.rdma.devices[0].ports.insert(0, down);
    });
    assert_eq!(lacks, None);
    assert!(bad.iter().any(|bad| bad.contains("port 2 is not active")), "{bad:?}");
}

#[test]
fn the_right_to_lock_memory_lifts_its_limit() {
    let low = |facts: &mut Facts| facts.limits.memlock_bytes_max = Some(64 << 10);
    assert_eq!(changed(low).0.as_deref(), Some("too little memory may be locked"));
    let (lacks, _) = changed(|facts| {
        low(facts);
        facts.limits.has_ipc_lock = true;
    });
    assert_eq!(lacks, None);
    let (_, bad) = changed(|facts| {
        low(facts);
        facts.limits.memlock_bytes_hard_max = None;
    });
    assert!(bad[0].contains("> `ulimit -l unlimited`, or as far"), "{bad:?}");
}

#[test]
fn an_old_kernel_serves_copies_and_stages_for_another_reason() {
    let of = |major, minor| {
        let mut facts = with_card("mlx5_0", "eth2");
        facts.kernel_version = Some(KernelVersion { major, minor });
        report(facts).to_string().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(of(6, 1).contains("from copies in memory: kernel 6.1 lets"));
    assert!(of(6, 1).contains("could lose bytes on this kernel"));
    assert!(!of(6, 2).contains("from copies in memory"));
    assert!(of(6, 5).contains("the kernel lets no card write its pages"));
}

#[test]
fn a_directory_that_cannot_hold_models_is_a_failure_and_a_store_elsewhere_is_not() {
    let mut facts = server();
    facts.destinations[2].refusal = Some("the file system is mounted read-only".to_owned());
    assert!(report(facts.clone()).failure().is_none());
    facts.destinations[1].filesystem = Filesystem::Hugetlbfs;
    assert!(report(facts.clone()).failure().unwrap().text.contains("exact length"));
    facts.destinations[0].refusal = Some("`/models` is no directory".to_owned());
    let report = report(facts);
    assert!(report.failure().unwrap().text.contains("is no directory"));
    assert_eq!(report.judgement.landings[0], judge::Landing::None);
}

/// A transport that moves 1 MiB in a millisecond, or does not for that reason.
fn speed(reason: Option<&str>) -> LinkSpeed {
    let works = reason.is_none();
    LinkSpeed {
        works,
        reason: reason.map(str::to_owned),
        bytes_per_second: works.then_some(1_200_000_000),
        read_median_us: works.then_some(900),
        read_p99_us: works.then_some(2100),
    }
}

fn link(tcp: Option<&str>, rdma: Option<&str>) -> Link {
    let rail = Rail {
        name: "mlx5_0/1".to_owned(),
        gid: "::ffff:10.0.0.1".to_owned(),
        mtu_bytes: 4096,
        netdev: Some("eth2".to_owned()),
    };
    Link { peer: "10.0.0.2:7200".to_owned(), tcp: speed(tcp), rdma: speed(rdma), rails: vec![rail] }
}

#[test]
fn the_way_to_a_peer_is_told_by_transport() {
    let said = |facts: Facts| {
        let report = report(facts);
        let text = report.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        (text, report.failure().is_some())
    };
    let with = |link: Link| {
        let mut facts = with_card("mlx5_0", "eth2");
        facts.link = Some(link);
        said(facts)
    };
    let (text, has_failed) = with(link(None, None));
    let figures = "1.2 GB/s; a read of 1 MiB takes 0.90 ms, and 99 of 100 at most 2.10 ms";
    assert!(text.contains(&format!("ok link `10.0.0.2:7200` over TCP: {figures}")), "{text}");
    let rail = "RDMA (mlx5_0/1, GID ::ffff:10.0.0.1, eth2, MTU 4096)";
    assert!(text.contains(&format!("ok rdma `10.0.0.2:7200` over {rail}: {figures}")), "{text}");
    assert!(!has_failed);

    let (text, has_failed) = with(link(None, Some("the first read over RDMA failed")));
    assert!(
        text.contains("PROBLEM rdma `10.0.0.2:7200` over RDMA: the first read over RDMA failed"),
        "{text}"
    );
    assert!(text.contains("UDP port 4791") && !has_failed, "TCP is enough: {text}");

    let (text, has_failed) = with(link(Some("the peer refused"), Some("the peer refused")));
    assert!(text.contains("PROBLEM link `10.0.0.2:7200` over TCP: the peer refused") && has_failed, "{text}");

    let mut facts = server();
    facts.link = Some(link(None, Some("no device")));
    let (text, has_failed) = said(facts);
    assert!(
        text.contains("note rdma `10.0.0.2:7200` over RDMA: not from here, as the kernel has no RDMA"),
        "{text}"
    );
    assert!(!has_failed);
}
