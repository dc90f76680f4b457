//! Completion queues, and the table of reads that a device may still write for. Does not own: when somebody looks.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, RawFd},
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdma_sys::{ibv_comp_channel, ibv_cq, ibv_wc, ibv_wc_status, imm_data_invalidated_rkey_union_t};
use rustix::{fs::OFlags, io::Errno};

use crate::{
    Context, Read, ReadDone, ReadError, Status, VerbsError,
    error::{check, last_errno},
};

/// Where reads complete. It keeps what each posted read writes to and through, until the device has ended with it.
///
/// It has a channel of its own: once [armed](Self::arm), its descriptor becomes readable with the next completion.
pub struct CompletionQueue {
    queue: NonNull<ibv_cq>,
    // After the queue, since fields are dropped in order and `drop` comes before them.
    channel: Channel,
    depth: usize,
    table: Mutex<Table>,
    context: Arc<Context>,
}

// SAFETY: libibverbs lets any thread call any verb on a completion queue; the rest is behind a lock.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

/// What a device may be writing for.
#[derive(Default)]
struct Table {
    /// What the device knows the next read by. Never used twice, so that a completion that comes late, of a queue pair
    /// that is gone, is nobody's.
    next: u64,
    /// Which queue pair is the next one. Numbers of queue pairs are used again, these never.
    owners: u64,
    posted: BTreeMap<u64, Posted>,
}

struct Posted {
    owner: u64,
    qp: u32,
    read: Read,
}

impl Posted {
    fn done(self, status: Result<(), ReadError>) -> ReadDone {
        ReadDone { id: self.read.id, qp: self.qp, sink: self.read.sink, status }
    }
}

/// A queue pair, as the table knows it.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) serial: u64,
    pub(crate) qp: u32,
}

/// How many completions one call takes.
const BATCH: i32 = 16;

const NO_COMPLETION: ibv_wc = ibv_wc {
    wr_id: 0,
    status: 0,
    opcode: 0,
    vendor_err: 0,
    byte_len: 0,
    imm_data_invalidated_rkey_union: imm_data_invalidated_rkey_union_t { imm_data: 0 },
    qp_num: 0,
    src_qp: 0,
    wc_flags: 0,
    pkey_index: 0,
    slid: 0,
    sl: 0,
    dlid_path_bits: 0,
};

impl CompletionQueue {
    /// A queue for `depth` reads at once.
    ///
    /// # Errors
    /// EINVAL if that is more than [`crate::Limits::cqe_max`] or nothing, ENOMEM without memory for it, EMFILE without
    /// a descriptor.
    pub fn new(context: &Arc<Context>, depth: u32) -> Result<Arc<Self>, VerbsError> {
        let Ok(entries) = i32::try_from(depth) else {
            return Err(VerbsError::Refused("a completion queue has less than 2^31 entries"));
        };
        let channel = Channel::new(context)?;
        let none = ptr::null_mut();
        // SAFETY: the context and the channel are held by what is returned, and dropped after the queue.
        let queue = unsafe { rdma_sys::ibv_create_cq(context.raw(), entries, none, channel.raw.as_ptr(), 0) };
        let queue = NonNull::new(queue)
            .ok_or_else(|| VerbsError::verb("ibv_create_cq", context.name(), last_errno()))?;
        let table = Mutex::default();
        let context = Arc::clone(context);
        Ok(Arc::new(Self { queue, channel, depth: depth as usize, table, context }))
    }

    /// Takes all completions that are there, and says how many reads have ended.
    ///
    /// # Errors
    /// EIO and others of a device that has failed. What is in flight then comes back by destroying its queue pairs.
    pub fn poll(&self, done: &mut Vec<ReadDone>) -> Result<usize, VerbsError> {
        let before = done.len();
        loop {
            let mut batch = [NO_COMPLETION; BATCH as usize];
            // SAFETY: the queue is not destroyed while `self` is, and the batch has room for as many as are asked for.
            let got = unsafe { rdma_sys::ibv_poll_cq(self.queue.as_ptr(), BATCH, batch.as_mut_ptr()) };
            let Ok(count) = usize::try_from(got) else {
                let source = check(got).expect_err("it is negative");
                return Err(VerbsError::verb("ibv_poll_cq", self.context.name(), source));
            };
            for completion in &batch[..count] {
                // Of a queue pair that is gone if it is not in the table. Only these fields say something after an error.
                let posted = self.table().posted.remove(&completion.wr_id);
                let status = match completion.status {
                    ibv_wc_status::IBV_WC_SUCCESS => Ok(()),
                    raw => {
                        Err(ReadError { status: Status::from_raw(raw), vendor_err: completion.vendor_err })
                    }
                };
                done.extend(posted.map(|posted| posted.done(status)));
            }
            if got < BATCH {
                return Ok(done.len() - before);
            }
        }
    }

    /// Makes the descriptor readable with the next completion. [Poll](Self::poll) once more after it and before
    /// waiting: what completed in between does not count.
    ///
    /// # Errors
    /// Those of a device that has failed.
    pub fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the queue is not destroyed while `self` is.
        let answer = unsafe { rdma_sys::ibv_req_notify_cq(self.queue.as_ptr(), 0) };
        check(answer).map_err(|source| VerbsError::verb("ibv_req_notify_cq", self.context.name(), source))
    }

    /// Makes the descriptor unreadable again.
    ///
    /// # Errors
    /// EIO if the device has gone.
    pub fn clear_events(&self) -> Result<(), VerbsError> {
        loop {
            let (mut queue, mut private) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is not destroyed while `self` is, and both are one pointer to write to.
            let answer = unsafe {
                rdma_sys::ibv_get_cq_event(self.channel.raw.as_ptr(), &raw mut queue, &raw mut private)
            };
            if answer != 0 {
                let source = last_errno();
                return match Errno::from_io_error(&source) {
                    Some(Errno::AGAIN) => Ok(()),
                    Some(Errno::INTR) => continue,
                    _ => Err(VerbsError::verb("ibv_get_cq_event", self.context.name(), source)),
                };
            }
            // SAFETY: one event was taken, and all on this channel are of this queue. Destroying it waits for this.
            unsafe { rdma_sys::ibv_ack_cq_events(self.queue.as_ptr(), 1) };
        }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// How many reads may still be written.
    pub fn in_flight(&self) -> usize {
        self.table().posted.len()
    }

    /// What libibverbs knows it as: there for as long as `self` is.
    pub(crate) fn raw(&self) -> *mut ibv_cq {
        self.queue.as_ptr()
    }

    /// A name for a new queue pair that no other ever had.
    pub(crate) fn owner(&self, qp: u32) -> Owner {
        let mut table = self.table();
        table.owners += 1;
        Owner { serial: table.owners, qp }
    }

    /// Enters reads that are about to be posted, and says what the device is to know them by; or hands them back if
    /// their completions would not fit.
    pub(crate) fn enter(&self, owner: Owner, reads: Vec<Read>) -> Result<Range<u64>, Vec<Read>> {
        let mut table = self.table();
        if table.posted.len() + reads.len() > self.depth {
            return Err(reads);
        }
        let first = table.next;
        for read in reads {
            let id = table.next;
            table.next += 1;
            table.posted.insert(id, Posted { owner: owner.serial, qp: owner.qp, read });
        }
        Ok(first..table.next)
    }

    /// Hands back reads that were entered but not posted.
    pub(crate) fn withdraw(&self, ids: Range<u64>) -> Vec<Read> {
        let mut table = self.table();
        ids.filter_map(|id| table.posted.remove(&id)).map(|posted| posted.read).collect()
    }

    /// Takes all reads of a queue pair out, in the order in which they were posted, once it is destroyed.
    pub(crate) fn take(&self, owner: Owner) -> Vec<ReadDone> {
        let status = Err(ReadError { status: Status::Destroyed, vendor_err: 0 });
        self.remove(owner).into_iter().map(|posted| posted.done(status)).collect()
    }

    /// Never gives back what the reads of a queue pair that could not be destroyed write to and through; says how many
    /// they are.
    pub(crate) fn leak(&self, owner: Owner) -> usize {
        let posted = self.remove(owner);
        let count = posted.len();
        std::mem::forget(posted);
        count
    }

    fn remove(&self, owner: Owner) -> Vec<Posted> {
        let mut table = self.table();
        table
            .posted
            .extract_if(.., |_, posted| posted.owner == owner.serial)
            .map(|(_, posted)| posted)
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change is one step, so that a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: nobody holds it any more, in particular no queue pair, and all its events are acknowledged.
        let answer = unsafe { rdma_sys::ibv_destroy_cq(self.queue.as_ptr()) };
        if let Err(error) = check(answer) {
            tracing::warn!(device = self.context.name(), %error, "a completion queue could not be destroyed");
        }
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue({}, {} of {})", self.context.name(), self.in_flight(), self.depth)
    }
}

/// What says that there are completions.
struct Channel {
    raw: NonNull<ibv_comp_channel>,
    descriptor: RawFd,
    context: Arc<Context>,
}

impl Channel {
    fn new(context: &Arc<Context>) -> Result<Self, VerbsError> {
        // SAFETY: the context is held by what is returned.
        let raw = unsafe { rdma_sys::ibv_create_comp_channel(context.raw()) };
        let failed = |source| VerbsError::verb("ibv_create_comp_channel", context.name(), source);
        let raw = NonNull::new(raw).ok_or_else(|| failed(last_errno()))?;
        // SAFETY: libibverbs made it, and writes to this field no more.
        let descriptor = unsafe { raw.as_ref() }.fd;
        let channel = Self { raw, descriptor, context: Arc::clone(context) };
        set_nonblocking(channel.as_fd()).map_err(|errno| failed(errno.into()))?;
        Ok(channel)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until the channel is destroyed, when `self` is dropped.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: nobody holds it any more. If its queue could not be destroyed it answers EBUSY, and stays.
        let answer = unsafe { rdma_sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if let Err(error) = check(answer) {
            tracing::warn!(device = self.context.name(), %error, "a completion channel could not be destroyed");
        }
    }
}

/// So that taking an event that is not there says so.
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)
}
