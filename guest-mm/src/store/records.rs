//! [`RecordAlloc`]: where stores that keep more than XArray nodes have their memory from.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::buddy::Gfp;
use crate::memory::Memory;
use crate::platform::Platform;
use crate::slab::{CacheError, KmemCache, SlabOptions};

/// Memory for records of type `T`.
///
/// # Safety
/// What [`Self::alloc_record`] returns is aligned, valid for reads and writes of a
/// `T`, and nobody else's until [`Self::free_record`] takes it back.
pub unsafe trait RecordAlloc<T>: Sync {
    /// Uninitialised memory for a record, or `None`. Called without a store's lock.
    fn alloc_record(&self) -> Option<NonNull<T>>;

    /// Takes a record's memory back. Called without a store's lock.
    ///
    /// # Safety
    /// `record` came from [`Self::alloc_record`] of the same allocator, and nobody
    /// uses it any more.
    unsafe fn free_record(&self, record: NonNull<T>);
}

/// Records from a slab cache that [`Self::cache`] made.
#[derive(Debug)]
pub struct SlabRecords<'m, P, T> {
    memory: &'m Memory<P>,
    cache: &'m KmemCache,
    gfp: Gfp,
    records: PhantomData<fn() -> T>,
}

impl<'m, P: Platform, T> SlabRecords<'m, P, T> {
    /// A cache of records, called `name`.
    ///
    /// # Errors
    /// A record does not fit a slab.
    pub fn cache(memory: &Memory<P>, name: &'static str) -> Result<KmemCache, CacheError> {
        KmemCache::of::<T, P>(memory, name, SlabOptions::default())
    }

    /// Records of `cache`, whose slabs are taken with `gfp`.
    ///
    /// # Panics
    /// If `cache` has smaller objects: a caller's bug.
    pub fn new(memory: &'m Memory<P>, cache: &'m KmemCache, gfp: Gfp) -> Self {
        assert!(cache.object_bytes() >= size_of::<T>(), "{} has smaller records", cache.name());
        Self { memory, cache, gfp, records: PhantomData }
    }
}

// SAFETY: a slab object is `object_bytes` long, stays in its frame of the direct
// map, and is nobody else's until it is freed; `KmemCache::of` aligns it for `T`.
unsafe impl<P: Platform, T> RecordAlloc<T> for SlabRecords<'_, P, T> {
    fn alloc_record(&self) -> Option<NonNull<T>> {
        self.cache.alloc(self.memory, self.gfp).ok().map(NonNull::cast)
    }

    unsafe fn free_record(&self, record: NonNull<T>) {
        // SAFETY: nobody uses the record any more, by the caller's promise.
        let freed = unsafe { self.cache.free(self.memory, record.cast()) };
        debug_assert!(freed.is_ok(), "{}: {freed:?}", self.cache.name());
    }
}
