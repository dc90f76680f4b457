//! Rails of real devices. Does not own: which of them a link uses, or when anything happens.

use std::{
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use memory::Region;
use verbs::{
    AsyncEvent, AsyncEvents, CompletionQueue, Context, MemoryRegion, OwnEnd, Path, ProtectionDomain,
    QpAddress, Read, ReadDone, Rights, Role, Status, VerbsError,
};

use super::{Done, Failure, FailureKind, Memory, Purpose, QueuePair, Rail, RailEvent, Unposted, Work};
use crate::{Endpoint, RailInfo, Unavailable, WORKS_A_QP_MAX, choose};

/// How many completions a queue holds: 512 QPs, thus 256 links a rail, in 0.5 MiB.
const COMPLETIONS_MAX: u32 = 8192;

/// The rails of these devices, or of the devices of these interfaces; of all that can be used if none is named.
pub(crate) fn open(names: &[String]) -> Result<Vec<Arc<dyn Rail>>, Unavailable> {
    let mut found = Found::default();
    for device in verbs::devices()? {
        match Context::open(&device.name) {
            Ok(context) => found.look_at(&context, names),
            Err(error) => found.reasons.push(format!("`{}`: {error}", device.name)),
        }
    }
    let Found { rails, reasons } = found;
    let missing = names.iter().find(|name| !rails.iter().any(|rail| is_named(rail.info(), name)));
    match missing {
        Some(name) => Err(Unavailable::NotUsable { name: name.clone(), reasons }),
        None if rails.is_empty() => Err(Unavailable::NoRail { reasons }),
        None => Ok(rails),
    }
}

fn is_named(info: &RailInfo, name: &str) -> bool {
    info.name == name || info.netdev.as_deref() == Some(name)
}

#[derive(Default)]
struct Found {
    rails: Vec<Arc<dyn Rail>>,
    /// Why others are none.
    reasons: Vec<String>,
}

impl Found {
    fn look_at(&mut self, context: &Arc<Context>, names: &[String]) {
        for number in context.ports() {
            match VerbsRail::open(context.name(), number, names) {
                Ok(Some(rail)) => self.rails.push(Arc::new(rail)),
                Ok(None) => {}
                Err(reason) => self.reasons.push(format!("`{}` port {number}: {reason}", context.name())),
            }
        }
    }
}

struct VerbsRail {
    info: RailInfo,
    gid_index: u8,
    bytes_max: u64,
    // Before what they stand on, although each holds that by itself.
    queue: Arc<CompletionQueue>,
    works_max: usize,
    fetch: Arc<ProtectionDomain>,
    serve: Arc<ProtectionDomain>,
    events: AsyncEvents,
}

impl VerbsRail {
    /// A port, if it is asked for; or why it cannot be used. It has a context of its own, since every context hears of
    /// all that happens to the device once.
    fn open(device: &str, number: u8, names: &[String]) -> Result<Option<Self>, String> {
        let said = |error: VerbsError| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let context = Context::open(device).map_err(said)?;
        let port = context.port(number).map_err(said)?;
        let gids = context.gids().map_err(said)?;
        let of_port = || gids.iter().filter(|gid| gid.port == number);
        let netdev = names.iter().find(|name| of_port().any(|gid| gid.netdev.as_ref() == Some(name)));
        let is_wanted = names.is_empty() || netdev.is_some() || names.iter().any(|name| name == device);
        if !is_wanted {
            return Ok(None);
        }
        if !port.is_active {
            return Err("the port is not active".to_owned());
        }
        let chosen = choose::choose_gid(&gids, &port, netdev.map(String::as_str));
        let (gid, network) = chosen.ok_or("it has no address that others reach it by")?;
        let limits = context.limits();
        let depth = COMPLETIONS_MAX.min(limits.cqe_max);
        let info = RailInfo {
            name: device.to_owned(),
            port: number,
            gid: gid.raw,
            lid: port.lid,
            mtu_bytes: port.mtu_bytes,
            network,
            netdev: gid.netdev.clone(),
            reads_in_flight_max: limits.reads_in_flight_max.max(1),
        };
        Ok(Some(Self {
            info,
            gid_index: gid.index,
            bytes_max: limits.mr_bytes_max,
            queue: CompletionQueue::new(&context, depth).map_err(said)?,
            works_max: depth as usize,
            fetch: ProtectionDomain::new(&context).map_err(said)?,
            serve: ProtectionDomain::new(&context).map_err(said)?,
            events: AsyncEvents::new(&context).map_err(said)?,
        }))
    }

    fn domain(&self, purpose: Purpose) -> &Arc<ProtectionDomain> {
        match purpose {
            Purpose::Fetch => &self.fetch,
            Purpose::Serve => &self.serve,
        }
    }
}

impl Rail for VerbsRail {
    fn info(&self) -> &RailInfo {
        &self.info
    }

    fn works_max(&self) -> usize {
        self.works_max
    }

    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
        purpose: Purpose,
    ) -> Result<Memory, VerbsError> {
        // Some drivers take more than they can, and know only the first part.
        if range.len() as u64 > self.bytes_max {
            return Err(VerbsError::Refused("a registration is no longer than the device's longest"));
        }
        let rights = match purpose {
            Purpose::Fetch => Rights::LocalWrite,
            Purpose::Serve => Rights::RemoteRead,
        };
        MemoryRegion::register(self.domain(purpose), region, range, rights).map(Memory::Verbs)
    }

    fn queue_pair(&self, purpose: Purpose) -> Result<Box<dyn QueuePair>, VerbsError> {
        let sends_max = match purpose {
            Purpose::Fetch => WORKS_A_QP_MAX.into(),
            // Nothing is ever sent; some providers want room for one.
            Purpose::Serve => 1,
        };
        let pair = verbs::QueuePair::create(self.domain(purpose), &self.queue, sends_max)?;
        Ok(Box::new(VerbsPair { pair, purpose, gid_index: self.gid_index, port: self.info.port }))
    }

    fn poll(&self, done: &mut Vec<Done>) -> Result<(), VerbsError> {
        let mut reads = Vec::new();
        let polled = self.queue.poll(&mut reads);
        done.extend(reads.into_iter().map(ended));
        polled.map(drop)
    }

    fn arm(&self) -> Result<(), VerbsError> {
        self.queue.arm()
    }

    fn clear(&self) {
        if let Err(error) = self.queue.clear_events() {
            tracing::warn!(rail = %self.info.name, %error, "events of completions cannot be taken");
        }
    }

    fn completions(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn next_event(&self) -> Option<RailEvent> {
        loop {
            return match self.events.next() {
                Ok(None) => None,
                Ok(Some(AsyncEvent::PortDown(port))) if port == self.info.port => Some(RailEvent::Down),
                Ok(Some(AsyncEvent::PortUp(port))) if port == self.info.port => Some(RailEvent::Up),
                Ok(Some(AsyncEvent::DeviceGone | AsyncEvent::CompletionQueueFailed)) => Some(RailEvent::Gone),
                Ok(Some(AsyncEvent::QueuePairFailed(number))) => Some(RailEvent::QueuePairFailed(number)),
                // Of another port, or about what concerns no link: addresses, keys, the subnet's manager.
                Ok(Some(_)) => continue,
                Err(error) => {
                    tracing::warn!(rail = %self.info.name, %error, "the device says no more");
                    Some(RailEvent::Gone)
                }
            };
        }
    }
}

struct VerbsPair {
    pair: verbs::QueuePair,
    purpose: Purpose,
    gid_index: u8,
    port: u8,
}

impl QueuePair for VerbsPair {
    fn number(&self) -> u32 {
        self.pair.number()
    }

    fn connect(&mut self, peer: &Endpoint, own: &Endpoint) -> Result<(), VerbsError> {
        let Endpoint { qpn, psn, gid, lid, mtu_bytes, .. } = *peer;
        let path = Path {
            peer: QpAddress { qpn, psn, gid, lid, mtu_bytes },
            own: OwnEnd { psn: own.psn, gid_index: self.gid_index, port: self.port },
            reads_in_flight: choose::reads_in_flight(own, peer, WORKS_A_QP_MAX),
        };
        let role = match self.purpose {
            Purpose::Fetch => Role::Fetch,
            Purpose::Serve => Role::Serve,
        };
        self.pair.connect(&path, role)
    }

    fn post(&mut self, works: Vec<Work>) -> Result<(), Unposted> {
        let mut reads = Vec::with_capacity(works.len());
        // In the order of the works: where each begins in its region, which a read does not say again.
        let mut starts = Vec::with_capacity(works.len());
        let mut strange = Vec::new();
        for Work { id, sink, start, range, local, address, rkey } in works {
            match local {
                Memory::Verbs(local) => {
                    starts.push(start);
                    reads.push(Read { id, sink, range, local, address, rkey });
                }
                local @ Memory::Fake(_) => {
                    strange.push(Work { id, sink, start, range, local, address, rkey });
                }
            }
        }
        let posted = self.pair.post_reads(reads);
        let (text, unposted) = match posted {
            Ok(()) if strange.is_empty() => return Ok(()),
            Ok(()) => ("memory of no device".to_owned(), Vec::new()),
            Err(verbs::PostError { error, unposted }) => (error.to_string(), unposted),
        };
        let starts = starts.split_off(starts.len() - unposted.len());
        let work = |(Read { id, sink, range, local, address, rkey }, start)| Work {
            id,
            sink,
            start,
            range,
            local: Memory::Verbs(local),
            address,
            rkey,
        };
        let mut works: Vec<Work> = unposted.into_iter().zip(starts).map(work).collect();
        works.append(&mut strange);
        Err(Unposted { error: Failure::new(FailureKind::Path, text), works })
    }

    fn destroy(self: Box<Self>) -> Vec<Done> {
        self.pair.destroy().into_iter().map(ended).collect()
    }
}

fn ended(ReadDone { id, qp, sink, status }: ReadDone) -> Done {
    let result = status.map_err(|error| {
        let kind = match error.status {
            Status::RemoteAccess | Status::RemoteInvalid => FailureKind::Access,
            _ => FailureKind::Path,
        };
        Failure::new(kind, error.to_string())
    });
    Done { id, qp, sink, result }
}
