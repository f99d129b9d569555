//! Bad input, and every allocation failing in its turn.

use super::*;
use crate::platform::{FaultSite, Platform};

#[test]
fn senseless_sizes_are_refused_and_counted() {
    with_pool(1024, |_, pool| {
        for bytes in [0, MAX_OBJECT_BYTES + 1, usize::MAX] {
            assert_eq!(pool.alloc(bytes, Gfp::KERNEL), Err(ZsError::BadSize(bytes)));
        }
        assert_eq!(pool.stats().refused, 3);
    });
}

#[test]
fn a_handle_means_nothing_once_freed_even_if_its_entry_is_used_again() {
    with_pool(1024, |mm, pool| {
        let handle = pool.store(&pattern(1, 100), Gfp::KERNEL).unwrap();
        pool.free(handle).unwrap();
        assert_eq!(pool.free(handle), Err(ZsError::BadHandle(handle)));
        let second = pool.store(&pattern(2, 100), Gfp::KERNEL).unwrap();
        assert_ne!(handle, second);
        assert_eq!(pool.free(handle), Err(ZsError::BadHandle(handle)), "a double free");
        assert_eq!(pool.read(handle, &mut [0; 10]), Err(ZsError::BadHandle(handle)));
        expect(pool, second, 2, 100);
        for bits in [1, 512, 1 << 20, (1 << ZsHandle::BITS) - 1, u64::MAX] {
            let Some(wild) = ZsHandle::from_bits(bits).filter(|&wild| wild != second) else {
                continue;
            };
            assert_eq!(pool.free(wild), Err(ZsError::BadHandle(wild)), "{bits:#x}");
            assert_eq!(pool.write(wild, &[1]), Err(ZsError::BadHandle(wild)), "{bits:#x}");
        }
        assert!(pool.stats().refused >= 8);
        assert_balanced(mm);
        pool.free(second).unwrap();
    });
}

#[test]
fn more_bytes_than_an_object_has_are_refused_and_nothing_is_written() {
    with_pool(1024, |_, pool| {
        for bytes in [1, 60, 2000, MAX_OBJECT_BYTES] {
            let handle = pool.store(&pattern(3, bytes), Gfp::KERNEL).unwrap();
            let capacity = ALL_CLASSES[class_of(bytes).unwrap()].capacity();
            let long = std::vec![0xff; capacity + 1];
            let refused = Err(ZsError::TooLong { bytes: capacity + 1, capacity });
            assert_eq!(pool.write(handle, &long), refused);
            assert_eq!(pool.read(handle, &mut long.clone()), refused);
            expect(pool, handle, 3, bytes);
            pool.free(handle).unwrap();
        }
    });
}

#[test]
fn an_object_whose_header_was_overwritten_is_kept_and_reported() {
    with_pool(1024, |mm, pool| {
        let handle = pool.store(&pattern(4, 100), Gfp::KERNEL).unwrap();
        let mut page = None;
        pool.for_each_page(&mut |frame| page = page.or(Some(frame)));
        let header = mm.platform().frame_ptr(page.unwrap()).cast::<u32>();
        // SAFETY: the pool's page, and nobody else uses the pool.
        let before = unsafe { header.replace(0xdead_beef) };
        assert_eq!(pool.free(handle), Err(ZsError::Corrupt(handle)));
        let mut found = std::vec::Vec::new();
        pool.census(&mut |discrepancy| found.push(discrepancy));
        assert!(found.contains(&ZsDiscrepancy::Handle(handle)), "{found:?}");
        // SAFETY: as above.
        unsafe { header.write(before) };
        pool.free(handle).unwrap();
    });
}

/// An object was once handed out that was in use, or looked for beyond the zspage's pages.
#[test]
fn a_free_object_that_was_overwritten_is_handed_out_to_nobody() {
    for overwritten in [0xdead_beef, 0xdead_beee, 2 * 77] {
        with_pool(1024, |mm, pool| {
            let kept: std::vec::Vec<_> =
                (0..3).map(|tag| pool.store(&pattern(tag, 100), Gfp::KERNEL).unwrap()).collect();
            let mut page = None;
            pool.for_each_page(&mut |frame| page = page.or(Some(frame)));
            pool.free(kept[0]).unwrap();
            let header = mm.platform().frame_ptr(page.unwrap()).cast::<u32>();
            // SAFETY: the pool's page, and nobody else uses the pool.
            let before = unsafe { header.replace(overwritten) };
            let refused = pool.alloc(100, Gfp::KERNEL);
            assert!(matches!(refused, Err(ZsError::Corrupt(_))), "{overwritten:x}: {refused:?}");
            let mut found = std::vec::Vec::new();
            pool.census(&mut |discrepancy| found.push(discrepancy));
            assert!(matches!(found[..], [ZsDiscrepancy::Objects { .. }]), "{found:?}");
            // SAFETY: as above.
            unsafe { header.write(before) };
            expect(pool, kept[1], 1, 100);
            let again = pool.alloc(100, Gfp::KERNEL).unwrap();
            for handle in [again, kept[1], kept[2]] {
                pool.free(handle).unwrap();
            }
        });
    }
}

/// Each allocation of a call fails once, until the call succeeds.
#[test]
fn whichever_allocation_fails_the_books_balance() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        let mut failures = 0;
        for nth in 1..40 {
            let base = Base::new(testing::memory(1024)).unwrap();
            let mm = Mm::new(&base);
            let before = settled(&mm);
            let faults = base.platform().faults();
            faults.fail_nth(site, nth);
            let made = mm.zs_create_pool().and_then(|pool| {
                let stored = pool.store(&pattern(5, 1500), Gfp::KERNEL);
                if let Ok(handle) = stored {
                    expect(&pool, handle, 5, 1500);
                    pool.free(handle).unwrap();
                }
                mm.zs_destroy_pool(pool).map_err(|(_, error)| error).unwrap();
                stored
            });
            faults.fail_nth(site, 0);
            assert_balanced(&mm);
            assert_eq!(settled(&mm), before, "{site:?} {nth}: free pages");
            match made {
                Err(error) => assert!(matches!(error, ZsError::NoMemory(_)), "{error:?}"),
                Ok(_) => break,
            }
            failures = nth;
        }
        // Table, its first page and leaf, state, zspage, its pages, their descriptors.
        assert!((3..39).contains(&failures), "{site:?}: {failures} allocations");
    }
}

#[test]
fn a_pool_that_cannot_grow_keeps_what_it_has() {
    with_pool(512, |mm, pool| {
        let mut stored = std::vec::Vec::new();
        let error = loop {
            match pool.store(&pattern(stored.len() as u64, 2000), Gfp::KERNEL) {
                Ok(handle) => stored.push(handle),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ZsError::NoMemory(_)), "{error:?}");
        assert!(stored.len() > 100);
        assert_balanced(mm);
        for (at, handle) in stored.into_iter().enumerate() {
            expect(pool, handle, at as u64, 2000);
            pool.free(handle).unwrap();
        }
    });
}
