//! Type-safe caches.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::rcu::Rcu;

/// Like a folio: a count that nobody takes a reference on while it is 0.
#[repr(align(16))]
struct Counted {
    count: AtomicU32,
    /// Lives of the object; 1 when it is made.
    born: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl TypeSafe for Counted {
    fn new_free() -> Self {
        Self { count: AtomicU32::new(0), born: AtomicU32::new(1) }
    }
}

fn counted(memory: &Memory<TestPlatform>) -> TypeSafeCache<Counted> {
    TypeSafeCache::new(memory, "counted", SlabOptions::default()).unwrap()
}

#[test]
fn an_object_is_constructed_once_and_keeps_its_contents_while_free() {
    let memory = memory(2048);
    let cache = counted(&memory);
    for life in 1..5 {
        let object = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
        // SAFETY: ours.
        let counted = unsafe { object.as_ref() };
        assert_eq!(counted.born.fetch_add(1, Ordering::Relaxed), life);
        assert_eq!(
            counted.count.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed),
            Ok(0)
        );
        counted.count.store(0, Ordering::Release);
        // SAFETY: the count is 0, which readers refuse.
        unsafe { cache.free(&memory, object) };
        assert_consistent(&memory, &[cache.kmem()]);
    }
    // SAFETY: one past the first object's end: its red zone, or the next object.
    assert_eq!(cache.stats(&memory).slabs, 1);
}

#[test]
fn a_slab_stays_one_until_its_readers_have_left() {
    let memory = memory(2048);
    let cache = counted(&memory);
    let rcu = Rcu::new();
    let object = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
    let pfn = memory.platform().frame_of(object.addr().get()).unwrap();
    let reader = rcu.read(0);
    // SAFETY: the count is 0.
    unsafe { cache.free(&memory, object) };
    cache.shrink(&memory);
    assert_eq!(cache.reap(&memory, &rcu), 0);
    assert_eq!(memory.words().load(pfn).unwrap().kind(), Ok(Kind::Slab));
    let stats = cache.stats(&memory);
    assert_eq!((stats.slabs, stats.limbo, stats.in_use), (1, 1, 0));
    assert_consistent(&memory, &[cache.kmem()]);
    // SAFETY: what a reader does that found the object before.
    assert_eq!(unsafe { object.as_ref() }.count.load(Ordering::Acquire), 0);
    drop(reader);
    assert_eq!(cache.reap(&memory, &rcu), 1);
    assert_eq!(
        cache.stats(&memory),
        SlabStats { objects_per_slab: stats.objects_per_slab, ..SlabStats::default() }
    );
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn a_slab_in_limbo_is_taken_up_again_before_a_new_one() {
    let memory = memory(2048);
    let cache = counted(&memory);
    let rcu = Rcu::new();
    let object = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
    // SAFETY: the count is 0.
    unsafe { cache.free(&memory, object) };
    cache.shrink(&memory);
    let reader = rcu.read(0);
    // Twice: from the fresh ones, and from those that have a stamp.
    for _ in 0..2 {
        let again = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
        assert_eq!(again, object);
        assert_eq!((cache.stats(&memory).slabs, cache.stats(&memory).limbo), (1, 0));
        // SAFETY: the count is 0.
        unsafe { cache.free(&memory, again) };
        cache.shrink(&memory);
        assert_eq!(cache.reap(&memory, &rcu), 0);
    }
    drop(reader);
    assert_eq!(cache.reap(&memory, &rcu), 1);
    assert_consistent(&memory, &[cache.kmem()]);
}

#[test]
fn wrong_pointers_and_second_frees_are_refused_here_too() {
    let memory = memory(2048);
    let (cache, other) = (counted(&memory), counted(&memory));
    let object = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
    // SAFETY: refused pointers do no harm.
    assert_eq!(unsafe { other.try_free(&memory, object) }, Err(SlabFreeError::WrongCache));
    // SAFETY: the count is 0.
    assert_eq!(unsafe { cache.try_free(&memory, object) }, Ok(()));
    // SAFETY: as above.
    assert_eq!(unsafe { cache.try_free(&memory, object) }, Err(SlabFreeError::DoubleFree));
    assert_eq!((cache.refused_frees(), other.refused_frees()), (1, 1));
    if RED_ZONE_BYTES > 0 {
        let object = cache.alloc_typesafe(&memory, Gfp::KERNEL).unwrap();
        // SAFETY: inside the slab's frame.
        let beyond = unsafe { object.add(1) };
        // SAFETY: as above; the red zone is in nobody's use.
        unsafe { beyond.cast::<u8>().write(0) };
        // SAFETY: refused.
        assert_eq!(unsafe { cache.try_free(&memory, object) }, Err(SlabFreeError::Overrun));
    }
}
