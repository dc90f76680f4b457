//! Models on a Hugging Face hub: what its API lists, and what its shared cache keeps of that.
//!
//! Source: the hub's API (`/api/models/…/revision`, `/api/models/…/tree`) and `huggingface_hub` 2.4, `_tree_cache.py`.
//! Owns: reading a listing, which is hostile, and what its identities name. Does not own: requests and caches
//! (`registry`), or what the artifact of a listing looks like ([`crate::build`]).

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::{
    build::{About, SourceFile},
    digest::Sha256Digest,
    document::to_bytes,
    manifest::LAYERS_MAX,
    path::{self, PathError},
    reference::HubReference,
    text::shown,
};

/// Most bytes of a file that is not in Git LFS. The hub takes none over 10 MB; such a file is read as a whole before its
/// digest is known.
pub const SMALL_BYTES_MAX: u64 = 16 << 20;

/// The version of the cache's listings that is read and written.
const TREE_FORMAT: u64 = 1;

/// What a hub or its cache says cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It is not JSON, or not of the form that it should have.
    #[error("it is not what the hub's API says")]
    Json(#[source] serde_json::Error),
    /// It is not 40 lower-case hexadecimal characters.
    #[error("`{0}` is not a Git object's name")]
    ObjectName(String),
    /// A listing of a version that is not known.
    #[error("it is of version {0}")]
    Version(u64),
    /// A file of the listing has no usable identity.
    #[error("it lists `{path}` with {problem}")]
    Entry {
        /// The file, as far as it can be shown.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More files than an artifact may have.
    #[error("it lists more than {LAYERS_MAX} files, which is the limit of an artifact")]
    TooMany,
    /// There is nothing in it.
    #[error("it lists no files")]
    Empty,
    /// A path that nobody would write to a disk.
    #[error("it lists a file that cannot be stored")]
    Path(#[from] PathError),
}

fn object_name(text: &str) -> Result<[u8; 20], HubError> {
    let bad = || HubError::ObjectName(shown(text));
    let mut value = [0; 20];
    if text.len() != 40 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(bad());
    }
    hex::decode_to_slice(text, &mut value).map_err(|_| bad())?;
    Ok(value)
}

macro_rules! git_names {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = HubError;

            fn from_str(text: &str) -> Result<Self, HubError> {
                object_name(text).map(Self)
            }
        }
    )*};
}
git_names!(Commit, GitBlob);

/// A commit: what a branch or a tag names at one moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Commit([u8; 20]);

/// A file's bytes as Git names them: by SHA-1, behind a header with their length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitBlob([u8; 20]);

impl Commit {
    /// The commit whose name has these bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Its name.
    pub const fn bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl GitBlob {
    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sha1 = Sha1::new();
        sha1.update(format!("blob {}\0", bytes.len()));
        sha1.update(bytes);
        Self(sha1.finalize().into())
    }
}

/// Reads the answer to which commit a revision is.
pub fn parse_commit(raw: &[u8]) -> Result<Commit, HubError> {
    #[derive(Deserialize)]
    struct Revision {
        sha: String,
    }
    let Revision { sha } = serde_json::from_slice(raw).map_err(HubError::Json)?;
    sha.parse()
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// Its path, which was checked.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its name in Git: of its bytes, or of the pointer to them if it is in Git LFS.
    pub git: GitBlob,
    /// The SHA-256 of its bytes, if it is in Git LFS.
    pub lfs: Option<Sha256Digest>,
    /// Its name in the hub's Xet store, which only the cache is told.
    xet: Option<String>,
}

impl HubFile {
    /// Under which name the shared cache keeps its bytes: what the hub sends as their `ETag`.
    pub fn etag(&self) -> String {
        self.lfs.map_or_else(|| self.git.to_string(), |lfs| lfs.hex())
    }

    /// Whether `bytes` are this file's.
    pub fn is_made_of(&self, bytes: &[u8]) -> bool {
        let is_named = |lfs| Sha256Digest::of(bytes) == lfs;
        bytes.len() as u64 == self.size && self.lfs.map_or_else(|| GitBlob::of(bytes) == self.git, is_named)
    }

    /// As a file of an artifact, whose BLAKE3 root nobody knows yet.
    pub fn source(&self, digest: Sha256Digest) -> SourceFile {
        SourceFile {
            path: self.path.clone(),
            size: self.size,
            digest,
            root: None,
            tree: Vec::new(),
            is_executable: false,
            safetensors: None,
        }
    }
}

/// Files as one page of the API lists them.
pub fn parse_page(raw: &[u8]) -> Result<Vec<HubFile>, HubError> {
    let entries: Vec<Entry> = serde_json::from_slice(raw).map_err(HubError::Json)?;
    let files = entries.into_iter().filter(|entry| entry.r#type != "directory");
    files.map(HubFile::try_from).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    r#type: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl TryFrom<Entry> for HubFile {
    type Error = HubError;

    fn try_from(entry: Entry) -> Result<Self, HubError> {
        let Entry { r#type, path, oid, size, lfs, xet_hash } = entry;
        if r#type != "file" {
            return Err(refused(&path, format!("the unknown type `{}`", shown(&r#type))));
        }
        let (lfs_sha256, lfs_size) = lfs.map(|lfs| (lfs.oid, lfs.size)).unzip();
        Self::read(path, Listed { size, blob_id: oid, lfs_sha256, lfs_size, xet_hash })
    }
}

fn refused(path: &str, problem: impl Into<String>) -> HubError {
    HubError::Entry { path: shown(path), problem: problem.into() }
}

/// One file as the cache's listings have it.
#[derive(Deserialize, Serialize)]
struct Listed {
    size: u64,
    blob_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl HubFile {
    fn read(path: String, listed: Listed) -> Result<Self, HubError> {
        path::check(&path)?;
        let Listed { size, blob_id, lfs_sha256, lfs_size, xet_hash } = listed;
        let git = blob_id.parse().map_err(|_| refused(&path, "no usable Git name"))?;
        let lfs = match lfs_sha256.as_ref().map(|hex| format!("sha256:{hex}").parse()) {
            Some(Err(_)) => return Err(refused(&path, "a malformed SHA-256")),
            lfs => lfs.and_then(Result::ok),
        };
        if lfs_size.is_some_and(|stated| stated != size) {
            return Err(refused(&path, "two sizes"));
        }
        if size == 0 && lfs.is_some_and(|lfs| lfs != Sha256Digest::of(b"")) {
            return Err(refused(&path, "no bytes, but the SHA-256 of some"));
        }
        if lfs.is_none() && size > SMALL_BYTES_MAX {
            return Err(refused(&path, format!("{size} bytes, but no SHA-256")));
        }
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Self { path, size, git, lfs, xet: xet_hash.filter(is_hash) })
    }
}

/// All files of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    files: Vec<HubFile>,
}

/// The cache's form of a listing.
#[derive(Deserialize, Serialize)]
struct Tree {
    format_version: u64,
    files: BTreeMap<String, Listed>,
}

impl Listing {
    /// Of files in any order, which were read by themselves.
    pub fn new(mut files: Vec<HubFile>) -> Result<Self, HubError> {
        if files.is_empty() {
            return Err(HubError::Empty);
        }
        if files.len() > LAYERS_MAX {
            return Err(HubError::TooMany);
        }
        path::check_together(files.iter().map(|file| file.path.as_str()))?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// By path.
    pub fn files(&self) -> &[HubFile] {
        &self.files
    }

    /// Reads `trees/COMMIT.json` of a shared cache.
    pub fn parse_tree(raw: &[u8]) -> Result<Self, HubError> {
        let Tree { format_version, files } = serde_json::from_slice(raw).map_err(HubError::Json)?;
        if format_version != TREE_FORMAT {
            return Err(HubError::Version(format_version));
        }
        Self::new(
            files.into_iter().map(|(path, listed)| HubFile::read(path, listed)).collect::<Result<_, _>>()?,
        )
    }

    /// What [`Self::parse_tree`] and `huggingface_hub` read.
    pub fn to_tree(&self) -> Vec<u8> {
        let listed = |file: &HubFile| Listed {
            size: file.size,
            blob_id: file.git.to_string(),
            lfs_sha256: file.lfs.map(|lfs| lfs.hex()),
            lfs_size: file.lfs.map(|_| file.size),
            xet_hash: file.xet.clone(),
        };
        let files = self.files.iter().map(|file| (file.path.clone(), listed(file))).collect();
        to_bytes(&Tree { format_version: TREE_FORMAT, files })
    }
}

/// What a link in a snapshot of the cache tells of a file without a listing: its path, its size and the name of its
/// blob, which is a SHA-256 or a Git name.
pub fn cached_file(path: &str, size: u64, etag: &str) -> Result<HubFile, HubError> {
    let (blob_id, lfs_sha256) = match etag.len() {
        // The pointer's own name is not kept in the cache, and nobody reads it.
        64 => (GitBlob([0; 20]).to_string(), Some(etag.to_owned())),
        _ => (etag.to_owned(), None),
    };
    HubFile::read(path.to_owned(), Listed { size, blob_id, lfs_sha256, lfs_size: None, xet_hash: None })
}

/// What an artifact says of where it is from.
pub fn about(at: &HubReference, commit: Commit) -> About {
    About {
        // What modelctl takes again, whichever mirror of the hub it was read from.
        source_url: Some(format!("hf://{}", at.model())),
        revision: Some(commit.to_string()),
        ..About::default()
    }
}
