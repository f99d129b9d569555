//! What reaches the VM from outside: requests from handles, and signals.
//!
//! One mailbox lives as long as the process wants to be commanded: whoever
//! owns it answers. That is the event loop while a VM runs, and before that
//! the loop that configures one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::handle::{VmHandle, VmRequest};
use super::poll::Poller;
use super::signals::Signals;

/// Where requests and signals arrive.
pub struct Mailbox {
    requests: Receiver<VmRequest>,
    wake: Arc<EventFd>,
    handle: VmHandle,
    signals: Signals,
    /// What [`Self::receive`] waits with, from its first time on.
    waiting: Option<Poller<()>>,
}

/// What a mailbox holds.
pub enum Letter {
    /// A request, to be answered.
    Request(VmRequest),
    /// A signal that ends the VM, by its number.
    Signal(u32),
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// Blocks the signals that end a VM in the calling thread and in those that it starts from now
    /// on: call it before any other thread exists, or one of them is ended by the signal instead.
    ///
    /// # Errors
    /// What the system says when it gives no eventfd or signalfd.
    pub fn new() -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (sender, requests) = mpsc::channel();
        let handle = VmHandle::new(sender, wake.clone());
        Ok(Self { requests, wake, handle, signals: Signals::new()?, waiting: None })
    }

    /// Posts to this mailbox.
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Waits for a request or a signal and takes it.
    ///
    /// # Errors
    /// What the system says when it gives no epoll instance.
    pub fn receive(&mut self) -> io::Result<Letter> {
        loop {
            if let Some(signal) = self.take_signal() {
                return Ok(Letter::Signal(signal));
            }
            if let Some(request) = self.take_request() {
                return Ok(Letter::Request(request));
            }
            if self.waiting.is_none() {
                let mut poller = Poller::new()?;
                self.register(&mut poller, (), ())?;
                self.waiting = Some(poller);
            }
            if let Some(poller) = &self.waiting {
                poller.wait(None)?;
            }
            self.acknowledge();
        }
    }

    /// Watches for requests and signals.
    pub(crate) fn register<T: Copy + PartialEq>(
        &self,
        poller: &mut Poller<T>,
        requests: T,
        signals: T,
    ) -> io::Result<()> {
        poller.watch(self.wake.as_raw_fd(), requests)?;
        poller.watch(self.signals.fd(), signals)
    }

    /// Takes the wake-up back; call it before the requests are taken.
    pub(crate) fn acknowledge(&self) {
        self.wake.read().ok();
    }

    /// Announces requests that may have been left, to whoever owns the mailbox next.
    pub(crate) fn rearm(&self) {
        // Fails only when the counter is full: the wake-up is pending already.
        self.wake.write(1).ok();
    }

    /// The next request, if one has come.
    pub(crate) fn take_request(&self) -> Option<VmRequest> {
        self.requests.try_recv().ok()
    }

    /// The number of a signal that has arrived.
    pub(crate) fn take_signal(&mut self) -> Option<u32> {
        self.signals.take()
    }
}
