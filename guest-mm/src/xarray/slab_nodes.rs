//! [`SlabNodes`]: nodes from a slab cache.

use core::ptr::NonNull;

use super::node::{Node, NodeAlloc};
use crate::buddy::Gfp;
use crate::memory::Memory;
use crate::platform::Platform;
use crate::slab::{CacheError, KmemCache, SlabOptions};

#[cfg(not(loom))]
const _: () = assert!(crate::slab::objects_per_slab(size_of::<Node>()) == 7);

/// Nodes from a cache that [`Self::cache`] made; one cache may serve many arrays.
#[derive(Debug)]
pub struct SlabNodes<'m, P> {
    memory: &'m Memory<P>,
    cache: &'m KmemCache,
    gfp: Gfp,
}

impl<P> Clone for SlabNodes<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for SlabNodes<'_, P> {}

impl<'m, P: Platform> SlabNodes<'m, P> {
    /// A cache of nodes.
    ///
    /// # Errors
    /// A node does not fit a slab: not with the slab's own sizes.
    pub fn cache(memory: &Memory<P>) -> Result<KmemCache, CacheError> {
        // Not type-safe: arrays free a node after its readers have left.
        KmemCache::new(memory, "xarray_node", size_of::<Node>(), SlabOptions::default())
    }

    /// Nodes of `cache`, whose slabs are taken with `gfp`.
    ///
    /// # Panics
    /// If `cache` has objects smaller than a node: a caller's bug.
    pub fn new(memory: &'m Memory<P>, cache: &'m KmemCache, gfp: Gfp) -> Self {
        assert!(cache.object_bytes() >= size_of::<Node>(), "{} is no node cache", cache.name());
        Self { memory, cache, gfp }
    }
}

// SAFETY: a slab object is aligned to 16 and `object_bytes` long, stays in its
// frame of the direct map, and is nobody else's until it is freed.
unsafe impl<P: Platform> NodeAlloc for SlabNodes<'_, P> {
    type Platform = P;

    fn platform(&self) -> &P {
        self.memory.platform()
    }

    fn alloc_node(&self) -> Option<NonNull<Node>> {
        self.cache.alloc(self.memory, self.gfp).ok().map(NonNull::cast)
    }

    unsafe fn free_node(&self, node: NonNull<Node>) {
        // SAFETY: nobody uses the node any more, by the caller's promise.
        let freed = unsafe { self.cache.free(self.memory, node.cast()) };
        debug_assert!(freed.is_ok(), "XArray node: {freed:?}");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::platform::FaultSite;
    use crate::rcu::Rcu;
    use crate::store::{Block, NoMemory, PfnStore, Reservation, XArrayStore};
    use crate::testing;
    use abi::Pfn;

    #[test]
    fn a_store_over_a_slab_returns_every_frame_it_took() {
        let memory = testing::memory(4096);
        let free = memory.free_pages();
        let cache = SlabNodes::cache(&memory).unwrap();
        let rcu = Rcu::new();
        let store = XArrayStore::new(
            &rcu,
            SlabNodes::new(&memory, &cache, Gfp::KERNEL),
            testing::range(0, 4096),
        );
        for head in (0..4096).step_by(3) {
            let block = Block::new(Pfn::new(head).unwrap(), 0).unwrap();
            store.reserve().unwrap().commit(block).unwrap();
        }
        assert_eq!(store.array().validate().unwrap().entries, store.blocks());
        assert!(cache.stats(&memory).in_use >= 64);
        for head in (0..4096).step_by(3) {
            assert!(store.remove(Pfn::new(head).unwrap()).is_some());
        }
        store.trim();
        assert_eq!((store.bytes_used(), cache.stats(&memory).in_use), (0, 0));
        drop(store);
        cache.shrink(&memory);
        assert_eq!(memory.free_pages(), free);
    }

    #[test]
    fn a_slab_without_memory_makes_reserve_fail_and_changes_nothing() {
        let memory = testing::memory(1024);
        let cache = SlabNodes::cache(&memory).unwrap();
        let rcu = Rcu::new();
        let store = XArrayStore::new(
            &rcu,
            SlabNodes::new(&memory, &cache, Gfp::KERNEL),
            testing::range(0, 1024),
        );
        let faults = memory.platform().faults();
        // Whichever of the nodes it is that fails, until there are enough.
        let mut failed = 0;
        for nth in 1.. {
            let struck = faults.struck(FaultSite::SlabAlloc);
            faults.fail_nth(FaultSite::SlabAlloc, nth);
            let reservation = store.reserve();
            if faults.struck(FaultSite::SlabAlloc) == struck {
                assert!(reservation.is_ok());
                break;
            }
            assert_eq!(reservation.err(), Some(NoMemory));
            assert_eq!((store.blocks(), cache.stats(&memory).in_use), (0, 0));
            failed += 1;
        }
        assert!(failed >= 3);
    }
}
