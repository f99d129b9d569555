//! A pool against a map from handles to bytes.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::migrate::{Allocated, IsolateError, MigrateBatch, MigrateMode};
use crate::platform::FaultSite;

#[derive(Debug, Clone)]
enum Step {
    Store(usize),
    Free(usize),
    Rewrite(usize),
    Read(usize),
    Compact,
    /// Every page moves, but for those at which the nth step fails, if any does.
    Migrate(FaultSite, u64),
    /// An object is freed while migration has all pages.
    FreeIsolated(usize),
    /// The nth allocation of a store fails.
    StoreWithout(FaultSite, u64, usize),
}

fn failing() -> impl Strategy<Value = FaultSite> {
    prop_oneof![Just(FaultSite::BuddyAlloc), Just(FaultSite::SlabAlloc)]
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![4 => 1..200usize, 4 => 1..=MAX_OBJECT_BYTES, 1 => Just(4096)];
    let site = prop_oneof![
        Just(FaultSite::MigrateIsolate),
        Just(FaultSite::MigrateDestination),
        Just(FaultSite::MigrateCallback),
    ];
    prop_oneof![
        6 => size().prop_map(Step::Store),
        4 => any::<usize>().prop_map(Step::Free),
        2 => any::<usize>().prop_map(Step::Rewrite),
        2 => any::<usize>().prop_map(Step::Read),
        1 => Just(Step::Compact),
        2 => (site, 0..20u64).prop_map(|(site, nth)| Step::Migrate(site, nth)),
        2 => any::<usize>().prop_map(Step::FreeIsolated),
        2 => (failing(), 1..8u64, size())
            .prop_map(|(site, nth, bytes)| Step::StoreWithout(site, nth, bytes)),
    ]
}

/// All pages of the pool that can be isolated.
fn isolated<'a, 'm>(
    mm: &'a Mm<'m, TestPlatform>,
    pool: &ZsPool<'m, TestPlatform>,
) -> MigrateBatch<'a, 'm, TestPlatform, 512> {
    let mut pages = Vec::new();
    pool.for_each_page(&mut |frame| pages.push(frame));
    let mut batch = MigrateBatch::new(mm);
    for frame in pages {
        // Refused if a step is to fail there.
        if let Err(error) = mm.isolate_for_migration(frame, &mut batch) {
            assert!(matches!(error, IsolateError::Raced(_)), "{error}");
        }
    }
    batch
}

/// The object that a random number means.
fn chosen(model: &BTreeMap<u64, (u64, usize)>, number: usize) -> Option<ZsHandle> {
    let bits = model.keys().nth(number.checked_rem(model.len())?)?;
    ZsHandle::from_bits(*bits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_does_what_a_map_does(steps in prop::collection::vec(step(), 1..150)) {
        with_pool(2048, |mm, pool| {
            let mut model: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
            for (turn, step) in steps.iter().enumerate() {
                let tag = turn as u64;
                match *step {
                    Step::Store(bytes) => {
                        let handle = pool.store(&pattern(tag, bytes), Gfp::KERNEL).unwrap();
                        let twice = model.insert(handle.bits(), (tag, bytes));
                        assert_eq!(twice, None, "{handle:?} handed out twice");
                    }
                    Step::Free(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        pool.free(handle).unwrap();
                        model.remove(&handle.bits());
                        assert_eq!(pool.free(handle), Err(ZsError::BadHandle(handle)));
                    }
                    Step::Rewrite(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        let entry = model.get_mut(&handle.bits()).unwrap();
                        pool.write(handle, &pattern(tag, entry.1)).unwrap();
                        entry.0 = tag;
                    }
                    Step::Read(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        let (tag, bytes) = model[&handle.bits()];
                        expect(pool, handle, tag, bytes);
                    }
                    Step::Compact => {
                        pool.compact();
                    }
                    Step::Migrate(site, nth) => {
                        mm.platform().faults().fail_nth(site, nth);
                        let pages = pool.stats().pages;
                        let mut batch = isolated(mm, pool);
                        let mut places = Allocated::new(mm.memory());
                        mm.migrate_pages(&mut batch, &mut places, MigrateMode::SyncLight);
                        mm.platform().faults().fail_nth(site, 0);
                        assert_eq!((pool.stats().pages, mm.isolated_blocks()), (pages, 0));
                    }
                    Step::FreeIsolated(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        let batch = isolated(mm, pool);
                        pool.free(handle).unwrap();
                        model.remove(&handle.bits());
                        // Puts pages back, or frees those that are nobody's.
                        drop(batch);
                        assert_eq!(mm.isolated_blocks(), 0);
                    }
                    Step::StoreWithout(site, nth, bytes) => {
                        mm.platform().faults().fail_nth(site, nth);
                        let stored = pool.store(&pattern(tag, bytes), Gfp::KERNEL);
                        mm.platform().faults().fail_nth(site, 0);
                        match stored {
                            Ok(handle) => {
                                assert_eq!(model.insert(handle.bits(), (tag, bytes)), None);
                            }
                            Err(error) => assert!(matches!(error, ZsError::NoMemory(_))),
                        }
                    }
                }
                let mut found = Vec::new();
                let census = pool.census(&mut |wrong| found.push(wrong));
                assert_eq!(found, [], "after step {turn}: {step:?}");
                assert_eq!(census.objects, model.len() as u64);
            }
            assert_balanced(mm);
            for (bits, (tag, bytes)) in model {
                let handle = ZsHandle::from_bits(bits).unwrap();
                expect(pool, handle, tag, bytes);
                pool.free(handle).unwrap();
            }
        });
    }
}
