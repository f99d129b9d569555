//! The virtio-mmio transport, version 2: registers in front of a device model.
//!
//! [`MmioTransport`] owns the registers, the status machine, feature
//! negotiation and queue set-up, and is the device's only caller. It has no
//! lock: the VMM wraps it in one. [`InterruptStatus`] is the part that vCPUs
//! use without that lock; it takes none itself, so there is no lock order here.
//!
//! A driver may access anything, at any time, with any width: what is not
//! allowed changes nothing, reads as zero and is counted by reason in
//! [`TransportCounters`].
//!
//! Deliberately absent: legacy (version 1) registers, packed rings,
//! notification data, per-queue reset, shared memory regions.
//!
//! Spec: VirtIO 1.2 §2.1–2.5, §3.1, §4.2. Design: docs/virtio.md.

mod counters;
mod interrupt;
mod queues;
mod registers;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use abi::mmio::CONFIG;
use abi::virtio::status::{DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use abi::virtio::{
    VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};

pub use counters::TransportCounters;
pub use interrupt::InterruptStatus;
pub use queues::QueueSetupFault;
pub use status::StatusFault;

use crate::counters::count;
use crate::interrupt::IrqLine;
use crate::ram::GuestRam;
use crate::virtio::{Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice};
use interrupt::EpochInterrupt;
use queues::QueueBank;
use status::{StatusWrite, judge};

/// Features that every device gets from the transport.
const TRANSPORT_FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;

/// A device behind virtio-mmio registers.
pub struct MmioTransport<D: VirtioDevice> {
    device: D,
    ram: Arc<dyn GuestRam>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver accepted a feature bit above 63: none is ever offered.
    driver_features_beyond: bool,
    queues: QueueBank,
    queue_count: u16,
    /// Queues whose device said [`QueueProgress::Pending`].
    pending: Vec<u16>,
    interrupts: Arc<InterruptStatus>,
    interrupt: Arc<EpochInterrupt>,
    counters: TransportCounters,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind registers, in the state after a reset.
    pub fn new(device: D, ram: Arc<dyn GuestRam>, irq: Arc<dyn IrqLine>) -> Self {
        let queues = QueueBank::new(device.queue_max_sizes());
        let queue_count = u16::try_from(device.queue_max_sizes().len()).unwrap_or(u16::MAX);
        let interrupts = Arc::new(InterruptStatus::new(irq));
        let interrupt = Arc::new(EpochInterrupt::begin(interrupts.clone()));
        Self {
            device,
            ram,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            driver_features_beyond: false,
            queues,
            queue_count,
            pending: Vec::new(),
            interrupts,
            interrupt,
            counters: TransportCounters::default(),
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for the host's own commands. After a command that changed
    /// configuration space, call [`Self::config_changed`].
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// What vCPUs serve INTERRUPT_STATUS and INTERRUPT_ACK with, without the device lock.
    pub fn interrupt_status(&self) -> Arc<InterruptStatus> {
        self.interrupts.clone()
    }

    /// The device status register (`abi::virtio::status`).
    pub fn status(&self) -> u32 {
        if self.interrupts.needs_reset() { self.status | DEVICE_NEEDS_RESET } else { self.status }
    }

    /// Whether a driver runs the device: DRIVER_OK, and nothing broken since.
    pub fn is_running(&self) -> bool {
        self.status() & (DRIVER_OK | FAILED | DEVICE_NEEDS_RESET) == DRIVER_OK
    }

    /// Feature bits offered.
    pub fn offered_features(&self) -> u64 {
        (self.device.device_features() | TRANSPORT_FEATURES) & !VIRTIO_F_RING_PACKED
    }

    /// Feature bits acknowledged; `None` until FEATURES_OK.
    pub fn acked_features(&self) -> Option<u64> {
        (self.status & FEATURES_OK != 0).then_some(self.driver_features)
    }

    /// Number of queues that the device has.
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// The size that the driver gave queue `index`, if it has enabled it.
    pub fn enabled_queue_size(&self, index: u16) -> Option<u16> {
        self.queues.enabled_size(index)
    }

    /// What happened so far.
    pub fn counters(&self) -> &TransportCounters {
        &self.counters
    }

    /// Configuration space has changed: raises the generation, and the interrupt if a driver runs.
    pub fn config_changed(&mut self) {
        if self.is_running() {
            self.interrupt.config_changed();
        } else {
            self.interrupts.bump_generation();
        }
    }

    /// Serves queue `index`: the driver has kicked it (from an ioeventfd).
    ///
    /// [`QueueProgress::Pending`] means: call [`Self::serve_pending`] soon,
    /// after other work has had its turn.
    #[must_use = "a pending queue has to be served again"]
    pub fn queue_notified(&mut self, index: u16) -> QueueProgress {
        self.kick_queue(index);
        self.progress()
    }

    /// Serves queue `index` because the host can go on with it, not because of a kick.
    #[must_use = "a pending queue has to be served again"]
    pub fn resume_queue(&mut self, index: u16) -> QueueProgress {
        if self.is_running() && self.queues.is_ready(index) {
            self.serve(index);
        }
        self.progress()
    }

    fn kick_queue(&mut self, index: u16) {
        if self.status & DRIVER_OK == 0 {
            // The queues are looked at when DRIVER_OK comes, so nothing is lost.
            self.counters.kicks_early += 1;
        } else if !self.is_running() {
            self.counters.kick_broken += 1;
        } else if !self.queues.is_ready(index) {
            if count(&mut self.counters.kick_bad_queue) {
                self.warn(format_args!("{}", GuestFault::QueueNotReady { queue: index }));
            }
        } else {
            self.counters.kicks += 1;
            self.serve(index);
        }
    }

    /// Serves every queue that was left pending once more.
    #[must_use = "a pending queue has to be served again"]
    pub fn serve_pending(&mut self) -> QueueProgress {
        for index in std::mem::take(&mut self.pending) {
            if self.is_running() {
                self.serve(index);
            }
        }
        self.progress()
    }

    /// Whether a queue was left pending.
    pub fn progress(&self) -> QueueProgress {
        if self.pending.is_empty() { QueueProgress::Idle } else { QueueProgress::Pending }
    }

    /// Returns to the state after power-on; the driver's write of 0 and a VM
    /// reboot do the same. Counters stay.
    pub fn reset(&mut self) {
        self.counters.resets += 1;
        // First, so that nothing that the device does while it stops is seen.
        self.interrupt = Arc::new(EpochInterrupt::begin(self.interrupts.clone()));
        self.device.reset();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.driver_features_beyond = false;
        self.queues.reset();
        self.pending.clear();
    }

    fn serve(&mut self, index: u16) {
        match self.device.queue_notified(index) {
            Ok(QueueProgress::Idle) => {}
            Ok(QueueProgress::Pending) => {
                if !self.pending.contains(&index) {
                    self.pending.push(index);
                }
            }
            Err(fault) => {
                if count(&mut self.counters.ring_unusable) {
                    self.warn(format_args!("{fault}"));
                }
                self.needs_reset();
            }
        }
    }

    fn needs_reset(&mut self) {
        self.counters.needs_reset += 1;
        self.pending.clear();
        self.interrupt.needs_reset();
    }

    fn write_status(&mut self, written: u32) {
        match judge(self.status(), written) {
            StatusWrite::Reset => self.reset(),
            StatusWrite::Unchanged => {}
            StatusWrite::Recognised(added) => self.status |= added,
            StatusWrite::FeaturesOk => self.judge_features(),
            StatusWrite::DriverOk => self.activate(),
            StatusWrite::Failed => {
                self.status |= FAILED;
                if count(&mut self.counters.driver_failed) {
                    self.warn(format_args!("The driver has given up on the device"));
                }
            }
            StatusWrite::Refused(fault) => {
                if count(&mut self.counters.status_refused) {
                    self.warn(format_args!("{fault}"));
                }
            }
        }
    }

    /// Sets FEATURES_OK if what the driver accepted was offered, has VERSION_1 and what the device needs (§2.2.2, §6.1).
    fn judge_features(&mut self) {
        let foreign = self.driver_features & !self.offered_features();
        let modern = self.driver_features & VIRTIO_F_VERSION_1 != 0;
        let missing = self.device.required_features() & !self.driver_features;
        if foreign == 0 && missing == 0 && modern && !self.driver_features_beyond {
            self.status |= FEATURES_OK;
        } else if count(&mut self.counters.features_refused) {
            self.warn(format_args!(
                "Features {:#x} were refused: {foreign:#x} not offered, {missing:#x} needed, VERSION_1 {}",
                self.driver_features,
                if modern { "accepted" } else { "missing" }
            ));
        }
    }

    /// DRIVER_OK: hands the queues to the device, then serves what is in them already.
    fn activate(&mut self) {
        self.status |= DRIVER_OK;
        let features = self.driver_features;
        let queues = match self.queues.activate(features, &self.ram.present()) {
            Ok(queues) => queues,
            Err(fault) => return self.refuse_activation(format_args!("{fault}")),
        };
        let activation = Activation {
            ram: self.ram.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features,
        };
        if let Err(error) = self.device.activate(activation) {
            return self.refuse_activation(format_args!("{error}"));
        }
        self.counters.activations += 1;
        for index in 0..self.queue_count {
            if self.queues.is_ready(index) && self.is_running() {
                self.serve(index);
            }
        }
    }

    fn refuse_activation(&mut self, reason: std::fmt::Arguments<'_>) {
        if count(&mut self.counters.activation_refused) {
            self.warn(reason);
        }
        self.needs_reset();
    }

    fn may_write_config(&self) -> bool {
        let status = self.status();
        status & DRIVER != 0
            && status & FEATURES_OK != 0
            && status & (FAILED | DEVICE_NEEDS_RESET) == 0
    }

    fn warn(&self, message: std::fmt::Arguments<'_>) {
        log::warn!("device={} {message}", self.device.device_id());
    }
}

impl<D: VirtioDevice> Drop for MmioTransport<D> {
    /// The end of the VM is a reset to the device: it lets go of chains that it holds.
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// Whether `offset` belongs to the device's configuration space.
const fn is_config(offset: u64) -> bool {
    offset >= CONFIG && offset < abi::mmio::WINDOW_BYTES
}
