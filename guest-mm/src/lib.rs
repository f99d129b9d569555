//! The memory manager of aerostat's guest: an executable form of where Linux's mm is heading.
//!
//! `no_std` and without a privileged instruction: it reaches the machine only
//! through [`platform::Platform`], so the same code runs in the guest, in the
//! simulated machine and under model checkers.
#![cfg_attr(not(any(test, loom, feature = "testing")), no_std)]

pub mod addr;
#[cfg(not(loom))]
pub mod balloon;
#[cfg(not(loom))]
pub mod bench;
pub mod buddy;
pub mod census;
#[cfg(not(loom))]
pub mod compaction;
#[cfg(not(loom))]
pub mod console;
#[cfg(not(loom))]
pub mod entropy;
pub mod errno;
#[cfg(not(loom))]
pub mod fault;
pub mod folio;
pub mod gup;
#[cfg(not(loom))]
pub mod hotplug;
pub mod memdesc;
pub mod memory;
#[cfg(not(loom))]
pub mod migrate;
#[cfg(not(loom))]
pub mod mm;
#[cfg(loom)]
pub mod mutant;
#[cfg(not(loom))]
pub mod objects;
#[cfg(not(loom))]
pub mod pagecache;
#[cfg(not(loom))]
pub mod pgtable;
pub mod platform;
pub mod rcu;
#[cfg(not(loom))]
pub mod reclaim;
#[cfg(not(loom))]
pub mod rmap;
#[cfg(not(loom))]
pub mod scenario;
pub mod slab;
pub mod space;
pub mod store;
pub mod swap;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
pub mod xarray;
pub mod zsmalloc;
