//! Leaves taken away and put back.

use abi::PAGE_SIZE;

use super::world::World;
use crate::pgtable::{LeafState, Softleaf};
use crate::rmap::Unmap;
use crate::space::MapFlags;

#[test]
fn migration_leaves_come_back_with_all_that_they_kept() {
    let world = World::new(4096);
    let parent = world.space();
    let at = world.map(&parent, 3);
    // Exclusive and written; shared by fork and only read; exclusive, then aged.
    for n in 0..3 {
        world.store(&parent, at + n * PAGE_SIZE, n).unwrap();
    }
    let child = world.mm.fork(&parent).unwrap();
    world.store(&parent, at, 10).unwrap();
    let aged = world.folio(&child, at + 2 * PAGE_SIZE);
    assert!(world.mm.folio_referenced(&aged) > 0);
    assert_eq!(world.mm.folio_referenced(&aged), 0);
    world.mm.put(aged);
    let before: Vec<_> = (0..3)
        .flat_map(|n| [&parent, &child].map(|space| world.pte(space, at + n * PAGE_SIZE)))
        .collect();
    for n in 0..3 {
        let folio = world.folio(&parent, at + n * PAGE_SIZE);
        let lock = folio.lock(world.platform());
        let anchor = world.mm.rmap_anchor(&folio).unwrap();
        assert!(world.mm.try_to_unmap(&folio, Unmap::Migrate));
        assert_eq!((folio.mapcount(), folio.refcount()), (0, 1));
        let leaf = world.leaf(&parent, at + n * PAGE_SIZE);
        assert!(
            matches!(leaf, Some(LeafState::Soft(leaf)) if leaf.kind().is_migration()),
            "{leaf:?}"
        );
        world.mm.restore_leaves(&anchor, &folio, folio.pfn());
        world.mm.rmap_release(anchor);
        drop(lock);
        world.mm.put(folio);
    }
    let after: Vec<_> = (0..3)
        .flat_map(|n| [&parent, &child].map(|space| world.pte(space, at + n * PAGE_SIZE)))
        .collect();
    assert_eq!(before, after);
    world.assert_consistent();
    world.end([parent, child]);
}

#[test]
fn a_pinned_page_keeps_its_leaf() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let before = world.pte(&space, at);
    let pin = world.folio(&space, at).pin();
    let lock = pin.lock(world.platform());
    assert!(!world.mm.try_to_unmap(&pin, Unmap::Migrate));
    drop(lock);
    assert_eq!(world.pte(&space, at), before);
    world.mm.unpin(pin);
    world.assert_consistent();
    world.end([space]);
}

#[test]
fn reclaim_leaves_swap_leaves_and_the_page_comes_back() {
    let world = World::new(4096);
    world.mm.swapon_ram(16).unwrap();
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 42).unwrap();
    let child = world.mm.fork(&space).unwrap();
    let folio = world.folio(&space, at);
    let lock = folio.lock(world.platform());
    // Without a slot it cannot go.
    assert!(!world.mm.try_to_unmap(&folio, Unmap::Reclaim));
    let slot = world.mm.swap_alloc(&lock).unwrap();
    assert!(world.mm.try_to_unmap(&folio, Unmap::Reclaim));
    assert_eq!(world.mm.swap_count(slot), 2);
    for space in [&space, &child] {
        let leaf = world.leaf(space, at);
        let expected = Softleaf::Swap { slot, exclusive: false };
        assert!(matches!(leaf, Some(LeafState::Soft(leaf)) if leaf.kind() == expected), "{leaf:?}");
    }
    drop(lock);
    world.mm.put(folio);
    assert_eq!(world.load(&child, at), Ok(42));
    assert_eq!(world.load(&space, at), Ok(42));
    world.assert_consistent();
    world.mm.exit_space(space);
    world.mm.exit_space(child);
    world.mm.swapoff().unwrap();
    world.end([]);
}

#[test]
fn clean_file_leaves_fault_again_after_mkclean() {
    let world = World::new(4096);
    let space = world.space();
    let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
    let at = world.map_file(&space, &file, (0, 1), MapFlags::SHARED);
    world.store(&space, at, 1).unwrap();
    let folio = world.mm.find_get_folio(&file, 0).unwrap();
    let lock = folio.lock(world.platform());
    assert!(world.pte(&space, at).is_dirty());
    assert_eq!(world.mm.folio_mkclean(&folio), 1);
    assert!(!world.pte(&space, at).is_dirty() && !world.pte(&space, at).is_writable());
    assert_eq!(world.mm.folio_mkclean(&folio), 0);
    drop(lock);
    world.store(&space, at, 2).unwrap();
    assert!(world.pte(&space, at).is_dirty());
    world.mm.put(folio);
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}
