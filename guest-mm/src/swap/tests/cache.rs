//! Folios in and out of the cache, and their contents to the device and back.

use core::sync::atomic::{AtomicU32, Ordering};

use super::TestDevice;
use crate::buddy::Gfp;
use crate::folio::{FolioFlags, FolioKind, FolioRef};
use crate::memdesc::Order;
use crate::mm::{Base, Mm};
use crate::pgtable::SwapSlot;
use crate::platform::{FaultSite, Platform};
use crate::swap::{SlotClaims, SwapError, SwapIoError};
use crate::testing::{self, TestPlatform, set_cpu};

type TestMm<'m> = Mm<'m, TestPlatform>;

const PAGES: u64 = 1024;

fn with_mm(slots: u32, test: impl FnOnce(&TestMm<'_>)) {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    mm.swapon_ram(slots).unwrap();
    test(&mm);
    assert_eq!(census(&mm), 0);
    mm.swapoff().unwrap();
    assert!(base.memory.census().is_consistent());
}

fn census(mm: &TestMm<'_>) -> u32 {
    mm.swap_census(None, &mut |discrepancy| std::println!("{discrepancy}")).discrepancies
}

fn new_page<'m>(mm: &TestMm<'m>, value: u64) -> FolioRef<'m> {
    let folio = mm.alloc_folio(Order::ZERO, Gfp::USER, FolioKind::Anon).unwrap();
    folio.set_flags(FolioFlags::UPTODATE | FolioFlags::SWAPBACKED);
    write(mm, &folio, value);
    folio
}

fn write(mm: &TestMm<'_>, folio: &FolioRef<'_>, value: u64) {
    let page = mm.platform().frame_ptr(folio.pfn()).cast::<u64>();
    // SAFETY: a page of the test's own.
    unsafe { page.write(value) };
}

fn read(mm: &TestMm<'_>, folio: &FolioRef<'_>) -> u64 {
    let page = mm.platform().frame_ptr(folio.pfn()).cast::<u64>();
    // SAFETY: a page of the test's own.
    unsafe { page.read() }
}

/// Writes the page out as reclaim does, and frees it; one leaf is left.
fn swap_out<'m>(mm: &TestMm<'m>, folio: FolioRef<'m>) -> SwapSlot {
    let locked = folio.lock(mm.platform());
    let slot = mm.swap_alloc(&locked).unwrap();
    mm.swap_dup(slot).unwrap();
    mm.swap_write(&locked).unwrap();
    mm.swap_cache_drop(&locked);
    drop(locked);
    mm.put(folio);
    slot
}

/// What the fault of the last leaf does.
fn swap_back<'m>(mm: &TestMm<'m>, slot: SwapSlot) -> FolioRef<'m> {
    let found = mm.swap_in(slot).unwrap();
    let locked = found.folio.lock(mm.platform());
    assert_eq!(mm.swap_slot_of(&found.folio), Some(slot));
    assert!(found.folio.has(FolioFlags::UPTODATE));
    mm.swap_put(slot).unwrap();
    assert!(mm.free_swap(&locked));
    drop(locked);
    found.folio
}

#[test]
fn a_page_comes_back_as_it_went() {
    with_mm(8, |mm| {
        let free = mm.memory().free_pages();
        let slot = swap_out(mm, new_page(mm, 42));
        assert_eq!(mm.swap_count(slot), 1);
        assert_eq!(mm.swap_cache_get(slot), None);
        assert_eq!(census(mm), 0);
        let folio = swap_back(mm, slot);
        assert_eq!(read(mm, &folio), 42);
        assert!(folio.has(FolioFlags::DIRTY) && !folio.has(FolioFlags::SWAPCACHE));
        assert_eq!(folio.refcount(), 1);
        mm.put(folio);
        let stats = mm.swap_stats();
        assert_eq!((stats.pages_out, stats.pages_in, stats.free_slots), (1, 1, 8));
        // The descriptor's slab stays.
        assert!(free.get() - mm.memory().free_pages().get() <= 1);
    });
}

#[test]
fn a_page_in_the_cache_is_found_and_not_read() {
    with_mm(8, |mm| {
        let slot = swap_out(mm, new_page(mm, 7));
        mm.swap_dup(slot).unwrap();
        let first = mm.swap_in(slot).unwrap();
        let second = mm.swap_in(slot).unwrap();
        assert_eq!((first.was_read, second.was_read), (true, false));
        assert_eq!(first.folio, second.folio);
        // Cache, and two handles.
        assert_eq!(first.folio.refcount(), 3);
        assert_eq!(census(mm), 0);
        mm.put(second.folio);
        mm.swap_put(slot).unwrap();
        mm.swap_put(slot).unwrap();
        assert!(!first.folio.has(FolioFlags::SWAPCACHE), "the last leaf took it out");
        assert_eq!(first.folio.refcount(), 1);
        mm.put(first.folio);
    });
}

#[test]
fn the_last_leaf_leaves_a_busy_folio_to_reclaim() {
    with_mm(8, |mm| {
        let slot = swap_out(mm, new_page(mm, 7));
        let found = mm.swap_in(slot).unwrap().folio;
        let locked = found.lock(mm.platform());
        mm.swap_put(slot).unwrap();
        assert!(found.has(FolioFlags::SWAPCACHE));
        assert_eq!(mm.swap_put(slot), Err(SwapError::NotUsed), "no leaf is left");
        assert!(mm.free_swap(&locked));
        drop(locked);
        mm.put(found);
    });
}

#[test]
fn a_folio_that_was_busy_when_its_last_leaf_went_does_not_keep_swap_on() {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    mm.swapon_ram(8).unwrap();
    let folio = new_page(&mm, 7);
    let locked = folio.lock(mm.platform());
    let slot = mm.swap_alloc(&locked).unwrap();
    mm.swap_dup(slot).unwrap();
    mm.swap_put(slot).unwrap();
    drop(locked);
    assert_eq!((mm.swap_count(slot), mm.swap_stats().free_slots), (0, 7), "still cached");
    mm.swapoff().unwrap();
    assert!(!folio.has(FolioFlags::SWAPCACHE) && folio.has(FolioFlags::DIRTY));
    assert_eq!((read(&mm, &folio), folio.refcount()), (7, 1));
    mm.put(folio);
}

#[test]
fn a_shared_slot_stays_until_its_last_leaf_is_gone() {
    with_mm(8, |mm| {
        let slot = swap_out(mm, new_page(mm, 9));
        mm.swap_dup(slot).unwrap();
        let found = mm.swap_in(slot).unwrap().folio;
        let locked = found.lock(mm.platform());
        mm.swap_put(slot).unwrap();
        assert!(!mm.free_swap(&locked), "another process has it");
        drop(locked);
        mm.swap_put(slot).unwrap();
        mm.put(found);
        assert_eq!(mm.swap_stats().free_slots, 8);
    });
}

#[test]
fn full_swap_is_an_error_and_a_freed_slot_ends_it() {
    with_mm(2, |mm| {
        let slots = [swap_out(mm, new_page(mm, 1)), swap_out(mm, new_page(mm, 2))];
        assert!(!mm.swap_has_room());
        let folio = new_page(mm, 3);
        let locked = folio.lock(mm.platform());
        assert_eq!(mm.swap_alloc(&locked), Err(SwapError::Full));
        assert!(!folio.has(FolioFlags::SWAPCACHE));
        mm.swap_put(slots[0]).unwrap();
        let third = mm.swap_alloc(&locked).unwrap();
        assert_eq!(third, slots[0]);
        assert!(mm.free_swap(&locked));
        drop(locked);
        mm.put(folio);
        mm.swap_put(slots[1]).unwrap();
        assert_eq!(mm.swap_stats().full, 1);
    });
}

#[test]
fn slots_that_nobody_uses_are_refused_and_counted() {
    with_mm(2, |mm| {
        let strange = [0, 1, 2, u64::from(u32::MAX), (1 << 52) - 1].map(SwapSlot::new);
        for slot in strange.into_iter().flatten() {
            assert_eq!(mm.swap_in(slot), Err(SwapError::NotUsed), "{slot:?}");
            assert_eq!(mm.swap_dup(slot), Err(SwapError::NotUsed));
            assert_eq!(mm.swap_put(slot), Err(SwapError::NotUsed));
            assert_eq!((mm.swap_count(slot), mm.swap_cache_get(slot)), (0, None));
        }
        assert!(mm.swap_stats().bad_slots_named >= 10);
    });
}

#[test]
fn a_device_that_cannot_read_keeps_the_slot_and_one_that_cannot_write_the_page() {
    let device = TestDevice::new(4, Some(0));
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    mm.swapon(&device).unwrap();
    assert_eq!((mm.swap_stats().bad_slots, mm.swap_stats().free_slots), (1, 3));
    let slot = swap_out(&mm, new_page(&mm, 5));
    assert_eq!(device.written(), 1);
    device.fails.store(true, Ordering::Relaxed);
    assert_eq!(mm.swap_in(slot), Err(SwapError::Io(SwapIoError::Device)));
    assert_eq!((mm.swap_count(slot), mm.swap_cache_get(slot)), (1, None));

    let folio = new_page(&mm, 6);
    let locked = folio.lock(mm.platform());
    mm.swap_alloc(&locked).unwrap();
    assert_eq!(mm.swap_write(&locked), Err(SwapError::Io(SwapIoError::Device)));
    assert!(folio.has(FolioFlags::DIRTY | FolioFlags::SWAPCACHE));
    assert!(mm.free_swap(&locked));
    drop(locked);
    mm.put(folio);

    device.fails.store(false, Ordering::Relaxed);
    let folio = swap_back(&mm, slot);
    assert_eq!(read(&mm, &folio), 5);
    mm.put(folio);
    assert_eq!(device.written(), 0, "what nobody reads again is discarded");
    let stats = mm.swap_stats();
    assert_eq!((stats.read_errors, stats.write_errors), (1, 1));
    mm.swapoff().unwrap();
}

#[test]
fn swap_is_switched_on_once_and_off_when_nobody_uses_it() {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    assert_eq!(mm.swapoff(), Err(SwapError::NoDevice));
    for slots in [0, u32::MAX] {
        assert_eq!(mm.swapon_ram(slots), Err(SwapError::BadSize), "{slots}");
    }
    let folio = new_page(&mm, 1);
    let locked = folio.lock(mm.platform());
    assert_eq!(mm.swap_alloc(&locked), Err(SwapError::NoDevice));
    let free = base.memory.free_pages();
    mm.swapon_ram(100).unwrap();
    assert_eq!(mm.swapon_ram(100), Err(SwapError::Busy));
    let slot = mm.swap_alloc(&locked).unwrap();
    mm.swap_dup(slot).unwrap();
    assert_eq!(mm.swapoff(), Err(SwapError::Busy));
    mm.swap_put(slot).unwrap();
    assert!(mm.free_swap(&locked));
    mm.swapoff().unwrap();
    assert_eq!(base.memory.free_pages(), free);
    drop(locked);
    mm.put(folio);
}

#[test]
fn every_failing_allocation_leaves_nothing_behind() {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    let free = base.memory.free_pages();
    let faults = base.platform().faults();
    let mut tries = 0;
    loop {
        tries += 1;
        faults.fail_nth(FaultSite::BuddyAlloc, tries);
        let on = mm.swapon_ram(100);
        faults.fail_nth(FaultSite::BuddyAlloc, 0);
        match on {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, SwapError::NoMemory(_)), "{error}"),
        }
        assert_eq!(base.memory.free_pages(), free, "after {tries}");
    }
    assert!(tries > 3);
    let slot = swap_out(&mm, new_page(&mm, 8));
    // Also the allocation that is tried again once caches have given something back.
    faults.fail_randomly(FaultSite::BuddyAlloc, 1);
    assert!(matches!(mm.swap_in(slot), Err(SwapError::NoMemory(_))));
    faults.fail_randomly(FaultSite::BuddyAlloc, 0);
    assert_eq!(mm.swap_count(slot), 1);
    let folio = swap_back(&mm, slot);
    assert_eq!(read(&mm, &folio), 8);
    mm.put(folio);
    mm.swapoff().unwrap();
}

/// Every leaf of a page swaps it in at once, on four CPUs, round after round.
#[test]
fn many_readers_of_one_slot_get_one_folio() {
    with_mm(8, |mm| {
        for round in 0..60 {
            let slot = swap_out(mm, new_page(mm, round));
            for _ in 1..4 {
                mm.swap_dup(slot).unwrap();
            }
            let reads = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for cpu in 0..4 {
                    let reads = &reads;
                    scope.spawn(move || {
                        set_cpu(cpu);
                        let found = mm.swap_in(slot).unwrap();
                        reads.fetch_add(u32::from(found.was_read), Ordering::Relaxed);
                        let locked = found.folio.lock(mm.platform());
                        assert!(found.folio.has(FolioFlags::UPTODATE));
                        assert_eq!(read(mm, &found.folio), round);
                        mm.swap_put(slot).unwrap();
                        mm.free_swap(&locked);
                        drop(locked);
                        mm.put(found.folio);
                    });
                }
            });
            let stats = mm.swap_stats();
            assert_eq!((reads.into_inner(), stats.free_slots), (1, 8), "round {round}");
        }
    });
}

struct Leaves(u32);

impl SlotClaims for Leaves {
    fn leaves(&self, slot: SwapSlot) -> u32 {
        if slot.get() == 0 { self.0 } else { 0 }
    }
}

#[test]
fn the_census_notices_a_leaf_too_many_and_one_too_few() {
    with_mm(4, |mm| {
        let slot = swap_out(mm, new_page(mm, 1));
        mm.swap_dup(slot).unwrap();
        assert_eq!(slot.get(), 0);
        for (leaves, wrong) in [(1, 1), (2, 0), (3, 1)] {
            let found = mm.swap_census(Some(&Leaves(leaves)), &mut |_| {});
            assert_eq!((found.discrepancies, found.used, found.leaves), (wrong, 1, 2));
        }
        mm.swap_put(slot).unwrap();
        mm.swap_put(slot).unwrap();
    });
}
