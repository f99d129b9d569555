//! What every virtio device model implements, and what it is given.

use std::sync::Arc;

use crate::ram::GuestRam;
use crate::ring::{RingFault, Virtqueue};

/// A device model: a synchronous state machine over queues and guest RAM.
///
/// Knows nothing of MMIO, irqfds, KVM, threads or sockets. The transport owns
/// registers, status bits, feature negotiation and ring validity, and is the
/// only caller.
pub trait VirtioDevice: Send {
    /// The virtio device id (virtio 1.2 §5).
    fn device_id(&self) -> u32;

    /// Feature bits offered, without the transport's own (VERSION_1, INDIRECT_DESC, EVENT_IDX).
    fn device_features(&self) -> u64;

    /// Those of [`Self::device_features`] without which a driver cannot run it: FEATURES_OK is refused then.
    fn required_features(&self) -> u64 {
        0
    }

    /// The largest size of each queue; the length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads configuration space at `offset`; bytes outside it read as zero.
    fn read_config(&self, offset: u64, out: &mut [u8]);

    /// Writes configuration space; a write to a field that the driver does not own changes nothing.
    ///
    /// # Errors
    /// [`GuestFault`]: counted and logged by the transport.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault>;

    /// Starts the device at DRIVER_OK: RAM, queues and interrupts move in.
    ///
    /// # Errors
    /// [`ActivateError`]: the transport sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver has made buffers available on queue `index`.
    ///
    /// Called once for every enabled queue at DRIVER_OK too, since a driver may
    /// add buffers before. Handles at most about one ring's worth of chains, so
    /// that a driver which keeps adding cannot hold the caller.
    ///
    /// # Errors
    /// [`GuestFault`] when the ring itself is unusable: the transport sets
    /// DEVICE_NEEDS_RESET. A bad buffer is not an error here: the device counts
    /// it and returns it.
    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault>;

    /// Drops the activation and returns to the cold-start state that the
    /// specification asks for (a balloon keeps its target).
    fn reset(&mut self);
}

/// How far a device came with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueProgress {
    /// Nothing is left that the device could do now; a kick or a host event says when there is.
    Idle,
    /// Chains are left and kicks are suppressed: call again without waiting for a kick.
    Pending,
}

/// Copies what `config` holds from `offset` on into `out`; bytes beyond it become 0.
///
/// For [`VirtioDevice::read_config`]: any offset and width is harmless.
pub fn read_config_bytes(config: &[u8], offset: u64, out: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    let mut bytes = rest.unwrap_or_default().iter();
    for to in out {
        *to = bytes.next().copied().unwrap_or(0);
    }
}

/// Everything that a device gets at DRIVER_OK.
pub struct Activation {
    /// Guest RAM.
    pub ram: Arc<dyn GuestRam>,
    /// The queues by index; `None` where the driver did not enable the queue.
    pub queues: Vec<Option<Virtqueue>>,
    /// How the device calls the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The feature bits that the driver acknowledged, all of which were offered.
    pub features: u64,
}

/// How a device calls its driver; the transport implements it.
pub trait Interrupt: Send + Sync {
    /// A used ring was updated.
    fn used(&self);
    /// Configuration space changed: also raises the generation.
    fn config_changed(&self);
    /// Only a reset can mend the device: sets DEVICE_NEEDS_RESET and says so.
    fn needs_reset(&self);
}

/// The guest broke a rule; contained, counted, never a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// A configuration field that the driver may not write.
    #[error("The driver may not write configuration byte {offset:#x} (length {len})")]
    ReadOnlyConfig {
        /// Offset in configuration space.
        offset: u64,
        /// Bytes written.
        len: usize,
    },
    /// The ring lies outside RAM, or its indices contradict each other: only a reset helps.
    #[error("Queue {queue} is unusable: {fault}")]
    BadRing {
        /// The queue.
        queue: u16,
        /// What is wrong with it.
        fault: RingFault,
    },
    /// A notification for a queue that does not exist or is not enabled.
    #[error("Queue {queue} was notified but is not enabled")]
    QueueNotReady {
        /// The queue.
        queue: u16,
    },
}

/// A device could not start with what the driver set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivateError {
    /// A queue that the negotiated features need is not enabled.
    #[error("Queue {queue} is needed by the negotiated features but was not enabled")]
    MissingQueue {
        /// The queue.
        queue: u16,
    },
}
