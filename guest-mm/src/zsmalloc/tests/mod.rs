//! Pools on the host.

mod failures;
mod migration;
mod model;

use abi::PageCount;

use super::*;
use crate::buddy::Gfp;
use crate::mm::{Base, Mm};
use crate::testing::{self, TestPlatform};

/// A machine of `pages` pages with a pool.
pub(super) fn with_pool(
    pages: u64,
    test: impl for<'a, 'm> FnOnce(&'a Mm<'m, TestPlatform>, &'a ZsPool<'m, TestPlatform>),
) {
    let base = Base::new(testing::memory(pages)).unwrap();
    let mm = Mm::new(&base);
    let before = settled(&mm);
    let pool = mm.zs_create_pool().unwrap();
    test(&mm, &pool);
    mm.zs_destroy_pool(pool).map_err(|(_, error)| error).unwrap();
    assert_balanced(&mm);
    assert_eq!(settled(&mm), before, "free pages");
}

/// Free pages once nothing waits and no cache keeps any.
pub(super) fn settled(mm: &Mm<'_, TestPlatform>) -> PageCount {
    mm.base().settle();
    mm.memory().free_pages()
}

/// Takes a census.
pub(super) fn assert_balanced(mm: &Mm<'_, TestPlatform>) {
    let census = mm.census(&[]);
    let found: std::vec::Vec<_> = census.discrepancies().iter().collect();
    assert!(census.is_consistent(), "{found:?}");
}

/// Bytes that differ by object and place.
pub(super) fn pattern(tag: u64, bytes: usize) -> std::vec::Vec<u8> {
    let byte = |at: usize| (tag.wrapping_mul(31).wrapping_add(at as u64 * 7) % 251) as u8;
    (0..bytes).map(byte).collect()
}

/// Reads an object and compares it with its pattern.
pub(super) fn expect(pool: &ZsPool<'_, TestPlatform>, handle: ZsHandle, tag: u64, bytes: usize) {
    let mut found = std::vec![0; bytes];
    pool.read(handle, &mut found).unwrap();
    assert_eq!(found, pattern(tag, bytes), "{handle:?}");
}

#[test]
fn objects_of_every_size_keep_their_bytes_and_leave_no_page() {
    with_pool(4096, |mm, pool| {
        let mut objects = std::vec::Vec::new();
        for (tag, bytes) in (1..=MAX_OBJECT_BYTES).step_by(13).enumerate() {
            let handle = pool.store(&pattern(tag as u64, bytes), Gfp::KERNEL).unwrap();
            objects.push((handle, tag as u64, bytes));
        }
        assert_eq!(pool.stats().objects, objects.len() as u64);
        assert_balanced(mm);
        for &(handle, tag, bytes) in &objects {
            expect(pool, handle, tag, bytes);
        }
        for (handle, ..) in objects {
            pool.free(handle).unwrap();
        }
        let stats = pool.stats();
        assert_eq!((stats.objects, stats.pages, stats.zspages, stats.refused), (0, 0, 0, 0));
    });
}

#[test]
fn a_class_fills_its_zspages_before_it_takes_another() {
    with_pool(4096, |_, pool| {
        let class = &ALL_CLASSES[class_of(1500).unwrap()];
        let count = 5 * class.objects;
        let handles: std::vec::Vec<_> =
            (0..count).map(|at| pool.store(&pattern(at as u64, 1500), Gfp::KERNEL)).collect();
        assert_eq!(pool.stats().zspages, 5);
        assert_eq!(pool.stats().pages, 5 * class.pages as u64);
        for (at, handle) in handles.into_iter().enumerate() {
            expect(pool, handle.unwrap(), at as u64, 1500);
            pool.free(handle.unwrap()).unwrap();
        }
    });
}

/// A zspage without an object once stayed in its class if, while it was made, something else of
/// the class came free: nothing freed it, and the pool was destroyed under it.
#[test]
fn a_zspage_made_while_another_cpu_made_one_gets_the_object() {
    for (class, definition) in ALL_CLASSES.iter().enumerate() {
        with_pool(1024, |mm, pool| {
            let (state, bytes) = (pool.state(), definition.capacity());
            // What `alloc` does when it finds nothing free …
            let handle = state.handles.take(mm.memory(), Gfp::KERNEL).unwrap();
            assert_eq!(state.place(class, None, handle), Ok(false));
            let new = state.new_zspage(class, Gfp::KERNEL).unwrap();
            // … and another CPU meanwhile.
            let others = pool.store(&pattern(1, bytes), Gfp::KERNEL).unwrap();
            assert_eq!(state.place(class, Some(new), handle), Ok(true));
            state.counters.count(stats::ZsEvent::Allocated);
            assert_eq!(pool.stats().zspages, 2);
            assert_balanced(mm);
            pool.free(handle).unwrap();
            pool.free(others).unwrap();
            assert_eq!((pool.stats().zspages, pool.stats().pages), (0, 0));
        });
    }
}

/// The census once looked into whatever an entry had named a moment before.
#[test]
fn a_census_is_sound_while_objects_come_and_go() {
    with_pool(1024, |_, pool| {
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                testing::set_cpu(1);
                for turn in 0..3000 {
                    let handle = pool.alloc(1 + turn % MAX_OBJECT_BYTES, Gfp::KERNEL).unwrap();
                    pool.free(handle).unwrap();
                }
                is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                pool.census(&mut |_| {});
            }
        });
        assert_eq!(pool.census(&mut |wrong| panic!("{wrong}")).objects, 0);
    });
}

#[test]
fn compaction_frees_what_sparse_zspages_hold_together() {
    with_pool(4096, |mm, pool| {
        let mut kept = std::vec::Vec::new();
        for bytes in [40, 700, 1500, 3000, 4096] {
            let objects = ALL_CLASSES[class_of(bytes).unwrap()].objects;
            let stored: std::vec::Vec<_> = (0..8 * objects)
                .map(|at| pool.store(&pattern(at as u64, bytes), Gfp::KERNEL).unwrap())
                .collect();
            for (at, handle) in stored.into_iter().enumerate() {
                if at % 4 == 0 {
                    kept.push((handle, at as u64, bytes));
                } else {
                    pool.free(handle).unwrap();
                }
            }
        }
        let before = pool.stats();
        let freed = mm.zs_compact();
        let after = pool.stats();
        assert_eq!(before.pages - after.pages, freed);
        assert!(freed * 2 > before.pages, "{freed} of {} pages", before.pages);
        assert!(after.objects_compacted > 0);
        assert_balanced(mm);
        assert_eq!(mm.zs_compact(), 0, "nothing is left to win");
        for (handle, tag, bytes) in kept {
            expect(pool, handle, tag, bytes);
            pool.free(handle).unwrap();
        }
    });
}

#[test]
fn readers_of_an_object_see_it_whole_while_compaction_moves_it() {
    with_pool(4096, |mm, pool| {
        let stored: std::vec::Vec<_> =
            (0..400).map(|at| pool.store(&pattern(at, 1500), Gfp::KERNEL).unwrap()).collect();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for cpu in 1..3 {
                let (stored, is_over) = (&stored, &is_over);
                scope.spawn(move || {
                    testing::set_cpu(cpu);
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        for at in (0..400).step_by(4) {
                            expect(pool, stored[at], at as u64, 1500);
                        }
                    }
                });
            }
            for round in 0..6 {
                // Holes all over, compacted, filled again.
                let mut others = std::vec::Vec::new();
                if round == 0 {
                    (0..400).filter(|at| at % 4 != 0).for_each(|at| pool.free(stored[at]).unwrap());
                } else {
                    others.extend((0..300).map(|_| pool.alloc(1500, Gfp::KERNEL).unwrap()));
                    others.drain(..).for_each(|handle| pool.free(handle).unwrap());
                }
                pool.compact();
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_balanced(mm);
        (0..400).step_by(4).for_each(|at| pool.free(stored[at]).unwrap());
    });
}

#[test]
fn pools_in_use_and_pools_beyond_the_last_are_refused() {
    with_pool(4096, |mm, pool| {
        let mut others: std::vec::Vec<_> =
            (1..MAX_POOLS).map(|_| mm.zs_create_pool().unwrap()).collect();
        assert_eq!(mm.zs_create_pool().map(drop), Err(ZsError::TooManyPools));
        let handle = others[0].alloc(100, Gfp::KERNEL).unwrap();
        assert_eq!(pool.free(handle), Err(ZsError::BadHandle(handle)), "another pool's handle");
        let (back, error) = mm.zs_destroy_pool(others.swap_remove(0)).unwrap_err();
        assert_eq!(error, ZsError::InUse(1));
        back.free(handle).unwrap();
        others.push(back);
        for pool in others {
            mm.zs_destroy_pool(pool).map_err(|(_, error)| error).unwrap();
        }
    });
}
