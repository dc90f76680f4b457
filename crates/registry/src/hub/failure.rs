//! Why a model of a hub cannot be had.
//!
//! Owns: what a hub's refusals mean, their class and hints. Does not own: sending requests.

use std::{fmt, io, path::PathBuf, time::Duration};

use modelpack::{build::BuildError, hub::HubError, reference::HubReference};

use crate::error::{Class, Exchange, Refusal, RegistryError};

/// Missing files that a message names; of the others it says how many.
const NAMED_MAX: usize = 5;

/// A model of a hub cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubFailure {
    /// `HF_ENDPOINT` or the token makes no request.
    #[error("`{0}` is not the address of a hub, or the token cannot be sent to it")]
    Endpoint(String),
    /// The hub refuses, and says why.
    #[error("{exchange}: {problem}")]
    Refused {
        /// What was asked of whom.
        exchange: Exchange,
        /// Why not.
        problem: Problem,
        /// The page of the model, for people.
        page: String,
        /// Whether the hub was told who asks.
        has_token: bool,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// What the hub says of the model's files cannot be used.
    #[error("cannot use what the hub says of `{model}`")]
    Listing {
        /// The model.
        model: String,
        /// Why not.
        #[source]
        source: HubError,
    },
    /// The files cannot be one artifact.
    #[error("`{model}` makes no artifact")]
    Artifact {
        /// The model.
        model: String,
        /// Why not.
        #[source]
        source: BuildError,
    },
    /// Other bytes than the hub has listed.
    #[error("the bytes of `{path}` of `{model}` are not those that the hub lists as `{expected}`")]
    WrongBytes {
        /// The file.
        path: String,
        /// The model.
        model: String,
        /// Its SHA-256, or its name in Git.
        expected: String,
    },
    /// Nothing may be asked of the hub, and the cache has no such revision.
    #[error("the cache has no revision `{revision}` of `{model}`, and `HF_HUB_OFFLINE` is set")]
    NoRevision {
        /// The model.
        model: String,
        /// The revision.
        revision: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Nothing may be asked of the hub, and the cache lacks some files.
    #[error("the cache lacks {} of `{model}`, and `HF_HUB_OFFLINE` is set", Files(files))]
    Missing {
        /// The model.
        model: String,
        /// The files.
        files: Vec<String>,
        /// Where they were looked for.
        dir: PathBuf,
    },
    /// A file of the cache could not be read or written.
    #[error("cannot use `{}` in the shared cache", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a hub refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// Its owner wants to know who reads it.
    Gated,
    /// There is no such model, or it is nobody's business.
    NoModel,
    /// The model has no such revision.
    NoRevision,
    /// The revision has no such file.
    NoFile,
    /// The token is not one of the hub's, or has expired.
    BadToken,
    /// The token may not read it.
    Forbidden,
    /// Too many requests from here.
    Limited,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gated => "the model is gated",
            Self::NoModel => "there is no such model, or it is private",
            Self::NoRevision => "the model has no such revision",
            Self::NoFile => "the revision has no such file",
            Self::BadToken => "the hub does not accept the token",
            Self::Forbidden => "the token may not read it",
            Self::Limited => "the hub limits requests",
        })
    }
}

/// Some files, briefly.
struct Files<'a>(&'a [String]);

impl fmt::Display for Files<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().take(NAMED_MAX).map(|path| format!("`{path}`")).collect();
        f.write_str(&named.join(", "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl HubFailure {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::WrongBytes { .. } => Class::Integrity,
            Self::Refused { problem, .. } => match problem {
                Problem::Gated | Problem::BadToken | Problem::Forbidden => Class::Unauthorized,
                Problem::NoModel | Problem::NoRevision | Problem::NoFile => Class::NotFound,
                Problem::Limited => Class::Retry,
            },
            Self::NoRevision { .. } | Self::Missing { .. } => Class::NotFound,
            Self::Endpoint(_) | Self::Listing { .. } | Self::Artifact { .. } | Self::Cache { .. } => {
                Class::Fatal
            }
        }
    }

    /// What the user can try, if there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Endpoint(_) => {
                "`HF_ENDPOINT` is a URL, as in `https://huggingface.co`; a token is one word of ASCII".into()
            }
            Self::Refused { problem, page, has_token, retry_after, .. } => {
                refused_hint(*problem, page, *has_token, *retry_after)
            }
            Self::Artifact { source, .. } => return source.hint(),
            Self::WrongBytes { .. } => {
                "the hub, a mirror or proxy on the way, or the shared cache has other bytes; of the cache remove the file"
                    .into()
            }
            Self::NoRevision { dir, .. } | Self::Missing { dir, .. } => {
                format!(
                    "unset `HF_HUB_OFFLINE`, or fill the cache at `{}` where there is a network",
                    dir.display()
                )
            }
            Self::Listing { .. } => "check `HF_ENDPOINT`: what answers there may be no hub".into(),
            Self::Cache { .. } => "`HF_HUB_CACHE` names another cache".into(),
        })
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn refused_hint(problem: Problem, page: &str, has_token: bool, retry_after: Option<Duration>) -> String {
    match (problem, has_token) {
        (Problem::Gated, false) => {
            format!("accept its terms at `{page}`, then set `HF_TOKEN` to a token of that account")
        }
        (Problem::Gated, true) => {
            format!(
                "accept its terms at `{page}` with the account of the token; a fine-grained token also needs the right to read gated models"
            )
        }
        (Problem::NoModel, false) => "check the name; for a private model set `HF_TOKEN`".into(),
        (Problem::NoModel, true) => "check the name, and whether the token may read it".into(),
        (Problem::NoRevision, _) => format!("its branches and tags are listed at `{page}/tree/main`"),
        (Problem::NoFile, _) => "somebody may have removed it meanwhile; try again".into(),
        (Problem::BadToken, _) => {
            "set `HF_TOKEN` to a valid token, or unset it and remove the file that `hf auth login` wrote"
                .into()
        }
        (Problem::Forbidden, _) => "use a token with the right to read this model".into(),
        (Problem::Limited, has_token) => {
            let when = retry_after.map_or("later".to_owned(), |time| format!("in {} s", time.as_secs()));
            let more = if has_token { "" } else { "; with `HF_TOKEN` it allows more" };
            format!("try again {when}{more}; what has landed is kept")
        }
    }
}

/// What an answer of the hub itself means, if it is a refusal.
pub(super) fn explained(
    error: RegistryError,
    at: &HubReference,
    (page, has_token): (String, bool),
) -> RegistryError {
    let RegistryError::Refused { exchange, refusal } = error else { return error };
    let Some(problem) = problem(&refusal, has_token) else {
        return RegistryError::Refused { exchange, refusal };
    };
    tracing::debug!(
        model = at.model(),
        status = refusal.status,
        detail = refusal.detail,
        "refused by the hub"
    );
    HubFailure::Refused { exchange, problem, page, has_token, retry_after: refusal.retry_after }.into()
}

fn problem(refusal: &Refusal, has_token: bool) -> Option<Problem> {
    if refusal.is_redirected {
        return None;
    }
    Some(match (refusal.code.as_str(), refusal.status) {
        ("GatedRepo", _) => Problem::Gated,
        ("RevisionNotFound", _) => Problem::NoRevision,
        ("EntryNotFound", _) => Problem::NoFile,
        ("RepoNotFound", _) => Problem::NoModel,
        (_, 429) => Problem::Limited,
        (_, 401) if has_token => Problem::BadToken,
        // Whether a private model is there, the hub tells nobody.
        (_, 401 | 404) => Problem::NoModel,
        (_, 403) => Problem::Forbidden,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let check = |code: &str, status, has_token, expected| {
            let detail = String::new();
            let refusal = Refusal {
                status,
                code: code.into(),
                detail,
                challenges: Vec::new(),
                retry_after: None,
                is_redirected: false,
            };
            assert_eq!(problem(&refusal, has_token), expected, "{code} {status}");
        };
        check("GatedRepo", 401, false, Some(Problem::Gated));
        check("GatedRepo", 403, true, Some(Problem::Gated));
        check("RepoNotFound", 401, false, Some(Problem::NoModel));
        check("RepoNotFound", 404, true, Some(Problem::NoModel));
        check("RevisionNotFound", 404, false, Some(Problem::NoRevision));
        check("EntryNotFound", 404, false, Some(Problem::NoFile));
        check("", 401, true, Some(Problem::BadToken));
        check("", 401, false, Some(Problem::NoModel));
        check("", 403, true, Some(Problem::Forbidden));
        check("", 429, true, Some(Problem::Limited));
        check("", 500, true, None);
    }

    #[test]
    fn many_missing_files_are_told_briefly() {
        let files: Vec<_> = (0..7).map(|number| format!("f{number}")).collect();
        assert_eq!(Files(&files[..1]).to_string(), "`f0`");
        assert_eq!(Files(&files).to_string(), "`f0`, `f1`, `f2`, `f3`, `f4` and 2 more");
    }
}
