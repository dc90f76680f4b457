//! Faults of the scheduler that plans: it dies, hangs, restarts or is cut off. Does not own their play.

use std::{thread::sleep, time::Duration};

use rustix::process::Signal;

use super::{Fault, NONE, Scene};
use crate::netns::Cable;

/// How long a scheduler hangs: longer than its peers believe in it.
const PAUSE: Duration = Duration::from_secs(4);

pub(crate) fn faults() -> Vec<Fault> {
    vec![
        Fault { name: "scheduler-killed", begin: Some(kill), ..NONE },
        Fault { name: "scheduler-paused", begin: Some(pause), ..NONE },
        Fault { name: "scheduler-restarted", begin: Some(restart), ..NONE },
        Fault { name: "scheduler-isolated", begin: Some(isolate), heal: Some(rejoin), ..NONE },
    ]
}

fn kill(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = scene.fleet.active_scheduler()?;
    scene.fleet.schedulers[active].kill();
    Ok(())
}

fn pause(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = scene.fleet.active_scheduler()?;
    scene.fleet.schedulers[active].signal(Signal::STOP)?;
    sleep(PAUSE);
    scene.fleet.schedulers[active].signal(Signal::CONT)
}

fn restart(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = scene.fleet.active_scheduler()?;
    scene.fleet.restart_scheduler(active)
}

fn isolate(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let active = scene.fleet.active_scheduler()?;
    scene.site.hosts.schedulers[active].cable(Cable::Out)
}

fn rejoin(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.site.hosts.schedulers.iter().try_for_each(|host| host.cable(Cable::In))
}
