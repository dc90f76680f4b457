//! How a failure is told: message, causes, hint and exit code.
//!
//! Owns: the mapping from the crates' errors to exit codes and hints (DESIGN §8), and the errors that only the
//! command line has. Does not own: printing.

use identity::KeyError;
use modelpack::{
    build::BuildError, config::ConfigError, manifest::ManifestError, modelfile::ModelfileError,
    reference::ReferenceError, selection::SelectionError,
};
use peer::PeerError;
use registry::{HubFailure, RegistryError};
use scheduler::InquiryError;
use serde::Serialize;
use sidecar::SidecarError;
use store::{ErrorClass, StoreError};

/// What the process ends with if it did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed and the user can act.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Bytes are not what their digest says.
    Integrity = 3,
}

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Refusal {
    /// It failed and the user can act.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), hint: None }
    }

    /// The command makes no sense as given.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into(), hint: None }
    }

    /// Bytes are not what they should be.
    pub(crate) fn integrity(message: impl Into<String>) -> Self {
        Self { exit: Exit::Integrity, message: message.into(), hint: None }
    }

    /// Adds what the user may do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A failure ready to be told. Serialised, it is the last line of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) error: String,
    pub(crate) causes: Vec<String>,
    pub(crate) hint: Option<String>,
    pub(crate) exit_code: u8,
}

impl Failure {
    /// Reads a chain of errors, outermost first.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let judged = || error.chain().filter_map(judge);
        let exit = judged().map(|(exit, _)| exit).find(|exit| *exit != Exit::Failed).unwrap_or(Exit::Failed);
        Self {
            error: error.to_string(),
            causes: error.chain().skip(1).map(ToString::to_string).collect(),
            hint: judged().find_map(|(_, hint)| hint),
            exit_code: exit as u8,
        }
    }
}

/// What one link of a chain says about exit code and hint, if it is an error that we know.
fn judge(error: &(dyn std::error::Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Some((refusal.exit, refusal.hint.clone()));
    }
    if let Some(error) = error.downcast_ref::<PeerError>() {
        let exit = match error.class() {
            peer::ErrorClass::Usage => Exit::Usage,
            peer::ErrorClass::Integrity => Exit::Integrity,
            _ => Exit::Failed,
        };
        return Some((exit, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<SidecarError>() {
        let is_usage = matches!(error, SidecarError::Config { .. } | SidecarError::Occupied { .. });
        return Some((if is_usage { Exit::Usage } else { Exit::Failed }, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        let exit = if error.class() == ErrorClass::Integrity { Exit::Integrity } else { Exit::Failed };
        return Some((exit, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        let exit = match error {
            RegistryError::Address(_) | RegistryError::Hub(HubFailure::Endpoint(_)) => Exit::Usage,
            error if error.class() == registry::Class::Integrity => Exit::Integrity,
            _ => Exit::Failed,
        };
        return Some((exit, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<KeyError>() {
        return Some((Exit::Usage, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<ReferenceError>() {
        return Some((Exit::Usage, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<ModelfileError>() {
        return Some((Exit::Usage, error.hint()));
    }
    if let Some(error @ BuildError::About { .. }) = error.downcast_ref::<BuildError>() {
        return Some((Exit::Usage, error.hint()));
    }
    if let Some(error) = error.downcast_ref::<InquiryError>() {
        return Some((Exit::Failed, error.hint().map(str::to_owned)));
    }
    if let Some(error) = error.downcast_ref::<SelectionError>() {
        let is_usage = matches!(error, SelectionError::Pattern { .. });
        return Some((if is_usage { Exit::Usage } else { Exit::Failed }, error.hint()));
    }
    let hint = error.downcast_ref::<ManifestError>().map(ManifestError::hint);
    let hint = hint.or_else(|| error.downcast_ref::<ConfigError>().map(ConfigError::hint));
    let hint = hint.or_else(|| error.downcast_ref::<BuildError>().map(BuildError::hint));
    hint.map(|hint| (Exit::Failed, hint))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_first_error_that_is_known_gives_exit_code_and_hint() {
        let damaged = StoreError::Digest { path: "/a".into(), expected: "b".into(), found: "c".into() };
        let error = Err::<(), _>(damaged).context("cannot read `/a`").context("cannot push").unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(failure.exit_code, 3);
        assert_eq!(failure.error, "cannot push");
        assert_eq!(failure.causes, ["cannot read `/a`", "`/a` should be b, but is c"]);
        assert_eq!(failure.hint, None);
    }

    #[test]
    fn what_nobody_knows_is_a_plain_failure() {
        let failure = Failure::of(&anyhow::anyhow!("odd"));
        assert_eq!((failure.exit_code, failure.hint), (1, None));
        let usage = Failure::of(&Refusal::usage("no").hint("yes").into());
        assert_eq!((usage.exit_code, usage.hint.as_deref()), (2, Some("yes")));
    }
}
