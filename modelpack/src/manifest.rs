//! ModelPack manifests: the one list of files and digests that everything else is checked against.
//!
//! Source: ModelPack specification 0.0.7, docs/spec.md and docs/annotations.md, in its present dialect (`cncf`) and
//! its former one (`cnai`). The `ModelKit`s of `KitOps`, the artifacts of Docker Model Runner and artifacts of named files, as
//! ORAS writes them, are read as far as their layers are files or tar archives. Owns: which manifests are accepted, and
//! what they say. Does not own: writing them, unpacking archives, or fetching and checking the bytes of a manifest
//! against the digest that the user asked for.

mod error;
mod family;
mod layer;
mod metadata;
mod select;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

pub use self::{
    error::ManifestError,
    family::Family,
    layer::Packing,
    metadata::{Modified, published_mode},
};
pub(crate) use self::{
    family::{is_index, is_model_type},
    metadata::UNIX_SECONDS_MAX,
};
use crate::{
    build::kind_of,
    config::CONFIG_BYTES_MAX,
    digest::{Blake3Root, Sha256Digest},
    document::{Document, DocumentDescriptor},
    layout::{BlobIndex, PieceLayout},
    manifest::{
        layer::{Form, Names},
        metadata::Metadata,
    },
    path,
    text::shown,
};

/// Most bytes of a manifest: what registries have to accept, and common ones do not exceed (OCI distribution
/// specification 1.1, "Pushing Manifests").
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Most layers of a manifest: as many as fit [`MANIFEST_BYTES_MAX`] with their annotations.
pub const LAYERS_MAX: usize = crate::document::LAYERS_MAX;

/// The annotation on a layer's descriptor that states the layer's BLAKE3 root, as 64 lower-case characters.
pub const BLAKE3_ANNOTATION: &str = "org.modelcast.blake3";

/// The media type of an OCI image manifest, which every ModelPack manifest is.
pub const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The artifact type of a ModelPack manifest.
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
/// The media type of a ModelPack config.
pub(crate) const CONFIG_MEDIA_TYPE: &str = "application/vnd.cncf.model.config.v1+json";
pub(crate) const TITLE_ANNOTATION: &str = "org.opencontainers.image.title";
pub(crate) const PATH_ANNOTATION: &str = "org.cncf.model.filepath";
pub(crate) const METADATA_ANNOTATION: &str = "org.cncf.model.file.metadata+json";

const FORMER_PATH_ANNOTATION: &str = "org.cnai.model.filepath";
const INDEX_MEDIA_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const A_MODEL: &str = "that of a model";

/// A reference to a blob that is neither layer nor file: the config, or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Sha256Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// One layer's blob. Layers that share a digest share the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The SHA-256 that the manifest names it by.
    pub digest: Sha256Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its BLAKE3 root, if the manifest states one.
    pub root: Option<Blake3Root>,
}

/// What a file is for. The order is that of the layers in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What says how to use the weights: configs, tokenizers, templates.
    Config,
    /// The weights.
    Weight,
    /// Code that comes with the model.
    Code,
    /// Documents, licences, pictures.
    Doc,
    /// Data that comes with the model.
    Dataset,
}

impl Kind {
    /// The part of a layer's media type that says the kind.
    fn from_media_type(part: &str) -> Option<Self> {
        [Self::Config, Self::Weight, Self::Code, Self::Doc, Self::Dataset]
            .into_iter()
            .find(|kind| kind.media_type_part() == part)
    }

    pub(crate) fn media_type_part(self) -> &'static str {
        match self {
            Self::Config => "weight.config",
            Self::Weight => "weight",
            Self::Code => "code",
            Self::Doc => "doc",
            Self::Dataset => "dataset",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Config => "config",
            other => other.media_type_part(),
        })
    }
}

/// One file of the artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Its path, relative and plain, with `/` between components: [`path::check`] has passed it.
    pub path: String,
    /// The blob that holds its bytes.
    pub blob: BlobIndex,
    /// What it is for.
    pub kind: Kind,
    /// Whether somebody may execute it.
    pub is_executable: bool,
    /// The permissions with which it is published.
    pub mode: u32,
    /// When it was last modified, if the manifest says so.
    pub modified: Option<Modified>,
}

/// One layer that is an archive of files. What is in it is known only when it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Which layer, numbered from 0.
    pub layer: usize,
    /// The blob that is the archive.
    pub blob: BlobIndex,
    /// What its files are for, if the layer says so; else each by its name.
    pub kind: Option<Kind>,
    /// How it is packed.
    pub packing: Packing,
    /// How the manifest calls it, for messages. It decides nothing.
    pub name: Option<String>,
}

impl Archive {
    /// What a file in it is for.
    pub fn kind_of(&self, path: &str) -> Kind {
        self.kind.unwrap_or_else(|| kind_of(path))
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} ({}", self.layer, self.packing)?;
        match &self.name {
            Some(name) => write!(f, ", `{name}`)"),
            None => f.write_str(")"),
        }
    }
}

/// A manifest that passed every check. Cloning it is cheap.
#[derive(Clone)]
pub struct Manifest(Arc<Parts>);

struct Parts {
    raw: Vec<u8>,
    digest: Sha256Digest,
    family: Family,
    config: Descriptor,
    blobs: Vec<Blob>,
    files: Vec<ModelFile>,
    archives: Vec<Archive>,
    layout: PieceLayout,
}

/// What the layers of a manifest hold.
#[derive(Default)]
struct Listing {
    blobs: BlobList,
    files: Vec<ModelFile>,
    archives: Vec<Archive>,
}

impl Manifest {
    /// Reads and checks a manifest, whoever wrote it. That `raw` has the digest that was asked for is for the
    /// caller to check.
    pub fn parse(raw: &[u8]) -> Result<Self, ManifestError> {
        let document = read(raw)?;
        let family = family::of(&document)?;
        let config = document.config.as_ref().ok_or_else(|| other_kind("it has no config"))?;
        let config = descriptor("the config", config)?;
        if config.size > CONFIG_BYTES_MAX {
            return Err(ManifestError::ConfigSize(config.size));
        }
        let layers = document.layers.map_or_else(Vec::new, |layers| layers.kept);
        if layers.is_empty() {
            return Err(ManifestError::NoFiles);
        }
        let Listing { blobs, files, archives } = Listing::of(family, &layers)?;
        path::check_together(files.iter().map(|file| file.path.as_str()))?;
        let layout = PieceLayout::new(blobs.list.iter().map(|blob| blob.size).collect())?;
        let digest = Sha256Digest::of(raw);
        let blobs = blobs.list;
        Ok(Self(Arc::new(Parts {
            raw: raw.to_vec(),
            digest,
            family,
            config,
            blobs,
            files,
            archives,
            layout,
        })))
    }

    /// The digest of [`Self::raw`].
    pub fn digest(&self) -> Sha256Digest {
        self.0.digest
    }

    /// The manifest's bytes, exactly as they were read.
    pub fn raw(&self) -> &[u8] {
        &self.0.raw
    }

    /// The config blob.
    pub fn config(&self) -> &Descriptor {
        &self.0.config
    }

    /// The layers' distinct blobs, in order of first mention.
    pub fn blobs(&self) -> &[Blob] {
        &self.0.blobs
    }

    /// The files that are layers as they are, in manifest order.
    pub fn files(&self) -> &[ModelFile] {
        &self.0.files
    }

    /// The layers that are archives, in manifest order.
    pub fn archives(&self) -> &[Archive] {
        &self.0.archives
    }

    /// Whose conventions it follows.
    pub fn family(&self) -> Family {
        self.0.family
    }

    /// The geometry of [`Self::blobs`].
    pub fn layout(&self) -> &PieceLayout {
        &self.0.layout
    }

    /// The manifest's own descriptor, such as for the `subject` of a referrer.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor { media_type: MEDIA_TYPE.into(), digest: self.0.digest, size: self.0.raw.len() as u64 }
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("digest", &self.0.digest)
            .field("files", &self.0.files)
            .field("archives", &self.0.archives)
            .field("blobs", &self.0.blobs)
            .finish_non_exhaustive()
    }
}

/// Reads the JSON of any OCI image manifest within the limits.
pub(crate) fn read(raw: &[u8]) -> Result<Document, ManifestError> {
    if raw.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLong(raw.len()));
    }
    let document: Document = serde_json::from_slice(raw).map_err(ManifestError::Json)?;
    match &document.layers {
        Some(layers) if layers.count > LAYERS_MAX => Err(ManifestError::TooManyLayers(layers.count)),
        _ => Ok(document),
    }
}

/// Checks what all OCI image manifests have in common.
pub(crate) fn check_form(document: &Document, expected: &'static str) -> Result<(), ManifestError> {
    let refuse = |found: String| Err(ManifestError::OtherKind { expected, found });
    let media_type = document.media_type.as_deref().unwrap_or(MEDIA_TYPE);
    // A document that could be read as both is refused, so that no two readers see different artifacts.
    if document.manifests.is_some() || INDEX_MEDIA_TYPES.contains(&media_type) {
        return refuse("it is an image index".into());
    }
    if media_type != MEDIA_TYPE {
        return refuse(format!("its media type is `{}`", shown(media_type)));
    }
    match document.schema_version {
        Some(2) => Ok(()),
        Some(other) => refuse(format!("its schema version is {other}, not 2")),
        None => refuse("it states no schema version".into()),
    }
}

fn other_kind(found: &str) -> ManifestError {
    ManifestError::OtherKind { expected: A_MODEL, found: found.to_owned() }
}

pub(crate) fn descriptor(of: &str, from: &DocumentDescriptor) -> Result<Descriptor, ManifestError> {
    let digest = from.digest.parse().map_err(|source| ManifestError::Digest { of: of.to_owned(), source })?;
    Ok(Descriptor { media_type: from.media_type.clone(), digest, size: from.size })
}

impl Listing {
    fn of(family: Family, layers: &[DocumentDescriptor]) -> Result<Self, ManifestError> {
        let mut listing = Self::default();
        let mut names = Names::of(layers);
        for (index, layer) in layers.iter().enumerate() {
            let layer::Typed { kind, form } = layer::judge(family, index, layer)?;
            match form {
                Form::File => listing.add_file((index, layer), kind, &mut names)?,
                Form::Archive(packing) => listing.add_archive((index, layer), kind, packing)?,
            }
        }
        Ok(listing)
    }

    fn add_file(
        &mut self,
        (index, layer): (usize, &DocumentDescriptor),
        kind: Option<Kind>,
        names: &mut Names,
    ) -> Result<(), ManifestError> {
        let path = match stated_path(layer) {
            Some(path) => path.to_owned(),
            None => names.next(layer).ok_or_else(|| ManifestError::Annotation {
                layer: index,
                problem: format!("has no path: it lacks the annotation `{PATH_ANNOTATION}`"),
            })?,
        };
        path::check(&path)?;
        let Metadata { mode, modified } = metadata::of(index, layer)?;
        let blob = self.blobs.add(blob_of(index, layer)?)?;
        let kind = kind.unwrap_or_else(|| kind_of(&path));
        let (is_executable, mode) = (mode & 0o111 != 0, published_mode(mode));
        self.files.push(ModelFile { path, blob, kind, is_executable, mode, modified });
        Ok(())
    }

    fn add_archive(
        &mut self,
        (index, layer): (usize, &DocumentDescriptor),
        kind: Option<Kind>,
        packing: Packing,
    ) -> Result<(), ManifestError> {
        let blob = blob_of(index, layer)?;
        let digest = blob.digest;
        let blob = self.blobs.add(blob)?;
        match self.archives.iter().find(|known| known.blob == blob) {
            // The same files twice are the same files.
            Some(known) if known.packing == packing => {}
            Some(_) => {
                return Err(ManifestError::Contradiction { digest, problem: "it is packed in two ways" });
            }
            None => {
                let name = stated_path(layer).map(shown);
                self.archives.push(Archive { layer: index, blob, kind, packing, name });
            }
        }
        Ok(())
    }
}

/// The path that a layer's annotations state.
fn stated_path(layer: &DocumentDescriptor) -> Option<&str> {
    [PATH_ANNOTATION, FORMER_PATH_ANNOTATION, TITLE_ANNOTATION].iter().find_map(|key| layer.annotation(key))
}

fn blob_of(layer: usize, from: &DocumentDescriptor) -> Result<Blob, ManifestError> {
    let Descriptor { digest, size, .. } = descriptor(&format!("layer {layer}"), from)?;
    let root = match from.annotation(BLAKE3_ANNOTATION) {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| ManifestError::Annotation {
            layer,
            problem: format!("has the malformed annotation `{BLAKE3_ANNOTATION}`: `{}`", shown(text)),
        })?),
    };
    // A blob without bytes has no piece that would be checked, so what is stated of it is checked here.
    let is_empty_blob = digest == Sha256Digest::of(b"");
    let is_empty_root = root.is_none_or(|root| root == Blake3Root::new(*blake3::hash(b"").as_bytes()));
    if size == 0 && !(is_empty_blob && is_empty_root) {
        return Err(ManifestError::Contradiction { digest, problem: "this is not the hash of no bytes" });
    }
    Ok(Blob { digest, size, root })
}

/// Distinct blobs in order of first mention.
#[derive(Default)]
struct BlobList {
    list: Vec<Blob>,
    by_digest: BTreeMap<Sha256Digest, BlobIndex>,
}

impl BlobList {
    fn add(&mut self, blob: Blob) -> Result<BlobIndex, ManifestError> {
        let next = BlobIndex(u32::try_from(self.list.len()).expect("at most LAYERS_MAX"));
        let index = match self.by_digest.entry(blob.digest) {
            Entry::Vacant(entry) => {
                self.list.push(blob);
                return Ok(*entry.insert(next));
            }
            Entry::Occupied(entry) => *entry.get(),
        };
        let known = &self.list[index.0 as usize];
        let refuse = |problem| Err(ManifestError::Contradiction { digest: blob.digest, problem });
        if known.size != blob.size {
            return refuse("it has two sizes");
        }
        if known.root != blob.root {
            return refuse("it has two BLAKE3 roots, or one only once");
        }
        Ok(index)
    }
}
