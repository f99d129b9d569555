//! The driver's side of virtio: discovery, negotiation over virtio-mmio and
//! split virtqueues.
//!
//! * [`discovery`] finds device windows on the kernel command line;
//! * [`MmioDevice`] negotiates with one device and sets its queues up;
//! * [`SplitQueue`] is one virtqueue with several buffers outstanding.
//!
//! Everything a device supplies is checked: identity, sizes, configuration
//! values and each used element. A device that breaks the rules costs its queue
//! ([`QueueError`] marks it broken), never a wild access.
//!
//! Deliberately absent: legacy (version 1) devices, packed rings, indirect
//! descriptors, event index, chains of more than one descriptor.

mod bus;
mod device;
pub mod discovery;
mod dma;
mod queue;
mod ring;

#[cfg(test)]
#[cfg(not(loom))]
mod hostile;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod testing;

pub use bus::MmioBus;
pub use device::{InterruptStatus, MmioDevice, ProbeError, SetupError};
pub use dma::{DmaMemory, DmaPage, DmaPages, DmaSlice, PAGE_BYTES};
pub use queue::{Access, Buffer, Completion, QueueError, SplitQueue};
pub use ring::{MAX_RING_ENTRIES, RingMemory};
