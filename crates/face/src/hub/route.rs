//! The paths of the hub.
//!
//! Owns: what a path names. Does not own: whether there is such a model.

use percent_encoding::percent_decode_str;

/// What a path of the hub names. Models are `ORG/NAME`, or `NAME` as the oldest are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// What the hub says of a model at a revision.
    Info { id: String, revision: String },
    /// The files below a directory of it; none for all.
    Tree { id: String, revision: String, dir: Option<String> },
    /// A file of it.
    File { id: String, revision: String, path: String },
}

/// The revision of somebody who names none.
const DEFAULT_REVISION: &str = "main";

impl Route {
    /// What `path` names, as it is in the request: escaped.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
        let decode = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let joined = |segments: &[&str]| decode(&segments.join("/"));
        if let Some(segments) = segments.strip_prefix(&["api", "models"]) {
            let is_word = |segment: &&str| matches!(*segment, "revision" | "tree");
            // The second segment at the latest: a model may be called `revision`, but then it has an organisation.
            let end = segments.iter().skip(1).position(is_word).map_or(segments.len(), |at| at + 1);
            let id = id(&segments[..end])?;
            return match &segments[end..] {
                [] => Some(Self::Info { id, revision: DEFAULT_REVISION.to_owned() }),
                ["revision", revision] => Some(Self::Info { id, revision: decode(revision)? }),
                ["tree", revision] => Some(Self::Tree { id, revision: decode(revision)?, dir: None }),
                ["tree", revision, dir @ ..] => {
                    let dir = Some(joined(dir)?).filter(|dir| !dir.is_empty());
                    Some(Self::Tree { id, revision: decode(revision)?, dir })
                }
                _ => None,
            };
        }
        let end = segments.iter().skip(1).position(|segment| *segment == "resolve")? + 1;
        let id = id(&segments[..end])?;
        match &segments[end + 1..] {
            [revision, path @ ..] if !path.is_empty() => {
                Some(Self::File { id, revision: decode(revision)?, path: joined(path)? })
            }
            _ => None,
        }
    }
}

fn id(segments: &[&str]) -> Option<String> {
    let is_name = |segment: &&str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !segment.is_empty() && segment.bytes().all(is_plain)
    };
    (matches!(segments.len(), 1 | 2) && segments.iter().all(is_name)).then(|| segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_hub_says() {
        let text = ToString::to_string;
        let info = |id: &str, revision: &str| Some(Route::Info { id: text(id), revision: text(revision) });
        let file = |id: &str, revision: &str, path: &str| {
            Some(Route::File { id: text(id), revision: text(revision), path: text(path) })
        };
        let tree = |dir: Option<&str>| {
            Some(Route::Tree { id: text("o/n"), revision: text("main"), dir: dir.map(text) })
        };
        assert_eq!(Route::parse("/api/models/o/n"), info("o/n", "main"));
        assert_eq!(Route::parse("/api/models/gpt2"), info("gpt2", "main"));
        assert_eq!(Route::parse("/api/models/o/n/revision/refs%2Fpr%2F1"), info("o/n", "refs/pr/1"));
        assert_eq!(Route::parse("/api/models/o/n/tree/main"), tree(None));
        assert_eq!(Route::parse("/api/models/o/n/tree/main/a/b%20c"), tree(Some("a/b c")));
        assert_eq!(Route::parse("/o/n/resolve/main/a/b.json"), file("o/n", "main", "a/b.json"));
        assert_eq!(Route::parse("/n/resolve/v1/resolve/x"), file("n", "v1", "resolve/x"));
        for nothing in [
            "/",
            "/api/models",
            "/api/models/",
            "/api/models/o/n/commits/main",
            "/o/n/resolve/main",
            "/a/b/c/resolve/main/x",
            "/api/datasets/o/n",
            "/o/n/raw/main/x",
            "/resolve/main/x",
        ] {
            assert_eq!(Route::parse(nothing), None, "{nothing}");
        }
    }
}
