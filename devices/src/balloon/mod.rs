//! The traditional memory balloon, virtio device 5.
//!
//! Inflate: [`Balloon`] gathers the frame numbers of every available buffer
//! into one window, drops repetitions, releases maximal runs of frames through
//! [`crate::ram::GuestRam`], and only then returns the buffers. Deflate: no
//! system call at all.
//!
//! * [`queues`]: which virtqueue has which index, for all features;
//! * [`ReleaseJob`]: a window's release as a value, to run without the device's lock;
//! * [`operation`]: how a resize operation stands;
//! * [`BalloonCounters`]: what was inflated, what was released, and every broken rule by name;
//!
//! Locks: none of its own but the release gate (device, then gate).
//! Deliberately absent: clocks, threads, system calls, and for now the
//! statistics, hinting and reporting queues.
//!
//! Design: `docs/balloon-device.md`. Spec: VirtIO 1.2 §5.5.

mod config;
mod counters;
mod deflate;
mod device;
mod histogram;
mod inflate;
pub mod operation;
mod page_set;
mod pfns;
pub mod queues;
mod release;

pub use counters::{BalloonCounters, QueueCounters};
pub use device::{Balloon, BalloonOptions, ReleaseMode, TargetError};
pub use histogram::Histogram;
pub use release::{ReleaseDone, ReleaseJob};

#[cfg(test)]
mod tests;
