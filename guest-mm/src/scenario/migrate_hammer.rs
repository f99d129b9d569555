//! `migrate-hammer`: data is used by every CPU while its pages, and the balloon's, move without end.
//!
//! Each thread owns pages of one address space, rewrites them word by word and looks whether each page
//! holds what it wrote last and the sum that goes with it. In between it takes whatever can be moved of the
//! next frames of RAM, which all threads go through together, and has it moved: other threads' pages, its own, and
//! the balloon's. `--rounds` says how often each goes through its pages.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SIZE, PageCount, PfnRange};

use super::balloon::Filled;
use super::{Ctx, Machine, Outcome, Process, Rng, check, check_eq};
use crate::migrate::{Allocated, MigrateBatch, MigrateMode, MigrateStats};
use crate::mm::Mm;
use crate::space::MmapArgs;
use crate::sync::{LockClass, SpinLock};

/// Pages of each user.
const PAGES: usize = 64;
const BYTES: u64 = PAGES as u64 * PAGE_SIZE;
/// Words that each page has in use, spread over it; the last is the sum of the others.
const WORDS: u64 = 8;
/// Frames that one batch is looked for in: so many that a few rounds of one user look at all of a small guest's RAM.
const FRAMES_AT_ONCE: u64 = 512;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let filled = Filled::balloon(ctx)?;
    let ended = hammer(ctx, filled.is_some());
    let emptied = filled.map_or(Ok(()), |filled| filled.end(ctx));
    ended.and(emptied)
}

fn hammer<M: Machine>(ctx: &mut Ctx<'_, '_, M>, has_balloon: bool) -> Outcome {
    let (mm, users, rounds, seed) = (ctx.mm, ctx.cpus(), ctx.rounds(3), ctx.args.seed);
    let process = Process::new(mm)?;
    let start = process.mmap(MmapArgs::anonymous(users as u64 * BYTES))?;
    let before = ctx.balloon().map_or(0, |status| status.counters.migrated_pages);
    let began = mm.platform().now_ns();
    let mover = Mover {
        mm,
        at: AtomicU64::new(0),
        moved: SpinLock::new(LockClass::Queue, MigrateStats::default()),
    };
    ctx.run_on(users, &|thread| {
        let own = start + thread as u64 * BYTES;
        use_pages(&process, own, rounds, Rng::new(seed).stream(thread as u64), &mover)
    })?;
    let stats = *mover.moved.lock(mm.platform());
    let ballooned = ctx.balloon().map_or(0, |status| status.counters.migrated_pages) - before;
    let folios = stats.migrated.saturating_sub(ballooned);
    let ms = mm.platform().now_ns().saturating_sub(began) / 1_000_000;
    ctx.print(format_args!(
        "{users} users, {rounds} rounds, {ms} ms: {folios} pages in use and {ballooned} ballooned ones moved"
    ));
    check(folios > 0, "pages in use moved")?;
    check(!has_balloon || ballooned > 0, "ballooned pages moved")
}

/// Rewrites pages and looks at them, until it has gone through them `rounds` times.
fn use_pages<M: Machine>(
    process: &Process<'_, '_, M>,
    start: u64,
    rounds: u64,
    mut rng: Rng,
    mover: &Mover<'_, '_, M>,
) -> Outcome {
    let mut tags = [0; PAGES];
    for round in 0..=rounds {
        for (page, tag) in (0..).zip(&mut tags) {
            let at = start + page * PAGE_SIZE;
            if round > 0 {
                expect(process, at, *tag)?;
            }
            if round < rounds {
                *tag = rng.next();
                write(process, at, *tag)?;
            }
            if page.is_multiple_of(4) {
                mover.step();
            }
        }
    }
    Ok(())
}

/// Word `n` of a page: they lie at both ends and in between.
const fn word(at: u64, n: u64) -> u64 {
    at + n * ((PAGE_SIZE - 8) / (WORDS - 1)) / 8 * 8
}

fn write<M: Machine>(process: &Process<'_, '_, M>, at: u64, tag: u64) -> Outcome {
    let mut sum = 0u64;
    for n in 0..WORDS - 1 {
        let value = tag.wrapping_mul(n + 1);
        process.store(word(at, n), value)?;
        sum = sum.wrapping_add(value);
    }
    Ok(process.store(word(at, WORDS - 1), sum)?)
}

fn expect<M: Machine>(process: &Process<'_, '_, M>, at: u64, tag: u64) -> Outcome {
    let mut sum = 0u64;
    for n in 0..WORDS - 1 {
        let value = process.load(word(at, n))?;
        check_eq(value, tag.wrapping_mul(n + 1), "a word of a page that moved")?;
        sum = sum.wrapping_add(value);
    }
    check_eq(process.load(word(at, WORDS - 1))?, sum, "the sum of a page that moved")
}

/// Moves whatever can be moved, through all of RAM again and again.
struct Mover<'a, 'm, M: Machine> {
    mm: &'a Mm<'m, M>,
    /// Frames looked at so far.
    at: AtomicU64,
    moved: SpinLock<MigrateStats>,
}

impl<M: Machine> Mover<'_, '_, M> {
    /// Moves what there is in the next frames.
    fn step(&self) {
        let step = self.at.fetch_add(FRAMES_AT_ONCE, Ordering::Relaxed) / FRAMES_AT_ONCE;
        let mode = if step.is_multiple_of(2) { MigrateMode::Sync } else { MigrateMode::Async };
        let Some(frames) = self.frames(step) else { return };
        let mut batch = MigrateBatch::<M>::new(self.mm);
        for pfn in frames.iter() {
            // Most frames hold nothing that moves, or somebody has it.
            let _isolated = self.mm.isolate_for_migration(pfn, &mut batch);
        }
        let mut destinations = Allocated::new(self.mm.memory());
        let stats = self.mm.migrate_pages(&mut batch, &mut destinations, mode);
        self.moved.lock(self.mm.platform()).add(&stats);
    }

    /// The frames of step `step`: RAM in pieces, again and again.
    fn frames(&self, step: u64) -> Option<PfnRange> {
        let regions = || self.mm.memory().words().regions().map(|region| region.range());
        let pieces = |range: PfnRange| range.len().get() / FRAMES_AT_ONCE;
        let mut left = step % regions().map(pieces).sum::<u64>().max(1);
        for range in regions() {
            if left < pieces(range) {
                let start = range.start().checked_add(PageCount::new(left * FRAMES_AT_ONCE))?;
                return PfnRange::from_start(start, PageCount::new(FRAMES_AT_ONCE));
            }
            left -= pieces(range);
        }
        None
    }
}
