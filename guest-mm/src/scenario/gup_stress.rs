//! `gup-stress`: pages are pinned, by all paths, while their mappings come and go.
//!
//! The first thread, the churner, unmaps the pages of a process and faults
//! them in again, for preference so that a frame comes back at the same
//! address under another descriptor: what GUP-fast's second look at the word
//! is there for. It leads the frames' list and the descriptors' list out of step
//! by holding a frame back. The other threads pin pages and look at what they got:
//!
//! * the folio that is pinned is the one that holds the frame that was mapped;
//! * the frame is the holder's until it unpins: what it wrote is still there.
//!
//! Between a frame's word and the reference they wait, at random, for the churner to have gone
//! round once, which makes the window as wide as it can get; with the mutant
//! and without. Pinning threads are in no address space, so no TLB flush waits
//! for them. One CPU alone cannot lose the race: the fast path is masked.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::{Ctx, Machine, Mutant, Outcome, Process, Rng, check, check_eq};
use crate::buddy::Gfp;
use crate::gup::{Contents, GupFlags, PagePin};
use crate::memdesc::Order;
use crate::platform::MAX_CPUS;
use crate::space::{Advice, MmapArgs};

/// Pages that are unmapped and faulted in again and again.
const PAGES: u64 = 4;
/// Rounds of the churner unless told otherwise.
const ROUNDS: u64 = 2000;
/// The churner does so many times its rounds at most while it waits for the others to begin.
const LATE: u64 = 1000;
/// Times that a pinning thread waits for the churner at most.
const PATIENCE: u32 = 2000;

/// What the threads share.
struct Shared<'a, 'm, M: Machine> {
    process: &'a Process<'a, 'm, M>,
    /// First of the pages.
    pages: u64,
    mutant: Option<Mutant>,
    rounds: u64,
    rng: Rng,
    /// Rounds that the churner has done.
    round: AtomicU64,
    is_over: AtomicBool,
    pins: AtomicU64,
    misses: AtomicU64,
}

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus().max(2);
    let process = Process::new(ctx.mm)?;
    let pages = process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    let shared = Shared {
        process: &process,
        pages,
        mutant: ctx.args.mutant,
        rounds: ctx.rounds(ROUNDS),
        rng: ctx.rng.clone(),
        round: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        pins: AtomicU64::new(0),
        misses: AtomicU64::new(0),
    };
    let ended = ctx.run_on(threads, &|thread| {
        let ended = if thread == 0 { shared.churn() } else { shared.pin_all(thread) };
        if ended.is_err() || thread == 0 {
            shared.is_over.store(true, Ordering::Relaxed);
        }
        ended
    });
    let [rounds, pins, misses] =
        [&shared.round, &shared.pins, &shared.misses].map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!("{threads} threads, {rounds} rounds, {pins} pins, {misses} missed"));
    ended?;
    // A stress that never pins a page shows nothing.
    check(pins > 0, "some pages could be pinned")
}

impl<'m, M: Machine> Shared<'_, 'm, M> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// The churner.
    fn churn(&self) -> Outcome {
        let mut rng = self.rng.stream(0);
        let mm = self.process.mm();
        for round in 0.. {
            // On a busy host the others may start late: goes on until something was pinned, within bounds.
            let is_enough = round >= self.rounds && self.pins.load(Ordering::Relaxed) > 0;
            if is_enough || round >= self.rounds.saturating_mul(LATE) || self.is_over() {
                break;
            }
            match rng.below(8) {
                0 => mm.munmap(self.process.space(), self.pages, PAGES * PAGE_SIZE).and_then(
                    |()| {
                        let args = MmapArgs::anonymous(PAGES * PAGE_SIZE).fixed(self.pages);
                        self.process.mmap(args).map(drop)
                    },
                )?,
                1 => self.forget(0, PAGES)?,
                _ => self.swap_descriptors(&mut rng)?,
            }
            self.process.fill(self.pages, PAGES, round)?;
            self.round.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes pages out of the page table; their memory is free if nobody else has it.
    fn forget(&self, first: u64, count: u64) -> Outcome {
        let start = self.pages + first * PAGE_SIZE;
        Ok(self.process.madvise(start, count * PAGE_SIZE, Advice::DontNeed)?)
    }

    /// Makes two pages come back in the frames they had, with each other's descriptor.
    ///
    /// Frames and descriptors are each handed out last in, first out, per CPU; so
    /// the frame freed last is held back while the first page comes in.
    fn swap_descriptors(&self, rng: &mut Rng) -> Outcome {
        let memory = self.process.mm().memory();
        let first = rng.below(PAGES - 1);
        self.process.fill(self.pages, PAGES, 0)?;
        self.forget(first, 1)?;
        self.forget(first + 1, 1)?;
        let held_back = memory.alloc_frozen(Order::ZERO, Gfp::USER);
        let faulted = self.process.store(self.pages + first * PAGE_SIZE, 1);
        if let Ok(frames) = held_back {
            memory.free_frozen(frames);
        }
        faulted?;
        self.process.store(self.pages + (first + 1) * PAGE_SIZE, 1)?;
        Ok(())
    }

    /// A pinning thread.
    fn pin_all(&self, thread: usize) -> Outcome {
        let mut rng = self.rng.stream(thread as u64);
        let mm = self.process.mm();
        while !self.is_over() {
            let mut pages = [const { None }; 2];
            let count = 1 + usize::try_from(rng.below(2)).unwrap_or(0);
            let first = rng.below(PAGES + 1 - count as u64);
            let got = self.pin(first, &mut pages[..count], &mut rng);
            self.pins.fetch_add(got as u64, Ordering::Relaxed);
            self.misses.fetch_add((count - got) as u64, Ordering::Relaxed);
            let looked = self.look(thread, &pages, &mut rng);
            mm.unpin_user_pages(&mut pages, Contents::Written);
            looked?;
            if rng.once_in(4) {
                mm.platform().yield_now();
            }
        }
        Ok(())
    }

    /// Pins pages, by one of the paths; how many.
    fn pin(&self, first: u64, out: &mut [Option<PagePin<'m>>], rng: &mut Rng) -> usize {
        let (mm, space) = (self.process.mm(), self.process.space());
        let va = self.pages + first * PAGE_SIZE;
        let flags = if rng.once_in(2) { GupFlags::WRITE } else { GupFlags::empty() };
        let is_slow = rng.once_in(8);
        let patience = if rng.once_in(2) { PATIENCE } else { 0 };
        let between = || self.await_churner(patience);
        // A page that is just being unmapped is no failure.
        let pinned = match self.mutant {
            Some(Mutant::NoRecheck) => mm.gup_fast_without_recheck(space, va, flags, out, between),
            None if is_slow => mm.pin_user_pages_fast(space, va, flags, out),
            None => mm.pin_user_pages_fast_only_delayed(space, va, flags, out, between),
        };
        pinned.unwrap_or(0)
    }

    /// Waits until the churner has gone round once, if `patience` lasts.
    fn await_churner(&self, patience: u32) {
        let before = self.round.load(Ordering::Relaxed);
        for _ in 0..patience {
            if self.round.load(Ordering::Relaxed) > before + 1 || self.is_over() {
                break;
            }
            self.process.mm().platform().relax();
        }
    }

    /// Looks at pinned pages, and writes to them.
    fn look(&self, thread: usize, pages: &[Option<PagePin<'m>>], rng: &mut Rng) -> Outcome {
        let mm = self.process.mm();
        for page in pages.iter().flatten() {
            let Some(pin) = page.hold() else { continue };
            check_eq(pin.pfn().number(), page.pfn().number(), "frame of the pinned folio")?;
            check(pin.pincount() > 0 && pin.refcount() > 0, "the pin is counted")?;
            // A word for each thread; those of the pattern are the first and the last.
            let (index, value) = (8 + thread % MAX_CPUS, rng.next());
            mm.write_user_page(page, index, value);
            for _ in 0..rng.below(16) {
                mm.platform().relax();
            }
            check_eq(mm.read_user_page(page, index), value, "a word written to a pinned page")?;
        }
        Ok(())
    }
}
