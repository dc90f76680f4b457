//! Debian's registry, as an origin. Does not own what is pushed to it.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use crate::{process::Process, program::path};

/// Starts a registry that listens there and keeps its blobs below `dir`; it answers when this returns. `command` is how
/// `docker-registry` is run, such as in a host's namespace.
pub fn start(mut command: Command, dir: &Path, listen: SocketAddr, logs: &Path) -> anyhow::Result<Process> {
    fs::create_dir_all(dir)?;
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{listen}\"}}\n",
        dir.join("storage").display(),
    );
    fs::write(&config, text)?;
    command.args(["serve", path(&config)]).env_remove("OTEL_TRACES_EXPORTER");
    let mut registry = Process::start(command, logs, "registry")?;
    registry.logged("listening on ")?;
    Ok(registry)
}
