//! Faults of the scheduler that plans: it dies, hangs, restarts or is cut off. Does not own their play.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use super::{Fault, NONE, Scene, lines_with, word_after};
use testbed::netns::Cable;

use crate::site::PEERS;

/// How long a scheduler hangs: longer than its peers believe in it.
const PAUSE: Duration = Duration::from_secs(4);

/// All members of the swarm: those that pull, and the seed.
const MEMBERS: usize = PEERS + 1;

/// How long after a take-over the state may be rebuilt: the product's aim. On two busy processors it takes half of that.
const REBUILT_WITHIN_MS: f64 = 2000.0;

pub(crate) fn faults() -> Vec<Fault> {
    let check = Some(was_rebuilt as fn(&mut Scene<'_>) -> _);
    vec![
        Fault { name: "scheduler-killed", begin: Some(kill), check, ..NONE },
        Fault { name: "scheduler-paused", begin: Some(pause), check, ..NONE },
        Fault { name: "scheduler-restarted", begin: Some(restart), ..NONE },
        Fault { name: "scheduler-isolated", begin: Some(isolate), heal: Some(rejoin), check, ..NONE },
    ]
}

/// The scheduler that plans, which the fault is about to hit.
fn hit(scene: &mut Scene<'_>) -> anyhow::Result<usize> {
    let active = scene.fleet.active_scheduler()?;
    scene.hit_scheduler = Some(active);
    Ok(active)
}

fn kill(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = hit(scene)?;
    scene.fleet.schedulers[active].kill();
    Ok(())
}

fn pause(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = hit(scene)?;
    scene.fleet.schedulers[active].signal(Signal::STOP)?;
    sleep(PAUSE);
    scene.fleet.schedulers[active].signal(Signal::CONT)
}

fn restart(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = hit(scene)?;
    scene.fleet.restart_scheduler(active)
}

fn isolate(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = hit(scene)?;
    scene.site.hosts.schedulers[active].cable(Cable::Out)
}

fn rejoin(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.site.hosts.schedulers.iter().try_for_each(|host| host.cable(Cable::In))
}

/// What the other scheduler says of its take-over: how long after its first member's hello all members had said what
/// they have.
fn was_rebuilt(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let hit = scene.hit_scheduler.context("a scheduler was hit")?;
    let standby = (0..scene.fleet.schedulers.len()).find(|number| *number != hit).context("there are two")?;
    let last = |scene: &Scene<'_>| {
        let line = lines_with(&scene.fleet.schedulers[standby].log(), "state rebuilt").pop()?;
        let members: usize = word_after(&line, "members=")?.parse().ok()?;
        let ms: f64 = word_after(&line, " ms=")?.parse().ok()?;
        Some((members, ms))
    };
    scene.until_logged(|scene| last(scene).is_some_and(|(members, _)| members >= MEMBERS));
    let (members, ms) = last(scene).context("the other scheduler did not take over")?;
    ensure!(members == MEMBERS, "only {members} of {MEMBERS} members came to the other scheduler");
    ensure!(ms <= REBUILT_WITHIN_MS, "its state was rebuilt after {ms:.0} ms only");
    Ok(format!("the other took over, {members} members in {ms:.0} ms"))
}
