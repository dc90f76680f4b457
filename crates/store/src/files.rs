//! Directories by handle: everything below one is reached without following a symbolic link or leaving it.
//!
//! Owns: the few file operations that the crate needs, made safe against hostile names, and what is known of file
//! systems. Does not own: what the files mean.

use std::{
    fmt,
    fs::File,
    io::{Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, Stat},
    io::Errno,
};

use crate::error::{Context as _, StoreError};

/// The kinds of file system between which the store makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FsKind {
    /// In memory: nothing is synced, nothing is hard-linked.
    Tmpfs,
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS, which may reflink.
    Xfs,
    /// Btrfs, which reflinks.
    Btrfs,
    /// An overlay, as in containers.
    Overlay,
    /// Any other, by its magic number (statfs(2)).
    Other(u64),
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Overlay => "overlay",
            // Those that models are likely to be put on; the numbers are those of statfs(2).
            Self::Other(0x6969) => "nfs",
            Self::Other(0x6573_5546) => "fuse",
            Self::Other(0x2fc1_2fc1) => "zfs",
            Self::Other(0x9584_58f6) => "hugetlbfs",
            Self::Other(0x0102_1997) => "9p",
            Self::Other(0x00c3_6400) => "ceph",
            Self::Other(0x0bd0_0bd0) => "lustre",
            Self::Other(magic) => return write!(f, "unknown (magic number {magic:#x})"),
        };
        f.write_str(name)
    }
}

impl FsKind {
    /// Whether a network card may write into the pages of its files (DESIGN §6, landing rule): elsewhere the kernel
    /// writes them back to disk at its own time and has to know what is written. A hugetlbfs is in memory as well, but
    /// its files have no exact length.
    pub fn lands_direct(self) -> bool {
        self == Self::Tmpfs
    }

    fn from_magic(magic: u64) -> Self {
        // The numbers are those of statfs(2); ramfs behaves like tmpfs in every respect that matters here.
        match magic {
            0x0102_1994 | 0x8584_58f6 => Self::Tmpfs,
            0xef53 => Self::Ext,
            0x5846_5342 => Self::Xfs,
            0x9123_683e => Self::Btrfs,
            0x794c_7630 => Self::Overlay,
            other => Self::Other(other),
        }
    }

    fn of_fd(fd: impl AsFd) -> rustix::io::Result<Self> {
        let magic = rustix::fs::fstatfs(fd)?.f_type;
        // The kernel's type is signed on some machines; magic numbers have 32 bits.
        Ok(Self::from_magic(u64::try_from(magic).unwrap_or_default() & 0xffff_ffff))
    }
}

/// The nearest directory at or above `path` that exists: a directory still to be made will lie on its file system.
fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .map(|at| if at.as_os_str().is_empty() { Path::new(".") } else { at })
        .find(|at| at.exists())
        .unwrap_or(Path::new("/"))
}

/// The kind of file system on which `path` lies or will lie.
pub fn filesystem_of(path: &Path) -> Result<FsKind, StoreError> {
    let at = existing_ancestor(path);
    let file = File::open(at).context("open", at)?;
    FsKind::of_fd(file).context("ask for the file system of", at)
}

/// Bytes that may still be allocated where `path` lies or will lie.
pub fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let at = existing_ancestor(path);
    let stat = rustix::fs::statvfs(at).context("ask for free space of", at)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Mode of directories and of files while they are written.
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Below the handle, no symbolic link: a name that a stranger planted is an error, not a detour.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path` as the user named it, symbolic links included.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).context("open directory", path)?;
        Ok(Self { fd, path: path.to_path_buf() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn kind(&self) -> Result<FsKind, StoreError> {
        FsKind::of_fd(&self.fd).context("ask for the file system of", &self.path)
    }

    /// A directory below this one.
    pub(crate) fn sub(&self, rel: &str) -> Result<Self, StoreError> {
        self.try_sub(rel).context("open directory", self.path.join(rel))
    }

    fn try_sub(&self, rel: &str) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, rel, flags, Mode::empty(), BENEATH)?;
        Ok(Self { fd, path: self.path.join(rel) })
    }

    /// A directory below this one, or `None` if there is none.
    pub(crate) fn find_sub(&self, rel: &str) -> Result<Option<Self>, StoreError> {
        match self.try_sub(rel) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).context("open directory", self.path.join(rel)),
        }
    }

    /// Opens a directory below this one; makes what is missing of the way there.
    pub(crate) fn make(&self, rel: &str) -> Result<Self, StoreError> {
        let mut at = self.again()?;
        for name in rel.split('/') {
            match rustix::fs::mkdirat(&at.fd, name, DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).context("create directory", at.path.join(name)),
            }
            at = at.sub(name)?;
        }
        Ok(at)
    }

    /// A second handle of the same directory.
    pub(crate) fn again(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone().context("duplicate the handle of", &self.path)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The directory that holds `rel` and the name there; `None` if that directory is missing.
    pub(crate) fn locate<'a>(&self, rel: &'a str) -> Result<Option<(Self, &'a str)>, StoreError> {
        match rel.rsplit_once('/') {
            Some((parent, name)) => Ok(self.find_sub(parent)?.map(|dir| (dir, name))),
            None => Ok(Some((self.again()?, rel))),
        }
    }

    /// As [`Self::locate`], but makes the directory.
    pub(crate) fn locate_or_make<'a>(&self, rel: &'a str) -> Result<(Self, &'a str), StoreError> {
        match rel.rsplit_once('/') {
            Some((parent, name)) => Ok((self.make(parent)?, name)),
            None => Ok((self.again()?, rel)),
        }
    }

    /// Opens a file to read and write, and creates it if it is missing.
    pub(crate) fn open_or_create(&self, name: &str) -> Result<File, StoreError> {
        self.open_with(name, OFlags::RDWR | OFlags::CREATE).context("open", self.path.join(name))
    }

    /// Creates a file that must not exist.
    pub(crate) fn create_new(&self, name: &str) -> Result<File, StoreError> {
        self.open_with(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
            .context("create", self.path.join(name))
    }

    /// Opens a file to read, or `None` if there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<File>, StoreError> {
        // NONBLOCK: a planted FIFO must not hang us.
        match self.open_with(name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).context("open", self.path.join(name)),
        }
    }

    fn open_with(&self, name: &str, flags: OFlags) -> rustix::io::Result<File> {
        let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { Mode::empty() };
        rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, mode, BENEATH).map(File::from)
    }

    /// Reads a whole file of at most `bytes_max` bytes, or `None` if there is none.
    pub(crate) fn read_small(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.find(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes).context("read", self.path.join(name))?;
        if bytes.len() as u64 > bytes_max {
            let reason = format!("more than {bytes_max} bytes");
            return Err(StoreError::Malformed { path: self.path.join(name), reason });
        }
        Ok(Some(bytes))
    }

    /// Gives `name` the content `bytes` in one step: a reader sees the old file or the new one.
    pub(crate) fn write_atomic(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = format!(".{name}.tmp");
        self.remove_if_there(&temporary)?;
        let mut file = self.create_new(&temporary)?;
        file.write_all(bytes).context("write", self.path.join(&temporary))?;
        if self.kind()? != FsKind::Tmpfs {
            file.sync_all().context("sync", self.path.join(&temporary))?;
        }
        self.rename(&temporary, self, name)
    }

    /// Renames, replacing what is there.
    pub(crate) fn rename(&self, from: &str, to: &Self, name: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.fd, from, &to.fd, name).context("rename to", to.path.join(name))
    }

    /// Renames, unless something is there.
    pub(crate) fn rename_new(&self, from: &str, to: &Self, name: &str) -> rustix::io::Result<()> {
        match rustix::fs::renameat_with(&self.fd, from, &to.fd, name, RenameFlags::NOREPLACE) {
            // The file system does not know the flag: look first, which is a race only against strangers.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::statat(&to.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(_) => rustix::fs::renameat(&self.fd, from, &to.fd, name),
                }
            }
            other => other,
        }
    }

    /// Gives the file behind `source` a second name here.
    pub(crate) fn link(&self, source: &File, name: &str) -> rustix::io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let magic = format!("/proc/self/fd/{}", source.as_raw_fd());
        rustix::fs::linkat(CWD, magic, &self.fd, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// What is known of a name here, without following a symbolic link.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).context("look at", self.path.join(name)),
        }
    }

    /// Removes a file; says whether it was there.
    pub(crate) fn remove_if_there(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).context("remove", self.path.join(name)),
        }
    }

    /// Removes a directory if it is empty; says whether it is gone.
    pub(crate) fn remove_empty_dir(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno).context("remove", self.path.join(name)),
        }
    }

    /// The names in this directory, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(&self.fd).context("list", &self.path)?;
        for entry in entries {
            let entry = entry.context("list", &self.path)?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes the names in this directory last.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.fd).context("sync", &self.path)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What tells one state of a file from another: not ctime, because linking moves it (DESIGN §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub(crate) inode: u64,
    /// In bytes.
    pub size: u64,
    pub(crate) mtime_ns: i64,
}

impl Fingerprint {
    pub(crate) fn of(stat: &Stat) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
        Self { inode: stat.st_ino, size, mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000) + nanoseconds }
    }

    /// Of a file that is open; `path` is for the message.
    pub fn of_file(file: &File, path: &Path) -> Result<Self, StoreError> {
        rustix::fs::fstat(file).map(|stat| Self::of(&stat)).context("look at", path)
    }
}

/// Opens a file for reading. A symbolic link is refused: it may have appeared since the path was found or the file
/// hashed.
pub fn open_file(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path).context("open", path)
}

/// Whether `stat` is of a plain file.
pub(crate) fn is_regular(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
}

/// Bytes read at a time when a file is hashed: large enough that system calls cost nothing beside hashing.
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// Shows every byte of `file` to `take`, in order; says how many there were.
pub(crate) fn read_through(file: &File, path: &Path, mut take: impl FnMut(&[u8])) -> Result<u64, StoreError> {
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(offset),
            Ok(count) => {
                take(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read", path),
        }
    }
}
