//! The entries of a tar archive, one after another.
//!
//! Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar's long names. The `tar` crate
//! reads single headers. Its own iterator is not used, because it reads extended headers of any length into memory and
//! takes GNU's sparse files in pax form for plain ones. Owns: which entries are files, and their checked paths. Does
//! not own: bounds of the whole (`budget`).

use std::io::{self, Read};

use modelpack::{
    manifest::{Modified, published_mode},
    path,
};
use tar::{EntryType, Header as Block, PaxExtensions};

use super::{ArchiveError, budget::read_error};

/// Tar is made of blocks of this size.
const BLOCK_BYTES: usize = 512;

/// Most bytes of an extended header or a long name: a path has at most 4096, and times and sizes are short.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// One entry that is a file, or a second path of one.
pub(super) struct Header {
    pub(super) path: String,
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) modified: Option<Modified>,
}

pub(super) enum What {
    File { size: u64 },
    Link { target: String },
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Modified>,
}

/// Reads entries. The content of one has to be read, or is skipped, before the next.
pub(super) struct Entries<R> {
    source: R,
    /// Bytes of the present entry's content that were not read.
    left: u64,
    /// Bytes that fill its last block.
    padding: u64,
    is_first: bool,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, is_first: true }
    }

    /// The next file or link; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let stated = block.entry_size().map_err(|_| ArchiveError::NotTar("an entry has no size"))?;
            match block.entry_type() {
                EntryType::XHeader => extended.read_pax(&self.extension(stated)?)?,
                EntryType::XGlobalHeader => refuse_global(&self.extension(stated)?)?,
                EntryType::GNULongName => extended.path = Some(without_nul(self.extension(stated)?)),
                EntryType::GNULongLink => extended.link = Some(without_nul(self.extension(stated)?)),
                _ => {
                    let extended = std::mem::take(&mut extended);
                    let size = extended.size.unwrap_or(stated);
                    if let Some(header) = header(&block, extended, size)? {
                        if matches!(header.what, What::File { .. }) {
                            self.expect(size);
                        }
                        return Ok(Some(header));
                    }
                    // Directories have no content, whatever their size says.
                }
            }
        }
    }

    /// The content of the present entry.
    pub(super) fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// Reads what follows the last entry, so that the end of a compressed stream is seen and checked.
    pub(super) fn drain(&mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.source, &mut io::sink()).map_err(read_error).map(drop)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        let block = BLOCK_BYTES as u64;
        self.padding = (block - size % block) % block;
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let skip = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.source).take(skip), &mut io::sink()).map_err(read_error)?;
        if skipped == skip { Ok(()) } else { Err(cut_off()) }
    }

    /// The next header; `None` at the end: an empty block, or no more bytes.
    fn block(&mut self) -> Result<Option<Block>, ArchiveError> {
        let mut bytes = [0; BLOCK_BYTES];
        let mut have = 0;
        while have < BLOCK_BYTES {
            match self.source.read(&mut bytes[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(cut_off()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // As POSIX has it: the sum of all bytes, those of the checksum itself taken for blanks.
        let sum = bytes.iter().enumerate().map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        let block = Block::from_byte_slice(&bytes);
        if block.cksum().ok() != Some(sum.sum()) {
            let at = if self.is_first {
                "its first header has a wrong checksum"
            } else {
                "a header has a wrong checksum"
            };
            return Err(ArchiveError::NotTar(at));
        }
        self.is_first = false;
        Ok(Some(block.clone()))
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(ArchiveError::NotTar("an extended header is too long"));
        }
        self.expect(size);
        let mut bytes = Vec::new();
        self.content().read_to_end(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }
}

/// Reads no further than the entry, and takes its early end for an error.
pub(super) struct Content<'a, R>(&'a mut Entries<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        match self.0.source.read(&mut buffer[..len])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.0.left -= count as u64;
                Ok(count)
            }
        }
    }
}

fn cut_off() -> ArchiveError {
    ArchiveError::Damaged(io::ErrorKind::UnexpectedEof.into())
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Extended {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|_| ArchiveError::NotTar("an extended header is malformed"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value)?),
                b"mtime" => self.modified = time(value),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(ArchiveError::NotTar("it has sparse files, which are not unpacked"));
                }
                // Owners, access times, attributes: nobody restores those.
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is said of all entries that follow. Comments, as git writes them, are all that is found there in practice.
fn refuse_global(bytes: &[u8]) -> Result<(), ArchiveError> {
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(|_| ArchiveError::NotTar("an extended header is malformed"))?;
        let key = record.key_bytes();
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err(ArchiveError::NotTar("it states one path or size for all entries"));
        }
    }
    Ok(())
}

fn number(text: &[u8]) -> Result<u64, ArchiveError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or(ArchiveError::NotTar("an extended header is malformed"))
}

/// Seconds with a fraction. What cannot be read, or lies before 1970, is not restored.
fn time(text: &[u8]) -> Option<Modified> {
    let (seconds, fraction) = match std::str::from_utf8(text).ok()?.split_once('.') {
        Some((seconds, fraction)) => (seconds, fraction),
        None => (std::str::from_utf8(text).ok()?, ""),
    };
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Modified::new(seconds.parse().ok()?, nanoseconds.parse().ok()?)
}

/// What an entry is; `None` for a directory, which its files bring along.
fn header(block: &Block, extended: Extended, size: u64) -> Result<Option<Header>, ArchiveError> {
    let raw = extended.path.unwrap_or_else(|| block.path_bytes().into_owned());
    let shown = String::from_utf8_lossy(&raw).escape_debug().take(100).collect::<String>();
    let refuse =
        |problem: &str| Err(ArchiveError::Entry { path: shown.clone(), problem: problem.to_owned() });
    let Ok(name) = std::str::from_utf8(&raw) else { return refuse("has a name that is not UTF-8") };
    let link = match block.entry_type() {
        EntryType::Directory => return Ok(None),
        // As old tars marked directories.
        EntryType::Regular if name.ends_with('/') => return Ok(None),
        EntryType::Regular | EntryType::Continuous => None,
        EntryType::Link | EntryType::Symlink => {
            Some(extended.link.or_else(|| block.link_name_bytes().map(std::borrow::Cow::into_owned)))
        }
        EntryType::Char | EntryType::Block => return refuse("is a device"),
        EntryType::Fifo => return refuse("is a named pipe"),
        EntryType::GNUSparse => return refuse("is a sparse file, which is not unpacked"),
        other => {
            return refuse(&format!("is an entry of the type {}, which is not unpacked", other.as_byte()));
        }
    };
    let path = plain(name);
    path::check(&path)?;
    let what = match link {
        None => What::File { size },
        Some(target) => {
            let target = target.as_deref().map(std::str::from_utf8);
            let Some(Ok(target)) = target else { return refuse("is a link whose target is not UTF-8") };
            let is_symbolic = block.entry_type() == EntryType::Symlink;
            match resolved(&path, target, if is_symbolic { From::Itself } else { From::Top }) {
                Some(target) => What::Link { target },
                None => {
                    return refuse(&format!(
                        "is a link to `{}`, outside of the archive",
                        target.escape_debug()
                    ));
                }
            }
        }
    };
    let modified = extended.modified.or_else(|| {
        let seconds = i64::try_from(block.mtime().ok()?).ok()?;
        Modified::new(seconds, 0)
    });
    let mode = published_mode(block.mode().unwrap_or(0o644));
    Ok(Some(Header { path, what, mode, modified }))
}

/// Without the `./` that many tars put before each path.
fn plain(name: &str) -> String {
    let mut name = name;
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.trim_start_matches('/');
    }
    name.to_owned()
}

/// From where a link's target is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// The directory of the link: symbolic links.
    Itself,
    /// The top of the archive: hard links.
    Top,
}

/// The path of a link's target within the archive; `None` if it leaves it.
fn resolved(path: &str, target: &str, from: From) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = match (from, path.rsplit_once('/')) {
        (From::Itself, Some((parent, _))) => parent.split('/').collect(),
        _ => Vec::new(),
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    let target = parts.join("/");
    path::check(&target).ok().map(|()| target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_within_the_archive() {
        assert_eq!(resolved("a/b/c", "../d", From::Itself).as_deref(), Some("a/d"));
        assert_eq!(resolved("a/b/c", "d", From::Top).as_deref(), Some("d"));
        assert_eq!(resolved("a/b", "./././c", From::Itself).as_deref(), Some("a/c"));
        for target in ["/etc/passwd", "../../x", "..", "../.modelctl/x"] {
            assert_eq!(resolved("a/b", target, From::Itself), None, "{target}");
        }
    }

    #[test]
    fn times_have_fractions_or_none() {
        assert_eq!(time(b"12.5"), Modified::new(12, 500_000_000));
        assert_eq!(time(b"12"), Modified::new(12, 0));
        assert_eq!(time(b"12.1234567891"), Modified::new(12, 123_456_789));
        for odd in [&b""[..], b"-3", b"x", b"0", b"1.x", b"\xff"] {
            assert_eq!(time(odd), None);
        }
    }
}
