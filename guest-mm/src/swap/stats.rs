//! What swap has done.

use crate::sync::shim::{AtomicU64, Ordering};

/// Counters, by any CPU.
#[derive(Debug)]
pub(crate) struct SwapCounters {
    counts: [AtomicU64; SwapEvent::COUNT],
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SwapEvent {
    Out,
    In,
    CacheHit,
    Full,
    WriteError,
    ReadError,
    BadSlot,
}

impl SwapEvent {
    const COUNT: usize = 7;
}

/// What swap has done since start, and how full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwapStats {
    /// Slots of the device that is on.
    pub slots: u32,
    /// Slots that nobody uses.
    pub free_slots: u32,
    /// Slots that the device says cannot be used.
    pub bad_slots: u32,
    /// Pages written to a device.
    pub pages_out: u64,
    /// Pages read from one.
    pub pages_in: u64,
    /// Swap-ins that found the page in the cache.
    pub cache_hits: u64,
    /// Times there was no free slot.
    pub full: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Leaves that named a slot that does not exist, or that nobody uses. Should stay 0 but for races.
    pub bad_slots_named: u64,
}

impl SwapCounters {
    pub(super) const fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; SwapEvent::COUNT] }
    }

    pub(super) fn count(&self, event: SwapEvent) {
        self.counts[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self, event: SwapEvent) -> u64 {
        self.counts[event as usize].load(Ordering::Relaxed)
    }

    pub(super) fn snapshot(&self) -> SwapStats {
        SwapStats {
            pages_out: self.get(SwapEvent::Out),
            pages_in: self.get(SwapEvent::In),
            cache_hits: self.get(SwapEvent::CacheHit),
            full: self.get(SwapEvent::Full),
            write_errors: self.get(SwapEvent::WriteError),
            read_errors: self.get(SwapEvent::ReadError),
            bad_slots_named: self.get(SwapEvent::BadSlot),
            ..SwapStats::default()
        }
    }
}
