//! What an allocation does that finds no memory.

use super::scan::RECLAIM_BATCH;
use super::stats::ReclaimEvent;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{AllocError, FrozenFrames};
use crate::migrate::MigrateMode;
use crate::mm::Mm;
use crate::platform::Platform;

/// Reclaims that free something and still leave no block, before it is called out of memory.
const MAX_ROUNDS: u32 = 16;
/// Allocations below the low watermark that do not reclaim after one that could not.
const SKIPPED_AFTER_FAILURE: u32 = 64;
/// Orders above are not worth much work (Linux `PAGE_ALLOC_COSTLY_ORDER`).
const COSTLY_ORDER: u32 = 3;

/// Whether an allocation may do work to get memory.
const fn may_reclaim(gfp: Gfp) -> bool {
    !gfp.intersects(Gfp::HIGH.union(Gfp::OPTIONAL).union(Gfp::MEMALLOC))
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Allocates a block, and reclaims for it if there is none: the way of all
    /// allocations that may wait a little.
    ///
    /// The caller holds no lock inside the folio lock's class. Who cannot wait
    /// (`HIGH`), can do without (`OPTIONAL`) or frees memory himself (`MEMALLOC`)
    /// only wakes the reclaim thread. Nobody is killed for it: [`Self::make_room`]
    /// does that, where no lock is held.
    ///
    /// # Errors
    /// [`AllocError`]: nothing can be reclaimed either.
    pub fn alloc_frames(&self, order: Order, gfp: Gfp) -> Result<FrozenFrames, AllocError> {
        if self.memory().is_below_low() {
            self.wake_kswapd();
            if gfp.contains(Gfp::MOVABLE) && may_reclaim(gfp) {
                self.balance();
            }
        }
        let taken = self.memory().alloc_frozen(order, gfp);
        match taken {
            Err(error) if may_reclaim(gfp) => self.reclaim_for(order, gfp).ok_or(error),
            Err(error) => self.compact_for(order, gfp).ok_or(error),
            taken => taken,
        }
    }

    /// Compacts for an allocation that does not reclaim, as far as it says so; if that
    /// is not at all, only tells the compaction thread.
    fn compact_for(&self, order: Order, gfp: Gfp) -> Option<FrozenFrames> {
        let modes = [
            (Gfp::COMPACT.union(Gfp::COMPACT_SYNC), MigrateMode::Async),
            (Gfp::COMPACT_SYNC, MigrateMode::SyncLight),
        ];
        let mut allowed = modes.into_iter().filter(|(flags, _)| gfp.intersects(*flags));
        let block = allowed.find_map(|(_, mode)| self.alloc_by_compaction(order, gfp, mode).ok());
        if block.is_none() {
            self.wake_kcompactd(order);
        }
        block
    }

    /// Has a program's page pay for what it takes from below the low watermark:
    /// the kernel's own allocations, which cannot reclaim where they are made,
    /// find something between *min* and *low*.
    fn balance(&self) {
        // Where nothing can be had, looking at all lists for each page would take for ever.
        if self.reclaim.skip_balance.take_one() {
            return;
        }
        if self.direct_reclaim(RECLAIM_BATCH) == 0 {
            self.reclaim.skip_balance.set(SKIPPED_AFTER_FAILURE);
        }
    }

    /// Reclaims and compacts until the block is there, nothing comes free any more, or
    /// it has been tried often enough.
    ///
    /// A large block is seldom what reclaim makes: where enough is free, but scattered,
    /// pages are moved before any is taken from a program (Linux does the same).
    fn reclaim_for(&self, order: Order, gfp: Gfp) -> Option<FrozenFrames> {
        let is_costly = order.get() > COSTLY_ORDER;
        if is_costly && let Ok(frames) = self.alloc_by_compaction(order, gfp, MigrateMode::Async) {
            return Some(frames);
        }
        let rounds = if is_costly { 1 } else { MAX_ROUNDS };
        for _ in 0..rounds {
            let freed = self.direct_reclaim(RECLAIM_BATCH.max(order.pages().get()));
            if freed > 0
                && let Ok(frames) = self.memory().alloc_frozen(order, gfp)
            {
                return Some(frames);
            }
            let compacted = self.alloc_by_compaction(order, gfp, MigrateMode::SyncLight);
            if let Ok(frames) = compacted {
                return Some(frames);
            }
            if freed == 0 {
                break;
            }
        }
        None
    }

    /// Frees about `target` pages from lists and caches, for an allocation.
    pub(crate) fn direct_reclaim(&self, target: u64) -> u64 {
        self.reclaim.count(ReclaimEvent::Direct);
        let mut freed = self.shrink_lists(target);
        if freed < target {
            freed += self.shrink_caches();
        }
        if freed == 0 {
            self.reclaim.count(ReclaimEvent::DirectFailed);
        }
        freed
    }
}
