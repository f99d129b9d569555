//! Large folios that are split for want of a destination of their size.

use abi::{PAGE_SIZE, PageCount, Pfn};

use crate::addr::PMD_SIZE;
use crate::folio::{FolioFlags, FolioRef};
use crate::memdesc::Order;
use crate::memory::FrozenFrames;
use crate::migrate::{Allocated, Destinations, MigrateBatch, MigrateError, MigrateMode};
use crate::pgtable::PmdState;
use crate::platform::FaultSite;
use crate::rmap::tests::world::{Space, World};
use crate::testing::TestPlatform;

/// Single pages only, at most so many.
struct Pages<'a> {
    from: Allocated<'a, TestPlatform>,
    left: u64,
}

impl Destinations for Pages<'_> {
    fn take(&mut self, order: Order, src: Pfn) -> Option<FrozenFrames> {
        if order != Order::ZERO || self.left == 0 {
            return None;
        }
        self.left -= 1;
        self.from.take(order, src)
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.left += 1;
        self.from.give_back(frames);
    }
}

/// The frame that is mapped at an address, by a leaf of whatever size.
fn frame(world: &World, space: &Space, at: u64) -> Pfn {
    let folio = world.folio(space, at);
    let pfn = folio.pfn();
    world.mm.put(folio);
    pfn
}

/// A process with 2 MiB, of which some pages were written.
fn huge(world: &World) -> (Space, u64) {
    let space = world.space();
    let at = world.map_huge(&space);
    for page in (0..512).step_by(73) {
        world.store(&space, at + page * PAGE_SIZE, page).unwrap();
    }
    assert!(matches!(world.entry(&space, at).pmd(), PmdState::Present(_)));
    (space, at)
}

fn expect(world: &World, space: &Space, at: u64) {
    for page in (0..512).step_by(73) {
        assert_eq!(world.load(space, at + page * PAGE_SIZE), Ok(page));
    }
}

#[test]
fn without_a_destination_of_its_size_a_huge_page_moves_by_pages() {
    let world = World::new(8192);
    let (space, at) = huge(&world);
    let from = frame(&world, &space, at);
    let mut pages = Pages { from: Allocated::new(world.mm.memory()), left: 512 };
    let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
    world.mm.isolate_for_migration(from, &mut batch).unwrap();
    let stats = world.mm.migrate_pages(&mut batch, &mut pages, MigrateMode::SyncLight);
    assert_eq!((stats.migrated, stats.failed()), (512, 0), "{stats:?}");
    drop(batch);
    expect(&world, &space, at);
    for page in 0..512 {
        let folio = world.folio(&space, at + page * PAGE_SIZE);
        assert_eq!(folio.order(), Order::ZERO);
        assert!(folio.has(FolioFlags::LRU));
        world.mm.put(folio);
    }
    world.end([space]);
}

#[test]
fn pages_for_which_there_is_no_destination_stay() {
    let world = World::new(8192);
    let (space, at) = huge(&world);
    let from = frame(&world, &space, at);
    let mut pages = Pages { from: Allocated::new(world.mm.memory()), left: 100 };
    let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
    world.mm.isolate_for_migration(from, &mut batch).unwrap();
    let stats = world.mm.migrate_pages(&mut batch, &mut pages, MigrateMode::SyncLight);
    assert_eq!(stats.migrated, 100);
    assert_eq!(stats.failed_with(MigrateError::NoMemory), 412);
    drop(batch);
    expect(&world, &space, at);
    world.end([space]);
}

#[test]
fn pages_of_a_huge_page_that_nobody_maps_are_freed_and_not_moved() {
    let world = World::new(8192);
    let (space, at) = huge(&world);
    let from = frame(&world, &space, at);
    world.mm.munmap(&space, at + PMD_SIZE / 2, PMD_SIZE / 2).unwrap();
    let mut pages = Pages { from: Allocated::new(world.mm.memory()), left: 512 };
    let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
    world.mm.isolate_for_migration(from, &mut batch).unwrap();
    let stats = world.mm.migrate_pages(&mut batch, &mut pages, MigrateMode::SyncLight);
    assert_eq!((stats.migrated, stats.freed, stats.failed()), (256, 256, 0), "{stats:?}");
    drop(batch);
    for page in (0..256).step_by(73) {
        assert_eq!(world.load(&space, at + page * PAGE_SIZE), Ok(page));
    }
    world.end([space]);
}

#[test]
fn a_failure_at_any_step_leaves_every_page_whole() {
    let sites = [FaultSite::BuddyAlloc, FaultSite::SlabAlloc, FaultSite::MigrateDestination];
    for (site, nth) in sites.into_iter().flat_map(|site| (1..6).map(move |nth| (site, nth))) {
        let world = World::new(8192);
        let (space, at) = huge(&world);
        let from = frame(&world, &space, at);
        let mut pages = Pages { from: Allocated::new(world.mm.memory()), left: 512 };
        let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
        world.mm.isolate_for_migration(from, &mut batch).unwrap();
        world.platform().faults().fail_nth(site, nth);
        let stats = world.mm.migrate_pages(&mut batch, &mut pages, MigrateMode::Async);
        world.platform().faults().fail_nth(site, 0);
        assert_eq!(stats.migrated + stats.freed + stats.failed(), 512, "{site:?} {nth}: {stats:?}");
        drop(batch);
        expect(&world, &space, at);
        world.end([space]);
    }
}

/// Single pages; whoever comes for one of `held` finds that somebody else has a
/// reference to it, until he has come so many times before.
struct HeldParts<'a> {
    world: &'a World,
    pages: Pages<'a>,
    held: Vec<Held>,
}

struct Held {
    part: Pfn,
    /// Times that a destination for it was asked for.
    asked: u32,
    /// Time at which the reference is given up.
    until: u32,
    reference: Option<FolioRef<'static>>,
}

impl<'a> HeldParts<'a> {
    fn new(world: &'a World, held: impl IntoIterator<Item = (Pfn, u32)>) -> Self {
        let held = held.into_iter();
        let held = held.map(|(part, until)| Held { part, asked: 0, until, reference: None });
        let pages = Pages { from: Allocated::new(world.mm.memory()), left: 512 };
        Self { world, pages, held: held.collect() }
    }

    fn asked(&self) -> Vec<u32> {
        self.held.iter().map(|held| held.asked).collect()
    }

    fn let_go(&mut self) {
        for held in &mut self.held {
            if let Some(reference) = held.reference.take() {
                self.world.mm.put(reference);
            }
        }
    }
}

impl Destinations for HeldParts<'_> {
    fn take(&mut self, order: Order, src: Pfn) -> Option<FrozenFrames> {
        let is_part = |held: &&mut Held| order == Order::ZERO && held.part == src;
        if let Some(held) = self.held.iter_mut().find(is_part) {
            held.asked += 1;
            if held.asked == 1 {
                held.reference = Some(self.world.mm.folio_of(src).unwrap());
            }
            if held.asked == held.until {
                self.world.mm.put(held.reference.take().unwrap());
            }
        }
        self.pages.take(order, src)
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.pages.give_back(frames);
    }
}

/// The frame of page `page` of the folio at `from`.
fn part(from: Pfn, page: u64) -> Pfn {
    from.checked_add(PageCount::new(page)).unwrap()
}

/// Regression: a part was tried once, and went back to the LRU if somebody used it just then.
#[test]
fn parts_whose_references_go_between_passes_move_in_the_same_call() {
    for mode in [MigrateMode::Async, MigrateMode::SyncLight] {
        let world = World::new(8192);
        let (space, at) = huge(&world);
        let from = frame(&world, &space, at);
        let last = mode.passes();
        let held = [(part(from, 0), 2), (part(from, 73), last), (part(from, 511), 2)];
        let mut destinations = HeldParts::new(&world, held);
        let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
        world.mm.isolate_for_migration(from, &mut batch).unwrap();
        let stats = world.mm.migrate_pages(&mut batch, &mut destinations, mode);
        assert_eq!((stats.migrated, stats.failed()), (512, 0), "{mode:?}: {stats:?}");
        assert_eq!(destinations.asked(), [2, last, 2], "{mode:?}");
        assert_eq!((stats.passes, world.mm.isolated_folios()), (last, 0));
        drop(batch);
        expect(&world, &space, at);
        world.end([space]);
    }
}

#[test]
fn parts_that_stay_in_use_go_back_to_the_lru_after_the_last_pass() {
    for mode in [MigrateMode::Async, MigrateMode::Sync] {
        let world = World::new(8192);
        let (space, at) = huge(&world);
        let from = frame(&world, &space, at);
        let stay = (100..400).map(|page| (part(from, page), u32::MAX));
        let mut destinations = HeldParts::new(&world, stay);
        let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
        world.mm.isolate_for_migration(from, &mut batch).unwrap();
        let stats = world.mm.migrate_pages(&mut batch, &mut destinations, mode);
        assert_eq!((stats.migrated, stats.failed()), (212, 300), "{mode:?}: {stats:?}");
        assert_eq!(stats.failed_with(MigrateError::Again), 300);
        assert_eq!(destinations.asked(), vec![mode.passes(); 300]);
        assert_eq!((stats.passes, world.mm.isolated_folios()), (mode.passes(), 0));
        drop(batch);
        for held in &destinations.held {
            let folio = held.reference.as_ref().unwrap();
            assert_eq!(folio.pfn(), held.part);
            assert!(folio.has(FolioFlags::LRU) && !folio.has(FolioFlags::ISOLATED));
        }
        destinations.let_go();
        expect(&world, &space, at);
        world.end([space]);
    }
}
