//! Certificates that an administrator has laid ready for a registry.
//!
//! Source: containers-certs.d(5), Docker's "Verify repository client with certificates". Owns: finding them. Does not own:
//! using them (`channel`).

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::error::RegistryError;

/// More than any authority's bundle.
const PEM_BYTES_MAX: u64 = 16 << 20;

/// What was found for one registry, in PEM form.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Authorities to trust.
    pub ca_pem: Option<Vec<u8>>,
    /// A certificate of this client with its key.
    pub client_pem: Option<Vec<u8>>,
}

/// The certificates for `registry` (`HOST[:PORT]`) in the first of the usual directories that has one for it:
/// `~/.config/containers/certs.d`, `/etc/containers/certs.d`, `/etc/docker/certs.d`. Files `*.crt` are authorities,
/// `NAME.cert` and `NAME.key` are the client's.
pub fn certificates_of(registry: &str) -> Result<Certificates, RegistryError> {
    let config = env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| env::home_dir().map(|home| home.join(".config")));
    let own = config.map(|config| config.join("containers/certs.d"));
    let all = [PathBuf::from("/etc/containers/certs.d"), PathBuf::from("/etc/docker/certs.d")];
    // A name with a separator would lead elsewhere.
    let is_plain = !registry.contains('/') && !registry.starts_with('.');
    let dir = own.into_iter().chain(all).map(|dir| dir.join(registry)).find(|dir| is_plain && dir.is_dir());
    dir.map_or(Ok(Certificates::default()), |dir| in_dir(&dir))
}

fn in_dir(dir: &Path) -> Result<Certificates, RegistryError> {
    let failed = |path: &Path, source| RegistryError::Credentials { path: path.to_owned(), source };
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths: Vec<_> =
        entries.map_err(|source| failed(dir, source))?.into_iter().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    let read = |path: &Path| {
        let size = fs::metadata(path).map_err(|source| failed(path, source))?.len();
        if size > PEM_BYTES_MAX {
            return Err(failed(
                path,
                io::Error::new(io::ErrorKind::InvalidData, "too large for certificates"),
            ));
        }
        let mut raw = fs::read(path).map_err(|source| failed(path, source))?;
        raw.push(b'\n');
        Ok(raw)
    };
    let mut found = Certificates::default();
    for path in &paths {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("crt") => found.ca_pem.get_or_insert_default().extend(read(path)?),
            Some("cert") if found.client_pem.is_none() => {
                let mut pem = read(path)?;
                pem.extend(read(&path.with_extension("key"))?);
                found.client_pem = Some(pem);
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_authorities_and_the_clients_own_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(in_dir(dir.path()).unwrap() == Certificates::default());
        write("b.crt", "B");
        write("a.crt", "A");
        write("readme", "no");
        let found = in_dir(dir.path()).unwrap();
        assert_eq!(found.ca_pem.unwrap(), b"A\nB\n");
        assert!(found.client_pem.is_none());
        write("client.cert", "C");
        assert!(in_dir(dir.path()).is_err(), "a certificate without its key is of no use");
        write("client.key", "K");
        assert_eq!(in_dir(dir.path()).unwrap().client_pem.unwrap(), b"C\nK\n");
    }
}
