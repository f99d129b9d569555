//! What reclaim has done.

use crate::sync::shim::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ReclaimEvent {
    Scanned,
    Activated,
    Deactivated,
    AnonFreed,
    SwapFreed,
    FileFreed,
    Pinned,
    Rewritten,
    Stuck,
    Split,
    Direct,
    DirectFailed,
    Kswapd,
    Shrunk,
    Notified,
    NotifiedPages,
    Killed,
    Reaped,
    NobodyToKill,
}

impl ReclaimEvent {
    const COUNT: usize = 19;
}

/// Counters, by any CPU.
#[derive(Debug)]
pub(crate) struct ReclaimCounters([AtomicU64; ReclaimEvent::COUNT]);

impl ReclaimCounters {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ReclaimEvent::COUNT])
    }

    pub(super) fn add(&self, event: ReclaimEvent, count: u64) {
        self.0[event as usize].fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self, event: ReclaimEvent) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }

    pub(super) fn snapshot(&self) -> ReclaimStats {
        ReclaimStats {
            scanned: self.get(ReclaimEvent::Scanned),
            activated: self.get(ReclaimEvent::Activated),
            deactivated: self.get(ReclaimEvent::Deactivated),
            anon_freed: self.get(ReclaimEvent::AnonFreed),
            swap_freed: self.get(ReclaimEvent::SwapFreed),
            file_freed: self.get(ReclaimEvent::FileFreed),
            pinned: self.get(ReclaimEvent::Pinned),
            rewritten: self.get(ReclaimEvent::Rewritten),
            stuck: self.get(ReclaimEvent::Stuck),
            split: self.get(ReclaimEvent::Split),
            direct_reclaims: self.get(ReclaimEvent::Direct),
            direct_failures: self.get(ReclaimEvent::DirectFailed),
            kswapd_runs: self.get(ReclaimEvent::Kswapd),
            shrunk_pages: self.get(ReclaimEvent::Shrunk),
            notifications: self.get(ReclaimEvent::Notified),
            notified_pages: self.get(ReclaimEvent::NotifiedPages),
            killed: self.get(ReclaimEvent::Killed),
            reaped_pages: self.get(ReclaimEvent::Reaped),
            nobody_to_kill: self.get(ReclaimEvent::NobodyToKill),
        }
    }
}

/// What reclaim has done since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReclaimStats {
    /// Folios looked at.
    pub scanned: u64,
    /// Folios found in use, or not to be had, and made active.
    pub activated: u64,
    /// Active folios made inactive.
    pub deactivated: u64,
    /// Anonymous folios freed without swap: given up by MADV_FREE, or nobody's any more.
    pub anon_freed: u64,
    /// Folios freed whose contents are in swap.
    pub swap_freed: u64,
    /// Folios of the page cache freed.
    pub file_freed: u64,
    /// Times a pinned folio was left alone.
    pub pinned: u64,
    /// Folios that were written after MADV_FREE.
    pub rewritten: u64,
    /// Folios that kept a leaf for another reason: locked in memory, say.
    pub stuck: u64,
    /// Large folios that were split to be reclaimed page by page.
    pub split: u64,
    /// Allocations that reclaimed by themselves.
    pub direct_reclaims: u64,
    /// Those that found nothing.
    pub direct_failures: u64,
    /// Runs of the reclaim thread.
    pub kswapd_runs: u64,
    /// Pages that caches gave back.
    pub shrunk_pages: u64,
    /// Calls of the out-of-memory notifier.
    pub notifications: u64,
    /// Pages that it gave.
    pub notified_pages: u64,
    /// Processes killed.
    pub killed: u64,
    /// Pages taken from them before they ended by themselves.
    pub reaped_pages: u64,
    /// Times there was nobody to kill.
    pub nobody_to_kill: u64,
}
