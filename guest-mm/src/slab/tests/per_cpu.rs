//! Sheaves: the free objects that CPUs keep.

use super::*;
use crate::testing::set_cpu;

fn kept(memory: &Memory<TestPlatform>, size: usize) -> KmemCache {
    let options = SlabOptions { per_cpu: true, ..SlabOptions::default() };
    KmemCache::new(memory, "kept", size, options).unwrap()
}

#[test]
fn objects_with_a_cpu_count_as_free() {
    let memory = memory(2048);
    let cache = kept(&memory, 64);
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    let stats = cache.stats(&memory);
    assert_eq!(stats.in_use, 1);
    assert_consistent(&memory, &[&cache]);
    free(&memory, &cache, object);
    assert_eq!(refusal(&memory, &cache, object), Some(SlabFreeError::DoubleFree));
    let stats = cache.stats(&memory);
    assert_eq!(stats.in_use, 0);
    assert!(stats.per_cpu > 0);
    assert_consistent(&memory, &[&cache]);
    assert_eq!(cache.shrink(&memory), 1);
    assert_eq!(cache.stats(&memory).per_cpu, 0);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn an_object_freed_on_another_cpu_is_that_cpus() {
    let memory = memory(2048);
    let cache = kept(&memory, 64);
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    set_cpu(3);
    free(&memory, &cache, object);
    assert_eq!(cache.alloc(&memory, Gfp::KERNEL), Ok(object));
    set_cpu(0);
    free(&memory, &cache, object);
    assert_consistent(&memory, &[&cache]);
}

#[test]
fn a_failing_allocation_finds_what_another_cpu_keeps() {
    let memory = memory(2048);
    let cache = kept(&memory, 1024);
    set_cpu(1);
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    free(&memory, &cache, object);
    set_cpu(0);
    // What the slab itself has left.
    while cache.stats(&memory).per_cpu + cache.stats(&memory).in_use
        < cache.stats(&memory).objects_per_slab
    {
        cache.alloc(&memory, Gfp::KERNEL).unwrap();
    }
    while cache.stats(&memory).per_cpu > 0 {
        memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, 1);
        assert!(cache.alloc(&memory, Gfp::KERNEL).is_ok());
    }
    memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, 1);
    assert!(cache.alloc(&memory, Gfp::KERNEL).is_err());
    memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, 0);
    assert_consistent(&memory, &[&cache]);
}

#[test]
fn a_cpu_keeps_no_more_than_its_limit() {
    let memory = memory(4096);
    let cache = kept(&memory, 576);
    let objects: Vec<_> = (0..500).map(|_| cache.alloc(&memory, Gfp::KERNEL).unwrap()).collect();
    for object in objects {
        free(&memory, &cache, object);
        assert!(cache.stats(&memory).per_cpu <= 14);
    }
    assert!(cache.stats(&memory).slabs <= 4, "{:?}", cache.stats(&memory));
    assert_consistent(&memory, &[&cache]);
}

#[test]
fn four_cpus_and_a_drain_lose_and_share_nothing() {
    let memory = memory(4096);
    let cache = kept(&memory, 64);
    std::thread::scope(|scope| {
        for cpu in 0..4u8 {
            let (memory, cache) = (&memory, &cache);
            scope.spawn(move || {
                set_cpu(usize::from(cpu));
                let mut live: Vec<NonNull<u8>> = Vec::new();
                for n in 0..3000usize {
                    if n % 7 < 4 {
                        let object = cache.alloc(memory, Gfp::KERNEL).unwrap();
                        // SAFETY: ours and 64 bytes long.
                        unsafe { object.write_bytes(cpu, 64) };
                        live.push(object);
                    } else if let Some(object) = live.pop() {
                        for at in [0, 31, 63] {
                            // SAFETY: ours and 64 bytes long.
                            let byte = unsafe { object.add(at) };
                            // SAFETY: as above.
                            assert_eq!(unsafe { byte.read() }, cpu);
                        }
                        free(memory, cache, object);
                    }
                    if cpu == 0 && n % 100 == 0 {
                        cache.drain(memory);
                    }
                }
                live.into_iter().for_each(|object| free(memory, cache, object));
            });
        }
    });
    assert_eq!(cache.stats(&memory).in_use, 0);
    assert_consistent(&memory, &[&cache]);
    cache.shrink(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}
