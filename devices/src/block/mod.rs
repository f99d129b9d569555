//! The block device, virtio device 2.
//!
//! The device reads and checks requests, hands them out in batches, and answers
//! the driver when they have been carried out. It does no input or output
//! itself: an [`IoJob`] does, over a [`BlockBackend`], straight between the
//! backend and guest memory, on whatever thread the owner likes.
//!
//! * [`Block`]: queue, configuration space, answers;
//! * [`IoJob`] → [`IoDone`]: a batch as a value, to run without the device's lock;
//! * [`BlockBackend`]: where the sectors are;
//! * [`BlockCounters`], [`BlockFaults`]: what happened, and every broken rule by name.
//!
//! Locks: none of its own but the life gate (device, then gate).
//! Deliberately absent: files, threads, several queues, secure erase, zones, lifetime.
//!
//! Design: `docs/block.md`. Spec: VirtIO 1.2 §5.2.

mod backend;
mod config;
mod counters;
mod device;
mod job;
mod request;

pub use backend::{BackendError, BackendProperties, BlockBackend, DiskRange, RangeFault};
pub use counters::{BlockCounters, BlockFaults};
pub use device::{BackendRefused, Block};
pub use job::{IoDone, IoJob};

#[cfg(test)]
mod tests;
