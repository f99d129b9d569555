//! Programs that want more memory than there is.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::vec::Vec;

use abi::PAGE_SIZE;

use super::world::{Process, World, va};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::fault::{FaultAccess, FaultError};
use crate::folio::{FolioFlags, FolioKind};
use crate::memdesc::{Order, Tag};
use crate::migrate::{Allocated, MigrateBatch, MigrateMode};
use crate::reclaim::{Attempts, LruList, OomNotifier, OutOfMemory, Shrinker};
use crate::space::{MapFlags, MapSource, MmapArgs};
use crate::testing::set_cpu;

#[test]
fn what_does_not_fit_goes_to_swap_and_comes_back_as_it_was() {
    let world = World::new(1024);
    world.mm.swapon_ram(400).unwrap();
    let process = world.process();
    let start = world.map(&process, 700);
    for salt in [1, 2, 3] {
        world.fill(&process, start, 700, salt).unwrap();
        world.check();
        world.verify(&process, start, 700, salt);
    }
    let (stats, swap) = (world.mm.reclaim_stats(), world.mm.swap_stats());
    assert!(stats.swap_freed > 300 && swap.pages_in > 300, "{stats:?} {swap:?}");
    assert_eq!((stats.killed, swap.bad_slots_named), (0, 0));
    world.exit(process);
    assert_eq!(world.mm.swap_stats().free_slots, 400);
    world.end();
}

/// Compressed swap takes memory while memory is short, and its pages move meanwhile.
#[test]
fn what_does_not_fit_is_compressed_and_comes_back_while_its_pages_move() {
    let world = World::new(1024);
    world.mm.swapon_zram(1200).unwrap();
    let process = world.process();
    let start = world.map(&process, 1400);
    for salt in [1, 2, 3] {
        world.fill(&process, start, 1400, salt).unwrap();
        world.check();
        assert!(move_compressed_pages(&world) > 0);
        world.check();
        world.verify(&process, start, 1400, salt);
    }
    let (swap, zram) = (world.mm.swap_stats(), world.mm.zram_stats().unwrap());
    assert!(swap.pages_out > 1000 && swap.pages_in > 1000, "{swap:?}");
    assert!(zram.pages > 400 && zram.memory_bytes < zram.original_bytes / 4, "{zram:?}");
    assert_eq!((world.mm.reclaim_stats().killed, zram.failed_reads), (0, 0));
    world.exit(process);
    assert_eq!(world.mm.zram_stats().unwrap().pages, 0);
    world.end();
}

/// Migrates every page of the compressed device. Returns how many moved.
fn move_compressed_pages(world: &World) -> u64 {
    let memory = world.mm.memory();
    let mut moved = 0;
    let regions = memory.words().regions();
    for pfn in regions.flat_map(|region| region.range().iter().collect::<Vec<_>>()) {
        if memory.words().load(pfn).is_ok_and(|word| word.tag() == Tag::ZpDesc) {
            let mut batch: MigrateBatch<'_, '_, _> = MigrateBatch::new(&world.mm);
            world.mm.isolate_for_migration(pfn, &mut batch).unwrap();
            let mut places = Allocated::new(memory);
            moved +=
                world.mm.migrate_pages(&mut batch, &mut places, MigrateMode::SyncLight).migrated;
        }
    }
    moved
}

#[test]
fn without_swap_the_process_itself_is_killed_and_the_next_one_lives() {
    let world = World::new(512);
    let process = world.process();
    let start = world.map(&process, 700);
    assert_eq!(world.fill(&process, start, 700, 1), Err(FaultError::Oom));
    assert!(process.is_dead());
    assert_eq!(world.load(&process, start), Err(FaultError::Oom), "dead processes do not fault");
    let next = world.process();
    let there = world.map(&next, 200);
    world.fill(&next, there, 200, 2).unwrap();
    world.verify(&next, there, 200, 2);
    let stats = world.mm.reclaim_stats();
    assert_eq!(stats.killed, 1);
    assert!(stats.reaped_pages > 100, "{stats:?}");
    world.check();
    world.exit(process);
    world.exit(next);
    world.end();
}

/// Between an allocation that failed and the choice of a victim another process may end: the one that asked was
/// killed though memory had come free.
#[test]
fn nobody_is_killed_once_there_is_room_again() {
    let world = World::new(512);
    let process = world.process();
    let start = world.map(&process, 20);
    world.fill(&process, start, 20, 1).unwrap();
    for _ in 0..100 {
        assert_eq!(world.mm.make_room(&mut Attempts::default()), Ok(()));
    }
    assert!(!process.is_dead() && world.mm.reclaim_stats().killed == 0);
    world.verify(&process, start, 20, 1);
    world.exit(process);
    world.end();
}

/// Fork once made a child of what the reaper had left: one that reads zeros.
#[test]
fn a_killed_process_has_no_children() {
    let world = World::new(512);
    let process = world.process();
    let start = world.map(&process, 700);
    assert_eq!(world.fill(&process, start, 700, 1), Err(FaultError::Oom));
    let child = world.mm.with_room(|| world.mm.fork(&process));
    assert_eq!(child.map(drop), Err(Errno::EINTR));
    world.check();
    world.exit(process);
    world.end();
}

/// Kills a process while one of its faults looks for memory.
struct Killer(Process);

impl Shrinker for Killer {
    fn shrink(&self, _pages: u64) -> u64 {
        self.0.dead.store(true, Ordering::Release);
        0
    }
}

/// A fault that was on its way once put zeros where the reaper had taken a page.
#[test]
fn a_fault_under_way_puts_nothing_into_a_process_that_is_killed() {
    let world: &'static World = Box::leak(Box::new(World::new(512)));
    let process = world.process();
    let start = world.map(&process, 8);
    let killer: &'static Killer = Box::leak(Box::new(Killer(process)));
    world.store(&killer.0, start, 1).unwrap();
    world.mm.register_shrinker(killer).unwrap();
    let mut taken = Vec::new();
    while !world.mm.memory().is_below_low() {
        taken.push(world.mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap());
    }
    let next = start + PAGE_SIZE;
    let served = world.mm.handle_fault(&killer.0, va(next), FaultAccess::Write);
    assert!(killer.0.is_dead(), "it was killed while it waited for memory");
    assert_eq!((served, world.pte(&killer.0, next)), (Err(FaultError::Oom), None));
    taken.into_iter().for_each(|frames| world.mm.memory().free_frozen(frames));
    world.check();
}

/// A killed process's thread slept on until the folio's holder was done, who may be long about it.
#[test]
fn a_thread_that_sleeps_on_a_folio_wakes_when_its_process_is_killed() {
    let world = World::new(512);
    let process = world.process();
    let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
    let source = MapSource { file: &file, offset: 0, readable: true, writable: true };
    let args = MmapArgs::anonymous(PAGE_SIZE);
    let args = MmapArgs { flags: MapFlags::SHARED, source: Some(source), ..args };
    let start = world.mm.mmap(&process, args).unwrap().get();
    world.load(&process, start).unwrap();
    let folio = world.mm.find_get_folio(&file, 0).unwrap();
    let waits = world.mm.platform().waits();
    std::thread::scope(|scope| {
        let locked = folio.lock(world.mm.platform());
        let faulter = scope.spawn(|| {
            set_cpu(1);
            world.mm.handle_fault(&process, va(start), FaultAccess::Write)
        });
        while waits.sleeping() == 0 {
            std::thread::yield_now();
        }
        world.mm.mark_dead(&process);
        let is_awake = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            waits.sleeping() == 0
        });
        drop(locked);
        assert_eq!(faulter.join().unwrap(), Err(FaultError::Oom));
        assert!(is_awake, "it sleeps until the folio is unlocked");
    });
    world.mm.put(folio);
    world.exit(process);
    world.mm.file_put(file);
    world.end();
}

#[test]
fn the_largest_process_dies_and_others_keep_what_they_have() {
    let world = World::new(1024);
    let [small, large] = [world.process(), world.process()];
    let large_start = world.map(&large, 500);
    world.fill(&large, large_start, 500, 1).unwrap();
    let small_start = world.map(&small, 480);
    // Memory runs out in the small one's fault.
    world.fill(&small, small_start, 480, 2).unwrap();
    assert!(large.is_dead() && !small.is_dead());
    world.verify(&small, small_start, 480, 2);
    assert_eq!(world.mm.reclaim_stats().killed, 1);
    assert_eq!(world.load(&large, large_start), Err(FaultError::Oom));
    world.check();
    world.exit(large);
    world.exit(small);
    world.end();
}

#[test]
fn swapped_pages_count_for_the_choice_of_the_victim() {
    let world = World::new(1024);
    world.swap_to(300);
    let [swapped, fresh] = [world.process(), world.process()];
    let start = world.map(&swapped, 700);
    world.fill(&swapped, start, 700, 1).unwrap();
    let other = world.map(&fresh, 480);
    world.fill(&fresh, other, 480, 2).unwrap();
    assert!(!swapped.is_dead() && !fresh.is_dead());
    let rss = |space: &super::world::Space| {
        (space.rss.anon.load(Ordering::Relaxed), space.rss.swap.load(Ordering::Relaxed))
    };
    assert_eq!(rss(&swapped).0 + rss(&swapped).1, 700);
    assert!(rss(&swapped).1 > 0);
    // More than memory and swap together.
    let more = world.map(&fresh, 200);
    world.fill(&fresh, more, 200, 3).unwrap();
    assert!(swapped.is_dead(), "it has fewer pages in memory, and more in all");
    world.verify(&fresh, other, 480, 2);
    world.check();
    world.exit(swapped);
    world.exit(fresh);
    world.end();
}

#[test]
fn pinned_pages_stay_where_they_are() {
    let world = World::new(512);
    world.swap_to(500);
    let process = world.process();
    let start = world.map(&process, 600);
    world.fill(&process, start, 40, 5).unwrap();
    let pins: Vec<_> =
        (0..40).map(|page| world.folio(&process, start + page * PAGE_SIZE).pin()).collect();
    let before: Vec<_> = pins.iter().map(|pin| pin.pfn()).collect();
    world.fill(&process, start + 40 * PAGE_SIZE, 560, 6).unwrap();
    for (page, pfn) in before.into_iter().enumerate() {
        let pte = world.pte(&process, start + page as u64 * PAGE_SIZE).expect("pinned, so mapped");
        assert_eq!(pte.pfn(), pfn);
        assert!(pte.is_anon_exclusive() && pte.is_writable());
    }
    assert!(world.mm.reclaim_stats().pinned > 0);
    world.verify(&process, start, 40, 5);
    pins.into_iter().for_each(|pin| world.mm.unpin(pin));
    world.exit(process);
    world.end();
}

#[test]
fn everything_pinned_and_swap_full_end_in_an_error() {
    let world = World::new(512);
    world.swap_to(16);
    let mut folios = Vec::new();
    // Nobody's process: nobody to kill.
    while let Ok(folio) = world.mm.alloc_folio(Order::ZERO, Gfp::USER, FolioKind::Anon) {
        folio.set_flags(FolioFlags::UPTODATE | FolioFlags::SWAPBACKED);
        world.mm.lru_add(&folio);
        folios.push(folio.pin());
    }
    assert!(folios.len() > 300);
    let mut attempts = Attempts::default();
    for _ in 0..40 {
        assert_eq!(world.mm.make_room(&mut attempts), Err(OutOfMemory));
    }
    assert!(world.mm.reclaim_stats().nobody_to_kill >= 40);
    folios.into_iter().for_each(|pin| world.mm.unpin(pin));
    world.end();
}

#[test]
fn pages_in_use_stay_and_idle_ones_go() {
    let world = World::new(1024);
    world.swap_to(1000);
    let process = world.process();
    let start = world.map(&process, 1600);
    let (hot, cold) = (100, 400);
    let cold_start = start + hot * PAGE_SIZE;
    world.fill(&process, start, hot, 1).unwrap();
    world.fill(&process, cold_start, cold, 2).unwrap();
    // A stream that is touched once, and a working set that is touched all the time.
    for page in 0..900 {
        world.store(&process, cold_start + (cold + page) * PAGE_SIZE, page).unwrap();
        if page % 4 == 0 {
            (0..hot).for_each(|at| assert!(world.load(&process, start + at * PAGE_SIZE).is_ok()));
        }
    }
    let (hot_left, cold_left) =
        (world.resident(&process, start, hot), world.resident(&process, cold_start, cold));
    assert!(hot_left > 90, "{hot_left} of {hot} hot pages are left");
    assert!(cold_left < cold / 2, "{cold_left} of {cold} cold pages are left");
    assert!(world.mm.lru_counts().pages_of(LruList::ActiveAnon) > 0);
    world.exit(process);
    world.end();
}

#[test]
fn the_reclaim_thread_brings_memory_back_to_the_high_watermark() {
    let world = World::new(2048);
    world.swap_to(500);
    let marks = world.mm.memory().watermarks();
    let process = world.process();
    let start = world.map(&process, 2000);
    let mut page = 0;
    while !world.mm.kswapd_is_wanted() {
        world.store(&process, start + page * PAGE_SIZE, page).unwrap();
        page += 1;
    }
    // Besides what lies on the CPU's lists.
    assert!(world.mm.memory().free_pages().get() < marks.low + 64);
    // Nobody has used them for a while.
    for address in (0..page).map(|at| start + at * PAGE_SIZE) {
        if world.pte(&process, address).is_some() {
            world.change(&process, address, |pte| pte.mk_old());
        }
    }
    while world.mm.kswapd_poll() {}
    assert!(!world.mm.kswapd_is_wanted());
    assert!(world.mm.memory().free_pages().get() >= marks.high);
    let before = world.mm.reclaim_stats().direct_reclaims;
    (0..8).for_each(|at| world.store(&process, start + (page + at) * PAGE_SIZE, 1).unwrap());
    assert_eq!(world.mm.reclaim_stats().direct_reclaims, before, "there is enough");
    world.exit(process);
    world.end();
}

#[test]
fn pages_given_up_are_dropped_unless_they_were_written_again() {
    let world = World::new(512);
    let process = world.process();
    let start = world.map(&process, 600);
    world.fill(&process, start, 200, 7).unwrap();
    for page in 0..200 {
        // What MADV_FREE does.
        let address = start + page * PAGE_SIZE;
        let folio = world.folio(&process, address);
        folio.clear_flags(FolioFlags::SWAPBACKED | FolioFlags::DIRTY);
        world.change(&process, address, |pte| pte.mk_clean().mk_old());
        world.mm.put(folio);
    }
    // Every tenth is used again.
    for page in (0..200).step_by(10) {
        let address = start + page * PAGE_SIZE;
        world.store(&process, address, 1000 + page).unwrap();
        // Some time ago.
        world.change(&process, address, |pte| pte.mk_old());
    }
    world.fill(&process, start + 200 * PAGE_SIZE, 380, 8).unwrap();
    let stats = world.mm.reclaim_stats();
    assert!(stats.anon_freed > 50 && stats.rewritten > 0, "{stats:?}");
    for page in 0..200 {
        let found = world.load(&process, start + page * PAGE_SIZE).unwrap();
        if page % 10 == 0 {
            assert_eq!(found, 1000 + page);
        } else {
            assert!(found == 0 || found == super::world::value(page, 7), "page {page}: {found:#x}");
        }
    }
    world.verify(&process, start + 200 * PAGE_SIZE, 380, 8);
    world.check();
    world.exit(process);
    world.end();
}

#[test]
fn clean_file_pages_are_dropped_and_written_ones_never() {
    let world = World::new(512);
    let file = world.mm.create_file(b"data").unwrap();
    world.mm.truncate_file(&file, 400 * PAGE_SIZE).unwrap();
    for page in 0..100 {
        world.mm.write_file(&file, page * PAGE_SIZE, &page.to_le_bytes()).unwrap();
    }
    for page in 100..250 {
        // Holes that were read are pages of zeros.
        let folio = world.mm.file_fault_folio(&file, page, Gfp::USER).unwrap();
        world.mm.put(folio.unlock());
    }
    let process = world.process();
    let start = world.map(&process, 300);
    world.fill(&process, start, 300, 9).unwrap();
    assert!(world.mm.reclaim_stats().file_freed > 50, "{:?}", world.mm.reclaim_stats());
    let mut bytes = [0; 8];
    for page in 0..250 {
        world.mm.read_file(&file, page * PAGE_SIZE, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), if page < 100 { page } else { 0 });
    }
    world.check();
    world.exit(process);
    world.mm.unlink_file(b"data").unwrap();
    world.mm.file_put(file);
    world.end();
}

/// Keeps pages for the worst case.
struct Reserve {
    world: &'static World,
    kept: std::sync::Mutex<Vec<crate::memory::FrozenFrames>>,
    calls: AtomicU64,
}

impl OomNotifier for Reserve {
    fn out_of_memory(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let _none = self.world.mm.memory().no_alloc();
        let mut kept = self.kept.lock().unwrap();
        let given = kept.len().min(64);
        for _ in 0..given {
            self.world.mm.memory().free_frozen(kept.pop().unwrap());
        }
        given as u64
    }
}

#[test]
fn the_notifier_is_asked_before_anybody_dies() {
    let world: &'static World = Box::leak(Box::new(World::new(1024)));
    let kept: Vec<_> = (0..256)
        .map(|_| world.mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap())
        .collect();
    let reserve: &'static Reserve =
        Box::leak(Box::new(Reserve { world, kept: kept.into(), calls: AtomicU64::new(0) }));
    world.mm.set_oom_notifier(Some(reserve));
    let process = world.process();
    let start = world.map(&process, 1200);
    let mut filled = 0;
    while world.store(&process, start + filled * PAGE_SIZE, filled).is_ok() {
        filled += 1;
        if !reserve.kept.lock().unwrap().is_empty() {
            assert_eq!(world.mm.reclaim_stats().killed, 0, "killed with a reserve left");
        }
    }
    let stats = world.mm.reclaim_stats();
    assert_eq!((stats.notified_pages, stats.killed), (256, 1));
    assert!(filled > 800, "{filled}");
    world.mm.set_oom_notifier(None);
    world.exit(process);
    world.check();
}

struct Pool(std::sync::Mutex<Vec<crate::memory::FrozenFrames>>, &'static World);

impl Shrinker for Pool {
    fn shrink(&self, pages: u64) -> u64 {
        let mut pool = self.0.lock().unwrap();
        let count = pool.len().min(usize::try_from(pages).unwrap_or(usize::MAX));
        for frames in pool.drain(..count) {
            self.1.mm.memory().free_frozen(frames);
        }
        count as u64
    }
}

#[test]
fn caches_give_back_before_allocations_fail() {
    let world: &'static World = Box::leak(Box::new(World::new(512)));
    let frames =
        (0..100).map(|_| world.mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap());
    let pool: &'static Pool = Box::leak(Box::new(Pool(frames.collect::<Vec<_>>().into(), world)));
    world.mm.register_shrinker(pool).unwrap();
    let process = world.process();
    let start = world.map(&process, 420);
    world.fill(&process, start, 420, 1).unwrap();
    assert!(pool.0.lock().unwrap().is_empty());
    assert_eq!(world.mm.reclaim_stats().killed, 0);
    world.exit(process);
    world.check();
}

#[test]
fn four_processes_on_four_cpus_share_memory_that_is_too_small() {
    let world = World::new(1024);
    // Each of them alone is too large already.
    world.swap_to(4400);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let world = &world;
            scope.spawn(move || {
                set_cpu(cpu);
                let process = world.process();
                let start = world.map(&process, 1100);
                for round in 0..2 {
                    let salt = cpu as u64 * 100 + round;
                    world.fill(&process, start, 1100, salt).unwrap();
                    world.verify(&process, start, 1100, salt);
                }
                world.exit(process);
            });
        }
    });
    let stats = world.mm.reclaim_stats();
    assert!(stats.swap_freed > 1000 && stats.killed == 0, "{stats:?}");
    world.end();
}

#[test]
fn a_reclaim_thread_beside_faults_loses_nothing() {
    let world = World::new(1024);
    world.swap_to(900);
    let is_over = core::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            set_cpu(3);
            while !is_over.load(Ordering::Relaxed) {
                world.mm.wake_kswapd();
                world.mm.kswapd_poll();
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..2)
            .map(|cpu| {
                let world = &world;
                scope.spawn(move || {
                    set_cpu(cpu);
                    let process = world.process();
                    let start = world.map(&process, 500);
                    for salt in 0..4 {
                        world.fill(&process, start, 500, salt).unwrap();
                        world.verify(&process, start, 500, salt);
                    }
                    world.exit(process);
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
    });
    world.end();
}

#[test]
fn a_device_that_refuses_writes_loses_nothing() {
    let world = World::new(512);
    let device = world.swap_to(400);
    device.fails.store(true, Ordering::Relaxed);
    let process = world.process();
    let start = world.map(&process, 400);
    world.fill(&process, start, 380, 4).unwrap();
    device.fails.store(false, Ordering::Relaxed);
    assert_eq!(device.written(), 0);
    world.fill(&process, start + 380 * PAGE_SIZE, 20, 4).unwrap();
    world.verify(&process, start, 380, 4);
    world.check();
    world.exit(process);
    world.end();
}

#[test]
fn a_slot_that_is_full_is_no_reason_to_die_if_memory_suffices() {
    let world = World::new(1024);
    world.swap_to(4);
    let process = world.process();
    let start = world.map(&process, 900);
    world.fill(&process, start, 880, 4).unwrap();
    world.verify(&process, start, 880, 4);
    assert!(!process.is_dead());
    world.exit(process);
    world.end();
}
