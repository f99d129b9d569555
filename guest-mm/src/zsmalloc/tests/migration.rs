//! Pages move under their objects.

use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

use abi::Pfn;

use super::*;
use crate::memdesc::Kind;
use crate::migrate::{Allocated, IsolateError, MigrateBatch, MigrateMode, MigrateStats};
use crate::platform::FaultSite;

type TestPool<'m> = ZsPool<'m, TestPlatform>;

fn pages_of(pool: &TestPool<'_>) -> Vec<Pfn> {
    let mut pages = Vec::new();
    pool.for_each_page(&mut |frame| pages.push(frame));
    pages
}

/// Isolates every page of the pool that can be, as far as a batch goes.
fn isolate_all<'a, 'm>(
    mm: &'a Mm<'m, TestPlatform>,
    pool: &TestPool<'m>,
) -> MigrateBatch<'a, 'm, TestPlatform, 512> {
    let mut batch = MigrateBatch::new(mm);
    for frame in pages_of(pool) {
        mm.isolate_for_migration(frame, &mut batch).unwrap();
    }
    batch
}

/// Moves every page of the pool.
fn migrate_all<'m>(
    mm: &Mm<'m, TestPlatform>,
    pool: &TestPool<'m>,
    mode: MigrateMode,
) -> MigrateStats {
    let mut batch = isolate_all(mm, pool);
    mm.migrate_pages(&mut batch, &mut Allocated::new(mm.memory()), mode)
}

/// Objects of many sizes, with their sizes.
fn stored(pool: &TestPool<'_>) -> Vec<(ZsHandle, u64, usize)> {
    let sizes = (1..=MAX_OBJECT_BYTES).step_by(61).chain([MAX_OBJECT_BYTES]);
    let store = |(tag, bytes)| {
        let tag = tag as u64;
        (pool.store(&pattern(tag, bytes), Gfp::KERNEL).unwrap(), tag, bytes)
    };
    sizes.enumerate().map(store).collect()
}

fn expect_all(pool: &TestPool<'_>, objects: &[(ZsHandle, u64, usize)]) {
    objects.iter().for_each(|&(handle, tag, bytes)| expect(pool, handle, tag, bytes));
}

fn free_all(pool: &TestPool<'_>, objects: Vec<(ZsHandle, u64, usize)>) {
    objects.into_iter().for_each(|(handle, ..)| pool.free(handle).unwrap());
}

#[test]
fn every_page_moves_and_handles_and_objects_stay_as_they_were() {
    for mode in [MigrateMode::Async, MigrateMode::SyncLight, MigrateMode::Sync] {
        with_pool(4096, |mm, pool| {
            let objects = stored(pool);
            let before = pages_of(pool);
            let stats = migrate_all(mm, pool, mode);
            let after = pages_of(pool);
            assert_eq!(stats.migrated, before.len() as u64, "{stats:?}");
            assert_eq!(pool.stats().pages_migrated, stats.migrated);
            assert_eq!(after.len(), before.len());
            assert!(before.iter().zip(&after).all(|(old, new)| old != new));
            assert_balanced(mm);
            expect_all(pool, &objects);
            // What was written to the new places is there after the next move.
            for (handle, _, bytes) in &objects {
                pool.write(*handle, &pattern(900, *bytes)).unwrap();
            }
            migrate_all(mm, pool, mode);
            objects.iter().for_each(|&(handle, _, bytes)| expect(pool, handle, 900, bytes));
            free_all(pool, objects);
        });
    }
}

#[test]
fn objects_are_read_written_and_compacted_while_their_pages_are_isolated() {
    with_pool(4096, |mm, pool| {
        let mut objects = stored(pool);
        let mut batch = isolate_all(mm, pool);
        assert_eq!(mm.isolated_blocks(), batch.len() as u64);
        expect_all(pool, &objects);
        for (at, (handle, tag, bytes)) in objects.iter_mut().enumerate() {
            *tag = 500 + at as u64;
            pool.write(*handle, &pattern(*tag, *bytes)).unwrap();
        }
        pool.compact();
        expect_all(pool, &objects);
        mm.migrate_pages(&mut batch, &mut Allocated::new(mm.memory()), MigrateMode::Sync);
        assert_balanced(mm);
        expect_all(pool, &objects);
        free_all(pool, objects);
    });
}

#[test]
fn a_page_freed_while_isolated_goes_when_it_is_put_back_or_migrated() {
    for is_migrated in [false, true] {
        with_pool(4096, |mm, pool| {
            let objects = stored(pool);
            let mut batch = isolate_all(mm, pool);
            let isolated = batch.len() as u64;
            free_all(pool, objects);
            let stats = pool.stats();
            assert_eq!((stats.pages, stats.zspages, stats.pages_deferred), (0, 0, isolated));
            // The pool is none the wiser: it has new pages for new objects.
            let again = pool.store(&pattern(1, 1500), Gfp::KERNEL).unwrap();
            let freed = if is_migrated {
                let mut places = Allocated::new(mm.memory());
                let stats = mm.migrate_pages(&mut batch, &mut places, MigrateMode::Async);
                assert_eq!(stats.migrated, 0, "nobody's pages are not copied");
                stats.freed
            } else {
                batch.putback()
            };
            assert_eq!(freed, isolated);
            assert_eq!(mm.isolated_blocks(), 0);
            assert_balanced(mm);
            expect(pool, again, 1, 1500);
            pool.free(again).unwrap();
        });
    }
}

#[test]
fn a_pool_goes_while_migration_still_has_pages_of_it_and_another_takes_its_place() {
    let base = Base::new(testing::memory(2048)).unwrap();
    let mm = Mm::new(&base);
    let before = settled(&mm);
    let pool = mm.zs_create_pool().unwrap();
    let objects = stored(&pool);
    let mut batch = isolate_all(&mm, &pool);
    free_all(&pool, objects);
    mm.zs_destroy_pool(pool).map_err(|(_, error)| error).unwrap();
    assert!(mm.clear_movable_ops(Kind::ZpDesc).is_err(), "the batch uses them");
    let second = mm.zs_create_pool().unwrap();
    let handle = second.store(&pattern(3, 800), Gfp::KERNEL).unwrap();
    assert!(batch.putback() > 0);
    drop(batch);
    assert_eq!(migrate_all(&mm, &second, MigrateMode::Sync).failed(), 0);
    expect(&second, handle, 3, 800);
    second.free(handle).unwrap();
    mm.zs_destroy_pool(second).map_err(|(_, error)| error).unwrap();
    assert_balanced(&mm);
    assert_eq!(settled(&mm), before);
    assert!(mm.clear_movable_ops(Kind::ZpDesc).is_err(), "gone with the last pool");
}

#[test]
fn a_pool_is_not_made_while_somebody_else_moves_its_pages() {
    struct Other;
    impl crate::migrate::MovableOps<TestPlatform> for Other {
        fn migrate(
            &self,
            _mm: &Mm<'_, TestPlatform>,
            _dst: &crate::memory::TransitFrames,
            _src: Pfn,
            _mode: MigrateMode,
        ) -> Result<crate::migrate::Migrated, crate::migrate::MigrateError> {
            Err(crate::migrate::MigrateError::Busy)
        }
    }
    let base = Base::new(testing::memory(1024)).unwrap();
    let mm = Mm::new(&base);
    let before = settled(&mm);
    mm.set_movable_ops(Kind::ZpDesc, &Other).unwrap();
    let refused = mm.zs_create_pool().map(drop).unwrap_err();
    assert_eq!(refused.errno(), crate::errno::Errno::EBUSY);
    assert_eq!(settled(&mm), before);
}

#[test]
fn whichever_step_of_a_migration_fails_pages_and_objects_stay() {
    let sites = [
        FaultSite::MigrateIsolate,
        FaultSite::MigrateDestination,
        FaultSite::MigrateCallback,
        FaultSite::BuddyAlloc,
    ];
    for site in sites {
        with_pool(4096, |mm, pool| {
            let objects = stored(pool);
            let pages = pages_of(pool).len() as u64;
            for nth in 1..=pages + 1 {
                mm.platform().faults().fail_nth(site, nth);
                let mut batch: MigrateBatch<'_, '_, _, 512> = MigrateBatch::new(mm);
                for frame in pages_of(pool) {
                    match mm.isolate_for_migration(frame, &mut batch) {
                        Ok(()) => {}
                        Err(error) => assert!(matches!(error, IsolateError::Raced(_)), "{error}"),
                    }
                }
                let mut places = Allocated::new(mm.memory());
                let stats = mm.migrate_pages(&mut batch, &mut places, MigrateMode::Async);
                mm.platform().faults().fail_nth(site, 0);
                assert!(stats.migrated + stats.failed() >= pages - 1, "{site:?} {nth}: {stats:?}");
                assert_eq!(mm.isolated_blocks(), 0);
                assert_eq!(pages_of(pool).len() as u64, pages);
            }
            assert_balanced(mm);
            expect_all(pool, &objects);
            free_all(pool, objects);
        });
    }
}

/// Pages move on one CPU while objects come, go and are read on others.
#[test]
fn objects_are_whole_while_their_pages_move_on_another_cpu() {
    with_pool(4096, |mm, pool| {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..3)
                .map(|cpu| {
                    scope.spawn(move || {
                        testing::set_cpu(cpu);
                        churn(pool, cpu);
                    })
                })
                .collect();
            let is_over = &is_over;
            scope.spawn(move || {
                testing::set_cpu(3);
                while !is_over.load(Ordering::Relaxed) {
                    move_some(mm, pool, MigrateMode::Async);
                }
            });
            while !workers.iter().all(|worker| worker.is_finished()) {
                move_some(mm, pool, MigrateMode::SyncLight);
                pool.compact();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let stats = pool.stats();
        assert_eq!((stats.objects, stats.pages, stats.refused), (0, 0, 0));
        assert!(stats.pages_migrated > 0, "{stats:?}");
        assert_eq!(mm.isolated_blocks(), 0);
    });
}

/// Migrates what it can of the pool's pages.
fn move_some<'m>(mm: &Mm<'m, TestPlatform>, pool: &TestPool<'m>, mode: MigrateMode) {
    let mut batch: MigrateBatch<'_, '_, _, 64> = MigrateBatch::new(mm);
    for frame in pages_of(pool) {
        if !batch.is_full() {
            // Another CPU has it, or it is gone.
            let _raced = mm.isolate_for_migration(frame, &mut batch);
        }
    }
    let stats = mm.migrate_pages(&mut batch, &mut Allocated::new(mm.memory()), mode);
    assert_eq!(stats.failed_with(crate::migrate::MigrateError::NotTaken), 0);
    std::thread::yield_now();
}

/// Stores, reads and frees objects of all sizes.
fn churn(pool: &TestPool<'_>, cpu: usize) {
    let mut objects = Vec::new();
    for turn in 0..1200 {
        let tag = (cpu * 10_000 + turn) as u64;
        let bytes = 1 + (turn * 733 + cpu * 91) % MAX_OBJECT_BYTES;
        objects.push((pool.store(&pattern(tag, bytes), Gfp::KERNEL).unwrap(), tag, bytes));
        let (handle, tag, bytes) = objects[(turn * 17) % objects.len()];
        expect(pool, handle, tag, bytes);
        if objects.len() > 60 {
            let (handle, tag, bytes) = objects.swap_remove((turn * 13) % objects.len());
            expect(pool, handle, tag, bytes);
            pool.free(handle).unwrap();
        }
    }
    free_all(pool, objects);
}
