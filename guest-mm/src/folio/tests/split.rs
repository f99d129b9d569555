//! Splitting folios.

use abi::{PAGE_SIZE, PageCount};

use crate::errno::Errno;
use crate::folio::{FolioFlags, FolioRef};
use crate::memdesc::Order;
use crate::pgtable::{LeafState, Pte};
use crate::platform::FaultSite;
use crate::rmap::tests::world::{Space, World};
use crate::space::MapFlags;

const HUGE_PAGES: u64 = 512;

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

/// Splits the folio mapped at `at`.
fn split(world: &World, folio: FolioRef<'static>, to: Order) -> Result<(), Errno> {
    let folio = folio.into_locked(world.platform());
    let done = world.mm.split_folio(folio.reference(), to);
    world.mm.put(folio.unlock());
    done
}

/// A world with 2 MiB mapped by one leaf, each page with its number in it.
fn huge_world() -> (World, Space, u64) {
    let world = World::new(8192);
    let space = world.space();
    let at = world.map_huge(&space);
    for n in 0..HUGE_PAGES {
        world.store(&space, at + n * PAGE_SIZE, n).unwrap();
    }
    let folio = world.folio(&space, at);
    assert_eq!((folio.order(), folio.mapcount()), (order(9), 1));
    world.mm.put(folio);
    (world, space, at)
}

fn ptes(world: &World, space: &Space, at: u64) -> Vec<Pte> {
    (0..HUGE_PAGES)
        .map(|n| match world.leaf(space, at + n * PAGE_SIZE) {
            Some(LeafState::Present(pte)) => pte,
            leaf => panic!("page {n}: {leaf:?}"),
        })
        .collect()
}

#[test]
fn a_huge_page_splits_to_every_lower_order_with_its_leaves_and_contents() {
    for to in [8, 4, 2, 1, 0] {
        let (world, space, at) = huge_world();
        let whole = world.folio(&space, at);
        let head = whole.pfn();
        assert_eq!(split(&world, whole, order(to)), Ok(()));
        for (n, pte) in ptes(&world, &space, at).into_iter().enumerate() {
            let pages = 1 << to;
            let folio = world.mm.folio_of(pte.pfn()).unwrap();
            let n = n as u64;
            assert_eq!(Some(pte.pfn()), head.checked_add(PageCount::new(n)));
            assert!(pte.is_anon_exclusive() && pte.is_writable() && pte.is_dirty(), "{pte:?}");
            assert_eq!((folio.order(), u64::from(folio.mapcount())), (order(to), pages));
            assert_eq!(u64::from(folio.refcount()), pages + 1);
            assert_eq!(folio.pfn().number(), pte.pfn().number() & !(pages - 1));
            assert!(folio.has(FolioFlags::UPTODATE | FolioFlags::SWAPBACKED) && !folio.is_locked());
            world.mm.put(folio);
            assert_eq!(world.load(&space, at + n * PAGE_SIZE), Ok(n));
        }
        world.assert_consistent();
        world.end([space]);
    }
}

#[test]
fn young_dirty_and_exclusive_survive_page_by_page_in_all_processes() {
    let (world, space, at) = huge_world();
    // PTEs of different states: the child shares all, the parent has some again for itself.
    let child = world.mm.fork(&space).unwrap();
    assert_eq!(split(&world, world.folio(&child, at), order(3)), Ok(()));
    for n in [0, 9, 511] {
        world.store(&space, at + n * PAGE_SIZE, 1000 + n).unwrap();
    }
    for n in [1, 8] {
        let folio = world.folio(&child, at + n * PAGE_SIZE);
        world.mm.folio_referenced(&folio);
        world.mm.put(folio);
    }
    let before = [ptes(&world, &space, at), ptes(&world, &child, at)];
    let folio = world.folio(&child, at + 8 * PAGE_SIZE);
    assert_eq!(folio.order(), order(3));
    assert_eq!(split(&world, folio, order(0)), Ok(()));
    assert!([ptes(&world, &space, at), ptes(&world, &child, at)] == before);
    world.assert_consistent();
    world.end([space, child]);
}

#[test]
fn who_is_pinned_or_referenced_otherwise_is_not_split() {
    let (world, space, at) = huge_world();
    let pin = world.folio(&space, at).pin();
    assert_eq!(split(&world, world.folio(&space, at), order(0)), Err(Errno::EBUSY));
    let extra = pin.unpin();
    assert_eq!(split(&world, world.folio(&space, at), order(0)), Err(Errno::EAGAIN));
    assert_eq!(split(&world, world.folio(&space, at), order(9)), Err(Errno::EINVAL));
    world.mm.put(extra);
    let folio = world.folio(&space, at);
    assert_eq!((folio.order(), folio.mapcount(), folio.refcount()), (order(9), 1, 2));
    world.mm.put(folio);
    world.assert_consistent();
    world.end([space]);
}

/// Fails one allocation after the other, from the first on and then by `step`.
fn splits_without_memory(site: FaultSite, step: usize) {
    let (world, space, at) = huge_world();
    let child = world.mm.fork(&space).unwrap();
    // No descriptors in store, so that frames for them are needed too.
    world.mm.base().settle();
    let before = [ptes(&world, &space, at), ptes(&world, &child, at)];
    let faults = world.platform().faults();
    for nth in (1..8).chain((8..).step_by(step)) {
        let struck = faults.struck(site);
        faults.fail_nth(site, nth);
        let done = split(&world, world.folio(&space, at), order(0));
        faults.fail_nth(site, 0);
        if faults.struck(site) == struck {
            assert_eq!(done, Ok(()));
            assert!(nth > 7, "{site:?} was asked {nth} times");
            break;
        }
        assert!(matches!(done, Err(Errno::ENOMEM | Errno::EAGAIN)), "{site:?} {nth}: {done:?}");
        let after = [ptes(&world, &space, at), ptes(&world, &child, at)];
        assert!(after == before, "{site:?} {nth}");
        let folio = world.folio(&space, at);
        assert_eq!((folio.order(), folio.is_locked()), (order(9), false));
        world.mm.put(folio);
        world.assert_consistent();
    }
    world.assert_consistent();
    world.end([space, child]);
}

#[test]
fn a_split_without_descriptors_changes_nothing() {
    splits_without_memory(FaultSite::SlabAlloc, 101);
}

#[test]
fn a_split_without_frames_changes_nothing() {
    splits_without_memory(FaultSite::BuddyAlloc, 1);
}

#[test]
fn a_folio_of_a_file_splits_with_its_cache_entries() {
    let world = World::new(8192);
    let space = world.space();
    let file = world.mm.create_file(b"large").unwrap();
    file.set_folio_order(order(4));
    world.mm.write_file(&file, 0, &[7; 40 * 4096]).unwrap();
    let at = world.map_file(&space, &file, (0, 40), MapFlags::SHARED);
    for n in 0..40 {
        assert_eq!(world.load(&space, at + n * PAGE_SIZE), Ok(u64::from_ne_bytes([7; 8])));
    }
    let folio = world.mm.find_get_folio(&file, 17).unwrap();
    assert_eq!((folio.order(), folio.index()), (order(4), 16));
    assert_eq!(split(&world, folio, order(2)), Ok(()));
    for n in 0..32 {
        let folio = world.mm.find_get_folio(&file, n).unwrap();
        let expected = if n < 16 { (order(4), 0) } else { (order(2), n & !3) };
        assert_eq!((folio.order(), folio.index()), expected, "page {n}");
        assert!(folio.has(FolioFlags::DIRTY));
        world.mm.put(folio);
        assert_eq!(world.load(&space, at + n * PAGE_SIZE), Ok(u64::from_ne_bytes([7; 8])));
    }
    assert_eq!(file.pages.validate().map(|_| ()), Ok(()));
    world.assert_consistent();
    world.mm.unlink_file(b"large").unwrap();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn a_partly_unmapped_huge_page_is_queued_and_its_unmapped_pages_are_freed() {
    let (world, space, at) = huge_world();
    let before = world.mm.memory().free_pages().get();
    world.zap(&space, at + 100 * PAGE_SIZE, 300);
    assert_eq!(world.mm.deferred_splits(), 1);
    assert_eq!(world.mm.run_deferred_split(10), 1);
    assert_eq!(world.mm.deferred_splits(), 0);
    world.mm.base().settle();
    // Three hundred pages came back; a table, and descriptors of 212 pages, went.
    let gained = world.mm.memory().free_pages().get() - before;
    assert!((285..300).contains(&gained), "{gained}");
    for n in (0..100).chain(400..512) {
        assert_eq!(world.load(&space, at + n * PAGE_SIZE), Ok(n));
    }
    world.assert_consistent();
    world.end([space]);
}

#[test]
fn a_queued_folio_that_is_freed_leaves_the_queue() {
    let (world, space, at) = huge_world();
    world.zap(&space, at + 100 * PAGE_SIZE, 300);
    assert_eq!(world.mm.deferred_splits(), 1);
    // One that is pinned stays in the queue.
    let pin = world.folio(&space, at).pin();
    assert_eq!((world.mm.run_deferred_split(10), world.mm.deferred_splits()), (0, 1));
    world.mm.unpin(pin);
    world.zap(&space, at, 512);
    assert_eq!(world.mm.deferred_splits(), 0);
    world.assert_consistent();
    world.end([space]);
}
