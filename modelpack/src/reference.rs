//! References: how a user names an artifact (DESIGN §8).
//!
//! Source: OCI distribution specification 1.1, "Pulling manifests", for repositories and tags; `huggingface_hub` for
//! models on a hub. Owns: the grammar.
//! Does not own: what is found there. There is no default host and no default tag, so that a reference means the
//! same everywhere.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use crate::{
    digest::{DigestError, Sha256Digest},
    text::shown,
};

/// Most bytes of a repository name: with its host it has to fit the 255 that common registries accept.
const REPOSITORY_BYTES_MAX: usize = 255;

/// Most bytes of a tag.
const TAG_BYTES_MAX: usize = 128;

/// Most bytes of each part of a model's name on a hub.
const HUB_NAME_BYTES_MAX: usize = 96;

/// Most bytes of a revision: a component of a path, in whole.
const REVISION_BYTES_MAX: usize = 255;

/// Where an artifact is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// In a registry: `HOST/REPO[:TAG][@DIGEST]`.
    Registry(RegistryReference),
    /// In an OCI image layout on disk: `oci:DIR[:TAG|@DIGEST]`.
    Layout(LayoutReference),
    /// A directory of plain files: a path that starts with `/`, `./` or `../`.
    Directory(PathBuf),
    /// With other peers of the fleet, and nowhere else: `fleet:DIGEST`.
    Fleet(Sha256Digest),
    /// A model on a Hugging Face hub: `hf://ORG/NAME[@REV]`.
    Hub(HubReference),
}

/// An artifact in a registry. At least one of tag and digest is stated; with both, the digest decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryReference {
    /// `HOST[:PORT]`.
    pub registry: String,
    /// The repository's name.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The manifest's digest.
    pub digest: Option<Sha256Digest>,
}

/// An artifact in an OCI image layout. At most one of tag and digest is stated; without either, the layout has to
/// hold one artifact only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutReference {
    /// The directory of the layout.
    pub dir: PathBuf,
    /// The tag.
    pub tag: Option<String>,
    /// The manifest's digest.
    pub digest: Option<Sha256Digest>,
}

/// A model on a hub. It is no artifact there: its files are described as one when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    /// The user or organisation.
    pub owner: String,
    /// The model's name.
    pub name: String,
    /// A branch, a tag or a commit; without one it is [`MAIN`].
    pub revision: Option<String>,
}

/// The branch of a hub that is meant where none is named.
pub const MAIN: &str = "main";

/// A reference that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// What follows `hf://` is not a model.
    #[error("`{0}` is not a model on a hub")]
    Hub(String),
    /// The revision is empty or not one that git allows.
    #[error("`{0}` is not a revision")]
    Revision(String),
    /// It is written as a URL.
    #[error("reference `{0}` is a URL")]
    Url(String),
    /// There is no host, or one that could be part of a repository's name.
    #[error("reference `{0}` does not start with the host of a registry")]
    Host(String),
    /// There is something before an `@` in the host. It may be secret and is not repeated.
    #[error("a reference must not contain a user name or password")]
    Credentials,
    /// The repository is missing or not allowed.
    #[error("`{0}` is not the name of a repository")]
    Repository(String),
    /// The tag is empty or not allowed.
    #[error("`{0}` is not a tag")]
    Tag(String),
    /// The digest cannot be read.
    #[error("reference `{reference}` has an unusable digest")]
    Digest {
        /// The whole reference.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// Neither tag nor digest.
    #[error("reference `{0}` has neither tag nor digest")]
    Unversioned(String),
    /// A layout's reference has both tag and digest.
    #[error("reference `{0}` has both tag and digest")]
    TagAndDigest(String),
    /// A layout's reference has no directory.
    #[error("reference `{0}` names no directory")]
    NoDirectory(String),
}

impl ReferenceError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Hub(reference) if reference.starts_with("hf://datasets/") => {
                "only models are read from a hub, as `hf://ORG/NAME`".into()
            }
            Self::Hub(_) => "write `hf://ORG/NAME`, or `hf://ORG/NAME@REVISION`".into(),
            Self::Revision(_) => {
                "a revision is a branch, a tag or a commit, as in `hf://ORG/NAME@main`".into()
            }
            Self::Url(url) => match url.split_once("://") {
                Some((_, rest)) if !rest.is_empty() => format!("write `{rest}`, without the scheme"),
                _ => "write `HOST/REPO:TAG`, without a scheme".into(),
            },
            Self::Host(reference) => host_hint(reference),
            Self::Credentials => "store credentials with `docker login HOST`".into(),
            Self::Repository(name) if name.chars().any(char::is_uppercase) => {
                format!("names of repositories are lower-case: `{}`", name.to_lowercase())
            }
            Self::Repository(_) => {
                "use lower-case letters, digits and single separators, as in `models/llama-3.1-8b`".into()
            }
            Self::Tag(_) => format!(
                "a tag has at most {TAG_BYTES_MAX} letters, digits, `_`, `.` and `-`, and starts with none of the last two"
            ),
            Self::Digest { source: DigestError::Algorithm(..), .. } => {
                "use the artifact's `sha256:` digest".into()
            }
            Self::Digest { .. } => "a digest is `sha256:` and 64 lower-case hexadecimal characters".into(),
            Self::Unversioned(reference) => format!("add a tag, as in `{reference}:v1`"),
            Self::TagAndDigest(_) => "leave the tag away: the digest says everything".into(),
            Self::NoDirectory(_) => "name the directory of the layout, as in `oci:./models:v1`".into(),
        };
        Some(hint)
    }
}

fn host_hint(reference: &str) -> String {
    let example = match reference.split_once('/') {
        Some((owner, name)) if !owner.is_empty() && !name.is_empty() => {
            format!("`docker.io/{reference}` for Docker Hub")
        }
        _ => "`docker.io/OWNER/NAME:TAG` for Docker Hub".into(),
    };
    format!("there is no default registry: write {example}, or `./PATH` for a directory")
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix("hf://") {
            return HubReference::parse(text, rest).map(Self::Hub);
        }
        if let Some(digest) = text.strip_prefix("fleet:") {
            return parse_digest(text, digest).map(Self::Fleet);
        }
        if ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || matches!(text, "." | "..") {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return LayoutReference::parse(text, rest).map(Self::Layout);
        }
        text.parse().map(Self::Registry)
    }
}

impl LayoutReference {
    /// Reads `rest`, which follows the `oci:` of `text`.
    fn parse(text: &str, rest: &str) -> Result<Self, ReferenceError> {
        // An `@` may be part of the path; what follows the one before a digest has a `:` and no `/`.
        let (rest, digest) = match rest.rsplit_once('@') {
            Some((rest, digest)) if digest.contains(':') && !digest.contains('/') => {
                (rest, Some(parse_digest(text, digest)?))
            }
            _ => (rest, None),
        };
        let (dir, tag) = match rest.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(parse_tag(tag)?)),
            _ => (rest, None),
        };
        if dir.is_empty() {
            return Err(ReferenceError::NoDirectory(shown(text)));
        }
        if tag.is_some() && digest.is_some() {
            return Err(ReferenceError::TagAndDigest(shown(text)));
        }
        Ok(Self { dir: PathBuf::from(dir), tag, digest })
    }
}

impl HubReference {
    /// Reads `rest`, which follows the `hf://` of `text`.
    fn parse(text: &str, rest: &str) -> Result<Self, ReferenceError> {
        let (model, revision) = match rest.split_once('@') {
            Some((model, revision)) => (model, Some(parse_revision(revision)?)),
            None => (rest, None),
        };
        let (owner, name) = model.split_once('/').ok_or_else(|| ReferenceError::Hub(shown(text)))?;
        if !is_hub_name(owner) || !is_hub_name(name) || name.strip_suffix(".git").is_some() {
            return Err(ReferenceError::Hub(shown(text)));
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned(), revision })
    }

    /// `ORG/NAME`.
    pub fn model(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphabetic())) {
            return Err(ReferenceError::Url(shown(text)));
        }
        let (registry, rest) = text.split_once('/').ok_or_else(|| ReferenceError::Host(shown(text)))?;
        if registry.contains('@') {
            return Err(ReferenceError::Credentials);
        }
        if !is_registry(registry) {
            return Err(ReferenceError::Host(shown(text)));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(text, digest)?)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(ReferenceError::Repository(shown(repository)));
        }
        if tag.is_none() && digest.is_none() {
            return Err(ReferenceError::Unversioned(shown(text)));
        }
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), tag, digest })
    }
}

/// Whether `text` can only be a host: with a `.` or a `:`, or `localhost`.
fn is_registry(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_port && address.parse::<Ipv6Addr>().is_ok();
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !label.is_empty() && is_plain && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_marked = host.contains('.') || port.is_some() || host == "localhost";
    is_marked && host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The grammar of the distribution specification: components of lower-case letters and digits, with `.`, `_`, `__`
/// or any number of `-` between.
fn is_repository(text: &str) -> bool {
    let is_component = |component: &str| {
        let is_word = |b: char| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut separators = component.split(is_word).filter(|part| !part.is_empty());
        component.starts_with(is_word)
            && component.ends_with(is_word)
            && separators.all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|b| b == b'-'))
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_component)
}

fn parse_tag(text: &str) -> Result<String, ReferenceError> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_tag = text.bytes().next().is_some_and(is_word)
        && text.len() <= TAG_BYTES_MAX
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'));
    if is_tag { Ok(text.to_owned()) } else { Err(ReferenceError::Tag(shown(text))) }
}

/// The grammar of `huggingface_hub` (`validate_repo_id`).
fn is_hub_name(text: &str) -> bool {
    let is_edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=HUB_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && text.starts_with(is_edge)
        && text.ends_with(is_edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// What git allows as a name (git-check-ref-format), which is also what a cache can have as a path.
fn parse_revision(text: &str) -> Result<String, ReferenceError> {
    let is_component =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    let is_allowed = |c: char| !c.is_whitespace() && !c.is_control() && !"~^:?*[\\".contains(c);
    let is_revision = text.len() <= REVISION_BYTES_MAX
        && text.chars().all(is_allowed)
        && text.split('/').all(is_component)
        && !text.starts_with('-')
        && !text.contains("..")
        && !text.contains("@{")
        && !text.ends_with('.')
        && text != "@";
    if is_revision { Ok(text.to_owned()) } else { Err(ReferenceError::Revision(shown(text))) }
}

fn parse_digest(reference: &str, text: &str) -> Result<Sha256Digest, ReferenceError> {
    text.parse().map_err(|source| ReferenceError::Digest { reference: shown(reference), source })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout(reference) => reference.fmt(f),
            Self::Directory(path) => path.display().fmt(f),
            Self::Fleet(digest) => write!(f, "fleet:{digest}"),
            Self::Hub(reference) => reference.fmt(f),
        }
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}/{}", self.owner, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        version(f, self.tag.as_deref(), self.digest.as_ref())
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.dir.display())?;
        version(f, self.tag.as_deref(), self.digest.as_ref())
    }
}

fn version(f: &mut fmt::Formatter<'_>, tag: Option<&str>, digest: Option<&Sha256Digest>) -> fmt::Result {
    if let Some(tag) = tag {
        write!(f, ":{tag}")?;
    }
    match digest {
        Some(digest) => write!(f, "@{digest}"),
        None => Ok(()),
    }
}
