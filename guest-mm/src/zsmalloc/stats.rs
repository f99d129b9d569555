//! What a pool has and has done.

use crate::sync::shim::{AtomicU64, Ordering};

/// Counters, by any CPU.
#[derive(Debug, Default)]
pub(super) struct Counters {
    counts: [AtomicU64; ZsEvent::COUNT],
    /// Pages of zspages.
    pub(super) pages: AtomicU64,
    pub(super) zspages: AtomicU64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ZsEvent {
    Allocated,
    Freed,
    FailedAllocation,
    Refused,
    PageMigrated,
    DeferredPage,
    Compacted,
}

impl ZsEvent {
    const COUNT: usize = 7;
}

/// What a pool has and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZsStats {
    /// Objects in use.
    pub objects: u64,
    /// Zspages.
    pub zspages: u64,
    /// Pages of zspages.
    pub pages: u64,
    /// Pages of the pool itself: its lists, its table of handles.
    pub own_pages: u64,
    /// Objects allocated since the pool was made.
    pub allocated: u64,
    /// Objects freed.
    pub freed: u64,
    /// Allocations for which there was no memory.
    pub failed_allocations: u64,
    /// Calls with a handle that is no object's, or of a senseless length. Should stay 0.
    pub refused: u64,
    /// Pages that changed frames.
    pub pages_migrated: u64,
    /// Pages whose freeing was left to migration, which had them.
    pub pages_deferred: u64,
    /// Objects that compaction moved.
    pub objects_compacted: u64,
}

impl Counters {
    pub(super) fn count(&self, event: ZsEvent) {
        self.add(event, 1);
    }

    pub(super) fn add(&self, event: ZsEvent, count: u64) {
        self.counts[event as usize].fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self, event: ZsEvent) -> u64 {
        self.counts[event as usize].load(Ordering::Relaxed)
    }

    pub(super) fn snapshot(&self) -> ZsStats {
        let (allocated, freed) = (self.get(ZsEvent::Allocated), self.get(ZsEvent::Freed));
        ZsStats {
            objects: allocated.saturating_sub(freed),
            zspages: self.zspages.load(Ordering::Relaxed),
            pages: self.pages.load(Ordering::Relaxed),
            own_pages: 0,
            allocated,
            freed,
            failed_allocations: self.get(ZsEvent::FailedAllocation),
            refused: self.get(ZsEvent::Refused),
            pages_migrated: self.get(ZsEvent::PageMigrated),
            pages_deferred: self.get(ZsEvent::DeferredPage),
            objects_compacted: self.get(ZsEvent::Compacted),
        }
    }
}
