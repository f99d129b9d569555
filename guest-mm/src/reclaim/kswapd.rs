//! The reclaim thread: keeps memory between the low and the high watermark, so
//! that allocations need not wait.

use super::scan::RECLAIM_BATCH;
use super::stats::ReclaimEvent;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// Pages that one call frees at most.
const PAGES_PER_POLL: u64 = 8 * RECLAIM_BATCH;

impl<'m, P: Platform> Mm<'m, P> {
    /// Says that memory runs short: the reclaim thread is wanted.
    pub fn wake_kswapd(&self) {
        self.reclaim.kswapd_wanted.store(true, Ordering::Release);
    }

    /// Whether the reclaim thread has something to do.
    pub fn kswapd_is_wanted(&self) -> bool {
        self.reclaim.kswapd_wanted.load(Ordering::Acquire)
    }

    /// A piece of the reclaim thread's work: up to 256 pages. Returns whether
    /// there is more to do at once.
    ///
    /// To be called by whoever runs threads, while [`Self::kswapd_is_wanted`],
    /// with no lock held.
    pub fn kswapd_poll(&self) -> bool {
        if !self.kswapd_is_wanted() {
            return false;
        }
        let high = self.memory().watermarks().high;
        let missing = high.saturating_sub(self.memory().free_pages().get());
        let target = missing.min(PAGES_PER_POLL);
        self.reclaim.count(ReclaimEvent::Kswapd);
        let freed = if missing == 0 { 0 } else { self.shrink_lists(target) + self.shrink_caches() };
        // What cannot be freed now cannot be freed by trying again: whoever needs it wakes us.
        let is_done = missing <= freed || freed == 0;
        if is_done {
            self.reclaim.kswapd_wanted.store(false, Ordering::Release);
        }
        !is_done
    }
}
