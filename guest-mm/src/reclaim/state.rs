//! What reclaim keeps.

use core::fmt;

use super::oom::OomNotifier;
use super::shrinker::{MAX_SHRINKERS, Shrinker};
use super::stats::{ReclaimCounters, ReclaimEvent, ReclaimStats};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{LockClass, SpinLock};

/// Reclaim's part of a manager.
pub(crate) struct Reclaim<'m> {
    pub(super) kswapd_wanted: AtomicBool,
    /// Allocations that shall not reclaim before they have to.
    pub(super) skip_balance: Countdown,
    pub(super) shrinkers: SpinLock<[Option<&'m dyn Shrinker>; MAX_SHRINKERS]>,
    pub(super) notifier: SpinLock<Option<&'m dyn OomNotifier>>,
    /// Somebody looks for a process to kill.
    pub(super) is_killing: AtomicBool,
    counters: ReclaimCounters,
}

/// A number that many count down, and that ends at 0.
pub(super) struct Countdown(AtomicU32);

impl Countdown {
    /// Counts from `count` again.
    pub(super) fn set(&self, count: u32) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// Counts one; `false` at 0.
    pub(super) fn take_one(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
    }
}

impl Reclaim<'_> {
    pub(crate) const fn new() -> Self {
        Self {
            kswapd_wanted: AtomicBool::new(false),
            skip_balance: Countdown(AtomicU32::new(0)),
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A load and a subtraction apart once let two CPUs take the last one, and the count wrapped:
    /// nobody reclaimed below the low watermark for the next 2^32 allocations.
    #[test]
    fn a_countdown_that_many_count_down_ends_at_nought() {
        for _ in 0..200 {
            let countdown = Countdown(AtomicU32::new(0));
            countdown.set(64);
            let count = || (0..64).filter(|_| countdown.take_one()).count();
            let taken = std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(count));
                threads.map(|thread| thread.join().unwrap()).iter().sum::<usize>()
            });
            assert_eq!((taken, countdown.take_one()), (64, false));
        }
    }
}
