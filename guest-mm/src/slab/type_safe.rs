//! [`TypeSafeCache`]: objects that lockless readers may still hold when they are
//! freed and used again.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::cache::KmemCache;
use super::options::{CacheError, SlabFreeError, SlabOptions, SlabStats};
use crate::buddy::Gfp;
use crate::memory::{AllocError, Memory};
use crate::platform::Platform;
use crate::rcu::Rcu;

/// A type that readers may look at while it is freed and used again.
///
/// # Safety
/// All bytes are atomics, or only read by who owns the object. Its users can
/// tell from an object whether it is the one they meant, and take a reference
/// only by a step that fails on a free one (a count of 0, say): owners change
/// objects that they got from [`TypeSafeCache::alloc_typesafe`] by such steps
/// too, and never write a whole new value.
pub unsafe trait TypeSafe: Sync {
    /// The first state of an object: free. Called once per object and slab.
    fn new_free() -> Self;
}

/// A cache of objects whose memory stays a `T` for as long as a reader that
/// could find it may look (Linux's `SLAB_TYPESAFE_BY_RCU`).
///
/// A freed object can be used again at once; its *slab* goes back to the buddy
/// allocator only after a grace period.
#[derive(Debug)]
pub struct TypeSafeCache<T> {
    cache: KmemCache,
    refused: AtomicU64,
    objects: PhantomData<fn(T) -> T>,
}

impl<T: TypeSafe> TypeSafeCache<T> {
    /// An empty cache. `options` need not say that it is type-safe.
    ///
    /// # Errors
    /// The alignment in the options is senseless.
    pub fn new<P: Platform>(
        memory: &Memory<P>,
        name: &'static str,
        options: SlabOptions,
    ) -> Result<Self, CacheError> {
        const { assert!(!core::mem::needs_drop::<T>(), "a type-safe object is never dropped") };
        let options = SlabOptions { type_safe: true, ctor: Some(construct::<T>), ..options };
        Ok(Self {
            cache: KmemCache::of::<T, P>(memory, name, options)?,
            refused: AtomicU64::new(0),
            objects: PhantomData,
        })
    }

    /// The cache below: its name, its number, and for the census.
    pub const fn kmem(&self) -> &KmemCache {
        &self.cache
    }

    /// What the cache holds.
    pub fn stats<P: Platform>(&self, memory: &Memory<P>) -> SlabStats {
        self.cache.stats(memory)
    }

    /// Frees that were refused: see [`SlabFreeError`]. Should stay 0.
    pub fn refused_frees(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes an object as it was freed, or as [`TypeSafe::new_free`] made it.
    ///
    /// Readers of its last life may still look at it: the new owner changes it
    /// by atomic steps, and makes it findable by the last of them.
    ///
    /// # Errors
    /// No memory.
    pub fn alloc_typesafe<P: Platform>(
        &self,
        memory: &Memory<P>,
        gfp: Gfp,
    ) -> Result<NonNull<T>, AllocError> {
        self.cache.alloc(memory, gfp).map(NonNull::cast)
    }

    /// Gives an object back, as it is. Others may have it at once.
    ///
    /// A wrong pointer is refused, counted and leaked.
    ///
    /// # Safety
    /// `object` came from this cache, is in the state that readers refuse, and
    /// nobody but readers of its last life uses it.
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
        // SAFETY: the caller's promise; the cache is type-safe.
        let freed = unsafe { self.cache.free(memory, object.cast()) };
        if freed.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        freed
    }

    /// Sends slabs without a used object into limbo; [`Self::reap`] gives them
    /// back once no reader can look at them.
    pub fn shrink<P: Platform>(&self, memory: &Memory<P>) {
        self.cache.shrink(memory);
    }

    /// Gives slabs in limbo back whose grace period is over. Returns how many.
    /// Never waits; moves the grace period on.
    pub fn reap<P: Platform>(&self, memory: &Memory<P>, rcu: &Rcu) -> u64 {
        self.cache.reap(memory, rcu, 0).1
    }
}

/// # Safety
/// `object` starts memory for a `T` that nobody else uses.
unsafe fn construct<T: TypeSafe>(object: NonNull<u8>) {
    // SAFETY: the caller's promise.
    unsafe { object.cast::<T>().write(T::new_free()) };
}
