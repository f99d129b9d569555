//! `swap`: pages go to a device in RAM, plain and compressed, and come back as they went: by
//! MADV_PAGEOUT, so that the scenario needs no shortage and is the same on
//! machines of any size.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::{Case, Ctx, Machine, Outcome, Process, check, check_eq, pattern};
use crate::addr::VirtAddr;
use crate::errno::Errno;
use crate::gup::{Contents, GupFlags};
use crate::space::{Advice, MmapArgs};
use crate::swap::SwapError;

/// Slots of the device.
const SLOTS: u32 = 256;
/// Pages of a process.
const PAGES: u64 = 96;
/// Rounds of the threads unless told otherwise.
const ROUNDS: u64 = 30;

/// Runs the scenario, on both devices.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    for device in ["ram", "zram"] {
        let on = match device {
            "zram" => ctx.mm.swapon_zram(SLOTS),
            _ => ctx.mm.swapon_ram(SLOTS),
        };
        if on.is_err() {
            return Err(Errno::ENOMEM.into());
        }
        ctx.print(format_args!("swap to {device}"));
        on_device(ctx)?;
    }
    Ok(())
}

/// Runs all cases on the device that is on, and switches it off.
fn on_device<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let before = ctx.mm.swap_stats();
    let cases = [
        Case { name: "out-and-in", run: out_and_in },
        Case { name: "written-again", run: written_again },
        Case { name: "fork", run: fork_shares_slots },
        Case { name: "unmapped", run: unmapped },
        Case { name: "pinned", run: pinned },
        Case { name: "full", run: full },
    ];
    let ended = ctx.run_cases(&cases);
    // One thread meets no slot that is nobody's. Of several, one may have read a leaf that another then swapped in.
    let strange = ctx.mm.swap_stats().bad_slots_named - before.bad_slots_named;
    let ended = ended.and(ctx.run_cases(&[Case { name: "threads", run: threads }]));
    let after = ctx.mm.swap_stats();
    ctx.print(format_args!(
        "{} pages out, {} in, {} found in the cache",
        after.pages_out - before.pages_out,
        after.pages_in - before.pages_in,
        after.cache_hits - before.cache_hits
    ));
    let leaked = u64::from(after.slots - after.free_slots);
    let kept = ctx.mm.zram_stats().map_or(0, |zram| zram.pages);
    let off = ctx.mm.swapoff();
    ended?;
    check_eq(leaked, 0, "slots in use at the end")?;
    check_eq(kept, 0, "compressed pages at the end")?;
    check_eq(strange, 0, "leaves with strange slots")?;
    check(off == Ok(()), "swap can be switched off")
}

/// A process of [`PAGES`] pages that hold the pattern of `tag`.
fn filled<'a, 'm, M: Machine>(
    ctx: &Ctx<'a, 'm, M>,
    tag: u64,
) -> Result<(Process<'a, 'm, M>, u64), super::Failure> {
    let process = Process::new(ctx.mm)?;
    let start = process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    process.fill(start, PAGES, tag)?;
    Ok((process, start))
}

fn swapped<M: Machine>(process: &Process<'_, '_, M>) -> u64 {
    process.space().rss.swap.load(Ordering::Relaxed)
}

/// Swaps `pages` pages out.
pub(super) fn page_out<M: Machine>(
    process: &Process<'_, '_, M>,
    start: u64,
    pages: u64,
) -> Outcome {
    // Not while another thread's accesses go by this CPU's tables.
    Ok(process.madvise(start, pages * PAGE_SIZE, Advice::PageOut)?)
}

fn out_and_in<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start) = filled(ctx, 1)?;
    page_out(&process, start, PAGES)?;
    check_eq(swapped(&process), PAGES, "pages in swap")?;
    process.expect(start, PAGES, 1)?;
    check_eq(swapped(&process), 0, "pages in swap after they were read")?;
    // What comes back is the process's own again, and can be written and go once more.
    process.fill(start, PAGES, 2)?;
    page_out(&process, start, PAGES)?;
    process.expect(start, PAGES, 2)
}

fn written_again<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start) = filled(ctx, 3)?;
    for round in 0..4 {
        page_out(&process, start, PAGES)?;
        for page in (0..PAGES).filter(|page| page % 4 == round) {
            process.store(start + page * PAGE_SIZE + 64, page)?;
        }
    }
    process.expect(start, PAGES, 3)?;
    for page in 0..PAGES {
        check_eq(process.load(start + page * PAGE_SIZE + 64)?, page, "what was written between")?;
    }
    Ok(())
}

fn fork_shares_slots<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (parent, start) = filled(ctx, 4)?;
    page_out(&parent, start, PAGES)?;
    let child = parent.fork()?;
    check_eq(swapped(&child), PAGES, "the child's pages in swap")?;
    let used = ctx.mm.swap_stats();
    check_eq(u64::from(used.slots - used.free_slots), PAGES, "slots that both name")?;
    child.fill(start, PAGES / 2, 5)?;
    parent.expect(start, PAGES, 4)?;
    child.expect(start, PAGES / 2, 5)?;
    let rest = start + PAGES / 2 * PAGE_SIZE;
    for page in PAGES / 2..PAGES {
        let at = start + page * PAGE_SIZE;
        check_eq(child.load(at)?, pattern(4, page, at), "what the child has of the parent")?;
    }
    parent.store(rest, 9)?;
    check(child.load(rest)? != 9, "the parent's page is its own")?;
    // Pages that both map stay; then the child goes, and they can.
    page_out(&parent, start, PAGES)?;
    drop(child);
    page_out(&parent, start, PAGES)?;
    check(swapped(&parent) > 0, "the parent's pages go again")?;
    check_eq(parent.load(rest)?, 9, "what the parent wrote")
}

fn unmapped<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start) = filled(ctx, 6)?;
    page_out(&process, start, PAGES)?;
    process.munmap(start, PAGES / 2 * PAGE_SIZE)?;
    process.madvise(start + PAGES / 2 * PAGE_SIZE, PAGES / 4 * PAGE_SIZE, Advice::DontNeed)?;
    check_eq(swapped(&process), PAGES / 4, "pages in swap")?;
    let stats = ctx.mm.swap_stats();
    check_eq(u64::from(stats.slots - stats.free_slots), PAGES / 4, "slots in use")
}

fn pinned<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start) = filled(ctx, 7)?;
    let mut pin = [None];
    let got = ctx.mm.pin_user_pages(process.space(), start, GupFlags::WRITE, &mut pin)?;
    check_eq(got as u64, 1, "pages pinned")?;
    let paged_out = page_out(&process, start, PAGES);
    let in_swap = swapped(&process);
    if let Some(pin) = pin[0].take() {
        ctx.mm.unpin_user_page(pin, Contents::Unchanged);
    }
    paged_out?;
    check_eq(in_swap, PAGES - 1, "pages in swap while one is pinned")?;
    page_out(&process, start, PAGES)?;
    check_eq(swapped(&process), PAGES, "pages in swap after it was unpinned")?;
    process.expect(start, PAGES, 7)
}

fn full<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let process = Process::new(ctx.mm)?;
    let pages = u64::from(SLOTS) + 40;
    let start = process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE))?;
    process.fill(start, pages, 8)?;
    process.madvise(start, pages * PAGE_SIZE, Advice::PageOut)?;
    check_eq(swapped(&process), u64::from(SLOTS), "pages in a full swap")?;
    check(ctx.mm.swapoff() == Err(SwapError::Busy), "swap in use stays on")?;
    process.expect(start, pages, 8)
}

/// The first thread pages a process out while the others count in its pages.
fn threads<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus();
    let process = Process::new(ctx.mm)?;
    let start = process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    check(VirtAddr::new(start).is_some(), "an address of the user half")?;
    let rounds = ctx.rounds(ROUNDS);
    let is_over = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let (rng, workers) = (ctx.rng.clone(), threads.max(2) - 1);
    ctx.run_on(threads.max(2), &|thread| {
        if thread == 0 {
            while !is_over.load(Ordering::Relaxed) {
                page_out(&process, start, PAGES)?;
                process.mm().platform().yield_now();
            }
            return Ok(());
        }
        let mut rng = rng.stream(thread as u64);
        let counted = count(&process, (start, PAGES), thread as u64, rounds, &mut rng);
        if done.fetch_add(1, Ordering::Relaxed) + 1 == workers as u64 || counted.is_err() {
            is_over.store(true, Ordering::Relaxed);
        }
        counted
    })?;
    for thread in 1..=workers as u64 {
        for page in 0..PAGES {
            let at = start + page * PAGE_SIZE + 8 * thread;
            check_eq(process.load(at)?, rounds, "a thread's count in a page")?;
        }
    }
    Ok(())
}

/// Adds 1 to the thread's word in every one of `pages` pages, `rounds` times.
pub(super) fn count<M: Machine>(
    process: &Process<'_, '_, M>,
    (start, pages): (u64, u64),
    thread: u64,
    rounds: u64,
    rng: &mut super::Rng,
) -> Outcome {
    for round in 0..rounds {
        let first = rng.below(pages);
        for page in (first..pages).chain(0..first) {
            let at = start + page * PAGE_SIZE + 8 * thread;
            let before = process.compare_exchange(at, round, round + 1)?;
            check_eq(before, round, "a thread's count in a page")?;
        }
    }
    Ok(())
}
