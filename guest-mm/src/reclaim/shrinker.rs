//! Caches that give memory back.

use super::stats::ReclaimEvent;
use crate::mm::Mm;
use crate::platform::Platform;

/// A cache that can give memory back when it is short.
pub trait Shrinker: Sync {
    /// Frees what it can do without, up to `pages` pages; returns how many. Runs
    /// while somebody allocates: allocates nothing, and waits for no lock that
    /// is held while memory is allocated.
    fn shrink(&self, pages: u64) -> u64;
}

/// Queued large folios that are split for one allocation.
const SPLITS_AT_ONCE: u64 = 16;
/// Shrinkers that can be registered.
pub(super) const MAX_SHRINKERS: usize = 4;

/// There are `MAX_SHRINKERS` already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyShrinkers;

impl core::fmt::Display for TooManyShrinkers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "At most {MAX_SHRINKERS} shrinkers can be registered")
    }
}

impl core::error::Error for TooManyShrinkers {}

impl<'m, P: Platform> Mm<'m, P> {
    /// Has `shrinker` asked whenever memory is short.
    ///
    /// # Errors
    /// [`TooManyShrinkers`].
    pub fn register_shrinker(&self, shrinker: &'m dyn Shrinker) -> Result<(), TooManyShrinkers> {
        let mut shrinkers = self.reclaim.shrinkers.lock(self.platform());
        let free = shrinkers.iter_mut().find(|slot| slot.is_none()).ok_or(TooManyShrinkers)?;
        *free = Some(shrinker);
        Ok(())
    }

    /// Asks all caches once: large folios of which a part is not mapped, page tables and objects that wait for readers who
    /// are gone, slabs without an object, sparse pages of zsmalloc, registered shrinkers. Returns pages freed.
    pub(super) fn shrink_caches(&self) -> u64 {
        let before = self.memory().free_pages().get();
        self.run_deferred_split(SPLITS_AT_ONCE);
        self.base().reap_tables(usize::MAX);
        self.base().poll_rcu();
        for cache in self.base().caches.all() {
            cache.shrink(self.memory());
        }
        // Slabs of type-safe caches have only now begun to wait; without readers they need not.
        self.base().poll_rcu();
        self.zs_compact();
        let freed = self.memory().free_pages().get().saturating_sub(before);
        // Called without the list's lock, which is a spinning one.
        let shrinkers = *self.reclaim.shrinkers.lock(self.platform());
        let by_shrinkers: u64 =
            shrinkers.iter().flatten().map(|shrinker| shrinker.shrink(u64::MAX)).sum();
        self.reclaim.add(ReclaimEvent::Shrunk, freed + by_shrinkers);
        freed + by_shrinkers
    }
}
