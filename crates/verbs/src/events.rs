//! What a device says unasked: ports that go down, the device that goes away. Does not own: what follows from it.

use std::{
    fmt,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, RawFd},
    sync::Arc,
};

use rdma_sys::{ibv_async_event, ibv_event_type};
use rustix::io::Errno;

use crate::{Context, VerbsError, completion::set_nonblocking, error::last_errno};

/// What a device says unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// The port of this number carries nothing any more.
    PortDown(u8),
    /// The port of this number carries packets.
    PortUp(u8),
    /// The device failed, or is being taken away: destroy all that was made on it. SoftRoCE waits with going until the
    /// context is dropped.
    DeviceGone,
    /// The queue pair of this number failed.
    QueuePairFailed(u32),
    /// A completion queue failed: completions are lost, and its queue pairs with them.
    CompletionQueueFailed,
    /// Any other, as the device says it (`ibv_event_type`).
    Other(u32),
}

/// The events of one device. Each comes once, so that a context has one such.
pub struct AsyncEvents {
    descriptor: RawFd,
    context: Arc<Context>,
}

impl AsyncEvents {
    /// Begins to listen.
    ///
    /// # Errors
    /// Those of `fcntl`, which there is no reason for.
    pub fn new(context: &Arc<Context>) -> Result<Self, VerbsError> {
        // SAFETY: the context is open, and libibverbs writes to this field no more.
        let descriptor = unsafe { (*context.raw()).async_fd };
        let events = Self { descriptor, context: Arc::clone(context) };
        set_nonblocking(events.as_fd())
            .map_err(|errno| VerbsError::verb("fcntl", context.name(), errno.into()))?;
        Ok(events)
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// EIO once the device has gone.
    pub fn next(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open while `self` is, and `event` is one whole event to write to.
        let answer = unsafe { rdma_sys::ibv_get_async_event(self.context.raw(), event.as_mut_ptr()) };
        if answer != 0 {
            let source = last_errno();
            return match Errno::from_io_error(&source) {
                Some(Errno::AGAIN | Errno::INTR) => Ok(None),
                _ => Err(VerbsError::verb("ibv_get_async_event", self.context.name(), source)),
            };
        }
        let said = read(&event);
        // SAFETY: it was taken just now, and is acknowledged once.
        unsafe { rdma_sys::ibv_ack_async_event(event.as_mut_ptr()) };
        Ok(Some(said))
    }
}

/// What an event says, which is not acknowledged yet.
fn read(event: &MaybeUninit<ibv_async_event>) -> AsyncEvent {
    // As a number, because a kernel may say what these bindings do not know, and their enum must not hold that.
    // SAFETY: it was zeroed, so that all of it can be read; both are plain numbers there.
    let kind = unsafe { (&raw const (*event.as_ptr()).event_type).cast::<u32>().read() };
    // SAFETY: as above; in events of ports it is the port's number.
    let port = unsafe { (*event.as_ptr()).element.port_num };
    let port = u8::try_from(port).unwrap_or(0);
    let is = |known: &[ibv_event_type]| known.iter().any(|known| *known as u32 == kind);
    if is(&[ibv_event_type::IBV_EVENT_PORT_ERR]) {
        AsyncEvent::PortDown(port)
    } else if is(&[ibv_event_type::IBV_EVENT_PORT_ACTIVE]) {
        AsyncEvent::PortUp(port)
    } else if is(&[ibv_event_type::IBV_EVENT_DEVICE_FATAL]) {
        AsyncEvent::DeviceGone
    } else if is(&[ibv_event_type::IBV_EVENT_CQ_ERR]) {
        AsyncEvent::CompletionQueueFailed
    } else if is(&[
        ibv_event_type::IBV_EVENT_QP_FATAL,
        ibv_event_type::IBV_EVENT_QP_REQ_ERR,
        ibv_event_type::IBV_EVENT_QP_ACCESS_ERR,
    ]) {
        // SAFETY: an event of a queue pair, which is not destroyed before its events are acknowledged.
        AsyncEvent::QueuePairFailed(unsafe { (*(*event.as_ptr()).element.qp).qp_num })
    } else {
        AsyncEvent::Other(kind)
    }
}

impl AsFd for AsyncEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until the context is closed, which `self` holds.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}

impl fmt::Debug for AsyncEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsyncEvents({})", self.context.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: u32, port: i32, expect: AsyncEvent) {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: within one event that is ours, as numbers.
        unsafe { (&raw mut (*event.as_mut_ptr()).event_type).cast::<u32>().write(kind) };
        // SAFETY: as above.
        unsafe { (*event.as_mut_ptr()).element.port_num = port };
        assert_eq!(read(&event), expect);
    }

    #[test]
    fn events_are_what_the_device_says() {
        check(10, 1, AsyncEvent::PortDown(1));
        check(9, 2, AsyncEvent::PortUp(2));
        check(8, 0, AsyncEvent::DeviceGone);
        check(0, 0, AsyncEvent::CompletionQueueFailed);
        check(18, 1, AsyncEvent::Other(18));
        // What no binding knows yet.
        check(4711, 0, AsyncEvent::Other(4711));
    }
}
