//! A virtio device's place in the machine: its MMIO window, interrupt line and doorbells.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use abi::mmio::{self, INTERRUPT_ACK, INTERRUPT_STATUS, STATUS};
use abi::platform::{VIRTIO_MMIO_BASE, virtio_mmio_gsi};
use devices::ram::GuestRam;
use devices::transport::{InterruptStatus, MmioTransport};
use devices::virtio::{QueueProgress, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kvm::KvmError;
use crate::kvm::machine::Machine;
use crate::line::Line;

/// A device behind its registers, shared by the vCPUs and the thread that serves its queues.
///
/// The one lock here, the transport's, is taken after no other lock of this
/// crate, and is held across discards; INTERRUPT_STATUS and INTERRUPT_ACK,
/// which a driver touches at every interrupt, do without it.
pub(crate) struct Window<D: VirtioDevice> {
    transport: Mutex<MmioTransport<D>>,
    interrupts: Arc<InterruptStatus>,
    line: Arc<Line>,
    slot: u16,
    /// One eventfd per queue, which KVM writes when the guest notifies it.
    doorbells: Vec<EventFd>,
    /// Written when a vCPU's register write gave the serving thread something to look at.
    touched: EventFd,
}

impl<D: VirtioDevice> Window<D> {
    /// Puts `device` into window number `slot`.
    ///
    /// # Errors
    /// The host's, or ENODEV where there is no such slot.
    pub(crate) fn new(device: D, slot: u16, ram: Arc<dyn GuestRam>) -> io::Result<Self> {
        let gsi = virtio_mmio_gsi(slot).ok_or(io::Error::from_raw_os_error(libc::ENODEV))?;
        let line = Arc::new(Line::new(gsi)?);
        let transport = MmioTransport::new(device, ram, line.clone());
        let interrupts = transport.interrupt_status();
        let eventfd = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let doorbells =
            (0..transport.queue_count()).map(|_| eventfd()).collect::<Result<_, _>>()?;
        let transport = Mutex::new(transport);
        Ok(Self { transport, interrupts, line, slot, doorbells, touched: eventfd()? })
    }

    /// Returns the device to its state after power-on. Called with the vCPUs stopped, by whoever serves its queues.
    pub(crate) fn reset(&self) {
        self.forget_kicks();
        self.lock().reset();
    }

    /// Takes back every wake-up by a machine that is gone.
    pub(crate) fn forget_kicks(&self) {
        for doorbell in &self.doorbells {
            doorbell.read().ok();
        }
        self.touched.read().ok();
    }

    /// An eventfd per queue.
    pub(crate) fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Readable when a vCPU has written the status, or configuration space, or left a queue pending.
    pub(crate) fn touched(&self) -> &EventFd {
        &self.touched
    }

    /// The transport.
    pub(crate) fn lock(&self) -> MutexGuard<'_, MmioTransport<D>> {
        // A panic in a device model is a bug of ours and ends the VM where it happened; whoever
        // still comes by meets registers of some state, which is what a guest can set up anyway.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transport, if it is free within a millisecond: for whoever would rather do without than
    /// wait for a reset that waits for its device's work.
    pub(crate) fn lock_soon(&self) -> Option<MutexGuard<'_, MmioTransport<D>>> {
        for _ in 0..20 {
            match self.transport.try_lock() {
                Ok(transport) => return Some(transport),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(50)),
            }
        }
        None
    }

    /// Serves queue `queue` after its doorbell was read.
    pub(crate) fn serve(&self, queue: u16) -> QueueProgress {
        self.lock().queue_notified(queue)
    }
}

/// Where the guest finds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Guest-physical address of its registers, [`mmio::WINDOW_BYTES`] long.
    pub(crate) base: u64,
    /// Its interrupt line.
    pub(crate) gsi: u32,
}

impl Place {
    /// That of window number `slot`; `None` where there is no such slot.
    pub(crate) fn of_slot(slot: u16) -> Option<Self> {
        let base = VIRTIO_MMIO_BASE + u64::from(slot) * mmio::WINDOW_BYTES;
        Some(Self { base, gsi: virtio_mmio_gsi(slot)? })
    }
}

/// A window, whatever device is behind it, as vCPUs and the machine see it.
pub(crate) trait MmioWindow: Send + Sync {
    /// Where the guest finds it.
    fn place(&self) -> Place;
    /// Connects line and doorbells to a machine that has neither yet.
    ///
    /// # Errors
    /// [`KvmError`].
    fn connect(&self, machine: &Machine) -> Result<(), KvmError>;
    /// Frees the line for another machine.
    ///
    /// # Errors
    /// [`KvmError`].
    fn disconnect(&self, machine: &Machine) -> Result<(), KvmError>;
    /// Reads at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: VirtioDevice> MmioWindow for Window<D> {
    fn place(&self) -> Place {
        let base = VIRTIO_MMIO_BASE + u64::from(self.slot) * mmio::WINDOW_BYTES;
        Place { base, gsi: self.line.gsi() }
    }

    fn connect(&self, machine: &Machine) -> Result<(), KvmError> {
        machine.connect_line(self.line.eventfd(), self.line.gsi())?;
        for (queue, doorbell) in (0..).zip(&self.doorbells) {
            machine.connect_doorbell(doorbell, self.place().base, queue)?;
        }
        Ok(())
    }

    fn disconnect(&self, machine: &Machine) -> Result<(), KvmError> {
        machine.disconnect_line(self.line.eventfd(), self.line.gsi())
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (INTERRUPT_STATUS, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.interrupts.read().to_le_bytes();
        } else {
            self.lock().read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (INTERRUPT_ACK, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.interrupts.acknowledge(u32::from_le_bytes(data));
            return;
        }
        let progress = self.lock().write(offset, data);
        if progress == QueueProgress::Pending || offset == STATUS || offset >= mmio::CONFIG {
            // Fails only when the counter is full: the wake-up is pending already.
            self.touched.write(1).ok();
        }
    }
}
