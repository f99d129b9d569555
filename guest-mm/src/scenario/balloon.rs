//! `balloon-migrate` and `balloon-migrate-oom`: ballooned pages move, and the host follows.
//!
//! Where the host has put nothing into the balloon, and only the host can, there is
//! nothing to move: the scenarios say so and end well.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use super::hog::Hog;
use super::oom::{LEFT, usable_pages};
use super::{Ctx, Failure, Machine, Outcome, Process, check, check_eq};
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Memdesc, Order};
use crate::migrate::{Allocated, MigrateBatch, MigrateMode, MigrateStats};
use crate::mm::Mm;
use crate::platform::MAX_CPUS;
use crate::space::MmapArgs;

/// Time that the host has to bring the balloon to a target.
const PATIENCE_NS: u64 = 20_000_000_000;
/// Looks, where the clock stands still.
const MAX_LOOKS: u32 = 100_000;
/// Pages of each process whose contents are watched.
const WATCHED: u64 = 64;

/// A balloon with pages in it; emptied again if the scenario has filled it.
pub(super) struct Filled {
    pub(super) pages: u64,
    by_us: bool,
}

impl Filled {
    /// Fills an empty balloon with a quarter of what is free. `None`: there is none, or only the host can.
    pub(super) fn balloon<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Result<Option<Self>, Failure> {
        let Some(status) = ctx.balloon() else {
            ctx.print(format_args!("skip balloon: there is none"));
            return Ok(None);
        };
        let pages = status.pages().get();
        if pages > 0 {
            return Ok(Some(Self { pages, by_us: false }));
        }
        let pages = ctx.mm.memory().free_pages().get() / 4;
        if !ctx.set_balloon_target(pages) {
            ctx.print(format_args!("skip balloon: it is empty, and only the host can fill it"));
            return Ok(None);
        }
        wait_for(ctx, pages)?;
        Ok(Some(Self { pages, by_us: true }))
    }

    pub(super) fn end<M: Machine>(self, ctx: &mut Ctx<'_, '_, M>) -> Outcome {
        if self.by_us {
            ctx.set_balloon_target(0);
            return wait_for(ctx, 0);
        }
        Ok(())
    }
}

/// Serves until the balloon has exactly `pages`.
fn wait_for<M: Machine>(ctx: &mut Ctx<'_, '_, M>, pages: u64) -> Outcome {
    let machine = ctx.machine();
    let start = machine.now_ns();
    for look in 0.. {
        let status = ctx.balloon();
        let is_there = status.is_some_and(|s| s.actual == s.pages() && s.actual.get() == pages);
        let waited = machine.now_ns().saturating_sub(start);
        if is_there || waited > PATIENCE_NS || (waited == 0 && look > MAX_LOOKS) {
            break;
        }
        ctx.serve();
        machine.relax();
    }
    let actual = ctx.balloon().map_or(0, |status| status.actual.get());
    check_eq(actual, pages, "pages in the balloon")
}

/// Pages of the balloon's block that starts at `pfn`; 0 if none does.
pub(super) fn ballooned<M: Machine>(mm: &Mm<'_, M>, pfn: Pfn) -> u64 {
    match mm.memory().words().decode(pfn) {
        Ok(Memdesc::Offline(block)) if block.driver == DriverId::BALLOON => {
            block.order.pages().get()
        }
        Ok(_) | Err(_) => 0,
    }
}

/// Ballooned pages in `range`, of blocks that start there.
fn ballooned_in<M: Machine>(mm: &Mm<'_, M>, range: PfnRange) -> u64 {
    let inside = |pfn: Pfn| ballooned(mm, pfn).min(range.end().number() - pfn.number());
    range.iter().map(inside).sum()
}

/// Moves every ballooned block out of `range`, of which meanwhile nothing is handed out.
/// `None`: somebody else has set it aside.
fn evacuate<M: Machine>(mm: &Mm<'_, M>, range: PfnRange) -> Option<(MigrateStats, u64)> {
    let aside = mm.memory().isolate_range(range).ok()?;
    let mut stats = MigrateStats::default();
    // A block without a destination of its order was cut: its pieces come the next time.
    for _ in 0..=Order::PAGEBLOCK.get() {
        let before = stats.vacated();
        empty_once(mm, range, &mut stats);
        if stats.vacated() == before || ballooned_in(mm, range) == 0 {
            break;
        }
    }
    let left = ballooned_in(mm, range);
    mm.memory().unisolate_range(aside);
    Some((stats, left))
}

fn empty_once<M: Machine>(mm: &Mm<'_, M>, range: PfnRange, stats: &mut MigrateStats) {
    let mut batch = MigrateBatch::<M>::new(mm);
    let mut destinations = Allocated::new(mm.memory());
    for pfn in range.iter() {
        if ballooned(mm, pfn) > 0 {
            // Whoever has it may keep it.
            let _isolated = mm.isolate_for_migration(pfn, &mut batch);
        }
        if batch.is_full() {
            stats.add(&mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Sync));
        }
    }
    stats.add(&mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Sync));
}

/// The pageblocks that lie in RAM as a whole, one after the other.
fn pageblocks<M: Machine>(mm: &Mm<'_, M>) -> impl Iterator<Item = PfnRange> {
    let order = Order::PAGEBLOCK;
    mm.memory().words().regions().map(|region| region.range()).flat_map(move |all| {
        (0..=all.len().get() / order.pages().get()).filter_map(move |n| {
            let start = all.start().align_down(order.get());
            let start = start.checked_add(PageCount::new(n * order.pages().get()))?;
            PfnRange::from_start(start, order.pages()).filter(|&block| all.contains_range(block))
        })
    })
}

/// Runs `balloon-migrate`: each pageblock in turn is emptied of ballooned pages.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let Some(filled) = Filled::balloon(ctx)? else { return Ok(()) };
    let ended = alone(ctx, filled.pages);
    let ended = ctx.report("alone", ended);
    let beside = beside_users(ctx);
    let beside = ctx.report("beside-users", beside);
    let emptied = filled.end(ctx);
    ended.and(beside).and(emptied)
}

/// Nobody else does anything: all that was in a block is elsewhere, and no page more or less is in the balloon.
fn alone<M: Machine>(ctx: &mut Ctx<'_, '_, M>, pages: u64) -> Outcome {
    let mm = ctx.mm;
    let process = Process::new(mm)?;
    let watched = process.mmap(MmapArgs::anonymous(WATCHED * PAGE_SIZE))?;
    process.fill(watched, WATCHED, 1)?;
    let before = ctx.balloon().map(|status| status.counters.migrated_pages).unwrap_or_default();
    let (mut stats, mut blocks) = (MigrateStats::default(), 0);
    for _ in 0..ctx.rounds(1) {
        for block in pageblocks(mm) {
            let there = ballooned_in(mm, block);
            let Some((moved, left)) = evacuate(mm, block) else { continue };
            stats.add(&moved);
            blocks += 1;
            if moved.failed() + moved.kept == 0 {
                check_eq(left, 0, "ballooned pages left in a block")?;
                // A block that ends beyond it may have moved whole.
                check(moved.vacated() >= there, "all ballooned pages left it")?;
            }
            ctx.serve();
        }
    }
    let status = ctx.balloon();
    let moved = status.map_or(0, |status| status.counters.migrated_pages) - before;
    ctx.print(format_args!(
        "{} pages moved out of {blocks} blocks, {} released, {} kept, {} stayed",
        stats.migrated,
        stats.released,
        stats.kept,
        stats.failed()
    ));
    check(stats.migrated > 0, "ballooned pages moved")?;
    check_eq(moved, stats.migrated, "pages that the driver moved")?;
    if stats.kept + stats.released == 0 {
        check_eq(status.map_or(0, |status| status.pages().get()), pages, "pages in the balloon")?;
    }
    process.expect(watched, WATCHED, 1)
}

/// Threads beside the one that moves pages: one on each CPU, as far as there are threads.
fn users<M: Machine>(ctx: &Ctx<'_, '_, M>) -> usize {
    ctx.cpus().min(MAX_CPUS - 1)
}

/// Others take memory, use it and give it back.
fn beside_users<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, users, rounds) = (ctx.mm, users(ctx), ctx.rounds(1));
    let before = ctx.balloon().map_or(0, |status| status.counters.migrated_pages);
    let done = AtomicU64::new(0);
    ctx.run_on(users + 1, &|thread| {
        if thread == users {
            // Through all blocks at least once after the users have ended: as fast as they may be.
            loop {
                let is_over = done.load(Ordering::Relaxed) == users as u64;
                for block in pageblocks(mm) {
                    evacuate(mm, block);
                    mm.platform().yield_now();
                }
                if is_over {
                    return Ok(());
                }
            }
        }
        let ended = use_memory(mm, thread as u64, 4 * rounds);
        done.fetch_add(1, Ordering::Relaxed);
        ended
    })?;
    let moved = ctx.balloon().map_or(0, |status| status.counters.migrated_pages) - before;
    ctx.print(format_args!("{moved} ballooned pages moved beside {users} users"));
    check(moved > 0, "ballooned pages moved")
}

fn use_memory<M: Machine>(mm: &Mm<'_, M>, tag: u64, rounds: u64) -> Outcome {
    let process = Process::new(mm)?;
    for round in 0..rounds {
        let there = process.mmap(MmapArgs::anonymous(WATCHED * PAGE_SIZE))?;
        process.fill(there, WATCHED, tag + round)?;
        mm.platform().yield_now();
        process.expect(there, WATCHED, tag + round)?;
        process.munmap(there, WATCHED * PAGE_SIZE)?;
    }
    Ok(())
}

/// Runs `balloon-migrate-oom`: users want more than there is without the balloon, whose pages
/// move meanwhile. Each gets what it wants, and nobody is killed.
pub(super) fn run_oom<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let Some(filled) = Filled::balloon(ctx)? else { return Ok(()) };
    let may = ctx.balloon().is_some_and(|status| status.deflates_on_oom);
    if !may {
        ctx.print(format_args!("skip out-of-memory: this balloon gives nothing to whoever is"));
        return filled.end(ctx);
    }
    let mut hog = Hog::new();
    let reserve = ctx.mm.memory().watermarks().min;
    hog.take_until(ctx.mm, reserve + LEFT, Gfp::KERNEL);
    let ended = run_out(ctx, filled.pages);
    hog.free(ctx.mm);
    ctx.report("out-of-memory", ended).and(filled.end(ctx))
}

fn run_out<M: Machine>(ctx: &mut Ctx<'_, '_, M>, ballooned: u64) -> Outcome {
    let (mm, users) = (ctx.mm, users(ctx));
    // Half of the balloon must come; tables and descriptors want some too.
    let wanted = (usable_pages(mm) + ballooned.min(2048) / 2) / users as u64 * 15 / 16;
    let before = (mm.reclaim_stats(), ctx.balloon().map_or(0, |s| s.counters.migrated_pages));
    let (have, done) = (AtomicU64::new(0), AtomicU64::new(0));
    ctx.run_on(users + 1, &|thread| {
        if thread == users {
            return move_until(mm, &|| done.load(Ordering::Relaxed) == users as u64);
        }
        // Who has his pages keeps them until all have theirs: one after the other they need no balloon.
        let ended = want(mm, wanted, thread as u64, &|| {
            have.fetch_add(1, Ordering::Relaxed);
            while have.load(Ordering::Relaxed) < users as u64 {
                mm.platform().relax();
            }
        });
        if ended.is_err() {
            // Nobody waits for one who will never have them.
            have.fetch_add(users as u64, Ordering::Relaxed);
        }
        done.fetch_add(1, Ordering::Relaxed);
        ended
    })?;
    let after = (mm.reclaim_stats(), ctx.balloon().map_or(0, |s| s.counters.migrated_pages));
    let given = after.0.notified_pages - before.0.notified_pages;
    let moved = after.1 - before.1;
    ctx.print(format_args!(
        "{users} users of {wanted} pages: {given} came from the balloon, of which {moved} moved"
    ));
    check(given > 0, "the balloon gave pages")?;
    check(moved > 0, "ballooned pages moved")?;
    check_eq(after.0.killed, before.0.killed, "processes killed")
}

/// Has `pages` pages, all of them at once, and calls `meet` then.
fn want<M: Machine>(mm: &Mm<'_, M>, pages: u64, tag: u64, meet: &dyn Fn()) -> Outcome {
    let process = mm.with_room(|| Process::new(mm))?;
    let there = mm.with_room(|| process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE)))?;
    process.fill(there, pages, tag)?;
    meet();
    process.expect(there, pages, tag)
}

/// Moves ballooned pages wherever they are, a batch at a time, until `is_over`, and once more: users who are faster
/// than this, and have the balloon's lock most of the time, may leave no turn to it before they end.
fn move_until<M: Machine>(mm: &Mm<'_, M>, is_over: &dyn Fn() -> bool) -> Outcome {
    loop {
        let is_last = is_over();
        move_all(mm, &|| !is_last && is_over());
        if is_last {
            return Ok(());
        }
    }
}

/// Moves every ballooned page that can be moved, unless it `is_over` before.
fn move_all<M: Machine>(mm: &Mm<'_, M>, is_over: &dyn Fn() -> bool) {
    let mut destinations = Allocated::new(mm.memory());
    for range in mm.memory().words().regions().map(|region| region.range()) {
        let mut batch = MigrateBatch::<M>::new(mm);
        for pfn in range.iter().filter(|&pfn| ballooned(mm, pfn) > 0) {
            let _isolated = mm.isolate_for_migration(pfn, &mut batch);
            if batch.is_full() {
                mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Async);
                mm.platform().yield_now();
                if is_over() {
                    return;
                }
            }
        }
        mm.migrate_pages(&mut batch, &mut destinations, MigrateMode::Async);
        mm.platform().yield_now();
    }
}
