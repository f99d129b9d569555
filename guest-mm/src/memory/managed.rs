//! How much memory there is to hand out, and how much of it stays free.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::PageCount;

use super::Memory;
use crate::buddy::Watermarks;
use crate::platform::Platform;

/// [`Watermarks`] that move when memory comes or goes.
///
/// Each is read by itself, without a lock: whoever reads while they move gets
/// thresholds of two sizes of memory, which differ by less than what one call allocates.
#[derive(Debug)]
pub(super) struct AtomicWatermarks {
    min: AtomicU64,
    low: AtomicU64,
    high: AtomicU64,
}

impl AtomicWatermarks {
    pub(super) const fn new(marks: Watermarks) -> Self {
        Self {
            min: AtomicU64::new(marks.min),
            low: AtomicU64::new(marks.low),
            high: AtomicU64::new(marks.high),
        }
    }

    #[inline]
    fn load(&self) -> Watermarks {
        Watermarks {
            min: self.min.load(Ordering::Relaxed),
            low: self.low.load(Ordering::Relaxed),
            high: self.high.load(Ordering::Relaxed),
        }
    }

    #[cfg(not(loom))]
    fn store(&self, marks: Watermarks) {
        self.min.store(marks.min, Ordering::Relaxed);
        self.low.store(marks.low, Ordering::Relaxed);
        self.high.store(marks.high, Ordering::Relaxed);
    }
}

/// A change of what there is to hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg(not(loom))]
pub(crate) enum Managed {
    /// Memory came to life; it is free in a moment.
    More(PageCount),
    /// Memory was taken away; it is not free any more.
    Less(PageCount),
}

impl<P: Platform> Memory<P> {
    /// Pages of RAM that are handed out: all but reserved ranges, the allocator's own
    /// tables, and memory that has not come to life.
    pub fn managed_pages(&self) -> PageCount {
        PageCount::new(self.managed.load(Ordering::Relaxed))
    }

    /// The thresholds below which allocations fail.
    #[inline]
    pub fn watermarks(&self) -> Watermarks {
        self.watermarks.load()
    }

    /// Notes that memory came or went; the watermarks follow.
    #[cfg(not(loom))]
    pub(crate) fn manage(&self, change: Managed) {
        let mut zone = self.zone.lock(&self.platform);
        let now = match change {
            Managed::More(pages) => self.managed_pages().saturating_add(pages),
            Managed::Less(pages) => self.managed_pages().saturating_sub(pages),
        };
        zone.set_managed(now.get());
        self.managed.store(now.get(), Ordering::Relaxed);
        self.watermarks.store(zone.watermarks());
        self.counters.note_available(&zone);
    }
}
