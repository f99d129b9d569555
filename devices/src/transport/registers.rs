//! Register dispatch: what a load or store at an offset of the window means.

use abi::mmio;
use abi::virtio::status::{DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

use super::{MmioTransport, QueueSetupFault, is_config};
use crate::counters::count;
use crate::virtio::{QueueProgress, VirtioDevice};

impl<D: VirtioDevice> MmioTransport<D> {
    /// A guest's load of `data.len()` bytes at `offset` of the window.
    ///
    /// Registers are read with aligned 4-byte accesses only (§4.2.2.2),
    /// configuration space with any width. Everything else reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if is_config(offset) {
            self.device.read_config(offset - mmio::CONFIG, data);
            return;
        }
        let Ok(out) = <&mut [u8; 4]>::try_from(data) else {
            self.counters.access_odd += 1;
            return;
        };
        if !offset.is_multiple_of(4) || offset >= mmio::CONFIG {
            self.counters.access_odd += 1;
            return;
        }
        match self.read_register(offset) {
            Some(value) => *out = value.to_le_bytes(),
            None => self.counters.access_unknown += 1,
        }
    }

    /// A guest's store of `data` at `offset` of the window.
    ///
    /// What is not allowed changes nothing and is counted. The result is
    /// [`Self::progress`]: when pending, [`Self::serve_pending`] has to follow.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> QueueProgress {
        if is_config(offset) {
            self.write_config(offset - mmio::CONFIG, data);
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
            && offset < mmio::CONFIG
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        } else {
            self.counters.access_odd += 1;
        }
        self.progress()
    }

    fn read_register(&self, offset: u64) -> Option<u32> {
        Some(match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::VERSION_2,
            mmio::DEVICE_ID => self.device.device_id(),
            mmio::VENDOR_ID => mmio::VENDOR,
            mmio::DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            mmio::QUEUE_NUM_MAX => self.queues.max_size(),
            mmio::QUEUE_READY => self.queues.ready(),
            mmio::INTERRUPT_STATUS => self.interrupts.read(),
            mmio::STATUS => self.status(),
            // No shared memory region exists: length and base read as -1 (§4.2.2).
            mmio::SHM_LEN_LOW..=mmio::SHM_BASE_HIGH => u32::MAX,
            mmio::CONFIG_GENERATION => self.interrupts.generation(),
            _ => return None,
        })
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            mmio::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            mmio::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            mmio::DRIVER_FEATURES => self.write_driver_features(value),
            mmio::QUEUE_SEL => self.queues.select(value),
            mmio::QUEUE_NUM
            | mmio::QUEUE_DESC_LOW
            | mmio::QUEUE_DESC_HIGH
            | mmio::QUEUE_DRIVER_LOW
            | mmio::QUEUE_DRIVER_HIGH
            | mmio::QUEUE_DEVICE_LOW
            | mmio::QUEUE_DEVICE_HIGH
            | mmio::QUEUE_READY => {
                if let Err(fault) = self.write_queue_register(offset, value) {
                    self.count_queue_fault(fault);
                }
            }
            mmio::QUEUE_NOTIFY => self.write_notify(value),
            mmio::INTERRUPT_ACK => self.interrupts.acknowledge(value),
            mmio::STATUS => self.write_status(value),
            // Selecting a region is harmless: none exists.
            mmio::SHM_SEL => {}
            _ => self.counters.access_unknown += 1,
        }
    }

    /// §3.1.1: features are accepted after DRIVER and before FEATURES_OK.
    fn write_driver_features(&mut self, value: u32) {
        if self.status() & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            self.counters.features_untimely += 1;
            return;
        }
        let low = u64::from(u32::MAX);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !low) | u64::from(value),
            1 => self.driver_features = (self.driver_features & low) | (u64::from(value) << 32),
            _ => self.driver_features_beyond |= value != 0,
        }
    }

    /// §3.1.1 step 7: queues are set up between FEATURES_OK and DRIVER_OK.
    fn write_queue_register(&mut self, offset: u64, value: u32) -> Result<(), QueueSetupFault> {
        // Drivers disable queues again after a reset, to be sure; they are disabled.
        if offset == mmio::QUEUE_READY && value == 0 && self.queues.ready() == 0 {
            return Ok(());
        }
        let status = self.status();
        if status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return Err(QueueSetupFault::WrongStatus { status });
        }
        if offset == mmio::QUEUE_READY {
            self.queues.set_ready(value, &self.ram.present())
        } else {
            self.queues.write(offset, value)
        }
    }

    fn count_queue_fault(&mut self, fault: QueueSetupFault) {
        let counter = match fault {
            QueueSetupFault::NoSuchQueue { .. } => &mut self.counters.queue_unknown,
            QueueSetupFault::WrongStatus { .. } => &mut self.counters.queue_untimely,
            QueueSetupFault::AlreadyReady { .. } => &mut self.counters.queue_already_ready,
            QueueSetupFault::BadValue { .. } => &mut self.counters.queue_bad_value,
            QueueSetupFault::Layout { .. } => &mut self.counters.queue_bad_layout,
        };
        if count(counter) {
            self.warn(format_args!("{fault}"));
        }
    }

    fn write_notify(&mut self, value: u32) {
        // Without NOTIFICATION_DATA the value is the queue index; one that no
        // queue can have is counted as such.
        let index = u16::try_from(value).unwrap_or(u16::MAX);
        self.kick_queue(index);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if !self.may_write_config() {
            self.counters.config_untimely += 1;
        } else if let Err(fault) = self.device.write_config(offset, data)
            && count(&mut self.counters.config_refused)
        {
            self.warn(format_args!("{fault}"));
        }
    }
}

/// 32 of the 64 feature bits; there are none beyond.
fn half(features: u64, selector: u32) -> u32 {
    let half = match selector {
        0 => features & u64::from(u32::MAX),
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or(0)
}
