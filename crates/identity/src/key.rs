//! The fleet key: 32 random bytes in a file. Does not own what is derived from it.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Separates the fleet's name from whatever else is derived from a key.
const NAME_CONTEXT: &str = "modelcast 2026-11 fleet name";

/// Bytes that nobody can foresee, at most 256.
///
/// # Errors
/// If the system's random source cannot be read, which Linux does not do once it has booted.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    assert!(count == N, "requests of at most 256 bytes are not cut short (getrandom(2))");
    Ok(bytes)
}

/// A fleet's key. Whoever holds it is a member.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetKey([u8; KEY_BYTES]);

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot {operation} the fleet key `{}`", path.display())]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not a key.
    #[error("`{}` is not a fleet key: it has not exactly {KEY_BYTES} bytes", path.display())]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it.
    #[error("`{}` can be read by others (mode {mode:04o})", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl KeyError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, path, .. } if source.kind() == io::ErrorKind::NotFound => Some(format!(
                "make one with `modelctl fleet-key new {}`, once for the whole fleet",
                path.display()
            )),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                Some("a key is never overwritten: choose another name, or remove it first".into())
            }
            Self::Io { .. } => None,
            Self::Length { .. } => {
                Some("copy the file that `modelctl fleet-key new` wrote, byte for byte".into())
            }
            Self::Readable { path, .. } => Some(format!("`chmod 600 {}`", path.display())),
        }
    }
}

impl FleetKey {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// If that cannot be read, which Linux does not do once it has booted.
    pub fn generate() -> io::Result<Self> {
        random_bytes().map(Self)
    }

    /// The key of these bytes.
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads a key file. One that others than its owner and its group can read is refused: it is no secret any more.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { operation: "read", path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o007 != 0 {
            return Err(KeyError::Readable { path: path.to_path_buf(), mode });
        }
        let mut bytes = Vec::new();
        (&file).take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let bytes = bytes.try_into().map_err(|_| KeyError::Length { path: path.to_path_buf() })?;
        Ok(Self(bytes))
    }

    /// Writes the key to a new file that only its owner can read.
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::Io { operation: "write", path: path.to_path_buf(), source };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(&self.0).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// The fleet's name: for choosing among schedulers, and for people. It says nothing of the key.
    pub fn fleet_name(&self) -> u64 {
        let name = self.derive(NAME_CONTEXT);
        u64::from_le_bytes(std::array::from_fn(|at| name[at]))
    }

    pub(crate) fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKey(…)")
    }
}
