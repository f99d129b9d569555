//! `come-to-life`: memory that no boot map has is added when nothing is free, used, taken back, removed.
//!
//! Without a device: the machine says which RAM it keeps for this ([`Machine::spare`]). The driver is tried against
//! devices elsewhere. On a machine that keeps none, only what must be refused can be tried; it says so.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::{PageCount, Pfn, PfnRange};

use super::hoard::Hoard;
use super::{
    Case, Ctx, Failure, Machine, OrFail, Outcome, Process, Rng, check, check_eq, check_err,
};
use crate::buddy::Gfp;
use crate::compaction::ContigOptions;
use crate::hotplug::{BlockLayout, HotplugError, NewBlock};
use crate::memdesc::{DriverId, Order, ZONE_MAX_PAGES};
use crate::memory::{ContigFrames, Memory, Pass};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::MmapArgs;

/// Rounds of plugging and unplugging at random, and of removal under readers.
const ROUNDS: u64 = 8;
/// Pages of the process whose pages move.
const MOVED_PAGES: u64 = 700;
/// Of what it writes.
const TAG: u64 = 11;

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let refusals = Case { name: "refusals", run: refusals };
    if ctx.machine().spare().is_none() {
        ctx.run_cases(&[refusals])?;
        ctx.print(format_args!(
            "SKIPPED: all else. No RAM is kept for it: boot with spare=16M or more"
        ));
        return Ok(());
    }
    ctx.run_cases(&[
        refusals,
        Case { name: "zero free pages", run: zero_free },
        Case { name: "in use", run: in_use },
        Case { name: "moved away", run: moved_away },
        Case { name: "pieces at random", run: pieces_at_random },
        Case { name: "removal under readers", run: removal_under_readers },
    ])
}

fn spare<M: Machine>(ctx: &Ctx<'_, '_, M>) -> Result<PfnRange, Failure> {
    ctx.machine().spare().or_fail()
}

/// All of `range` as a block with memory everywhere.
const fn whole(range: PfnRange, unit: Order) -> NewBlock {
    NewBlock { range, plugged: range.len(), unit }
}

fn census<P: Platform>(memory: &Memory<P>) -> Outcome {
    check_eq(memory.census().discrepancies().total(), 0, "discrepancies")
}

/// Takes `range`, what is alive of it being free.
fn take<P: Platform>(memory: &Memory<P>, range: PfnRange) -> Result<ContigFrames, Failure> {
    let isolated = memory.isolate_range(range).or_fail()?;
    let taken = memory.take_isolated(&isolated, range, Pass::Skippable);
    memory.unisolate_range(isolated);
    taken.or_fail()
}

fn lay_to_rest<P: Platform>(memory: &Memory<P>, range: PfnRange, unit: Order) -> Outcome {
    memory.lay_to_rest(take(memory, range)?, unit).or_fail().map(drop)
}

/// Removes the block `range`, all of which was laid to rest. What its words were is overwritten
/// once readers are done: one that is not meets words that mean nothing.
pub(super) fn remove<P: Platform>(mm: &Mm<'_, P>, range: PfnRange) -> Outcome {
    let dying = mm.memory().take_block_out(range).or_fail()?;
    let layout = BlockLayout::of(range).or_fail()?;
    mm.base().rcu.synchronize(mm.platform());
    for pfn in layout.metadata().iter().filter(|pfn| *pfn >= layout.words()) {
        let page = mm.platform().frame_ptr(pfn);
        // SAFETY: mapped still, and nobody finds the words or uses them any more.
        unsafe { page.as_ptr().write_bytes(0xdb, 4096) };
    }
    // SAFETY: the grace period is over.
    unsafe { dying.bury() };
    Ok(())
}

/// Senseless blocks are refused by name, whatever the machine keeps.
fn refusals<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let memory = ctx.mm.memory();
    let words = memory.words().len();
    let ram = memory.words().regions().next().or_fail()?.range();
    let at = |start: u64, pages: u64| {
        Pfn::new(start)
            .and_then(|start| PfnRange::from_start(start, PageCount::new(pages)))
            .or_fail()
    };
    let refused =
        |range, error, what| check_err(memory.add_block(whole(range, Order::MAX)), error, what);

    let inside = at(ram.start().number().next_multiple_of(1024) + 1024, 1024)?;
    let overlap = HotplugError::Overlap { range: inside, with: inside };
    refused(inside, overlap, "RAM was added a second time")?;
    let odd = at(inside.end().number() + 1, 1024)?;
    refused(odd, HotplugError::Misaligned(odd), "a block began in the middle")?;
    let empty = at(inside.end().number(), 0)?;
    refused(empty, HotplugError::Misaligned(empty), "a block of nothing was added")?;
    let base = memory.words().base();
    let far = at((base.number() + ZONE_MAX_PAGES).next_multiple_of(1 << 15), 1 << 15)?;
    refused(
        far,
        HotplugError::OutsideZone { range: far, base },
        "a block beyond the zone was added",
    )?;
    let wide = at((1 << 25) + 1024, 1 << 15)?;
    refused(wide, HotplugError::CrossesSection(wide), "a block of two sections was added")?;
    let gone = memory.take_block_out(inside).map(drop);
    check_err(gone, HotplugError::NotAdded(inside), "RAM of the boot map was removed")?;
    check_err(memory.bring_to_life(inside), HotplugError::NotAdded(inside), "RAM came to life")?;
    check_eq(memory.words().len().get(), words.get(), "words afterwards")?;
    census(memory)
}

/// With nothing free a block is added, used to the last page, and removed.
fn zero_free<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, memory, spare) = (ctx.mm, ctx.mm.memory(), spare(ctx)?);
    let (free, managed) = (memory.free_pages(), memory.managed_pages());
    let mut hoard = Hoard::new(memory);
    hoard.take_all(Order::MAX);
    check_eq(memory.free_pages().get(), 0, "free pages")?;

    let layout = memory.add_block(whole(spare, Order::PAGEBLOCK)).or_fail()?;
    check_eq(memory.free_pages().get(), 0, "free pages, the block being there")?;
    let payload = layout.payload();
    let offline = memory.census().offline_total(DriverId::HOTPLUG);
    check_eq(offline.get(), payload.len().get(), "offline pages")?;
    let alive = memory.bring_to_life(payload).or_fail()?;
    check_eq(alive.get(), payload.len().get(), "pages that came to life")?;
    check_eq(memory.free_pages().get(), payload.len().get(), "free pages, the block being alive")?;
    check_err(
        memory.add_block(whole(spare, Order::PAGEBLOCK)),
        HotplugError::Overlap { range: spare, with: spare },
        "a block was added twice",
    )?;
    census(memory)?;

    let mut held = Hoard::new(memory);
    let mut wrong = 0;
    while let Ok(mut frames) = memory.alloc_frozen(Order::ZERO, Gfp::MEMALLOC) {
        let mark = frames.head().number().to_le_bytes()[0];
        memory.bytes_mut(&mut frames).fill(mark);
        wrong += u64::from(!spare.contains(frames.head()));
        wrong += u64::from(memory.bytes(&frames).iter().any(|byte| *byte != mark));
        held.push(frames);
    }
    check_eq(wrong, 0, "pages that are not the block's, or lost what was written")?;
    check_eq(held.pages().get(), payload.len().get(), "pages used")?;
    drop(held);

    lay_to_rest(memory, payload, Order::PAGEBLOCK)?;
    check_eq(memory.free_pages().get(), 0, "free pages, the block being at rest")?;
    remove(mm, spare)?;
    drop(hoard);
    check_eq(memory.free_pages().get(), free.get(), "free pages in the end")?;
    check_eq(memory.managed_pages().get(), managed.get(), "managed pages in the end")?;
    ctx.print(format_args!(
        "{} pages came to life with none free; tables took {} of the block's own",
        payload.len().get(),
        layout.metadata_pages().get(),
    ));
    census(memory)
}

/// A block of which one page is in use stays, and that page with it.
fn in_use<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, memory, spare) = (ctx.mm, ctx.mm.memory(), spare(ctx)?);
    let layout = memory.add_block(whole(spare, Order::PAGEBLOCK)).or_fail()?;
    memory.bring_to_life(layout.payload()).or_fail()?;
    let mut others = Hoard::new(memory);
    let mut mine = loop {
        let frames = memory.alloc_frozen(Order::ZERO, Gfp::MEMALLOC).or_fail()?;
        if spare.contains(frames.head()) {
            break frames;
        }
        others.push(frames);
    };
    drop(others);
    memory.bytes_mut(&mut mine).fill(0x3c);
    check(take(memory, layout.payload()).is_err(), "a page in use was taken")?;
    let refused = memory.take_block_out(spare).map(drop);
    check(matches!(refused, Err(HotplugError::InUse(..))), "a block in use was removed")?;
    check(memory.bytes(&mine).iter().all(|byte| *byte == 0x3c), "the page lost its contents")?;
    census(memory)?;
    memory.free_frozen(mine);
    lay_to_rest(memory, layout.payload(), Order::PAGEBLOCK)?;
    remove(mm, spare)?;
    census(memory)
}

/// A process has pages in the block; they move, and it notices nothing.
fn moved_away<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, memory, spare) = (ctx.mm, ctx.mm.memory(), spare(ctx)?);
    let layout = memory.add_block(whole(spare, Order::PAGEBLOCK)).or_fail()?;
    // What was there at start is in use, so the process gets its pages from the block; some of it is needed
    // for tables, and later for the pages themselves.
    let mut hoard = Hoard::new(memory);
    hoard.take_all(Order::PAGEBLOCK);
    memory.bring_to_life(layout.payload()).or_fail()?;
    let process = Process::new(mm)?;
    let at = process.mmap(MmapArgs::anonymous(MOVED_PAGES * abi::PAGE_SIZE))?;
    process.fill(at, MOVED_PAGES, TAG)?;
    drop(hoard);
    memory.drain();
    let options = ContigOptions::default();
    let mut moved = 0;
    let first = layout.payload().start().number().next_multiple_of(512);
    for start in (first..spare.end().number()).step_by(512).filter_map(Pfn::new) {
        let piece = PfnRange::from_start(start, Order::PAGEBLOCK.pages()).or_fail()?;
        // Tables and descriptors of the process stay where they are.
        let Ok(frames) = mm.alloc_contig_range(piece, options) else { continue };
        memory.lay_to_rest(frames, Order::PAGEBLOCK).or_fail()?;
        moved += 1;
    }
    check(moved > 0, "nothing could be taken")?;
    census(memory)?;
    process.expect(at, MOVED_PAGES, TAG)?;
    drop(process);
    mm.base().settle();
    mm.reap_spaces();
    mm.base().settle();
    let rest =
        mm.alloc_contig_range(layout.payload(), ContigOptions { pass: Pass::Skippable, ..options });
    memory.lay_to_rest(rest.or_fail()?, Order::PAGEBLOCK).or_fail()?;
    remove(mm, spare)?;
    ctx.print(format_args!("{moved} pieces of 2 MiB were taken from under a process"));
    census(memory)
}

/// Pieces of every size come to life and are laid to rest, as chance will have it.
fn pieces_at_random<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, memory, spare) = (ctx.mm, ctx.mm.memory(), spare(ctx)?);
    let before = memory.free_pages();
    for round in 0..ctx.rounds(ROUNDS) {
        let unit = [Order::ZERO, Order::saturating(3), Order::PAGEBLOCK, Order::MAX];
        let unit = unit[usize::try_from(round % 4).unwrap_or(0)];
        let layout = memory.add_block(whole(spare, unit)).or_fail()?;
        let first = layout.payload().start().number().next_multiple_of(unit.pages().get());
        let units = (spare.end().number() - first) / unit.pages().get();
        for _ in 0..24 {
            let from = ctx.rng.below(units);
            let count = (1 + ctx.rng.below(64)).min(units - from);
            let range = Pfn::new(first + from * unit.pages().get()).and_then(|start| {
                PfnRange::from_start(start, PageCount::new(count * unit.pages().get()))
            });
            flip(memory, range.or_fail()?, unit)?;
        }
        census(memory)?;
        let bits = memory.offline_bits(spare.start()).or_fail()?;
        let alive = layout.payload().len().saturating_sub(bits.pages());
        check_eq(memory.free_pages().get() - before.get(), alive.get(), "pages alive")?;
        lay_to_rest(memory, layout.payload(), unit)?;
        remove(mm, spare)?;
        ctx.serve();
    }
    census(memory)
}

/// Brings the pieces of `range` to life that are not, or lays all to rest if none waits.
fn flip<P: Platform>(memory: &Memory<P>, range: PfnRange, unit: Order) -> Outcome {
    let bits = memory.offline_bits(range.start()).or_fail()?;
    let mut woken = 0;
    for start in range.iter().step_by(1 << unit.get()).filter(|pfn| bits.contains(*pfn)) {
        let piece = PfnRange::from_start(start, unit.pages()).or_fail()?;
        memory.bring_to_life(piece).or_fail()?;
        woken += 1;
    }
    if woken == 0 { lay_to_rest(memory, range, unit) } else { Ok(()) }
}

/// Blocks come and go while others look their frames up, without a lock.
fn removal_under_readers<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, spare, seed) = (ctx.mm, spare(ctx)?, ctx.args.seed);
    let (memory, rounds) = (mm.memory(), ctx.rounds(ROUNDS));
    let is_over = AtomicBool::new(false);
    let come_and_go = || {
        for _ in 0..rounds {
            let layout = memory.add_block(whole(spare, Order::PAGEBLOCK)).or_fail()?;
            memory.bring_to_life(layout.payload()).or_fail()?;
            lay_to_rest(memory, layout.payload(), Order::PAGEBLOCK)?;
            remove(mm, spare)?;
        }
        Ok(())
    };
    let look = |thread: usize| {
        let mut rng = Rng::new(seed).stream(thread as u64);
        while !is_over.load(Ordering::Relaxed) {
            let section = mm.base().rcu.read(mm.platform().cpu());
            for _ in 0..32 {
                let pfn = spare.start().number() + rng.below(spare.len().get());
                let word = Pfn::new(pfn).and_then(|pfn| memory.words().load(pfn).ok());
                let is_sound = word.is_none_or(|word| word.decode().is_ok());
                check(is_sound, "the word of a block that is gone")?;
            }
            drop(section);
            mm.platform().yield_now();
        }
        Ok(())
    };
    let threads = ctx.cpus().max(2);
    ctx.run_on(threads, &|thread| {
        if thread > 0 {
            return look(thread);
        }
        let outcome = come_and_go();
        is_over.store(true, Ordering::Relaxed);
        outcome
    })?;
    census(memory)
}
