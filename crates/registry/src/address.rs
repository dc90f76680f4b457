//! From a registry and a repository name to URLs.
//!
//! Owns: the base URL, Docker Hub's two names, and which URLs may follow from which. Does not own: parsing references.

use reqwest::Url;

use crate::error::RegistryError;

/// The base URL of a repository's endpoints, ending in a slash.
pub(crate) fn base_url(registry: &str, repository: &str, plain_http: bool) -> Result<Url, RegistryError> {
    let bad = || RegistryError::Address(format!("{registry}/{repository}"));
    let scheme = if plain_http { "http" } else { "https" };
    let is_hub = is_docker_hub(registry);
    let host = if is_hub { "registry-1.docker.io" } else { registry };
    let library = if is_hub && !repository.contains('/') { "library/" } else { "" };
    let url = Url::parse(&format!("{scheme}://{host}/v2/{library}{repository}/")).map_err(|_| bad())?;
    // A name with a dot segment, a query or a user would have made another URL than it says.
    let is_whole = url.path() == format!("/v2/{library}{repository}/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_whole { Ok(url) } else { Err(bad()) }
}

/// The base URL of a hub as its users write it, with a slash at its end.
pub(crate) fn hub_url(endpoint: &str) -> Option<Url> {
    let mut url = Url::parse(endpoint).ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    url.path_segments_mut().ok()?.pop_if_empty().push("");
    is_plain.then_some(url)
}

/// Whether `registry` is one of the names of Docker Hub.
pub(crate) fn is_docker_hub(registry: &str) -> bool {
    matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether `url` is on this machine, where no proxy belongs in between.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// `HOST[:PORT]` as errors name it.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Where a `Location` or `Link` that came from `from` leads; `Err` says why not there.
pub(crate) fn join(from: &Url, location: &str) -> Result<Url, &'static str> {
    let to = from.join(location).map_err(|_| "the answer points to something that is not a URL")?;
    match (from.scheme(), to.scheme()) {
        ("http", "http") | (_, "https") => Ok(to),
        ("https", "http") => Err("the answer leads from HTTPS to plain HTTP"),
        _ => Err("the answer leads to something other than HTTP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_base_urls() {
        let base = |registry, repository| base_url(registry, repository, false).map(String::from);
        assert_eq!(base("r.io:5000", "a/b").unwrap(), "https://r.io:5000/v2/a/b/");
        assert_eq!(base("docker.io", "busybox").unwrap(), "https://registry-1.docker.io/v2/library/busybox/");
        assert_eq!(base_url("[::1]:80", "a", true).unwrap().as_str(), "http://[::1]/v2/a/");
        for (registry, repository) in [("r.io", "../x"), ("r.io", "a?b"), ("u:p@r.io", "a"), ("r.io", "a#b")]
        {
            base(registry, repository).unwrap_err();
        }
        for (registry, is) in
            [("localhost:1", true), ("127.0.0.9", true), ("[::1]:80", true), ("r.io", false)]
        {
            assert_eq!(is_loopback(&base_url(registry, "a", true).unwrap()), is, "{registry}");
        }
    }

    #[test]
    fn makes_base_urls_of_hubs() {
        let base = |endpoint| hub_url(endpoint).map(String::from);
        assert_eq!(base("https://huggingface.co").unwrap(), "https://huggingface.co/");
        assert_eq!(base("http://localhost:8080/hf/").unwrap(), "http://localhost:8080/hf/");
        for endpoint in
            ["", "huggingface.co", "file:///x", "https://a:b@h.co", "https://h.co?x", "https://h.co#x"]
        {
            assert_eq!(base(endpoint), None, "{endpoint}");
        }
    }

    #[test]
    fn joins_only_what_is_safe() {
        let from = Url::parse("https://r.io/v2/a/blobs/uploads/").unwrap();
        assert_eq!(join(&from, "/x?y=z").unwrap().as_str(), "https://r.io/x?y=z");
        assert_eq!(join(&from, "https://cdn.io/x").unwrap().as_str(), "https://cdn.io/x");
        join(&from, "http://r.io/x").unwrap_err();
        join(&from, "file:///etc/passwd").unwrap_err();
        join(&Url::parse("http://r.io/").unwrap(), "http://cdn.io/").unwrap();
    }
}
