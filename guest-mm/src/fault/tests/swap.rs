//! Pages that come back from swap.

use super::*;
use crate::folio::FolioFlags;
use crate::pgtable::{Leaf, LeafFlags, Softleaf, SwapSlot};
use crate::rmap::MappedBy;

/// Whether the folio stays in the swap cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cache {
    Keep,
    Drop,
}

/// Swaps the page at `at` out, as reclaim would.
fn swap_out(world: &World, at: u64, cache: Cache) -> SwapSlot {
    let mm = &world.mm;
    let folio = mm.folio_of(world.pte(at).pfn()).unwrap();
    let locked = folio.lock(mm.platform());
    let slot = mm.swap_alloc(&locked).unwrap();
    mm.swap_dup(slot).unwrap();
    let mapping = {
        let mut guard = world.space().tables().lock_pte(va(at)).unwrap();
        let pte = present(guard.clear(va(at)));
        let flags = if pte.is_soft_dirty() { LeafFlags::SOFT_DIRTY } else { LeafFlags::empty() };
        let kind = Softleaf::Swap { slot, exclusive: pte.is_anon_exclusive() };
        guard.set(va(at), Leaf::new(kind, flags).entry());
        mm.remove_rmap(&folio, MappedBy::Pte)
    };
    world.space().rss.anon.fetch_sub(1, Ordering::Relaxed);
    world.space().rss.swap.fetch_add(1, Ordering::Relaxed);
    mm.put(mapping);
    mm.swap_write(&locked).unwrap();
    if cache == Cache::Drop {
        mm.swap_cache_drop(&locked);
    }
    drop(locked);
    mm.put(folio);
    slot
}

fn world_with_swap() -> World {
    World::with(4096, |mm| mm.swapon_ram(16).unwrap())
}

#[test]
fn a_page_comes_back_with_its_contents_and_frees_its_slot() {
    for cache in [Cache::Drop, Cache::Keep] {
        for write in [false, true] {
            let world = world_with_swap();
            let at = world.map(1);
            world.store(at + 8, 5).unwrap();
            swap_out(&world, at, cache);
            assert_eq!(world.mm.swap_stats().free_slots, 15);
            assert_eq!(world.anon_rss(), 0);
            let (major, minor) = match cache {
                Cache::Drop => (1, 0),
                Cache::Keep => (0, 1),
            };
            if write {
                world.store(at + 16, 6).unwrap();
            } else {
                assert_eq!(world.load(at + 8), Ok(5));
            }
            assert_eq!(world.count(FaultOutcome::SwapMajor), major, "{cache:?} {write}");
            assert_eq!(world.count(FaultOutcome::SwapMinor), minor, "{cache:?} {write}");
            let pte = world.pte(at);
            assert!(pte.is_anon_exclusive() && pte.is_soft_dirty());
            assert_eq!(pte.is_writable(), write);
            let folio = world.mm.folio_of(pte.pfn()).unwrap();
            assert!(!folio.has(FolioFlags::SWAPCACHE) && folio.has(FolioFlags::DIRTY));
            assert_eq!((folio.refcount(), folio.mapcount()), (2, 1));
            world.mm.put(folio);
            assert_eq!(world.mm.swap_stats().free_slots, 16);
            assert_eq!((world.anon_rss(), world.load(at + 8)), (1, Ok(5)));
            world.store(at, 7).unwrap();
            assert_eq!(world.stats().outcome(FaultOutcome::Copied), 0, "ours alone: never copied");
            world.end_with(|mm| mm.swapoff().unwrap());
        }
    }
}

#[test]
fn a_slot_that_others_name_keeps_its_contents() {
    let world = world_with_swap();
    let at = world.map(1);
    world.store(at, 5).unwrap();
    world.change(at, |pte| pte.wrprotect().clear_anon_exclusive());
    let slot = swap_out(&world, at, Cache::Drop);
    // As a child that has the same leaf.
    world.mm.swap_dup(slot).unwrap();
    world.store(at, 6).unwrap();
    assert_eq!((world.count(FaultOutcome::SwapMajor), world.load(at)), (1, Ok(6)));
    assert!(world.pte(at).is_anon_exclusive());
    let cached = world.mm.swap_cache_get(slot).unwrap();
    assert_ne!(cached.pfn(), world.pte(at).pfn(), "the write went to a copy");
    let mut word = [0; 8];
    world.mm.read_folio(&cached, 0, &mut word);
    assert_eq!(u64::from_ne_bytes(word), 5);
    assert_eq!(cached.mapcount(), 0);
    world.mm.put(cached);
    world.mm.swap_put(slot).unwrap();
    assert_eq!(world.mm.swap_stats().free_slots, 16);
    world.end_with(|mm| mm.swapoff().unwrap());
}

#[test]
fn a_read_of_a_shared_slot_maps_it_read_only_and_not_exclusive() {
    let world = world_with_swap();
    let at = world.map(1);
    world.store(at, 5).unwrap();
    world.change(at, |pte| pte.wrprotect().clear_anon_exclusive());
    let slot = swap_out(&world, at, Cache::Drop);
    world.mm.swap_dup(slot).unwrap();
    assert_eq!(world.load(at), Ok(5));
    let pte = world.pte(at);
    assert!(!pte.is_writable() && !pte.is_anon_exclusive());
    // The other leaf goes: now the page is ours, slot or not.
    world.mm.swap_put(slot).unwrap();
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Reused));
    assert_eq!(world.mm.swap_stats().free_slots, 16);
    world.end_with(|mm| mm.swapoff().unwrap());
}

#[test]
fn a_slot_that_nobody_uses_is_a_bus_error() {
    let world = world_with_swap();
    let at = world.map(1);
    world.store(at, 5).unwrap();
    let sound = world.entry(at);
    for number in [3, 1 << 20, 1 << 40] {
        let slot = SwapSlot::new(number).unwrap();
        world.poke(at, Leaf::from(Softleaf::Swap { slot, exclusive: true }).entry());
        assert_eq!(world.load(at), Err(FaultError::Bus), "{number}");
    }
    assert_eq!(world.event(FaultEvent::UnknownLeaf), 3);
    world.poke(at, sound);
    world.end_with(|mm| mm.swapoff().unwrap());
}

#[test]
fn threads_that_fault_on_one_swapped_page_share_it() {
    for _ in 0..10 {
        let world = world_with_swap();
        let at = world.map(4);
        for page in 0..4 {
            world.store(at + page * PAGE_SIZE, 100 + page).unwrap();
            swap_out(&world, at + page * PAGE_SIZE, Cache::Drop);
        }
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                let world = &world;
                scope.spawn(move || {
                    testing::set_cpu(cpu);
                    for page in 0..4 {
                        assert_eq!(world.load(at + page * PAGE_SIZE), Ok(100 + page));
                        world.store(at + page * PAGE_SIZE + 8 + 8 * cpu as u64, page).unwrap();
                    }
                });
            }
        });
        assert_eq!((world.anon_rss(), world.mm.swap_stats().free_slots), (4, 16));
        for page in 0..4 {
            for cpu in 0..4 {
                assert_eq!(world.load(at + page * PAGE_SIZE + 8 + 8 * cpu), Ok(page));
            }
        }
        world.end_with(|mm| mm.swapoff().unwrap());
    }
}
