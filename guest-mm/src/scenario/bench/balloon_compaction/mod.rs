//! `exp-e9`: blocks of order 9 among ballooned pages, movable and pinned.
//!
//! Memory is inflated page by page to a share of it; a program has a quarter of what is
//! left above the *low* watermark. Then every page that can move goes to a random free frame, so that
//! ballooned, used and free pages are mixed evenly, the same for both arms. What is
//! counted is how many blocks of order 9 can be had, and what they cost.
//!
//! *Pinned* means that nobody has registered operations for the balloon's pages: all
//! that is known of Linux's balloon without compaction support. The program's pages move in
//! both arms.
//!
//! Pages of a balloon that is there are used as they are, at the inflation that the
//! host has set; without one the scenario takes the pages itself, at three levels
//! ([`pages`]). Question, table and limits: `docs/experiments/e9-balloon-compaction.md`.

mod pages;
mod shuffle;

use abi::PAGE_SIZE;

use self::pages::{Ballooned, Source};
use super::Samples;
use crate::bench::sample::per_item;
use crate::bench::{Experiment, Param, Sample};
use crate::buddy::Gfp;
use crate::compaction::CompactStats;
use crate::memdesc::{Kind, Order};
use crate::migrate::{MigrateMode, MovableKind};
use crate::mm::Mm;
use crate::scenario::hog::Hog;
use crate::scenario::{Ctx, Failure, Machine, OrFail, Outcome, Process, check};
use crate::space::{Advice, MmapArgs};

/// Rounds unless asked for otherwise.
const ROUNDS: u64 = 1;
/// Attempts at most.
const MAX_ATTEMPTS: usize = 256;
const HUGE: Order = Order::PAGEBLOCK;

/// Runs it.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut samples = Samples::new(Experiment::E9, ctx.args.seed);
    match pages::settled_balloon(ctx) {
        Some(source) => at_level(ctx, &source, &mut samples)?,
        None => by_itself(ctx, &mut samples)?,
    }
    samples.end(ctx);
    Ok(())
}

/// All levels, with pages of the scenario's own. A run without a number of rounds is a
/// trial: one level, by the seed.
fn by_itself<M: Machine>(ctx: &mut Ctx<'_, '_, M>, samples: &mut Samples) -> Outcome {
    let trial = ctx.args.rounds.is_none().then_some(ctx.args.seed % pages::LEVELS.len() as u64);
    for (nth, percent) in (0..).zip(pages::LEVELS) {
        if trial.is_some_and(|only| only != nth) {
            continue;
        }
        // The operations of a balloon without pages make room for the scenario's.
        let ops = ctx.mm.movable_ops(MovableKind::Offline).map(|guard| guard.ops());
        if ops.is_some() {
            ctx.mm.clear_movable_ops(Kind::Offline).or_fail()?;
        }
        let ended = Source::inflate(ctx, percent).and_then(|source| {
            let ended = at_level(ctx, &source, samples);
            source.deflate(ctx).and(ended)
        });
        if let Some(ops) = ops {
            ctx.mm.set_movable_ops(Kind::Offline, ops).or_fail()?;
        }
        ended?;
    }
    Ok(())
}

/// All rounds at one level of inflation.
fn at_level<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    source: &Source,
    samples: &mut Samples,
) -> Outcome {
    let process = Process::new(ctx.mm)?;
    // Not more than it would get: a balloon stops at the *low* watermark, and so does this.
    let used = above_low(ctx.mm) / 4;
    if used > 0 {
        let start = process.mmap(MmapArgs::anonymous(used * PAGE_SIZE))?;
        process.madvise(start, used * PAGE_SIZE, Advice::NoHugePage)?;
        process.fill(start, used, 1)?;
    }
    let params =
        [("inflation", Param::Number(source.percent)), ("pages", Param::Word(source.whose.name()))];
    for _ in 0..ctx.rounds(ROUNDS) {
        for arm in [Arm::Movable, Arm::Pinned] {
            let observed = observe(ctx, arm)?;
            let mut print = |(metric, unit, value): (&'static str, &'static str, u64)| {
                samples
                    .print(ctx, &Sample { arm: arm.name(), params: &params, metric, unit, value });
            };
            observed.metrics().into_iter().flatten().for_each(&mut print);
            let tried = usize::try_from(observed.attempts).unwrap_or(MAX_ATTEMPTS);
            observed.attempt_ns[..tried].iter().for_each(|&ns| print(("attempt", "us", ns)));
        }
    }
    drop(process);
    Ok(())
}

/// Free pages above the *low* watermark, none of them on a CPU's list.
fn above_low<M: Machine>(mm: &Mm<'_, M>) -> u64 {
    let memory = mm.memory();
    memory.drain();
    memory.free_pages().get().saturating_sub(memory.watermarks().low)
}

/// Blocks that can be had of free memory if all that is in the way moves: direct compaction begins only with
/// two blocks free above *low*, so the last one is never begun.
fn attempts_for(above_low: u64) -> u64 {
    (above_low / HUGE.pages().get()).saturating_sub(1).min(MAX_ATTEMPTS as u64)
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Movable,
    Pinned,
}

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Movable => "movable",
            Self::Pinned => "pinned",
        }
    }
}

/// What one arm of one round gave.
#[derive(Debug, Clone, Copy)]
struct Observed {
    /// Blocks that were there before anything was moved for them.
    before: u64,
    /// Blocks that were asked for.
    attempts: u64,
    /// Blocks that could be had.
    blocks: u64,
    /// Time of each attempt.
    attempt_ns: [u64; MAX_ATTEMPTS],
    /// Words that both scanners looked at.
    scanned: u64,
    /// Pages that were moved.
    moved: u64,
    /// Pages that were isolated for it and stayed: a block has them in the way.
    stayed: u64,
    /// Blocks that a whole compaction made, of the same memory, mixed again.
    whole: u64,
    /// Pages that stayed in it.
    whole_stayed: u64,
    /// Words that it looked at.
    whole_scanned: u64,
}

impl Observed {
    /// Metric, unit and value; `None` where there was nothing to observe.
    fn metrics(&self) -> [Option<(&'static str, &'static str, u64)>; 10] {
        let made = (self.blocks.saturating_sub(self.before)) * HUGE.pages().get();
        let whole = self.whole * HUGE.pages().get();
        let tried = self.attempts > 0;
        let per_million = "pages/10^6 words";
        [
            Some(("before", "blocks", self.before * 1000)),
            Some(("attempts", "blocks", self.attempts * 1000)),
            Some(("allocated", "blocks", self.blocks * 1000)),
            tried.then_some((
                "success",
                "% of the attempts",
                per_item(self.blocks * 100, self.attempts),
            )),
            Some(("moved", "pages", self.moved * 1000)),
            Some(("stayed", "pages", self.stayed * 1000)),
            tried.then_some(("recovered", per_million, per_item(made * 1_000_000, self.scanned))),
            Some(("compacted", "blocks", self.whole * 1000)),
            Some(("stayed when compacted", "pages", self.whole_stayed * 1000)),
            Some((
                "compacted per scan",
                per_million,
                per_item(whole * 1_000_000, self.whole_scanned),
            )),
        ]
    }
}

/// One arm of one round: mixed memory, attempts, mixed again, a whole compaction.
fn observe<M: Machine>(ctx: &mut Ctx<'_, '_, M>, arm: Arm) -> Result<Observed, Failure> {
    let mm = ctx.mm;
    shuffle::mix(ctx)?;
    let guard = mm.movable_ops(MovableKind::Offline).or_fail()?;
    let ops = guard.ops();
    drop(guard);
    let pin = |pinned: bool| match (arm, pinned) {
        (Arm::Movable, _) => true,
        (Arm::Pinned, true) => mm.clear_movable_ops(Kind::Offline).is_ok(),
        (Arm::Pinned, false) => mm.set_movable_ops(Kind::Offline, ops).is_ok(),
    };
    mm.forget_compaction();
    check(pin(true), "the operations can be taken back")?;
    let before = mm.fragmentation(HUGE).suitable_blocks;
    let attempts = attempts_for(above_low(mm));
    let stats = mm.compact_stats();
    let mut held = Hog::new();
    let (mut blocks, mut attempt_ns) = (0, [0; MAX_ATTEMPTS]);
    for (_, ns) in (0..attempts).zip(&mut attempt_ns) {
        let began = mm.platform().now_ns();
        let frames = mm.alloc_frames(HUGE, Gfp::USER);
        *ns = mm.platform().now_ns().saturating_sub(began);
        if let Ok(frames) = frames {
            held.push(mm, frames);
            blocks += 1;
        }
    }
    let after = mm.compact_stats();
    held.free(mm);
    check(pin(false), "the operations are registered again")?;
    shuffle::mix(ctx)?;
    mm.forget_compaction();
    check(pin(true), "the operations can be taken back")?;
    let begun = mm.compact_stats();
    let free_before = mm.fragmentation(HUGE).suitable_blocks;
    mm.compact_memory(MigrateMode::SyncLight);
    mm.memory().drain();
    let whole = mm.fragmentation(HUGE).suitable_blocks.saturating_sub(free_before);
    let done = mm.compact_stats();
    check(pin(false), "the operations are registered again")?;
    Ok(Observed {
        before,
        attempts,
        blocks,
        attempt_ns,
        scanned: scanned(&after) - scanned(&stats),
        moved: after.migrated - stats.migrated,
        stayed: after.not_migrated - stats.not_migrated,
        whole,
        whole_stayed: done.not_migrated - begun.not_migrated,
        whole_scanned: scanned(&done) - scanned(&begun),
    })
}

fn scanned(stats: &CompactStats) -> u64 {
    stats.migrate_scanned + stats.free_scanned
}

/// What the samples say of the pages' owner.
impl Ballooned {
    const fn name(self) -> &'static str {
        match self {
            Self::Balloon => "balloon",
            Self::Scenario => "scenario",
        }
    }
}
