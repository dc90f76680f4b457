//! Keeping credentials and forgetting them.
//!
//! Owns: changing a configuration without losing what else is in it. Does not own: whether credentials are right, which
//! `Repository` asks the registry.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{
    failed,
    file::{Config, DOCKER_HUB_KEY, helper_key, keys},
    helper,
};
use crate::{access::Credentials, error::RegistryError};

/// Keeps the credentials for `registry` in the file at `path`, which is made if it is not there and which nobody else
/// may read, or with the credential helper that the file names for it.
pub fn store_credentials(
    path: &Path,
    registry: &str,
    credentials: &Credentials,
) -> Result<(), RegistryError> {
    let mut config = Config::load(path)?.unwrap_or_else(|| Config(Map::new()));
    let key = if crate::address::is_docker_hub(registry) { DOCKER_HUB_KEY } else { registry };
    let entry = match config.helper(registry).or(config.store()) {
        Some(helper) => {
            let stored = helper::store(helper, &helper_key(registry), credentials);
            stored.map_err(|problem| failed(path, io::Error::other(problem)))?;
            json!({})
        }
        None => match credentials {
            Credentials::Anonymous | Credentials::Forwarded { .. } => json!({}),
            Credentials::Identity { token } => json!({ "identitytoken": token }),
            Credentials::Basic { username, password } => {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            }
        },
    };
    match config.0.entry("auths").or_insert_with(|| json!({})) {
        Value::Object(auths) => drop(auths.insert(key.to_owned(), entry)),
        _ => return Err(failed(path, io::Error::new(io::ErrorKind::InvalidData, "`auths` is no object"))),
    }
    replace(path, &config).map_err(|error| failed(path, error))
}

/// Forgets the credentials for all of `registry` that the file at `path` has or names a helper for; says whether there
/// were any.
pub fn forget_credentials(path: &Path, registry: &str) -> Result<bool, RegistryError> {
    let Some(mut config) = Config::load(path)? else { return Ok(false) };
    let mut was_there = false;
    if let Some(auths) = config.0.get_mut("auths").and_then(Value::as_object_mut) {
        for key in keys(registry, "") {
            was_there |= auths.remove(&key).is_some();
        }
    }
    if let Some(helper) = config.helper(registry).or(config.store()).filter(|_| was_there) {
        let erased = helper::erase(helper, &helper_key(registry));
        erased.map_err(|problem| failed(path, io::Error::other(problem)))?;
    }
    if was_there {
        replace(path, &config).map_err(|error| failed(path, error))?;
    }
    Ok(was_there)
}

/// Puts a new file in place of the old one, or where a symbolic link to it leads.
fn replace(path: &Path, config: &Config) -> io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).create(parent)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let temporary = parent.join(format!(".{name}.{}", std::process::id()));
    let mut raw = serde_json::to_vec_pretty(&config.0)?;
    raw.push(b'\n');
    let write = || {
        // Nobody else, from its first byte on.
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&raw)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}
