//! Address spaces: VMAs, page tables, and the calls that change them.
//!
//! An [`AddressSpace`] is Linux's `mm_struct`. Lock order: the space's lock,
//! then a VMA's, then what maps and page tables need
//! ([`crate::sync::lock_order`]).

#![allow(dead_code, reason = "until its calls have landed")]

mod vma;

use core::sync::atomic::{AtomicBool, AtomicU64};

use abi::Pfn;

pub use vma::{VmFlags, Vma};

use crate::mm::Base;
use crate::pgtable::Tables;
use crate::platform::{AtomicCpuSet, Platform};
use crate::sync::RwLock;
use crate::xarray::{SlabNodes, XArray};

/// A process as memory sees it.
pub struct AddressSpace<'m, P: Platform> {
    /// What lies below.
    pub(crate) base: &'m Base<P>,
    /// Tells spaces apart in output; never reused.
    pub(crate) id: u32,
    /// The mmap lock: read for looking VMAs up and faulting, write for changing them.
    pub(crate) lock: RwLock<SpaceState>,
    /// VMAs by page number, each over its whole range; looked up without a lock under a read section.
    pub(crate) vmas: XArray<'m, SlabNodes<'m, P>, Vma<'m, P>>,
    /// The root page table.
    pub(crate) root: Pfn,
    /// CPUs that have the root loaded: whom a flush must reach.
    pub(crate) cpus: AtomicCpuSet,
    /// What it has mapped.
    pub(crate) rss: Rss,
    /// Chosen by the OOM killer or exiting: faults end in an error.
    pub(crate) dead: AtomicBool,
}

/// What the mmap lock guards beside the tree.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    /// VMAs in the tree.
    pub(crate) map_count: u32,
    /// Pages that the VMAs span.
    pub(crate) total_pages: u64,
}

/// Pages that a space has in memory, in swap and in page tables. A PMD leaf counts 512.
#[derive(Debug, Default)]
pub(crate) struct Rss {
    pub(crate) anon: AtomicU64,
    pub(crate) file: AtomicU64,
    pub(crate) swap: AtomicU64,
    pub(crate) tables: AtomicU64,
}

impl<P: Platform> AddressSpace<'_, P> {
    /// Its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Its root page table.
    pub const fn root(&self) -> Pfn {
        self.root
    }

    /// Its page tables.
    pub fn tables(&self) -> Tables<'_, P> {
        Tables::new(self.base, self.root, &self.cpus, &self.rss.tables)
    }
}
