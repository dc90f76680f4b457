//! How many files this process may have open.
//!
//! Owns: asking for as many as the system allows. Does not own: who opens them.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. An artifact has a descriptor for each of its files, up to
/// three while it is published; the usual soft limit, 1,024, is there for programs that call `select(2)`.
pub(crate) fn allow_many() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
