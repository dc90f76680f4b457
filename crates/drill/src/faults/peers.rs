//! Faults of honest peers: they die, stop, slow down, vanish, leave, or have a wrong clock. Does not own their play.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use super::{Ends, Fault, NONE, Scene};
use testbed::{
    netns::{Cable, Mbit},
    process::ending,
};

use crate::{
    fleet::{Cast, Origin},
    site::PEERS,
};

/// Whom these faults hit.
const HIT: usize = 2;

/// How long a peer is paused: several times what any stall rule waits.
const PAUSE: Duration = Duration::from_secs(3);

/// What a slow peer's card does, as a part of what it did.
const SLOW: u32 = 10;

/// How many seconds a slow peer may cost the healthy ones: what is left of its share of the origin's bytes, if nobody
/// takes that over, is 42 MiB of a model of 512 and takes 9 s at a tenth of the rate; the rest is the machine's.
const SLOW_EXTRA_S_MAX: f64 = 10.0;

/// How long a peer that is told to end may take.
const GOODBYE: Duration = Duration::from_secs(20);

pub(crate) fn faults() -> Vec<Fault> {
    let hit = Fault { hit: &[HIT], ..NONE };
    vec![
        Fault {
            name: "registry",
            cast: Cast { origin: Origin::Registry, ..NONE.cast },
            check: Some(manifest_came_once),
            ..NONE
        },
        Fault { name: "peer-killed", ends: Ends::Never, begin: Some(kill), ..hit },
        Fault { name: "peer-paused", begin: Some(pause), ..hit },
        Fault {
            name: "peer-slow",
            extra_s_max: Some(SLOW_EXTRA_S_MAX),
            begin: Some(slow),
            heal: Some(heal_slow),
            ..hit
        },
        Fault { name: "peer-gone", ends: Ends::Never, begin: Some(unplug), heal: Some(stop), ..hit },
        Fault { name: "peer-leaves", ends: Ends::Never, begin: Some(leave), check: Some(has_left), ..hit },
        Fault {
            name: "clock-jumps",
            cast: Cast { clockwork: Some(HIT), ..NONE.cast },
            begin: Some(jump),
            check: Some(has_jumped),
            ..NONE
        },
    ]
}

/// Each node asks what the tag stands for; what that is comes once for all, by tag or digest.
fn manifest_came_once(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let (requests, model) = (scene.fleet.registry_requests(), scene.fleet.model());
    let count = |method: &str| {
        let paths = [model.tag.to_owned(), model.artifact.digest()];
        let ends = paths.map(|path| format!("/manifests/{path} HTTP/"));
        let is_asked = |line: &&String| line.contains(method) && ends.iter().any(|end| line.contains(end));
        requests.iter().filter(is_asked).count()
    };
    let (asked, read) = (count("\"HEAD "), count("\"GET "));
    ensure!(asked == PEERS, "{PEERS} nodes asked the registry {asked} times what the tag stands for");
    ensure!(read == 1, "the registry gave the manifest {read} times");
    Ok(format!("{asked} nodes asked for the tag, the manifest came once"))
}

fn kill(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.fleet.peers[HIT].signal(Signal::KILL)?;
    scene.broadcast.pulls[HIT].signal(Signal::KILL)
}

fn pause(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.fleet.peers[HIT].signal(Signal::STOP)?;
    sleep(PAUSE);
    scene.fleet.peers[HIT].signal(Signal::CONT)
}

fn slow(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.site.hosts.peers[HIT].shape(Mbit(scene.site.rate.0 / SLOW))
}

fn heal_slow(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.site.hosts.peers[HIT].shape(scene.site.rate)
}

fn unplug(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.site.hosts.peers[HIT].cable(Cable::Out)
}

/// The cable goes back for whoever is there next; nothing finds the old peer.
fn stop(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.fleet.peers[HIT].kill();
    scene.site.hosts.peers[HIT].cable(Cable::In)
}

fn leave(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.fleet.peers[HIT].signal(Signal::TERM)
}

fn has_left(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let status = scene.fleet.peers[HIT].wait(GOODBYE)?;
    ensure!(status.success(), "a peer that was told to end did so with {}", ending(status));
    Ok("it ended well".to_owned())
}

/// An hour forward, then two days back, which is before its certificate.
fn jump(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    ensure!(scene.fleet.has_clockwork(HIT), "its clock is the true one");
    for offset in ["+1h", "-2d"] {
        scene.fleet.set_clock(offset)?;
        sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn has_jumped(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let result = scene.broadcast.result(HIT).context("its pull is done")?;
    let peer_bytes = result["peer_bytes"].as_u64().unwrap_or_default();
    ensure!(peer_bytes > 0, "no other peer served the one with the wrong clock");
    Ok("it took part: one hour on, two days back".to_owned())
}
