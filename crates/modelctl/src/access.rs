//! Runtime, registry access and fleet of one command.
//!
//! Owns: turning flags into `registry::Access`, and which fleet the local peer says it is in. Does not own: reading
//! credentials, which the registry crate does.

use std::{fs, path::Path};

use anyhow::Context as _;
use identity::{FleetKey, Identity, Security};
use modelpack::reference::{Reference, RegistryReference};
use peer::{LocalPeer, Upstream};
use registry::{Access, Certificates, CredentialFiles, Credentials, HubAccess, Mirror, MirrorAt, Repository};
use tokio::runtime::{Builder, Runtime};

use crate::{
    cli::{FleetArgs, MirrorArgs, PeerChoice, RegistryArgs, UpstreamUrl},
    report::Refusal,
};

/// Threads of the runtime. A command waits for the network more than it works; hashing has threads of its own.
const WORKERS: usize = 2;

/// What asynchronous work of one command runs on.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().context("cannot start a runtime")
}

/// How to reach a registry, but not who asks.
pub(crate) fn anonymous(args: &RegistryArgs, registry: &str) -> anyhow::Result<Access> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
    // Without TLS nobody shows certificates.
    if args.plain_http {
        return Ok(Access { plain_http: true, ..Access::default() });
    }
    let Certificates { mut ca_pem, mut client_pem } = registry::certificates_of(registry)?;
    if let Some(path) = &args.ca_cert {
        ca_pem.get_or_insert_default().extend(read(path)?);
    }
    if let (Some(certificate), Some(key)) = (&args.client_cert, &args.client_key) {
        client_pem = Some([read(certificate)?, b"\n".to_vec(), read(key)?].concat());
    }
    Ok(Access { plain_http: false, ca_pem, client_pem, ..Access::default() })
}

/// How to reach the registry of a reference, and its mirrors, to read from it.
pub(crate) fn reading(args: &RegistryArgs, reference: &RegistryReference) -> anyhow::Result<Access> {
    let access = access(args, reference)?;
    let mirror = |at: MirrorAt| {
        // What was said of the registry is not said of its mirrors.
        let own =
            RegistryArgs { plain_http: at.is_insecure, client_cert: None, client_key: None, ..args.clone() };
        // Nobody is told a password over a line that everybody reads.
        let credentials = if at.is_insecure {
            Credentials::Anonymous
        } else {
            credential_files(args).find(&at.registry, &at.repository)?
        };
        let access = Access { credentials, ..anonymous(&own, &at.registry)? };
        Ok(Mirror { registry: at.registry, repository: at.repository, serves: at.serves, access })
    };
    let mirrors = registry::mirrors_of(reference)?.into_iter().map(mirror);
    Ok(Access { mirrors: mirrors.collect::<anyhow::Result<_>>()?, ..access })
}

/// How to reach the registry of a reference.
pub(crate) fn access(args: &RegistryArgs, reference: &RegistryReference) -> anyhow::Result<Access> {
    let credentials = credentials(args, &reference.registry, &reference.repository)?;
    Ok(Access { credentials, ..anonymous(args, &reference.registry)? })
}

fn credentials(args: &RegistryArgs, registry: &str, repository: &str) -> anyhow::Result<Credentials> {
    if let Some(path) = args.authfile.as_ref().filter(|path| !path.exists()) {
        // Where nobody named a file, that there is none means that nobody has logged in.
        let message = format!("the file of `--authfile` does not exist: `{}`", path.display());
        return Err(Refusal::usage(message).into());
    }
    Ok(credential_files(args).find(registry, repository)?)
}

/// The registries that a peer stands in for, and how it reads them.
pub(crate) fn upstreams(args: &MirrorArgs) -> anyhow::Result<Vec<Upstream>> {
    let upstream = |url: &UpstreamUrl| {
        let UpstreamUrl { registry, is_plain } = url.clone();
        let reached = RegistryArgs {
            plain_http: is_plain,
            ca_cert: args.ca_cert.clone(),
            client_cert: None,
            client_key: None,
            authfile: args.authfile.clone(),
        };
        let mut access = anonymous(&reached, &registry)?;
        if args.authfile.is_some() {
            access.credentials = credentials(&reached, &registry, "")?;
        }
        Ok(Upstream { registry, access })
    };
    args.oci_upstream.iter().map(upstream).collect()
}

/// How a peer reaches the hub that it stands in for, but not who asks: each client has a token of its own.
pub(crate) fn hub_upstream(args: &MirrorArgs) -> anyhow::Result<Option<Access>> {
    let Some(url) = &args.hub_upstream else { return Ok(None) };
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
    let ca_pem = args.ca_cert.as_deref().map(read).transpose()?;
    let hub = HubAccess { endpoint: url.0.clone(), ..HubAccess::default() };
    Ok(Some(Access { hub, ca_pem, ..Access::default() }))
}

/// How to reach the origin of a reference: what lies in no registry needs nothing.
pub(crate) fn for_reference(args: &RegistryArgs, reference: &Reference) -> anyhow::Result<Access> {
    match reference {
        Reference::Registry(at) => reading(args, at),
        Reference::Hub(_) => hub(args),
        Reference::Layout(_) | Reference::Directory(_) | Reference::Fleet(_) => Ok(Access::default()),
    }
}

/// How to reach the hub that the user's environment names, as all tools of it do.
pub(crate) fn hub(args: &RegistryArgs) -> anyhow::Result<Access> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
    let ca_pem = args.ca_cert.as_deref().map(read).transpose()?;
    Ok(Access { hub: HubAccess::from_env()?, ca_pem, ..Access::default() })
}

/// Where credentials are kept.
pub(crate) fn credential_files(args: &RegistryArgs) -> CredentialFiles {
    CredentialFiles { named: args.authfile.clone() }
}

/// Opens the repository of a reference, to read from it or a mirror of it.
pub(crate) fn repository(args: &RegistryArgs, reference: &RegistryReference) -> anyhow::Result<Repository> {
    Ok(Repository::open(reference, reading(args, reference)?)?)
}

/// Opens the repository of a reference, to write to it: no mirror is asked for anything.
pub(crate) fn destination(args: &RegistryArgs, reference: &RegistryReference) -> anyhow::Result<Repository> {
    Ok(Repository::open(reference, access(args, reference)?)?)
}

/// Who somebody is that asks about a fleet.
pub(crate) fn security_of(args: &FleetArgs) -> anyhow::Result<Security> {
    Ok(match &args.fleet_key {
        Some(file) => Security::Fleet(Identity::new(&FleetKey::load(file)?)?),
        None => Security::Plain,
    })
}

/// The schedulers that were named, or those of the local peer.
pub(crate) async fn fleet_schedulers(args: &FleetArgs) -> anyhow::Result<Vec<String>> {
    if !args.scheduler.is_empty() {
        return Ok(args.scheduler.clone());
    }
    let local = match &args.peer {
        Some(PeerChoice::Socket(socket)) => Some(LocalPeer::connect(socket).await.map_err(|error| {
            let hint = "start it with `modelctl peer`, or name the fleet's scheduler with `--scheduler URL`";
            Refusal::failed(format!("{:#}", anyhow::Error::new(error))).hint(hint)
        })?),
        Some(PeerChoice::None) => None,
        None => LocalPeer::connect(&peer::default_socket()).await.ok(),
    };
    let Some(local) = local else {
        let message = "no scheduler is named, and no local peer says where one is";
        return Err(Refusal::usage(message).hint("name the fleet's scheduler with `--scheduler URL`").into());
    };
    let schedulers = schedulers_of(&local, args.fleet_key.as_deref())?;
    if schedulers.is_empty() {
        let message = "the local peer takes part in no fleet";
        return Err(Refusal::failed(message).hint("start it with `--scheduler URL`").into());
    }
    Ok(schedulers)
}

/// The schedulers of the local peer's fleet; none if it takes part in none. If that fleet has a key, whoever asks needs
/// it, too.
pub(crate) fn schedulers_of(local: &LocalPeer, fleet_key: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let schedulers = local.schedulers().to_vec();
    if !schedulers.is_empty() && local.has_fleet_key() && fleet_key.is_none() {
        let message = "the fleet of the local peer has a key, which the peer does not tell";
        return Err(Refusal::usage(message).hint("give it with `--fleet-key FILE`").into());
    }
    Ok(schedulers)
}
