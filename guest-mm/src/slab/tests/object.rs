//! Typed caches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::rcu::{Deferrable, Rcu, RcuHead};

#[repr(align(64))]
struct Line {
    head: RcuHead,
    number: u64,
}

// SAFETY: the field is the object's own and used by nothing else.
unsafe impl Deferrable for Line {
    fn rcu_head(&self) -> &RcuHead {
        &self.head
    }
}

fn line(number: u64) -> Line {
    Line { head: RcuHead::new(), number }
}

fn lines(memory: &Memory<TestPlatform>) -> ObjectCache<Line> {
    let options = SlabOptions { per_cpu: true, ..SlabOptions::default() };
    ObjectCache::new(memory, "line", options).unwrap()
}

#[test]
fn an_object_of_64_bytes_never_straddles_two_cache_lines() {
    let memory = memory(2048);
    let cache = lines(&memory);
    let objects: Vec<_> =
        (0..200).map(|n| cache.alloc(&memory, Gfp::KERNEL, line(n)).unwrap()).collect();
    for (n, &object) in objects.iter().enumerate() {
        assert_eq!(object.addr().get() % 64, 0);
        // SAFETY: ours and not freed.
        assert_eq!(unsafe { object.as_ref() }.number, n as u64);
    }
    assert_eq!(cache.stats(&memory).in_use, 200);
    assert_consistent(&memory, &[cache.kmem()]);
    for object in objects {
        // SAFETY: not used any more.
        unsafe { cache.free(&memory, object) };
    }
    cache.shrink(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn small_descriptors_cost_their_size() {
    if RED_ZONE_BYTES == 0 {
        let memory = memory(2048);
        let cache = ObjectCache::<[u64; 2]>::new(&memory, "small", SlabOptions::default()).unwrap();
        assert_eq!(cache.stats(&memory).objects_per_slab, 251);
    }
    assert_eq!((objects_per_slab(16), objects_per_slab(32), objects_per_slab(64)), (251, 126, 63));
}

#[test]
fn more_objects_than_a_map_word_has_bits_are_told_apart() {
    let memory = memory(2048);
    let cache = ObjectCache::<[u64; 2]>::new(&memory, "small", SlabOptions::default()).unwrap();
    let mut live: Vec<_> =
        (0..600).map(|n| cache.alloc(&memory, Gfp::KERNEL, [n, !n]).unwrap()).collect();
    assert_consistent(&memory, &[cache.kmem()]);
    for n in (0..300).rev() {
        let object = live.swap_remove(n * 2);
        // SAFETY: not used any more.
        unsafe { cache.free(&memory, object) };
        // SAFETY: as above.
        assert_eq!(unsafe { cache.try_free(&memory, object) }, Err(SlabFreeError::DoubleFree));
    }
    assert_consistent(&memory, &[cache.kmem()]);
    for object in live {
        // SAFETY: ours and not freed.
        let [n, not_n] = unsafe { object.read() };
        assert_eq!(n, !not_n);
        // SAFETY: not used any more.
        unsafe { cache.free(&memory, object) };
    }
    assert_eq!((cache.stats(&memory).in_use, cache.refused_frees()), (0, 300));
    cache.shrink(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn freeing_drops_the_value_once() {
    struct Counted(Arc<AtomicU32>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let memory = memory(2048);
    let cache = ObjectCache::new(&memory, "counted", SlabOptions::default()).unwrap();
    let drops = Arc::new(AtomicU32::new(0));
    let object = cache.alloc(&memory, Gfp::KERNEL, Counted(Arc::clone(&drops))).unwrap();
    // SAFETY: not used any more.
    unsafe { cache.free(&memory, object) };
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    // SAFETY: as above; refused before anything is dropped.
    assert_eq!(unsafe { cache.try_free(&memory, object) }, Err(SlabFreeError::DoubleFree));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    memory.platform().faults().fail_nth(FaultSite::SlabAlloc, 1);
    assert!(cache.alloc(&memory, Gfp::KERNEL, Counted(Arc::clone(&drops))).is_err());
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_deferred_object_is_reused_only_after_its_readers() {
    let memory = memory(2048);
    let cache = lines(&memory);
    let rcu = Rcu::new();
    let object = cache.alloc(&memory, Gfp::KERNEL, line(7)).unwrap();
    let reader = rcu.read(0);
    // SAFETY: only `reader` uses it.
    unsafe { cache.free_rcu(&memory, &rcu, object) };
    // SAFETY: as above.
    let again = unsafe { cache.try_free_rcu(&memory, &rcu, object) };
    assert_eq!(again, Err(SlabFreeError::DoubleFree));
    assert_eq!((cache.deferred(&memory), cache.stats(&memory).in_use), (1, 1));
    for _ in 0..100 {
        let other = cache.alloc(&memory, Gfp::KERNEL, line(8)).unwrap();
        assert_ne!(other, object);
        // SAFETY: the reader keeps it alive.
        assert_eq!(unsafe { object.as_ref() }.number, 7);
        // SAFETY: not used any more.
        unsafe { cache.free(&memory, other) };
    }
    assert_eq!(cache.reap(&memory, &rcu, 8), 0);
    drop(reader);
    assert_eq!(cache.reap(&memory, &rcu, 8), 1);
    assert_eq!(cache.stats(&memory).in_use, 0);
    assert_consistent(&memory, &[cache.kmem()]);
}

#[test]
fn options_that_the_type_does_not_promise_are_refused() {
    let memory = memory(2048);
    let options = SlabOptions { type_safe: true, ..SlabOptions::default() };
    let made = ObjectCache::<u64>::new(&memory, "u64", options);
    assert_eq!(made.err(), Some(CacheError::NotTypeSafe));
    for align in [24, 128] {
        let options = SlabOptions { align, ..SlabOptions::default() };
        let made = KmemCache::new(&memory, "odd", 64, options);
        assert_eq!(made.err(), Some(CacheError::BadAlignment(align)));
    }
}

#[test]
fn an_object_without_a_type_is_deferred_by_the_place_of_its_head() {
    let memory = memory(2048);
    let at = core::mem::offset_of!(Line, head);
    let options = SlabOptions { rcu_head: Some(at), ..SlabOptions::default() };
    let cache = KmemCache::of::<Line, _>(&memory, "line", options).unwrap();
    let rcu = Rcu::new();
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    // SAFETY: ours, and large enough.
    unsafe { object.cast::<Line>().write(line(3)) };
    let reader = rcu.read(0);
    // SAFETY: only `reader` uses it.
    assert_eq!(unsafe { cache.free_rcu(&memory, &rcu, object) }, Ok(()));
    // SAFETY: as above.
    let again = unsafe { cache.free_rcu(&memory, &rcu, object) };
    assert_eq!(again, Err(SlabFreeError::DoubleFree));
    assert_eq!((cache.reap(&memory, &rcu, 8), cache.deferred(&memory)), ((0, 0), 1));
    drop(reader);
    assert_eq!((cache.reap(&memory, &rcu, 8), cache.deferred(&memory)), ((1, 0), 0));
    assert_eq!(cache.stats(&memory).in_use, 0);
    for at in [size_of::<Line>(), size_of::<Line>() - 8, 4] {
        let options = SlabOptions { rcu_head: Some(at), ..SlabOptions::default() };
        let made = KmemCache::of::<Line, _>(&memory, "line", options);
        assert_eq!(made.err(), Some(CacheError::BadRcuHead(at)));
    }
}
