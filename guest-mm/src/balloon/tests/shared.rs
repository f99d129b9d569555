//! The driver behind its lock: allocations and migrations that meet there.

use std::thread;

use crate::balloon::{BalloonDriver, Options, Patience, SharedBalloon};
use crate::memdesc::Kind;
use crate::migrate::{Allocated, MigrateBatch, MigrateMode};
use crate::mm::{Base, Mm};
use crate::reclaim::OomNotifier;
use crate::testing::balloon::BalloonDevice;
use crate::testing::{self, set_cpu};

use super::map_store::MapStore;

const PAGES: u64 = 4096;
const BALLOONED: u32 = 24;

#[test]
fn whoever_is_out_of_memory_waits_for_pages_that_migration_has() {
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
    let given = thread::scope(|scope| {
        let out_of_memory = scope.spawn(|| {
            set_cpu(1);
            shared.out_of_memory()
        });
        while shared.status().unwrap().counters.oom_notifications == 0 {
            thread::yield_now();
        }
        mm.migrate_pages(&mut batch, &mut Allocated::new(&base.memory), MigrateMode::Sync);
        out_of_memory.join().unwrap()
    });
    assert!(given > 0, "nobody is killed while the balloon has pages");
    assert_eq!(device.held() + given, u64::from(BALLOONED));
    while shared.out_of_memory() > 0 {}
    assert_eq!((device.held(), base.memory.census().discrepancies().total()), (0, 0));
}
