//! New artifacts: from hashed files to the bytes of a manifest, a config and the referrer of piece trees.
//!
//! Source: ModelPack specification 0.0.7. Owns: what is written, byte for byte: the same files give the same bytes on
//! any machine and day. Does not own: reading and hashing the files, or pushing the result.

mod about;
mod config;
mod dialect;
mod kind;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

pub use self::{about::About, config::Surveyed, dialect::Dialect};
use crate::{
    digest::{Blake3Root, Sha256Digest},
    document::{Annotations, NewDescriptor, NewDocument, to_bytes},
    layout::PIECE_BYTES,
    manifest::{
        BLAKE3_ANNOTATION, Kind, LAYERS_MAX, MANIFEST_BYTES_MAX, MEDIA_TYPE, METADATA_ANNOTATION, Manifest,
        ManifestError, Modified, PATH_ANNOTATION, TITLE_ANNOTATION, UNIX_SECONDS_MAX,
    },
    modelfile::Facts,
    path::{self, PathError},
    piece_tree::{PieceTree, TreeError},
    piece_trees, safetensors,
};

/// The annotation that says whether a layer's kind was guessed.
const UNTESTED_ANNOTATION: &str = "org.cncf.model.file.mediatype.untested";

/// The annotation on a manifest under which modctl keeps the Modelfile.
const MODELFILE_ANNOTATION: &str = "org.cncf.modctl.modelfile";

/// Bytes of a manifest besides its layers, generously.
const FRAME_BYTES: u64 = 1024;

/// A file that was hashed.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its path below the model's directory, with `/` between components.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes.
    pub digest: Sha256Digest,
    /// The BLAKE3 hash of its bytes, if somebody has computed it: an artifact that states it can be proved piece by
    /// piece.
    pub root: Option<Blake3Root>,
    /// Its piece tree, [`PieceTree::serialise`]: empty for a file of at most one piece.
    pub tree: Vec<u8>,
    /// Whether somebody may execute it.
    pub is_executable: bool,
    /// What its header says, if it is a safetensors file.
    pub safetensors: Option<safetensors::Summary>,
}

/// What is kept of a file besides its bytes. Never whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its permissions.
    pub mode: u32,
    /// When it was last modified; none for 1970 or before.
    pub modified: Option<Modified>,
}

/// What is said of the model besides its files.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What somebody states in one word each; what is not stated is taken from the files.
    pub facts: Facts,
    /// What somebody states of its origin.
    pub about: About,
    /// What files are for, by path, where it is stated; others are judged by name.
    pub kinds: BTreeMap<String, Kind>,
    /// The Modelfile, to be kept with the artifact.
    pub modelfile: Option<String>,
    /// The permissions and times of files, by path, where they are to be kept; of others only whether somebody may execute
    /// them is.
    pub kept: BTreeMap<String, Kept>,
    /// Which names are written.
    pub dialect: Dialect,
    /// The time of everything, in seconds since 1970: `SOURCE_DATE_EPOCH`, or 0.
    pub created_at_unix: i64,
    /// The model's own `config.json`, as the transformers library writes it.
    pub hf_config: Option<serde_json::Value>,
}

/// A new artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The manifest, which [`Manifest::parse`] accepts.
    pub manifest: Vec<u8>,
    /// The config blob.
    pub config: Vec<u8>,
    /// The referrer of piece trees, if a file has more than one piece.
    pub trees: Option<BuiltTrees>,
}

/// The referrer that carries the piece trees of a new artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltTrees {
    /// Its manifest, which [`piece_trees::TreesManifest::parse`] accepts.
    pub manifest: Vec<u8>,
    /// Its config blob.
    pub config: Vec<u8>,
    /// Its layers: one tree for each blob of more than one piece, in the order of the model's manifest.
    pub layers: Vec<(Sha256Digest, Vec<u8>)>,
}

/// Files that cannot become an artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is nothing to build from.
    #[error("there are no files")]
    NoFiles,
    /// More files than a manifest may list.
    #[error("there are {0} files, over the limit of {LAYERS_MAX}")]
    TooManyFiles(usize),
    /// A path would be refused by whoever pulls the artifact.
    #[error("a file's path cannot be part of an artifact")]
    Path(#[from] PathError),
    /// So many long paths that registries would refuse the manifest.
    #[error("the manifest would have about {0} bytes, over the limit of {MANIFEST_BYTES_MAX}")]
    ManifestTooLong(u64),
    /// The time is before 1970 or after 9999.
    #[error("the time {0} is not between the years 1970 and 9999")]
    Time(i64),
    /// What is stated of the model is not what the specification allows.
    #[error("{what} `{value}` is not {allowed}")]
    About {
        /// Which part.
        what: &'static str,
        /// What was given.
        value: String,
        /// What would be.
        allowed: &'static str,
    },
    /// A piece tree is not the one of its file.
    #[error("the piece tree of `{path}` does not fit the file")]
    Tree {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: TreeError,
    },
    /// Two files' hashes contradict one another, or all files together are too large.
    #[error("the files do not make an artifact")]
    Refused(#[from] ManifestError),
}

impl BuildError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoFiles => "name the directory that holds the model",
            Self::TooManyFiles(_) | Self::ManifestTooLong(_) => {
                "pack many small files into one, or split the model into several artifacts"
            }
            Self::Path(_) => "rename the file, or move it out of the directory",
            Self::Time(_) => "set `SOURCE_DATE_EPOCH` to seconds since 1970, or unset it",
            Self::About { .. } => return None,
            Self::Tree { .. } => "build again: the file changed while it was read",
            Self::Refused(error) => return error.hint(),
        };
        Some(hint.into())
    }
}

/// What a file is for, by its name. A name that says nothing is [`Kind::Code`], as in modctl.
pub fn kind_of(path: &str) -> Kind {
    kind::known_kind(path).unwrap_or(Kind::Code)
}

/// What the files of a model say of it, without a look at their bytes.
pub fn facts_of(files: &[Surveyed<'_>], hf_config: Option<&serde_json::Value>) -> Facts {
    config::derived(files, hf_config)
}

/// Checks everything that names alone can make impossible: cheap, and so done before anything is hashed.
pub fn check_limits<'a>(files: impl Iterator<Item = &'a str>) -> Result<(), BuildError> {
    check_stated(files, &Options::default())
}

/// The same with what is stated of the model.
pub fn check_stated<'a>(files: impl Iterator<Item = &'a str>, options: &Options) -> Result<(), BuildError> {
    options.about.check()?;
    rfc3339(options.created_at_unix)?;
    let paths: Vec<&str> = files.collect();
    if paths.is_empty() {
        return Err(BuildError::NoFiles);
    }
    if paths.len() > LAYERS_MAX {
        return Err(BuildError::TooManyFiles(paths.len()));
    }
    let modelfile = options.modelfile.as_ref().map_or(0, |text| to_bytes(text).len() as u64);
    let mut bytes = FRAME_BYTES + modelfile;
    for path in &paths {
        path::check(path)?;
        // The largest values that a layer of this path could have.
        let file = SourceFile {
            path: (*path).to_owned(),
            size: u64::MAX,
            digest: Sha256Digest::new([0; 32]),
            root: Some(Blake3Root::new([0; 32])),
            tree: Vec::new(),
            is_executable: true,
            safetensors: None,
        };
        bytes += to_bytes(&layer(&file, options, &rfc3339(0)?)).len() as u64 + 1;
    }
    path::check_together(paths.into_iter())?;
    if bytes > MANIFEST_BYTES_MAX { Err(BuildError::ManifestTooLong(bytes)) } else { Ok(()) }
}

/// Makes an artifact of hashed files, given in any order.
pub fn build(files: Vec<SourceFile>, options: &Options) -> Result<Built, BuildError> {
    check_stated(files.iter().map(|file| file.path.as_str()), options)?;
    let created_at = rfc3339(options.created_at_unix)?;
    let mut files: Vec<(Kind, SourceFile)> =
        files.into_iter().map(|file| (options.kind(&file.path), file)).collect();
    files.sort_unstable_by(|(kind, file), (other_kind, other)| {
        (kind, &file.path).cmp(&(other_kind, &other.path))
    });
    let config = config::config(&files, options, &created_at);
    let modelfile = options.modelfile.iter();
    let annotations = modelfile.map(|text| (options.dialect.spell(MODELFILE_ANNOTATION), text.clone()));
    let manifest = to_bytes(&NewDocument {
        schema_version: 2,
        media_type: MEDIA_TYPE,
        artifact_type: options.dialect.artifact_type(),
        config: NewDescriptor::of(options.dialect.config_media_type(), &config),
        layers: files.iter().map(|(_, file)| layer(file, options, &created_at)).collect(),
        subject: None,
        annotations: annotations.collect(),
    });
    // Whoever pulls the artifact reads it like this, so what they would refuse is not built.
    Manifest::parse(&manifest)?;
    let trees = trees(files, &manifest)?;
    Ok(Built { manifest, config, trees })
}

impl Options {
    /// What a file is for: as stated, or by its name.
    pub fn kind(&self, path: &str) -> Kind {
        self.kinds.get(path).copied().unwrap_or_else(|| kind_of(path))
    }
}

/// The keys and their order are those of modctl, which always writes all of them.
#[derive(Serialize)]
struct FileMetadata<'a> {
    name: &'a str,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: &'a str,
    typeflag: u8,
}

fn layer(file: &SourceFile, options: &Options, mtime: &str) -> NewDescriptor {
    let (kind, dialect) = (options.kind(&file.path), options.dialect);
    let kept = options.kept.get(&file.path);
    let modified = kept.and_then(|kept| kept.modified).map(Modified::to_rfc3339);
    let metadata = FileMetadata {
        name: file.path.rsplit('/').next().unwrap_or(&file.path),
        mode: kept.map_or(if file.is_executable { 0o755 } else { 0o644 }, |kept| kept.mode & 0o777),
        uid: 0,
        gid: 0,
        size: file.size,
        mtime: modified.as_deref().unwrap_or(mtime),
        typeflag: 0,
    };
    let metadata = serde_json::to_string(&metadata).expect("a plain struct, written to memory");
    let mut annotations = Annotations::from([
        (dialect.spell(PATH_ANNOTATION), file.path.clone()),
        (TITLE_ANNOTATION.to_owned(), file.path.clone()),
        (dialect.spell(METADATA_ANNOTATION), metadata),
    ]);
    annotations.extend(file.root.map(|root| (BLAKE3_ANNOTATION.to_owned(), root.hex())));
    if kind::known_kind(&file.path).is_none() && !options.kinds.contains_key(&file.path) {
        annotations.insert(dialect.spell(UNTESTED_ANNOTATION), "true".to_owned());
    }
    NewDescriptor {
        media_type: dialect.spell(&format!("application/vnd.cncf.model.{}.v1.raw", kind.media_type_part())),
        digest: file.digest.to_string(),
        size: file.size,
        annotations,
    }
}

fn trees(files: Vec<(Kind, SourceFile)>, model: &[u8]) -> Result<Option<BuiltTrees>, BuildError> {
    let mut seen = BTreeSet::new();
    let mut descriptors = Vec::new();
    let mut layers = Vec::new();
    for (_, file) in files {
        let Some(root) = file.root else { continue };
        if let Err(source) = PieceTree::anchor(file.size, root, &file.tree) {
            return Err(BuildError::Tree { path: file.path, source });
        }
        if file.size <= PIECE_BYTES || !seen.insert(file.digest) {
            continue;
        }
        let mut descriptor = NewDescriptor::of(piece_trees::LAYER_MEDIA_TYPE, &file.tree);
        descriptor.annotations.insert(piece_trees::BLOB_ANNOTATION.to_owned(), file.digest.to_string());
        descriptors.push(descriptor);
        layers.push((Sha256Digest::of(&file.tree), file.tree));
    }
    if layers.is_empty() {
        return Ok(None);
    }
    let config = piece_trees::EMPTY_BYTES.to_vec();
    let manifest = to_bytes(&NewDocument {
        schema_version: 2,
        media_type: MEDIA_TYPE,
        artifact_type: piece_trees::ARTIFACT_TYPE,
        config: NewDescriptor::of(piece_trees::EMPTY_MEDIA_TYPE, &config),
        layers: descriptors,
        subject: Some(NewDescriptor::of(MEDIA_TYPE, model)),
        annotations: Annotations::new(),
    });
    Ok(Some(BuiltTrees { manifest, config, layers }))
}

fn rfc3339(unix_seconds: i64) -> Result<String, BuildError> {
    let seconds = u64::try_from(unix_seconds).ok().filter(|seconds| *seconds <= UNIX_SECONDS_MAX);
    let seconds = seconds.ok_or(BuildError::Time(unix_seconds))?;
    Ok(humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string())
}
