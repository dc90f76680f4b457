//! Queue pairs: reliable connections that reads are posted to. Does not own: how the two ends learn of each other.

use std::{
    fmt,
    ptr::{self, NonNull},
    sync::Arc,
};

use rdma_sys::{
    ibv_qp, ibv_qp_init_attr, ibv_qp_type, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, qp_type_t,
    rdma_t, tso_t, wr_t,
};

use crate::{
    CompletionQueue, Path, ProtectionDomain, Read, ReadDone, Role, State, VerbsError,
    completion::Owner,
    error::{check, last_errno},
    state::{self, Facts, STEPS},
};

/// One end of a reliable connection. Dropping it destroys it.
pub struct QueuePair {
    /// `None` once it is destroyed, or could not be.
    raw: Option<NonNull<ibv_qp>>,
    owner: Owner,
    state: State,
    queue: Arc<CompletionQueue>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs lets any thread call any verb on a queue pair; what a caller must not do at once takes `&mut`.
unsafe impl Send for QueuePair {}
// SAFETY: by `&` only numbers are read.
unsafe impl Sync for QueuePair {}

/// Why reads were not posted, and which.
#[derive(Debug, thiserror::Error)]
#[error("{} reads were not posted", unposted.len())]
pub struct PostError {
    /// Why.
    #[source]
    pub error: VerbsError,
    /// The reads that are not in flight, in their order; those before them are. If the device did not say where it
    /// stopped there are none, since any may be in flight: they come back when the queue pair is destroyed.
    pub unposted: Vec<Read>,
}

impl QueuePair {
    /// A new one that may have `sends_max` reads posted.
    ///
    /// # Errors
    /// EINVAL beyond [`crate::Limits::sends_max`], ENOMEM without memory for it. [`VerbsError::Refused`] if the queue is
    /// another device's.
    pub fn create(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        sends_max: u32,
    ) -> Result<Self, VerbsError> {
        if !Arc::ptr_eq(domain.context(), queue.context()) {
            return Err(VerbsError::Refused("a queue pair and its completion queue are of one device"));
        }
        let mut attributes = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: queue.raw(),
            recv_cq: queue.raw(),
            srq: ptr::null_mut(),
            cap: rdma_sys::ibv_qp_cap {
                max_send_wr: sends_max,
                // Nothing is ever received; some providers want room for one.
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: the domain and the queue are held by what is returned, until after it is destroyed.
        let raw = unsafe { rdma_sys::ibv_create_qp(domain.raw(), &raw mut attributes) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| VerbsError::verb("ibv_create_qp", domain.context().name(), last_errno()))?;
        // SAFETY: libibverbs made it, and writes to this field no more.
        let number = unsafe { raw.as_ref() }.qp_num;
        let owner = queue.owner(number);
        let (queue, domain) = (Arc::clone(queue), Arc::clone(domain));
        Ok(Self { raw: Some(raw), owner, state: State::Reset, queue, domain })
    }

    /// What its peer names it by.
    pub fn number(&self) -> u32 {
        self.owner.qp
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Makes it ready to read, or to be read from. The two ends may come to this in any order; what is asked of an end
    /// that is not ready yet is asked again for half a second.
    ///
    /// # Errors
    /// [`VerbsError::Modify`] with what is wrong: EINVAL of values that the device does not take, ETIMEDOUT,
    /// EHOSTUNREACH or ENETUNREACH if the peer's address does not resolve. It is then of no use.
    pub fn connect(&mut self, path: &Path, role: Role) -> Result<(), VerbsError> {
        if self.state != State::Reset {
            return Err(VerbsError::WrongState { state: self.state, what: "be connected" });
        }
        let context = Arc::clone(self.domain.context());
        let port = context.port(path.own.port)?;
        for step in &STEPS {
            debug_assert!(self.state == step.from, "each step begins where the last one ended");
            let mut attributes = state::attributes(step.to, path, &port, role)
                .ok_or(VerbsError::Refused("the two ports have a packet size in common"))?;
            // SAFETY: it is not destroyed while `self` is, and the attributes are all there.
            let answer = unsafe {
                rdma_sys::ibv_modify_qp(self.raw().as_ptr(), &raw mut attributes, step.mask.cast_signed())
            };
            check(answer).map_err(|source| {
                let gids = context.gids().unwrap_or_default();
                let facts = Facts { port: &port, limits: context.limits(), gids: &gids };
                let diagnosis = state::diagnose(step.to, path, &facts);
                let device = context.name().to_owned();
                VerbsError::Modify { device, from: step.from, to: step.to, diagnosis, source }
            })?;
            self.state = step.to;
        }
        Ok(())
    }

    /// Posts reads, all in one go. Each ends once, in [`CompletionQueue::poll`] or in [`Self::destroy`].
    ///
    /// # Errors
    /// Says which reads are not in flight. ENOMEM if more are posted than the queue pair has room for;
    /// [`VerbsError::Refused`] if the completion queue has none, or a read is not within memory that is registered for
    /// it; [`VerbsError::WrongState`] before it is connected.
    pub fn post_reads(&mut self, reads: Vec<Read>) -> Result<(), PostError> {
        if let Some(error) = self.refusal(&reads) {
            return Err(PostError { error, unposted: reads });
        }
        let mut entries: Vec<ibv_sge> = reads.iter().map(entry).collect();
        let remotes: Vec<rdma_t> =
            reads.iter().map(|read| rdma_t { remote_addr: read.address, rkey: read.rkey }).collect();
        // Before they are posted, since any of them may complete before this returns.
        let ids = self.queue.enter(self.owner, reads).map_err(|unposted| {
            let error = VerbsError::Refused("a completion queue has room for every read in flight");
            PostError { error, unposted }
        })?;
        let requests = ids.clone().zip(&mut entries).zip(remotes);
        let mut requests: Vec<ibv_send_wr> =
            requests.map(|((id, entry), remote)| request(id, entry, remote)).collect();
        let first = link(&mut requests);
        if first.is_null() {
            return Ok(());
        }
        let mut bad = ptr::null_mut();
        // SAFETY: requests and entries live until this returns. What they write is leased and registered by the table
        // that `enter` put it in, which gives it back only after the device has ended.
        let answer = unsafe { rdma_sys::ibv_post_send(self.raw().as_ptr(), first, &raw mut bad) };
        check(answer).map_err(|source| {
            let posted = requests.iter().position(|request| ptr::eq(request, bad)).unwrap_or(requests.len());
            let unposted = self.queue.withdraw(ids.start + posted as u64..ids.end);
            PostError {
                error: VerbsError::verb("ibv_post_send", self.domain.context().name(), source),
                unposted,
            }
        })
    }

    fn refusal(&self, reads: &[Read]) -> Option<VerbsError> {
        if self.state != State::ReadyToSend {
            return Some(VerbsError::WrongState { state: self.state, what: "read" });
        }
        let of_another = |read: &Read| !Arc::ptr_eq(read.local.domain(), &self.domain);
        if reads.iter().any(of_another) {
            return Some(VerbsError::Refused("a read lands in memory of its queue pair's protection domain"));
        }
        reads.iter().find_map(Read::fault).map(VerbsError::Refused)
    }

    /// Destroys it, and hands back the reads that were in flight: the device writes no more for them.
    ///
    /// If it cannot be destroyed nothing is handed back, since the device may go on writing: the memory stays leased and
    /// registered until the process ends, and the log says so.
    pub fn destroy(mut self) -> Vec<ReadDone> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Vec<ReadDone> {
        let Some(raw) = self.raw.take() else { return Vec::new() };
        // SAFETY: it was made by `ibv_create_qp`, and is destroyed once, since it was taken.
        let answer = unsafe { rdma_sys::ibv_destroy_qp(raw.as_ptr()) };
        let Err(error) = check(answer) else { return self.queue.take(self.owner) };
        let reads = self.queue.leak(self.owner);
        std::mem::forget((Arc::clone(&self.queue), Arc::clone(&self.domain)));
        tracing::error!(
            device = self.domain.context().name(), qp = self.owner.qp, reads, %error,
            "a queue pair could not be destroyed: what its reads write to is never used again"
        );
        Vec::new()
    }

    fn raw(&self) -> NonNull<ibv_qp> {
        self.raw.expect("only destroying takes it")
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.tear_down();
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({} of {}, {})", self.owner.qp, self.domain.context().name(), self.state)
    }
}

/// Where a read lands.
fn entry(read: &Read) -> ibv_sge {
    let length = u32::try_from(read.range.len()).expect("refused if it is longer");
    ibv_sge { addr: read.target(), length, lkey: read.local.lkey() }
}

/// One read, as the device is told it.
fn request(id: u64, entry: &mut ibv_sge, remote: rdma_t) -> ibv_send_wr {
    ibv_send_wr {
        wr_id: id,
        next: ptr::null_mut(),
        sg_list: entry,
        num_sge: 1,
        opcode: ibv_wr_opcode::IBV_WR_RDMA_READ,
        send_flags: ibv_send_flags::IBV_SEND_SIGNALED.0,
        imm_data_invalidated_rkey_union: rdma_sys::imm_data_invalidated_rkey_union_t { imm_data: 0 },
        wr: wr_t { rdma: remote },
        qp_type: qp_type_t { xrc: rdma_sys::xrc_t { remote_srqn: 0 } },
        bind_mw_tso_union: rdma_sys::bind_mw_tso_union_t {
            tso: tso_t { hdr: ptr::null_mut(), hdr_sz: 0, mss: 0 },
        },
    }
}

/// Makes each request name the next; the first, if any.
fn link(requests: &mut [ibv_send_wr]) -> *mut ibv_send_wr {
    let mut next = ptr::null_mut();
    for request in requests.iter_mut().rev() {
        request.next = next;
        next = request;
    }
    next
}
