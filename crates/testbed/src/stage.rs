//! The life of one run: what killed ones left is removed first, and what this one made at its end, however it ends.
//!
//! Owns: signals, the janitor, the order of cleaning up. Does not own: what is done meanwhile.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{maker::Maker, netns, scratch};

/// The command under which a tool that uses this crate must call [`clean_up_after`], with the id as its argument.
pub const JANITOR: &str = "janitor";

/// Whether this process was told to end.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Fails when this process was told to end, so that nothing new begins.
pub fn goes_on() -> anyhow::Result<()> {
    ensure!(!IS_OVER.load(Ordering::Relaxed), "told to end");
    Ok(())
}

/// Does `work` in a thread, so that this one can clean up whenever it is told to end; `work` sees that by [`goes_on`].
/// A second process cleans up if this one is killed.
///
/// # Errors
/// Those of `work`, or if a signal ended it.
pub fn run<T: Send + 'static>(
    maker: Maker,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    sweep_leftovers(maker);
    let mut janitor = hire_janitor(maker)?;
    let (done, finished) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // Processes die with the thread that started them: this one lives as long as the run.
        thread::spawn(move || drop(done.send(work())));
        tokio::select! {
            finished = finished => finished.context("the run panicked")?.map(Some),
            _ = term.recv() => Ok(None),
            _ = int.recv() => Ok(None),
        }
    });
    IS_OVER.store(true, Ordering::Relaxed);
    sweep(maker);
    // It finds nothing to do, and waits for its input to end.
    drop(janitor.stdin.take());
    let _ = janitor.wait();
    ended?.context("told to end")
}

/// A process in a session of its own, which notices this one's end by the end of its input.
fn hire_janitor(maker: Maker) -> anyhow::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args([JANITOR, &maker.pid().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A signal to the whole group, as a terminal or a time limit sends it, must not reach it.
    command.process_group(0).spawn().context("cannot start the janitor")
}

/// What a janitor does: waits for its input to end, then removes everything that process made.
pub fn clean_up_after(maker: Maker) {
    // Whether it ends or fails, nobody is there any more.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    sweep(maker);
}

/// Removes what runs of the same tool left that are over.
fn sweep_leftovers(this: Maker) {
    let mut makers = netns::makers(this.tool());
    makers.extend(scratch::makers(this.tool()));
    for maker in makers {
        if maker == this || !maker.is_running() {
            sweep(maker);
        }
    }
}

fn sweep(maker: Maker) {
    netns::sweep(maker);
    scratch::sweep(maker);
}
