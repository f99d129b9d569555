//! Address spaces: VMAs, page tables, and the calls that change them.
//!
//! An [`AddressSpace`] is Linux's `mm_struct`. Lock order: the space's lock,
//! then a VMA's, then what maps and page tables need
//! ([`crate::sync::lock_order`]). Who holds the space's lock for writing may
//! change any VMA after [`vma_lock::VmaLock::start_write`]; who only wants to
//! fault takes one VMA's lock ([`AddressSpace::vma_read`]). docs/address-space.md
//! tells the whole.

#[cfg(not(loom))]
mod age;
#[cfg(not(loom))]
mod census;
#[cfg(not(loom))]
mod fork;
#[cfg(not(loom))]
mod gaps;
#[cfg(not(loom))]
mod lifetime;
#[cfg(not(loom))]
mod lookup;
#[cfg(not(loom))]
mod madvise;
#[cfg(not(loom))]
mod mmap;
#[cfg(not(loom))]
mod mprotect;
#[cfg(not(loom))]
mod mremap;
#[cfg(not(loom))]
mod munmap;
#[cfg(not(loom))]
mod object;
#[cfg(not(loom))]
mod removal;
#[cfg(not(loom))]
mod split;
#[cfg(not(loom))]
mod vma;
pub mod vma_lock;

#[cfg(not(loom))]
pub use {
    census::SpaceDiscrepancy,
    lifetime::{SpaceGrab, SpaceRef},
    lookup::{SpaceReadGuard, SpaceWriteGuard, VmaGuard, Vmas},
    madvise::Advice,
    mmap::{MapFlags, MapSource, MmapArgs},
    mremap::{RemapArgs, RemapFlags},
    structure::{AddressSpace, MAX_MAP_COUNT},
    vma::{VmFlags, Vma},
};

#[cfg(not(loom))]
mod structure;

#[cfg(not(loom))]
pub(crate) use structure::Rss;

#[cfg(all(test, not(loom)))]
mod tests;
