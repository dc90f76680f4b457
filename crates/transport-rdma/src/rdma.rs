//! All rails of this process, and the memory that they write.
//!
//! Owns: the engines, and which memory is registered for reads. Does not own: links (`offer`) or served files
//! (`serving`).

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use memory::{Lease, Region};

use crate::{
    RailInfo, RdmaError, Shape, Unavailable,
    engine::Handle,
    pinned::{Charge, Windows},
    rail::{self, Memory, Purpose, Rail},
};

/// What [`Rdma::open`] opens.
#[derive(Clone, Debug)]
pub struct Options {
    /// Devices, or network interfaces of devices, by name; every device that can be used if empty.
    pub devices: Vec<String>,
    /// How many bytes of memory may be pinned at once, for reading and serving together. What several rails pin counts
    /// for each of them, as it does for the kernel's limit of locked memory.
    pub pinned_bytes_max: u64,
}

/// The usable rails of this process. Clones are the same; links and served files keep what they need of it.
#[derive(Clone)]
pub struct Rdma(Arc<Inner>);

pub(crate) struct RailUnit {
    pub(crate) rail: Arc<dyn Rail>,
    pub(crate) engine: Handle,
    /// QPs that fetch: their works share one completion queue.
    pub(crate) lanes: Arc<AtomicUsize>,
}

pub(crate) struct Inner {
    rails: Vec<RailUnit>,
    windows: Windows,
    shape: Shape,
    /// Memory that reads may write, by where its region is.
    registrations: Mutex<BTreeMap<u64, Vec<Weak<Registered>>>>,
    links: AtomicU64,
}

/// Memory that every rail may write by reads of this process.
pub(crate) struct Registered {
    memories: Vec<Option<Memory>>,
    region: Arc<Region>,
    range: Range<usize>,
    _charge: Charge,
}

impl Registered {
    pub(crate) fn memory(&self, rail: usize) -> Option<Memory> {
        self.memories.get(rail)?.clone()
    }

    fn covers(&self, lease: &Lease) -> bool {
        let range = lease.range();
        Arc::ptr_eq(&self.region, lease.region())
            && self.range.start <= range.start
            && range.end <= self.range.end
    }
}

/// Keeps some memory registered for reads. Dropped, no new read may write there; the pins go when the last outstanding
/// read has ended.
pub struct Registration {
    registered: Option<Arc<Registered>>,
    inner: Arc<Inner>,
}

impl Rdma {
    /// Opens the devices of this machine.
    ///
    /// # Errors
    /// If there is none, or what is needed to use it is missing: [`Unavailable::hint`] says what to do.
    pub fn open(options: &Options) -> Result<Self, Unavailable> {
        Self::open_shaped(options, Shape::default())
    }

    /// The same, with links of another shape than the product's: for measuring which is best.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_shaped(options: &Options, shape: Shape) -> Result<Self, Unavailable> {
        Self::start_shaped(rail::verbs::open(&options.devices)?, options.pinned_bytes_max, shape)
    }

    /// An engine for each of these rails, which are sorted by name here.
    pub(crate) fn start(rails: Vec<Arc<dyn Rail>>, pinned_bytes_max: u64) -> Result<Self, Unavailable> {
        Self::start_shaped(rails, pinned_bytes_max, Shape::default())
    }

    fn start_shaped(
        mut rails: Vec<Arc<dyn Rail>>,
        pinned_bytes_max: u64,
        shape: Shape,
    ) -> Result<Self, Unavailable> {
        rails.sort_by(|a, b| (&a.info().name, a.info().port).cmp(&(&b.info().name, b.info().port)));
        let start = |(index, rail): (usize, Arc<dyn Rail>)| -> Result<RailUnit, Unavailable> {
            let engine = Handle::start(Arc::clone(&rail), index).map_err(Unavailable::Engine)?;
            Ok(RailUnit { rail, engine, lanes: Arc::default() })
        };
        let rails = rails.into_iter().enumerate().map(start).collect::<Result<_, Unavailable>>()?;
        Ok(Self(Arc::new(Inner {
            rails,
            windows: Windows::new(pinned_bytes_max),
            shape,
            registrations: Mutex::default(),
            links: AtomicU64::new(0),
        })))
    }

    /// The rails, in the order in which two ends pair them.
    pub fn rails(&self) -> Vec<RailInfo> {
        self.0.rails.iter().map(|unit| unit.rail.info().clone()).collect()
    }

    /// How many bytes are pinned now, counted as [`Options::pinned_bytes_max`] does.
    pub fn pinned_bytes(&self) -> u64 {
        self.0.windows.pinned_bytes()
    }

    /// Lets reads write a range of memory: a lease that is within it may be posted to any link.
    ///
    /// # Errors
    /// If no more may be pinned, or the system does not pin it: EFAULT in the source where the memory is a file's that
    /// cannot be written by a device.
    pub fn register(&self, region: &Arc<Region>, range: Range<usize>) -> Result<Registration, RdmaError> {
        self.register_at_cost(region, range.clone(), self.0.cost(range.len() as u64))
    }

    /// As [`Self::register`], counted as `cost` bytes.
    pub(crate) fn register_at_cost(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
        cost: u64,
    ) -> Result<Registration, RdmaError> {
        let inner = &self.0;
        let charge = inner.windows.charge(cost)?;
        let memories = inner.register_with_rails(region, &range, Purpose::Fetch)?;
        let registered =
            Arc::new(Registered { memories, region: Arc::clone(region), range, _charge: charge });
        let mut all = inner.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(region.address()).or_default().push(Arc::downgrade(&registered));
        Ok(Registration { registered: Some(registered), inner: Arc::clone(inner) })
    }

    pub(crate) fn of(inner: &Arc<Inner>) -> Self {
        Self(Arc::clone(inner))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

impl Inner {
    pub(crate) fn rails(&self) -> &[RailUnit] {
        &self.rails
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    /// What pinning so many bytes with every rail counts for.
    pub(crate) fn cost(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.rails.len() as u64)
    }

    pub(crate) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed)
    }

    /// The registration that a lease is within.
    pub(crate) fn registered(&self, lease: &Lease) -> Option<Arc<Registered>> {
        let all = self.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        let of_region = all.get(&lease.region().address())?;
        of_region.iter().filter_map(Weak::upgrade).find(|registered| registered.covers(lease))
    }

    /// By rail; none for a rail that is down and cannot.
    pub(crate) fn register_with_rails(
        &self,
        region: &Arc<Region>,
        range: &Range<usize>,
        purpose: Purpose,
    ) -> Result<Vec<Option<Memory>>, RdmaError> {
        let register = |unit: &RailUnit| match unit.rail.register(region, range.clone(), purpose) {
            Ok(memory) => Ok(Some(memory)),
            Err(_) if !unit.engine.is_up() => Ok(None),
            Err(source) => {
                let rail = unit.rail.info().name.clone();
                Err(RdmaError::Register { rail, bytes: range.len(), source })
            }
        };
        self.rails.iter().map(register).collect()
    }
}

impl Registration {
    pub(crate) fn registered(&self) -> Option<Arc<Registered>> {
        self.registered.clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(registered) = self.registered.take() else { return };
        let mut all = self.inner.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_region) = all.get_mut(&registered.region.address()) {
            of_region.retain(|other| !std::ptr::eq(other.as_ptr(), &raw const *registered));
            if of_region.is_empty() {
                all.remove(&registered.region.address());
            }
        }
        // Outside the lock: unpinning takes its time.
        drop(all);
        drop(registered);
    }
}

impl fmt::Debug for Rdma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rdma").field(&self.rails()).finish()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.registered.as_ref().map(|registered| registered.range.clone());
        f.debug_tuple("Registration").field(&range).finish()
    }
}
