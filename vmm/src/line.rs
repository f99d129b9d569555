//! Interrupt lines as irqfds.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::interrupt::IrqLine;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that KVM turns into edges on a GSI.
pub(crate) struct Line {
    eventfd: EventFd,
    gsi: u32,
    failed: AtomicBool,
}

impl Line {
    /// A line for `gsi`, connected to nothing yet.
    pub(crate) fn new(gsi: u32) -> io::Result<Self> {
        let eventfd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self { eventfd, gsi, failed: AtomicBool::new(false) })
    }

    /// For KVM_IRQFD.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// The GSI.
    pub(crate) fn gsi(&self) -> u32 {
        self.gsi
    }
}

impl IrqLine for Line {
    fn trigger(&self) {
        if let Err(error) = self.eventfd.write(1)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            log::error!("irqfd gsi={} failed: {error}", self.gsi);
        }
    }
}
