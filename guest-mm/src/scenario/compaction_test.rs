//! `compaction_test`, by the name of Linux's test, tested anew: a program has every
//! other page of memory, and all the same a third of what is free can be had in huge pages.

use abi::PAGE_SIZE;

use super::hog::Hog;
use super::{Case, Ctx, Machine, Outcome, Process, check};
use crate::buddy::Gfp;
use crate::compaction::{CompactStats, ContigOptions};
use crate::memdesc::Order;
use crate::space::{Advice, MmapArgs};

/// What the program's pages hold.
const TAG: u64 = 9;
/// Pages that the program maps at most: what a round may cost.
const MAX_PAGES: u64 = 64 * 1024;
/// Failures in a row after which there is nothing more to be had: as many requests
/// are put off at most.
const MAX_FAILURES: u32 = 64;

/// Runs it.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let before = ctx.mm.compact_stats();
    let cases =
        [Case { name: "huge-pages", run: huge_pages }, Case { name: "contig-range", run: contig }];
    let ended = ctx.run_cases(&cases);
    let after = ctx.mm.compact_stats();
    print_stats(ctx, &before, &after);
    ended
}

/// A program that has every other page of four fifths of free memory.
fn fragmented<'a, 'm, M: Machine>(
    ctx: &mut Ctx<'a, 'm, M>,
) -> Result<(Process<'a, 'm, M>, u64, u64), super::Failure> {
    ctx.mm.forget_compaction();
    let process = Process::new(ctx.mm)?;
    let pages = (ctx.mm.memory().free_pages().get() * 4 / 5).min(MAX_PAGES);
    let start = process.mmap(MmapArgs::anonymous(pages * PAGE_SIZE))?;
    process.madvise(start, pages * PAGE_SIZE, Advice::NoHugePage)?;
    process.fill(start, pages, TAG)?;
    for page in (1..pages).step_by(2) {
        process.madvise(start + page * PAGE_SIZE, PAGE_SIZE, Advice::DontNeed)?;
    }
    ctx.serve();
    Ok((process, start, pages))
}

/// The program's pages are what they were.
fn expect<M: Machine>(process: &Process<'_, '_, M>, start: u64, pages: u64) -> Outcome {
    for page in (0..pages).step_by(2) {
        let va = start + page * PAGE_SIZE;
        let value = super::pattern(TAG, page, va);
        super::check_eq(process.load(va)?, value, "a page that was moved")?;
    }
    Ok(())
}

fn huge_pages<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start, pages) = fragmented(ctx)?;
    let mm = ctx.mm;
    let free = mm.memory().free_pages().get();
    let without = mm.fragmentation(Order::PAGEBLOCK);
    let mut held = Hog::new();
    let (mut blocks, mut failures) = (0, 0);
    while failures < MAX_FAILURES {
        match mm.alloc_frames(Order::PAGEBLOCK, Gfp::USER) {
            Ok(frames) => {
                held.push(mm, frames);
                (blocks, failures) = (blocks + 1, 0);
            }
            Err(_) => failures += 1,
        }
    }
    let kept = expect(&process, start, pages);
    held.free(mm);
    drop(process);
    let huge = blocks * Order::PAGEBLOCK.pages().get();
    ctx.print(format_args!(
        "{blocks} huge pages, {}% of {free} free pages, of which {} without moving anything",
        huge * 100 / free.max(1),
        without.suitable_blocks,
    ));
    kept?;
    check(3 * huge >= free, "a third of free memory in huge pages")
}

/// A range of three pageblocks in the middle of the program's pages.
fn contig<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (process, start, pages) = fragmented(ctx)?;
    let mm = ctx.mm;
    let wanted = Order::PAGEBLOCK.pages();
    let wanted = wanted.saturating_add(wanted).saturating_add(wanted);
    let taken = mm.alloc_contig_pages(wanted, Order::PAGEBLOCK.pages(), ContigOptions::default());
    let kept = expect(&process, start, pages);
    drop(process);
    match taken {
        Ok(frames) => {
            let range = frames.range();
            mm.memory().free_contig(frames);
            ctx.print(format_args!("took {range:?}"));
            kept
        }
        Err(error) => {
            ctx.print(format_args!("no run of {} pages: {error}", wanted.get()));
            kept.and(check(false, "a run of three pageblocks"))
        }
    }
}

/// What compaction did between two looks.
fn print_stats<M: Machine>(ctx: &mut Ctx<'_, '_, M>, before: &CompactStats, after: &CompactStats) {
    ctx.print(format_args!(
        "compact: {} stalls, {} successes, {} failures, {} deferred, {} captured; scanned {} to \
         migrate and {} free; isolated {}; migrated {}, not {}; runs of frames: {}, not {}",
        after.stalls - before.stalls,
        after.successes - before.successes,
        after.failures - before.failures,
        after.deferred - before.deferred,
        after.captured - before.captured,
        after.migrate_scanned - before.migrate_scanned,
        after.free_scanned - before.free_scanned,
        after.isolated - before.isolated,
        after.migrated - before.migrated,
        after.not_migrated - before.not_migrated,
        after.contig_successes - before.contig_successes,
        after.contig_failures - before.contig_failures,
    ));
}
