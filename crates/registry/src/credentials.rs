//! Where credentials are kept: the files of Docker and podman, and their helpers.
//!
//! Owns: which files are looked at and in which order, and what of them answers for a registry. Does not own: proving
//! credentials (`auth`).
//!
//! **Invariant:** a secret is in no error, in no log and on no command line.

mod file;
mod helper;
mod write;

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use self::file::Config;
pub use self::write::{forget_credentials, store_credentials};
use crate::{access::Credentials, error::RegistryError};

/// Where credentials for a repository are looked for: in one file that the user names, or in the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The file that the user names.
    pub named: Option<PathBuf>,
}

impl CredentialFiles {
    /// The credentials for a repository of `registry` (`HOST[:PORT]`): those of the first file that has any; anonymous
    /// where none has. Entries for a part of a registry (`HOST/NAMESPACE`, as podman writes them) come before those for
    /// all of it. Without a named file these are looked at: the one of `REGISTRY_AUTH_FILE` and no other, or else
    /// `config.json` in `$DOCKER_CONFIG` or `~/.docker`, and podman's `auth.json` in `$XDG_RUNTIME_DIR/containers` and
    /// `~/.config/containers`.
    ///
    /// # Errors
    /// A file is there but cannot be read or makes no sense, or a credential helper fails.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Credentials, RegistryError> {
        for path in self.places() {
            let found = in_file(&path, registry, repository)?;
            if found != Credentials::Anonymous {
                return Ok(found);
            }
        }
        Ok(Credentials::Anonymous)
    }

    /// Where a login is kept.
    pub fn for_login(&self) -> Option<PathBuf> {
        self.places().into_iter().next()
    }

    /// Where a login may have been kept.
    pub fn places(&self) -> Vec<PathBuf> {
        if let Some(path) = &self.named {
            return vec![path.clone()];
        }
        let directory = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = directory("REGISTRY_AUTH_FILE") {
            return vec![path];
        }
        let home = env::home_dir();
        let below_home = |rel: &str| home.as_ref().map(|home| home.join(rel));
        let docker = directory("DOCKER_CONFIG").or_else(|| below_home(".docker"));
        let runtime = directory("XDG_RUNTIME_DIR").map(|dir| dir.join("containers"));
        let config = directory("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        [
            docker.map(|dir| dir.join("config.json")),
            runtime.map(|dir| dir.join("auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What one file has for a repository; nothing if it is not there.
fn in_file(path: &Path, registry: &str, repository: &str) -> Result<Credentials, RegistryError> {
    let Some(config) = Config::load(path)? else { return Ok(Credentials::Anonymous) };
    let failed = |problem: String| failed(path, io::Error::new(io::ErrorKind::InvalidData, problem));
    let keys = file::keys(registry, repository);
    if let Some((key, helper)) = keys.iter().find_map(|key| Some((key, config.helper(key)?))) {
        return helper::get(helper, &file::helper_key(key)).map_err(failed);
    }
    let found = config.entry(&keys).map_err(|problem| failed(problem.to_owned()))?;
    if found != Credentials::Anonymous {
        warn_if_open_to_all(path);
        return Ok(found);
    }
    match config.store() {
        Some(store) => helper::get(store, &file::helper_key(registry)).map_err(failed),
        None => Ok(Credentials::Anonymous),
    }
}

fn failed(path: &Path, source: io::Error) -> RegistryError {
    RegistryError::Credentials { path: path.to_owned(), source }
}

/// Whoever has an account on the machine could push in the user's name.
pub(crate) fn warn_if_open_to_all(path: &Path) {
    let is_open = fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0);
    if is_open {
        let path = path.display();
        tracing::warn!("everybody on this machine can read the credentials in `{path}`: `chmod 600 {path}`");
    }
}

#[cfg(test)]
mod tests;
