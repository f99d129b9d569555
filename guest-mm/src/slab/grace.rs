//! What of a cache waits for a grace period: objects, and whole slabs.

use core::ptr::NonNull;

use super::cache::KmemCache;
use super::options::SlabFreeError;
use crate::memory::Memory;
use crate::platform::Platform;
use crate::rcu::{Rcu, RcuHead};

/// Deferred objects that one call of `free_rcu` frees at most.
pub(super) const FREED_AT_ONCE: usize = 16;

impl KmemCache {
    /// Frees an object after a grace period (Linux's `kfree_rcu`), and a few that
    /// were deferred before and are due. Never waits, never allocates.
    ///
    /// # Safety
    /// The object has a live [`RcuHead`] where the options say; readers can no
    /// longer find it, and nobody but readers in their sections of `rcu` uses
    /// it. All objects of the cache are deferred by the same `rcu`.
    ///
    /// # Errors
    /// The pointer is not that of an object in use, or it is deferred already;
    /// nothing is changed.
    ///
    /// # Panics
    /// If the options name no head: the caller's bug.
    pub unsafe fn free_rcu<P: Platform>(
        &self,
        memory: &Memory<P>,
        rcu: &Rcu,
        object: NonNull<u8>,
    ) -> Result<(), SlabFreeError> {
        let Some(offset) = self.options().rcu_head else {
            panic!("{}: objects without an RCU head", self.name())
        };
        self.check(memory, object)?;
        // SAFETY: the head lies inside the object (`KmemCache::new`).
        let head = unsafe { object.add(offset) }.cast::<RcuHead>();
        let mut deferred = self.deferred_queue().lock(memory.platform());
        // SAFETY: a live head, by the caller's promise.
        if unsafe { head.as_ref() }.is_queued() {
            return Err(SlabFreeError::DoubleFree);
        }
        // SAFETY: valid until the object is freed, which happens when it comes out;
        // in no queue now.
        unsafe { deferred.defer(head, rcu.stamp()) };
        drop(deferred);
        rcu.note_deferred(self.object_bytes() as u64);
        self.free_due(memory, rcu, FREED_AT_ONCE);
        Ok(())
    }

    /// Objects that wait for a grace period.
    pub fn deferred<P: Platform>(&self, memory: &Memory<P>) -> usize {
        self.deferred_queue().lock(memory.platform()).len()
    }

    /// Frees what waited for a grace period that is over: up to `most` objects,
    /// and slabs in limbo. Returns the number of objects and of slabs. Never
    /// waits; moves the grace period on.
    pub fn reap<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu, most: usize) -> (usize, u64) {
        (self.free_due(memory, rcu, most), self.release_due(memory, rcu))
    }

    fn free_due<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu, most: usize) -> usize {
        let Some(offset) = self.options().rcu_head else { return 0 };
        for freed in 0..most {
            let due = self.deferred_queue().lock(memory.platform()).pop_over(rcu);
            let Some(head) = due else { return freed };
            // SAFETY: the head lies `offset` bytes into the object.
            let object = unsafe { head.cast::<u8>().sub(offset) };
            // SAFETY: it came in by the promise of `free_rcu`, and no reader is left.
            let freed = unsafe { self.free(memory, object) };
            debug_assert_eq!(freed, Ok(()), "{}: deferred free", self.name());
            rcu.note_reclaimed(self.object_bytes() as u64);
        }
        most
    }

    /// Gives slabs in limbo back whose grace period is over.
    fn release_due<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu) -> u64 {
        let mut released = 0;
        loop {
            let popped = self.slabs().lock(memory.platform()).pop_over(memory, rcu);
            let Some(pfn) = popped else { return released };
            self.release_frame(memory, pfn);
            released += 1;
        }
    }
}
