//! [`ObjectCache`]: a cache of values of one type.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::cache::KmemCache;
use super::descriptor::OBJECT_BYTES_PER_SLAB;
use super::grace::FREED_AT_ONCE;
use super::guard::RED_ZONE_BYTES;
use super::options::{CacheError, MAX_ALIGN, SlabFreeError, SlabOptions, SlabStats};
use crate::buddy::Gfp;
use crate::memory::{AllocError, Memory};
use crate::platform::Platform;
use crate::rcu::{DeferQueue, Deferrable, Rcu};
use crate::sync::{LockClass, SpinLock};

/// A cache of values of type `T`.
///
/// Hands out raw pointers: what keeps an object alive is its user's to say. The
/// value is dropped when it is freed. A lockless reader may follow a pointer
/// only if the object is freed by [`Self::free_rcu`]; if readers cannot be sure
/// that it is still the object they meant, see
/// [`TypeSafeCache`](super::TypeSafeCache).
#[derive(Debug)]
pub struct ObjectCache<T> {
    cache: KmemCache,
    /// Objects that wait for a grace period.
    deferred: SpinLock<DeferQueue<T>>,
    refused: AtomicU64,
    objects: PhantomData<fn(T) -> T>,
}

/// Fails to compile for types that no slab holds.
pub(super) const fn check_layout<T>() {
    assert!(size_of::<T>() > 0, "objects of no size");
    assert!(size_of::<T>() + RED_ZONE_BYTES <= OBJECT_BYTES_PER_SLAB, "too large for a slab");
    assert!(align_of::<T>() <= MAX_ALIGN, "aligned to more than a cache line");
}

/// The options with the alignment of `T`.
pub(super) fn aligned<T>(options: SlabOptions) -> SlabOptions {
    SlabOptions { align: options.align.max(align_of::<T>()), ..options }
}

impl<T> ObjectCache<T> {
    /// An empty cache.
    ///
    /// # Errors
    /// The options ask for a type-safe cache, for a constructor, for an RCU head
    /// (the type says where that is), or for a senseless alignment.
    pub fn new<P: Platform>(
        memory: &Memory<P>,
        name: &'static str,
        options: SlabOptions,
    ) -> Result<Self, CacheError> {
        if options.type_safe || options.ctor.is_some() || options.rcu_head.is_some() {
            return Err(CacheError::NotTypeSafe);
        }
        Ok(Self {
            cache: KmemCache::of::<T, P>(memory, name, options)?,
            deferred: SpinLock::new(LockClass::Rcu, DeferQueue::new()),
            refused: AtomicU64::new(0),
            objects: PhantomData,
        })
    }

    /// The cache below: its name, its number, and for the census.
    pub const fn kmem(&self) -> &KmemCache {
        &self.cache
    }

    /// What the cache holds; objects that wait for a grace period are in use.
    pub fn stats<P: Platform>(&self, memory: &Memory<P>) -> SlabStats {
        self.cache.stats(memory)
    }

    /// Objects that wait for a grace period.
    pub fn deferred<P: Platform>(&self, memory: &Memory<P>) -> usize {
        self.deferred.lock(memory.platform()).len()
    }

    /// Frees that were refused: see [`SlabFreeError`]. Should stay 0.
    pub fn refused_frees(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Moves `value` into an object.
    ///
    /// # Errors
    /// No memory; `value` is dropped.
    pub fn alloc<P: Platform>(
        &self,
        memory: &Memory<P>,
        gfp: Gfp,
        value: T,
    ) -> Result<NonNull<T>, AllocError> {
        let object = self.cache.alloc(memory, gfp)?.cast::<T>();
        // SAFETY: an object has the size and alignment of `T`; nobody else has it.
        unsafe { object.write(value) };
        Ok(object)
    }

    /// Drops an object's value and gives its memory back.
    ///
    /// A wrong pointer is refused, counted and leaked.
    ///
    /// # Safety
    /// `object` came from this cache, and nobody uses it any more, lockless
    /// readers included.
    ///
    /// # Panics
    /// In debug builds, if it is refused.
    pub unsafe fn free<P: Platform>(&self, memory: &Memory<P>, object: NonNull<T>) {
        // SAFETY: the caller's promise.
        let freed = unsafe { self.try_free(memory, object) };
        debug_assert_eq!(freed, Ok(()), "{}: refused free", self.cache.name());
    }

    /// As [`Self::free`], or says why not.
    ///
    /// # Safety
    /// As for [`Self::free`]; a pointer that is not an object in use does no harm.
    ///
    /// # Errors
    /// What is wrong with the pointer; nothing is changed.
    pub unsafe fn try_free<P: Platform>(
        &self,
        memory: &Memory<P>,
        object: NonNull<T>,
    ) -> Result<(), SlabFreeError> {
        let freed = self.cache.check(memory, object.cast()).and_then(|_| {
            // SAFETY: an object in use of a cache of `T`, and nobody else uses it.
            unsafe { object.drop_in_place() };
            // SAFETY: as above.
            unsafe { self.cache.free(memory, object.cast()) }
        });
        self.count(freed)
    }

    /// Gives slabs without a used object back. Returns how many.
    pub fn shrink<P: Platform>(&self, memory: &Memory<P>) -> u64 {
        self.cache.shrink(memory)
    }

    fn count(&self, freed: Result<(), SlabFreeError>) -> Result<(), SlabFreeError> {
        if freed.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        freed
    }
}

impl<T: Deferrable> ObjectCache<T> {
    /// Frees an object after a grace period (Linux's `kfree_rcu`).
    ///
    /// Frees a few that were deferred before and are due, unless dropping a
    /// `T` takes code of its own: that runs in [`Self::reap`] alone, hence
    /// never inside the caller's locks. A wrong pointer is refused, counted and
    /// leaked.
    ///
    /// # Safety
    /// `object` came from this cache, readers can no longer find it, and nobody
    /// but readers in their sections of `rcu` uses it. All objects of the cache
    /// are deferred by the same `rcu`.
    ///
    /// # Panics
    /// In debug builds, if it is refused.
    pub unsafe fn free_rcu<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu, object: NonNull<T>) {
        // SAFETY: the caller's promise.
        let deferred = unsafe { self.try_free_rcu(memory, rcu, object) };
        debug_assert_eq!(deferred, Ok(()), "{}: refused free", self.cache.name());
    }

    /// As [`Self::free_rcu`], or says why not.
    ///
    /// # Safety
    /// As for [`Self::free_rcu`]; a pointer that is not an object in use does no harm.
    ///
    /// # Errors
    /// What is wrong with the pointer; nothing is changed.
    pub unsafe fn try_free_rcu<P: Platform>(
        &self,
        memory: &Memory<P>,
        rcu: &Rcu,
        object: NonNull<T>,
    ) -> Result<(), SlabFreeError> {
        self.count(self.cache.check(memory, object.cast()).map(|_| ()))?;
        let mut deferred = self.deferred.lock(memory.platform());
        // SAFETY: an object in use holds a `T`; readers share it, and so do we.
        if unsafe { object.as_ref() }.rcu_head().is_queued() {
            drop(deferred);
            return self.count(Err(SlabFreeError::DoubleFree));
        }
        // SAFETY: valid until it is freed, which happens when it comes out; in no
        // queue now.
        unsafe { deferred.defer(object, rcu.stamp()) };
        drop(deferred);
        rcu.note_deferred(size_of::<T>() as u64);
        if !core::mem::needs_drop::<T>() {
            self.reap(memory, rcu, FREED_AT_ONCE);
        }
        Ok(())
    }

    /// Frees up to `most` deferred objects whose grace period is over. Returns
    /// how many. Never waits; moves the grace period on.
    pub fn reap<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu, most: usize) -> usize {
        for freed in 0..most {
            let due = self.deferred.lock(memory.platform()).pop_over(rcu);
            let Some(object) = due else { return freed };
            // SAFETY: it came in by the promise of `free_rcu`, and no reader is left.
            unsafe { self.free(memory, object) };
            rcu.note_reclaimed(size_of::<T>() as u64);
        }
        most
    }
}
