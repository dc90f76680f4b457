//! The programs that are run: whether they are there, and running them to their end. Does not own what they do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

/// Whether all of these programs are installed, and if not, which is missing.
pub fn are_installed(tools: &[&str]) -> anyhow::Result<()> {
    for tool in tools {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$1\"", "sh", tool])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        ensure!(found, "`{tool}` is not installed: run scripts/setup");
    }
    Ok(())
}

/// The program of that name or path.
///
/// # Errors
/// If there is none.
pub fn find(program: &Path, flag: &str) -> anyhow::Result<PathBuf> {
    let is_name = program.components().count() == 1 && !program.exists();
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(program)).find(|path| path.is_file());
    let path = found.filter(|_| is_name).unwrap_or_else(|| program.to_path_buf());
    fs::canonicalize(&path).with_context(|| {
        format!("there is no program `{}`: build it, or name another with {flag}", program.display())
    })
}

/// Runs modelctl to its end, with nobody's settings.
pub fn call(modelctl: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(modelctl);
    without_settings(&mut command);
    let output = command.args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("`modelctl {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Nobody's settings of modelctl reach what is started.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MODELCTL_") {
            command.env_remove(name);
        }
    }
}

/// A path as an argument: those of a scratch directory are plain text.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
