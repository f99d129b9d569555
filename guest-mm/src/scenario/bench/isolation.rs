//! `exp-e5`: isolation by one swap of the page's word, against a reference, a page lock
//! and the owner's list.
//!
//! All arms take turns in each round, all threads at once. A sample is a fixed number
//! of attempts of one thread to isolate a page, each put back at once.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::Pfn;

use super::Samples;
use crate::bench::page64::{Owner, Page64, Pages64};
use crate::bench::sample::per_item;
use crate::bench::{Experiment, Param, Sample};
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::platform::{MAX_CPUS, Platform};
use crate::scenario::{Ctx, Failure, Machine, OrFail, Outcome, Rng, check_eq};

/// Attempts of a sample.
const ATTEMPTS: u64 = 4096;
/// Attempts where the clock stands still, which shows that all is given back.
const STILL_ATTEMPTS: u64 = 64;
/// Pages of each thread.
const OWN: usize = 64;
/// Pages for which all threads compete.
const SHARED: usize = 4;
/// Pages in all.
const PAGES: usize = OWN * MAX_CPUS;
/// Samples of each arm and pattern unless told otherwise, and at most.
const ROUNDS: u64 = 4;
const MAX_ROUNDS: usize = 32;

/// The driver of the pages; no other has the number.
const DRIVER: DriverId = match DriverId::new(15) {
    Some(driver) => driver,
    None => unreachable!(),
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Cas,
    LockRef,
    LockRefList,
}

impl Arm {
    const ALL: [Self; 3] = [Self::Cas, Self::LockRef, Self::LockRefList];

    const fn name(self) -> &'static str {
        match self {
            Self::Cas => "cas",
            Self::LockRef => "lock+ref",
            Self::LockRefList => "lock+ref+list",
        }
    }
}

/// Whose pages a thread isolates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Own,
    Shared,
}

impl Pattern {
    const ALL: [Self; 2] = [Self::Own, Self::Shared];

    const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }

    /// A page for `thread`.
    fn page(self, thread: usize, rng: &mut Rng) -> usize {
        let below = |end: usize, rng: &mut Rng| usize::try_from(rng.below(end as u64)).unwrap_or(0);
        match self {
            Self::Own => thread * OWN + below(OWN, rng),
            Self::Shared => below(SHARED, rng),
        }
    }
}

/// What one sample found.
#[derive(Debug)]
struct Slot {
    ns: AtomicU64,
    /// Attempts that somebody else won.
    lost: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self { ns: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }
}

/// Samples by arm, thread and round.
type Slots = [[[Slot; MAX_ROUNDS]; MAX_CPUS]; Arm::ALL.len()];

/// The pages of all arms.
struct Subject<'a, M: Machine> {
    memory: &'a Memory<M>,
    frames: [Pfn; PAGES],
    idle: Pages64<'a>,
    lists: Pages64<'a>,
}

/// Where threads wait for each other.
struct Barrier {
    threads: u32,
    arrived: AtomicU32,
}

impl Barrier {
    /// Returns when all threads have called it `turn` times.
    fn wait<P: Platform>(&self, platform: &P, turn: u32) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < turn * self.threads {
            platform.relax();
        }
    }
}

/// Runs the experiment.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let memory = ctx.mm.memory();
    let mut frames = [Pfn::ZERO; PAGES];
    let taken = take_pages(memory, &mut frames);
    let outcome = match taken {
        PAGES => with_subject(ctx, &frames),
        _ => Err(Failure::new("there is no memory for the pages")),
    };
    for &pfn in &frames[..taken] {
        let block = memory.claim_offline(pfn, DRIVER).map_err(|_| Failure::new("page is lost"))?;
        let frames = memory.online(block).map_err(|_| Failure::new("page is another's"))?;
        memory.free_frozen(frames);
    }
    outcome
}

/// Takes movable pages; returns how many there are.
fn take_pages<P: Platform>(memory: &Memory<P>, frames: &mut [Pfn; PAGES]) -> usize {
    let take = || {
        let page = memory.alloc_frozen(Order::ZERO, Gfp::MOVABLE).ok()?;
        let pfn = memory.park(memory.make_offline(page, DRIVER).ok()?).ok()?;
        memory.set_movable(pfn, DRIVER).ok()?;
        Some(pfn)
    };
    let mut taken = 0;
    for slot in frames {
        let Some(pfn) = take() else { break };
        *slot = pfn;
        taken += 1;
    }
    taken
}

/// Descriptors in frames of their own.
fn table<'a, P: Platform>(memory: &'a Memory<P>, frames: &'a FrozenFrames) -> &'a [Page64] {
    let start = memory.platform().frame_ptr(frames.head()).cast::<Page64>();
    // SAFETY: the block has this many zeroed descriptors, which is what they are when free,
    // is aligned to a page, and its owner lends the handle for as long as the slice lives.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), PAGES) }
}

fn with_subject<M: Machine>(ctx: &mut Ctx<'_, '_, M>, frames: &[Pfn; PAGES]) -> Outcome {
    let memory = ctx.mm.memory();
    let bytes = (PAGES * size_of::<Page64>()) as u64;
    let order = Order::try_from(bytes.div_ceil(abi::PAGE_SIZE).next_power_of_two().ilog2());
    let order = order.ok().or_fail()?;
    let take = || memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO).ok();
    let (idle, lists) = (take(), take());
    let outcome = match (&idle, &lists) {
        (Some(idle), Some(lists)) => {
            let platform = memory.platform();
            let idle = Pages64::new(platform, table(memory, idle), Owner::Idle);
            let lists = Pages64::new(platform, table(memory, lists), Owner::Lists);
            measure(ctx, &Subject { memory, frames: *frames, idle, lists })
        }
        _ => Err(Failure::new("there is no memory for descriptors")),
    };
    [idle, lists].into_iter().flatten().for_each(|frames| memory.free_frozen(frames));
    outcome
}

fn measure<M: Machine>(ctx: &mut Ctx<'_, '_, M>, subject: &Subject<'_, M>) -> Outcome {
    let threads = ctx.cpus();
    let rounds = usize::try_from(ctx.rounds(ROUNDS)).unwrap_or(MAX_ROUNDS).clamp(1, MAX_ROUNDS);
    let platform = subject.memory.platform();
    let attempts = attempts(platform);
    let mut samples = Samples::new(Experiment::E5, ctx.args.seed);
    for pattern in Pattern::ALL {
        let slots: Slots =
            [const { [const { [const { Slot::new() }; MAX_ROUNDS] }; MAX_CPUS] }; Arm::ALL.len()];
        let count = u32::try_from(threads).unwrap_or(1);
        let barrier = Barrier { threads: count, arrived: AtomicU32::new(0) };
        let seed = ctx.rng.clone();
        ctx.run_on(threads, &|thread| {
            let mut rng = seed.stream(thread as u64);
            let mut turn = 0;
            for round in 0..rounds {
                for (arm, slots) in Arm::ALL.into_iter().zip(&slots) {
                    turn += 1;
                    barrier.wait(platform, turn);
                    let slot = &slots[thread][round];
                    subject.sample(arm, pattern, attempts, (thread, &mut rng), slot);
                }
            }
            Ok(())
        })?;
        for (arm, slots) in Arm::ALL.into_iter().zip(&slots) {
            for slot in slots[..threads].iter().flat_map(|slots| &slots[..rounds]) {
                print(ctx, &mut samples, arm, pattern, attempts, slot);
            }
        }
    }
    // Every page was put back, by each arm.
    check_eq(subject.lists.listed(platform), PAGES as u64, "pages on the owner's list")?;
    let isolated = |pfn: &&Pfn| subject.memory.isolated_order(**pfn, DRIVER).is_ok();
    check_eq(subject.frames.iter().filter(isolated).count() as u64, 0, "isolated pages")?;
    samples.end(ctx);
    Ok(())
}

/// Attempts of a sample: few if the clock stands still, which it does while nothing is simulated.
fn attempts<P: Platform>(platform: &P) -> u64 {
    let start = platform.now_ns();
    let moved = (0..1 << 16).any(|_| {
        core::hint::spin_loop();
        platform.now_ns() != start
    });
    if moved { ATTEMPTS } else { STILL_ATTEMPTS }
}

fn print<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    samples: &mut Samples,
    arm: Arm,
    pattern: Pattern,
    attempts: u64,
    slot: &Slot,
) {
    let params = [("pages", Param::Word(pattern.name()))];
    let [ns, lost] = [&slot.ns, &slot.lost].map(|value| value.load(Ordering::Relaxed));
    let mut print = |metric, unit, value| {
        let sample = Sample { arm: arm.name(), params: &params, metric, unit, value };
        samples.print(ctx, &sample);
    };
    print("isolate and put back", "ns/page", per_item(ns, attempts - lost));
    print("lost to others", "of 1000 attempts", per_item(lost * 1000, attempts));
}

impl<M: Machine> Subject<'_, M> {
    /// One thread's sample. Never fails: others wait for it at the barrier.
    fn sample(
        &self,
        arm: Arm,
        pattern: Pattern,
        attempts: u64,
        (thread, rng): (usize, &mut Rng),
        slot: &Slot,
    ) {
        let platform = self.memory.platform();
        let start = platform.now_ns();
        let mut lost = 0;
        for _ in 0..attempts {
            let at = pattern.page(thread, rng);
            let won = match arm {
                Arm::Cas => self.swap(at),
                Arm::LockRef => turn(platform, &self.idle, at),
                Arm::LockRefList => turn(platform, &self.lists, at),
            };
            lost += u64::from(!won);
        }
        let ns = platform.now_ns().saturating_sub(start);
        slot.ns.store(ns, Ordering::Relaxed);
        slot.lost.store(lost, Ordering::Relaxed);
    }

    fn swap(&self, at: usize) -> bool {
        let Ok(block) = self.memory.isolate(self.frames[at], DRIVER) else { return false };
        // A word that is not the handle's stays isolated, which the end notices.
        self.memory.putback(block).is_ok()
    }
}

fn turn<P: Platform>(platform: &P, pages: &Pages64<'_>, at: usize) -> bool {
    let won = pages.isolate(platform, at);
    if won {
        pages.put_back(platform, at);
    }
    won
}
