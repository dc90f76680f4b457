//! A fabric within one process, for tests of whatever uses RDMA: the same engine, links and windows over rails that need
//! no device, and faults by script.
//!
//! Owns: what a real card would do with memory, queue pairs and keys. Does not own: anything above a rail. Like a card,
//! a fake one writes memory by address, behind the back of whoever owns it (through `/proc/self/mem`): a lease that came
//! back too early shows as memory that was written later.

mod card;
mod script;

use std::sync::Arc;

pub(crate) use card::Pin;
pub use script::Script;

use crate::{
    Options, Rdma, Unavailable,
    rail::{self, Rail},
};
use card::{Net, Port};
use script::Scripted;

/// Real devices with a script in front of them, for tests of what a real device does when something goes wrong.
///
/// # Errors
/// As [`Rdma::open`].
pub fn scripted(options: &Options, script: &Script) -> Result<Rdma, Unavailable> {
    let rails = rail::verbs::open(&options.devices)?;
    let scripted = |rail| Arc::new(Scripted::new(rail, script)) as Arc<dyn Rail>;
    Rdma::start(rails.into_iter().map(scripted).collect(), options.pinned_bytes_max)
}

/// Enough for any test that is not about running out of it.
const PINNED_BYTES_MAX: u64 = 64 << 30;

/// A network of fake cards.
#[derive(Clone, Default)]
pub struct Fabric {
    net: Arc<Net>,
    script: Script,
}

impl Fabric {
    /// A network without cards.
    pub fn new() -> Self {
        Self::default()
    }

    /// A process with `rails` cards on the network. Their names (see [`Rdma::rails`]) are known to the whole fabric.
    ///
    /// # Panics
    /// If the system gives no threads or descriptors.
    pub fn adapter(&self, rails: usize) -> Rdma {
        self.adapter_with(rails, PINNED_BYTES_MAX)
    }

    /// As [`Self::adapter`], with a limit of pinned memory.
    ///
    /// # Panics
    /// As there.
    pub fn adapter_with(&self, rails: usize, pinned_bytes_max: u64) -> Rdma {
        let process = self.net.next_process();
        let rail = |number| {
            let port = Port::new(&self.net, process, number).expect("the system has descriptors");
            Arc::new(Scripted::new(Arc::new(port), &self.script)) as Arc<dyn Rail>
        };
        let rails = (0..rails).map(rail).collect();
        Rdma::start(rails, pinned_bytes_max).expect("the system has threads")
    }

    /// The faults of every card of the fabric, but for the network itself.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// From now on the system pins memory for writing only, as Linux does up to 6.1.
    pub fn pin_for_writing_only(&self) {
        self.net.pin_for_writing_only();
    }

    /// From now on nothing that the named card sends arrives, nor does what is sent to it; it does not notice.
    pub fn cut(&self, rail: &str) {
        self.net.set_cut(rail);
    }

    /// The named card's port goes down, and says so.
    pub fn port_down(&self, rail: &str) {
        self.net.port_down(rail);
    }

    /// The named card is taken out, and says so.
    pub fn device_gone(&self, rail: &str) {
        self.net.device_gone(rail);
    }

    /// The named card says that this queue pair of its is broken.
    pub fn queue_pair_failed(&self, rail: &str, qpn: u32) {
        self.net.queue_pair_failed(rail, qpn);
    }

    /// The named card's port comes up again, and says so.
    pub fn port_up(&self, rail: &str) {
        self.net.port_up(rail);
    }

    /// How many bytes the named card has fetched.
    pub fn bytes_fetched(&self, rail: &str) -> u64 {
        self.net.bytes_fetched(rail)
    }

    /// How many queue pairs there are, on all cards.
    pub fn queue_pairs(&self) -> usize {
        self.net.queue_pairs()
    }

    /// How many bytes are registered now, on all cards.
    pub fn registered_bytes(&self) -> u64 {
        self.net.registered_bytes()
    }
}
