//! What is typed so that a peer stands in for registries.
//!
//! Owns: these flags and their values. Does not own: what a peer does with them.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args};
use face::Rule;

/// Clients that know nothing of the fleet pull through it all the same.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Mirror",
    group(ArgGroup::new("upstreams").args(["oci_upstream", "hub_upstream"]).multiple(true))
)]
pub(crate) struct MirrorArgs {
    /// Where it is a registry that can only be read, over plain HTTP, for containerd, podman, skopeo and oras [default: nowhere]
    #[arg(
        long,
        value_name = "ADDR",
        requires = "oci_upstream",
        env = "MODELCTL_OCI_LISTEN",
        hide_env_values = true
    )]
    pub(crate) oci_listen: Option<SocketAddr>,

    /// The registries that it stands in for, each `https://HOST` or `http://HOST`; the first is meant where a client names none
    #[arg(
        long,
        value_name = "URL[,URL]",
        value_delimiter = ',',
        env = "MODELCTL_OCI_UPSTREAM",
        hide_env_values = true
    )]
    pub(crate) oci_upstream: Vec<UpstreamUrl>,

    /// Where it is a Hugging Face hub that can only be read, over plain HTTP, for `HF_ENDPOINT` [default: nowhere]
    #[arg(
        long,
        value_name = "ADDR",
        requires = "upstreams",
        env = "MODELCTL_HUB_LISTEN",
        hide_env_values = true
    )]
    pub(crate) hub_listen: Option<SocketAddr>,

    /// Which artifact a model of that hub is, as HOST/REPO:TAG with {id} and {rev} in it; HOST is one of --oci-upstream [default: none is]
    #[arg(
        long,
        value_name = "RULE",
        requires_all = ["hub_listen", "oci_upstream"],
        env = "MODELCTL_HUB_MODELS",
        hide_env_values = true
    )]
    pub(crate) hub_models: Option<Rule>,

    /// The hub that has the models that are no artifacts, as in `https://huggingface.co`. It is asked with each client's own token
    #[arg(
        long,
        value_name = "URL",
        requires = "hub_listen",
        env = "MODELCTL_HUB_UPSTREAM",
        hide_env_values = true
    )]
    pub(crate) hub_upstream: Option<HubUrl>,

    /// Trust the certificates in this PEM file as well, at those registries and that hub
    #[arg(long, value_name = "FILE", requires = "upstreams")]
    pub(crate) ca_cert: Option<PathBuf>,

    /// Read there with the credentials in FILE. Whether a client may have it is asked with the client's own
    #[arg(long, value_name = "FILE", requires = "oci_upstream")]
    pub(crate) authfile: Option<PathBuf>,
}

/// A registry, and whether it speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamUrl {
    /// `HOST[:PORT]`.
    pub(crate) registry: String,
    pub(crate) is_plain: bool,
}

impl FromStr for UpstreamUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, is_plain) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(host), _) => (host, false),
            (_, Some(host)) => (host, true),
            _ => return Err("it begins with `https://` or `http://`"),
        };
        let host = host.trim_end_matches('/');
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
        if host.is_empty() || !host.chars().all(is_host) {
            return Err("after the scheme there is HOST or HOST:PORT, and nothing more");
        }
        Ok(Self { registry: host.to_owned(), is_plain })
    }
}

/// Where a hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubUrl(pub(crate) String);

impl FromStr for HubUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let rest = rest.ok_or("it begins with `https://` or `http://`")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_/".contains(c);
        if rest.trim_matches('/').is_empty() || !rest.chars().all(is_plain) {
            return Err("after the scheme there is HOST or HOST:PORT, perhaps a path, and nothing more");
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_a_url_without_secrets() {
        for (text, url) in
            [("https://huggingface.co/", "https://huggingface.co"), ("http://h:1/hf", "http://h:1/hf")]
        {
            assert_eq!(text.parse(), Ok(HubUrl(url.to_owned())));
        }
        for wrong in ["huggingface.co", "https://", "https:///", "https://u:p@h", "https://h?x=1"] {
            wrong.parse::<HubUrl>().unwrap_err();
        }
    }

    #[test]
    fn registries_are_a_scheme_and_a_host() {
        let check = |text: &str, registry: &str, is_plain| {
            assert_eq!(text.parse(), Ok(UpstreamUrl { registry: registry.to_owned(), is_plain }));
        };
        check("https://registry.example.org/", "registry.example.org", false);
        check("http://127.0.0.1:5000", "127.0.0.1:5000", true);
        for wrong in ["registry.example.org", "https://", "https://a/b", "https://u:p@a", "ftp://a"] {
            wrong.parse::<UpstreamUrl>().unwrap_err();
        }
    }
}
