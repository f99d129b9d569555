//! Folios of one page.

use abi::{PAGE_SIZE, Pfn};

use super::{destination, isolated, migrate};
use crate::folio::{FolioFlags, NoFolio};
use crate::memdesc::{Order, OutOfMap};
use crate::memory::FrozenFrames;
use crate::migrate::{Destinations, FolioIsolateError, MigrateBatch, MigrateError, MigrateMode};
use crate::rmap::tests::world::World;
use crate::space::MapFlags;
use crate::testing::TestPlatform;

/// Linux moves them too: what is locked in memory is there, wherever that is.
#[test]
fn a_page_that_is_locked_in_memory_moves() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.mm.mlock(&space, at, PAGE_SIZE).unwrap();
    world.store(&space, at, 5).unwrap();
    let (from, to) = migrate(&world, &space, at).unwrap();
    assert_ne!(from, to);
    assert_eq!(world.load(&space, at), Ok(5));
    world.end([space]);
}

#[test]
fn a_page_moves_and_its_process_sees_the_same_bytes() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 7).unwrap();
    world.store(&space, at + PAGE_SIZE - 8, 8).unwrap();
    let before = world.pte(&space, at);
    let folio = world.folio(&space, at);
    let descriptor = folio.as_ptr();
    world.mm.put(folio);
    let (from, to) = migrate(&world, &space, at).unwrap();
    let after = world.pte(&space, at);
    assert_eq!((before.pfn(), after.pfn()), (from, to));
    assert_eq!(Some(after), before.with_pfn(to), "all else is as it was");
    assert_eq!(world.load(&space, at), Ok(7));
    assert_eq!(world.load(&space, at + PAGE_SIZE - 8), Ok(8));
    let folio = world.mm.folio_of(to).unwrap();
    assert_eq!(folio.as_ptr(), descriptor, "the descriptor stays");
    assert!(folio.has(FolioFlags::LRU) && !folio.has(FolioFlags::ISOLATED));
    world.mm.put(folio);
    assert!(matches!(world.mm.folio_of(from), Err(NoFolio::NotFolio(_))));
    world.end([space]);
}

/// No destinations; counts who asked for one.
struct Nowhere(u32);

impl Destinations for Nowhere {
    fn take(&mut self, _order: Order, _src: Pfn) -> Option<FrozenFrames> {
        self.0 += 1;
        None
    }

    fn give_back(&mut self, _frames: FrozenFrames) {
        unreachable!("nothing was taken");
    }
}

/// Each page of a batch asked again, while memory was shortest.
#[test]
fn once_there_is_no_destination_nobody_asks_for_another() {
    const PAGES: u64 = 16;
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, PAGES);
    let mut batch = MigrateBatch::<TestPlatform>::new(&world.mm);
    for page in 0..PAGES {
        world.store(&space, at + page * PAGE_SIZE, page).unwrap();
        let pfn = world.pte(&space, at + page * PAGE_SIZE).pfn();
        world.mm.isolate_for_migration(pfn, &mut batch).unwrap();
    }
    let mut nowhere = Nowhere(0);
    let stats = world.mm.migrate_pages(&mut batch, &mut nowhere, MigrateMode::Sync);
    assert_eq!((stats.failed_with(MigrateError::NoMemory), nowhere.0), (PAGES, 1));
    drop(batch);
    for page in 0..PAGES {
        assert_eq!(world.load(&space, at + page * PAGE_SIZE), Ok(page));
    }
    world.end([space]);
}

#[test]
fn all_who_share_a_page_see_the_same_new_frame() {
    let world = World::new(4096);
    let parent = world.space();
    let at = world.map(&parent, 1);
    world.store(&parent, at, 1).unwrap();
    let child = world.mm.fork(&parent).unwrap();
    let grandchild = world.mm.fork(&child).unwrap();
    let before = [&parent, &child, &grandchild].map(|space| world.pte(space, at));
    let (_, to) = migrate(&world, &child, at).unwrap();
    for (space, was) in [&parent, &child, &grandchild].into_iter().zip(before) {
        assert_eq!(Some(world.pte(space, at)), was.with_pfn(to));
    }
    world.store(&grandchild, at, 2).unwrap();
    assert_eq!([&parent, &child].map(|space| world.load(space, at).unwrap()), [1, 1]);
    world.end([parent, child, grandchild]);
}

#[test]
fn a_file_page_stays_in_its_cache() {
    let world = World::new(4096);
    let space = world.space();
    let file = world.mm.shmem_file(2 * PAGE_SIZE).unwrap();
    let at = world.map_file(&space, &file, (0, 2), MapFlags::SHARED);
    world.store(&space, at + PAGE_SIZE, 5).unwrap();
    let (_, to) = migrate(&world, &space, at + PAGE_SIZE).unwrap();
    let folio = world.mm.find_get_folio(&file, 1).unwrap();
    assert_eq!(folio.pfn(), to);
    world.mm.put(folio);
    assert_eq!(world.load(&space, at + PAGE_SIZE), Ok(5));
    // Also without a leaf.
    world.zap(&space, at, 2);
    let isolated = world.mm.isolate_lru_folio(to).unwrap();
    let moved = world.mm.transfer_folio(isolated, destination(&world, 0), MigrateMode::Async);
    world.mm.memory().free_frozen(moved.unwrap().source);
    assert_eq!(world.load(&space, at + PAGE_SIZE), Ok(5));
    assert_ne!(world.pte(&space, at + PAGE_SIZE).pfn(), to);
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn a_page_in_the_swap_cache_stays_its_slots() {
    let world = World::new(4096);
    world.mm.swapon_ram(16).unwrap();
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 42).unwrap();
    let folio = world.folio(&space, at);
    let lock = folio.lock(world.platform());
    let slot = world.mm.swap_alloc(&lock).unwrap();
    assert!(world.mm.try_to_unmap(&folio, crate::rmap::Unmap::Reclaim));
    drop(lock);
    let isolated = world.mm.isolate_lru_folio(folio.pfn()).unwrap();
    world.mm.put(folio);
    let destination = destination(&world, 0);
    let to = destination.head();
    let moved = world.mm.transfer_folio(isolated, destination, MigrateMode::Sync).unwrap();
    world.mm.memory().free_frozen(moved.source);
    let cached = world.mm.swap_cache_get(slot).unwrap();
    assert_eq!(cached.pfn(), to);
    world.mm.put(cached);
    world.assert_consistent();
    assert_eq!(world.load(&space, at), Ok(42));
    assert_eq!(world.pte(&space, at).pfn(), to, "no second copy was made");
    world.mm.exit_space(space);
    world.mm.swapoff().unwrap();
    world.end([]);
}

#[test]
fn a_page_that_somebody_refers_to_stays_until_he_is_gone() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let before = world.pte(&space, at);
    let reference = world.folio(&space, at);
    assert_eq!(migrate(&world, &space, at), Err(MigrateError::Again));
    assert_eq!(world.pte(&space, at), before);
    world.mm.put(reference);
    migrate(&world, &space, at).unwrap();
    assert_ne!(world.pte(&space, at).pfn(), before.pfn());
    world.end([space]);
}

#[test]
fn a_page_that_is_pinned_after_it_was_isolated_stays() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let before = world.pte(&space, at);
    let isolated = isolated(&world, &space, at);
    let pin = world.folio(&space, at).pin();
    let failed = world.mm.transfer_folio(isolated, destination(&world, 0), MigrateMode::Sync);
    let failed = failed.unwrap_err();
    assert_eq!(failed.error, MigrateError::Busy);
    world.mm.memory().free_frozen(failed.destination.unwrap());
    world.mm.putback_lru_folio(failed.folio);
    assert_eq!(world.pte(&space, at), before);
    let refused = world.mm.isolate_lru_folio(before.pfn());
    assert_eq!(refused, Err(FolioIsolateError::Pinned(before.pfn())));
    world.mm.unpin(pin);
    world.end([space]);
}

#[test]
fn a_locked_page_is_left_alone_without_waiting() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let isolated = isolated(&world, &space, at);
    let folio = world.folio(&space, at);
    let lock = folio.lock(world.platform());
    let failed = world.mm.transfer_folio(isolated, destination(&world, 0), MigrateMode::Async);
    let failed = failed.unwrap_err();
    assert_eq!(failed.error, MigrateError::Again);
    drop(lock);
    world.mm.put(folio);
    let again =
        world.mm.transfer_folio(failed.folio, failed.destination.unwrap(), MigrateMode::Async);
    world.mm.memory().free_frozen(again.unwrap().source);
    world.end([space]);
}

#[test]
fn a_page_that_nobody_uses_any_more_is_freed_and_its_destination_comes_back() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let isolated = isolated(&world, &space, at);
    let from = isolated.head();
    world.zap(&space, at, 1);
    let destination = destination(&world, 0);
    let to = destination.head();
    let moved = world.mm.transfer_folio(isolated, destination, MigrateMode::Sync).unwrap();
    assert_eq!(moved.source.head(), from);
    let spare = moved.spare.unwrap();
    assert_eq!(spare.head(), to);
    world.mm.memory().free_frozen(spare);
    world.mm.memory().free_frozen(moved.source);
    world.end([space]);
}

#[test]
fn a_folio_is_isolated_once() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let first = isolated(&world, &space, at);
    let pfn = first.head();
    assert_eq!(world.mm.isolate_lru_folio(pfn), Err(FolioIsolateError::NotOnLru(pfn)));
    let raw = first.into_raw();
    // SAFETY: the handle was given up just now.
    let again = unsafe { world.mm.isolated_folio(raw) }.unwrap();
    world.mm.putback_lru_folio(again);
    world.mm.putback_lru_folio(world.mm.isolate_lru_folio(pfn).unwrap());
    world.end([space]);
}

#[test]
fn frames_that_are_no_folios_are_refused_by_name() {
    let world = World::new(4096);
    let zero = world.mm.base().zero_page;
    let free = destination(&world, 0);
    let frozen = free.head();
    for pfn in [zero, frozen] {
        let refused = world.mm.isolate_lru_folio(pfn);
        assert!(matches!(refused, Err(FolioIsolateError::NoFolio(NoFolio::NotFolio(_)))));
    }
    world.mm.memory().free_frozen(free);
    let beyond = Pfn::new(1 << 40).unwrap();
    let refused = world.mm.isolate_lru_folio(beyond);
    assert!(
        matches!(refused, Err(FolioIsolateError::NoFolio(NoFolio::OutOfMap(OutOfMap { .. })))),
        "{refused:?}"
    );
    world.end([]);
}
