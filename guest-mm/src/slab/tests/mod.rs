//! Slabs.

use core::ptr::NonNull;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::guard::RED_ZONE_BYTES;
use super::*;
use crate::buddy::Gfp;
use crate::census::CensusScope;
use crate::memdesc::{Kind, Order};
use crate::memory::Memory;
use crate::platform::{FaultSite, Platform};
use crate::testing::{TestPlatform, memory};

mod model;
mod object;
mod per_cpu;
mod type_safe;

/// An XArray node.
const NODE: usize = 576;

fn cache(memory: &Memory<TestPlatform>, size: usize) -> KmemCache {
    KmemCache::new(memory, "test", size, SlabOptions::default()).unwrap()
}

fn free(memory: &Memory<TestPlatform>, cache: &KmemCache, object: NonNull<u8>) {
    // SAFETY: tests free what they no longer use.
    unsafe { cache.free(memory, object) }.unwrap();
}

fn refusal(
    memory: &Memory<TestPlatform>,
    cache: &KmemCache,
    object: NonNull<u8>,
) -> Option<SlabFreeError> {
    // SAFETY: tests use no object after this.
    unsafe { cache.free(memory, object) }.err()
}

fn assert_consistent(memory: &Memory<TestPlatform>, caches: &[&KmemCache]) {
    let census = memory.census_of(&CensusScope { caches, ..CensusScope::default() });
    let found: Vec<_> = census.discrepancies().iter().collect();
    assert!(census.is_consistent(), "{found:#?}");
}

#[test]
fn seven_xarray_nodes_fit_a_slab_without_red_zones() {
    assert_eq!(objects_per_slab(NODE), 7);
    assert_eq!(objects_per_slab(64), 63);
    assert_eq!(objects_per_slab(OBJECT_BYTES_PER_SLAB), 1);
    assert_eq!(objects_per_slab(OBJECT_BYTES_PER_SLAB + 1), 0);
    assert_eq!(objects_per_slab(32), 126, "two pairs of map words");
    assert_eq!(objects_per_slab(16), 251, "four pairs");
    assert_eq!(objects_per_slab(15), 0, "less than the alignment");
}

#[test]
fn objects_are_aligned_disjoint_and_inside_their_frames() {
    let memory = memory(2048);
    let cache = cache(&memory, 100);
    let mut spans = BTreeSet::new();
    for _ in 0..200 {
        let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
        assert_eq!(object.addr().get() % 16, 0);
        let end = object.addr().get() + 99;
        let platform = memory.platform();
        assert_eq!(platform.frame_of(object.addr().get()), platform.frame_of(end));
        spans.insert(object.addr().get());
        // SAFETY: the object is ours and 100 bytes long.
        unsafe { object.write_bytes(0xff, 100) };
    }
    let spans: Vec<usize> = spans.into_iter().collect();
    assert!(spans.windows(2).all(|pair| pair[1] - pair[0] >= 100));
    assert_consistent(&memory, &[&cache]);
}

#[test]
fn a_cache_without_objects_gives_all_memory_back() {
    let memory = memory(2048);
    let cache = cache(&memory, NODE);
    let objects: Vec<_> = (0..50).map(|_| cache.alloc(&memory, Gfp::KERNEL).unwrap()).collect();
    let stats = cache.stats(&memory);
    assert_eq!(stats.in_use, 50);
    assert_eq!(stats.slabs, 50u64.div_ceil(stats.objects_per_slab));
    assert_eq!(memory.census().pages(Kind::Slab).get(), stats.slabs);
    for object in objects {
        free(&memory, &cache, object);
        assert_consistent(&memory, &[&cache]);
    }
    assert_eq!(cache.stats(&memory).slabs, 1, "one empty slab is kept");
    assert_eq!(cache.shrink(&memory), 1);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn wrong_pointers_are_refused_by_name() {
    let memory = memory(2048);
    let (nodes, others) = (cache(&memory, NODE), cache(&memory, 128));
    let node = nodes.alloc(&memory, Gfp::KERNEL).unwrap();
    let other = others.alloc(&memory, Gfp::KERNEL).unwrap();
    let on_the_host = NonNull::from(&node).cast();
    assert_eq!(refusal(&memory, &nodes, on_the_host), Some(SlabFreeError::NotRam));
    assert_eq!(refusal(&memory, &nodes, other), Some(SlabFreeError::WrongCache));
    // SAFETY: inside the frame.
    let inside = unsafe { node.add(16) };
    assert_eq!(refusal(&memory, &nodes, inside), Some(SlabFreeError::NotAnObject));
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    let frame = memory.platform().frame_ptr(frames.head());
    assert_eq!(refusal(&memory, &nodes, frame), Some(SlabFreeError::NotSlab));
    memory.free_frozen(frames);
    free(&memory, &nodes, node);
    free(&memory, &others, other);
    assert_consistent(&memory, &[&nodes, &others]);
}

#[test]
fn a_second_free_is_refused_even_when_the_slab_is_gone() {
    let memory = memory(2048);
    let cache = cache(&memory, NODE);
    let keep = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    free(&memory, &cache, object);
    assert_eq!(refusal(&memory, &cache, object), Some(SlabFreeError::DoubleFree));
    free(&memory, &cache, keep);
    cache.shrink(&memory);
    assert_eq!(refusal(&memory, &cache, object), Some(SlabFreeError::NotSlab));
    assert_consistent(&memory, &[&cache]);
}

#[test]
fn sizes_that_no_slab_holds_are_refused() {
    let memory = memory(2048);
    let make = |size| KmemCache::new(&memory, "odd", size, SlabOptions::default()).err();
    assert_eq!(make(0), Some(CacheError::ZeroSize));
    for size in [OBJECT_BYTES_PER_SLAB + 1, 4096, usize::MAX] {
        assert_eq!(make(size), Some(CacheError::TooLarge(size)));
    }
    assert_eq!(make(OBJECT_BYTES_PER_SLAB - RED_ZONE_BYTES), None);
}

#[test]
fn a_failed_allocation_leaves_nothing_behind() {
    let memory = memory(2048);
    let cache = cache(&memory, NODE);
    memory.platform().faults().fail_nth(FaultSite::SlabAlloc, 1);
    assert!(cache.alloc(&memory, Gfp::KERNEL).is_err());
    memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, 1);
    assert!(cache.alloc(&memory, Gfp::KERNEL).is_err());
    assert_eq!(cache.stats(&memory).slabs, 0);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn a_write_beyond_an_object_is_found_when_it_is_freed() {
    if RED_ZONE_BYTES == 0 {
        return;
    }
    let memory = memory(2048);
    let cache = cache(&memory, NODE);
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    // SAFETY: still inside the slab's frame.
    let beyond = unsafe { object.add(NODE) };
    // SAFETY: as above; the red zone is in nobody's use.
    unsafe { beyond.write(0) };
    assert_eq!(refusal(&memory, &cache, object), Some(SlabFreeError::Overrun));
}

#[test]
fn a_write_after_free_is_found_and_type_safe_objects_keep_their_contents() {
    let memory = memory(2048);
    let options = SlabOptions { type_safe: true, ..SlabOptions::default() };
    let cache = KmemCache::new(&memory, "safe", NODE, options).unwrap();
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    // SAFETY: the object is ours.
    unsafe { object.write_bytes(0x77, NODE) };
    free(&memory, &cache, object);
    // SAFETY: the slab is kept; a lockless reader would look just so.
    assert_eq!(unsafe { object.read() }, 0x77);
    // SAFETY: nobody else uses the object.
    assert_eq!(unsafe { guard::written_after_free(object, NODE) }, Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn live_objects_never_overlap_and_books_agree(
        size in 1usize..=1500,
        steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..150),
    ) {
        let memory = memory(2048);
        let cache = cache(&memory, size);
        let mut live: Vec<(NonNull<u8>, u8)> = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            match step {
                Some(index) if !live.is_empty() => {
                    let (object, mark) = live.swap_remove(index.index(live.len()));
                    for at in 0..size {
                        // SAFETY: the object is live and `size` bytes long.
                        let byte = unsafe { object.add(at) };
                        // SAFETY: as above.
                        prop_assert_eq!(unsafe { byte.read() }, mark);
                    }
                    free(&memory, &cache, object);
                }
                _ => {
                    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
                    let mark = u8::try_from(n % 251).unwrap();
                    // SAFETY: the object is ours and `size` bytes long.
                    unsafe { object.write_bytes(mark, size) };
                    live.push((object, mark));
                }
            }
            assert_consistent(&memory, &[&cache]);
            prop_assert_eq!(cache.stats(&memory).in_use, live.len() as u64);
        }
    }
}
