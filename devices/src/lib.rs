//! Device models and the virtio-mmio transport.
//!
//! A device is a synchronous state machine over queues and guest RAM. Nothing
//! here knows of KVM, sockets, threads or the host's clock, so the simulator, the fuzz
//! targets and the VMM drive identical code.
#![deny(clippy::indexing_slicing)]

pub mod balloon;
pub mod block;
pub mod clock;
pub mod console;
mod counters;
pub mod entropy;
pub mod interrupt;
mod life;
pub mod mem;
pub mod ram;
pub mod rate_limiter;
pub mod ring;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod virtio;
