//! The queue registers: set up one queue at a time, checked when it is enabled.

use abi::mmio::{
    QUEUE_DESC_HIGH, QUEUE_DESC_LOW, QUEUE_DEVICE_HIGH, QUEUE_DEVICE_LOW, QUEUE_DRIVER_HIGH,
    QUEUE_DRIVER_LOW, QUEUE_NUM,
};
use vm_memory::GuestMemoryMmap;

use crate::ring::{LayoutFault, RingLayout, Virtqueue};

/// Why a write to a queue register was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueSetupFault {
    /// The selected queue does not exist.
    #[error("Queue {selected} does not exist")]
    NoSuchQueue {
        /// The value of the selector.
        selected: u32,
    },
    /// Before FEATURES_OK, after DRIVER_OK, or when only a reset helps.
    #[error("Queues cannot be set up in status {status:#x}")]
    WrongStatus {
        /// The device status.
        status: u32,
    },
    /// The queue is enabled already.
    #[error("Queue {selected} is enabled and cannot be changed")]
    AlreadyReady {
        /// The queue.
        selected: u32,
    },
    /// A value that the register does not take.
    #[error("Queue {selected}: {value:#x} is no value for the register")]
    BadValue {
        /// The queue.
        selected: u32,
        /// The value.
        value: u32,
    },
    /// The driver enabled a ring that cannot be used.
    #[error("Queue {selected} was not enabled: {fault}")]
    Layout {
        /// The queue.
        selected: u32,
        /// What is wrong with it.
        fault: LayoutFault,
    },
}

/// One queue's registers.
#[derive(Debug, Clone, Copy)]
struct QueueRegisters {
    max_size: u16,
    layout: RingLayout,
    ready: bool,
}

/// All queues' registers and the selector.
#[derive(Debug)]
pub(super) struct QueueBank {
    queues: Vec<QueueRegisters>,
    selected: u32,
}

impl QueueBank {
    pub(super) fn new(max_sizes: &[u16]) -> Self {
        let cold =
            |&max_size| QueueRegisters { max_size, layout: RingLayout::default(), ready: false };
        Self { queues: max_sizes.iter().map(cold).collect(), selected: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.selected = 0;
        for queue in &mut self.queues {
            queue.layout = RingLayout::default();
            queue.ready = false;
        }
    }

    /// Any value: registers of a queue that does not exist read as 0.
    pub(super) fn select(&mut self, queue: u32) {
        self.selected = queue;
    }

    /// Largest size of the selected queue, 0 if there is none.
    pub(super) fn max_size(&self) -> u32 {
        self.current().map_or(0, |queue| queue.max_size.into())
    }

    /// The QUEUE_READY register.
    pub(super) fn ready(&self) -> u32 {
        self.current().is_some_and(|queue| queue.ready).into()
    }

    /// Whether queue `index` exists and is enabled.
    pub(super) fn is_ready(&self, index: u16) -> bool {
        self.queues.get(usize::from(index)).is_some_and(|queue| queue.ready)
    }

    /// Size that the driver chose for queue `index`, if it has enabled it.
    pub(super) fn enabled_size(&self, index: u16) -> Option<u16> {
        let queue = self.queues.get(usize::from(index))?;
        queue.ready.then_some(queue.layout.size)
    }

    /// Writes an address half or the size of the selected queue.
    pub(super) fn write(&mut self, register: u64, value: u32) -> Result<(), QueueSetupFault> {
        let selected = self.selected;
        let queue = self.current_mut().ok_or(QueueSetupFault::NoSuchQueue { selected })?;
        if queue.ready {
            return Err(QueueSetupFault::AlreadyReady { selected });
        }
        let layout = &mut queue.layout;
        match register {
            QUEUE_NUM => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= queue.max_size => layout.size = size,
                Ok(_) | Err(_) => return Err(QueueSetupFault::BadValue { selected, value }),
            },
            QUEUE_DESC_LOW => set_low(&mut layout.desc, value),
            QUEUE_DESC_HIGH => set_high(&mut layout.desc, value),
            QUEUE_DRIVER_LOW => set_low(&mut layout.avail, value),
            QUEUE_DRIVER_HIGH => set_high(&mut layout.avail, value),
            QUEUE_DEVICE_LOW => set_low(&mut layout.used, value),
            QUEUE_DEVICE_HIGH => set_high(&mut layout.used, value),
            _ => return Err(QueueSetupFault::BadValue { selected, value }),
        }
        Ok(())
    }

    /// Writes QUEUE_READY of the selected queue; enabling checks the ring first.
    pub(super) fn set_ready(
        &mut self,
        value: u32,
        mem: &GuestMemoryMmap,
    ) -> Result<(), QueueSetupFault> {
        let selected = self.selected;
        let queue = self.current_mut().ok_or(QueueSetupFault::NoSuchQueue { selected })?;
        match value {
            0 => queue.ready = false,
            1 => {
                let checked = queue.layout.check(queue.max_size, mem);
                checked.map_err(|fault| QueueSetupFault::Layout { selected, fault })?;
                queue.ready = true;
            }
            _ => return Err(QueueSetupFault::BadValue { selected, value }),
        }
        Ok(())
    }

    /// The enabled queues, ready for use by a device.
    pub(super) fn activate(
        &self,
        features: u64,
        mem: &GuestMemoryMmap,
    ) -> Result<Vec<Option<Virtqueue>>, LayoutFault> {
        let make = |(index, queue): (u16, &QueueRegisters)| {
            queue
                .ready
                .then(|| Virtqueue::new(index, queue.max_size, queue.layout, features, mem))
                .transpose()
        };
        (0..).zip(&self.queues).map(make).collect()
    }

    fn current(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    fn current_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.selected).ok()?)
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !u64::from(u32::MAX)) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & u64::from(u32::MAX)) | (u64::from(value) << 32);
}
