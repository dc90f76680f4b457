//! Who asks, and over what: credentials and trust for one registry.
//!
//! Owns: what a user configures, and reading the credentials that `docker login` and others store. Does not own:
//! proving them to a registry (`auth`).

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::error::RegistryError;

/// The key under which Docker stores the login to Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// How to reach a registry.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Whether to speak HTTP without TLS. Never guessed, not even for `localhost`.
    pub plain_http: bool,
    /// Certificates of authorities to trust besides the system's, in PEM form.
    pub ca_pem: Option<Vec<u8>>,
    /// Who asks.
    pub credentials: Credentials,
}

/// Who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// Somebody with a password, or with a token that the registry takes in its place.
    Basic {
        /// The name.
        username: String,
        /// The secret.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => {
                f.debug_struct("Basic").field("username", username).finish_non_exhaustive()
            }
        }
    }
}

/// The credentials that `$DOCKER_CONFIG/config.json` or else `~/.docker/config.json` holds for `registry`
/// (`HOST[:PORT]`); anonymous where the file or the entry is absent.
///
/// Credential helpers and identity tokens are not used: where the file names one for this registry, a warning says so
/// and the answer is anonymous.
///
/// # Errors
/// The file is there but cannot be read or makes no sense.
pub fn stored_credentials(registry: &str) -> Result<Credentials, RegistryError> {
    let directory = env::var_os("DOCKER_CONFIG")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".docker")));
    let Some(directory) = directory else { return Ok(Credentials::Anonymous) };
    credentials_in(&directory.join("config.json"), registry)
}

/// The same from a file that the user names.
///
/// # Errors
/// The file is there but cannot be read or makes no sense.
pub fn credentials_in(path: &Path, registry: &str) -> Result<Credentials, RegistryError> {
    let failed = |source| RegistryError::Credentials { path: path.to_owned(), source };
    let raw = match fs::read(path) {
        Ok(raw) => raw,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Credentials::Anonymous),
        Err(error) => return Err(failed(error)),
    };
    // serde_json's errors may quote what they stumble over, so only the place is passed on.
    let config: DockerConfig = serde_json::from_slice(&raw).map_err(|error| {
        let place = format!("not a Docker configuration: line {}, column {}", error.line(), error.column());
        failed(io::Error::new(io::ErrorKind::InvalidData, place))
    })?;
    config
        .credentials(registry)
        .map_err(|problem| failed(io::Error::new(io::ErrorKind::InvalidData, problem)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
    #[serde(default)]
    cred_helpers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

impl DockerConfig {
    fn credentials(&self, registry: &str) -> Result<Credentials, &'static str> {
        let keys = keys(registry);
        if keys.iter().any(|key| self.cred_helpers.contains_key(key)) {
            tracing::warn!(
                registry,
                "credential helpers are not supported yet: going on without credentials"
            );
            return Ok(Credentials::Anonymous);
        }
        let Some(entry) = keys.iter().find_map(|key| self.auths.get(key)) else {
            return Ok(Credentials::Anonymous);
        };
        if !entry.identitytoken.is_empty() {
            tracing::warn!(registry, "identity tokens are not supported yet: going on without credentials");
            return Ok(Credentials::Anonymous);
        }
        let (username, password) = if entry.auth.is_empty() {
            (entry.username.clone(), entry.password.clone())
        } else {
            let pair = STANDARD.decode(&entry.auth).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.ok_or("an `auth` entry is not base64")?;
            // Docker pads with NULs when it encrypts; others copied it.
            let (username, password) = pair.split_once(':').ok_or("an `auth` entry has no colon")?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        if username.is_empty() {
            // An empty entry says that a credential store has the secret.
            if !self.creds_store.is_empty() {
                tracing::warn!(
                    registry,
                    "credential stores are not supported yet: going on without credentials"
                );
            }
            return Ok(Credentials::Anonymous);
        }
        Ok(Credentials::Basic { username, password })
    }
}

/// The keys under which tools store the login to `registry`.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    if crate::address::is_docker_hub(registry) {
        keys.push(DOCKER_HUB_KEY.to_owned());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &str, registry: &str, expect: Option<(&str, &str)>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, config).unwrap();
        let expect = match expect {
            None => Credentials::Anonymous,
            Some((username, password)) => {
                Credentials::Basic { username: username.into(), password: password.into() }
            }
        };
        assert_eq!(credentials_in(&path, registry).unwrap(), expect);
    }

    #[test]
    fn reads_what_docker_login_writes() {
        let auth = STANDARD.encode("me:pass:word");
        check(&format!(r#"{{"auths":{{"r.io":{{"auth":"{auth}"}}}}}}"#), "r.io", Some(("me", "pass:word")));
        check(&format!(r#"{{"auths":{{"r.io":{{"auth":"{auth}"}}}}}}"#), "other.io", None);
        check(r#"{"auths":{"r.io:5000":{"username":"u","password":"p"}}}"#, "r.io:5000", Some(("u", "p")));
        check(r#"{"auths":{"https://r.io":{"username":"u","password":"p"}}}"#, "r.io", Some(("u", "p")));
        let hub = r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
        check(hub, "docker.io", Some(("u", "p")));
    }

    #[test]
    fn treats_helpers_and_identity_tokens_as_absent() {
        check(r#"{"auths":{"r.io":{}},"credsStore":"desktop"}"#, "r.io", None);
        check(
            r#"{"auths":{"r.io":{"username":"u","password":"p"}},"credHelpers":{"r.io":"ecr"}}"#,
            "r.io",
            None,
        );
        check(r#"{"auths":{"r.io":{"identitytoken":"t"}}}"#, "r.io", None);
        check("{}", "r.io", None);
    }

    #[test]
    fn never_shows_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(credentials_in(&path, "r.io").unwrap(), Credentials::Anonymous, "no file, no login");
        fs::write(&path, r#"{"auths":{"r.io":{"auth":hunter2}}}"#).unwrap();
        let error = credentials_in(&path, "r.io").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
        let credentials = Credentials::Basic { username: "me".into(), password: "hunter2".into() };
        let access = Access { credentials, ..Access::default() };
        assert!(!format!("{access:?}").contains("hunter2"));
    }
}
