//! virtio-mem: a region of guest-physical memory that is plugged and unplugged in blocks.
//!
//! The host says how much it would like plugged ([`MemoryDevice::request`]); the driver
//! chooses the blocks and asks for each change, and [`MemoryDevice`] checks, has
//! [`BlockMemory`] make the memory come and go, and answers.
//!
//! * [`MemRegion`]: where the region lies and how it is cut;
//! * [`BlockMemory`]: what provides the memory, implemented by the VMM and faked by tests;
//! * [`MemCounters`]: what was asked, what was answered, and every broken rule by name.
//!
//! A request is carried out as a whole or not at all, and only if its answer can be written.
//! How a resize stands is [`crate::balloon::operation`]'s affair: the size
//! that is plugged takes the place of the balloon's `actual`.
//!
//! Locks: none. Deliberately absent: NUMA (`ACPI_PXM`), suspended guests
//! (`PERSISTENT_SUSPEND`), more than one region.
//!
//! Design: docs/memory-hotplug.md. Spec: VirtIO 1.2 §5.15.

mod blocks;
mod counters;
mod device;
mod region;
mod request;

pub use counters::MemCounters;
pub use device::{BlockMemory, MemoryDevice, RequestedSizeError};
pub use region::{MemRegion, MemRegionError};

#[cfg(test)]
mod tests;
