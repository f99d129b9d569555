//! [`AddressSpace`]: what a process is to the memory manager.

use core::fmt;

use abi::{PageCount, Pfn};

use super::gaps::GapCache;
use super::vma::Vma;
use super::vma_lock::LockSeq;
use crate::mm::Base;
use crate::pgtable::Tables;
use crate::platform::{AtomicCpuSet, Platform};
use crate::rcu::{Deferrable, RcuHead};
use crate::sync::shim::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{LockClass, RwLock};
use crate::xarray::{SlabNodes, XArray};

/// VMAs that a space may have (`vm.max_map_count`).
pub const MAX_MAP_COUNT: u32 = 65_530;

/// A process as memory sees it.
pub struct AddressSpace<'m, P: Platform> {
    /// What lies below.
    pub(crate) base: &'m Base<P>,
    /// Tells spaces apart in output; never reused.
    pub(crate) id: u32,
    /// The mmap lock: read for looking VMAs up and faulting, write for changing them.
    pub(super) lock: RwLock<()>,
    /// Which VMAs are locked by the writer.
    pub(super) seq: LockSeq,
    /// VMAs, each at its last page; looked up without a lock under a read section.
    pub(super) vmas: XArray<'m, SlabNodes<'m, P>, Vma<'m, P>>,
    /// VMAs in the tree. Changes with the lock held for writing.
    pub(super) map_count: AtomicU32,
    /// Pages that the VMAs span. Changes with the lock held for writing.
    pub(super) total_pages: AtomicU64,
    /// Most pages that the VMAs may span (`RLIMIT_AS`).
    pub(super) max_pages: AtomicU64,
    /// Where the search for room starts. Changes with the lock held for writing.
    pub(super) gaps: GapCache,
    /// The root page table.
    pub(crate) root: Pfn,
    /// CPUs that have the root loaded: whom a flush must reach.
    pub(crate) cpus: AtomicCpuSet,
    /// What it has mapped.
    pub(crate) rss: Rss,
    /// Chosen by the OOM killer or exiting: faults end in an error.
    pub(crate) dead: AtomicBool,
    /// Who keeps the structure and its root: its owner, and those who look at it from outside.
    pub(super) grabs: AtomicU32,
    /// Frees it after a grace period.
    pub(super) rcu: RcuHead,
}

/// Pages that a space has in memory, in swap and in page tables. A PMD leaf counts 512.
#[derive(Debug, Default)]
pub(crate) struct Rss {
    pub(crate) anon: AtomicU64,
    pub(crate) file: AtomicU64,
    pub(crate) swap: AtomicU64,
    pub(crate) tables: AtomicU64,
}

// SAFETY: the head is the object's own, and used by the queue alone.
unsafe impl<P: Platform> Deferrable for AddressSpace<'_, P> {
    fn rcu_head(&self) -> &RcuHead {
        &self.rcu
    }
}

impl<'m, P: Platform> AddressSpace<'m, P> {
    /// A space without VMAs over `root`, with one grab.
    pub(super) fn new(base: &'m Base<P>, id: u32, root: Pfn) -> Self {
        Self {
            base,
            id,
            lock: RwLock::new(LockClass::Mmap, ()),
            seq: LockSeq::new(),
            vmas: XArray::new(&base.rcu, base.xa_nodes()),
            map_count: AtomicU32::new(0),
            total_pages: AtomicU64::new(0),
            max_pages: AtomicU64::new(u64::MAX),
            gaps: GapCache::new(),
            root,
            cpus: AtomicCpuSet::new(),
            rss: Rss::default(),
            dead: AtomicBool::new(false),
            grabs: AtomicU32::new(1),
            rcu: RcuHead::new(),
        }
    }

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

    /// The CPUs that have its root loaded. Who loads it puts its CPU in first.
    pub const fn cpu_set(&self) -> &AtomicCpuSet {
        &self.cpus
    }

    /// The machine.
    pub const fn platform(&self) -> &'m P {
        self.base.memory.platform()
    }

    /// VMAs that it has.
    pub fn map_count(&self) -> u32 {
        self.map_count.load(Ordering::Relaxed)
    }

    /// Pages that its VMAs span.
    pub fn total_pages(&self) -> PageCount {
        PageCount::new(self.total_pages.load(Ordering::Relaxed))
    }

    /// Lets the VMAs span at most `pages` (`RLIMIT_AS`); what is mapped already stays.
    pub fn limit_pages(&self, pages: PageCount) {
        self.max_pages.store(pages.get(), Ordering::Relaxed);
    }

    /// Whether it was chosen by the OOM killer or is being torn down.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

impl<P: Platform> fmt::Debug for AddressSpace<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("id", &self.id)
            .field("map_count", &self.map_count())
            .field("total_pages", &self.total_pages())
            .finish_non_exhaustive()
    }
}
