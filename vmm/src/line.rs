//! Interrupt lines: edges as irqfds, and levels.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::interrupt::IrqLine;
use kvm_ioctls::VmFd;
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

/// An interrupt line that is asserted or not.
pub(crate) trait LevelLine: Send + Sync {
    /// Asserts the line, or stops asserting it.
    fn set_level(&self, asserted: bool);
}

/// A level that KVM is told of whenever it changes (KVM_IRQ_LINE).
///
/// Not an irqfd: a plain one is a pulse, which a level-triggered entry of the
/// I/O APIC loses while it is masked or in service. One with a resample eventfd
/// keeps the level until the guest's EOI, but then has to be asked again from
/// the event loop. KVM_IRQ_LINE leaves both, mask and EOI, to KVM's I/O APIC.
pub(crate) struct KvmLevelLine {
    gsi: u32,
    /// Does not keep the VM open: a reboot closes it and connects the line to the next.
    vm: Mutex<Weak<VmFd>>,
    failed: AtomicBool,
}

impl KvmLevelLine {
    /// A line for `gsi`, connected to nothing yet.
    pub(crate) fn new(gsi: u32) -> Self {
        Self { gsi, vm: Mutex::default(), failed: AtomicBool::new(false) }
    }

    /// Makes it a line of `vm`, where it is not asserted.
    pub(crate) fn connect(&self, vm: &Arc<VmFd>) {
        *self.vm.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(vm);
    }
}

impl LevelLine for KvmLevelLine {
    fn set_level(&self, asserted: bool) {
        let vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        // Without a VM there is nothing that could notice.
        if let Some(vm) = vm
            && let Err(error) = vm.set_irq_line(self.gsi, asserted)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            log::error!("KVM_IRQ_LINE gsi={} failed: {error}", self.gsi);
        }
    }
}
