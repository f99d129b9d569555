//! The memory manager as a whole.
//!
//! [`Base`] is what everything borrows: frames, read sections, slab caches.
//! [`Mm`] stands on it and has what there is once per machine; calls that need
//! several parts are its methods, each in the module of its subject.

mod census;
mod grace;

pub use census::{MmCensus, MmDiscrepancies, MmDiscrepancy};

use core::fmt;
use core::mem::offset_of;

use abi::Pfn;

use crate::buddy::Gfp;
use crate::compaction::Compaction;
use crate::fault::{DeviceSlot, FaultCounters};
use crate::folio::{DeferredSplit, Folio};
use crate::memdesc::{BlockKind, Order};
use crate::memory::{AllocError, Memory};
use crate::migrate::{Migration, Registry};
use crate::objects::{MovableDesc, ZpDesc};
use crate::pagecache::{FileMapping, Files};
use crate::pgtable::{PtDesc, TableState};
use crate::platform::Platform;
use crate::rcu::{Callbacks, DeferQueue, Rcu};
use crate::reclaim::{Lru, Reclaim};
use crate::rmap::{AnonVma, AnonVmaChain};
use crate::slab::{CacheError, KmemCache, SlabOptions, TypeSafeCache};
use crate::space::{AddressSpace, Vma};
use crate::swap::Swap;
use crate::sync::shim::AtomicU32;
use crate::sync::{LockClass, SpinLock};
use crate::xarray::{SlabNodes, XArray};
use crate::zsmalloc::{ZsRegistry, Zspage};

/// What everything else stands on.
#[derive(Debug)]
pub struct Base<P> {
    /// Frames, their words, free memory.
    pub memory: Memory<P>,
    /// Lockless readers.
    pub rcu: Rcu,
    /// What runs after a grace period.
    pub callbacks: Callbacks<Base<P>>,
    /// Slab caches.
    pub caches: Caches,
    /// Page tables that wait for their readers, and counts.
    pub tables: TableState,
    /// A frame of zeros that everybody may map, read-only; never freed.
    pub zero_page: Pfn,
}

/// The slab caches of the memory manager, one per type.
#[derive(Debug)]
pub struct Caches {
    /// Nodes of all XArrays.
    pub xa_node: KmemCache,
    /// [`ZpDesc`]s, type-safe.
    pub zpdesc: TypeSafeCache<ZpDesc>,
    /// [`Zspage`]s, type-safe.
    pub zspage: TypeSafeCache<Zspage>,
    /// [`MovableDesc`]s, type-safe.
    pub movable: TypeSafeCache<MovableDesc>,
    /// [`Folio`]s, type-safe.
    pub folio: TypeSafeCache<Folio>,
    /// [`PtDesc`]s, type-safe.
    pub ptdesc: KmemCache,
    /// [`Vma`]s.
    pub vma: KmemCache,
    /// [`AnonVma`]s, type-safe.
    pub anon_vma: KmemCache,
    /// [`AnonVmaChain`]s.
    pub anon_vma_chain: KmemCache,
    /// [`AddressSpace`]s.
    pub space: KmemCache,
    /// [`FileMapping`]s.
    pub file: KmemCache,
}

impl Caches {
    /// All caches, empty.
    ///
    /// # Errors
    /// An object does not fit a slab: not with the slab's own sizes.
    fn new<P: Platform>(memory: &Memory<P>) -> Result<Self, CacheError> {
        let plain = SlabOptions { per_cpu: true, ..SlabOptions::default() };
        let type_safe = SlabOptions { type_safe: true, ..plain };
        let anon_vma = SlabOptions { ctor: Some(AnonVma::<P>::construct), ..type_safe };
        let vma = SlabOptions { rcu_head: Some(offset_of!(Vma<'static, P>, rcu)), ..plain };
        Ok(Self {
            xa_node: SlabNodes::cache(memory)?,
            zpdesc: TypeSafeCache::new(memory, "zpdesc", plain)?,
            zspage: TypeSafeCache::new(memory, "zspage", plain)?,
            movable: TypeSafeCache::new(memory, "movable", plain)?,
            folio: TypeSafeCache::new(memory, "folio", plain)?,
            ptdesc: KmemCache::of::<PtDesc, P>(memory, "ptdesc", type_safe)?,
            vma: KmemCache::of::<Vma<'static, P>, P>(memory, "vma", vma)?,
            anon_vma: KmemCache::of::<AnonVma<'static, P>, P>(memory, "anon_vma", anon_vma)?,
            anon_vma_chain: KmemCache::of::<AnonVmaChain<'static, P>, P>(
                memory,
                "anon_vma_chain",
                plain,
            )?,
            space: KmemCache::of::<AddressSpace<'static, P>, P>(memory, "space", plain)?,
            file: KmemCache::of::<FileMapping<'static, P>, P>(memory, "file", plain)?,
        })
    }

    /// All of them, for the census.
    pub fn all(&self) -> [&KmemCache; 11] {
        [
            &self.xa_node,
            self.zpdesc.kmem(),
            self.zspage.kmem(),
            self.movable.kmem(),
            self.folio.kmem(),
            &self.ptdesc,
            &self.vma,
            &self.anon_vma,
            &self.anon_vma_chain,
            &self.space,
            &self.file,
        ]
    }
}

/// Why there is no memory manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseError {
    /// A slab cache cannot be made.
    Cache(CacheError),
    /// No page for the zero page.
    OutOfMemory(AllocError),
}

impl fmt::Display for BaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(error) => error.fmt(f),
            Self::OutOfMemory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BaseError {}

impl From<CacheError> for BaseError {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<AllocError> for BaseError {
    fn from(error: AllocError) -> Self {
        Self::OutOfMemory(error)
    }
}

/// A frame of zeros whose word says so.
fn zero_page<P: Platform>(memory: &Memory<P>) -> Result<Pfn, AllocError> {
    let mut frames = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL | Gfp::ZERO)?;
    let typed = memory.retype(&mut frames, BlockKind::Zero);
    debug_assert!(typed.is_ok(), "a frozen block becomes a zero page: {typed:?}");
    Ok(frames.into_raw().0)
}

impl<P: Platform> Base<P> {
    /// What everything stands on, over `memory`.
    ///
    /// # Errors
    /// As [`KmemCache::new`], or there is no page for the zero page.
    pub fn new(memory: Memory<P>) -> Result<Self, BaseError> {
        let caches = Caches::new(&memory)?;
        let zero_page = zero_page(&memory)?;
        let tables = TableState::new();
        let callbacks = Callbacks::new();
        Ok(Self { memory, rcu: Rcu::new(), callbacks, caches, tables, zero_page })
    }
}

impl<P: Platform> Base<P> {
    /// The machine.
    pub const fn platform(&self) -> &P {
        self.memory.platform()
    }

    /// Nodes for an XArray.
    pub fn xa_nodes(&self) -> SlabNodes<'_, P> {
        SlabNodes::new(&self.memory, &self.caches.xa_node, Gfp::KERNEL)
    }
}

/// The memory manager.
pub struct Mm<'m, P: Platform> {
    base: &'m Base<P>,
    /// All spaces by number, for walks over them.
    pub(crate) spaces: XArray<'m, SlabNodes<'m, P>, AddressSpace<'m, P>>,
    /// The next space's number.
    pub(crate) next_id: AtomicU32,
    /// Spaces that wait for a grace period.
    pub(crate) dead_spaces: SpinLock<DeferQueue<AddressSpace<'m, P>>>,
    /// What page faults did.
    pub(crate) faults: FaultCounters,
    /// Who gives pages back that a device has.
    pub(crate) devices: DeviceSlot<'m, P>,
    /// All files.
    pub(crate) files: Files<'m, P>,
    /// Large folios that are mapped in part.
    pub(crate) deferred_split: DeferredSplit,
    /// What keeps memory from running out.
    pub(crate) reclaim: Reclaim<'m>,
    /// Folios in the order in which reclaim looks at them.
    pub(crate) lru: Lru,
    /// What compaction remembers.
    pub(crate) compaction: Compaction,
    /// Who moves pages that are no folios.
    pub(crate) movable_ops: Registry<'m, P>,
    /// Pages that are being moved.
    pub(crate) migration: Migration,
    /// Where anonymous pages go.
    pub(crate) swap: Swap<'m, P>,
    /// Pools of compressed pages and the like.
    pub(crate) zs_pools: ZsRegistry<'m, P>,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// The memory manager over `base`, without a process.
    pub fn new(base: &'m Base<P>) -> Self {
        Self {
            base,
            spaces: XArray::new(&base.rcu, base.xa_nodes()),
            next_id: AtomicU32::new(1),
            dead_spaces: SpinLock::new(LockClass::Rcu, DeferQueue::new()),
            faults: FaultCounters::new(),
            devices: DeviceSlot::new(),
            files: Files::new(),
            deferred_split: DeferredSplit::new(),
            reclaim: Reclaim::new(),
            lru: Lru::new(),
            compaction: Compaction::new(),
            movable_ops: Registry::new(),
            migration: Migration::default(),
            swap: Swap::new(),
            zs_pools: ZsRegistry::new(),
        }
    }

    /// What it stands on.
    pub const fn base(&self) -> &'m Base<P> {
        self.base
    }

    /// The machine.
    pub const fn platform(&self) -> &'m P {
        self.base.memory.platform()
    }

    /// Frames and free memory.
    pub const fn memory(&self) -> &'m Memory<P> {
        &self.base.memory
    }
}

impl<P: Platform> fmt::Debug for Mm<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mm").finish_non_exhaustive()
    }
}
