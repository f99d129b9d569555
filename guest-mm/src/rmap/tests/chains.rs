//! Who is found by a walk.

use core::ops::ControlFlow;

use abi::PAGE_SIZE;

use super::world::{Space, World, va};
use crate::addr::VaRange;
use crate::folio::Folio;
use crate::pgtable::PageProt;
use crate::platform::FaultSite;
use crate::space::MapFlags;

/// Spaces and ranges where VMAs would map the folio, sorted.
fn found(world: &World, folio: &Folio) -> Vec<(u32, VaRange)> {
    let mut found = Vec::new();
    let walk = world.mm.rmap_walk::<()>(folio, &mut |vma, span| {
        // SAFETY: VMAs of living spaces.
        found.push((unsafe { vma.space.as_ref() }.id(), span.range));
        ControlFlow::Continue(())
    });
    assert_eq!(walk, ControlFlow::Continue(()));
    found.sort_by_key(|(space, range)| (*space, range.start()));
    found
}

fn page(at: u64) -> VaRange {
    VaRange::page_of(va(at)).unwrap()
}

#[test]
fn parents_pages_are_found_in_all_descendants_and_a_childs_own_only_there() {
    let world = World::new(4096);
    let parent = world.space();
    let at = world.map(&parent, 4);
    world.store(&parent, at, 1).unwrap();
    let child = world.mm.fork(&parent).unwrap();
    let grandchild = world.mm.fork(&child).unwrap();
    let shared = world.folio(&parent, at);
    assert_eq!(shared.mapcount(), 3);
    let all = [&parent, &child, &grandchild].map(|space| (space.id(), page(at)));
    assert_eq!(found(&world, &shared), all);
    world.mm.put(shared);

    // A page that the child faulted in is its descendants' business, not its parent's.
    world.store(&child, at + PAGE_SIZE, 2).unwrap();
    let own = world.folio(&child, at + PAGE_SIZE);
    let younger = [&child, &grandchild].map(|space| (space.id(), page(at + PAGE_SIZE)));
    assert_eq!(found(&world, &own), younger);
    world.mm.put(own);
    world.assert_consistent();
    world.end([parent, child, grandchild]);
}

#[test]
fn split_moved_and_merged_vmas_are_found_where_they_are() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 8);
    for n in 0..8 {
        world.store(&space, at + n * PAGE_SIZE, n).unwrap();
    }
    let middle = at + 3 * PAGE_SIZE;
    world.mm.mprotect(&space, middle, PAGE_SIZE, PageProt::READ).unwrap();
    for n in 0..8 {
        let folio = world.folio(&space, at + n * PAGE_SIZE);
        assert_eq!(found(&world, &folio), [(space.id(), page(at + n * PAGE_SIZE))]);
        world.mm.put(folio);
    }
    world.assert_consistent();
    world.mm.mprotect(&space, middle, PAGE_SIZE, PageProt::READ | PageProt::WRITE).unwrap();
    assert_eq!(space.map_count(), 1);
    let folio = world.folio(&space, middle);
    assert_eq!(found(&world, &folio), [(space.id(), page(middle))]);
    world.mm.put(folio);
    world.assert_consistent();
    world.end([space]);
}

#[test]
fn file_pages_are_found_in_every_mapping_of_the_file() {
    let world = World::new(4096);
    let (one, two) = (world.space(), world.space());
    let file = world.mm.create_file(b"shared").unwrap();
    world.mm.truncate_file(&file, 8 * PAGE_SIZE).unwrap();
    let first = world.map_file(&one, &file, (0, 8), MapFlags::SHARED);
    let second = world.map_file(&two, &file, (4, 4), MapFlags::PRIVATE);
    world.store(&one, first + 5 * PAGE_SIZE, 77).unwrap();
    assert_eq!(world.load(&two, second + PAGE_SIZE), Ok(77));
    let folio = world.mm.find_get_folio(&file, 5).unwrap();
    let both = [(one.id(), page(first + 5 * PAGE_SIZE)), (two.id(), page(second + PAGE_SIZE))];
    assert_eq!(found(&world, &folio), both);
    world.mm.put(folio);
    let folio = world.mm.find_get_folio(&file, 0);
    folio.into_iter().for_each(|folio| world.mm.put(folio));
    world.assert_consistent();
    world.mm.unlink_file(b"shared").unwrap();
    world.mm.file_put(file);
    world.end([one, two]);
}

/// A family that forks and exits over and over must not grow its chains: ancestors
/// without VMAs of their own are taken over.
#[test]
fn chains_stay_short_when_only_the_last_generation_lives() {
    let world = World::new(4096);
    let mut space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    for n in 0..20 {
        let child = world.mm.fork(&space).unwrap();
        world.store(&child, at, n).unwrap();
        world.mm.exit_space(space);
        space = child;
    }
    world.mm.base().settle();
    let live = world.mm.base().caches.anon_vma.stats(world.mm.memory()).in_use;
    assert!(live <= 3, "{live} anon_vmas for one VMA");
    world.assert_consistent();
    world.end([space]);
}

#[test]
fn a_fork_without_memory_leaves_the_parent_as_it_was() {
    let world = World::new(4096);
    let parent = world.space();
    let at = world.map(&parent, 3);
    world.store(&parent, at, 5).unwrap();
    let faults = world.platform().faults();
    for site in [FaultSite::SlabAlloc, FaultSite::BuddyAlloc] {
        for nth in 1.. {
            let struck = faults.struck(site);
            faults.fail_nth(site, nth);
            let child: Result<Space, _> = world.mm.fork(&parent);
            faults.fail_nth(site, 0);
            let failed = faults.struck(site) > struck;
            child.into_iter().for_each(|child| world.mm.exit_space(child));
            world.assert_consistent();
            let folio = world.folio(&parent, at);
            assert_eq!(found(&world, &folio), [(parent.id(), page(at))]);
            world.mm.put(folio);
            if !failed {
                assert!(nth > 1, "{site:?} was never asked");
                break;
            }
        }
    }
    world.end([parent]);
}
