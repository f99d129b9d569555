//! A failure at each step of a transaction.

use super::*;
use crate::platform::FaultSite;

const SITES: [FaultSite; 4] = [
    FaultSite::MigrateIsolate,
    FaultSite::MigrateDestination,
    FaultSite::MigrateCallback,
    FaultSite::BuddyAlloc,
];

/// Isolates and migrates `pages`; returns where each is afterwards.
fn attempt(mm: &TestMm<'_>, pages: &[Pfn], mode: MigrateMode) -> (Vec<Pfn>, MigrateStats) {
    let mut batch = MigrateBatch::<_>::new(mm);
    for &pfn in pages {
        match mm.isolate_for_migration(pfn, &mut batch) {
            Ok(()) => {}
            Err(error) => assert_eq!(error, IsolateError::Raced(pfn)),
        }
    }
    let mut to = Noted::new(mm);
    let stats = mm.migrate_pages(&mut batch, &mut to, mode);
    // What is not given back was taken.
    let moved = |src: &Pfn| to.sent.iter().find(|(from, _)| from == src).map(|(_, dst)| *dst);
    (pages.iter().map(|src| moved(src).unwrap_or(*src)).collect(), stats)
}

#[test]
fn whichever_step_fails_every_page_has_one_owner_and_nothing_is_lost() {
    for kind in MovableKind::ALL {
        for site in SITES {
            let mut struck = true;
            let mut nth = 0;
            while struck {
                nth += 1;
                assert!(nth < 40, "there are not so many steps");
                with_mm(|mm| {
                    Script::register(mm, kind, &[]);
                    let pages: Vec<_> = (0..3).map(|_| page(mm, kind)).collect();
                    let before = mm.platform().faults().struck(site);
                    mm.platform().faults().fail_nth(site, nth);
                    let (at, stats) = attempt(mm, &pages, MigrateMode::Async);
                    mm.platform().faults().fail_nth(site, 0);
                    struck = mm.platform().faults().struck(site) > before;
                    assert!(struck || stats.migrated == 3, "{stats:?}");
                    assert_sound(mm);
                    at.into_iter().for_each(|pfn| free(mm, kind, pfn));
                });
            }
        }
    }
}

#[test]
fn with_failures_at_random_pages_keep_their_owners() {
    for seed in 0..4 {
        let ram = [testing::range(0, 1024)];
        let platform = TestPlatform::new(&ram, seed);
        let memory = crate::memory::Memory::new(platform, &ram, &[]).unwrap();
        let base = Base::new(memory).unwrap();
        let mm = Mm::new(&base);
        Script::register(&mm, MovableKind::Movable, &[]);
        let mut pages: Vec<_> = (0..20).map(|_| described::<MovableDesc>(&mm)).collect();
        SITES.into_iter().for_each(|site| mm.platform().faults().fail_randomly(site, 5));
        let mut migrated = 0;
        for _ in 0..20 {
            let (at, stats) = attempt(&mm, &pages, MigrateMode::SyncLight);
            migrated += stats.migrated;
            pages = at;
            assert_sound(&mm);
        }
        SITES.into_iter().for_each(|site| mm.platform().faults().fail_randomly(site, 0));
        assert!(migrated > 0, "nothing moved");
        pages.into_iter().for_each(|pfn| free(&mm, MovableKind::Movable, pfn));
        assert_sound(&mm);
    }
}

/// As many destinations as one likes, then none.
struct Few<'a>(Noted<'a>, usize);

impl Destinations for Few<'_> {
    fn take(&mut self, order: Order, src: Pfn) -> Option<crate::memory::FrozenFrames> {
        self.1 = self.1.checked_sub(1)?;
        self.0.take(order, src)
    }

    fn give_back(&mut self, frames: crate::memory::FrozenFrames) {
        self.0.give_back(frames);
    }
}

#[test]
fn when_destinations_run_out_the_rest_is_put_back_without_asking_again() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        let pages: Vec<_> = (0..5).map(|_| described::<MovableDesc>(mm)).collect();
        let mut batch = batch_of(mm, &pages);
        let mut few = Few(Noted::new(mm), 2);
        let stats = mm.migrate_pages(&mut batch, &mut few, MigrateMode::Sync);
        assert_eq!((stats.migrated, stats.failed_with(MigrateError::NoMemory)), (2, 3));
        assert_eq!(stats.passes, 1);
        for (at, &pfn) in pages.iter().enumerate() {
            free(mm, MovableKind::Movable, if at < 2 { few.0.of(pfn) } else { pfn });
        }
    });
}
