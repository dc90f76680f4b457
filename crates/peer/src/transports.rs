//! By what this process moves bytes between peers: TCP unless it is told not to, RDMA where there is a card for it.
//!
//! Owns: the rails, that the piece buffers are registered with them, which parents are read over TCP for a while, and
//! the limit that all of it keeps to.
//! Does not own: links (`links`, `service`), or the cards (crate `transport-rdma`).

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use memory::Region;
use planner::PeerId;
use transport_rdma::{Options, RailInfo, Rdma, Registration};
use wire::connection::explain;

use crate::{
    error::{PeerError, rdma_hint},
    limit::{Cards, Limit},
    security::PeerSecurity,
    sinks::Registrar,
};

/// How long a parent is read over TCP after RDMA failed with it: long enough that what is broken costs little, short
/// enough that a cable which was put back is used again within a large pull.
const COOLDOWN: Duration = Duration::from_secs(30);

/// Parents that are remembered so: as many as links may be up, twice over. Beyond, the oldest is forgotten.
const DEMOTED_MAX: usize = 512;

/// Which transports may be used between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportMode {
    /// RDMA where both ends can, else TCP.
    Auto,
    /// Only TCP: no card is opened.
    Tcp,
    /// Only RDMA: a link that cannot have it fails.
    Rdma,
}

/// What is opened.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// Which transports may be used.
    pub mode: TransportMode,
    /// The RDMA devices by name; all that are active if empty.
    pub devices: Vec<String>,
    /// How much memory may be pinned for cards at once.
    pub pinned_bytes_max: u64,
}

/// The transports of one process. Clones are the same.
#[derive(Clone)]
pub struct Transports {
    inner: Arc<Inner>,
    limit: Option<Limit>,
}

struct Inner {
    mode: TransportMode,
    rdma: Option<Rdma>,
    /// Set once, to why not if the buffers cannot be registered.
    buffers: OnceLock<Result<Registration, String>>,
    demoted: Mutex<BTreeMap<PeerId, Demotion>>,
}

struct Demotion {
    since: Instant,
    reason: String,
}

impl Transports {
    /// Only TCP.
    pub fn tcp() -> Self {
        Self::of(TransportMode::Tcp, None)
    }

    /// Opens what there is. In the automatic mode a machine that has no device is no failure.
    ///
    /// # Errors
    /// Without a usable device where RDMA is all that may be used.
    pub fn open(options: TransportOptions) -> Result<Self, PeerError> {
        let TransportOptions { mode, devices, pinned_bytes_max } = options;
        if mode == TransportMode::Tcp {
            return Ok(Self::tcp());
        }
        let is_named = !devices.is_empty();
        match Rdma::open(&Options { devices, pinned_bytes_max }) {
            Ok(rdma) => {
                tracing::debug!(?rdma, pinned_bytes_max, "RDMA can be used");
                Ok(Self::of(mode, Some(rdma)))
            }
            Err(unavailable) if mode == TransportMode::Rdma => Err(PeerError::NoRdma(unavailable)),
            Err(unavailable) => {
                let error = &unavailable as &dyn std::error::Error;
                if is_named {
                    tracing::warn!(error, hint = unavailable.hint(), "peers are read over TCP only");
                } else {
                    tracing::debug!(error, "peers are read over TCP only");
                }
                Ok(Self::of(mode, None))
            }
        }
    }

    /// These rails, as whoever has opened them already wants to use them.
    pub fn over(rdma: Rdma, mode: TransportMode) -> Self {
        Self::of(mode, Some(rdma))
    }

    fn of(mode: TransportMode, rdma: Option<Rdma>) -> Self {
        let inner = Arc::new(Inner { mode, rdma, buffers: OnceLock::new(), demoted: Mutex::default() });
        Self { inner, limit: None }
    }

    /// The same, but no more than so many bytes per second are sent, and no more received.
    #[must_use]
    pub fn limited(self, rate: u64) -> Self {
        Self { limit: Some(Limit::of(rate)), ..self }
    }

    /// The same, but only what others leave on the cards is sent and received, and no more than it was limited to.
    ///
    /// # Errors
    /// If the cards do not say what they move.
    pub fn giving_way(self, cards: Cards) -> Result<Self, PeerError> {
        let told = self.limit.as_ref().and_then(Limit::told);
        let limit = Limit::beside(cards, told).map_err(PeerError::Cards)?;
        Ok(Self { limit: Some(limit), ..self })
    }

    /// What may be sent and received, if not whatever can be.
    pub(crate) fn limit(&self) -> Option<&Limit> {
        self.limit.as_ref()
    }

    /// What the process sends and receives in each direction at most, where that is known: as its card does, or as it
    /// may.
    pub(crate) fn rate(&self, nic_rate: Option<u64>) -> Option<u64> {
        nic_rate.into_iter().chain(self.limit.as_ref().and_then(Limit::told)).min()
    }

    /// Registers the memory that pieces are read into. Before that, or if it does not work, nothing goes over RDMA.
    ///
    /// # Errors
    /// If it does not work and RDMA is all that may be used.
    pub(crate) fn register(&self, region: &Arc<Region>) -> Result<(), PeerError> {
        let Some(rdma) = &self.inner.rdma else { return Ok(()) };
        let registered = match rdma.register(region, 0..region.len()) {
            Ok(registration) => Ok(registration),
            Err(error) if self.inner.mode == TransportMode::Rdma => return Err(PeerError::Rdma(error)),
            Err(error) => {
                let (hint, reason) = (rdma_hint(&error), explain(&error));
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, hint, "the buffers cannot be registered: peers are read over TCP only");
                Err(format!("the buffers cannot be registered: {reason}"))
            }
        };
        // Whoever was first has registered the same buffers.
        let _ = self.inner.buffers.set(registered);
        Ok(())
    }

    /// The rails, where there are any and they may be used.
    pub(crate) fn rdma(&self) -> Option<&Rdma> {
        let is_ready = self.inner.buffers.get().is_some_and(Result::is_ok);
        self.inner.rdma.as_ref().filter(|_| is_ready)
    }

    /// What lets the rails write files of this process, where there are any and they may be used.
    pub(crate) fn registrar(&self) -> Option<Arc<dyn Registrar>> {
        let rdma = self.inner.rdma.clone()?;
        Some(Arc::new(Rails(rdma)))
    }

    /// All rails, whether or not they may be used yet.
    pub(crate) fn rails(&self) -> Vec<RailInfo> {
        self.inner.rdma.as_ref().map(Rdma::rails).unwrap_or_default()
    }

    /// Whether a link may be one over TCP.
    pub(crate) fn allow_tcp(&self) -> bool {
        self.inner.mode != TransportMode::Rdma
    }

    /// The rails for a link to that parent; why it has to do without them, if that is to be told.
    pub(crate) fn rdma_to(&self, parent: PeerId) -> Result<&Rdma, Option<String>> {
        if let Some(Err(reason)) = self.inner.buffers.get() {
            return Err(Some(reason.clone()));
        }
        let rdma = self.rdma().ok_or(None)?;
        match self.demoted().get(&parent) {
            Some(demotion) if self.allow_tcp() && demotion.since.elapsed() < COOLDOWN => {
                Err(Some(demotion.reason.clone()))
            }
            _ => Ok(rdma),
        }
    }

    /// RDMA has failed with that parent: it is read over TCP for a while, if it may be.
    pub(crate) fn demote(&self, parent: PeerId, reason: String) {
        tracing::debug!(%parent, reason, "read over TCP for a while");
        let mut demoted = self.demoted();
        demoted.retain(|_, demotion| demotion.since.elapsed() < COOLDOWN);
        if demoted.len() >= DEMOTED_MAX {
            let oldest = demoted.iter().min_by_key(|(_, demotion)| demotion.since).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| demoted.remove(&oldest));
        }
        demoted.insert(parent, Demotion { since: Instant::now(), reason });
    }

    #[cfg(test)]
    pub(crate) fn is_demoted(&self, parent: PeerId) -> bool {
        self.demoted().contains_key(&parent)
    }

    fn demoted(&self) -> MutexGuard<'_, BTreeMap<PeerId, Demotion>> {
        // Each change is one step.
        self.inner.demoted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rails as what registers parts of files.
struct Rails(Rdma);

impl Registrar for Rails {
    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
    ) -> Result<Box<dyn Any + Send + Sync>, String> {
        match self.0.register(region, range) {
            Ok(registration) => Ok(Box::new(registration)),
            Err(error) => Err(explain(&error)),
        }
    }
}

impl Default for Transports {
    fn default() -> Self {
        Self::tcp()
    }
}

impl fmt::Debug for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, limit } = self;
        let mut fields = f.debug_struct("Transports");
        fields.field("mode", &inner.mode).field("rdma", &inner.rdma).field("limit", limit).finish()
    }
}

/// How links to other peers are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    /// How their connections are secured.
    pub(crate) security: PeerSecurity,
    /// By what bytes may come.
    pub(crate) transports: Transports,
}

#[cfg(test)]
mod tests {
    use memory::Pool;
    use transport_rdma::fake::Fabric;

    use super::*;

    fn peer(number: u64) -> PeerId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        PeerId::new(id)
    }

    fn ready(mode: TransportMode) -> Transports {
        let transports = Transports::over(Fabric::new().adapter(1), mode);
        assert!(transports.rdma().is_none(), "reads would have nowhere to go");
        transports.register(Pool::new(1, 4096).unwrap().region()).unwrap();
        transports
    }

    #[test]
    fn a_limit_is_the_rate_of_a_card_that_does_more() {
        let transports = Transports::tcp().limited(1000);
        assert_eq!((transports.rate(Some(10)), transports.rate(None)), (Some(10), Some(1000)));
        assert_eq!(Transports::tcp().rate(Some(10)), Some(10));
    }

    #[test]
    fn a_parent_with_which_rdma_failed_is_read_over_tcp_and_others_are_not() {
        let transports = ready(TransportMode::Auto);
        transports.demote(peer(1), "it broke".to_owned());
        assert_eq!(transports.rdma_to(peer(1)).err(), Some(Some("it broke".to_owned())));
        assert!(transports.rdma_to(peer(2)).is_ok());
        let strict = ready(TransportMode::Rdma);
        strict.demote(peer(1), "it broke".to_owned());
        assert!(strict.rdma_to(peer(1)).is_ok() && !strict.allow_tcp(), "there is nothing else");
    }

    #[test]
    fn a_demotion_ends_and_no_more_are_remembered_than_may_be() {
        let transports = ready(TransportMode::Auto);
        for number in 0..=DEMOTED_MAX as u64 {
            transports.demote(peer(number), "it broke".to_owned());
        }
        assert_eq!(transports.demoted().len(), DEMOTED_MAX);
        assert!(transports.rdma_to(peer(0)).is_ok(), "the oldest is forgotten");
        transports.demoted().get_mut(&peer(7)).unwrap().since -= COOLDOWN;
        assert!(transports.rdma_to(peer(7)).is_ok(), "its time is over");
    }

    #[test]
    fn what_may_only_be_tcp_or_only_rdma_says_so() {
        let tcp = Transports::tcp();
        assert!(tcp.rdma().is_none() && tcp.allow_tcp());
        assert_eq!(tcp.rdma_to(peer(1)).err(), Some(None), "nobody has to be told");
        // As a process that may lock next to nothing.
        let little = |mode| Transports::over(Fabric::new().adapter_with(1, 4096), mode);
        let pool = Pool::new(2, 4096).unwrap();
        let auto = little(TransportMode::Auto);
        auto.register(pool.region()).unwrap();
        assert!(auto.rdma().is_none());
        let why = auto.rdma_to(peer(1)).err().flatten().expect("a reason");
        assert!(why.starts_with("the buffers cannot be registered: "), "{why}");
        assert!(matches!(little(TransportMode::Rdma).register(pool.region()), Err(PeerError::Rdma(_))));
    }
}
