//! The driver behind its lock: allocations and migrations that meet there.

use std::thread;

use crate::balloon::{BalloonDriver, Options, Patience, SharedBalloon};
use crate::memdesc::Kind;
use crate::migrate::{Allocated, MigrateBatch, MigrateError, MigrateMode};
use crate::mm::{Base, Mm};
use crate::reclaim::OomNotifier;
use crate::testing::balloon::BalloonDevice;
use crate::testing::{self, TestPlatform, set_cpu};

use super::map_store::MapStore;

const PAGES: u64 = 4096;
const BALLOONED: u32 = 24;

type Shared<'m> = SharedBalloon<'m, TestPlatform, &'m BalloonDevice<'m>, MapStore>;

/// What a test does with a driver behind its lock, and all of its pages in a batch.
type Act =
    for<'a, 'm> fn(&'a Mm<'m, TestPlatform>, &'a Shared<'m>, MigrateBatch<'a, 'm, TestPlatform>);

/// Inflates, isolates everything, lets the test act, and deflates for whoever is out of memory.
fn with_all_isolated(act: Act) {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let device = BalloonDevice::new(base.platform());
    let store = MapStore::default();
    let shared = SharedBalloon::new(base.platform(), Patience::default());
    let mm = Mm::new(&base);
    let options = Options { max_order: 0, ..Options::default() };
    shared.install(BalloonDriver::start(&base.memory, &store, &device, options).unwrap());
    mm.set_movable_ops(Kind::Offline, &shared).unwrap();
    device.set_target(BALLOONED);
    while shared.status().unwrap().actual.get() < u64::from(BALLOONED) {
        shared.serve(device.has_interrupt());
    }
    let mut batch = MigrateBatch::<_>::new(&mm);
    for pfn in testing::range(0, PAGES).iter() {
        let _other = mm.isolate_for_migration(pfn, &mut batch);
    }
    assert_eq!(batch.len(), BALLOONED as usize, "all of it is isolated");
    act(&mm, &shared, batch);
    while shared.out_of_memory() > 0 {}
    assert_eq!((device.held(), base.memory.census().discrepancies().total()), (0, 0));
}

#[test]
fn whoever_is_out_of_memory_waits_for_pages_that_migration_has() {
    with_all_isolated(|mm, shared, mut batch| {
        let given = thread::scope(|scope| {
            let out_of_memory = scope.spawn(|| {
                set_cpu(1);
                shared.out_of_memory()
            });
            while shared.status().unwrap().counters.oom_notifications == 0 {
                thread::yield_now();
            }
            mm.migrate_pages(&mut batch, &mut Allocated::new(mm.memory()), MigrateMode::Sync);
            out_of_memory.join().unwrap()
        });
        assert!(given > 0, "nobody is killed while the balloon has pages");
        assert_eq!(shared.status().unwrap().actual.get() + given, u64::from(BALLOONED));
    });
}

/// An inflation may itself set off compaction, and has the driver's lock then.
#[test]
fn pages_whose_driver_is_at_work_stay_until_it_is_done() {
    with_all_isolated(|mm, shared, mut batch| {
        let mut destinations = Allocated::new(mm.memory());
        let below = shared
            .with(|_driver| mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Sync));
        let below = below.unwrap();
        assert_eq!(below.failed_with(MigrateError::Again), u64::from(BALLOONED));
        assert_eq!((below.vacated(), mm.isolated_blocks()), (0, 0), "all were put back");
        assert_eq!(shared.status().unwrap().actual.get(), u64::from(BALLOONED));

        for pfn in testing::range(0, PAGES).iter() {
            let _other = mm.isolate_for_migration(pfn, &mut batch);
        }
        let after = mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Sync);
        assert_eq!(after.migrated, u64::from(BALLOONED));
    });
}
