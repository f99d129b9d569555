//! What reclaim keeps.

use core::fmt;

use super::oom::OomNotifier;
use super::shrinker::{MAX_SHRINKERS, Shrinker};
use super::stats::{ReclaimCounters, ReclaimEvent, ReclaimStats};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::{AtomicBool, AtomicU32};
use crate::sync::{LockClass, SpinLock};

/// Reclaim's part of a manager.
pub(crate) struct Reclaim<'m> {
    pub(super) kswapd_wanted: AtomicBool,
    /// Allocations that shall not reclaim before they have to. Approximate.
    pub(super) skip_balance: AtomicU32,
    pub(super) shrinkers: SpinLock<[Option<&'m dyn Shrinker>; MAX_SHRINKERS]>,
    pub(super) notifier: SpinLock<Option<&'m dyn OomNotifier>>,
    /// Somebody looks for a process to kill.
    pub(super) is_killing: AtomicBool,
    counters: ReclaimCounters,
}

impl Reclaim<'_> {
    pub(crate) const fn new() -> Self {
        Self {
            kswapd_wanted: AtomicBool::new(false),
            skip_balance: AtomicU32::new(0),
            shrinkers: SpinLock::new(LockClass::Lru, [None; MAX_SHRINKERS]),
            notifier: SpinLock::new(LockClass::Lru, None),
            is_killing: AtomicBool::new(false),
            counters: ReclaimCounters::new(),
        }
    }

    pub(super) fn count(&self, event: ReclaimEvent) {
        self.add(event, 1);
    }

    pub(super) fn add(&self, event: ReclaimEvent, count: u64) {
        self.counters.add(event, count);
    }
}

impl<P: Platform> Mm<'_, P> {
    /// What reclaim has done since start.
    pub fn reclaim_stats(&self) -> ReclaimStats {
        self.reclaim.counters.snapshot()
    }
}

impl fmt::Debug for Reclaim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaim").field("counters", &self.counters).finish_non_exhaustive()
    }
}
