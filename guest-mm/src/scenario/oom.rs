//! `oom`: memory runs out, and the right one pays for it.
//!
//! Most of the machine's memory is taken away first, so that the scenario takes
//! as long on a machine of any size.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::hog::Hog;
use super::{Case, Ctx, Machine, Outcome, Process, Signal, check, check_eq};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::Mm;
use crate::space::MmapArgs;

/// Pages that are left to play with, about, above what stays free on a machine of this size.
pub(super) const LEFT: u64 = 2048;
/// Slots of the device of the case with swap.
const SLOTS: u32 = 256;
/// Pages of the process that shall live.
const SMALL: u64 = 64;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut hog = Hog::new();
    let reserve = ctx.mm.memory().watermarks().min;
    hog.take_until(ctx.mm, reserve + LEFT, Gfp::KERNEL);
    let left = usable_pages(ctx.mm);
    ctx.print(format_args!("{left} pages are left, of {}", ctx.mm.memory().managed_pages().get()));
    let before = ctx.mm.reclaim_stats();
    let cases = [
        Case { name: "alone", run: alone },
        Case { name: "largest-dies", run: largest_dies },
        Case { name: "swap-saves", run: swap_saves },
        Case { name: "threads", run: threads },
    ];
    let ended = ctx.run_cases(&cases);
    let after = ctx.mm.reclaim_stats();
    hog.free(ctx.mm);
    ctx.print(format_args!(
        "{} killed, {} pages reaped, {} from the balloon, {} swapped out",
        after.killed - before.killed,
        after.reaped_pages - before.reaped_pages,
        after.notified_pages - before.notified_pages,
        after.swap_freed - before.swap_freed
    ));
    ended
}

/// Free pages that a program can have: those above the *min* watermark, which grows with the machine.
pub(super) fn usable_pages<M: Machine>(mm: &Mm<'_, M>) -> u64 {
    let memory = mm.memory();
    memory.free_pages().get().saturating_sub(memory.watermarks().min)
}

/// Maps twice what the machine has, balloon and all.
fn too_much<M: Machine>(
    ctx: &Ctx<'_, '_, M>,
    process: &Process<'_, '_, M>,
) -> Result<(u64, u64), Errno> {
    let pages = 2 * ctx.mm.memory().managed_pages().get();
    Ok((process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE))?, pages))
}

/// Writes to pages until the process is killed; how many it got.
fn fill_until_killed<M: Machine>(
    process: &Process<'_, '_, M>,
    start: u64,
    pages: u64,
) -> Result<u64, Signal> {
    for page in 0..pages {
        match process.store(start + page * PAGE_SIZE, page) {
            Ok(()) => {}
            Err(Signal::Killed | Signal::Oom) => return Ok(page),
            Err(signal) => return Err(signal),
        }
    }
    Ok(pages)
}

fn alone<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let usable = usable_pages(ctx.mm);
    let before = ctx.mm.reclaim_stats().notified_pages;
    let process = Process::new(ctx.mm)?;
    let (start, pages) = too_much(ctx, &process)?;
    let got = fill_until_killed(&process, start, pages)?;
    check(got < pages, "twice the memory is too much")?;
    check(got > usable / 2, "most of the memory could be had first")?;
    let given = ctx.mm.reclaim_stats().notified_pages - before;
    ctx.print(format_args!("{got} pages until it was killed, {given} from the balloon"));
    check(process.space().is_dead(), "the process was killed")?;
    let again = process.store(start, 1);
    check(again.is_err(), "a killed process does nothing any more")?;
    // Its memory is there for others before it has ended.
    let next = Process::new(ctx.mm)?;
    let there = next.mmap(MmapArgs::anonymous(SMALL * PAGE_SIZE))?;
    next.fill(there, SMALL, 1)?;
    next.expect(there, SMALL, 1)
}

fn largest_dies<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (small, large) = (Process::new(ctx.mm)?, Process::new(ctx.mm)?);
    let there = small.mmap(MmapArgs::anonymous(SMALL * PAGE_SIZE))?;
    small.fill(there, SMALL, 2)?;
    let (start, pages) = too_much(ctx, &large)?;
    let got = fill_until_killed(&large, start, pages)?;
    check(got < pages && large.space().is_dead(), "the large process was killed")?;
    check(!small.space().is_dead(), "the small process lives")?;
    small.expect(there, SMALL, 2)
}

fn swap_saves<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    if ctx.mm.swapon_ram(SLOTS).is_err() {
        return Err(Errno::ENOMEM.into());
    }
    let ended = overcommit(ctx);
    let off = ctx.mm.swapoff();
    ended?;
    check(off == Ok(()), "swap can be switched off")
}

fn overcommit<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let killed = ctx.mm.reclaim_stats().killed;
    let process = Process::new(ctx.mm)?;
    // More than memory, less than memory and swap; a descriptor per page and tables want some too.
    let usable = usable_pages(ctx.mm);
    let own = usable / 64 + usable / 512;
    let pages = usable - own + u64::from(SLOTS) / 2;
    let start = process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE))?;
    process.fill(start, pages, 3)?;
    process.expect(start, pages, 3)?;
    check(ctx.mm.swap_stats().pages_out > 0, "pages went to swap")?;
    check_eq(ctx.mm.reclaim_stats().killed, killed, "processes killed")
}

/// Every thread has a process of its own that wants most of the memory.
fn threads<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus();
    let pages = usable_pages(ctx.mm) * 3 / 4;
    let (killed, lived) = (AtomicU64::new(0), AtomicU64::new(0));
    let mm = ctx.mm;
    ctx.run_on(threads, &|_| {
        let process = mm.with_room(|| Process::new(mm))?;
        let start = mm.with_room(|| process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE)))?;
        let got = fill_until_killed(&process, start, pages)?;
        if got < pages {
            killed.fetch_add(1, Ordering::Relaxed);
            return check(process.space().is_dead(), "who gets no memory is killed");
        }
        for page in 0..pages {
            match process.load(start + page * PAGE_SIZE) {
                Ok(value) => check_eq(value, page, "a page of a process that lives")?,
                // It may be chosen at any time.
                Err(_) if process.space().is_dead() => {
                    killed.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(signal) => return Err(signal.into()),
            }
        }
        lived.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    let [killed, lived] = [&killed, &lived].map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!("{threads} processes: {killed} killed, {lived} lived"));
    check_eq(killed + lived, threads as u64, "processes that ended")?;
    check(lived > 0, "memory suffices for one")
}
