//! The configuration file that Docker, podman and their kin share.
//!
//! Source: `docker login`'s config.json, containers-auth.json(5). Owns: its form. Does not own: where it lies.

use std::{fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::failed;
use crate::{access::Credentials, error::RegistryError};

/// The key under which Docker stores the login to Docker Hub.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A configuration, with all that this client does not know.
pub(super) struct Config(pub(super) Map<String, Value>);

impl Config {
    /// Reads a file; `None` if there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, RegistryError> {
        let raw = match fs::read(path) {
            Ok(raw) => raw,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        // podman's tools make empty files.
        if raw.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Self(Map::new())));
        }
        // serde_json's errors may quote what they stumble over, so only the place is passed on.
        let config = serde_json::from_slice(&raw).map_err(|error| {
            let place =
                format!("not a Docker configuration: line {}, column {}", error.line(), error.column());
            failed(path, io::Error::new(io::ErrorKind::InvalidData, place))
        })?;
        Ok(Some(Self(config)))
    }

    /// The helper that keeps the secrets of one registry.
    pub(super) fn helper(&self, key: &str) -> Option<&str> {
        self.0.get("credHelpers")?.get(key)?.as_str().filter(|helper| !helper.is_empty())
    }

    /// The helper that keeps those of all others.
    pub(super) fn store(&self) -> Option<&str> {
        self.0.get("credsStore")?.as_str().filter(|store| !store.is_empty())
    }

    /// What the file itself has under the first of these keys that says something.
    pub(super) fn entry(&self, keys: &[String]) -> Result<Credentials, &'static str> {
        let auths = self.0.get("auths").and_then(Value::as_object);
        for entry in keys.iter().filter_map(|key| auths?.get(key)) {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let token = text("identitytoken");
            if !token.is_empty() {
                return Ok(Credentials::Identity { token });
            }
            let auth = text("auth");
            let (username, password) = if auth.is_empty() {
                (text("username"), text("password"))
            } else {
                let pair = STANDARD.decode(&auth).ok().and_then(|pair| String::from_utf8(pair).ok());
                let pair = pair.ok_or("an `auth` entry is not base64")?;
                // Docker pads with NULs when it encrypts; others copied it.
                let (username, password) = pair.split_once(':').ok_or("an `auth` entry has no colon")?;
                (username.to_owned(), password.trim_end_matches('\0').to_owned())
            };
            // An empty entry says that a credential store has the secret.
            if !username.is_empty() {
                return Ok(Credentials::Basic { username, password });
            }
        }
        Ok(Credentials::Anonymous)
    }
}

/// The keys under which tools store the login to a repository: the longest part of its name first.
pub(super) fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut name = repository;
    while !name.is_empty() {
        keys.push(format!("{registry}/{name}"));
        name = name.rsplit_once('/').map_or("", |(above, _)| above);
    }
    keys.extend([registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")]);
    if crate::address::is_docker_hub(registry) {
        keys.push(DOCKER_HUB_KEY.to_owned());
    }
    keys
}

/// The name by which helpers know a registry.
pub(super) fn helper_key(key: &str) -> String {
    if crate::address::is_docker_hub(key) { DOCKER_HUB_KEY.to_owned() } else { key.to_owned() }
}
