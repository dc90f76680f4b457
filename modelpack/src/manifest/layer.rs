//! What a layer is, by its media type.
//!
//! Source: ModelPack specification 0.0.7, docs/spec.md; the media types of `KitOps`, of Docker Model Runner
//! (pkg/distribution/types) and of ORAS (content/file). Owns: the kind and the form of a layer, and the names of
//! layers that have none by convention. Does not own: paths that annotations state.

use std::{collections::BTreeMap, fmt};

use crate::{
    document::DocumentDescriptor,
    manifest::{Family, Kind, ManifestError, stated_path},
    text::shown,
};

const MODEL_PREFIXES: [&str; 2] = ["application/vnd.cncf.model.", "application/vnd.cnai.model."];
const KIT_PREFIX: &str = "application/vnd.kitops.modelkit.";
const DOCKER_PREFIX: &str = "application/vnd.docker.ai.";
/// ORAS packs a directory with gzip, and says so by this annotation alone.
const UNPACK_ANNOTATION: &str = "io.deis.oras.content.unpack";

/// How the files of an archive are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packing {
    /// Tar.
    Tar,
    /// Tar, compressed with gzip.
    TarGzip,
    /// Tar, compressed with Zstandard.
    TarZstd,
}

impl Packing {
    fn from_media_type(part: &str) -> Option<Self> {
        [Self::Tar, Self::TarGzip, Self::TarZstd].into_iter().find(|packing| packing.name() == part)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::TarGzip => "tar+gzip",
            Self::TarZstd => "tar+zstd",
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a layer's blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One file as it is.
    File,
    /// An archive of files.
    Archive(Packing),
}

/// What a media type says of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Typed {
    /// `None` if that depends on the names of files.
    pub(super) kind: Option<Kind>,
    pub(super) form: Form,
}

/// What a layer is. Of an artifact of models only known types are taken for files: a packing that we do not know must
/// not be published as if it were the file.
pub(super) fn judge(
    family: Family,
    layer: usize,
    descriptor: &DocumentDescriptor,
) -> Result<Typed, ManifestError> {
    let media_type = descriptor.media_type.as_str();
    let known = match split(media_type) {
        Some((prefix, rest)) => known(prefix, rest),
        None if family == Family::Files => Some(Typed { kind: None, form: generic(descriptor) }),
        None => None,
    };
    known.ok_or_else(|| ManifestError::Unsupported { layer, media_type: shown(media_type) })
}

/// The owner of a media type and the rest of it.
fn split(media_type: &str) -> Option<(&'static str, &str)> {
    let prefixes = MODEL_PREFIXES.into_iter().chain([KIT_PREFIX, DOCKER_PREFIX]);
    prefixes.into_iter().find_map(|prefix| Some((prefix, media_type.strip_prefix(prefix)?)))
}

fn known(prefix: &str, rest: &str) -> Option<Typed> {
    if prefix == DOCKER_PREFIX {
        return docker(rest);
    }
    let (part, encoding) = rest.split_once(".v1.")?;
    let kind = if prefix == KIT_PREFIX { kit_kind(part)? } else { Kind::from_media_type(part)? };
    let form = match encoding {
        "raw" => Form::File,
        // Docker Model Runner's own additions.
        "gguf" | "safetensors" if kind == Kind::Weight && prefix != KIT_PREFIX => Form::File,
        packed => Form::Archive(Packing::from_media_type(packed)?),
    };
    Some(Typed { kind: Some(kind), form })
}

fn kit_kind(part: &str) -> Option<Kind> {
    match part {
        "model" | "modelpart" => Some(Kind::Weight),
        "dataset" => Some(Kind::Dataset),
        "code" => Some(Kind::Code),
        "docs" => Some(Kind::Doc),
        _ => None,
    }
}

fn docker(rest: &str) -> Option<Typed> {
    let (kind, form) = match rest {
        "gguf.v3" | "safetensors" | "mmproj" | "dduf" => (Some(Kind::Weight), Form::File),
        "license" => (Some(Kind::Doc), Form::File),
        "chat.template.jinja" => (Some(Kind::Config), Form::File),
        "model.file" => (None, Form::File),
        "vllm.config.tar" => (Some(Kind::Config), Form::Archive(Packing::Tar)),
        "dir.tar" => (None, Form::Archive(Packing::Tar)),
        _ => return None,
    };
    Some(Typed { kind, form })
}

fn generic(descriptor: &DocumentDescriptor) -> Form {
    match descriptor.annotation(UNPACK_ANNOTATION) {
        Some("true") => Form::Archive(Packing::TarGzip),
        _ => Form::File,
    }
}

/// The names that Docker Model Runner gives to layers without any: `model.gguf`, or `model-00001-of-00002.gguf` where
/// there are several.
pub(super) struct Names {
    counts: BTreeMap<String, usize>,
    given: BTreeMap<String, usize>,
}

impl Names {
    pub(super) fn of(layers: &[DocumentDescriptor]) -> Self {
        let mut counts = BTreeMap::new();
        for layer in layers.iter().filter(|layer| stated_path(layer).is_none()) {
            *counts.entry(layer.media_type.clone()).or_default() += 1;
        }
        Self { counts, given: BTreeMap::new() }
    }

    /// The name of the next layer of this type; `None` where the type has no names by convention.
    pub(super) fn next(&mut self, layer: &DocumentDescriptor) -> Option<String> {
        let (stem, extension) = match layer.media_type.strip_prefix(DOCKER_PREFIX)? {
            "gguf.v3" => ("model", ".gguf"),
            "safetensors" => ("model", ".safetensors"),
            "mmproj" => ("model", ".mmproj"),
            "dduf" => ("model", ".dduf"),
            "chat.template.jinja" => ("template", ".jinja"),
            "license" => ("LICENSE", ""),
            _ => return None,
        };
        let count = self.counts.get(&layer.media_type).copied().unwrap_or(1);
        let given = self.given.entry(layer.media_type.clone()).or_default();
        *given += 1;
        Some(match count {
            1 => format!("{stem}{extension}"),
            count => format!("{stem}-{given:05}-of-{count:05}{extension}"),
        })
    }
}
