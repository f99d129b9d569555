//! All of a guest's memory: words, zone, per-CPU lists, and who owns a frame.
//!
//! Frames are handed out *frozen*: without a reference count, owned by a
//! handle that is not `Clone` ([`FrozenFrames`]). What the owner makes of them
//! is in their word. Frames of a balloon go on as [`OfflineBlock`]s.
//!
//! Lock order: a CPU's lists, then the zone ([`crate::sync::lock_order`]).

mod alloc;
mod contig;
mod frames;
#[cfg(not(loom))]
mod free_scan;
mod init;
mod isolate;
mod managed;
mod no_alloc;
mod offline;
mod pcp;
#[cfg(not(loom))]
mod relocate;
mod transit;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::{PageCount, Pfn};

pub use alloc::{AllocError, FreeError};
pub use contig::{ContigFrames, IsolatedRange, PageblockError, Pass};
pub use frames::FrozenFrames;
#[cfg(not(loom))]
pub(crate) use free_scan::FreeWant;
pub use init::InitError;
pub use isolate::{IsolateError, IsolatedBlock};
pub use no_alloc::NoAlloc;
pub use offline::{ClaimError, OfflineBlock};
pub use pcp::PCP_ORDERS;
pub use transit::TransitFrames;

use crate::buddy::{BuddyCounters, FrameMap, Zone};
#[cfg(not(loom))]
use crate::hotplug::TurnFlag;
use crate::memdesc::{Order, WordTable};
use crate::platform::{MAX_CPUS, Platform};
use crate::sync::SpinLock;
use alloc::AtomicCounters;
use managed::AtomicWatermarks;
#[cfg(not(loom))]
pub(crate) use managed::Managed;
pub(crate) use pcp::CpuLists;

/// The memory of one machine.
#[derive(Debug)]
pub struct Memory<P> {
    platform: P,
    /// What [`Self::new`] took.
    init_ns: u64,
    map: FrameMap,
    zone: SpinLock<Zone>,
    cpus: [SpinLock<CpuLists>; MAX_CPUS],
    counters: AtomicCounters,
    /// Pages that were free at start or came to life since, less those taken away.
    managed: AtomicU64,
    /// Those of `managed`.
    watermarks: AtomicWatermarks,
    /// Who adds or removes blocks.
    #[cfg(not(loom))]
    hotplug: TurnFlag,
    next_cache_id: AtomicU32,
    /// Depth of the sections of each CPU in which nothing may be allocated.
    no_alloc: [AtomicU32; MAX_CPUS],
}

/// What the allocator has done since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryCounters {
    /// Splits, merges, fallbacks.
    pub buddy: BuddyCounters,
    /// Allocations that failed, after draining.
    pub failed_allocations: u64,
    /// Frees that were refused: double, foreign, of the wrong order. Should stay 0.
    pub refused_frees: u64,
    /// Times that all per-CPU lists were emptied for a failing allocation.
    pub drains: u64,
}

impl<P: Platform> Memory<P> {
    /// The machine.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Nanoseconds that the set-up took: words, pageblocks, free lists.
    pub const fn init_ns(&self) -> u64 {
        self.init_ns
    }

    /// The memory descriptors.
    pub const fn words(&self) -> &WordTable {
        &self.map.words
    }

    pub(crate) const fn map(&self) -> &FrameMap {
        &self.map
    }

    #[cfg(not(loom))]
    pub(crate) const fn hotplug_turn(&self) -> &TurnFlag {
        &self.hotplug
    }

    pub(crate) const fn zone(&self) -> &SpinLock<Zone> {
        &self.zone
    }

    pub(crate) const fn cpus(&self) -> &[SpinLock<CpuLists>; MAX_CPUS] {
        &self.cpus
    }

    /// A number that no other slab cache of this memory has.
    pub(crate) fn new_cache_id(&self) -> u32 {
        self.next_cache_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Free pages, per-CPU lists included. Exact only if nobody allocates.
    pub fn free_pages(&self) -> PageCount {
        let listed: u64 = self.cpus.iter().map(|cpu| cpu.lock(&self.platform).pages()).sum();
        let zone = self.zone.lock(&self.platform).free_total();
        PageCount::new(zone + listed)
    }

    /// Whether fewer pages than the *low* watermark seem to be free. A hint: per-CPU
    /// lists do not count.
    pub fn is_below_low(&self) -> bool {
        self.counters.available() < self.watermarks().low
    }

    /// What the allocator has done since start.
    pub fn counters(&self) -> MemoryCounters {
        let buddy = self.zone.lock(&self.platform).counters();
        self.counters.snapshot(buddy)
    }

    /// Calls `visit` with every free block of the zone: first frame, order, and
    /// whether the host holds no memory for it. Empties the per-CPU lists
    /// first; holds the zone lock throughout, so `visit` must not allocate.
    pub fn for_each_free(&self, visit: &mut dyn FnMut(Pfn, Order, bool)) {
        self.drain();
        let zone = self.zone.lock(&self.platform);
        let walk = zone.for_each(&self.map, visit);
        debug_assert!(walk.is_ok(), "free list corrupt");
    }
}

#[cfg(test)]
mod tests;
