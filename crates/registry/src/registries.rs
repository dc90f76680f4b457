//! Which registries have mirrors, as `containers-registries.conf(5)` says it.
//!
//! Source: its version 2, as podman, skopeo and CRI-O read it: `[[registry]]` with `prefix`, `location`, `blocked`,
//! `mirror-by-digest-only`, and `[[registry.mirror]]` with `location`, `insecure`, `pull-from-mirror`. Owns: finding and
//! reading the files. Does not own: asking mirrors (`mirrors`), or who asks there (`credentials`).

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use modelpack::reference::RegistryReference;
use serde::Deserialize;

use crate::{error::RegistryError, mirrors::Serves};

/// More than any such file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a repository is mirrored, without who asks there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorAt {
    /// `HOST[:PORT]`.
    pub registry: String,
    /// The repository's name there.
    pub repository: String,
    /// Whether it is spoken to over plain HTTP.
    pub is_insecure: bool,
    /// What it is asked for.
    pub serves: Serves,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// The mirrors of the repository of `reference`, in the order in which they are asked. Looked for in the file that
/// `CONTAINERS_REGISTRIES_CONF` names, else in `~/.config/containers/registries.conf`, else in
/// `/etc/containers/registries.conf`; and, unless the variable is set, in `registries.conf.d/*.conf` beside those, of
/// which the last that has an entry for a prefix counts.
///
/// # Errors
/// A file cannot be read or makes no sense, or its entry for the registry blocks it or rewrites its name.
pub fn mirrors_of(reference: &RegistryReference) -> Result<Vec<MirrorAt>, RegistryError> {
    let mut entries: Vec<(PathBuf, Entry)> = Vec::new();
    for path in places() {
        for entry in load(&path)? {
            entries.retain(|(_, other)| other.key() != entry.key());
            entries.push((path.clone(), entry));
        }
    }
    let name = format!("{}/{}", reference.registry, reference.repository);
    let matched =
        entries.iter().filter_map(|(path, entry)| Some((path, entry, matched_len(entry.key(), &name)?)));
    let Some((path, entry, len)) = matched.max_by_key(|(_, _, len)| *len) else { return Ok(Vec::new()) };
    entry.mirrors(&name[len..]).map_err(|problem| RegistryError::Settings {
        path: path.clone(),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("`{}` {problem}", entry.key())),
    })
}

fn places() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("CONTAINERS_REGISTRIES_CONF") {
        return vec![path];
    }
    let config = variable("XDG_CONFIG_HOME").or_else(|| env::home_dir().map(|home| home.join(".config")));
    let own = config.map(|config| config.join("containers"));
    let system = PathBuf::from("/etc/containers");
    let main = own.iter().chain([&system]).map(|dir| dir.join("registries.conf")).find(|path| path.exists());
    let more =
        [Some(system), own].into_iter().flatten().flat_map(|dir| parts(&dir.join("registries.conf.d")));
    main.into_iter().chain(more).collect()
}

fn parts(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut parts: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
    parts.sort_unstable();
    parts
}

fn load(path: &Path) -> Result<Vec<Entry>, RegistryError> {
    let read = || {
        let size = fs::metadata(path)?.len();
        if size > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        let text = fs::read_to_string(path)?;
        // What other tools keep in it is none of our business.
        let file: File = toml::from_str(&text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.message().to_owned()))?;
        if file.registry.iter().any(|entry| entry.key().is_empty()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a registry has neither prefix nor location",
            ));
        }
        Ok(file.registry)
    };
    read().map_err(|source| RegistryError::Settings { path: path.to_owned(), source })
}

/// How much of `name` an entry's prefix stands for, if it is about it.
fn matched_len(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = name.split('/').next()?;
        let parent = host.split(':').next()?.strip_suffix(domain)?;
        return parent.ends_with('.').then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

impl Entry {
    fn key(&self) -> &str {
        self.prefix.as_deref().or(self.location.as_deref()).unwrap_or_default()
    }

    /// `rest` is what follows the prefix in the repository's name.
    fn mirrors(&self, rest: &str) -> Result<Vec<MirrorAt>, String> {
        if self.blocked {
            return Err("is blocked".to_owned());
        }
        let is_rewritten = |location: &String| !self.key().starts_with("*.") && location != self.key();
        if let Some(location) = self.location.as_ref().filter(|location| is_rewritten(location)) {
            return Err(format!("is rewritten to `{location}`, which modelctl does not do"));
        }
        self.mirror.iter().map(|mirror| mirror.at(rest, self.mirror_by_digest_only)).collect()
    }
}

impl MirrorEntry {
    fn at(&self, rest: &str, by_digest_only: bool) -> Result<MirrorAt, String> {
        let whole = format!("{}{rest}", self.location);
        let (registry, repository) = whole
            .split_once('/')
            .filter(|(registry, repository)| !registry.is_empty() && !repository.is_empty())
            .ok_or_else(|| format!("has a mirror without a repository, `{}`", self.location))?;
        let serves = match self.pull_from_mirror.as_deref() {
            None | Some("all") if !by_digest_only => Serves::All,
            None | Some("digest-only") => Serves::Digests,
            Some("tag-only") if !by_digest_only => Serves::Tags,
            Some(_) if by_digest_only => Serves::Digests,
            Some(other) => return Err(format!("has a mirror with `pull-from-mirror = \"{other}\"`")),
        };
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        Ok(MirrorAt { registry, repository, is_insecure: self.insecure, serves })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, name: &str) -> Result<Vec<MirrorAt>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        fs::write(&path, text).unwrap();
        let entries =
            load(&path).map_err(|error| format!("{:?}", std::error::Error::source(&error).unwrap()))?;
        let best = entries.iter().filter_map(|entry| Some((entry, matched_len(entry.key(), name)?)));
        best.max_by_key(|(_, len)| *len).map_or(Ok(Vec::new()), |(entry, len)| entry.mirrors(&name[len..]))
    }

    fn at(registry: &str, repository: &str, serves: Serves) -> MirrorAt {
        MirrorAt { registry: registry.into(), repository: repository.into(), is_insecure: false, serves }
    }

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"
        [aliases]
        "x" = "y/z"
        [[registry]]
        location = "r.example.org"
        [[registry.mirror]]
        location = "near.example.org:5000"
        [[registry.mirror]]
        location = "far.example.org/cache/r"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "r.example.org/models"
        location = "r.example.org/models"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "models.example.org/all"
        [[registry]]
        prefix = "*.wild.example.org"
        [[registry.mirror]]
        location = "near.example.org/wild"
        [[registry]]
        location = "bad.example.org"
        blocked = true
        [[registry]]
        prefix = "old.example.org"
        location = "new.example.org"
    "#;

    #[test]
    fn the_longest_prefix_decides_and_the_rest_of_the_name_stays() {
        let far = MirrorAt { is_insecure: true, ..at("far.example.org", "cache/r/a/b", Serves::Digests) };
        assert_eq!(
            found(CONF, "r.example.org/a/b").unwrap(),
            [at("near.example.org:5000", "a/b", Serves::All), far]
        );
        let models = at("models.example.org", "all/x", Serves::Digests);
        assert_eq!(found(CONF, "r.example.org/models/x").unwrap(), [models]);
        assert_eq!(found(CONF, "r.example.org/modelsx/y").unwrap()[0].repository, "modelsx/y");
        assert_eq!(
            found(CONF, "a.wild.example.org:80/x").unwrap(),
            [at("near.example.org", "wild/x", Serves::All)]
        );
        for name in ["wild.example.org/x", "r.example.org.evil.example/a", "other.example.org/x"] {
            assert_eq!(found(CONF, name).unwrap(), [], "{name}");
        }
    }

    #[test]
    fn what_is_not_done_is_an_error() {
        assert_eq!(found(CONF, "bad.example.org/x").unwrap_err(), "is blocked");
        assert!(found(CONF, "old.example.org/x").unwrap_err().contains("new.example.org"));
        let twisted = "[[registry]]\nlocation='r'\n[[registry.mirror]]\nlocation='m'\npull-from-mirror='x'";
        assert!(found(twisted, "r/x").unwrap_err().contains("pull-from-mirror"));
        assert!(found("[[registry]]\nblocked = true", "r/x").unwrap_err().contains("neither"));
        assert!(found("[[registry", "r/x").is_err());
        // What version 1 had is something else.
        assert_eq!(found("[registries.search]\nregistries = ['r']", "r/x").unwrap(), []);
    }
}
