//! Runs of frames at a given place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use abi::{PageCount, Pfn, PfnRange};

use super::world::{Fate, with_world};
use crate::buddy::{Gfp, frozen_word};
use crate::compaction::{ContigError, ContigOptions};
use crate::errno::Errno;
use crate::memdesc::{DriverId, Hold, Kind, MigrateType, Offline, Order};
use crate::memory::Pass;
use crate::migrate::MigrateMode;
use crate::platform::FaultSite;
use crate::testing::range;

const PAGES: u64 = 8 * 512;

fn sync() -> ContigOptions {
    ContigOptions::default()
}

#[test]
fn a_range_full_of_movable_pages_is_emptied_and_taken_whole() {
    for (start, pages) in [(512, 512), (1024, 1024), (512, 1536), (700, 5), (1000, 600)] {
        with_world(PAGES, |world| {
            world.checker();
            let wanted = range(start, pages);
            let frames = world.mm.alloc_contig_range(wanted, sync()).unwrap();
            assert_eq!((frames.range(), frames.pages().get()), (wanted, pages));
            assert!(world.movable().iter().all(|&pfn| !wanted.contains(Pfn::new(pfn).unwrap())));
            let type_now = world.mm.memory().map().pageblocks.get(wanted.start());
            assert_eq!(type_now, MigrateType::Movable);
            world.mm.memory().split_contig(frames, &mut |block| world.pinned.push(block));
            world.check();
            assert_eq!(world.mm.compact_stats().contig_successes, 1);
        });
    }
}

#[test]
fn a_page_that_cannot_move_is_named_and_everything_undone() {
    with_world(PAGES, |world| {
        world.fill(64);
        world.sort(|pfn| match pfn {
            _ if pfn % 2 == 0 => Fate::Freed,
            777 => Fate::Pinned,
            _ => Fate::Stays,
        });
        let refused = world.mm.alloc_contig_range(range(512, 512), sync()).unwrap_err();
        assert_eq!(refused, ContigError::Busy(Pfn::new(777).unwrap()));
        assert_eq!(refused.errno(), Errno::EBUSY);
        let table = &world.mm.memory().map().pageblocks;
        assert_eq!(table.get(Pfn::new(512).unwrap()), MigrateType::Movable);
        assert_eq!(world.mm.compact_stats().contig_failures, 1);
        world.check();
    });
}

#[test]
fn a_range_of_tables_slabs_or_holes_is_refused_before_anything_moves() {
    with_world(PAGES, |world| {
        world.checker();
        let tables = range(PAGES - 1, 1);
        let refused = world.mm.alloc_contig_range(tables, sync()).unwrap_err();
        assert_eq!(refused, ContigError::Immovable(tables.start(), Kind::Reserved));
        let beyond = world.mm.alloc_contig_range(range(PAGES - 1, 2), sync()).unwrap_err();
        assert_eq!(beyond.errno(), Errno::EBUSY, "{beyond}");
        let beyond = world.mm.alloc_contig_range(range(PAGES, 2), sync()).unwrap_err();
        assert_eq!(beyond.errno(), Errno::EINVAL, "{beyond}");
        let empty = world.mm.alloc_contig_range(range(512, 0), sync()).unwrap_err();
        assert_eq!(empty, ContigError::Empty);
        assert!(world.owner.moves.lock().unwrap().is_empty());
    });
}

#[test]
fn of_two_callers_with_overlapping_ranges_one_is_told_that_it_is_busy() {
    with_world(PAGES, |world| {
        world.checker();
        let refusals = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&refusals);
        // In the middle of the first caller's migration a second one comes.
        *world.owner.hook.lock().unwrap() = Some(Box::new(move |mm, _| {
            let second = mm.alloc_contig_range(range(1000, 100), ContigOptions::default());
            let error = second.expect_err("the first one has it");
            assert_eq!(error, ContigError::Contended(Pfn::new(512).unwrap()));
            assert_eq!(error.errno(), Errno::EBUSY);
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let frames = world.mm.alloc_contig_range(range(512, 512), sync()).unwrap();
        *world.owner.hook.lock().unwrap() = None;
        assert!(refusals.load(Ordering::Relaxed) > 100);
        world.mm.memory().split_contig(frames, &mut |block| world.pinned.push(block));
    });
}

#[test]
fn two_threads_never_get_overlapping_runs() {
    with_world(PAGES, |world| {
        world.checker();
        let taken: Vec<PfnRange> = std::thread::scope(|scope| {
            let mm = world.mm;
            let threads: Vec<_> = (0..2)
                .map(|cpu| {
                    scope.spawn(move || {
                        crate::testing::set_cpu(cpu);
                        let mut taken = Vec::new();
                        for n in 0..12u64 {
                            let wanted = range(512 + 256 * (n % 5), 512);
                            if let Ok(frames) = mm.alloc_contig_range(wanted, sync()) {
                                if n < 8 {
                                    mm.memory().free_contig(frames);
                                } else {
                                    taken.push(frames);
                                }
                            }
                        }
                        taken
                    })
                })
                .collect();
            let taken = threads.into_iter().flat_map(|thread| thread.join().unwrap());
            taken
                .map(|frames| {
                    let range = frames.range();
                    mm.memory().split_contig(frames, &mut |block| world.pinned.push(block));
                    range
                })
                .collect()
        });
        for (n, one) in taken.iter().enumerate() {
            assert!(taken[n + 1..].iter().all(|other| one.intersection(*other).is_none()));
        }
        world.mm.memory().drain();
        world.check();
    });
}

#[test]
fn the_search_for_a_run_passes_over_what_does_not_move() {
    with_world(PAGES, |world| {
        world.fill(64);
        world.sort(|pfn| match pfn {
            _ if pfn % 2 == 0 => Fate::Freed,
            513 | 1025 => Fate::Pinned,
            _ => Fate::Stays,
        });
        let pages = PageCount::new(1024);
        let frames = world.mm.alloc_contig_pages(pages, PageCount::new(512), sync()).unwrap();
        let start = frames.range().start().number();
        assert!(start.is_multiple_of(512) && start >= 1536, "{start}");
        world.mm.memory().split_contig(frames, &mut |block| world.pinned.push(block));
        world.check();
    });
}

#[test]
fn senseless_requests_for_a_run_are_refused() {
    with_world(PAGES, |world| {
        let ask = |pages, align| {
            let asked = (PageCount::new(pages), PageCount::new(align));
            world.mm.alloc_contig_pages(asked.0, asked.1, sync()).unwrap_err()
        };
        assert_eq!(ask(0, 1), ContigError::Empty);
        assert_eq!(ask(1, 3), ContigError::Alignment(PageCount::new(3)));
        assert_eq!(ask(1, 0), ContigError::Alignment(PageCount::new(0)));
        assert_eq!(ask(PAGES + 1, 1), ContigError::NoRange(PageCount::new(PAGES + 1)));
    });
}

#[test]
fn offline_blocks_that_are_skippable_stay_where_they_are_if_asked_for() {
    with_world(PAGES, |world| {
        let memory = world.mm.memory();
        let mut upper = memory.alloc_frozen(Order::PAGEBLOCK, Gfp::USER).unwrap();
        let wanted = upper.range();
        let order = Order::new(6).unwrap();
        let mut others = Vec::new();
        while upper.order() > order {
            let (lower, rest) = memory.split_frozen(upper).unwrap();
            others.push(lower);
            upper = rest;
        }
        let frames = upper;
        let block = frames.range();
        others.into_iter().for_each(|frames| memory.free_frozen(frames));
        let driver = DriverId::HOTPLUG;
        let word = Offline { order, driver, hold: Hold::Held, skippable: true }.encode();
        memory.transition(block.start(), frozen_word(order), word).unwrap();
        let refused = world.mm.alloc_contig_range(wanted, sync()).unwrap_err();
        assert_eq!(refused, ContigError::Busy(block.start()));
        let options = ContigOptions { pass: Pass::Skippable, ..sync() };
        let taken = world.mm.alloc_contig_range(wanted, options).unwrap();
        assert_eq!(taken.pages(), wanted.len().saturating_sub(block.len()));
        memory.free_contig(taken);
        memory.transition(block.start(), word, frozen_word(order)).unwrap();
        memory.free_frozen(frames);
        world.check();
    });
}

#[test]
fn a_fault_at_any_step_of_a_run_of_frames_loses_nothing() {
    let sites = [
        FaultSite::BuddyAlloc,
        FaultSite::MigrateIsolate,
        FaultSite::MigrateDestination,
        FaultSite::MigrateCallback,
    ];
    for site in sites {
        for nth in [1, 2, 32, 33, 255, 256] {
            with_world(4 * 512, |world| {
                world.checker();
                let faults = world.mm.platform().faults();
                faults.fail_nth(site, nth);
                let options = ContigOptions { mode: MigrateMode::SyncLight, ..sync() };
                let got = world.mm.alloc_contig_range(range(512, 512), options);
                faults.fail_nth(site, 0);
                // Each page is tried several times.
                let frames = got.unwrap_or_else(|error| panic!("{site:?} {nth}: {error}"));
                world.mm.memory().split_contig(frames, &mut |block| world.pinned.push(block));
                world.check();
            });
        }
    }
}

#[test]
fn without_memory_to_move_to_the_range_stays_as_it_was() {
    with_world(4 * 512, |world| {
        world.checker();
        let faults = world.mm.platform().faults();
        faults.fail_randomly(FaultSite::BuddyAlloc, 1);
        let got = world.mm.alloc_contig_range(range(512, 512), sync());
        faults.fail_randomly(FaultSite::BuddyAlloc, 0);
        let error = got.unwrap_err();
        assert!(matches!(error, ContigError::NoMemory(_)), "{error}");
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert!(world.owner.moves.lock().unwrap().is_empty());
    });
}
