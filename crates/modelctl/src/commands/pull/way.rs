//! Who brings the bytes of a pull: the local peer, this process as a member of a fleet, or this process alone.
//!
//! Owns: that choice, and where a process that takes part in a fleet is reached. Does not own: the pulls.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use identity::Security;
use modelpack::reference::Reference;
use peer::{FleetOptions, LocalPeer, PeerError, PeerSecurity};
use planner::Place;
use registry::HubAccess;

use crate::{
    access,
    cli::{EmbeddedArgs, Landing, PeerChoice, PullArgs, Transport, TransportArgs, TrustArgs},
    commands::{
        serve::{host_name, security},
        transports,
    },
    printer::Printer,
    report::Refusal,
};

/// What is asked for, as far as it bears on the choice.
pub(in crate::commands) struct Asked<'a> {
    pub(in crate::commands) reference: &'a Reference,
    pub(in crate::commands) peer: Option<&'a PeerChoice>,
    pub(in crate::commands) direct: bool,
    pub(in crate::commands) landing: Landing,
    pub(in crate::commands) embedded: &'a EmbeddedArgs,
    pub(in crate::commands) trust: &'a TrustArgs,
    pub(in crate::commands) transport: &'a TransportArgs,
}

impl<'a> From<&'a PullArgs> for Asked<'a> {
    fn from(args: &'a PullArgs) -> Self {
        let PullArgs { reference, direct, landing, embedded, trust, transport, .. } = args;
        let (direct, landing) = (*direct, *landing);
        Self { reference, peer: args.peer.as_ref(), direct, landing, embedded, trust, transport }
    }
}

/// How a pull is done.
pub(in crate::commands) enum Way {
    /// Through the local peer.
    Local(LocalPeer),
    /// As a member of a fleet.
    Fleet(FleetOptions),
    /// From the origin alone; and why, where something else was asked for.
    Alone { reason: Option<String> },
}

/// Chooses as the user says, and where nothing is said, the local peer before the fleet before the origin.
pub(in crate::commands) async fn choose(args: &Asked<'_>, printer: &Printer) -> anyhow::Result<Way> {
    if args.direct {
        return direct(args, printer).await;
    }
    let reason = match local_peer(args).await? {
        Found::Answers(local) => return through(local, args, printer),
        Found::Unusable(error) => {
            let reason = format!("{:#}", anyhow::Error::new(error));
            printer.warn(format_args!("{reason}: pulling without it"));
            Some(reason)
        }
        Found::Absent => None,
    };
    match args.embedded.scheduler.as_slice() {
        [] => Ok(Way::Alone { reason }),
        schedulers => in_fleet(args, schedulers.to_vec()).await,
    }
}

/// It is the local peer that reads from others.
pub(in crate::commands) fn warn_of_transport(args: &Asked<'_>, printer: &Printer) {
    if args.transport.transport != Transport::Auto {
        printer.warn("the local peer reads from others by its own `--transport`, not by this one");
    }
}

/// It has a limit of its own, for all that it does.
pub(in crate::commands) fn check_limit(args: &Asked<'_>) -> anyhow::Result<()> {
    let flag = match &args.transport {
        TransportArgs { limit: Some(_), .. } => "--limit",
        TransportArgs { background: true, .. } => "--background",
        _ => return Ok(()),
    };
    let message = format!("the local peer brings the bytes, and keeps to its own `{flag}`");
    let hint = format!("bring them by this process with `--direct`, or start the peer with `{flag}`");
    Err(Refusal::usage(message).hint(hint).into())
}

/// The local peer lands the bytes, in its own way.
fn through(local: LocalPeer, args: &Asked<'_>, printer: &Printer) -> anyhow::Result<Way> {
    check_limit(args)?;
    if args.landing == Landing::Auto {
        warn_of_transport(args, printer);
        return Ok(Way::Local(local));
    }
    let message = "the local peer lands the bytes, in the way that it was started with";
    let hint = "land them here with `--direct`, or start the peer with `--landing`";
    Err(Refusal::usage(message).hint(hint).into())
}

/// What is found of a local peer.
pub(in crate::commands) enum Found {
    /// It is there for this pull.
    Answers(LocalPeer),
    /// Its socket is there, and is of no use: others own it, or its process was killed.
    Unusable(PeerError),
    /// There is none, or none is wanted.
    Absent,
}

/// The local peer that the pull goes through. One that was named has to answer.
pub(in crate::commands) async fn local_peer(args: &Asked<'_>) -> anyhow::Result<Found> {
    let is_offline = matches!(args.reference, Reference::Hub(_)) && HubAccess::from_env()?.is_offline;
    let is_remote = match args.reference {
        Reference::Registry(_) | Reference::Fleet(_) => true,
        Reference::Hub(_) => !is_offline,
        Reference::Layout(_) | Reference::Directory(_) => false,
    };
    let is_fleet_only = matches!(args.reference, Reference::Fleet(_));
    match &args.peer {
        Some(PeerChoice::None) => Ok(Found::Absent),
        Some(PeerChoice::Socket(_)) if is_offline => {
            let message = "`HF_HUB_OFFLINE` is set, and the local peer would ask the hub";
            Err(Refusal::usage(message).hint("pull with `--peer none`, or unset it").into())
        }
        Some(PeerChoice::Socket(socket)) => Ok(Found::Answers(LocalPeer::connect(socket).await?)),
        // What lies on this machine needs no peer.
        None if !is_remote => Ok(Found::Absent),
        None => match LocalPeer::connect(&peer::default_socket()).await {
            Ok(local) => Ok(Found::Answers(local)),
            Err(error) if is_fleet_only && args.embedded.scheduler.is_empty() => Err(error.into()),
            // What cannot be looked at is there, too.
            Err(error) if !matches!(peer::default_socket().try_exists(), Ok(false)) => {
                Ok(Found::Unusable(error))
            }
            Err(_) => Ok(Found::Absent),
        },
    }
}

/// This process lands the bytes. The local peer may say where the scheduler is, and is a source like any other.
async fn direct(args: &Asked<'_>, printer: &Printer) -> anyhow::Result<Way> {
    if !args.embedded.scheduler.is_empty() {
        return in_fleet(args, args.embedded.scheduler.clone()).await;
    }
    let reason = match &args.peer {
        Some(PeerChoice::None) => "no scheduler is named",
        Some(PeerChoice::Socket(socket)) => match schedulers_of(args, socket).await? {
            Some(schedulers) => return in_fleet(args, schedulers).await,
            None => "the local peer has no scheduler",
        },
        None => match schedulers_of(args, &peer::default_socket()).await {
            Ok(Some(schedulers)) => return in_fleet(args, schedulers).await,
            Ok(None) => "the local peer has no scheduler",
            Err(error) if error.is::<Refusal>() => return Err(error),
            Err(_) => "no scheduler is named, and no local peer answers",
        },
    };
    if matches!(args.reference, Reference::Fleet(_)) {
        let message = format!("cannot pull `{}` directly: {reason}", args.reference);
        return Err(Refusal::usage(message).hint("name the fleet's scheduler with `--scheduler URL`").into());
    }
    printer.warn(format_args!("{reason}: pulling from the origin alone"));
    Ok(Way::Alone { reason: Some(reason.to_owned()) })
}

async fn schedulers_of(args: &Asked<'_>, socket: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let local = LocalPeer::connect(socket).await?;
    let schedulers = access::schedulers_of(&local, args.trust.fleet_key.as_deref())?;
    Ok(Some(schedulers).filter(|schedulers| !schedulers.is_empty()))
}

async fn in_fleet(args: &Asked<'_>, schedulers: Vec<String>) -> anyhow::Result<Way> {
    let EmbeddedArgs { listen, advertise, place, data_plain, .. } = &args.embedded;
    // Where no way leads to the scheduler nobody reaches this process either, and the pull goes on without.
    let here = first_way(&schedulers).await.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let is_open = args.trust.fleet_key.is_some() || args.trust.insecure;
    let host = match (is_open, advertise, here) {
        (false, _, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (false, _, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        // Only there it is expected.
        (true, None, here) => here,
        // Who knows on which of its addresses.
        (true, Some(_), IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (true, Some(_), IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listen = listen.unwrap_or(SocketAddr::new(host, 0));
    if listen.ip().is_loopback() && !here.is_loopback() && !is_open {
        let message =
            format!("`{}` is on another machine, and nothing is authenticated", schedulers.join(","));
        let hint =
            "give every process of the fleet one key with `--fleet-key FILE`; see `modelctl fleet-key`";
        return Err(Refusal::usage(message).hint(hint).into());
    }
    let control = security(listen, args.trust)?;
    let data = if *data_plain { Security::Plain } else { control.clone() };
    let is_elsewhere = listen.ip().is_unspecified();
    let advertise = advertise.clone().or_else(|| is_elsewhere.then(|| here.to_string()));
    Ok(Way::Fleet(FleetOptions {
        schedulers,
        listen,
        advertise,
        // Several may pull on one machine.
        name: format!("{} pull {}", host_name(), std::process::id()),
        place: Place::from(place),
        security: PeerSecurity { control, data },
        nic_rate: args.transport.nic_rate.map(|rate| rate.0),
        transports: transports::open(args.transport)?,
    }))
}

/// The address by which this machine speaks with the first of these to which there is a way.
async fn first_way(schedulers: &[String]) -> Option<IpAddr> {
    for scheduler in schedulers {
        if let Some(here) = peer::address_towards(scheduler).await {
            return Some(here);
        }
    }
    None
}
