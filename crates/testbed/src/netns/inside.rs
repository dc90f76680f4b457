//! Threads that are in another network namespace than the rest of the process. Does not own what they do there.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::Path,
    thread::{self, JoinHandle},
};

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps namespaces by their names.
const NAMESPACES: &str = "/var/run/netns";

/// A thread that goes there, does `work`, and does not come back.
pub(super) fn spawn<T: Send + 'static>(
    namespace: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<anyhow::Result<T>> {
    thread::spawn(move || {
        enter(&namespace).with_context(|| format!("cannot enter the namespace `{namespace}`"))?;
        Ok(work())
    })
}

fn enter(namespace: &str) -> std::io::Result<()> {
    let namespace = File::open(Path::new(NAMESPACES).join(namespace))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
