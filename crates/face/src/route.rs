//! The paths of a registry.
//!
//! Owns: what a path names. Does not own: methods, headers, queries.

use modelpack::digest::Sha256Digest;

/// Longest name of a repository: what registries take, with their host, is 255 (distribution specification).
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// How a manifest is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By a tag, which may come to name another.
    Tag(String),
    /// By its digest.
    Digest(Sha256Digest),
}

/// What a path of a registry names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The registry itself: whether it is one, and whether it wants to know who asks.
    Base,
    /// A manifest of a repository.
    Manifest(String, Named),
    /// A blob of a repository.
    Blob(String, Sha256Digest),
    /// The tags of a repository.
    Tags(String),
    /// The manifests of a repository that point at this one.
    Referrers(String, Sha256Digest),
}

/// Why a path names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// It is no path of the specification, or one that only writing uses.
    Nothing,
    /// The repository cannot be the name of one.
    Name,
    /// The digest is none, or of an algorithm that is not read here.
    Digest,
    /// The tag cannot be one.
    Tag,
}

impl Route {
    /// What `path` names, as it is in the request: escaped.
    pub fn parse(path: &str) -> Result<Self, Unroutable> {
        let path =
            percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| Unroutable::Nothing)?;
        let rest = path.strip_prefix("/v2").ok_or(Unroutable::Nothing)?;
        if rest.is_empty() || rest == "/" {
            return Ok(Self::Base);
        }
        let rest = rest.strip_prefix('/').ok_or(Unroutable::Nothing)?;
        // From the end: a repository may be called `manifests` too.
        let (rest, last) = rest.rsplit_once('/').ok_or(Unroutable::Nothing)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(Unroutable::Nothing)?;
        let digest = || last.parse().map_err(|_| Unroutable::Digest);
        let repository = repository(name);
        match (kind, last) {
            ("manifests", _) if last.contains(':') => {
                Ok(Self::Manifest(repository?, Named::Digest(digest()?)))
            }
            ("manifests", _) if is_tag(last) => Ok(Self::Manifest(repository?, Named::Tag(last.to_owned()))),
            ("manifests", _) => Err(Unroutable::Tag),
            // Uploads begin there, which only writing uses.
            ("blobs", "uploads" | "") => Err(Unroutable::Nothing),
            ("blobs", _) => Ok(Self::Blob(repository?, digest()?)),
            ("tags", "list") => Ok(Self::Tags(repository?)),
            ("referrers", _) => Ok(Self::Referrers(repository?, digest()?)),
            _ => Err(Unroutable::Nothing),
        }
    }
}

/// The name, if it can be one of a repository.
fn repository(name: &str) -> Result<String, Unroutable> {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_component = |component: &str| {
        let (first, last) = (component.bytes().next(), component.bytes().last());
        let inner = |byte: u8| is_alphanumeric(byte) || b"._-".contains(&byte);
        first.is_some_and(is_alphanumeric)
            && last.is_some_and(is_alphanumeric)
            && component.bytes().all(inner)
            && !component.contains("..")
    };
    let is_name = name.len() <= REPOSITORY_BYTES_MAX && name.split('/').all(is_component);
    if is_name { Ok(name.to_owned()) } else { Err(Unroutable::Name) }
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_specification_says() {
        let digest = Sha256Digest::of(b"x");
        let check = |path: &str, expected: Result<Route, Unroutable>| {
            assert_eq!(Route::parse(path), expected, "{path}");
        };
        check("/v2", Ok(Route::Base));
        check("/v2/", Ok(Route::Base));
        check("/v2/a/b/manifests/v1.0", Ok(Route::Manifest("a/b".into(), Named::Tag("v1.0".into()))));
        let named = Route::Manifest("manifests/blobs".into(), Named::Digest(digest));
        check(&format!("/v2/manifests/blobs/manifests/{digest}"), Ok(named.clone()));
        let escaped = digest.to_string().replace(':', "%3A");
        check(&format!("/v2/manifests/blobs/manifests/{escaped}"), Ok(named));
        check(&format!("/v2/a/blobs/{digest}"), Ok(Route::Blob("a".into(), digest)));
        check("/v2/a/tags/list", Ok(Route::Tags("a".into())));
        check(&format!("/v2/a/referrers/{digest}"), Ok(Route::Referrers("a".into(), digest)));
        for nothing in ["/", "/v1/", "/v2x/", "/v2/a", "/v2/_catalog", "/v2/a/blobs/uploads/", "/v2/a/tags/x"]
        {
            check(nothing, Err(Unroutable::Nothing));
        }
        for name in ["A", "a//b", "../a", "a/..", "a%00", "-a", "a_", "a..b"] {
            check(&format!("/v2/{name}/tags/list"), Err(Unroutable::Name));
        }
        for tag in ["-x", ".x", "", "a b", "%2e%2e"] {
            check(&format!("/v2/a/manifests/{tag}"), Err(Unroutable::Tag));
        }
        for digest in ["sha256:00", "sha512:00", "md5:x", "x"] {
            check(&format!("/v2/a/blobs/{digest}"), Err(Unroutable::Digest));
        }
    }
}
