//! Wire layouts shared by host and guest, and the page arithmetic both use.
//!
//! Everything here is a fact of a specification (virtio 1.2, PVH, the agent
//! protocol), so constants keep the specification's spelling. No behaviour
//! lives here except the arithmetic of [`page`].
#![no_std]

pub mod balloon;
pub mod block;
pub mod console;
pub mod mem;
pub mod mmio;
pub mod page;
pub mod platform;
pub mod trap_stress;
pub mod virtio;

pub use page::{PAGE_SHIFT, PAGE_SIZE, PageCount, Pfn, PfnRange};
