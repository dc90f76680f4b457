//! Faults in the middle of a broadcast over RDMA. Whatever is hit, every pull that lives ends, verified.
//!
//! Owns: what is done, to whom, and what must come of it. Does not own: the fleet, faults of single reads (`suite`).

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use testbed::process::{LOOK_INTERVAL, Process, ending};

use crate::{
    fleet::{Cast, Fleet, Owner, Pulled, Transport},
    report::Report,
    site::Site,
};

/// The device, and the network card below it, as the machine's first program makes them.
const DEVICE: &str = "rxe0";
const CARD: &str = "d0";

/// When the fault begins, in hundredths of the model.
const AT_PERCENT: u64 = 15;

/// How long the scheduler may take to notice that a peer has stopped, and the system to change a device.
const NOTICE_PATIENCE: Duration = Duration::from_secs(30);

/// How many seeds there are, so that another is left, and how many pulls.
const SEEDS: usize = 2;
const PULLS: usize = 2;

/// What is done to a fleet.
type Act = fn(&mut Scene<'_>) -> anyhow::Result<()>;

/// A fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    owner: Owner,
    /// In the middle of the broadcast.
    begin: Option<Act>,
    /// What must be seen when all pulls have ended, and what must be put right.
    end: Option<Act>,
    /// What the pulls must say of how bytes came.
    came: Came,
}

/// How the bytes of all pulls came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// At least some over RDMA.
    Rdma,
    /// Some over RDMA, and some over TCP when that went away, and it is said why.
    Both,
    /// Over TCP, and it is said why.
    Tcp,
}

/// A fleet that is hit.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    fleet: Fleet<'a>,
    /// The seed that is hit.
    victim: usize,
    /// Something that runs meanwhile.
    under_way: Option<Process>,
}

const NONE: Fault = Fault { name: "", owner: Owner::Root, begin: None, end: None, came: Came::Rdma };

const ALL: &[Fault] = &[
    Fault { name: "peer-killed", begin: Some(kill), ..NONE },
    Fault { name: "peer-stopped", begin: Some(stop), end: Some(is_noticed), ..NONE },
    Fault { name: "link-down", begin: Some(take_down), end: Some(bring_up), came: Came::Both, ..NONE },
    Fault { name: "link-deleted", begin: Some(delete), end: Some(make_again), ..NONE },
    Fault { name: "memlock", owner: Owner::Nobody, came: Came::Tcp, ..NONE },
];

/// The faults of these names, or all.
pub(crate) fn chosen(names: &[String]) -> anyhow::Result<Vec<Fault>> {
    if let Some(name) = names.iter().find(|name| ALL.iter().all(|fault| fault.name != name.as_str())) {
        let all: Vec<&str> = ALL.iter().map(|fault| fault.name).collect();
        bail!("there is no fault `{name}`; there are {}", all.join(", "));
    }
    let is_chosen = |fault: &&Fault| names.is_empty() || names.iter().any(|name| name == fault.name);
    Ok(ALL.iter().filter(is_chosen).copied().collect())
}

/// Plays one; says what happened.
pub(crate) fn play(site: &Site, fault: &Fault, report: Report) -> anyhow::Result<String> {
    let cast = Cast { seeds: SEEDS, peers: PULLS, owner: fault.owner, transport: Transport::Auto };
    let fleet = Fleet::start(site, &site.faults, cast)?;
    let mut scene = Scene { fleet, victim: 0, under_way: None };
    let mut came = hit(&mut scene, fault);
    let said = scene.fleet.last_words();
    // What was done to the machine is put right in any case; the first error is the one that is told.
    if let Some(end) = fault.end {
        let ended = end(&mut scene);
        came = came.and_then(|pulled| ended.map(|()| pulled));
    }
    came.and_then(|pulled| judge(fault.came, &pulled)).inspect_err(|_| report.tell(&said))
}

fn hit(scene: &mut Scene<'_>, fault: &Fault) -> anyhow::Result<Vec<Pulled>> {
    scene.fleet.pull()?;
    if let Some(act) = fault.begin {
        scene.fleet.wait_for_percent(AT_PERCENT)?;
        act(scene)?;
    }
    scene.fleet.finish()
}

fn judge(came: Came, all: &[Pulled]) -> anyhow::Result<String> {
    let tcp: u64 = all.iter().map(|pulled| pulled.bytes_by_transport.tcp).sum();
    let rdma: u64 = all.iter().map(|pulled| pulled.bytes_by_transport.rdma).sum();
    let reason = all.iter().find_map(|pulled| pulled.fallback_reason.as_deref());
    let share = format!("{rdma} bytes over RDMA, {tcp} over TCP");
    ensure!(came == Came::Tcp || rdma > 0, "nothing came over RDMA, so nothing was hit: {share}");
    ensure!(came == Came::Rdma || tcp > 0, "nothing came over TCP: {share}");
    match (came, reason) {
        (Came::Rdma, None) => Ok(share),
        (_, Some(reason)) => Ok(format!("{share} ({reason})")),
        (Came::Both | Came::Tcp, None) => bail!("nobody says why bytes came over TCP: {share}"),
    }
}

/// The seed that pulls read from over RDMA; the one that they read more of if both are read.
fn choose_victim(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let pinned = scene.fleet.seeds.iter().map(pinned_kib).collect::<anyhow::Result<Vec<u64>>>()?;
    let most = pinned.iter().copied().enumerate().max_by_key(|(_, pinned)| *pinned);
    // A window that is served is pinned beside the buffers.
    let victim = most.filter(|(_, pinned)| *pinned > BUFFERS_KIB);
    scene.victim = victim
        .with_context(|| format!("no seed serves over RDMA, {pinned:?} KiB are pinned: nothing to hit"))?
        .0;
    Ok(())
}

/// What every peer pins from its start.
const BUFFERS_KIB: u64 = 64 << 10;

fn pinned_kib(process: &Process) -> anyhow::Result<u64> {
    let path = format!("/proc/{}/status", process.pid());
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    pinned_in(&status).with_context(|| format!("`{path}` has no line `VmPin`"))
}

fn pinned_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kill(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    choose_victim(scene)?;
    scene.fleet.seeds[scene.victim].kill();
    Ok(())
}

/// Its memory can still be read: only the control plane can notice.
fn stop(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    choose_victim(scene)?;
    scene.fleet.seeds[scene.victim].signal(Signal::STOP)
}

fn is_noticed(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let name = scene.fleet.seeds[scene.victim].name.clone();
    let gone = format!("gone peer={}", scene.fleet.id_of(&name)?);
    scene.fleet.scheduler.logged(&gone).context("nobody noticed that a peer had stopped")
}

fn take_down(_: &mut Scene<'_>) -> anyhow::Result<()> {
    run("ip", &["link", "set", CARD, "down"])
}

fn bring_up(_: &mut Scene<'_>) -> anyhow::Result<()> {
    run("ip", &["link", "set", CARD, "up"])?;
    wait_until_active()
}

/// The kernel waits with it until nobody has the device open.
fn delete(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let mut command = Command::new("rdma");
    command.args(["link", "delete", DEVICE]);
    scene.under_way = Some(Process::start(command, &scene.fleet.logs(), "rdma-link-delete")?);
    Ok(())
}

fn make_again(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.fleet.end_peers();
    if let Some(mut delete) = scene.under_way.take() {
        let status = delete.wait(NOTICE_PATIENCE).context("somebody still has the device open")?;
        ensure!(
            status.success(),
            "`rdma link delete` ended with {}: {}",
            ending(status),
            delete.last_words()
        );
        run("rdma", &["link", "add", DEVICE, "type", "rxe", "netdev", CARD])?;
    }
    wait_until_active()
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", args.join(" "), said.trim());
    Ok(())
}

fn wait_until_active() -> anyhow::Result<()> {
    let deadline = Instant::now() + NOTICE_PATIENCE;
    let state = format!("/sys/class/infiniband/{DEVICE}/ports/1/state");
    while !fs::read_to_string(&state).is_ok_and(|state| state.contains("ACTIVE")) {
        ensure!(Instant::now() < deadline, "{DEVICE} does not come back");
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pulled(tcp: u64, rdma: u64, reason: Option<&str>) -> Pulled {
        let line = json!({
            "bytes": tcp + rdma, "bytes_by_transport": {"tcp": tcp, "rdma": rdma},
            "bytes_by_landing": {"direct": rdma, "staged": tcp}, "fallback_reason": reason, "verified": true,
        });
        serde_json::from_value(line).unwrap()
    }

    #[test]
    fn a_fault_that_hit_nothing_has_failed() {
        assert!(judge(Came::Rdma, &[pulled(0, 9, None), pulled(9, 0, None)]).is_ok());
        assert!(judge(Came::Rdma, &[pulled(9, 0, Some("no device"))]).is_err());
        assert!(judge(Came::Both, &[pulled(4, 5, Some("port down"))]).is_ok());
        assert!(judge(Came::Both, &[pulled(0, 9, None)]).is_err());
        assert!(judge(Came::Tcp, &[pulled(9, 0, Some("memlock"))]).is_ok());
    }

    #[test]
    fn a_fall_back_is_explained() {
        assert!(judge(Came::Both, &[pulled(4, 5, None)]).is_err());
        assert!(judge(Came::Tcp, &[pulled(9, 0, None)]).is_err());
    }

    #[test]
    fn faults_have_names() {
        assert_eq!(chosen(&[]).unwrap().len(), ALL.len());
        assert_eq!(chosen(&["memlock".to_owned()]).unwrap()[0].name, "memlock");
        assert!(chosen(&["typo".to_owned()]).unwrap_err().to_string().contains("link-down"));
    }

    #[test]
    fn pinned_memory_is_found() {
        assert_eq!(pinned_in("VmLck:\t       0 kB\nVmPin:\t   98304 kB\nVmHWM:\t 9 kB\n"), Some(98_304));
        assert_eq!(pinned_in("VmLck:\t       0 kB\n"), None);
    }
}
