//! A model as a hub serves it: what [`crate::fault_server`] answers to the requests of the hub's API.
//!
//! Owns: honest answers, which tests replace where they need other ones. It depends on nothing of this crate but the
//! server, so that other crates' tests can include it.

use std::collections::BTreeMap;

use modelpack::{digest::Sha256Digest, hub::GitBlob};

use crate::fault_server::{Reply, Seen};

/// The commit of all models of these tests.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// `ORG/NAME` of all models of these tests.
pub(crate) const MODEL: &str = "org/small";

/// A model with one branch, `main`.
#[derive(Clone, Debug, Default)]
pub(crate) struct HubModel {
    files: BTreeMap<String, File>,
    /// Who alone may read the files.
    token: Option<String>,
    /// Whether storage serves no ranges.
    without_ranges: bool,
}

/// Entries on one page of a listing.
const PAGE: usize = 2;

/// Under which name of the same machine files in LFS are stored: another than the hub's own.
const STORAGE: &str = "localhost";

#[derive(Clone, Debug)]
struct File {
    bytes: Vec<u8>,
    is_in_lfs: bool,
    /// What is sent in place of the bytes.
    sent: Option<Vec<u8>>,
}

impl HubModel {
    /// A model without files.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// For whoever has this token alone.
    pub(crate) fn gated(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// Stored where no ranges are served.
    pub(crate) fn without_ranges(self) -> Self {
        Self { without_ranges: true, ..self }
    }

    /// With a file in Git.
    pub(crate) fn with(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let file = File { bytes: bytes.into(), is_in_lfs: false, sent: None };
        self.files.insert(path.to_owned(), file);
        self
    }

    /// With a file in LFS.
    pub(crate) fn with_lfs(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), File { bytes: bytes.into(), is_in_lfs: true, sent: None });
        self
    }

    /// With other bytes for a file than those that are listed.
    pub(crate) fn sending(mut self, path: &str, sent: impl Into<Vec<u8>>) -> Self {
        self.files.get_mut(path).unwrap().sent = Some(sent.into());
        self
    }

    /// The bytes that a file should have.
    pub(crate) fn bytes(&self, path: &str) -> &[u8] {
        &self.files[path].bytes
    }

    /// What an honest hub answers.
    pub(crate) fn reply(&self, seen: &Seen) -> Reply {
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["storage", hex] => self.stored(seen, hex),
            ["api", "models", owner, name, ..] if format!("{owner}/{name}") != MODEL => {
                let status = if self.token.is_some() { 401 } else { 404 };
                Reply::status(status).header("X-Error-Code", "RepoNotFound")
            }
            ["api", "models", _, _, "revision", revision] if Self::knows(revision) => Reply::body(
                200,
                format!(
                    r#"{{"id":"{MODEL}","modelId":"{MODEL}","sha":"{COMMIT}","private":false,"tags":[],"downloads":0,"siblings":[]}}"#
                ),
            ),
            ["api", "models", _, _, "tree", revision] if Self::knows(revision) => self.listed(seen, query),
            ["api", "models", ..] => Reply::status(404).header("X-Error-Code", "RevisionNotFound"),
            [_, _, "resolve", revision, path @ ..] if Self::knows(revision) => {
                self.resolved(seen, &path.join("/"))
            }
            _ => Reply::status(404),
        }
    }

    fn knows(revision: &str) -> bool {
        ["main", COMMIT].contains(&revision)
    }

    fn listed(&self, seen: &Seen, query: &str) -> Reply {
        let start = query.split('&').find_map(|part| part.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
        let entries: Vec<_> = self.files.iter().map(|(path, file)| file.entry(path)).collect();
        let end = entries.len().min(start + PAGE);
        let reply = Reply::body(200, format!("[{}]", entries[start..end].join(",")));
        if end == entries.len() {
            return reply;
        }
        let host = seen.header("host").unwrap();
        let next = format!("<http://{host}/api/models/{MODEL}/tree/{COMMIT}?recursive=true&cursor={end}>");
        reply.header("Link", &format!(r#"{next}; rel="next""#))
    }

    fn resolved(&self, seen: &Seen, path: &str) -> Reply {
        let path = path.replace("%20", " ");
        let Some(file) = self.files.get(&path) else {
            return Reply::status(404).header("X-Error-Code", "EntryNotFound");
        };
        let expected = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if expected.is_some() && seen.header("authorization") != expected.as_deref() {
            let status = if seen.header("authorization").is_some() { 403 } else { 401 };
            return Reply::status(status).header("X-Error-Code", "GatedRepo");
        }
        let with_etag = |reply: Reply, name: &str| {
            reply.header(name, &format!(r#""{}""#, file.etag())).header("X-Repo-Commit", COMMIT)
        };
        if !file.is_in_lfs {
            return with_etag(Reply::blob(seen, file.sent.as_ref().unwrap_or(&file.bytes)), "ETag");
        }
        let host = seen.header("host").unwrap();
        let (_, port) = host.split_once(':').unwrap();
        with_etag(Reply::status(302), "X-Linked-Etag")
            .header("X-Linked-Size", &file.bytes.len().to_string())
            .header("Location", &format!("http://{STORAGE}:{port}/storage/{}", file.etag()))
    }

    fn stored(&self, seen: &Seen, hex: &str) -> Reply {
        let found = self.files.values().find(|file| file.is_in_lfs && file.etag() == hex);
        match found.map(|file| file.sent.as_ref().unwrap_or(&file.bytes)) {
            // A token would be leaked to whoever owns the storage.
            Some(_) if seen.header("authorization").is_some() => Reply::status(400),
            Some(bytes) if self.without_ranges => Reply::body(200, bytes.clone()),
            Some(bytes) => Reply::blob(seen, bytes),
            None => Reply::status(404),
        }
    }
}

impl File {
    fn etag(&self) -> String {
        if self.is_in_lfs {
            Sha256Digest::of(&self.bytes).hex()
        } else {
            GitBlob::of(&self.bytes).to_string()
        }
    }

    fn entry(&self, path: &str) -> String {
        let size = self.bytes.len();
        if !self.is_in_lfs {
            return format!(r#"{{"type":"file","oid":"{}","size":{size},"path":"{path}"}}"#, self.etag());
        }
        let pointer = GitBlob::of(self.etag().as_bytes());
        let lfs = format!(r#"{{"oid":"{}","size":{size},"pointerSize":130}}"#, self.etag());
        format!(r#"{{"type":"file","oid":"{pointer}","size":{size},"path":"{path}","lfs":{lfs}}}"#)
    }
}
