//! Folios of many pages, moved as a whole.

use abi::{PAGE_SIZE, PageCount};

use super::{destination, isolated, migrate};
use crate::addr::PMD_SIZE;
use crate::migrate::{MigrateError, MigrateMode};
use crate::pgtable::PmdState;
use crate::rmap::tests::world::World;
use crate::space::MapFlags;

#[test]
fn a_huge_page_moves_without_being_split() {
    let world = World::new(8192);
    let space = world.space();
    let at = world.map_huge(&space);
    for page in [0, 1, 511] {
        world.store(&space, at + page * PAGE_SIZE, page).unwrap();
    }
    let child = world.mm.fork(&space).unwrap();
    let before = [&space, &child].map(|space| world.entry(space, at));
    let (_, to) = migrate(&world, &space, at).unwrap();
    assert!(to.is_aligned(9));
    for (space, was) in [&space, &child].into_iter().zip(before) {
        let PmdState::Present(now) = world.entry(space, at).pmd() else { panic!("split") };
        let PmdState::Present(was) = was.pmd() else { panic!("not huge") };
        assert_eq!(Some(now), was.with_pfn(to), "all else is as it was");
        for page in [0, 1, 511] {
            assert_eq!(world.load(space, at + page * PAGE_SIZE), Ok(page));
        }
    }
    world.end([space, child]);
}

#[test]
fn a_huge_page_that_is_mapped_in_part_moves_and_waits_to_be_split() {
    let world = World::new(8192);
    let space = world.space();
    let at = world.map_huge(&space);
    world.store(&space, at + PMD_SIZE - PAGE_SIZE, 9).unwrap();
    world.mm.munmap(&space, at, PMD_SIZE / 2).unwrap();
    assert_eq!(world.mm.deferred_splits(), 1);
    let last = at + PMD_SIZE - PAGE_SIZE;
    let (from, to) = migrate(&world, &space, last).unwrap();
    assert_ne!(from, to);
    assert_eq!(world.mm.deferred_splits(), 1, "queued as before");
    assert_eq!(world.load(&space, last), Ok(9));
    assert_eq!(world.pte(&space, last).pfn(), to.checked_add(PageCount::new(511)).unwrap());
    world.assert_consistent();
    assert_eq!(world.mm.run_deferred_split(1), 1);
    assert_eq!(world.load(&space, last), Ok(9));
    world.end([space]);
}

#[test]
fn a_large_file_folio_moves_with_all_its_slots() {
    let world = World::new(8192);
    let space = world.space();
    let file = world.mm.shmem_file(16 * PAGE_SIZE).unwrap();
    file.set_folio_order(crate::memdesc::Order::new(4).unwrap());
    let at = world.map_file(&space, &file, (0, 16), MapFlags::SHARED);
    for page in 0..16 {
        world.store(&space, at + page * PAGE_SIZE, page).unwrap();
    }
    let (_, to) = migrate(&world, &space, at + 5 * PAGE_SIZE).unwrap();
    for page in 0..16 {
        let folio = world.mm.find_get_folio(&file, page).unwrap();
        assert_eq!((folio.pfn(), folio.order().get()), (to, 4));
        world.mm.put(folio);
        assert_eq!(world.load(&space, at + page * PAGE_SIZE), Ok(page));
    }
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn a_destination_of_another_order_is_refused_and_comes_back() {
    let world = World::new(8192);
    let space = world.space();
    let at = world.map_huge(&space);
    world.store(&space, at, 1).unwrap();
    let isolated = isolated(&world, &space, at);
    let failed = world.mm.transfer_folio(isolated, destination(&world, 0), MigrateMode::Sync);
    let failed = failed.unwrap_err();
    assert_eq!(failed.error, MigrateError::NoMemory);
    world.mm.memory().free_frozen(failed.destination.unwrap());
    world.mm.putback_lru_folio(failed.folio);
    world.end([space]);
}
