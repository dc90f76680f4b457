//! Hosts and racks as the kernel sees them. Needs root; measures no time.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy lets tests unwrap and print, but not the helpers that they share"
)]

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use testbed::{
    maker::Maker,
    netns::{self, Host, Mbit, Network},
    process::Process,
    program::are_installed,
};

/// What a card does: of no matter here.
const RATE: Mbit = Mbit(1000);

/// Where a server listens.
const PORT: u16 = 4000;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why no network can be made here; `scripts/test` counts it as skipped.
fn skips(maker: Maker) -> bool {
    let able = are_installed(&["ip", "tc", "setpriv"]).and_then(|()| netns::probe(maker));
    let Err(why) = able else { return false };
    eprintln!("skipped: {why:#}");
    if let Some(list) = std::env::var_os("MODELCAST_SKIPPED") {
        let mut list = OpenOptions::new().append(true).create(true).open(list).unwrap();
        list.write_all(format!("skipped: {}\n", format!("{why:#}").replace('\n', " ")).as_bytes()).unwrap();
    }
    true
}

/// A thousand bytes there and back.
fn reaches(from: &Host, to: &Host) -> bool {
    let address = SocketAddr::from((to.address, PORT));
    let (ready, is_ready) = mpsc::channel();
    let server = to.spawn(move || {
        let listener = TcpListener::bind(address)?;
        // Only if the client is there no more.
        let _ = ready.send(());
        let (mut stream, mut bytes) = (listener.accept()?.0, [0; 1000]);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)
    });
    is_ready.recv_timeout(PATIENCE).unwrap();
    let client = from.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[7; 1000])?;
        stream.read_exact(&mut [0; 1000])
    });
    let is_back = client.join().unwrap().unwrap().is_ok();
    // Without its client it would wait for ever.
    is_back && server.join().unwrap().unwrap().is_ok()
}

#[test]
fn racks_reach_one_another_over_their_cables_and_all_is_counted() {
    let maker = Maker::this("testbed-racks");
    if skips(maker) {
        return;
    }
    let mut network = Network::new(maker).unwrap();
    let origin = network.add("origin", RATE).unwrap();
    let racks = [network.add_rack(RATE).unwrap(), network.add_rack(RATE).unwrap()];
    let near = network.add_in_rack(&racks[0], "near", RATE).unwrap();
    let beside = network.add_in_rack(&racks[0], "beside", RATE).unwrap();
    let far = network.add_in_rack(&racks[1], "far", RATE).unwrap();

    let control = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    assert_eq!(far.spawn(control).join().unwrap().unwrap().trim(), "cubic", "whatever the machine does");

    let before = network.counters().unwrap();
    assert_eq!(before.len(), 4, "in the order in which they were added");
    assert!(reaches(&near, &beside), "within a rack");
    let after = network.counters().unwrap();
    for host in [1, 2] {
        assert!(after[host].sent >= before[host].sent + 1000, "{host}: {before:?} {after:?}");
        assert!(after[host].received >= before[host].received + 1000, "{host}: {before:?} {after:?}");
    }
    // Neighbours are looked for everywhere, but what they say stays in the rack.
    for uplink in network.uplinks().unwrap() {
        assert!(uplink.sent < 1000, "{uplink:?}");
    }

    assert!(reaches(&near, &far), "from rack to rack");
    assert!(reaches(&far, &origin), "from a rack to the bridge of all");
    let uplinks = network.uplinks().unwrap();
    assert!(uplinks[0].sent >= 1000 && uplinks[0].received >= 1000, "{uplinks:?}");
    assert!(uplinks[1].sent >= 2000 && uplinks[1].received >= 2000, "{uplinks:?}");
    let first = network.counters().unwrap()[0];
    assert!(first.sent >= 1000 && first.received >= 1000, "{first:?}");

    racks[0].shape(Mbit(50)).unwrap();
    near.shape(Mbit(50)).unwrap();
    assert!(reaches(&near, &far), "with other rates");
}

#[test]
fn what_runs_on_a_host_is_killed_and_what_runs_on_another_is_not() {
    let maker = Maker::this("testbed-kills");
    if skips(maker) {
        return;
    }
    let mut network = Network::new(maker).unwrap();
    let (hit, spared) = (network.add("hit", RATE).unwrap(), network.add("spared", RATE).unwrap());
    let logs = tempfile::tempdir().unwrap();
    let sleeper = |host: &Host, name: &str| {
        let mut command = host.command(Path::new("sh"));
        // It says so when it runs there, and ends by itself if nobody kills it.
        command.args(["-c", "echo '{}'; exec sleep 60"]);
        Process::start(command, logs.path(), name).unwrap()
    };
    let mut hits = [sleeper(&hit, "first"), sleeper(&hit, "second")];
    let mut other = sleeper(&spared, "other");
    for process in hits.iter_mut().chain([&mut other]) {
        process.ready().unwrap();
    }
    hit.kill_all();
    for process in &mut hits {
        let status = process.wait(PATIENCE).unwrap();
        assert_eq!(status.code(), None, "by a signal");
    }
    assert!(other.end().is_none());
}
