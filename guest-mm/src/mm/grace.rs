//! What waits for a grace period, as a whole.

use core::ptr::NonNull;

use super::Base;
use crate::platform::Platform;
use crate::rcu::{Callback, RcuHead};

/// Deferred objects of one cache that one poll frees at most.
const REAPED_AT_ONCE: usize = 64;

impl<P: Platform> Base<P> {
    /// Runs `callback` with `head` after a grace period (Linux's `call_rcu`).
    ///
    /// `bytes`: the memory that waits, for the statistics. Never waits, never
    /// fails, may be called from a trap handler.
    ///
    /// # Safety
    /// As for [`Callbacks::call`](crate::rcu::Callbacks::call).
    pub unsafe fn call_rcu(&self, head: NonNull<RcuHead>, bytes: usize, callback: Callback<Self>) {
        // SAFETY: the caller's promise; all callbacks here are of this domain.
        unsafe { self.callbacks.call(&self.rcu, self.platform(), head, bytes, callback) };
    }

    /// Moves the grace period on and ends the wait of what is due: callbacks,
    /// objects, slabs, page tables. Returns how many; bounded, never waits. For an idle CPU,
    /// a timer, a thread that waits for memory.
    ///
    /// The caller holds no lock that a callback takes.
    pub fn poll_rcu(&self) -> usize {
        let mut ended = self.callbacks.process(&self.rcu, self.platform(), self);
        for cache in self.caches.all() {
            let (objects, slabs) = cache.reap(&self.memory, &self.rcu, REAPED_AT_ONCE);
            ended =
                ended.saturating_add(objects).saturating_add(usize::try_from(slabs).unwrap_or(0));
        }
        ended.saturating_add(self.reap_tables(REAPED_AT_ONCE))
    }

    /// Waits until all callbacks queued before have returned.
    ///
    /// A caller inside a read section, or in a callback, waits for ever.
    pub fn rcu_barrier(&self) {
        self.callbacks.barrier(&self.rcu, self.platform(), self);
    }

    /// Waits for all that waits, and gives back every slab without a used object:
    /// what a caller does who needs memory and may wait, and each test at its end.
    ///
    /// A caller inside a read section, or in a callback, waits for ever.
    pub fn settle(&self) {
        self.rcu_barrier();
        self.rcu.synchronize_expedited(self.platform());
        self.reap_tables(usize::MAX);
        // Objects first, which empty slabs; then the slabs that had to wait.
        for _ in 0..2 {
            self.rcu.synchronize_expedited(self.platform());
            self.reap_tables(usize::MAX);
            for cache in self.caches.all() {
                cache.reap(&self.memory, &self.rcu, usize::MAX);
                cache.shrink(&self.memory);
            }
        }
        self.rcu.synchronize_expedited(self.platform());
        for cache in self.caches.all() {
            cache.reap(&self.memory, &self.rcu, 0);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::buddy::Gfp;
    use crate::testing::{self, TestPlatform};

    static RAN: AtomicU64 = AtomicU64::new(0);

    /// Frees the object, a slab object of the VMAs' cache with its head at the start.
    unsafe fn free(base: &Base<TestPlatform>, head: NonNull<RcuHead>) {
        RAN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: queued with the object's address; nobody else uses it.
        let freed = unsafe { base.caches.vma.free(&base.memory, head.cast()) };
        assert_eq!(freed, Ok(()));
    }

    #[test]
    fn settling_runs_callbacks_and_gives_every_slab_back() {
        let base = Base::new(testing::memory(2048)).expect("memory suffices");
        base.settle();
        let free_pages = base.memory.free_pages();
        for _ in 0..100 {
            let object = base.caches.vma.alloc(&base.memory, Gfp::KERNEL).expect("memory");
            // SAFETY: ours, and larger than a head.
            unsafe { object.cast::<RcuHead>().write(RcuHead::new()) };
            // SAFETY: in no queue; only the callback uses it from now on.
            unsafe { base.call_rcu(object.cast(), 64, free) };
            let folio = base.caches.folio.alloc_typesafe(&base.memory, Gfp::KERNEL);
            // SAFETY: as it was made: free.
            unsafe { base.caches.folio.free(&base.memory, folio.expect("memory")) };
        }
        assert_eq!(base.caches.vma.stats(&base.memory).in_use, 100);
        assert!(base.poll_rcu() > 0);
        base.settle();
        assert_eq!(RAN.load(Ordering::Relaxed), 100);
        assert_eq!(base.memory.free_pages(), free_pages);
        assert_eq!(base.rcu.stats().deferred_bytes, 0);
    }
}
