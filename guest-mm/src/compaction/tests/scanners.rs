//! Runs of the scanners, and what they remember.

use super::world::{Fate, with_world};
use crate::buddy::Gfp;
use crate::compaction::{CompactResult, Suitability};
use crate::hotplug::NewBlock;
use crate::memdesc::{MigrateType, Order, SECTION_ORDER};
use crate::memory::{FreeWant, Memory};
use crate::migrate::MigrateMode;
use crate::mm::{Base, Mm};
use crate::platform::FaultSite;
use crate::testing::{TestPlatform, range};

const HUGE: Order = Order::PAGEBLOCK;
const PAGES: u64 = 8 * 512;

#[test]
fn every_other_page_free_gives_huge_pages() {
    for mode in [MigrateMode::Async, MigrateMode::SyncLight, MigrateMode::Sync] {
        with_world(PAGES, |world| {
            world.checker();
            assert!(world.mm.memory().alloc_frozen(HUGE, Gfp::USER).is_err());
            let frames = world.mm.alloc_by_compaction(HUGE, Gfp::USER, mode).unwrap();
            assert_eq!(frames.order(), HUGE);
            world.pinned.push(frames);
            world.check();
            let stats = world.mm.compact_stats();
            assert_eq!((stats.stalls, stats.successes, stats.failures), (1, 1, 0));
            assert!(stats.migrate_scanned > 0 && stats.free_scanned > 0, "{stats:?}");
            assert!(stats.isolated >= 2 * stats.migrated, "sources and destinations: {stats:?}");
            assert_eq!(stats.captured, 1);
        });
    }
}

#[test]
fn the_next_run_goes_on_where_the_last_one_was() {
    with_world(2 * PAGES, |world| {
        world.checker();
        let mut reached = None;
        for _ in 0..3 {
            let got = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::SyncLight);
            world.pinned.push(got.unwrap());
            let now = world.mm.with_compaction(|state| state.cached.migrate_sync);
            assert!(now > reached, "{now:?} after {reached:?}");
            reached = now;
        }
        // From the bottom each time, it would be at least six.
        let scanned = world.mm.compact_stats().migrate_scanned;
        assert!(scanned <= 5 * 512, "pageblocks for three blocks: {scanned} words");
    });
}

#[test]
fn where_the_scanners_meet_the_run_ends_and_the_next_begins_at_the_ends() {
    with_world(PAGES, |world| {
        world.checker();
        assert_eq!(world.mm.compact_memory(MigrateMode::Sync), CompactResult::Complete);
        world.check();
        let cached = world.mm.with_compaction(|state| state.cached);
        assert_eq!(cached, crate::compaction::state::Cached::NONE);
        for (from, to) in world.owner.moves.lock().unwrap().iter() {
            assert!(from / 512 < to / 512, "page {from:x} went down to {to:x}");
        }
    });
}

#[test]
fn an_allocation_that_may_wait_compacts_by_itself() {
    with_world(PAGES, |world| {
        world.checker();
        let frames = world.mm.alloc_frames(HUGE, Gfp::USER).unwrap();
        world.pinned.push(frames);
        assert_eq!(world.mm.compact_stats().successes, 1);
    });
}

#[test]
fn who_frees_memory_or_can_do_without_does_not_compact_unless_it_says_so() {
    with_world(PAGES, |world| {
        world.checker();
        for gfp in [Gfp::USER | Gfp::MEMALLOC, Gfp::ATOMIC, Gfp::USER | Gfp::OPTIONAL] {
            assert!(world.mm.alloc_frames(HUGE, gfp).is_err());
            assert_eq!(world.mm.compact_stats().stalls, 0, "{gfp:?}");
        }
        let gfp = Gfp::USER | Gfp::OPTIONAL | Gfp::COMPACT;
        let frames = world.mm.alloc_frames(HUGE, gfp).unwrap();
        world.pinned.push(frames);
        assert_eq!(world.mm.compact_stats().stalls, 1);
    });
}

#[test]
fn a_failure_puts_the_next_requests_off_but_not_smaller_ones() {
    with_world(PAGES, |world| {
        world.fill(64);
        // In each pageblock something that does not move.
        world.sort(|pfn| match pfn % 512 {
            100 => Fate::Pinned,
            n if n % 2 == 0 => Fate::Freed,
            _ => Fate::Stays,
        });
        let mode = MigrateMode::SyncLight;
        let try_it = || world.mm.alloc_by_compaction(HUGE, Gfp::USER, mode);
        assert_eq!(try_it().unwrap_err(), CompactResult::Complete);
        assert_eq!(try_it().unwrap_err(), CompactResult::Deferred);
        assert_eq!(world.mm.compact_stats().deferred, 1);
        assert_eq!(try_it().unwrap_err(), CompactResult::Complete, "every second one is tried");
        for _ in 0..3 {
            assert_eq!(try_it().unwrap_err(), CompactResult::Deferred);
        }
        let small = Order::new(5).unwrap();
        let smaller = world.mm.alloc_by_compaction(small, Gfp::USER, mode);
        assert_ne!(smaller.as_ref().err(), Some(&CompactResult::Deferred), "smaller ones are not");
        world.pinned.extend(smaller.ok());
    });
}

#[test]
fn compaction_is_not_begun_where_it_cannot_help() {
    with_world(PAGES, |world| {
        let mode = MigrateMode::Sync;
        let single = world.mm.alloc_by_compaction(Order::ZERO, Gfp::USER, mode);
        assert_eq!(single.unwrap_err(), CompactResult::NotSuitable);
        assert_eq!(world.mm.compaction_suitable(HUGE, Gfp::USER), Suitability::Available);
        world.fill(600);
        assert_eq!(world.mm.compaction_suitable(HUGE, Gfp::USER), Suitability::NoMemory);
        let skipped = world.mm.alloc_by_compaction(HUGE, Gfp::USER, mode);
        assert_eq!(skipped.unwrap_err(), CompactResult::Skipped);
        assert_eq!(world.mm.compact_stats().stalls, 0, "nobody waited");
    });
}

#[test]
fn pageblocks_in_which_nothing_was_found_are_not_scanned_again_until_the_scanners_have_met() {
    with_world(PAGES, |world| {
        world.fill(64);
        // The lower half is pinned, the upper one can move.
        world.sort(|pfn| match pfn {
            _ if pfn < PAGES / 2 && pfn % 2 == 1 => Fate::Pinned,
            _ if pfn % 2 == 0 => Fate::Freed,
            _ => Fate::Stays,
        });
        let skipped = || {
            let table = &world.mm.memory().map().pageblocks;
            (0..8).filter(|n| table.is_skipped(abi::Pfn::new(n * 512).unwrap())).count()
        };
        let got = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::SyncLight);
        assert!(skipped() >= 3, "{}", skipped());
        let scanned = world.mm.compact_stats().migrate_scanned;
        world.mm.with_compaction(|state| state.cached = crate::compaction::state::Cached::NONE);
        let again = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::SyncLight);
        let more = world.mm.compact_stats().migrate_scanned - scanned;
        assert!(more <= 2 * 512, "the pinned half was passed over: {more}");
        for frames in [got, again].into_iter().flatten() {
            world.mm.memory().free_frozen(frames);
        }
    });
}

#[test]
fn an_asynchronous_run_leaves_a_block_as_soon_as_something_in_it_stays() {
    with_world(PAGES, |world| {
        world.fill(64);
        // The first page of each pageblock but the fourth is pinned.
        world.sort(|pfn| match pfn {
            _ if pfn % 512 == 1 && pfn / 512 != 3 => Fate::Pinned,
            _ if pfn % 2 == 0 => Fate::Freed,
            _ => Fate::Stays,
        });
        let frames = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::Async).unwrap();
        assert_eq!(frames.head().number() / 512, 3);
        let moves = world.owner.moves.lock().unwrap().len();
        assert_eq!(moves, 256, "nothing was moved in vain");
        world.pinned.push(frames);
    });
}

#[test]
fn unmovable_pageblocks_give_no_destinations_and_asynchronous_runs_leave_them_alone() {
    with_world(PAGES, |world| {
        world.checker();
        let top = abi::Pfn::new(6 * 512).unwrap();
        let bottom = abi::Pfn::new(0).unwrap();
        for pfn in [top, bottom] {
            world.mm.memory().set_pageblock(pfn, MigrateType::Unmovable).unwrap();
        }
        let frames = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::Async).unwrap();
        world.pinned.push(frames);
        for &(from, to) in world.owner.moves.lock().unwrap().iter() {
            assert!(from / 512 != 0 && to / 512 != 6, "{from:x} to {to:x}");
        }
        let done = world.mm.compact_memory(MigrateMode::SyncLight);
        assert_eq!(done, CompactResult::Complete);
        let moves = world.owner.moves.lock().unwrap();
        assert!(moves.iter().any(|&(from, _)| from / 512 == 0), "a synchronous run does not");
        assert!(moves.iter().all(|&(_, to)| to / 512 != 6));
    });
}

#[test]
fn blocks_of_a_pageblock_are_neither_moved_nor_moved_to() {
    with_world(PAGES, |world| {
        let huge = world.mm.memory().alloc_frozen(HUGE, Gfp::USER).unwrap();
        world.fill(64);
        world.sort(|pfn| if pfn % 2 == 0 { Fate::Freed } else { Fate::Stays });
        let hole = huge.range();
        world.mm.memory().free_frozen(huge);
        world.mm.memory().drain();
        world.mm.compact_memory(MigrateMode::Sync);
        let moves = world.owner.moves.lock().unwrap().clone();
        assert!(!moves.is_empty());
        assert!(moves.iter().all(|&(_, to)| !hole.contains(abi::Pfn::new(to).unwrap())));
    });
}

/// Whatever step fails, nothing is lost, and the run ends.
#[test]
fn a_fault_at_any_step_loses_nothing() {
    let sites =
        [FaultSite::MigrateIsolate, FaultSite::MigrateDestination, FaultSite::MigrateCallback];
    for site in sites {
        for nth in [1, 2, 31, 32, 33, 250] {
            with_world(6 * 512, |world| {
                world.checker();
                let faults = world.mm.platform().faults();
                faults.fail_nth(site, nth);
                let got = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::SyncLight);
                assert!(faults.struck(site) == 1 || got.is_ok(), "{site:?} {nth}: {got:?}");
                faults.fail_nth(site, 0);
                world.pinned.extend(got.ok());
                world.check();
            });
        }
    }
}

#[test]
fn every_allocation_that_can_fail_in_a_run_may() {
    with_world(4 * 512, |world| {
        world.checker();
        let faults = world.mm.platform().faults();
        faults.fail_randomly(FaultSite::BuddyAlloc, 1);
        faults.fail_randomly(FaultSite::SlabAlloc, 1);
        let done = world.mm.compact_memory(MigrateMode::Sync);
        assert_eq!(done, CompactResult::Complete, "compaction allocates nothing");
        assert!(!world.owner.moves.lock().unwrap().is_empty());
        faults.fail_randomly(FaultSite::BuddyAlloc, 0);
        faults.fail_randomly(FaultSite::SlabAlloc, 0);
    });
}

#[test]
fn the_free_scanner_leaves_the_reserve_and_whole_pageblocks() {
    with_world(PAGES, |world| {
        world.fill(600);
        let memory = world.mm.memory();
        let min = memory.watermarks().min;
        let want = FreeWant { pages: PAGES, blocks: 4096, largest: Order::ZERO, try_only: false };
        memory.drain();
        let mut taken = Vec::new();
        let scan = memory.take_free_in(range(0, PAGES - 512), want, &mut |frames| {
            taken.push(frames);
        });
        let scan = scan.unwrap();
        assert_eq!(scan.taken, taken.len() as u64);
        assert!(memory.free_pages().get() >= min);
        for frames in taken {
            assert_eq!(frames.order(), Order::ZERO);
            memory.free_frozen(frames);
        }
        memory.drain();
    });
}

#[test]
fn a_scan_that_does_not_wait_gives_up_at_a_held_lock() {
    with_world(PAGES, |world| {
        let memory = world.mm.memory();
        let want = FreeWant { pages: 1, blocks: 1, largest: Order::ZERO, try_only: true };
        let zone = memory.zone().lock(world.mm.platform());
        let scan = memory.take_free_in(range(0, 512), want, &mut |_| unreachable!("not locked"));
        drop(zone);
        assert!(scan.is_none());
    });
}

#[test]
fn the_zone_ends_where_memory_does_even_if_some_was_added_in_a_hole() {
    const SECTION: u64 = 1 << SECTION_ORDER;
    let ram = [range(0, PAGES), range(4 * SECTION, PAGES)];
    let hole = range(2 * SECTION, SECTION);
    let platform = TestPlatform::new(&ram, 0).with_spare(hole);
    let memory = Memory::new(platform, &ram, &[]).unwrap();
    let plugged = Order::PAGEBLOCK.pages();
    memory.add_block(NewBlock { range: hole, plugged, unit: Order::PAGEBLOCK }).unwrap();
    let base = Base::new(memory).unwrap();
    assert_eq!(Mm::new(&base).zone_span(), range(0, 4 * SECTION + PAGES));
}
