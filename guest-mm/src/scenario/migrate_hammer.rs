//! `migrate-hammer`: data is used by every CPU while its pages, and the balloon's, move without end.
//!
//! Each thread owns pages of one address space, rewrites them word by word and looks whether each page
//! holds what it wrote last and the sum that goes with it. In between it takes whatever can be moved of the
//! next frames of RAM, which all threads go through together, and has it moved: other threads' pages, its own, and
//! the balloon's. `--rounds` says how often each goes through its pages at least, `--seconds` how long it goes on.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::{PAGE_SIZE, PageCount, PfnRange};

use super::balloon::{Filled, ballooned};
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
/// Times through all of RAM after which something must have moved.
const MAX_TIMES: u64 = 64;

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
    let mover = Mover::new(mm, has_balloon, ctx.args.seconds.unwrap_or(0));
    ctx.run_on(users, &|thread| {
        let own = start + thread as u64 * BYTES;
        use_pages(&process, own, rounds, Rng::new(seed).stream(thread as u64), &mover)
    })?;
    let stats = *mover.moved.lock(mm.platform());
    let ballooned = ctx.balloon().map_or(0, |status| status.counters.migrated_pages) - before;
    let folios = stats.migrated.saturating_sub(ballooned);
    let ms = mm.platform().now_ns().saturating_sub(began) / 1_000_000;
    let rewritten = mover.rewritten.load(Ordering::Relaxed);
    ctx.print(format_args!(
        "{users} users, {ms} ms, {rewritten} pages rewritten: {folios} pages in use and {ballooned} ballooned ones moved"
    ));
    check(folios > 0, "pages in use moved")?;
    check(!has_balloon || ballooned > 0, "ballooned pages moved")
}

/// Rewrites pages and looks at them, until it has gone through them `rounds` times and the mover
/// has been far enough.
fn use_pages<M: Machine>(
    process: &Process<'_, '_, M>,
    start: u64,
    rounds: u64,
    mut rng: Rng,
    mover: &Mover<'_, '_, M>,
) -> Outcome {
    let mut tags = [0; PAGES];
    for round in 0.. {
        let is_last = round >= rounds && !mover.goes_on();
        for (page, tag) in (0..).zip(&mut tags) {
            let at = start + page * PAGE_SIZE;
            if round > 0 {
                expect(process, at, *tag)?;
            }
            if !is_last {
                *tag = rng.next();
                write(process, at, *tag)?;
            }
            if page.is_multiple_of(4) {
                mover.step();
            }
        }
        if is_last {
            break;
        }
        mover.rewritten.fetch_add(PAGES as u64, Ordering::Relaxed);
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

/// Which pages a step of the mover takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    All,
    Ballooned,
    Others,
}

/// Moves whatever can be moved, through all of RAM again and again.
struct Mover<'a, 'm, M: Machine> {
    mm: &'a Mm<'m, M>,
    /// Frames looked at so far.
    at: AtomicU64,
    moved: SpinLock<MigrateStats>,
    /// Whether pages that are not ballooned, and such that are, have moved.
    has_moved: [AtomicBool; 2],
    rewritten: AtomicU64,
    began: u64,
    until: u64,
}

impl<'a, 'm, M: Machine> Mover<'a, 'm, M> {
    /// To go on for some seconds at least.
    fn new(mm: &'a Mm<'m, M>, has_balloon: bool, seconds: u64) -> Self {
        let began = mm.platform().now_ns();
        Self {
            mm,
            at: AtomicU64::new(0),
            moved: SpinLock::new(LockClass::Queue, MigrateStats::default()),
            has_moved: [AtomicBool::new(false), AtomicBool::new(!has_balloon)],
            rewritten: AtomicU64::new(0),
            began,
            until: began + seconds * 1_000_000_000,
        }
    }

    /// Whether its time is not over, or it has not moved pages of both kinds. Whatever the
    /// machine's speed, a few times through all of RAM suffice for that, unless something is wrong.
    fn goes_on(&self) -> bool {
        let now = self.mm.platform().now_ns();
        // A clock that stands still never gets there.
        let has_time = now > self.began && now < self.until;
        let is_idle = self.has_moved.iter().any(|moved| !moved.load(Ordering::Relaxed));
        let times = self.at.load(Ordering::Relaxed) / FRAMES_AT_ONCE / self.pieces().max(1);
        has_time || (is_idle && times < MAX_TIMES)
    }

    /// Moves what there is in the next frames.
    fn step(&self) {
        let step = self.at.fetch_add(FRAMES_AT_ONCE, Ordering::Relaxed) / FRAMES_AT_ONCE;
        let Some(frames) = self.frames(step) else { return };
        // Each piece of RAM has each turn.
        let turn = step + step / self.pieces().max(1);
        let mode = if turn.is_multiple_of(2) { MigrateMode::Sync } else { MigrateMode::Async };
        let take = match turn % 8 {
            4 | 5 => Take::Ballooned,
            6 | 7 => Take::Others,
            _ => Take::All,
        };
        let mut batch = MigrateBatch::<M>::new(self.mm);
        for pfn in frames.iter() {
            let is_ballooned = ballooned(self.mm, pfn) > 0;
            if take == Take::All || is_ballooned == (take == Take::Ballooned) {
                // Most frames hold nothing that moves, or somebody has it.
                let _isolated = self.mm.isolate_for_migration(pfn, &mut batch);
            }
        }
        let mut destinations = Allocated::new(self.mm.memory());
        let stats = self.mm.migrate_pages(&mut batch, &mut destinations, mode);
        self.moved.lock(self.mm.platform()).add(&stats);
        if stats.migrated > 0 && take != Take::All {
            self.has_moved[usize::from(take == Take::Ballooned)].store(true, Ordering::Relaxed);
        }
    }

    /// Pieces that RAM has.
    fn pieces(&self) -> u64 {
        let regions = self.mm.memory().words().regions();
        regions.map(|region| region.range().len().get() / FRAMES_AT_ONCE).sum()
    }

    /// The frames of step `step`: RAM in pieces, again and again.
    fn frames(&self, step: u64) -> Option<PfnRange> {
        let mut left = step % self.pieces().max(1);
        for range in self.mm.memory().words().regions().map(|region| region.range()) {
            let pieces = range.len().get() / FRAMES_AT_ONCE;
            if left < pieces {
                let start = range.start().checked_add(PageCount::new(left * FRAMES_AT_ONCE))?;
                return PfnRange::from_start(start, PageCount::new(FRAMES_AT_ONCE));
            }
            left -= pieces;
        }
        None
    }
}
